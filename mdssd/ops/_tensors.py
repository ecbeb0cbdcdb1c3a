"""Dtypes and memory layouts of tensors, as the backends need them."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# The order is that of `enum class DType` in csrc/ops.h.
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(FLOATS)}


def dtype_code(tensor: Tensor) -> int:
    """Return the number by which the native modules know the tensor's dtype."""
    return _DTYPE_CODES[tensor.dtype]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which every backend computes: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def aligned(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Return the tensor, or a dense copy whose address is a multiple of 16, for the kernels."""
    tensor = tensor.contiguous(memory_format=memory_format)
    if tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.preserve_format)


def widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor, or a copy, contiguous and of this dtype."""
    if tensor.dtype != dtype:  # `to` takes ten times as long to see that there is nothing to do
        tensor = tensor.to(dtype)
    return tensor.contiguous()


def map_format(x: Tensor) -> torch.memory_format:
    """Return channels-last for a feature map that is only that, else contiguous.

    The l2norm operators read their maps, and write their results, in this format.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def group_sizes(labels: Tensor, per_image: bool) -> tuple[int, int]:
    """Return the number of groups that have a loss of their own, and the rows of each.

    `labels` is [B, N], and a group is an image or the batch.
    """
    images, num_priors = labels.shape
    return (images, num_priors) if per_image else (1, images * num_priors)
