"""box_loss and its gradient on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._modules import native
from mdssd.ops._results import new_mean_loss
from mdssd.ops._settings import BoxLossSettings
from mdssd.ops._tensors import accumulation_dtype, aligned, dtype_code, group_sizes, widened


def box_loss_cpp(
    loc: Tensor, loc_targets: Tensor, labels: Tensor, priors: Tensor, settings: BoxLossSettings
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(loc.dtype)
    result = new_mean_loss(loc, labels, settings.per_image)
    native.box_loss_cpu(
        loc.contiguous(),
        widened(loc_targets, dtype),
        labels.contiguous(),
        widened(priors, dtype),
        *group_sizes(labels, settings.per_image),
        priors.shape[0],
        settings,
        *result,
        dtype_code(loc),
        torch.get_num_threads(),
    )
    return result


def box_loss_backward_cpp(
    grad_loss: Tensor,
    loc: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    priors: Tensor,
    normaliser: Tensor,
    settings: BoxLossSettings,
) -> Tensor:
    dtype = accumulation_dtype(loc.dtype)
    loc = loc.contiguous()
    grad = torch.empty_like(loc)
    native.box_loss_backward_cpu(
        widened(grad_loss / normaliser, dtype),
        loc,
        widened(loc_targets, dtype),
        labels.contiguous(),
        widened(priors, dtype),
        *group_sizes(labels, settings.per_image),
        priors.shape[0],
        settings,
        grad,
        dtype_code(loc),
        torch.get_num_threads(),
    )
    return grad


def box_loss_cuda(
    kernels: Any,
    stream: int,
    loc: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    priors: Tensor,
    settings: BoxLossSettings,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(loc.dtype)
    result = new_mean_loss(loc, labels, settings.per_image)
    groups, group_rows = group_sizes(labels, settings.per_image)
    kernels.box_loss_cuda(
        aligned(loc),
        aligned(loc_targets.to(dtype)),
        labels.contiguous(),
        aligned(priors.to(dtype)),
        groups,
        group_rows,
        priors.shape[0],
        settings,
        *result,
        loc.new_empty(kernels.group_sums_workspace(groups), dtype=torch.uint8),
        dtype_code(loc),
        stream,
    )
    return result


def box_loss_backward_cuda(
    kernels: Any,
    stream: int,
    grad_loss: Tensor,
    loc: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    priors: Tensor,
    normaliser: Tensor,
    settings: BoxLossSettings,
) -> Tensor:
    dtype = accumulation_dtype(loc.dtype)
    loc = aligned(loc)
    grad = torch.empty_like(loc)
    kernels.box_loss_backward_cuda(
        # The scalars stay on the device: reading one would wait for it.
        widened(grad_loss, dtype),
        loc,
        aligned(loc_targets.to(dtype)),
        labels.contiguous(),
        aligned(priors.to(dtype)),
        normaliser,
        *group_sizes(labels, settings.per_image),
        priors.shape[0],
        settings,
        grad,
        dtype_code(loc),
        stream,
    )
    return grad
