"""Reference of nms, batched_nms and nms_padded."""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._settings import NmsSettings
from mdssd.ops._tensors import accumulation_dtype
from mdssd.ops.reference.boxes import pairwise_iou


def greedy(
    boxes_xyxy: Tensor, iou_threshold: float, iou_eps: float, ios: bool, diou: bool
) -> Tensor:
    """Positions of the kept boxes, for boxes [N, 4] in the order of falling score."""
    alive = torch.ones(len(boxes_xyxy), dtype=torch.bool, device=boxes_xyxy.device)
    kept: list[int] = []
    for i in range(len(boxes_xyxy)):
        if alive[i]:
            kept.append(i)
            overlap = pairwise_iou(boxes_xyxy[i], boxes_xyxy, iou_eps, ios, diou)
            alive &= ~(overlap > iou_threshold)  # a NaN suppresses nothing
    return torch.tensor(kept, dtype=torch.int64, device=boxes_xyxy.device)


def nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, settings: NmsSettings) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes.to(accumulation_dtype(boxes.dtype))
    if idxs is None:
        return order[greedy(boxes[order], *settings)]
    keep = torch.zeros_like(order, dtype=torch.bool)  # by position in `order`
    for category in idxs.unique():
        positions = (idxs[order] == category).nonzero()[:, 0]
        keep[positions[greedy(boxes[order[positions]], *settings)]] = True
    return order[keep]


def nms_padded(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, settings: NmsSettings
) -> tuple[Tensor, Tensor]:
    kept = nms(boxes, scores, idxs, settings)
    keep = kept.new_zeros(boxes.shape[0])
    keep[: len(kept)] = kept
    return keep, torch.tensor(len(kept), device=boxes.device)
