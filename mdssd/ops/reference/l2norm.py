"""Reference of l2norm, l2norm_add_relu and their gradients.

The forward ops also return the reciprocals r [B, H, W] of the norms, which backward reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._tensors import accumulation_dtype, map_format


def _rnorm(x: Tensor, eps: float) -> Tensor:
    return (x.square().sum(1) + eps).rsqrt()


def l2norm(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(x.dtype)
    wide = x.to(dtype)
    r = _rnorm(wide, eps)
    y = wide * r[:, None] * scale.to(dtype)[:, None, None]
    return y.to(x.dtype, memory_format=map_format(x), copy=True), r


def l2norm_add_relu(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(a.dtype)
    wide_a, wide_b = a.to(dtype), b.to(dtype)
    ra, rb = _rnorm(wide_a, eps), _rnorm(wide_b, eps)
    total = (
        wide_a * ra[:, None] * scale_a.to(dtype)[:, None, None]
        + wide_b * rb[:, None] * scale_b.to(dtype)[:, None, None]
    )
    return total.relu().to(a.dtype, memory_format=map_format(a), copy=True), ra, rb


def _l2norm_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, r: Tensor, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """Gradients in the dtypes of the inputs; `grad` has the dtype of the computation."""
    wide, r = x.to(grad.dtype), r[:, None]
    scaled = grad * scale.to(grad.dtype)[:, None, None]
    grad_x = r * (scaled - wide * r.square() * (scaled * wide).sum(1, keepdim=True))
    grad_scale = (grad * wide * r).sum((0, 2, 3))
    return (
        grad_x.to(x.dtype, memory_format=layout, copy=True),
        grad_scale.to(scale.dtype),
    )


def l2norm_backward(grad: Tensor, x: Tensor, scale: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    grad = grad.to(accumulation_dtype(x.dtype))
    return _l2norm_gradients(grad, x, scale, r, map_format(x))


def l2norm_add_relu_backward(
    grad: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    ra: Tensor,
    rb: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad = torch.where(y > 0, grad, 0).to(accumulation_dtype(a.dtype))
    layout = map_format(a)
    grad_a, grad_scale_a = _l2norm_gradients(grad, a, scale_a, ra, layout)
    grad_b, grad_scale_b = _l2norm_gradients(grad, b, scale_b, rb, layout)
    return grad_a, grad_b, grad_scale_a, grad_scale_b
