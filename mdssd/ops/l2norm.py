"""L2 normalisation over channels with a learned scale, alone and fused with sum and ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._dispatch import (
    accumulation_dtype,
    aligned,
    check_number,
    check_same_dtype,
    check_tensor,
    define,
    dtype_code,
    native,
    widened,
)


def l2norm(x: Tensor, scale: Tensor, eps: float = 1e-10) -> Tensor:
    """Scale the channel vector of every pixel to a learned length.

    y = scale * x / sqrt(sum over c of x^2 + eps).

    Args:
        x: [B, C, H, W], NCHW or channels-last; float32, float16, bfloat16, float64. Half types are
            computed in float32.
        scale: [C], any float dtype, same device.
        eps: added under the root, above 0; keeps a pixel of zeros at zero.

    Returns:
        [B, C, H, W], dtype and memory format of `x`. Any size may be 0. Differentiable in both.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.

    Source: SSD, section 3.1 (conv4_3), after ParseNet; eps as in its code.
    """
    check_tensor("l2norm", "x", x, ("B", "C", "H", "W"))
    check_tensor("l2norm", "scale", scale, (x.shape[1],), like=x)
    return _l2norm(x, scale, check_number("l2norm", "eps", eps, 1e-38, 1.0))[0]


def l2norm_add_relu(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, eps: float = 1e-10
) -> Tensor:
    """MDSSD's fusion: normalise two maps, add them, ReLU, in one pass.

    y = relu(l2norm(a, scale_a) + l2norm(b, scale_b)).

    Args:
        a: [B, C, H, W], NCHW or channels-last; float32, float16, bfloat16, float64. Half types are
            computed in float32.
        b: as `a`; in another memory format than `a` it is copied.
        scale_a, scale_b: [C], any float dtype, same device.
        eps: added under each root, above 0.

    Returns:
        [B, C, H, W], dtype and memory format of `a`. Any size may be 0. Differentiable in all four
        tensors; the gradient at a sum of exactly 0 is 0.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.

    Source: MDSSD, section 3.2 and figure 4.
    """
    op = "l2norm_add_relu"
    check_tensor(op, "a", a, ("B", "C", "H", "W"))
    shape = a.shape
    check_tensor(op, "b", b, shape, like=a)
    check_same_dtype(op, "b", b, a)
    check_tensor(op, "scale_a", scale_a, (shape[1],), like=a)
    check_tensor(op, "scale_b", scale_b, (shape[1],), like=a)
    return _l2norm_add_relu(a, b, scale_a, scale_b, check_number(op, "eps", eps, 1e-38, 1.0))[0]


def _memory_format(x: Tensor) -> torch.memory_format:
    """The format of the output and of the pass: channels-last only if the map is just that."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


# --- reference ---------------------------------------------------------------------------------
# The norms' reciprocals r [B, H, W] are outputs of the forward ops, saved for backward.


def _rnorm(x: Tensor, eps: float) -> Tensor:
    return (x.square().sum(1) + eps).rsqrt()


