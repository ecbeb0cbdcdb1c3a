"""The weights of published SSDs on VGG16, renamed to this project's names.

All of them predict in the same order as the models here (row, column, prior of the cell) and number
their channels in the same way: prior * 4 + coordinate and prior * classes + class, background
first. Only Caffe's expects BGR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mdssd.models.ssd import SSD
from mdssd.models.vgg import MEAN_RGB

_TRUNK = tuple(
    f"trunk.conv{stage}.conv{stage}_{k}.conv"
    for stage, count in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
    for k in range(1, count + 1)
) + ("trunk.fc6.conv", "trunk.fc7.conv")
_EXTRAS = tuple(f"extras.conv{n}.conv{n}_{k}.conv" for n in range(8, 13) for k in (1, 2))
_HEADS = ("conv4_3", "conv7", "conv8_2", "conv9_2", "conv10_2", "conv11_2", "conv12_2")
# Index of each convolution where a codebase has the trunk as one list of layers.
_VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)
# torchvision's SSD subtracts these means, over 255, from pixels in 0-1 and divides by 1 / 255.
_TORCHVISION_MEAN = tuple(255 * value for value in (0.48235, 0.45882, 0.40784))


@dataclass(frozen=True)
class Layout:
    """How one codebase names the weights of its SSD, and what else its SSD does differently.

    Attributes:
        name: the codebase.
        trunk, extras, loc, conf: its names of `_TRUNK`, `_EXTRAS`, and of both outputs of `_HEADS`.
        scale: its name of the L2Norm's scale.
        mean: RGB, 0-255, subtracted from the pixels.
        clip: how it clips its priors, as in `make_priors`.
        whole_sizes: whether its SSD512 truncates the sizes of the priors to whole pixels.
        scales: its prior scales for a number of classes that is neither VOC's nor COCO's.
        bgr: whether it expects BGR.
    """

    name: str
    trunk: tuple[str, ...]
    extras: tuple[str, ...] = ()
    scale: str = ""
    loc: tuple[str, ...] = ()
    conf: tuple[str, ...] = ()
    mean: tuple[float, ...] = MEAN_RGB
    clip: bool | str = False
    whole_sizes: bool = False
    scales: str = "voc"
    bgr: bool = False

    def names(self, levels: int) -> dict[str, str]:
        """Our keys -> its keys, for an SSD with this many feature maps; 0 for the trunk alone."""
        modules = dict(zip(_TRUNK, self.trunk, strict=True))
        if levels:
            modules |= zip(_EXTRAS[: 2 * levels - 4], self.extras, strict=False)
            heads = _HEADS[:levels]
            modules |= zip((f"heads.{head}.loc" for head in heads), self.loc, strict=False)
            modules |= zip((f"heads.{head}.conf" for head in heads), self.conf, strict=False)
        keys = {
            f"{ours}.{part}": f"{theirs}.{part}"
            for ours, theirs in modules.items()
            for part in ("weight", "bias")
        }
        return keys | ({"conv4_3_scale": self.scale} if levels and self.scale else {})


_CAFFE_SOURCES = ("conv4_3_norm", "fc7", *(f"conv{n}_2" for n in range(6, 11)))
LAYOUTS = (
    Layout(
        "ssd.pytorch",
        tuple(f"vgg.{k}" for k in _VGG),
        tuple(f"extras.{k}" for k in range(10)),
        "L2Norm.weight",
        tuple(f"loc.{k}" for k in range(7)),
        tuple(f"conf.{k}" for k in range(7)),
        clip=True,
        scales="coco",
    ),
    Layout(
        "lufficc/SSD",
        tuple(f"backbone.vgg.{k}" for k in _VGG),
        tuple(f"backbone.extras.{k}" for k in range(10)),
        "backbone.l2_norm.weight",
        tuple(f"box_head.predictor.reg_headers.{k}" for k in range(7)),
        tuple(f"box_head.predictor.cls_headers.{k}" for k in range(7)),
        clip=True,
    ),
    Layout(
        "torchvision",
        (
            *(f"backbone.features.{k}" for k in _VGG[:10]),
            *(f"backbone.extra.0.{k}" for k in ("1", "3", "5", "7.1", "7.3")),
        ),
        tuple(f"backbone.extra.{n}.{k}" for n in range(1, 5) for k in (0, 2)),
        "backbone.scale_weight",
        tuple(f"head.regression_head.module_list.{k}" for k in range(6)),
        tuple(f"head.classification_head.module_list.{k}" for k in range(6)),
        mean=_TORCHVISION_MEAN,
        clip="size",
        scales="coco",
    ),
    Layout(
        "Caffe",
        tuple(name.split(".")[-2] for name in _TRUNK),
        tuple(f"conv{n}_{k}" for n in range(6, 11) for k in (1, 2)),
        "conv4_3_norm.weight",
        tuple(f"{source}_mbox_loc" for source in _CAFFE_SOURCES),
        tuple(f"{source}_mbox_conf" for source in _CAFFE_SOURCES),
        whole_sizes=True,
        bgr=True,
    ),
    Layout("ssd.pytorch's vgg16_reducedfc", tuple(map(str, _VGG))),
)


@dataclass(frozen=True)
class Published:
    """A published SSD, or its trunk, under this project's names.

    Attributes:
        layout: whose names the weights had, such as "ssd.pytorch".
        tensors: float32, named as in our `state_dict`.
        names: our names -> theirs.
        mean: RGB, 0-255; to subtract from the pixels.
        config: the model, for `build`; None for a trunk.
    """

    layout: str
    tensors: dict[str, Tensor]
    names: dict[str, str]
    mean: tuple[float, ...]
    config: dict[str, Any] | None


def read_published(
    function: str, source: str, weights: Mapping[str, Tensor], prior_scales: str | None = None
) -> Published:
    """Recognise the codebase by the names of the weights, and check every tensor.

    Args:
        function: the caller's name, for error messages.
        source: the name of the file, for error messages.
        weights: the tensors by their names.
        prior_scales: the scales that the network was trained with, "voc" or "coco", which the
            weights do not tell. None takes the codebase's own: "coco" for 81 classes, for any
            number in torchvision and for any except 21 in ssd.pytorch; otherwise "voc".

    Raises:
        ValueError: a tensor is missing, superfluous or renamed, has another shape or type, or is
            not finite. The message begins with `function` and `source` and names the tensor.
    """
    where = f"{function}: {source}"
    layout, levels = _recognise(where, weights)
    names = layout.names(levels)
    _check_names(where, layout, levels, names, weights)
    num_classes, width = 2, _width(weights[names["trunk.fc7.conv.weight"]])
    config = None
    if levels:
        bias = weights[names["heads.conv4_3.conf.bias"]]
        num_classes = bias.numel() // 4
        if num_classes < 2:
            raise ValueError(
                f"{where}: {names['heads.conv4_3.conf.bias']!r}: expected 4 times the classes, "
                f"got {list(bias.shape)}"
            )
        if prior_scales is None:
            prior_scales = _usual_scales(layout, num_classes)
        config = {
            "model": "ssd512" if levels == 7 else "ssd300",
            "num_classes": num_classes,
            "width": width,
            "prior_scales": prior_scales,
            "clip_priors": layout.clip,
            "truncate_sizes": layout.whole_sizes and levels == 7,
        }
    shapes = _shapes(levels, num_classes, width)
    tensors = {
        ours: _checked(where, theirs, weights[theirs], shapes[ours])
        for ours, theirs in names.items()
    }
    if layout.bgr:
        first = "trunk.conv1.conv1_1.conv.weight"
        tensors[first] = tensors[first].flip(1)
    return Published(layout.name, tensors, names, layout.mean, config)


def _recognise(where: str, weights: Mapping[str, Tensor]) -> tuple[Layout, int]:
    """The layout with the most names in common, and its number of feature maps (0: a trunk)."""
    layout = max(LAYOUTS, key=lambda one: sum(k in weights for k in one.names(7).values()))
    known = set(layout.names(7).values())
    if known.isdisjoint(weights):
        raise ValueError(
            f"{where}: expected the names of {', '.join(one.name for one in LAYOUTS)} "
            f"or of torchvision's vgg16, got {sorted(map(str, weights))[:4]} ..."
        )
    if not any(name in weights for name in known - set(layout.names(0).values())):
        return layout, 0
    last = set(layout.names(7).values()) - set(layout.names(6).values())
    return layout, 7 if last & set(weights) else 6


def _check_names(
    where: str,
    layout: Layout,
    levels: int,
    names: Mapping[str, str],
    weights: Mapping[str, Tensor],
) -> None:
    missing = [theirs for theirs in names.values() if theirs not in weights]
    extra = [name for name in weights if name not in names.values()]
    if missing:
        also = f", and has {extra[0]!r}, which {layout.name} does not" if extra else ""
        raise ValueError(f"{where}: lacks {missing[0]!r}{also} ({len(missing)} missing)")
    if levels and extra:
        raise ValueError(
            f"{where}: has {extra[0]!r}, which {layout.name}'s SSD does not have "
            f"({len(extra)} such tensors)"
        )
    for name in names.values():
        if not isinstance(weights[name], Tensor):
            got = type(weights[name]).__name__
            raise ValueError(f"{where}: {name!r} must be a tensor, got {got}")


def _usual_scales(layout: Layout, num_classes: int) -> str:
    usual = {} if layout.clip == "size" else {21: "voc", 81: "coco"}
    return usual.get(num_classes, layout.scales)


def _checked(where: str, name: str, value: Tensor, shape: torch.Size) -> Tensor:
    if value.shape != shape:
        raise ValueError(
            f"{where}: {name!r} must have shape {list(shape)}, got {list(value.shape)}"
        )
    if not value.is_floating_point():
        raise ValueError(f"{where}: {name!r} must be of floating point, got {value.dtype}")
    value = value.float()
    if not value.isfinite().all():
        raise ValueError(f"{where}: {name!r} has values that are not finite")
    return value


def _width(fc7: Tensor) -> float:
    """The width of the network; 1 for an unlikely one, so that the check of the shapes fails."""
    width = fc7.shape[0] / 1024 if fc7.ndim else 1
    return width if width in (0.5, 0.25, 0.125, 0.0625) else 1


def _shapes(levels: int, num_classes: int, width: float) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = SSD.create(512 if levels == 7 else 300, num_classes, width=width)
    return {name: value.shape for name, value in model.state_dict().items()}
