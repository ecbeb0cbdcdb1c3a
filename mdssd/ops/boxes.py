"""Box maths: IoU, and the offsets by which SSD codes a box against a prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import check_number, check_same_dtype, check_tensor, check_variances
from mdssd.ops._dispatch import define
from mdssd.ops._settings import VARIANCES, BoxCodingSettings
from mdssd.ops.native import boxes as native
from mdssd.ops.reference import boxes as reference


def box_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Compute the intersection over union of every box of `a_xyxy` with every box of `b_xyxy`.

    Differentiable in both arguments. If two edges coincide, each box gets half of the gradient.

    Args:
        a_xyxy: [N, 4] corners x1, y1, x2, y2 in any unit; float32, float16, bfloat16 or float64.
            N may be 0.
        b_xyxy: [M, 4], same unit, dtype and device. M may be 0.

    Returns:
        [N, M] in the dtype of the input; half types are computed in float32. A pair has IoU 0,
        never NaN, if the boxes do not intersect, or if one has zero area, x2 < x1, y2 < y1 or NaN.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device. With
            `checks(True)` also: a box with a NaN, inf, x2 < x1 or y2 < y1.

    Source: the Jaccard overlap of SSD, section 2.2.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> b = torch.tensor([[0.0, 0.0, 1.0, 2.0], [3.0, 3.0, 4.0, 4.0]])
        >>> ops.box_iou(a, b)
        tensor([[0.5000, 0.0000]])
    """
    check_tensor("box_iou", "a_xyxy", a_xyxy, ("N", 4))
    check_tensor("box_iou", "b_xyxy", b_xyxy, ("M", 4), like=a_xyxy)
    check_same_dtype("box_iou", "b_xyxy", b_xyxy, a_xyxy)
    return _box_iou(a_xyxy, b_xyxy)


def encode_boxes(
    boxes_xyxy: Tensor, priors_cxcywh: Tensor, variances: tuple[float, float] = VARIANCES
) -> Tensor:
    """Encode boxes as offsets against their priors, the localisation targets of SSD.

    The offsets are (cx - pcx) / (pw * v0), (cy - pcy) / (ph * v0), log(w / pw) / v1 and
    log(h / ph) / v1. Differentiable in `boxes_xyxy`; the priors are constants.

    Args:
        boxes_xyxy: [..., N, 4] corners in the priors' unit; float32, float16, bfloat16 or float64.
            N may be 0.
        priors_cxcywh: [N, 4] centre and size, sizes above 0; any float dtype, same device.
        variances: v0 of the centre and v1 of the size, above 0.

    Returns:
        [..., N, 4] in the dtype of `boxes_xyxy`. The offset of a zero width or height is -inf, that
        of a negative one NaN.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or
            range. With `checks(True)` also: a box with a NaN, inf or a side that is not above 0; a
            prior with a NaN, inf or a size that is not above 0.

    Source: SSD, section 2.2, equation 2, with the variances of its code.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> priors = torch.tensor([[0.5, 0.5, 0.25, 0.25]])
        >>> ops.encode_boxes(torch.tensor([[0.625, 0.375, 0.875, 0.625]]), priors)
        tensor([[10.,  0.,  0.,  0.]])
    """
    check_tensor("encode_boxes", "boxes_xyxy", boxes_xyxy, (None, "N", 4))
    check_tensor("encode_boxes", "priors_cxcywh", priors_cxcywh, ("N", 4), like=boxes_xyxy)
    _check_num_priors("encode_boxes", priors_cxcywh, boxes_xyxy)
    settings = BoxCodingSettings(*check_variances("encode_boxes", variances))
    return _encode_boxes(boxes_xyxy, priors_cxcywh, settings)


def decode_boxes(
    loc: Tensor, priors_cxcywh: Tensor, variances: tuple[float, float] = VARIANCES
) -> Tensor:
    """Decode the offsets that a network predicts into boxes: the inverse of `encode_boxes`.

    Differentiable in `loc`; the priors are constants.

    Args:
        loc: [..., N, 4] offsets; float32, float16, bfloat16 or float64. N may be 0.
        priors_cxcywh: [N, 4] centre and size; any float dtype, same device.
        variances: v0 of the centre and v1 of the size, above 0.

    Returns:
        [..., N, 4] corners x1, y1, x2, y2 in the priors' unit and the dtype of `loc`, not clipped.
        A size that is too large for the dtype becomes infinite; clamp `loc[..., 2:]` to avoid it.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or
            range. With `checks(True)` also: a NaN or inf in `loc`; a prior with a NaN, inf or a
            size that is not above 0.

    Source: SSD, section 2.2, equation 2 solved for the box.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> priors = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
        >>> ops.decode_boxes(torch.zeros(1, 4), priors)
        tensor([[0.4000, 0.4000, 0.6000, 0.6000]])
    """
    check_tensor("decode_boxes", "loc", loc, (None, "N", 4))
    check_tensor("decode_boxes", "priors_cxcywh", priors_cxcywh, ("N", 4), like=loc)
    _check_num_priors("decode_boxes", priors_cxcywh, loc)
    settings = BoxCodingSettings(*check_variances("decode_boxes", variances))
    return _decode_boxes(loc, priors_cxcywh, settings)


