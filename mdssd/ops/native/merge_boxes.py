"""merge_boxes and merge_boxes_padded on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops import _merging
from mdssd.ops._modules import native
from mdssd.ops._results import new_merged
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
    stored, dtype = boxes.dtype, accumulation_dtype(boxes.dtype)
    boxes, scores = widened(boxes, dtype), widened(scores, dtype)
    labels = None if labels is None else labels.contiguous()
    images = None if images is None else images.contiguous()
    out_boxes, out_scores, index, count = new_merged(boxes)
    found = native.merge_boxes_cpu(
        boxes,
        scores,
        labels,
        images,
        boxes.shape[0],
        settings,
        out_boxes,
        out_scores,
        index,
        dtype_code(boxes),
        torch.get_num_threads(),
    )
    return out_boxes.to(stored), out_scores.to(stored), index, count.fill_(found)


def merge_boxes_cpp(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> tuple[Tensor, ...]:
    *rows, count = merge_boxes_padded_cpp(boxes, scores, labels, images, settings)
    return tuple(row[: int(count)].clone() for row in rows)  # not views of N rows


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
