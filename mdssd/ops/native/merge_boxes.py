"""merge_boxes and merge_boxes_padded on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops import _merging
from mdssd.ops._modules import native
from mdssd.ops._settings import MergeBoxesSettings
from mdssd.ops._tensors import accumulation_dtype, dtype_code, widened
from mdssd.ops.native.nms import nms_padded_cuda


def merge_boxes_padded_cpp(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> tuple[Tensor, ...]:
    num_boxes = boxes.shape[0]
    results = (
        boxes.new_zeros(num_boxes, 4, dtype=accumulation_dtype(boxes.dtype)),
        boxes.new_zeros(num_boxes, dtype=accumulation_dtype(boxes.dtype)),
        torch.zeros(num_boxes, dtype=torch.int64),
    )
    found = _merge(boxes, scores, labels, images, settings, results)
    count = torch.scalar_tensor(found, dtype=torch.int64)
    return widened(results[0], boxes.dtype), widened(results[1], boxes.dtype), results[2], count


def merge_boxes_cpp(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> tuple[Tensor, ...]:
    num_boxes, dtype = boxes.shape[0], accumulation_dtype(boxes.dtype)
    results = (
        boxes.new_empty(num_boxes, 4, dtype=dtype),
        boxes.new_empty(num_boxes, dtype=dtype),
        torch.empty(num_boxes, dtype=torch.int64),
    )
    found = _merge(boxes, scores, labels, images, settings, results)
    rows = (row.narrow_copy(0, 0, found) for row in results)  # not views of N rows
    merged_boxes, merged_scores, index = rows
    return widened(merged_boxes, boxes.dtype), widened(merged_scores, boxes.dtype), index


def _merge(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
    results: tuple[Tensor, Tensor, Tensor],
) -> int:
    """Fill the first rows of the results; return how many."""
    dtype = results[0].dtype
    found: int = native.merge_boxes_cpu(
        widened(boxes, dtype),
        widened(scores, dtype),
        None if labels is None else labels.contiguous(),
        None if images is None else images.contiguous(),
        boxes.shape[0],
        settings,
        *results,
        dtype_code(results[0]),
        torch.get_num_threads(),
    )
    return found


def _kernels(module: Any, stream: int, settings: MergeBoxesSettings) -> _merging.Kernels:
    def parents(boxes: Tensor, candidates: Tensor | None, begin: Tensor, end: Tensor) -> Tensor:
        result = torch.empty_like(begin)
        args = (boxes, candidates, begin, end, len(boxes), settings, result)
        module.merge_parents_cuda(*args, dtype_code(boxes), stream)
        return result

    def members(boxes: Tensor, members: Tensor, end: Tensor) -> Tensor:
        result = torch.empty_like(boxes)
        args = (boxes, members, end, len(boxes), settings, result)
        module.merge_members_cuda(*args, dtype_code(boxes), stream)
        return result

    def fused(boxes: Tensor, scores: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = torch.empty_like(starts, dtype=torch.bool)
        result = torch.empty_like(boxes), torch.empty_like(scores), first
        dtype = dtype_code(boxes)
        bytes_needed = module.merge_fused_workspace(len(boxes), dtype)
        workspace = boxes.new_empty(bytes_needed, dtype=torch.uint8)
        args = (boxes, scores, starts, len(boxes), settings, *result, workspace)
        module.merge_fused_cuda(*args, dtype, stream)
        return result

    return _merging.Kernels(
        lambda *args: nms_padded_cuda(module, stream, *args), parents, members, fused
    )


def merge_boxes_padded_cuda(
    kernels: Any,
    stream: int,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> tuple[Tensor, ...]:
    own = _kernels(kernels, stream, settings)
    return _merging.merge(boxes, scores, labels, images, settings, own)


def merge_boxes_cuda(
    kernels: Any,
    stream: int,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> tuple[Tensor, ...]:
    *rows, count = merge_boxes_padded_cuda(kernels, stream, boxes, scores, labels, images, settings)
    found = int(count)  # waits for the device
    return tuple(row[:found].clone() for row in rows)  # not views of N rows
