"""Greedy non-maximum suppression, with the signatures and results of torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._dispatch import (
    accumulation_dtype,
    check_number,
    check_same_dtype,
    check_tensor,
    define,
    dtype_code,
    native,
)
from mdssd.ops.boxes import pairwise_iou


def nms(boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the best of overlapping boxes.

    By falling score, a box is kept if its IoU with every box kept before is at most
    `iou_threshold`.

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16, float64.
        scores: [N], same dtype and device. NaN counts as the highest score.
        iou_threshold: 0 to 1.

    Returns:
        [K] int64, indices of the kept boxes by falling score. Ties: the lower index first. N may be
        0. A box of zero or negative size, or with a NaN, is kept and suppresses none.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.

    Source: SSD, section 2.2 (inference).
    """
    threshold = _check("nms", boxes_xyxy, scores, iou_threshold)
    return _nms(boxes_xyxy, scores, None, threshold)


def batched_nms(boxes_xyxy: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` within each category: boxes of different categories never suppress one another.

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16, float64.
        scores: [N], same dtype and device.
        idxs: [N] int64, category of each box, any value.
        iou_threshold: 0 to 1.

    Returns:
        [K] int64, indices of the kept boxes of all categories by falling score; ties as in `nms`.
        Unlike torchvision's, which shifts the categories apart on one axis, boxes outside the image
        do not meet those of another category.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    threshold = _check("batched_nms", boxes_xyxy, scores, iou_threshold)
    count = boxes_xyxy.shape[0]
    check_tensor("batched_nms", "idxs", idxs, (count,), dtypes=(torch.int64,), like=boxes_xyxy)
    return _nms(boxes_xyxy, scores, idxs, threshold)


def _check(op: str, boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> float:
    check_tensor(op, "boxes_xyxy", boxes_xyxy, ("N", 4))
    check_tensor(op, "scores", scores, (boxes_xyxy.shape[0],), like=boxes_xyxy)
    check_same_dtype(op, "scores", scores, boxes_xyxy)
    return check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0)


# --- reference ---------------------------------------------------------------------------------


def greedy(boxes_xyxy: Tensor, threshold: float, limit: int | None = None) -> Tensor:
    """Positions kept, at most `limit`, of boxes [N, 4] already in order of falling score."""
    alive = torch.ones(len(boxes_xyxy), dtype=torch.bool, device=boxes_xyxy.device)
    kept: list[int] = []
    for i in range(len(boxes_xyxy)):
        if len(kept) == limit:
            break
        if alive[i]:
            kept.append(i)
            alive &= pairwise_iou(boxes_xyxy[i], boxes_xyxy) <= threshold
    return torch.tensor(kept, dtype=torch.int64, device=boxes_xyxy.device)


def _nms_reference(boxes: Tensor, scores: Tensor, idxs: Tensor | None, threshold: float) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes.to(accumulation_dtype(boxes.dtype))
    if idxs is None:
        return order[greedy(boxes[order], threshold)]
    keep = torch.zeros_like(order, dtype=torch.bool)  # by position in `order`
    for category in idxs.unique():
        positions = (idxs[order] == category).nonzero()[:, 0]
        keep[positions[greedy(boxes[order[positions]], threshold)]] = True
    return order[keep]


# --- cpp ---------------------------------------------------------------------------------------


def _nms_cpp(boxes: Tensor, scores: Tensor, idxs: Tensor | None, threshold: float) -> Tensor:
    dtype = accumulation_dtype(boxes.dtype)
    boxes, scores = boxes.to(dtype).contiguous(), scores.to(dtype).contiguous()
    idxs = None if idxs is None else idxs.contiguous()
    keep = torch.empty(boxes.shape[0], dtype=torch.int64)
    count = native.nms_cpu(
        boxes.data_ptr(),
        scores.data_ptr(),
        0 if idxs is None else idxs.data_ptr(),
        boxes.shape[0],
        threshold,
        keep.data_ptr(),
        dtype_code(boxes),
        torch.get_num_threads(),
    )
    return keep[:count].clone()  # not a view of N rows


# --- definitions -------------------------------------------------------------------------------


def _nms_fake(boxes: Tensor, scores: Tensor, idxs: Tensor | None, threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


_nms = define(
    "nms(Tensor boxes_xyxy, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor",
    reference=_nms_reference,
    cpp=_nms_cpp,
    fake=_nms_fake,
)
