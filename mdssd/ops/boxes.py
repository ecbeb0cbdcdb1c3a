"""Box maths: IoU, and the offsets by which SSD codes a box against a prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mdssd.ops._dispatch import (
    accumulation_dtype,
    aligned,
    check_same_dtype,
    check_tensor,
    check_variances,
    define,
    dtype_code,
    native,
)

VARIANCES = (0.1, 0.2)


def box_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of every box of `a_xyxy` with every box of `b_xyxy`.

    Args:
        a_xyxy: [N, 4] corners x1, y1, x2, y2, in any one unit; float32, float16, bfloat16, float64.
        b_xyxy: [M, 4], same unit, dtype and device.

    Returns:
        [N, M], dtype of the input; float16 and bfloat16 are computed in float32. A pair that does
        not intersect has 0, and so has a pair with a box of zero area, with x2 < x1 or y2 < y1,
        or with a NaN: never NaN. N or M may be 0. Differentiable in both arguments; where two
        edges coincide, each box gets half of the gradient.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.

    Source: the Jaccard overlap of SSD, section 2.2.
    """
    check_tensor("box_iou", "a_xyxy", a_xyxy, ("N", 4))
    check_tensor("box_iou", "b_xyxy", b_xyxy, ("M", 4), like=a_xyxy)
    check_same_dtype("box_iou", "b_xyxy", b_xyxy, a_xyxy)
    return _box_iou(a_xyxy, b_xyxy)


def encode_boxes(
    boxes_xyxy: Tensor, priors_cxcywh: Tensor, variances: tuple[float, float] = VARIANCES
) -> Tensor:
    """Offsets of boxes against their priors: the localisation targets of SSD.

    (cx - pcx) / (pw * v0), (cy - pcy) / (ph * v0), log(w / pw) / v1, log(h / ph) / v1.

    Args:
        boxes_xyxy: [..., N, 4] corners, in the priors' unit; float32, float16, bfloat16, float64.
        priors_cxcywh: [N, 4] centre and size, above 0; any float dtype, same device.
        variances: v0 of the centre and v1 of the size.

    Returns:
        [..., N, 4], dtype of `boxes_xyxy`. A box of zero width or height gives -inf, a negative
        one NaN. N may be 0. Differentiable in `boxes_xyxy`; priors are constants.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.

    Source: SSD, section 2.2, equation 2, with the variances of its code.
    """
    check_tensor("encode_boxes", "boxes_xyxy", boxes_xyxy, (None, "N", 4))
    check_tensor("encode_boxes", "priors_cxcywh", priors_cxcywh, ("N", 4), like=boxes_xyxy)
    _check_priors_count("encode_boxes", priors_cxcywh, boxes_xyxy)
    return _encode_boxes(boxes_xyxy, priors_cxcywh, *check_variances("encode_boxes", variances))


def decode_boxes(
    loc: Tensor, priors_cxcywh: Tensor, variances: tuple[float, float] = VARIANCES
) -> Tensor:
    """Boxes of the offsets that a network predicts: the inverse of `encode_boxes`.

    Args:
        loc: [..., N, 4] offsets; float32, float16, bfloat16, float64.
        priors_cxcywh: [N, 4] centre and size; any float dtype, same device.
        variances: v0 of the centre and v1 of the size.

    Returns:
        [..., N, 4] corners x1, y1, x2, y2 in the priors' unit, not clipped, dtype of `loc`. A size
        offset too large for the dtype gives an infinite box: where sizes are to be limited, clamp
        `loc[..., 2:]`. N may be 0. Differentiable in `loc`; priors are constants.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.

    Source: SSD, section 2.2, equation 2 solved for the box.
    """
    check_tensor("decode_boxes", "loc", loc, (None, "N", 4))
    check_tensor("decode_boxes", "priors_cxcywh", priors_cxcywh, ("N", 4), like=loc)
    _check_priors_count("decode_boxes", priors_cxcywh, loc)
    return _decode_boxes(loc, priors_cxcywh, *check_variances("decode_boxes", variances))


def just_above(threshold: float, dtype: torch.dtype = torch.float32) -> float:
    """The next number after a threshold: "at least" it means "above the threshold".

    An IoU is compared in float32, or in float64 for float64 boxes. So `match_priors` with
    `just_above(0.5)` takes an IoU of 0.5 for background, exactly as where code compares by ">".

    Args:
        threshold: any number; it is rounded to `dtype` first, as the operators do.
        dtype: in which it is compared, torch.float32 or torch.float64.

    Returns:
        The smallest number of `dtype` above the threshold.
    """
    return _next(threshold, math.inf, dtype)


