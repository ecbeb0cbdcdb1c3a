"""nms, batched_nms and nms_padded on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._modules import native
from mdssd.ops._settings import NmsSettings
from mdssd.ops._tensors import accumulation_dtype, aligned, dtype_code, widened


def nms_padded_cpp(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, settings: NmsSettings
) -> tuple[Tensor, Tensor]:
    keep = torch.zeros(boxes.shape[0], dtype=torch.int64)
    kept = _nms_cpp(boxes, scores, idxs, settings, keep)
    return keep, torch.scalar_tensor(kept, dtype=torch.int64)


def nms_cpp(boxes: Tensor, scores: Tensor, idxs: Tensor | None, settings: NmsSettings) -> Tensor:
    keep = torch.empty(boxes.shape[0], dtype=torch.int64)
    kept = _nms_cpp(boxes, scores, idxs, settings, keep)
    return keep.narrow_copy(0, 0, kept)  # not a view of N rows


def _nms_cpp(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, settings: NmsSettings, keep: Tensor
) -> int:
    """Fill the first entries of `keep`; return how many."""
    dtype = accumulation_dtype(boxes.dtype)
    boxes = widened(boxes, dtype)
    kept: int = native.nms_cpu(
        boxes,
        widened(scores, dtype),
        None if idxs is None else idxs.contiguous(),
        boxes.shape[0],
        settings,
        keep,
        dtype_code(boxes),
        torch.get_num_threads(),
    )
    return kept


def nms_padded_cuda(
    kernels: Any,
    stream: int,
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    settings: NmsSettings,
) -> tuple[Tensor, Tensor]:
    num_boxes = boxes.shape[0]
    order = scores.argsort(descending=True, stable=True)
    boxes = aligned(boxes)
    idxs = None if idxs is None else idxs.contiguous()
    dtype = dtype_code(boxes)
    workspace = boxes.new_empty(kernels.nms_workspace(num_boxes, dtype), dtype=torch.uint8)
    keep = torch.empty_like(order)
    kept = order.new_empty(())
    kernels.nms_cuda(boxes, order, idxs, num_boxes, settings, keep, kept, workspace, dtype, stream)
    return keep, kept


def nms_cuda(
    kernels: Any,
    stream: int,
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    settings: NmsSettings,
) -> Tensor:
    keep, kept = nms_padded_cuda(kernels, stream, boxes, scores, idxs, settings)
    return keep[: int(kept)].clone()  # int() waits for the device; not a view of N rows
