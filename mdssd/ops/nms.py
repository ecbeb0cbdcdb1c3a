"""Greedy non-maximum suppression, with the signatures and results of torchvision's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdssd.ops._dispatch import (
    accumulation_dtype,
    aligned,
    check_eps,
    check_number,
    check_same_dtype,
    check_tensor,
    define,
    dtype_code,
    native,
)
from mdssd.ops.boxes import pairwise_iou


class PaddedKeep(NamedTuple):
    """Result of `nms_padded` for N boxes."""

    keep: Tensor  # [N] int64, kept indices by falling score, then zeros
    count: Tensor  # type: ignore[assignment]  # int64, how many are kept


def nms(
    boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float, *, iou_eps: float = 0.0
) -> Tensor:
    """Keep the best of overlapping boxes.

    By falling score, a box is kept if its IoU with every box kept before is at most
    `iou_threshold`.

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16, float64.
        scores: [N], same dtype and device. NaN counts as the highest score.
        iou_threshold: 0 to 1. To keep an IoU below t instead of at most t pass `just_below(t)`.
        iou_eps: added to the union's area in every IoU, 0 or more, in the boxes' unit squared.

    Returns:
        [K] int64, indices of the kept boxes by falling score. Ties: the lower index first. N may be
        0. A box of zero or negative size, or with a NaN, is kept and suppresses none.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.

    Source: SSD, section 2.2 (inference).
    """
    threshold = _check("nms", boxes_xyxy, scores, iou_threshold)
    return _nms(boxes_xyxy, scores, None, threshold, check_eps("nms", iou_eps))


def batched_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    iou_eps: float = 0.0,
) -> Tensor:
    """`nms` within each category: boxes of different categories never suppress one another.

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16, float64.
        scores: [N], same dtype and device.
        idxs: [N] int64, category of each box, any value.
        iou_threshold: 0 to 1.
        iou_eps: as in `nms`.

    Returns:
        [K] int64, indices of the kept boxes of all categories by falling score; ties as in `nms`.
        Unlike torchvision's, which shifts the categories apart on one axis, boxes outside the image
        do not meet those of another category.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    threshold = _check("batched_nms", boxes_xyxy, scores, iou_threshold)
    _check_idxs("batched_nms", idxs, boxes_xyxy)
    return _nms(boxes_xyxy, scores, idxs, threshold, check_eps("batched_nms", iou_eps))