def just_below(threshold: float, dtype: torch.dtype = torch.float32) -> float:
    """The last number before a threshold: "at most" it means "below the threshold".

    So `nms` with `just_below(0.45)` removes an IoU of 0.45, as code does that keeps what is "<".
    Arguments as of `just_above`.
    """
    return _next(threshold, -math.inf, dtype)


def _next(threshold: float, towards: float, dtype: torch.dtype) -> float:
    pair = torch.tensor([threshold, towards], dtype=dtype, device="cpu")
    return torch.nextafter(pair[0], pair[1]).item()


def _check_priors_count(op: str, priors_cxcywh: Tensor, boxes: Tensor) -> None:
    if priors_cxcywh.shape[0] != boxes.shape[-2]:
        raise ValueError(
            f"{op}: priors_cxcywh: expected shape [{boxes.shape[-2]}, 4] as of the first argument, "
            f"got {list(priors_cxcywh.shape)}"
        )


# --- reference ---------------------------------------------------------------------------------


def area(boxes_xyxy: Tensor) -> Tensor:
    """[..., 4] -> [...]; negative if one of the two sides is."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor, eps: float = 0.0) -> Tensor:
    """IoU by broadcasting, [..., 4] and [..., 4] -> [...]; the formula of every backend.

    `eps` joins the union's area; where it is 0, adding it changes no bit.
    """
    width = torch.minimum(a_xyxy[..., 2], b_xyxy[..., 2]) - torch.maximum(
        a_xyxy[..., 0], b_xyxy[..., 0]
    )
    height = torch.minimum(a_xyxy[..., 3], b_xyxy[..., 3]) - torch.maximum(
        a_xyxy[..., 1], b_xyxy[..., 1]
    )
    intersection = width.clamp(min=0) * height.clamp(min=0)
    iou = intersection / (area(a_xyxy) + area(b_xyxy) - intersection + eps)
    return torch.where(iou > 0, iou, 0)  # NaN compares false


def _box_iou_reference(a: Tensor, b: Tensor) -> Tensor:
    dtype = accumulation_dtype(a.dtype)
    return pairwise_iou(a.to(dtype)[:, None], b.to(dtype)[None]).to(a.dtype)


def _box_iou_backward_reference(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(a.dtype)
    grad, p, q = grad.to(dtype), a.to(dtype)[:, None], b.to(dtype)[None]
    low = torch.maximum(p[..., :2], q[..., :2])
    high = torch.minimum(p[..., 2:], q[..., 2:])
    sides = (high - low).clamp(min=0)  # [N, M, 2]
    intersection = sides.prod(-1)
    union = area(p) + area(q) - intersection
    iou = intersection / union
    overlap = iou > 0
    # iou = I / (A + B - I)
    d_intersection = torch.where(overlap, grad * (1 + iou) / union, 0)[..., None]
    d_area = torch.where(overlap, -grad * iou / union, 0)[..., None]
    d_sides = d_intersection * sides.flip(-1)

    def share(mine: Tensor, other: Tensor, d_area: Tensor) -> Tensor:
        def won(mine: Tensor, other: Tensor) -> Tensor:
            return (mine > other).to(dtype) + 0.5 * (mine == other).to(dtype)

        own_sides = (mine[..., 2:] - mine[..., :2]).flip(-1)
        d_low = -d_sides * won(mine[..., :2], other[..., :2]) - d_area * own_sides
        d_high = d_sides * won(other[..., 2:], mine[..., 2:]) + d_area * own_sides
        # A box with an infinite side overlaps nothing, and must not turn 0 into NaN.
        return torch.where(overlap[..., None], torch.cat([d_low, d_high], -1), 0)

    return share(p, q, d_area).sum(1).to(a.dtype), share(q, p, d_area).sum(0).to(b.dtype)


def encode(boxes_xyxy: Tensor, priors_cxcywh: Tensor, v0: float, v1: float) -> Tensor:
    """Plain encoding, all in one dtype, broadcasting."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    pcx, pcy, pw, ph = priors_cxcywh.unbind(-1)
    return torch.stack(
        [
            ((x1 + x2) * 0.5 - pcx) / (pw * v0),
            ((y1 + y2) * 0.5 - pcy) / (ph * v0),
            torch.log((x2 - x1) / pw) / v1,
            torch.log((y2 - y1) / ph) / v1,
        ],
        -1,
    )


