"""Code that the codebases share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def overlaps(a: Tensor, b: Tensor, eps: float = 0.0, clamp: bool = False) -> Tensor:
    """IoU of xyxy boxes a [..., 4] with b [..., 4], broadcast; 0 / 0 is NaN."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    inside = (high - low).clamp(min=0)
    inside = inside[..., 0] * inside[..., 1]
    sides_a, sides_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    if clamp:
        sides_a, sides_b = sides_a.clamp(min=0), sides_b.clamp(min=0)
    areas = sides_a[..., 0] * sides_a[..., 1] + sides_b[..., 0] * sides_b[..., 1]
    return inside / (areas - inside + eps)


def corners(boxes_cxcywh: Tensor) -> Tensor:
    middle, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([middle - size / 2, middle + size / 2], -1)


def centres(boxes_xyxy: Tensor) -> Tensor:
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def encode(boxes_xyxy: Tensor, priors_cxcywh: Tensor) -> Tensor:
    boxes = centres(boxes_xyxy)
    shift = (boxes[..., :2] - priors_cxcywh[..., :2]) / (0.1 * priors_cxcywh[..., 2:])
    return torch.cat([shift, torch.log(boxes[..., 2:] / priors_cxcywh[..., 2:]) / 0.2], -1)


def falling(scores: Tensor) -> Tensor:
    """Indices by descending score; among equal scores the lower index is first."""
    return scores.sort(descending=True, stable=True).indices


def suppress(boxes: Tensor, limit: float) -> list[int]:
    """Indices kept of boxes [N, 4] by descending score: an IoU <= limit, or NaN, is kept."""
    rest = torch.arange(len(boxes))
    kept = []
    while len(rest):
        kept.append(int(rest[0]))
        iou = overlaps(boxes[rest[0]], boxes[rest[1:]])
        rest = rest[1:][~(iou > limit)]
    return kept


def suppress_all(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices kept by descending score, as torchvision's nms."""
    order = falling(scores)
    return order[suppress(boxes[order], iou_threshold)]


def suppress_by_class(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices kept by descending score, separately for each class."""
    kept = []
    for label in idxs.unique():
        own = (idxs == label).nonzero()[:, 0]
        own = own[falling(scores[own])]
        kept.append(own[suppress(boxes[own], iou_threshold)])
    every = torch.cat(kept).sort().values if kept else idxs.new_empty(0, dtype=torch.int64)
    return every[falling(scores[every])]


def ranks(losses: Tensor) -> Tensor:
    """The rank [B, N] of each value by descending loss."""
    order = losses.sort(dim=1, descending=True, stable=True).indices
    return order.sort(dim=1).indices


def smooth_l1(got: Tensor, want: Tensor) -> Tensor:
    return F.smooth_l1_loss(got, want, reduction="sum")
