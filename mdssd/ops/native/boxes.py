"""box_iou, encode_boxes, decode_boxes and their gradients on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._modules import native
from mdssd.ops._settings import BoxCodingSettings
from mdssd.ops._tensors import accumulation_dtype, aligned, dtype_code, widened

# --- cpp -----------------------------------------------------------------------------------------


def box_iou_cpp(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    n, m = a.shape[0], b.shape[0]
    out = a.new_empty(n, m)
    native.box_iou_cpu(a, n, b, m, out, dtype_code(a), torch.get_num_threads())
    return out


def box_iou_backward_cpp(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    grad, a, b = grad.contiguous(), a.contiguous(), b.contiguous()
    n, m = grad.shape
    grads = torch.empty_like(a), torch.empty_like(b)
    native.box_iou_backward_cpu(grad, a, n, b, m, *grads, dtype_code(a), torch.get_num_threads())
    return grads


def encode_boxes_cpp(boxes: Tensor, priors: Tensor, settings: BoxCodingSettings) -> Tensor:
    return _code_cpp(native.encode_boxes_cpu, [boxes], priors, settings)


def encode_boxes_backward_cpp(
    grad: Tensor, boxes: Tensor, priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    return _code_cpp(native.encode_boxes_backward_cpu, [grad, boxes], priors, settings)


def decode_boxes_cpp(loc: Tensor, priors: Tensor, settings: BoxCodingSettings) -> Tensor:
    return _code_cpp(native.decode_boxes_cpu, [loc], priors, settings)


def decode_boxes_backward_cpp(
    grad: Tensor, loc: Tensor, priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    return _code_cpp(native.decode_boxes_backward_cpu, [grad, loc], priors, settings)


def _code_cpp(
    function: Any, rows: list[Tensor], priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    """Call one of the four coding functions, which differ in their formulas only."""
    rows = [tensor.contiguous() for tensor in rows]
    priors = widened(priors, accumulation_dtype(rows[0].dtype))
    out = torch.empty_like(rows[0])
    sizes = (out.numel() // 4, priors.shape[0])
    function(*rows, priors, *sizes, settings, out, dtype_code(out), torch.get_num_threads())
    return out


# --- cuda ----------------------------------------------------------------------------------------


def box_iou_cuda(kernels: Any, stream: int, a: Tensor, b: Tensor) -> Tensor:
    a, b = aligned(a), aligned(b)
    n, m = a.shape[0], b.shape[0]
    out = a.new_empty(n, m)
    kernels.box_iou_cuda(a, n, b, m, out, dtype_code(a), stream)
    return out


def box_iou_backward_cuda(
    kernels: Any, stream: int, grad: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    grad, a, b = grad.contiguous(), aligned(a), aligned(b)
    n, m = grad.shape
    grads = torch.empty_like(a), torch.empty_like(b)
    kernels.box_iou_backward_cuda(grad, a, n, b, m, *grads, dtype_code(a), stream)
    return grads


def encode_boxes_cuda(
    kernels: Any, stream: int, boxes: Tensor, priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    return _code_cuda(kernels.encode_boxes_cuda, stream, [boxes], priors, settings)


def encode_boxes_backward_cuda(
    kernels: Any,
    stream: int,
    grad: Tensor,
    boxes: Tensor,
    priors: Tensor,
    settings: BoxCodingSettings,
) -> Tensor:
    return _code_cuda(kernels.encode_boxes_backward_cuda, stream, [grad, boxes], priors, settings)


def decode_boxes_cuda(
    kernels: Any, stream: int, loc: Tensor, priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    return _code_cuda(kernels.decode_boxes_cuda, stream, [loc], priors, settings)


def decode_boxes_backward_cuda(
    kernels: Any,
    stream: int,
    grad: Tensor,
    loc: Tensor,
    priors: Tensor,
    settings: BoxCodingSettings,
) -> Tensor:
    return _code_cuda(kernels.decode_boxes_backward_cuda, stream, [grad, loc], priors, settings)


def _code_cuda(
    function: Any, stream: int, rows: list[Tensor], priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    """Call one of the four coding functions, which differ in their formulas only."""
    rows = [aligned(tensor) for tensor in rows]
    priors = aligned(priors.to(accumulation_dtype(rows[0].dtype)))
    out = torch.empty_like(rows[0])
    sizes = (out.numel() // 4, priors.shape[0])
    function(*rows, priors, *sizes, settings, out, dtype_code(out), stream)
    return out