def decode(
    loc: Tensor, priors_cxcywh: Tensor, v0: float, v1: float, max_log_scale: float = math.inf
) -> Tensor:
    """Plain decoding, all in one dtype, broadcasting."""
    centre = priors_cxcywh[..., :2] + loc[..., :2] * v0 * priors_cxcywh[..., 2:]
    log_scale = loc[..., 2:] * v1
    if max_log_scale < math.inf:
        log_scale = log_scale.clamp(max=max_log_scale)
    half = priors_cxcywh[..., 2:] * torch.exp(log_scale) * 0.5
    return torch.cat([centre - half, centre + half], -1)


def _encode_boxes_reference(boxes: Tensor, priors: Tensor, v0: float, v1: float) -> Tensor:
    dtype = accumulation_dtype(boxes.dtype)
    return encode(boxes.to(dtype), priors.to(dtype), v0, v1).to(boxes.dtype)


def _decode_boxes_reference(loc: Tensor, priors: Tensor, v0: float, v1: float) -> Tensor:
    dtype = accumulation_dtype(loc.dtype)
    return decode(loc.to(dtype), priors.to(dtype), v0, v1).to(loc.dtype)


def _encode_boxes_backward_reference(
    grad: Tensor, boxes: Tensor, priors: Tensor, v0: float, v1: float
) -> Tensor:
    dtype = accumulation_dtype(boxes.dtype)
    grad, box, prior = grad.to(dtype), boxes.to(dtype), priors.to(dtype)
    d_centre = grad[..., :2] / (prior[..., 2:] * v0) * 0.5
    d_size = grad[..., 2:] / ((box[..., 2:] - box[..., :2]) * v1)
    return torch.cat([d_centre - d_size, d_centre + d_size], -1).to(boxes.dtype)


def _decode_boxes_backward_reference(
    grad: Tensor, loc: Tensor, priors: Tensor, v0: float, v1: float
) -> Tensor:
    dtype = accumulation_dtype(loc.dtype)
    grad, offset, prior = grad.to(dtype), loc.to(dtype), priors.to(dtype)
    d_centre = (grad[..., :2] + grad[..., 2:]) * v0 * prior[..., 2:]
    half = prior[..., 2:] * torch.exp(offset[..., 2:] * v1) * 0.5
    d_size = (grad[..., 2:] - grad[..., :2]) * half * v1
    return torch.cat([d_centre, d_size], -1).to(loc.dtype)


# --- cpp ---------------------------------------------------------------------------------------


