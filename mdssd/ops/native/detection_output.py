"""detection_output on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._checks import check_gpu_limits
from mdssd.ops._modules import native
from mdssd.ops._results import new_detections
from mdssd.ops._settings import DetectionOutputSettings
from mdssd.ops._tensors import aligned, dtype_code, widened
from mdssd.ops._threads import cpu_threads
from mdssd.ops.reference import detection_output as reference


def detection_output_cpp(
    loc: Tensor, logits: Tensor, priors: Tensor, settings: DetectionOutputSettings
) -> tuple[Tensor, ...]:
    result = new_detections(loc, logits, settings)
    dtype = result[0].dtype
    if loc.dtype != logits.dtype:
        loc, logits = loc.to(dtype), logits.to(dtype)
    loc, logits, priors = loc.contiguous(), logits.contiguous(), widened(priors, dtype)
    native.detection_output_cpu(
        loc,
        logits,
        priors,
        *logits.shape,
        settings,
        *result,
        dtype_code(loc),
        cpu_threads(),
    )
    return result


def detection_output_cuda(
    kernels: Any,
    stream: int,
    loc: Tensor,
    logits: Tensor,
    priors: Tensor,
    settings: DetectionOutputSettings,
) -> tuple[Tensor, ...]:
    check_gpu_limits(logits)
    if torch.float64 in (loc.dtype, logits.dtype):
        return reference.detection_output(loc, logits, priors, settings)
    images, num_priors, _ = sizes = logits.shape
    if images == 0 or num_priors == 0 or settings.score_threshold == 1:
        return new_detections(loc, logits, settings)
    if loc.dtype != logits.dtype:
        loc, logits = loc.float(), logits.float()
    loc, logits, priors = aligned(loc), aligned(logits), aligned(priors.float())
    # Not zeros, as the kernels write every row.
    result = new_detections(loc, logits, settings, zeros=False)
    needed = kernels.detection_output_workspace(*sizes, settings)
    workspace = loc.new_empty(needed, dtype=torch.uint8)
    kernels.detection_output_cuda(
        loc, logits, priors, *sizes, settings, *result, workspace, dtype_code(loc), stream
    )
    return result
