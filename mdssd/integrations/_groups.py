"""Boxes that a better one takes, for codebases that merge them themselves."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdssd import ops
from mdssd.ops.reference.boxes import pairwise_iou

_PAIRS = 2**21  # overlaps in memory at a time


def kept(boxes_xyxy: Tensor, categories: Tensor | None, threshold: float, metric: str) -> list[int]:
    """Return which of boxes [N, 4], the best first, NMS keeps, in this order."""
    ranks = torch.arange(len(boxes_xyxy), 0, -1).to(boxes_xyxy)
    if categories is None:
        return ops.nms(boxes_xyxy, ranks, threshold, metric=metric).tolist()
    return ops.batched_nms(boxes_xyxy, ranks, categories, threshold, metric=metric).tolist()


def groups(boxes_xyxy: Tensor, threshold: float, metric: str) -> list[list[int]]:
    """Divide boxes [N, 4], the best first, into groups: a box and those that it takes.

    A box takes all later ones with an overlap of at least `threshold` that no other has taken.
    """
    below = ops.just_below(threshold, boxes_xyxy.dtype)
    heads = kept(boxes_xyxy, None, below, metric)
    members: list[list[int]] = [[head] for head in heads]
    left = torch.ones(len(boxes_xyxy), dtype=torch.bool)
    left[heads] = False
    rest = left.nonzero()[:, 0]
    start = 0
    while len(rest):
        stop = start + max(1, _PAIRS // len(rest))
        own = boxes_xyxy[heads[start:stop]]
        if metric == "ios":
            overlap = pairwise_iou(own[:, None], boxes_xyxy[rest][None], ios=True)
        else:
            overlap = ops.box_iou(own, boxes_xyxy[rest])
        takes = (overlap >= threshold) & (rest > torch.tensor(heads[start:stop])[:, None])
        taken = takes.any(0)
        first = takes.to(torch.uint8).argmax(0)
        for head, box in zip(first[taken].tolist(), rest[taken].tolist(), strict=True):
            members[start + head].append(box)
        rest, start = rest[~taken], stop
    return members


def as_tensor(boxes: NDArray[np.floating]) -> Tensor:
    """Return boxes as a tensor of their own type, or float64 for one that the operators lack."""
    dtype = boxes.dtype if boxes.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(boxes, dtype))
