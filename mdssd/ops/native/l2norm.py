"""l2norm, l2norm_add_relu and their gradients on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._modules import native
from mdssd.ops._results import new_map, new_norms
from mdssd.ops._tensors import accumulation_dtype, aligned, dtype_code, map_format, widened


def _sizes(x: Tensor, layout: torch.memory_format) -> tuple[int, int, int, bool]:
    """Images, channels, pixels of an image, and whether the map is channels-last."""
    images, channels, height, width = x.shape
    return images, channels, height * width, layout == torch.channels_last


# --- cpp -----------------------------------------------------------------------------------------


def l2norm_cpp(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    layout = map_format(x)
    x, scale = x.contiguous(memory_format=layout), widened(scale, accumulation_dtype(x.dtype))
    y, r = torch.empty_like(x), new_norms(x)
    native.l2norm_cpu(
        x, scale, *_sizes(x, layout), eps, y, r, dtype_code(x), torch.get_num_threads()
    )
    return y, r


def l2norm_add_relu_cpp(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    layout = map_format(a)
    dtype = accumulation_dtype(a.dtype)
    a, b = a.contiguous(memory_format=layout), b.contiguous(memory_format=layout)
    r = new_norms(a)
    result = torch.empty_like(a), r, torch.empty_like(r)
    native.l2norm_add_relu_cpu(
        a,
        b,
        widened(scale_a, dtype),
        widened(scale_b, dtype),
        *_sizes(a, layout),
        eps,
        *result,
        dtype_code(a),
        torch.get_num_threads(),
    )
    return result


def l2norm_backward_cpp(grad: Tensor, x: Tensor, scale: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    layout = map_format(x)
    x, grad = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    wide_scale = widened(scale, accumulation_dtype(x.dtype))
    grad_x, grad_scale = torch.empty_like(x), torch.empty_like(wide_scale)
    native.l2norm_backward_cpu(
        grad,
        x,
        wide_scale,
        r,
        *_sizes(x, layout),
        grad_x,
        grad_scale,
        dtype_code(x),
        torch.get_num_threads(),
    )
    return grad_x, grad_scale.to(scale.dtype)


def l2norm_add_relu_backward_cpp(
    grad: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    ra: Tensor,
    rb: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = map_format(a)
    dtype = accumulation_dtype(a.dtype)
    grad, y, a, b = (t.contiguous(memory_format=layout) for t in (grad, y, a, b))
    wide_a, wide_b = widened(scale_a, dtype), widened(scale_b, dtype)
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(a)
    grad_scale_a, grad_scale_b = torch.empty_like(wide_a), torch.empty_like(wide_b)
    native.l2norm_add_relu_backward_cpu(
        grad,
        y,
        a,
        b,
        wide_a,
        wide_b,
        ra,
        rb,
        *_sizes(a, layout),
        grad_a,
        grad_b,
        grad_scale_a,
        grad_scale_b,
        dtype_code(a),
        torch.get_num_threads(),
    )
    return grad_a, grad_b, grad_scale_a.to(scale_a.dtype), grad_scale_b.to(scale_b.dtype)


# --- cuda ----------------------------------------------------------------------------------------


def l2norm_cuda(
    kernels: Any, stream: int, x: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    layout = map_format(x)
    x, scale = aligned(x, layout), aligned(scale.to(accumulation_dtype(x.dtype)))
    y, r = torch.empty_like(x), new_norms(x)
    kernels.l2norm_cuda(x, scale, *_sizes(x, layout), eps, y, r, dtype_code(x), stream)
    return y, r


def l2norm_add_relu_cuda(
    kernels: Any,
    stream: int,
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    layout = map_format(a)
    dtype = accumulation_dtype(a.dtype)
    a, b = aligned(a, layout), aligned(b, layout)
    r = new_norms(a)
    result = torch.empty_like(a), r, torch.empty_like(r)
    kernels.l2norm_add_relu_cuda(
        a,
        b,
        aligned(scale_a.to(dtype)),
        aligned(scale_b.to(dtype)),
        *_sizes(a, layout),
        eps,
        *result,
        dtype_code(a),
        stream,
    )
    return result


def l2norm_backward_cuda(
    kernels: Any, stream: int, grad: Tensor, x: Tensor, scale: Tensor, r: Tensor
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return new_map(x), torch.zeros_like(scale)
    layout = map_format(x)
    x, grad = aligned(x, layout), aligned(grad, layout)
    wide_scale = aligned(scale.to(accumulation_dtype(x.dtype)))
    grad_x, grad_scale = torch.empty_like(x), torch.empty_like(wide_scale)
    kernels.l2norm_backward_cuda(
        grad,
        x,
        wide_scale,
        r,
        *_sizes(x, layout),
        grad_x,
        grad_scale,
        _workspace(kernels, 1, x),
        dtype_code(x),
        stream,
    )
    return grad_x, grad_scale.to(scale.dtype)


def l2norm_add_relu_backward_cuda(
    kernels: Any,
    stream: int,
    grad: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    ra: Tensor,
    rb: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if a.numel() == 0:
        zeros = torch.zeros_like(scale_a), torch.zeros_like(scale_b)
        return new_map(a), new_map(b, like=a), *zeros
    layout = map_format(a)
    dtype = accumulation_dtype(a.dtype)
    grad, y, a, b = (aligned(t, layout) for t in (grad, y, a, b))
    wide_a, wide_b = aligned(scale_a.to(dtype)), aligned(scale_b.to(dtype))
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(a)
    grad_scale_a, grad_scale_b = torch.empty_like(wide_a), torch.empty_like(wide_b)
    kernels.l2norm_add_relu_backward_cuda(
        grad,
        y,
        a,
        b,
        wide_a,
        wide_b,
        ra,
        rb,
        *_sizes(a, layout),
        grad_a,
        grad_b,
        grad_scale_a,
        grad_scale_b,
        _workspace(kernels, 2, a),
        dtype_code(a),
        stream,
    )
    return grad_a, grad_b, grad_scale_a.to(scale_a.dtype), grad_scale_b.to(scale_b.dtype)


def _workspace(kernels: Any, maps: int, x: Tensor) -> Tensor:
    size = kernels.l2norm_workspace(maps, x.shape[1], dtype_code(x))
    return torch.empty(size, dtype=torch.uint8, device=x.device)
