"""sigmoid_focal_loss and its gradient on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._checks import bad_label
from mdssd.ops._modules import native
from mdssd.ops._results import new_mean_loss
from mdssd.ops._settings import SigmoidFocalLossSettings
from mdssd.ops._tensors import accumulation_dtype, aligned, dtype_code, group_sizes, widened


def sigmoid_focal_loss_cpp(
    logits: Tensor, labels: Tensor, settings: SigmoidFocalLossSettings
) -> tuple[Tensor, Tensor]:
    logits, labels = logits.contiguous(), labels.contiguous()
    result = new_mean_loss(logits, labels, settings.per_image)
    labels_fit = native.sigmoid_focal_loss_cpu(
        logits,
        labels,
        *group_sizes(labels, settings.per_image),
        logits.shape[2],
        settings,
        *result,
        dtype_code(logits),
        torch.get_num_threads(),
    )
    if not labels_fit:
        raise bad_label("sigmoid_focal_loss", labels, logits.shape[2])
    return result


def sigmoid_focal_loss_backward_cpp(
    grad_loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    normaliser: Tensor,
    settings: SigmoidFocalLossSettings,
) -> Tensor:
    logits, labels = logits.contiguous(), labels.contiguous()
    grad = torch.empty_like(logits)
    native.sigmoid_focal_loss_backward_cpu(
        widened(grad_loss / normaliser, accumulation_dtype(logits.dtype)),
        logits,
        labels,
        *group_sizes(labels, settings.per_image),
        logits.shape[2],
        settings,
        grad,
        dtype_code(logits),
        torch.get_num_threads(),
    )
    return grad


def sigmoid_focal_loss_cuda(
    kernels: Any,
    stream: int,
    logits: Tensor,
    labels: Tensor,
    settings: SigmoidFocalLossSettings,
) -> tuple[Tensor, Tensor]:
    logits, labels = aligned(logits), labels.contiguous()
    result = new_mean_loss(logits, labels, settings.per_image)
    groups, group_rows = group_sizes(labels, settings.per_image)
    kernels.sigmoid_focal_loss_cuda(
        logits,
        labels,
        groups,
        group_rows,
        logits.shape[2],
        settings,
        *result,
        logits.new_empty(kernels.group_sums_workspace(groups), dtype=torch.uint8),
        dtype_code(logits),
        stream,
    )
    return result


def sigmoid_focal_loss_backward_cuda(
    kernels: Any,
    stream: int,
    grad_loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    normaliser: Tensor,
    settings: SigmoidFocalLossSettings,
) -> Tensor:
    logits, labels = aligned(logits), labels.contiguous()
    grad = torch.empty_like(logits)
    kernels.sigmoid_focal_loss_backward_cuda(
        # The scalars stay on the device: reading one would wait for it.
        widened(grad_loss, accumulation_dtype(logits.dtype)),
        logits,
        labels,
        normaliser,
        *group_sizes(labels, settings.per_image),
        logits.shape[2],
        settings,
        grad,
        dtype_code(logits),
        stream,
    )
    return grad