def just_above(threshold: float, dtype: torch.dtype = torch.float32) -> float:
    """Return the next number above a threshold, which turns "at least" into "above".

    An IoU is compared in float32, or in float64 if the boxes are float64. So `match_priors` with
    `just_above(0.5)` treats an IoU of 0.5 as background, exactly like code that compares by ">".

    Args:
        threshold: any finite number; it is rounded to `dtype` first, as the operators do.
        dtype: the dtype of the comparison, torch.float32 or torch.float64.

    Returns:
        The smallest number of `dtype` above the threshold.

    Raises:
        TypeError, ValueError: the threshold is not a finite number of `dtype`, or the dtype is
            another one.

    Example:
        >>> from mdssd import ops
        >>> ops.just_above(0.5)
        0.5000000596046448
    """
    return _next("just_above", threshold, math.inf, dtype)


def just_below(threshold: float, dtype: torch.dtype = torch.float32) -> float:
    """Return the last number below a threshold, which turns "at most" into "below".

    So `nms` with `just_below(0.45)` removes an IoU of 0.45, like code that keeps an IoU "< 0.45".

    Args:
        threshold: any finite number; it is rounded to `dtype` first, as the operators do.
        dtype: the dtype of the comparison, torch.float32 or torch.float64.

    Returns:
        The largest number of `dtype` below the threshold.

    Raises:
        TypeError, ValueError: the threshold is not a finite number of `dtype`, or the dtype is
            another one.

    Example:
        >>> from mdssd import ops
        >>> ops.just_below(0.5)
        0.4999999701976776
    """
    return _next("just_below", threshold, -math.inf, dtype)


def _next(op: str, threshold: float, towards: float, dtype: torch.dtype) -> float:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: dtype: expected torch.float32 or torch.float64, got {dtype!r:.80}")
    largest = torch.finfo(dtype).max
    threshold = check_number(op, "threshold", threshold, -largest, largest)
    pair = torch.tensor([threshold, towards], dtype=dtype, device="cpu")
    return torch.nextafter(pair[0], pair[1]).item()


def _check_num_priors(op: str, priors_cxcywh: Tensor, boxes: Tensor) -> None:
    if priors_cxcywh.shape[0] != boxes.shape[-2]:
        raise ValueError(
            f"{op}: priors_cxcywh: expected shape [{boxes.shape[-2]}, 4] like the first argument, "
            f"got {list(priors_cxcywh.shape)}"
        )


# --- definitions ---------------------------------------------------------------------------------

_box_iou_backward = define(
    "box_iou_backward(Tensor grad, Tensor a_xyxy, Tensor b_xyxy) -> (Tensor, Tensor)",
    reference=reference.box_iou_backward,
    cpp=native.box_iou_backward_cpp,
    cuda=native.box_iou_backward_cuda,
    triton="boxes",
    fake=lambda grad, a, b: (a.new_empty(a.shape), b.new_empty(b.shape)),
)

_box_iou = define(
    "box_iou(Tensor a_xyxy, Tensor b_xyxy) -> Tensor",
    reference=reference.box_iou,
    cpp=native.box_iou_cpp,
    cuda=native.box_iou_cuda,
    triton="boxes",
    values=_values.box_iou,
    batched=(0,),
    fake=lambda a, b: a.new_empty(a.shape[0], b.shape[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    backward=lambda ctx, grad: _box_iou_backward(grad, *ctx.saved_tensors),
)


def _save_coding(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, priors, ctx.settings = inputs
    ctx.save_for_backward(rows, priors)


_encode_boxes_backward = define(
    "encode_boxes_backward(Tensor grad, Tensor boxes_xyxy, Tensor priors_cxcywh, {settings})"
    " -> Tensor",
    settings=BoxCodingSettings,
    reference=reference.encode_boxes_backward,
    cpp=native.encode_boxes_backward_cpp,
    cuda=native.encode_boxes_backward_cuda,
    triton="boxes",
    batched=(0, 1),
    leading=True,
    fake=lambda grad, boxes, priors, settings: boxes.new_empty(boxes.shape),
)

_encode_boxes = define(
    "encode_boxes(Tensor boxes_xyxy, Tensor priors_cxcywh, {settings}) -> Tensor",
    settings=BoxCodingSettings,
    reference=reference.encode_boxes,
    cpp=native.encode_boxes_cpp,
    cuda=native.encode_boxes_cuda,
    triton="boxes",
    values=_values.encode_boxes,
    batched=(0,),
    leading=True,
    fake=lambda boxes, priors, settings: boxes.new_empty(boxes.shape),
    setup_context=_save_coding,
    backward=lambda ctx, grad: _encode_boxes_backward(grad, *ctx.saved_tensors, ctx.settings),
)

_decode_boxes_backward = define(
    "decode_boxes_backward(Tensor grad, Tensor loc, Tensor priors_cxcywh, {settings}) -> Tensor",
    settings=BoxCodingSettings,
    reference=reference.decode_boxes_backward,
    cpp=native.decode_boxes_backward_cpp,
    cuda=native.decode_boxes_backward_cuda,
    triton="boxes",
    batched=(0, 1),
    leading=True,
    fake=lambda grad, loc, priors, settings: loc.new_empty(loc.shape),
)

_decode_boxes = define(
    "decode_boxes(Tensor loc, Tensor priors_cxcywh, {settings}) -> Tensor",
    settings=BoxCodingSettings,
    reference=reference.decode_boxes,
    cpp=native.decode_boxes_cpp,
    cuda=native.decode_boxes_cuda,
    triton="boxes",
    values=_values.decode_boxes,
    batched=(0,),
    leading=True,
    fake=lambda loc, priors, settings: loc.new_empty(loc.shape),
    setup_context=_save_coding,
    backward=lambda ctx, grad: _decode_boxes_backward(grad, *ctx.saved_tensors, ctx.settings),
)
