"""merge_boxes and merge_boxes_padded on the native backends."""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._modules import native
from mdssd.ops._results import new_merged
from mdssd.ops._settings import MergeBoxesSettings
from mdssd.ops._tensors import accumulation_dtype, dtype_code, widened


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
