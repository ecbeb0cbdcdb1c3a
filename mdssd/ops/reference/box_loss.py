"""Reference of box_loss and its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mdssd.ops._settings import KINDS, BoxLossSettings
from mdssd.ops._tensors import accumulation_dtype
from mdssd.ops.reference.sigmoid_focal_loss import mean_over_positives


def box_loss(
    loc: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    priors: Tensor,
    settings: BoxLossSettings,
) -> tuple[Tensor, Tensor]:
    losses, _ = _losses_and_slopes(loc, loc_targets, priors, settings)
    sums = torch.where(labels > 0, losses, 0).sum(1)
    return mean_over_positives(sums, labels, settings.per_image, settings.normalise)


def box_loss_backward(
    grad_loss: Tensor,
    loc: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    priors: Tensor,
    normaliser: Tensor,
    settings: BoxLossSettings,
) -> Tensor:
    _, slopes = _losses_and_slopes(loc, loc_targets, priors, settings)
    scale = (grad_loss / normaliser).reshape(-1, 1, 1)
    return torch.where((labels > 0)[..., None], slopes * scale, 0).to(loc.dtype)


def _losses_and_slopes(
    loc: Tensor, loc_targets: Tensor, priors: Tensor, settings: BoxLossSettings
) -> tuple[Tensor, Tensor]:
    """The loss [B, N] of every prior and its derivatives by the offsets [B, N, 4].

    Both are NaN where one of the two boxes is not finite.
    """
    dtype = accumulation_dtype(loc.dtype)
    size = priors[:, 2:].to(dtype)
    # The derivative of a centre by its offset, and of the logarithm of a size.
    steps = torch.cat([settings.v0 * size, torch.full_like(size, settings.v1)], 1)

    def decoded(offsets: Tensor) -> Tensor:
        """The box relative to the prior's centre, on which the loss does not depend."""
        centre, log_size = offsets[..., :2] * settings.v0, offsets[..., 2:] * settings.v1
        return torch.cat([centre * size, size * log_size.exp()], -1)

    a, b = decoded(loc.to(dtype)), decoded(loc_targets.to(dtype))
    if KINDS[settings.kind] == "nwd":
        losses, slopes = _nwd(a, b, settings.nwd_constant)
    else:
        losses, slopes = _iou(a, b, KINDS[settings.kind], settings.eps)
    finite = torch.isfinite(a).all(-1) & torch.isfinite(b).all(-1)
    losses = torch.where(finite, losses, math.nan)
    return losses, torch.where(finite[..., None], slopes * steps, math.nan)


def _nwd(a: Tensor, b: Tensor, constant: float) -> tuple[Tensor, Tensor]:
    difference = a - b
    difference[..., 2:] *= 0.5
    distance = difference.square().sum(-1)
    distance = distance.sqrt()
    similarity = torch.exp(-distance / constant)
    scale = torch.where(distance > 0, similarity / (constant * distance), 0)
    slopes = scale[..., None] * difference
    slopes[..., 2:] *= a[..., 2:] * 0.5
    return 1 - similarity, slopes


def _iou(a: Tensor, b: Tensor, kind: str, eps: float) -> tuple[Tensor, Tensor]:
    """GIoU, DIoU or CIoU of boxes given by centre and size [B, N, 4].

    The derivatives are by the centre and the logarithm of the size. Those by the lower and the
    upper corners are halved where the corners of both boxes are equal, as PyTorch does in maxima.
    """
    half, its_half = a[..., 2:] * 0.5, b[..., 2:] * 0.5
    low, high = a[..., :2] - half, a[..., :2] + half
    its_low, its_high = b[..., :2] - its_half, b[..., :2] + its_half

    def length(upper: Tensor, lower: Tensor, by_high: Tensor, by_low: Tensor) -> tuple[Tensor, ...]:
        """A length, and its derivatives by the centre and the logarithm of the size: [B, N, 2]."""
        return upper - lower, by_low + by_high, (by_high - by_low) * half

    sides, sides_c, sides_s = length(
        torch.minimum(high, its_high), torch.maximum(low, its_low),
        _share(its_high, high), -_share(low, its_low),
    )  # fmt: skip
    hull, hull_c, hull_s = length(
        torch.maximum(high, its_high), torch.minimum(low, its_low),
        _share(high, its_high), -_share(its_low, low),
    )  # fmt: skip

    overlap = (sides > 0).all(-1, keepdim=True)
    inside = torch.where(overlap, sides.prod(-1, keepdim=True), 0)
    area = a[..., 2:].prod(-1, keepdim=True)
    both = area + b[..., 2:].prod(-1, keepdim=True) - inside
    iou = inside / (both + eps)
    # The derivatives by the four numbers of the box: [B, N, 4].
    d_inside = torch.cat([sides_c * sides.flip(-1), sides_s * sides.flip(-1)], -1)
    d_inside = torch.where(overlap, d_inside, 0)
    d_both = torch.cat([torch.zeros_like(half), area.expand_as(half)], -1) - d_inside
    d_iou = (d_inside - iou * d_both) / (both + eps)

    if kind == "giou":
        around = hull.prod(-1, keepdim=True)
        d_around = torch.cat([hull_c * hull.flip(-1), hull_s * hull.flip(-1)], -1)
        empty = (around - both) / (around + eps)
        slopes = (d_around - d_both - empty * d_around) / (around + eps) - d_iou
        return (1 - iou + empty)[..., 0], slopes
    apart = a[..., :2] - b[..., :2]
    diagonal = hull.square().sum(-1, keepdim=True) + eps
    share = apart.square().sum(-1, keepdim=True) / diagonal
    steps = torch.cat([apart, torch.zeros_like(apart)], -1)
    d_hull = torch.cat([hull * hull_c, hull * hull_s], -1)
    slopes = 2 * (steps - share * d_hull) / diagonal - d_iou
    losses = 1 - iou + share
    if kind == "ciou":
        w, h, u, v = torch.cat([a[..., 2:], b[..., 2:]], -1).split(1, -1)
        angle = torch.atan2(u * h - w * v, v * h + u * w)  # atan(u / v) - atan(w / h)
        shape = 4 / math.pi**2 * angle.square()
        alpha = shape / (1 - iou + shape + eps)  # a constant for the gradient
        least, most = torch.minimum(w, h), torch.maximum(w, h)
        ratio = torch.where(most > 0, least / most, 0)
        turn = 8 / math.pi**2 * alpha * angle * (ratio / (1 + ratio.square()))
        losses = losses + alpha * shape
        slopes = slopes + torch.cat([torch.zeros_like(apart), -turn, turn], -1)
    return losses[..., 0], slopes


def _share(a: Tensor, b: Tensor) -> Tensor:
    """1 where a > b, 0 where a < b, 1/2 where they are equal."""
    return (a > b).to(a.dtype) + 0.5 * (a == b).to(a.dtype)