def nms_padded(
    boxes_xyxy: Tensor,
    scores: Tensor,
    iou_threshold: float,
    idxs: Tensor | None = None,
    *,
    iou_eps: float = 0.0,
) -> PaddedKeep:
    """`nms`, or with `idxs` `batched_nms`, in a result whose size does not depend on the data.

    Nothing waits for a GPU, so that a CUDA graph can capture it; memory is O(N).

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16, float64.
        scores: [N], same dtype and device. NaN counts as the highest score.
        iou_threshold: 0 to 1.
        idxs: None, or [N] int64, category of each box, any value.
        iou_eps: as in `nms`.

    Returns:
        PaddedKeep. keep [N] int64: the indices that `nms` returns, then zeros; count: int64 tensor
        without dimensions, on the device, how many of them there are. Ties as in `nms`. N may be 0.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    threshold = _check("nms_padded", boxes_xyxy, scores, iou_threshold)
    if idxs is not None:
        _check_idxs("nms_padded", idxs, boxes_xyxy)
    eps = check_eps("nms_padded", iou_eps)
    return PaddedKeep(*_nms_padded(boxes_xyxy, scores, idxs, threshold, eps))


def _check(op: str, boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float) -> float:
    check_tensor(op, "boxes_xyxy", boxes_xyxy, ("N", 4))
    check_tensor(op, "scores", scores, (boxes_xyxy.shape[0],), like=boxes_xyxy)
    check_same_dtype(op, "scores", scores, boxes_xyxy)
    return check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0)


def _check_idxs(op: str, idxs: Tensor, boxes_xyxy: Tensor) -> None:
    count = boxes_xyxy.shape[0]
    check_tensor(op, "idxs", idxs, (count,), dtypes=(torch.int64,), like=boxes_xyxy)


# --- reference ---------------------------------------------------------------------------------


def greedy(
    boxes_xyxy: Tensor, threshold: float, limit: int | None = None, iou_eps: float = 0.0
) -> Tensor:
    """Positions kept, at most `limit`, of boxes [N, 4] already in order of falling score."""
    alive = torch.ones(len(boxes_xyxy), dtype=torch.bool, device=boxes_xyxy.device)
    kept: list[int] = []
    for i in range(len(boxes_xyxy)):
        if len(kept) == limit:
            break
        if alive[i]:
            kept.append(i)
            alive &= pairwise_iou(boxes_xyxy[i], boxes_xyxy, iou_eps) <= threshold
    return torch.tensor(kept, dtype=torch.int64, device=boxes_xyxy.device)


def _nms_reference(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, threshold: float, iou_eps: float
) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes.to(accumulation_dtype(boxes.dtype))
    if idxs is None:
        return order[greedy(boxes[order], threshold, iou_eps=iou_eps)]
    keep = torch.zeros_like(order, dtype=torch.bool)  # by position in `order`
    for category in idxs.unique():
        positions = (idxs[order] == category).nonzero()[:, 0]
        kept = greedy(boxes[order[positions]], threshold, iou_eps=iou_eps)
        keep[positions[kept]] = True
    return order[keep]


def _nms_padded_reference(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, threshold: float, iou_eps: float
) -> tuple[Tensor, Tensor]:
    kept = _nms_reference(boxes, scores, idxs, threshold, iou_eps)
    keep = kept.new_zeros(boxes.shape[0])
    keep[: len(kept)] = kept
    return keep, torch.tensor(len(kept), device=boxes.device)


# --- cpp ---------------------------------------------------------------------------------------


def _nms_padded_cpp(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, threshold: float, iou_eps: float
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(boxes.dtype)
    boxes, scores = boxes.to(dtype).contiguous(), scores.to(dtype).contiguous()
    idxs = None if idxs is None else idxs.contiguous()
    keep = torch.zeros(boxes.shape[0], dtype=torch.int64)
    count = native.nms_cpu(
        boxes.data_ptr(),
        scores.data_ptr(),
        0 if idxs is None else idxs.data_ptr(),
        boxes.shape[0],
        threshold,
        iou_eps,
        keep.data_ptr(),
        dtype_code(boxes),
        torch.get_num_threads(),
    )
    return keep, torch.tensor(count)


def _nms_cpp(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, threshold: float, iou_eps: float
) -> Tensor:
    keep, count = _nms_padded_cpp(boxes, scores, idxs, threshold, iou_eps)
    return keep[: int(count)].clone()  # not a view of N rows


# --- cuda --------------------------------------------------------------------------------------


def _nms_padded_cuda(
    kernels: Any,
    stream: int,
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    threshold: float,
    iou_eps: float,
) -> tuple[Tensor, Tensor]:
    n = boxes.shape[0]
    order = scores.argsort(descending=True, stable=True)
    boxes = aligned(boxes)
    idxs = None if idxs is None else idxs.contiguous()
    workspace = boxes.new_empty(kernels.nms_workspace(n, dtype_code(boxes)), dtype=torch.uint8)
    keep = torch.empty_like(order)
    count = order.new_empty(())
    kernels.nms_cuda(
        boxes.data_ptr(),
        order.data_ptr(),
        0 if idxs is None else idxs.data_ptr(),
        n,
        threshold,
        iou_eps,
        workspace.data_ptr(),
        keep.data_ptr(),
        count.data_ptr(),
        dtype_code(boxes),
        stream,
    )
    return keep, count


def _nms_cuda(
    kernels: Any,
    stream: int,
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    threshold: float,
    iou_eps: float,
) -> Tensor:
    keep, count = _nms_padded_cuda(kernels, stream, boxes, scores, idxs, threshold, iou_eps)
    return keep[: int(count)].clone()  # int() waits for the device; not a view of N rows


# --- definitions -------------------------------------------------------------------------------


def _nms_fake(boxes: Tensor, *_: Any) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


_nms = define(
    "nms(Tensor boxes_xyxy, Tensor scores, Tensor? idxs, float iou_threshold,"
    " float iou_eps) -> Tensor",
    reference=_nms_reference,
    cpp=_nms_cpp,
    cuda=_nms_cuda,
    triton="nms.nms",
    no_vmap="rows differ in how many boxes they keep; use nms_padded",
    fake=_nms_fake,
)

_nms_padded = define(
    "nms_padded(Tensor boxes_xyxy, Tensor scores, Tensor? idxs, float iou_threshold,"
    " float iou_eps) -> (Tensor keep, Tensor count)",
    reference=_nms_padded_reference,
    cpp=_nms_padded_cpp,
    cuda=_nms_padded_cuda,
    triton="nms.nms_padded",
    fake=lambda boxes, *_: (
        boxes.new_empty(boxes.shape[0], dtype=torch.int64),
        boxes.new_empty((), dtype=torch.int64),
    ),
)
