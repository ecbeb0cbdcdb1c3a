"""Weights to start from, of a checkpoint or of other projects, into a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from mdssd.models.base import Loaded
from mdssd.models.resnet import ResNet101
from mdssd.models.vgg import MEAN_RGB
from mdssd.weights.checkpoint import load_checkpoint
from mdssd.weights.checkpoint_json import CheckpointError, find_checkpoint
from mdssd.weights.foreign_files import read_tensors
from mdssd.weights.imagenet import load_resnet101, load_vgg16
from mdssd.weights.published import read_published

Weights = Mapping[str, Tensor] | str | os.PathLike[str]


def load_pretrained(
    model: nn.Module,
    weights: Weights,
    *,
    rescale_input: bool = True,
) -> Loaded:
    """Start a model from a checkpoint or from published weights: ImageNet's, or a trained SSD's.

    `weights`: the path of a checkpoint (its JSON, its weights or its folder), or published weights,
    a state dict or a file, safetensors, PyTorch or Caffe, as `read_tensors` reads it; nothing in it
    is ever executed. What is taken:

    - of a checkpoint, of any model, the tensors that fit by name and shape.
    - of the SSD300 of torchvision, ssd.pytorch, lufficc/SSD or Caffe, or an SSD512 of the last
      three, the trunk, the extra layers and whatever else fits by name and shape: an `SSD` of as
      many classes all, an `MDSSD` also the heads of conv8_2 and up.
    - a trunk: torchvision's vgg16 (see `load_vgg16`, for `rescale_input` too), or VGG16 reduced as
      SSD does it, of Caffe or ssd.pytorch; for a model on ResNet-101 torchvision's resnet101 (see
      `load_resnet101`).

    The model computes what the source does from the same RGB 0-255 minus `Loaded.mean`. Its priors
    stay what they are; `mdssd convert` makes the model that has the source's.

    A path that is not there is an OSError. A checkpoint of which nothing fits; published weights
    for a model of another size or width or with batch normalisation; and a tensor of theirs that
    is missing, superfluous, renamed, of another shape or not finite are a ValueError that names it.
    The model is then unchanged.
    """
    if not isinstance(weights, Mapping):
        path = Path(weights)
        if not path.exists():
            raise FileNotFoundError(f"load_pretrained: {path}: no such file or folder")
        if _is_checkpoint(path):
            return _load_checkpoint(model, path)
    own = model.state_dict()
    trunk = tuple(name for name in own if name.startswith("trunk."))
    fresh = tuple(name for name in own if name not in trunk)
    if isinstance(getattr(model, "trunk", None), ResNet101):
        load_resnet101(model, weights, rescale_input=rescale_input)
        return Loaded("torchvision's resnet101", trunk, fresh, (), MEAN_RGB)
    source = "weights"
    if not isinstance(weights, Mapping):
        source = os.fspath(weights)
        weights = read_tensors("load_pretrained", source)
    if "features.0.weight" in weights:
        load_vgg16(model, weights, rescale_input=rescale_input)
        return Loaded("torchvision's vgg16", trunk, fresh, (), MEAN_RGB)
    found = read_published("load_pretrained", source, weights)
    parts = ("trunk.", "extras.") if found.config else ("trunk.",)
    needed = [name for name in {**own, **found.tensors} if name.startswith(parts)]
    for name in needed:
        ours, theirs = own.get(name), found.tensors.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            raise ValueError(
                f"load_pretrained: {source}: {found.names.get(name, 'nothing')!r} "
                f"{_shape(theirs)} does not fit the model's {name!r} {_shape(ours)}"
            )
    taken = tuple(k for k, v in found.tensors.items() if k in own and own[k].shape == v.shape)
    model.load_state_dict({name: found.tensors[name] for name in taken}, strict=False)
    return Loaded(
        found.layout,
        taken,
        fresh=tuple(name for name in own if name not in taken),
        unused=tuple(found.names[name] for name in found.tensors if name not in taken),
        mean=found.mean,
    )


def _shape(tensor: Tensor | None) -> str:
    return "(absent)" if tensor is None else str(list(tensor.shape))


def _is_checkpoint(path: Path) -> bool:
    """Whether it is a checkpoint's JSON, weights that one names, or a folder; else published."""
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
    own, theirs = model.state_dict(), source.state_dict()
    taken = tuple(k for k, v in theirs.items() if k in own and own[k].shape == v.shape)
    if not taken:
        raise ValueError(
            f"load_pretrained: {path}: no tensor fits: it is {source.config()}, expected tensors "
            f"of {type(model).__name__}: {next(iter(own), 'none')!r} ..."
        )
    model.load_state_dict({name: theirs[name] for name in taken}, strict=False)
    return Loaded(
        f"a checkpoint of {source.name}",
        taken,
        fresh=tuple(name for name in own if name not in taken),
        unused=tuple(name for name in theirs if name not in taken),
        mean=tuple(meta["mean"]),
    )
