"""soft_nms and soft_nms_padded on the native backends."""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._modules import native
from mdssd.ops._results import new_soft_keep
from mdssd.ops._settings import SoftNmsSettings
from mdssd.ops._tensors import accumulation_dtype, dtype_code, widened


def soft_nms_padded_cpp(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, settings: SoftNmsSettings
) -> tuple[Tensor, Tensor, Tensor]:
    stored, dtype = boxes.dtype, accumulation_dtype(boxes.dtype)
    boxes, scores = widened(boxes, dtype), widened(scores, dtype)
    labels = None if labels is None else labels.contiguous()
    keep, kept_scores, count = new_soft_keep(boxes, settings)
    found = native.soft_nms_cpu(
        boxes,
        scores,
        labels,
        boxes.shape[0],
        settings,
        keep,
        kept_scores,
        dtype_code(boxes),
        torch.get_num_threads(),
    )
    return keep, kept_scores.to(stored), count.fill_(found)


def soft_nms_cpp(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, settings: SoftNmsSettings
) -> tuple[Tensor, Tensor]:
    keep, kept_scores, count = soft_nms_padded_cpp(boxes, scores, labels, settings)
    found = int(count)
    return keep[:found].clone(), kept_scores[:found].clone()  # not views of N rows
