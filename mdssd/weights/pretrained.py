"""Starting a model from a checkpoint or from published weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from mdssd.models.base import Loaded
from mdssd.models.resnet import ResNet101
from mdssd.models.vgg import MEAN_RGB
from mdssd.weights.checkpoint import load_checkpoint
from mdssd.weights.checkpoint_json import CheckpointError, find_checkpoint
from mdssd.weights.foreign_files import read_tensors
from mdssd.weights.imagenet import Weights, load_resnet101, load_vgg16
from mdssd.weights.published import Published, read_published


def load_pretrained(
    model: nn.Module,
    weights: Weights,
    *,
    rescale_input: bool = True,
) -> Loaded:
    """Start a model from a checkpoint or from published weights.

    The source can be one of these:

    - A checkpoint of any model. Tensors that fit by name and shape are loaded.
    - SSD300 of torchvision, ssd.pytorch, lufficc/SSD or Caffe, or SSD512 of the last three. The
      trunk, the extra layers, and all other tensors that fit are loaded: all of an `SSD` with the
      same number of classes, and the heads of conv8_2 and up of an `MDSSD`.
    - torchvision's vgg16 or resnet101 (see `load_vgg16` and `load_resnet101`), or VGG16 as SSD
      reduces it, of Caffe or ssd.pytorch. The trunk is loaded.

    The model then computes what the source computes from RGB 0-255 minus `Loaded.mean`. Its priors
    do not change; `mdssd convert` makes a model with the priors of the source.

    Args:
        model: the model to start, changed in place.
        weights: the path of a checkpoint (its JSON, its weights or its folder), or published
            weights: a state dict, or a safetensors, PyTorch or Caffe file (see `read_tensors`).
            No code in a file is executed.
        rescale_input: whether to adapt the first layer to this project's input, for torchvision's
            vgg16 and resnet101.

    Returns:
        The names of the tensors that were loaded and that were not, and the source's mean.

    Raises:
        OSError: the path does not exist or cannot be read.
        ValueError: no tensor of the checkpoint fits; the model has another size or width than the
            published weights, or batch normalisation; or a published tensor is missing,
            superfluous, renamed, of another shape or not finite. The model is then unchanged.

    Example:
        >>> from mdssd import load_pretrained
        >>> import mdssd, tempfile
        >>> from mdssd.weights.checkpoint import save_checkpoint
        >>> ssd = mdssd.ssd300(2, width=0.0625)
        >>> facts = {"classes": ["cat"], "mean": (123, 117, 104), "extra": {}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/best.json", ssd, **facts)
        ...     loaded = load_pretrained(mdssd.mdssd300(2, width=0.0625), folder)
        >>> loaded.layout, len(loaded.taken), loaded.fresh[0]
        ('a checkpoint of ssd300', 62, 'heads.module1.loc.weight')
    """
    if not isinstance(weights, Mapping):
        path = Path(weights)
        if not path.exists():
            raise FileNotFoundError(f"load_pretrained: {path}: no such file or folder")
        if _is_checkpoint(path):
            return _load_checkpoint(model, path)
    trunk = tuple(name for name in model.state_dict() if name.startswith("trunk."))
    if isinstance(getattr(model, "trunk", None), ResNet101):
        load_resnet101(model, weights, rescale_input=rescale_input)
        return _loaded(model, "torchvision's resnet101", trunk, (), MEAN_RGB)
    source = "weights"
    if not isinstance(weights, Mapping):
        source = os.fspath(weights)
        weights = read_tensors("load_pretrained", source)
    if "features.0.weight" in weights:
        load_vgg16(model, weights, rescale_input=rescale_input)
        return _loaded(model, "torchvision's vgg16", trunk, (), MEAN_RGB)
    return _load_published(model, source, read_published("load_pretrained", source, weights))


def _is_checkpoint(path: Path) -> bool:
    """Whether it is a folder, a JSON, or a weights file that a JSON names; if not, published."""
    if path.is_dir() or path.suffix == ".json":
        return True
    if path.suffix != ".safetensors":
        return False
    try:
        find_checkpoint(path)
        return True
    except CheckpointError:
        return False


def _load_checkpoint(model: nn.Module, path: Path) -> Loaded:
    source, meta = load_checkpoint(path)
    theirs = source.state_dict()
    taken = _load_fitting(model, theirs)
    if not taken:
        raise ValueError(
            f"load_pretrained: {path}: no tensor fits: it is {source.config()}, expected tensors "
            f"of {type(model).__name__}: {next(iter(model.state_dict()), 'none')!r} ..."
        )
    unused = (name for name in theirs if name not in taken)
    return _loaded(model, f"a checkpoint of {source.name}", taken, unused, meta["mean"])


def _load_published(model: nn.Module, source: str, found: Published) -> Loaded:
    own = model.state_dict()
    parts = ("trunk.", "extras.") if found.config else ("trunk.",)
    for name in {**own, **found.tensors}:
        ours, theirs = own.get(name), found.tensors.get(name)
        if not name.startswith(parts):
            continue
        if ours is None or theirs is None or ours.shape != theirs.shape:
            raise ValueError(
                f"load_pretrained: {source}: {found.names.get(name, 'nothing')!r} "
                f"{_shape(theirs)} does not fit the model's {name!r} {_shape(ours)}"
            )
    taken = _load_fitting(model, found.tensors)
    unused = (found.names[name] for name in found.tensors if name not in taken)
    return _loaded(model, found.layout, taken, unused, found.mean)


def _load_fitting(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load the tensors that fit by name and shape; return their names."""
    own = model.state_dict()
    taken = tuple(k for k, v in tensors.items() if k in own and own[k].shape == v.shape)
    model.load_state_dict({name: tensors[name] for name in taken}, strict=False)
    return taken


def _loaded(
    model: nn.Module,
    layout: str,
    taken: tuple[str, ...],
    unused: Iterable[str],
    mean: Iterable[float],
) -> Loaded:
    fresh = tuple(name for name in model.state_dict() if name not in taken)
    return Loaded(layout, taken, fresh, tuple(unused), tuple(mean))


def _shape(tensor: Tensor | None) -> str:
    return "(absent)" if tensor is None else str(list(tensor.shape))