def _l2norm_reference(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(x.dtype)
    wide = x.to(dtype)
    r = _rnorm(wide, eps)
    y = wide * r[:, None] * scale.to(dtype)[:, None, None]
    return y.to(x.dtype, memory_format=_memory_format(x), copy=True), r


def _l2norm_add_relu_reference(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(a.dtype)
    wide_a, wide_b = a.to(dtype), b.to(dtype)
    ra, rb = _rnorm(wide_a, eps), _rnorm(wide_b, eps)
    total = (
        wide_a * ra[:, None] * scale_a.to(dtype)[:, None, None]
        + wide_b * rb[:, None] * scale_b.to(dtype)[:, None, None]
    )
    return total.relu().to(a.dtype, memory_format=_memory_format(a), copy=True), ra, rb


def _l2norm_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, r: Tensor, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    """Gradients of `l2norm`, in the inputs' dtypes, from a gradient of the wide dtype."""
    wide, r = x.to(grad.dtype), r[:, None]
    scaled = grad * scale.to(grad.dtype)[:, None, None]
    grad_x = r * (scaled - wide * r.square() * (scaled * wide).sum(1, keepdim=True))
    grad_scale = (grad * wide * r).sum((0, 2, 3))
    return (
        grad_x.to(x.dtype, memory_format=layout, copy=True),
        grad_scale.to(scale.dtype),
    )


def _l2norm_backward_reference(
    grad: Tensor, x: Tensor, scale: Tensor, r: Tensor
) -> tuple[Tensor, Tensor]:
    grad = grad.to(accumulation_dtype(x.dtype))
    return _l2norm_gradients(grad, x, scale, r, _memory_format(x))


def _l2norm_add_relu_backward_reference(
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
    layout = _memory_format(a)
    grad_a, grad_scale_a = _l2norm_gradients(grad, a, scale_a, ra, layout)
    grad_b, grad_scale_b = _l2norm_gradients(grad, b, scale_b, rb, layout)
    return grad_a, grad_b, grad_scale_a, grad_scale_b


# --- cpp ---------------------------------------------------------------------------------------


def _l2norm_cpp(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    layout = _memory_format(x)
    dtype = accumulation_dtype(x.dtype)
    x, scale = x.contiguous(memory_format=layout), widened(scale, dtype)
    images, channels, height, width = x.shape
    y = torch.empty_like(x)
    r = torch.empty((images, height, width), dtype=dtype, device=x.device)
    native.l2norm_cpu(
        x.data_ptr(),
        scale.data_ptr(),
        eps,
        images,
        channels,
        height * width,
        layout == torch.channels_last,
        y.data_ptr(),
        r.data_ptr(),
        dtype_code(x),
        torch.get_num_threads(),
    )
    return y, r


def _l2norm_add_relu_cpp(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    layout = _memory_format(a)
    dtype = accumulation_dtype(a.dtype)
    a, b = a.contiguous(memory_format=layout), b.contiguous(memory_format=layout)
    scale_a, scale_b = widened(scale_a, dtype), widened(scale_b, dtype)
    images, channels, height, width = a.shape
    y = torch.empty_like(a)
    ra = torch.empty((images, height, width), dtype=dtype, device=a.device)
    rb = torch.empty_like(ra)
    native.l2norm_add_relu_cpu(
        a.data_ptr(),
        b.data_ptr(),
        scale_a.data_ptr(),
        scale_b.data_ptr(),
        eps,
        images,
        channels,
        height * width,
        layout == torch.channels_last,
        y.data_ptr(),
        ra.data_ptr(),
        rb.data_ptr(),
        dtype_code(a),
        torch.get_num_threads(),
    )
    return y, ra, rb


def _l2norm_backward_cpp(
    grad: Tensor, x: Tensor, scale: Tensor, r: Tensor
) -> tuple[Tensor, Tensor]:
    layout = _memory_format(x)
    dtype = accumulation_dtype(x.dtype)
    x, grad = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    wide_scale = widened(scale, dtype)
    grad_x, grad_scale = torch.empty_like(x), torch.empty_like(wide_scale)
    native.l2norm_backward_cpu(
        grad.data_ptr(),
        x.data_ptr(),
        wide_scale.data_ptr(),
        r.data_ptr(),
        x.shape[0],
        x.shape[1],
        x.shape[2] * x.shape[3],
        layout == torch.channels_last,
        grad_x.data_ptr(),
        grad_scale.data_ptr(),
        dtype_code(x),
        torch.get_num_threads(),
    )
    return grad_x, grad_scale.to(scale.dtype)


def _l2norm_add_relu_backward_cpp(
    grad: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    ra: Tensor,
    rb: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = _memory_format(a)
    dtype = accumulation_dtype(a.dtype)
    grad, y, a, b = (t.contiguous(memory_format=layout) for t in (grad, y, a, b))
    wide_a, wide_b = widened(scale_a, dtype), widened(scale_b, dtype)
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(a)
    grad_scale_a, grad_scale_b = torch.empty_like(wide_a), torch.empty_like(wide_b)
    native.l2norm_add_relu_backward_cpu(
        grad.data_ptr(),
        y.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        wide_a.data_ptr(),
        wide_b.data_ptr(),
        ra.data_ptr(),
        rb.data_ptr(),
        a.shape[0],
        a.shape[1],
        a.shape[2] * a.shape[3],
        layout == torch.channels_last,
        grad_a.data_ptr(),
        grad_b.data_ptr(),
        grad_scale_a.data_ptr(),
        grad_scale_b.data_ptr(),
        dtype_code(a),
        torch.get_num_threads(),
    )
    return grad_a, grad_b, grad_scale_a.to(scale_a.dtype), grad_scale_b.to(scale_b.dtype)


# --- cuda --------------------------------------------------------------------------------------


def _l2norm_cuda(
    kernels: Any, stream: int, x: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    layout = _memory_format(x)
    dtype = accumulation_dtype(x.dtype)
    x, scale = aligned(x, layout), aligned(scale.to(dtype))
    y = torch.empty_like(x)
    r = x.new_empty(x.shape[0], *x.shape[2:], dtype=dtype)
    kernels.l2norm_cuda(
        x.data_ptr(),
        scale.data_ptr(),
        eps,
        x.shape[0],
        x.shape[1],
        x.shape[2] * x.shape[3],
        layout == torch.channels_last,
        y.data_ptr(),
        r.data_ptr(),
        dtype_code(x),
        stream,
    )
    return y, r


def _l2norm_add_relu_cuda(
    kernels: Any,
    stream: int,
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    layout = _memory_format(a)
    dtype = accumulation_dtype(a.dtype)
    a, b = aligned(a, layout), aligned(b, layout)
    scale_a, scale_b = aligned(scale_a.to(dtype)), aligned(scale_b.to(dtype))
    y = torch.empty_like(a)
    ra = a.new_empty(a.shape[0], *a.shape[2:], dtype=dtype)
    rb = torch.empty_like(ra)
    kernels.l2norm_add_relu_cuda(
        a.data_ptr(),
        b.data_ptr(),
        scale_a.data_ptr(),
        scale_b.data_ptr(),
        eps,
        a.shape[0],
        a.shape[1],
        a.shape[2] * a.shape[3],
        layout == torch.channels_last,
        y.data_ptr(),
        ra.data_ptr(),
        rb.data_ptr(),
        dtype_code(a),
        stream,
    )
    return y, ra, rb


def _workspace(kernels: Any, maps: int, x: Tensor) -> Tensor:
    size = kernels.l2norm_workspace(maps, x.shape[1], dtype_code(x))
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def _l2norm_backward_cuda(
    kernels: Any, stream: int, grad: Tensor, x: Tensor, scale: Tensor, r: Tensor
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return _fake_map(x), torch.zeros_like(scale)
    layout = _memory_format(x)
    x, grad = aligned(x, layout), aligned(grad, layout)
    wide_scale = aligned(scale.to(accumulation_dtype(x.dtype)))
    grad_x, grad_scale = torch.empty_like(x), torch.empty_like(wide_scale)
    workspace = _workspace(kernels, 1, x)
    kernels.l2norm_backward_cuda(
        grad.data_ptr(),
        x.data_ptr(),
        wide_scale.data_ptr(),
        r.data_ptr(),
        x.shape[0],
        x.shape[1],
        x.shape[2] * x.shape[3],
        layout == torch.channels_last,
        grad_x.data_ptr(),
        grad_scale.data_ptr(),
        workspace.data_ptr(),
        dtype_code(x),
        stream,
    )
    return grad_x, grad_scale.to(scale.dtype)


def _l2norm_add_relu_backward_cuda(
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
        return (
            _fake_map(a),
            _fake_map(b, like=a),
            torch.zeros_like(scale_a),
            torch.zeros_like(scale_b),
        )
    layout = _memory_format(a)
    dtype = accumulation_dtype(a.dtype)
    grad, y, a, b = (aligned(t, layout) for t in (grad, y, a, b))
    wide_a, wide_b = aligned(scale_a.to(dtype)), aligned(scale_b.to(dtype))
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(a)
    grad_scale_a, grad_scale_b = torch.empty_like(wide_a), torch.empty_like(wide_b)
    workspace = _workspace(kernels, 2, a)
    kernels.l2norm_add_relu_backward_cuda(
        grad.data_ptr(),
        y.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        wide_a.data_ptr(),
        wide_b.data_ptr(),
        ra.data_ptr(),
        rb.data_ptr(),
        a.shape[0],
        a.shape[1],
        a.shape[2] * a.shape[3],
        layout == torch.channels_last,
        grad_a.data_ptr(),
        grad_b.data_ptr(),
        grad_scale_a.data_ptr(),
        grad_scale_b.data_ptr(),
        workspace.data_ptr(),
        dtype_code(a),
        stream,
    )
    return grad_a, grad_b, grad_scale_a.to(scale_a.dtype), grad_scale_b.to(scale_b.dtype)


# --- definitions -------------------------------------------------------------------------------


def _fake_map(x: Tensor, like: Tensor | None = None) -> Tensor:
    layout = _memory_format(x if like is None else like)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _fake_rnorm(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], *x.shape[2:], dtype=accumulation_dtype(x.dtype))


def _save_l2norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, scale, _ = inputs
    ctx.save_for_backward(x, scale, output[1])


def _save_l2norm_add_relu(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, b, scale_a, scale_b, _ = inputs
    y, ra, rb = output
    ctx.save_for_backward(y, a, b, scale_a, scale_b, ra, rb)


_l2norm_backward = define(
    "l2norm_backward(Tensor grad, Tensor x, Tensor scale, Tensor r) -> (Tensor, Tensor)",
    reference=_l2norm_backward_reference,
    cpp=_l2norm_backward_cpp,
    cuda=_l2norm_backward_cuda,
    triton="l2norm.l2norm_backward",
    fake=lambda grad, x, scale, r: (_fake_map(x), scale.new_empty(scale.shape)),
)

_l2norm = define(
    "l2norm(Tensor x, Tensor scale, float eps) -> (Tensor, Tensor)",
    reference=_l2norm_reference,
    cpp=_l2norm_cpp,
    cuda=_l2norm_cuda,
    triton="l2norm.l2norm",
    batched=(0,),
    fake=lambda x, scale, eps: (_fake_map(x), _fake_rnorm(x)),
    setup_context=_save_l2norm,
    backward=lambda ctx, grad, _: (*_l2norm_backward(grad, *ctx.saved_tensors), None),
)

_l2norm_add_relu_backward = define(
    "l2norm_add_relu_backward(Tensor grad, Tensor y, Tensor a, Tensor b, Tensor scale_a,"
    " Tensor scale_b, Tensor ra, Tensor rb) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_l2norm_add_relu_backward_reference,
    cpp=_l2norm_add_relu_backward_cpp,
    cuda=_l2norm_add_relu_backward_cuda,
    triton="l2norm.l2norm_add_relu_backward",
    fake=lambda grad, y, a, b, scale_a, scale_b, ra, rb: (
        _fake_map(a),
        _fake_map(b, like=a),
        scale_a.new_empty(scale_a.shape),
        scale_b.new_empty(scale_b.shape),
    ),
)

_l2norm_add_relu = define(
    "l2norm_add_relu(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    reference=_l2norm_add_relu_reference,
    cpp=_l2norm_add_relu_cpp,
    cuda=_l2norm_add_relu_cuda,
    triton="l2norm.l2norm_add_relu",
    batched=(0, 1),
    fake=lambda a, b, scale_a, scale_b, eps: (_fake_map(a), _fake_rnorm(a), _fake_rnorm(a)),
    setup_context=_save_l2norm_add_relu,
    backward=lambda ctx, grad, *_: (
        *_l2norm_add_relu_backward(grad, *ctx.saved_tensors),
        None,
    ),
)
