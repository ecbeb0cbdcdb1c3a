"""L2 normalisation over channels with a learned scale, alone and fused with sum and ReLU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import check_number, check_same_dtype, check_tensor
from mdssd.ops._dispatch import define
from mdssd.ops._results import new_map, new_norms
from mdssd.ops.native import l2norm as native
from mdssd.ops.reference import l2norm as reference


def l2norm(x: Tensor, scale: Tensor, eps: float = 1e-10) -> Tensor:
    """Scale the channel vector of every pixel to a learned length.

    y = scale * x / sqrt(sum over c of x^2 + eps). Differentiable in `x` and `scale`.

    Args:
        x: [B, C, H, W], NCHW or channels-last; float32, float16, bfloat16 or float64. Half types
            are computed in float32. Any size may be 0.
        scale: [C], any float dtype, same device.
        eps: added under the root, 1e-38 to 1; keeps a pixel of zeros at zero.

    Returns:
        [B, C, H, W] in the dtype and memory format of `x`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
            With `checks(True)` also: a NaN or inf in a tensor.

    Source: SSD, section 3.1 (conv4_3), after ParseNet; eps as in its code.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
        >>> ops.l2norm(x, torch.tensor([10.0, 20.0])).flatten()
        tensor([ 6., 16.])
    """
    check_tensor("l2norm", "x", x, ("B", "C", "H", "W"))
    check_tensor("l2norm", "scale", scale, (x.shape[1],), like=x)
    return _l2norm(x, scale, check_number("l2norm", "eps", eps, 1e-38, 1.0))[0]


def l2norm_add_relu(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, eps: float = 1e-10
) -> Tensor:
    """Normalise two maps, add them and apply ReLU, in one pass: the fusion of MDSSD.

    y = relu(l2norm(a, scale_a) + l2norm(b, scale_b)). Differentiable in all four tensors; the
    gradient at a sum of exactly 0 is 0.

    Args:
        a: [B, C, H, W], NCHW or channels-last; float32, float16, bfloat16 or float64. Half types
            are computed in float32. Any size may be 0.
        b: as `a`. It is copied if its memory format is not that of `a`.
        scale_a: [C], any float dtype, same device.
        scale_b: as `scale_a`.
        eps: added under each root, 1e-38 to 1.

    Returns:
        [B, C, H, W] in the dtype and memory format of `a`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
            With `checks(True)` also: a NaN or inf in a tensor.

    Source: MDSSD, section 3.2 and figure 4.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> a = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
        >>> scale_a, scale_b = torch.tensor([10.0, 10.0]), torch.tensor([5.0, 20.0])
        >>> ops.l2norm_add_relu(a, -a, scale_a, scale_b).flatten()
        tensor([3., 0.])
    """
    op = "l2norm_add_relu"
    check_tensor(op, "a", a, ("B", "C", "H", "W"))
    shape = a.shape
    check_tensor(op, "b", b, shape, like=a)
    check_same_dtype(op, "b", b, a)
    check_tensor(op, "scale_a", scale_a, (shape[1],), like=a)
    check_tensor(op, "scale_b", scale_b, (shape[1],), like=a)
    return _l2norm_add_relu(a, b, scale_a, scale_b, check_number(op, "eps", eps, 1e-38, 1.0))[0]


# --- definitions ---------------------------------------------------------------------------------
# The forward ops also return the reciprocals of the norms, which are saved for backward.


def _save_l2norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, scale, _ = inputs
    ctx.save_for_backward(x, scale, output[1])


def _save_l2norm_add_relu(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, b, scale_a, scale_b, _ = inputs
    y, ra, rb = output
    ctx.save_for_backward(y, a, b, scale_a, scale_b, ra, rb)


_l2norm_backward = define(
    "l2norm_backward(Tensor grad, Tensor x, Tensor scale, Tensor r) -> (Tensor, Tensor)",
    reference=reference.l2norm_backward,
    cpp=native.l2norm_backward_cpp,
    cuda=native.l2norm_backward_cuda,
    triton="l2norm",
    fake=lambda grad, x, scale, r: (new_map(x), scale.new_empty(scale.shape)),
)

_l2norm = define(
    "l2norm(Tensor x, Tensor scale, float eps) -> (Tensor, Tensor)",
    reference=reference.l2norm,
    cpp=native.l2norm_cpp,
    cuda=native.l2norm_cuda,
    triton="l2norm",
    values=_values.l2norm,
    batched=(0,),
    fake=lambda x, scale, eps: (new_map(x), new_norms(x)),
    setup_context=_save_l2norm,
    backward=lambda ctx, grad, _: _l2norm_backward(grad, *ctx.saved_tensors),
)

_l2norm_add_relu_backward = define(
    "l2norm_add_relu_backward(Tensor grad, Tensor y, Tensor a, Tensor b, Tensor scale_a,"
    " Tensor scale_b, Tensor ra, Tensor rb) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.l2norm_add_relu_backward,
    cpp=native.l2norm_add_relu_backward_cpp,
    cuda=native.l2norm_add_relu_backward_cuda,
    triton="l2norm",
    fake=lambda grad, y, a, b, scale_a, scale_b, ra, rb: (
        new_map(a),
        new_map(b, like=a),
        scale_a.new_empty(scale_a.shape),
        scale_b.new_empty(scale_b.shape),
    ),
)

_l2norm_add_relu = define(
    "l2norm_add_relu(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.l2norm_add_relu,
    cpp=native.l2norm_add_relu_cpp,
    cuda=native.l2norm_add_relu_cuda,
    triton="l2norm",
    values=_values.l2norm_add_relu,
    batched=(0, 1),
    fake=lambda a, b, scale_a, scale_b, eps: (new_map(a), new_norms(a), new_norms(a)),
    setup_context=_save_l2norm_add_relu,
    backward=lambda ctx, grad, *_: _l2norm_add_relu_backward(grad, *ctx.saved_tensors),
)
