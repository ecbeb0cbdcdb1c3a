"""Peers of `match_priors` and `encode_targets`.

Peers of `match_priors` return the index [B, N] int64, which is -1 for background, and the best IoU
[B, N]. Peers of `encode_targets` return offsets [B, N, 4] and labels [B, N] int64, which are 0 for
background. The offsets of background priors are not compared, because some peers compute them. The
peers receive the priors as corners; this project's operators convert the priors themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.generators import Truth
from mdssd import ops
from mdssd.ops.reference.boxes import to_xyxy

THRESHOLD, LOW_THRESHOLD = 0.5, 0.4
Pair = tuple[Tensor, Tensor]
Call = Callable[[], Any]


def mdssd(x: Truth, priors: Tensor) -> Call:
    return lambda: ops.match_priors(x.boxes, priors, THRESHOLD)


def mdssd_targets(x: Truth, priors: Tensor) -> Call:
    return lambda: ops.encode_targets(x.boxes, x.labels, priors, THRESHOLD)


def mdssd_band(x: Truth, priors: Tensor) -> Call:
    return lambda: ops.match_priors(x.boxes, priors, THRESHOLD, low_threshold=LOW_THRESHOLD)


def mdssd_retinanet(x: Truth, priors: Tensor) -> Call:
    rules: dict[str, Any] = {"low_threshold": LOW_THRESHOLD, "force": "low_quality"}
    return lambda: ops.match_priors(x.boxes, priors, THRESHOLD, **rules)


def _iou_pairs(boxes: Tensor, priors: Tensor) -> Tensor:
    """Return IoUs [M, N] by way of corners [M, N, 2], as torchvision and ssd.pytorch do."""
    low = torch.maximum(boxes[:, None, :2], priors[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], priors[None, :, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    overlap = width * height
    area, prior_area = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, priors))
    return overlap / (area[:, None] + prior_area[None] - overlap)


def _iou_split(boxes: Tensor, priors: Tensor) -> Tensor:
    """Return IoUs [M, N], coordinate by coordinate, without a tensor [M, N, 2]."""
    x1, y1, x2, y2 = boxes[..., None].unbind(1)  # [M, 1]
    px1, py1, px2, py2 = priors.unbind(1)
    overlap = (torch.minimum(x2, px2) - torch.maximum(x1, px1)).clamp_(min=0)
    overlap *= (torch.minimum(y2, py2) - torch.maximum(y1, py1)).clamp_(min=0)
    union = (x2 - x1) * (y2 - y1) + (px2 - px1) * (py2 - py1) - overlap
    return overlap.div_(union)


def _assign(iou: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each prior [N] whether it is positive, its box and its best IoU."""
    best, which = iou.max(0)
    owner = iou.argmax(1)
    which = which.index_copy(0, owner, torch.arange(len(owner), device=owner.device))
    return best.index_fill(0, owner, 2.0) >= THRESHOLD, which, best


def _offsets(matched: Tensor, priors: Tensor) -> Tensor:
    """Encode the box [N, 4] of each prior, as ssd.pytorch does."""
    middle = (matched[:, :2] + matched[:, 2:]) / 2 - priors[:, :2]
    size = (matched[:, 2:] - matched[:, :2]) / priors[:, 2:]
    return torch.cat([middle / (0.1 * priors[:, 2:]), torch.log(size) / 0.2], 1)


def _match(iou: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Pair]:
    def of_image(boxes: Tensor, labels: Tensor, priors: Tensor, corners: Tensor) -> Pair:
        positive, which, best = _assign(iou(boxes, corners))
        return torch.where(positive, which, -1), best

    return of_image


def _match_band(boxes: Tensor, labels: Tensor, priors: Tensor, corners: Tensor) -> Pair:
    """Match with a band of ignored priors, SSD's way."""
    positive, which, best = _assign(_iou_split(boxes, corners))
    return torch.where(positive, which, torch.where(best >= LOW_THRESHOLD, -2, -1)), best


def _match_retinanet(boxes: Tensor, labels: Tensor, priors: Tensor, corners: Tensor) -> Pair:
    """Match by the Matcher of torchvision and detectron2, with low-quality matches."""
    iou = _iou_split(boxes, corners)
    best, which = iou.max(0)
    other = torch.where(best >= LOW_THRESHOLD, -2, -1)
    index = torch.where(best >= THRESHOLD, which, other)
    restored = torch.where(iou == iou.max(1, keepdim=True).values)[1]
    index[restored] = which[restored]
    return index, best


def _encode(boxes: Tensor, labels: Tensor, priors: Tensor, corners: Tensor) -> Pair:
    """Encode all priors, including the background, as ssd.pytorch does."""
    positive, which, _ = _assign(_iou_pairs(boxes, corners))
    return _offsets(boxes[which], priors), torch.where(positive, labels[which], 0)


def _encode_some(boxes: Tensor, labels: Tensor, priors: Tensor, corners: Tensor) -> Pair:
    """Encode only the matched priors."""
    positive, which, _ = _assign(_iou_split(boxes, corners))
    row = positive.nonzero()[:, 0]
    which = which[row]
    loc, label = torch.zeros_like(priors), torch.zeros_like(positive, dtype=torch.int64)
    loc[row] = _offsets(boxes[which], priors[row])
    label[row] = labels[which]
    return loc, label


def _each(of_image: Callable[..., Pair], compiled: bool = False) -> Callable[[Truth, Tensor], Call]:
    """Apply a function image by image, since images have different numbers of boxes."""
    if compiled:
        of_image = torch.compile(of_image, dynamic=False)

    def peer(x: Truth, priors: Tensor) -> Call:
        corners = to_xyxy(priors)

        def call() -> Pair:
            images = zip(x.boxes, x.labels, strict=True)
            first, second = zip(
                *(of_image(*image, priors, corners) for image in images), strict=True
            )
            return torch.stack(first), torch.stack(second)

        return call

    return peer


PEERS = {
    "torch, usual": _each(_match(_iou_pairs)),
    "torch, coordinates split": _each(_match(_iou_split)),
    "torch.compile": _each(_match(_iou_pairs), compiled=True),
}
BAND_PEERS = {"torch, coordinates split": _each(_match_band)}
RETINANET_PEERS = {"torch, Matcher of torchvision": _each(_match_retinanet)}
TARGET_PEERS = {
    "torch, usual": _each(_encode),
    "torch, split, matched only": _each(_encode_some),
    "torch.compile": _each(_encode, compiled=True),
}
ON_GPU = tuple(PEERS)
TARGETS_ON_GPU = tuple(TARGET_PEERS)


def torch_targets(x: Truth, priors: Tensor) -> Pair:
    """Do what `encode_targets` does the usual way, as in ssd.pytorch."""
    return TARGET_PEERS["torch, usual"](x, priors)()
