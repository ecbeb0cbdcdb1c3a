"""How the published SSDs on VGG16 name their weights, and those weights under this project's names.

All of them predict in the same order (row, column, prior of the cell) and number their channels
prior * 4 + coordinate and prior * classes + class, background first, as the models here do. Only
Caffe's takes BGR.
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
_VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)  # of SSD's trunk as one list
# 255 times the means that torchvision's SSD takes from pixels of 0-1; its deviations are 1 / 255.
_TORCHVISION_MEAN = tuple(255 * value for value in (0.48235, 0.45882, 0.40784))


@dataclass(frozen=True)
class Layout:
    """A codebase's names: each of `_TRUNK`, `_EXTRAS` and `_HEADS`, and of the L2Norm's scale.

    clip: its priors, as in `make_priors`. whole_sizes: those of its 512 are cut to whole pixels.
    scales: of its priors, for another number of classes than VOC's and COCO's.
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
        """Our key -> its key, for an SSD that predicts from so many maps; 0 for a trunk alone."""
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

    Attributes: `layout` (whose names it had), `tensors` (float32, named as in our `state_dict`),
    `names` (ours -> theirs), `mean` (RGB, 0-255), `config` (for `build`; None for a trunk).
    """

    layout: str
    tensors: dict[str, Tensor]
    names: dict[str, str]
    mean: tuple[float, ...]
    config: dict[str, Any] | None


def read_published(
    function: str, source: str, weights: Mapping[str, Tensor], prior_scales: str | None = None
) -> Published:
    """Find out whose names these are, and check every tensor.

    prior_scales: which priors the network was trained with, "voc" or "coco"; the file does not
        say. None is what its codebase takes for so many classes: COCO's for 81, torchvision's for
        any number, ssd.pytorch's for any but 21, and else VOC's.

    A key that is missing, is one too many or is under another name, a wrong shape or type and a
    value that is not finite are a ValueError that begins with `function`, `source` and the key.
    """

    def refuse(what: str) -> ValueError:
        return ValueError(f"{function}: {source}: {what}")

    layout = max(LAYOUTS, key=lambda one: sum(k in weights for k in one.names(7).values()))
    known = set(layout.names(7).values())
    if known.isdisjoint(weights):
        raise refuse(
            "expected the names of "
            + ", ".join(one.name for one in LAYOUTS)
            + f" or of torchvision's vgg16, got {sorted(map(str, weights))[:4]} ..."
        )
    levels = 0
    if any(name in weights for name in known - set(layout.names(0).values())):
        last = set(layout.names(7).values()) - set(layout.names(6).values())
        levels = 7 if last & set(weights) else 6
    names = layout.names(levels)
    missing = [theirs for theirs in names.values() if theirs not in weights]
    extra = [name for name in weights if name not in names.values()]
    if missing:
        also = f", and has {extra[0]!r}, which {layout.name} does not" if extra else ""
        raise refuse(f"lacks {missing[0]!r}{also} ({len(missing)} missing)")
    if levels and extra:
        raise refuse(f"has {extra[0]!r}, which {layout.name}'s SSD has not ({len(extra)} such)")
    for name in names.values():
        if not isinstance(weights[name], Tensor):
            raise refuse(f"{name!r} must be a tensor, got {type(weights[name]).__name__}")
    config = None
    num_classes, width = 2, _width(weights[names["trunk.fc7.conv.weight"]])
    if levels:
        conf = names["heads.conv4_3.conf.bias"]
        num_classes = weights[conf].numel() // 4
        if num_classes < 2:
            raise refuse(f"{conf!r}: expected 4 times the classes, got {list(weights[conf].shape)}")
        if prior_scales is None:
            usual = {} if layout.clip == "size" else {21: "voc", 81: "coco"}
            prior_scales = usual.get(num_classes, layout.scales)
        config = {
            "model": "ssd512" if levels == 7 else "ssd300",
            "num_classes": num_classes,
            "width": width,
            "prior_scales": prior_scales,
            "clip_priors": layout.clip,
            "truncate_sizes": layout.whole_sizes and levels == 7,
        }
    shapes = _shapes(levels, num_classes, width)
    tensors = {}
    for ours, theirs in names.items():
        value = weights[theirs]
        if value.shape != shapes[ours]:
            raise refuse(
                f"{theirs!r} must have shape {list(shapes[ours])}, got {list(value.shape)}"
            )
        if not value.is_floating_point():
            raise refuse(f"{theirs!r} must be of floating point, got {value.dtype}")
        tensors[ours] = value.float()
        if not tensors[ours].isfinite().all():
            raise refuse(f"{theirs!r} has values that are not finite")
    if layout.bgr:
        first = "trunk.conv1.conv1_1.conv.weight"
        tensors[first] = tensors[first].flip(1)
    return Published(layout.name, tensors, names, layout.mean, config)


def _width(fc7: Tensor) -> float:
    """The multiple of SSD's channels; 1 for an unlikely one, so that the shape is found wrong."""
    width = fc7.shape[0] / 1024 if fc7.ndim else 1
    return width if width in (0.5, 0.25, 0.125, 0.0625) else 1


def _shapes(levels: int, num_classes: int, width: float) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = SSD.create(512 if levels == 7 else 300, num_classes, width=width)
    return {name: value.shape for name, value in model.state_dict().items()}
