"""multibox_loss and its gradient on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._checks import bad_label
from mdssd.ops._modules import native
from mdssd.ops._results import new_losses
from mdssd.ops._settings import MultiboxLossSettings
from mdssd.ops._tensors import accumulation_dtype, aligned, dtype_code, widened


def multibox_loss_cpp(
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    settings: MultiboxLossSettings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(loc.dtype)
    loc, logits, labels = loc.contiguous(), logits.contiguous(), labels.contiguous()
    groups = (logits.shape[0],) if settings.per_image else ()
    losses = loc.new_empty(2, *groups, dtype=dtype)
    selected = torch.empty_like(labels, dtype=torch.bool)
    normaliser = torch.empty(groups, dtype=torch.int64)
    labels_fit = native.multibox_loss_cpu(
        loc,
        logits,
        widened(loc_targets, dtype),
        labels,
        *logits.shape,
        settings,
        losses,
        selected,
        normaliser,
        dtype_code(loc),
        torch.get_num_threads(),
    )
    if not labels_fit:
        raise bad_label("multibox_loss", labels, logits.shape[2] - 1)
    # Copies, as the results of an op must not share memory.
    return torch.select_copy(losses, 0, 0), torch.select_copy(losses, 0, 1), selected, normaliser


def multibox_loss_backward_cpp(
    grad_loc_loss: Tensor,
    grad_conf_loss: Tensor,
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    selected: Tensor,
    normaliser: Tensor,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(loc.dtype)
    loc, logits, labels = loc.contiguous(), logits.contiguous(), labels.contiguous()
    grads = torch.empty_like(loc), torch.empty_like(logits)
    native.multibox_loss_backward_cpu(
        widened(grad_loc_loss / normaliser, dtype),
        widened(grad_conf_loss / normaliser, dtype),
        loc,
        logits,
        widened(loc_targets, dtype),
        labels,
        selected,
        labels.numel(),
        _group_rows(labels, normaliser),
        logits.shape[2],
        *grads,
        dtype_code(loc),
        torch.get_num_threads(),
    )
    return grads


def multibox_loss_cuda(
    kernels: Any,
    stream: int,
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    settings: MultiboxLossSettings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loc, logits, labels = aligned(loc), aligned(logits), labels.contiguous()
    result = new_losses(loc, labels, settings.per_image)
    size = kernels.multibox_loss_workspace(*logits.shape, settings, dtype_code(loc))
    kernels.multibox_loss_cuda(
        loc,
        logits,
        aligned(loc_targets.to(accumulation_dtype(loc.dtype))),
        labels,
        *logits.shape,
        settings,
        *result,
        loc.new_empty(size, dtype=torch.uint8),
        dtype_code(loc),
        stream,
    )
    return result


def multibox_loss_backward_cuda(
    kernels: Any,
    stream: int,
    grad_loc_loss: Tensor,
    grad_conf_loss: Tensor,
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    selected: Tensor,
    normaliser: Tensor,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(loc.dtype)
    loc, logits, labels = aligned(loc), aligned(logits), labels.contiguous()
    grads = torch.empty_like(loc), torch.empty_like(logits)
    kernels.multibox_loss_backward_cuda(
        # The scalars stay on the device: reading one would wait for it.
        grad_loc_loss.to(dtype).contiguous(),
        grad_conf_loss.to(dtype).contiguous(),
        loc,
        logits,
        aligned(loc_targets.to(dtype)),
        labels,
        selected,
        normaliser,
        labels.numel(),
        _group_rows(labels, normaliser),
        logits.shape[2],
        *grads,
        dtype_code(loc),
        stream,
    )
    return grads


def _group_rows(labels: Tensor, normaliser: Tensor) -> int:
    """Number of rows that share a normaliser."""
    return labels.shape[1] if normaliser.dim() else labels.numel()
