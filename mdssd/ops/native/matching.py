"""match_priors and encode_targets on the native backends.

`gt` and `gt_labels` hold the boxes of the whole batch. `offsets` [B + 1], on the CPU, says where
those of each image begin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._modules import native
from mdssd.ops._results import new_matches, new_targets
from mdssd.ops._settings import (
    FORCES,
    EncodeTargetsSettings,
    IgnorePriorsSettings,
    MatchPriorsSettings,
)
from mdssd.ops._tensors import accumulation_dtype, aligned, dtype_code, widened
from mdssd.ops.reference import matching as reference


def match_priors_cpp(
    gt: Tensor, offsets: Tensor, priors: Tensor, settings: MatchPriorsSettings
) -> tuple[Tensor, Tensor]:
    images, num_priors = offsets.shape[0] - 1, priors.shape[0]
    gt = widened(gt, accumulation_dtype(gt.dtype))
    priors = widened(priors, gt.dtype)
    result = torch.empty(images, num_priors, dtype=torch.int64), torch.empty(images, num_priors)
    native.match_priors_cpu(
        gt,
        offsets,
        images,
        priors,
        num_priors,
        settings,
        *result,
        dtype_code(gt),
        torch.get_num_threads(),
    )
    return result


def encode_targets_cpp(
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: EncodeTargetsSettings,
) -> tuple[Tensor, Tensor]:
    images, num_priors = offsets.shape[0] - 1, priors.shape[0]
    dtype = gt.dtype
    gt = widened(gt, accumulation_dtype(dtype))
    gt_labels = gt_labels.contiguous()
    priors = widened(priors, gt.dtype)
    loc = gt.new_empty(images, num_priors, 4)
    labels = torch.empty(images, num_priors, dtype=torch.int64)
    native.encode_targets_cpu(
        gt,
        gt_labels,
        offsets,
        images,
        priors,
        num_priors,
        settings,
        loc,
        labels,
        dtype_code(gt),
        torch.get_num_threads(),
    )
    return widened(loc, dtype), labels


def ignore_priors_cpp(
    marks: Tensor,
    ignored: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: IgnorePriorsSettings,
) -> Tensor:
    ignored = widened(ignored, accumulation_dtype(ignored.dtype))
    priors = widened(priors, ignored.dtype)
    result = torch.empty(marks.shape, dtype=torch.int64)
    native.ignore_priors_cpu(
        marks.contiguous(),
        ignored,
        offsets,
        offsets.shape[0] - 1,
        priors,
        priors.shape[0],
        settings,
        result,
        dtype_code(ignored),
        torch.get_num_threads(),
    )
    return result


def _for_kernels(gt: Tensor, settings: MatchPriorsSettings | EncodeTargetsSettings) -> Tensor:
    """Return the boxes in a dtype for which there are kernels: float32 for some of the rules."""
    ssd = settings.nwd_constant is None and settings.top_k == 1
    return gt if ssd and FORCES[settings.force] != "low_quality" else gt.float()


def _workspace(
    kernels: Any,
    gt: Tensor,
    num_priors: int,
    settings: MatchPriorsSettings | EncodeTargetsSettings,
) -> Tensor:
    size = kernels.match_priors_workspace(gt.shape[0], min(settings.top_k, num_priors))
    return gt.new_empty(size, dtype=torch.uint8)


def match_priors_cuda(
    kernels: Any,
    stream: int,
    gt: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: MatchPriorsSettings,
) -> tuple[Tensor, Tensor]:
    if gt.dtype == torch.float64:
        return reference.match_priors(gt, offsets, priors, settings)
    images, num_priors = offsets.shape[0] - 1, priors.shape[0]
    gt, priors = aligned(_for_kernels(gt, settings)), aligned(priors.float())
    result = new_matches(gt, offsets, priors)
    workspace = _workspace(kernels, gt, num_priors, settings)
    kernels.match_priors_cuda(
        gt,
        offsets,
        images,
        priors,
        num_priors,
        settings,
        *result,
        workspace,
        dtype_code(gt),
        stream,
    )
    return result


def encode_targets_cuda(
    kernels: Any,
    stream: int,
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: EncodeTargetsSettings,
) -> tuple[Tensor, Tensor]:
    if gt.dtype == torch.float64:
        return reference.encode_targets(gt, gt_labels, offsets, priors, settings)
    dtype = gt.dtype
    images, num_priors = offsets.shape[0] - 1, priors.shape[0]
    gt, priors = aligned(_for_kernels(gt, settings)), aligned(priors.float())
    gt_labels = gt_labels.contiguous()
    loc, labels = new_targets(gt, offsets, priors)
    workspace = _workspace(kernels, gt, num_priors, settings)
    kernels.encode_targets_cuda(
        gt,
        gt_labels,
        offsets,
        images,
        priors,
        num_priors,
        settings,
        loc,
        labels,
        workspace,
        dtype_code(gt),
        stream,
    )
    return (loc if loc.dtype == dtype else loc.to(dtype)), labels


def ignore_priors_cuda(
    kernels: Any,
    stream: int,
    marks: Tensor,
    ignored: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: IgnorePriorsSettings,
) -> Tensor:
    if ignored.dtype == torch.float64:
        return reference.ignore_priors(marks, ignored, offsets, priors, settings)
    result = torch.empty_like(marks, memory_format=torch.contiguous_format)
    kernels.ignore_priors_cuda(
        marks.contiguous(),
        aligned(ignored.float()),
        offsets,
        offsets.shape[0] - 1,
        aligned(priors.float()),
        priors.shape[0],
        settings,
        result,
        stream,
    )
    return result
