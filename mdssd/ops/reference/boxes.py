"""Reference of box_iou, encode_boxes, decode_boxes and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._settings import BoxCodingSettings
from mdssd.ops._tensors import accumulation_dtype


def to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Corners of boxes that are given by centre and size, [..., 4]."""
    half = boxes_cxcywh[..., 2:] * 0.5
    return torch.cat([boxes_cxcywh[..., :2] - half, boxes_cxcywh[..., :2] + half], -1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Areas of boxes, [..., 4] -> [...]; negative if one of the two sides is."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def pairwise_iou(
    a_xyxy: Tensor, b_xyxy: Tensor, eps: float = 0.0, ios: bool = False, diou: bool = False
) -> Tensor:
    """IoU by broadcasting, [..., 4] and [..., 4] -> [...]; the formula of every backend.

    With `ios` it is the intersection over the area of the smaller box, and 0 wherever the IoU is.
    With `diou` it is the IoU minus d^2 / c^2, of the centres' distance and the diagonal of the
    smallest box around both; where the IoU is 0, it can also be NaN.
    `eps` is added to what the intersection is divided by; adding 0 changes no bit.
    """
    width = torch.minimum(a_xyxy[..., 2], b_xyxy[..., 2]) - torch.maximum(
        a_xyxy[..., 0], b_xyxy[..., 0]
    )
    height = torch.minimum(a_xyxy[..., 3], b_xyxy[..., 3]) - torch.maximum(
        a_xyxy[..., 1], b_xyxy[..., 1]
    )
    intersection = width.clamp(min=0) * height.clamp(min=0)
    area_a, area_b = area(a_xyxy), area(b_xyxy)
    if ios:
        smaller = torch.minimum(area_a, area_b) + eps
        iou = torch.where(area_a + area_b < torch.inf, intersection / smaller, 0)
    else:
        iou = intersection / (area_a + area_b - intersection + eps)
    iou = torch.where(iou > 0, iou, 0)  # NaN compares false
    if diou:
        twice = (a_xyxy[..., :2] - b_xyxy[..., :2]) + (a_xyxy[..., 2:] - b_xyxy[..., 2:])
        high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
        sides = high - torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
        distance, diagonal = ((v * v).unbind(-1) for v in (twice * 0.5, sides))
        iou = iou - (distance[0] + distance[1]) / (diagonal[0] + diagonal[1])
    return iou


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    dtype = accumulation_dtype(a.dtype)
    return pairwise_iou(a.to(dtype)[:, None], b.to(dtype)[None]).to(a.dtype)


def box_iou_backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
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
        # The gradient of a box with an infinite side, which overlaps nothing, is 0 rather than NaN.
        return torch.where(overlap[..., None], torch.cat([d_low, d_high], -1), 0)

    return share(p, q, d_area).sum(1).to(a.dtype), share(q, p, d_area).sum(0).to(b.dtype)


def encode(boxes_xyxy: Tensor, priors_cxcywh: Tensor, v0: float, v1: float) -> Tensor:
    """Encode boxes, all in one dtype, with broadcasting."""
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
    loc: Tensor, priors_cxcywh: Tensor, v0: float, v1: float, max_log_scale: float | None = None
) -> Tensor:
    """Decode offsets, all in one dtype, with broadcasting."""
    centre = priors_cxcywh[..., :2] + loc[..., :2] * v0 * priors_cxcywh[..., 2:]
    log_scale = loc[..., 2:] * v1
    if max_log_scale is not None:
        log_scale = log_scale.clamp(max=max_log_scale)
    half = priors_cxcywh[..., 2:] * torch.exp(log_scale) * 0.5
    return torch.cat([centre - half, centre + half], -1)


def encode_boxes(boxes: Tensor, priors: Tensor, settings: BoxCodingSettings) -> Tensor:
    dtype = accumulation_dtype(boxes.dtype)
    return encode(boxes.to(dtype), priors.to(dtype), *settings).to(boxes.dtype)


def decode_boxes(loc: Tensor, priors: Tensor, settings: BoxCodingSettings) -> Tensor:
    dtype = accumulation_dtype(loc.dtype)
    return decode(loc.to(dtype), priors.to(dtype), *settings).to(loc.dtype)


def encode_boxes_backward(
    grad: Tensor, boxes: Tensor, priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    v0, v1 = settings
    dtype = accumulation_dtype(boxes.dtype)
    grad, box, prior = grad.to(dtype), boxes.to(dtype), priors.to(dtype)
    d_centre = grad[..., :2] / (prior[..., 2:] * v0) * 0.5
    d_size = grad[..., 2:] / ((box[..., 2:] - box[..., :2]) * v1)
    return torch.cat([d_centre - d_size, d_centre + d_size], -1).to(boxes.dtype)


def decode_boxes_backward(
    grad: Tensor, loc: Tensor, priors: Tensor, settings: BoxCodingSettings
) -> Tensor:
    v0, v1 = settings
    dtype = accumulation_dtype(loc.dtype)
    grad, offset, prior = grad.to(dtype), loc.to(dtype), priors.to(dtype)
    d_centre = (grad[..., :2] + grad[..., 2:]) * v0 * prior[..., 2:]
    half = prior[..., 2:] * torch.exp(offset[..., 2:] * v1) * 0.5
    d_size = (grad[..., 2:] - grad[..., :2]) * half * v1
    return torch.cat([d_centre, d_size], -1).to(loc.dtype)