def _box_iou_cpp(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    out = a.new_empty(a.shape[0], b.shape[0])
    native.box_iou_cpu(
        a.data_ptr(),
        a.shape[0],
        b.data_ptr(),
        b.shape[0],
        out.data_ptr(),
        dtype_code(a),
        torch.get_num_threads(),
    )
    return out


def _box_iou_backward_cpp(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    grad, a, b = grad.contiguous(), a.contiguous(), b.contiguous()
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
    native.box_iou_backward_cpu(
        grad.data_ptr(),
        a.data_ptr(),
        a.shape[0],
        b.data_ptr(),
        b.shape[0],
        grad_a.data_ptr(),
        grad_b.data_ptr(),
        dtype_code(a),
        torch.get_num_threads(),
    )
    return grad_a, grad_b


def _coding_cpp(function: str) -> Any:
    """The backend call of encode, decode and their gradients, which differ in the name alone."""

    def call(*args: Any) -> Tensor:
        *tensors, priors, v0, v1 = args
        tensors = [tensor.contiguous() for tensor in tensors]
        priors = priors.to(accumulation_dtype(tensors[0].dtype)).contiguous()
        out = torch.empty_like(tensors[0])
        getattr(native, function)(
            *(tensor.data_ptr() for tensor in tensors),
            priors.data_ptr(),
            out.numel() // 4,
            priors.shape[0],
            v0,
            v1,
            out.data_ptr(),
            dtype_code(out),
            torch.get_num_threads(),
        )
        return out

    return call


# --- cuda --------------------------------------------------------------------------------------


def _box_iou_cuda(kernels: Any, stream: int, a: Tensor, b: Tensor) -> Tensor:
    a, b = aligned(a), aligned(b)
    out = a.new_empty(a.shape[0], b.shape[0])
    kernels.box_iou_cuda(
        a.data_ptr(),
        a.shape[0],
        b.data_ptr(),
        b.shape[0],
        out.data_ptr(),
        dtype_code(a),
        stream,
    )
    return out


def _box_iou_backward_cuda(
    kernels: Any, stream: int, grad: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    grad, a, b = grad.contiguous(), aligned(a), aligned(b)
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
    kernels.box_iou_backward_cuda(
        grad.data_ptr(),
        a.data_ptr(),
        a.shape[0],
        b.data_ptr(),
        b.shape[0],
        grad_a.data_ptr(),
        grad_b.data_ptr(),
        dtype_code(a),
        stream,
    )
    return grad_a, grad_b


def _coding_cuda(function: str) -> Any:
    """As `_coding_cpp`."""

    def call(kernels: Any, stream: int, *args: Any) -> Tensor:
        *tensors, priors, v0, v1 = args
        tensors = [aligned(tensor) for tensor in tensors]
        priors = aligned(priors.to(accumulation_dtype(tensors[0].dtype)))
        out = torch.empty_like(tensors[0])
        getattr(kernels, function)(
            *(tensor.data_ptr() for tensor in tensors),
            priors.data_ptr(),
            out.numel() // 4,
            priors.shape[0],
            v0,
            v1,
            out.data_ptr(),
            dtype_code(out),
            stream,
        )
        return out

    return call


# --- definitions -------------------------------------------------------------------------------

_box_iou_backward = define(
    "box_iou_backward(Tensor grad, Tensor a_xyxy, Tensor b_xyxy) -> (Tensor, Tensor)",
    reference=_box_iou_backward_reference,
    cpp=_box_iou_backward_cpp,
    cuda=_box_iou_backward_cuda,
    triton="boxes.box_iou_backward",
    fake=lambda grad, a, b: (a.new_empty(a.shape), b.new_empty(b.shape)),
)

_box_iou = define(
    "box_iou(Tensor a_xyxy, Tensor b_xyxy) -> Tensor",
    reference=_box_iou_reference,
    cpp=_box_iou_cpp,
    cuda=_box_iou_cuda,
    triton="boxes.box_iou",
    batched=(0,),
    fake=lambda a, b: a.new_empty(a.shape[0], b.shape[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    backward=lambda ctx, grad: _box_iou_backward(grad, *ctx.saved_tensors),
)


def _save_coding(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes, priors, ctx.v0, ctx.v1 = inputs
    ctx.save_for_backward(boxes, priors)


def _define_coding(name: str, argument: str, reference: Any, backward_reference: Any) -> Any:
    """Encode and decode are the same op but for their formulas."""
    constants = "Tensor priors_cxcywh, float v0, float v1"
    gradient = define(
        f"{name}_backward(Tensor grad, Tensor {argument}, {constants}) -> Tensor",
        reference=backward_reference,
        cpp=_coding_cpp(f"{name}_backward_cpu"),
        cuda=_coding_cuda(f"{name}_backward_cuda"),
        triton=f"boxes.{name}_backward",
        batched=(0, 1),
        leading=True,
        fake=lambda grad, boxes, priors, v0, v1: boxes.new_empty(boxes.shape),
    )
    return define(
        f"{name}(Tensor {argument}, {constants}) -> Tensor",
        reference=reference,
        cpp=_coding_cpp(f"{name}_cpu"),
        cuda=_coding_cuda(f"{name}_cuda"),
        triton=f"boxes.{name}",
        batched=(0,),
        leading=True,
        fake=lambda boxes, priors, v0, v1: boxes.new_empty(boxes.shape),
        setup_context=_save_coding,
        backward=lambda ctx, grad: (
            gradient(grad, *ctx.saved_tensors, ctx.v0, ctx.v1),
            None,
            None,
            None,
        ),
    )


_encode_boxes = _define_coding(
    "encode_boxes", "boxes_xyxy", _encode_boxes_reference, _encode_boxes_backward_reference
)
_decode_boxes = _define_coding(
    "decode_boxes", "loc", _decode_boxes_reference, _decode_boxes_backward_reference
)
