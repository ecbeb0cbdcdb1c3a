"""soft_nms and soft_nms_padded on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops import _softening
from mdssd.ops._modules import native
from mdssd.ops._results import new_soft_keep
from mdssd.ops._settings import SoftNmsSettings
from mdssd.ops._tensors import accumulation_dtype, aligned, dtype_code, widened


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
    return keep, widened(kept_scores, stored), count.fill_(found)


def soft_nms_cpp(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, settings: SoftNmsSettings
) -> tuple[Tensor, Tensor]:
    keep, kept_scores, count = soft_nms_padded_cpp(boxes, scores, labels, settings)
    found = int(count)
    return keep.narrow_copy(0, 0, found), kept_scores.narrow_copy(
        0, 0, found
    )  # not views of N rows


def soft_nms_padded_cuda(
    kernels: Any,
    stream: int,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    settings: SoftNmsSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    def kernel(boxes: Tensor, scores: Tensor, starts: Tensor | None) -> Tensor:
        boxes, scores = aligned(boxes), scores.contiguous()
        softened, keys = torch.empty_like(scores), torch.empty_like(scores)
        dtype = dtype_code(boxes)
        kernels.soft_nms_cuda(
            boxes, scores, starts, len(boxes), settings, keys, softened, dtype, stream
        )
        return softened

    return _softening.soften(boxes, scores, labels, settings, kernel)


def soft_nms_cuda(
    kernels: Any,
    stream: int,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    settings: SoftNmsSettings,
) -> tuple[Tensor, Tensor]:
    args = (boxes, scores, labels, settings)
    keep, kept_scores, count = soft_nms_padded_cuda(kernels, stream, *args)
    found = int(count)  # waits for the device
    return keep[:found].clone(), kept_scores[:found].clone()  # not views of N rows
