"""Peers of `match_priors` and `encode_targets`: labels [B, N] int64, 0 for background.

They give labels alone; `mdssd` gives index and IoU, `mdssd_targets` labels and offsets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.generators import Truth
from mdssd import ops
from mdssd.ops.matching import to_xyxy

THRESHOLD = 0.5
Call = Callable[[], Any]


def mdssd(x: Truth, priors: Tensor) -> Call:
    return lambda: ops.match_priors(x.boxes, priors, THRESHOLD)


def mdssd_targets(x: Truth, priors: Tensor) -> Call:
    return lambda: ops.encode_targets(x.boxes, x.labels, priors, THRESHOLD).labels


def _iou_pairs(boxes: Tensor, priors: Tensor) -> Tensor:
    """[M, N], by way of corners [M, N, 2], as torchvision and ssd.pytorch have it."""
    low = torch.maximum(boxes[:, None, :2], priors[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], priors[None, :, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    overlap = width * height
    area, prior_area = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, priors))
    return overlap / (area[:, None] + prior_area[None] - overlap)


def _iou_split(boxes: Tensor, priors: Tensor) -> Tensor:
    """[M, N], each coordinate by itself, so that no [M, N, 2] is built."""
    x1, y1, x2, y2 = boxes[..., None].unbind(1)  # [M, 1]
    px1, py1, px2, py2 = priors.unbind(1)
    overlap = (torch.minimum(x2, px2) - torch.maximum(x1, px1)).clamp_(min=0)
    overlap *= (torch.minimum(y2, py2) - torch.maximum(y1, py1)).clamp_(min=0)
    union = (x2 - x1) * (y2 - y1) + (px2 - px1) * (py2 - py1) - overlap
    return overlap.div_(union)


def _assign(iou: Tensor) -> tuple[Tensor, Tensor]:
    """Of each prior [N]: whether its best IoU is enough, or it is a box's best; and which box."""
    best, which = iou.max(0)
    owner = iou.argmax(1)
    best = best.index_fill(0, owner, 2.0)
    which = which.index_copy(0, owner, torch.arange(len(owner), device=owner.device))
    return best >= THRESHOLD, which


def torch_targets(x: Truth, priors: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets [B, N, 4] of all priors, those of the background too, and labels, as ssd.pytorch."""
    parts = []
    for boxes, labels in zip(x.boxes, x.labels, strict=True):
        positive, which = _assign(_iou_pairs(boxes, to_xyxy(priors)))
        matched = boxes[which]
        middle = (matched[:, :2] + matched[:, 2:]) / 2 - priors[:, :2]
        size = (matched[:, 2:] - matched[:, :2]) / priors[:, 2:]
        loc = torch.cat([middle / (0.1 * priors[:, 2:]), torch.log(size) / 0.2], 1)
        parts.append((loc, torch.where(positive, labels[which], 0)))
    loc, labels = zip(*parts, strict=True)
    return torch.stack(loc), torch.stack(labels)


def _each(iou: Callable[[Tensor, Tensor], Tensor], compiled: bool = False) -> Callable[..., Call]:
    def of_image(boxes: Tensor, labels: Tensor, priors: Tensor) -> Tensor:
        positive, which = _assign(iou(boxes, priors))
        return torch.where(positive, labels[which], 0)

    match = torch.compile(of_image, dynamic=False) if compiled else of_image

    def peer(x: Truth, priors: Tensor) -> Call:
        corners = to_xyxy(priors)

        def call() -> Tensor:
            pairs = zip(x.boxes, x.labels, strict=True)
            return torch.stack([match(boxes, labels, corners) for boxes, labels in pairs])

        return call

    return peer


torch_way = _each(_iou_pairs)
torch_split = _each(_iou_split)
compiled = _each(_iou_pairs, compiled=True)

PEERS = {
    "mdssd with offsets": mdssd_targets,
    "torch, usual": torch_way,
    "torch, coordinates split": torch_split,
    "torch.compile": compiled,
}
ON_GPU = ("mdssd with offsets", "torch, usual", "torch, coordinates split", "torch.compile")
