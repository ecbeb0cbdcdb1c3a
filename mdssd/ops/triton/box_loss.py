"""box_loss and its gradient in Triton.

The forward pass has two launches: box_loss_kernel reads the labels, and the offsets and priors of
the positives, and stores the sums of its programs; finish_groups_kernel adds them in a fixed order.
The backward pass is one launch. The formulas are those of csrc/loss_math.h.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._results import new_mean_loss
from mdssd.ops._settings import BoxLossSettings
from mdssd.ops._tensors import group_sizes
from mdssd.ops.triton.common import (
    OPTIONS,
    blocks,
    finish_groups,
    larger,
    load_four,
    programs_per_group,
    smaller,
    store_four,
)

ROWS = 256  # priors of a program at a time: two of each of its 128 threads
TILES = 4  # least number of tiles of a program, which leaves fewer sums
GIOU, DIOU, CIOU, NWD = (tl.constexpr(kind) for kind in range(4))  # the order is that of KINDS
HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def share(a, b):
    """Return 1 where a > b, 0 where a < b and 1/2 where they are equal."""
    return tl.where(a > b, 1.0, tl.where(a < b, 0.0, 0.5))


@triton.jit
def angle_of(y, x):
    """Return atan(y / x) for x >= 0, and 0 if both are 0.

    The polynomial for 0 to 1 is fitted at Chebyshev's points; its relative error is below 2e-8.
    """
    size = tl.abs(y)
    steep = size > x
    below = tl.where(steep, size, x)
    t = tl.where(
        below > 0, tl.div_rn(tl.where(steep, x, size), tl.where(below > 0, below, 1.0)), 0.0
    )
    s = t * t
    p = 0.002834064299 * s - 0.016005030505
    p = p * s + 0.042587607467
    p = p * s - 0.074954454435
    p = p * s + 0.106367540982
    p = p * s - 0.142025705117
    p = p * s + 0.199924835785
    p = p * s - 0.333330667807
    p = p * s + 0.999999984243
    angle = tl.where(steep, HALF_PI - t * p, t * p)
    return tl.where(y < 0, -angle, angle)


@triton.jit
def decode_here(x, y, w, h, width, height, v0, v1):
    """Decode offsets to centre and size, relative to the prior's centre."""
    return x * v0 * width, y * v0 * height, width * tl.exp(w * v1), height * tl.exp(h * v1)


@triton.jit
def side(centre, size, its_centre, its_size):
    """Return what two boxes have in common along one side, and the side of the box around both.

    Each comes with its derivatives by the centre and by the logarithm of the size.
    """
    half, its_half = size * 0.5, its_size * 0.5
    low, high = centre - half, centre + half
    its_low, its_high = its_centre - its_half, its_centre + its_half
    common = smaller(high, its_high) - larger(low, its_low)
    by_low, by_high = -share(low, its_low), share(its_high, high)
    hull = larger(high, its_high) - smaller(low, its_low)
    hull_low, hull_high = -share(its_low, low), share(high, its_high)
    return (
        common, by_low + by_high, (by_high - by_low) * half,
        hull, hull_low + hull_high, (hull_high - hull_low) * half,
    )  # fmt: skip


@triton.jit
def nwd_loss(ax, ay, aw, ah, bx, by, bw, bh, constant):
    """Return 1 - exp(-distance / constant) and its derivatives."""
    dx, dy, dw, dh = ax - bx, ay - by, (aw - bw) * 0.5, (ah - bh) * 0.5
    distance = tl.sqrt_rn(dx * dx + dy * dy + dw * dw + dh * dh)
    similarity = tl.exp(tl.div_rn(-distance, constant))
    apart = distance > 0
    scale = tl.where(apart, similarity / (constant * tl.where(apart, distance, 1.0)), 0.0)
    return (
        1.0 - similarity, scale * dx, scale * dy, scale * dw * (aw * 0.5), scale * dh * (ah * 0.5),
    )  # fmt: skip


@triton.jit
def giou_slope(d_around, d_both, d_iou, empty, around, eps):
    return tl.div_rn(d_around - d_both - empty * d_around, around + eps) - d_iou


@triton.jit
def diou_slope(step, size, d_size, d_iou, apart, diagonal):
    return tl.div_rn(2.0 * (step - apart * (size * d_size)), diagonal) - d_iou


@triton.jit
def iou_loss(ax, ay, aw, ah, bx, by, bw, bh, eps, KIND: tl.constexpr):
    """Return 1 - GIoU, DIoU or CIoU, and its derivatives by centre and logarithm of the size."""
    w, w_c, w_s, hull_w, hull_w_c, hull_w_s = side(ax, aw, bx, bw)
    h, h_c, h_s, hull_h, hull_h_c, hull_h_s = side(ay, ah, by, bh)
    overlap = (w > 0) & (h > 0)
    inside = tl.where(overlap, w * h, 0.0)
    area = aw * ah
    both = area + bw * bh - inside
    whole = both + eps
    iou = tl.div_rn(inside, whole)
    ix, iy = tl.where(overlap, w_c * h, 0.0), tl.where(overlap, h_c * w, 0.0)
    iw, ih = tl.where(overlap, w_s * h, 0.0), tl.where(overlap, h_s * w, 0.0)
    d_x, d_y = tl.div_rn(ix + iou * ix, whole), tl.div_rn(iy + iou * iy, whole)
    d_w = tl.div_rn(iw - iou * (area - iw), whole)
    d_h = tl.div_rn(ih - iou * (area - ih), whole)
    if KIND == GIOU:
        around = hull_w * hull_h
        empty = tl.div_rn(around - both, around + eps)
        loss = 1.0 - iou + empty
        s_x = giou_slope(hull_w_c * hull_h, -ix, d_x, empty, around, eps)
        s_y = giou_slope(hull_h_c * hull_w, -iy, d_y, empty, around, eps)
        s_w = giou_slope(hull_w_s * hull_h, area - iw, d_w, empty, around, eps)
        s_h = giou_slope(hull_h_s * hull_w, area - ih, d_h, empty, around, eps)
    else:
        dx, dy = ax - bx, ay - by
        diagonal = hull_w * hull_w + hull_h * hull_h + eps
        apart = tl.div_rn(dx * dx + dy * dy, diagonal)
        loss = 1.0 - iou + apart
        s_x = diou_slope(dx, hull_w, hull_w_c, d_x, apart, diagonal)
        s_y = diou_slope(dy, hull_h, hull_h_c, d_y, apart, diagonal)
        s_w = diou_slope(0.0, hull_w, hull_w_s, d_w, apart, diagonal)
        s_h = diou_slope(0.0, hull_h, hull_h_s, d_h, apart, diagonal)
        if KIND == CIOU:
            angle = angle_of(bw * ah - aw * bh, bh * ah + bw * aw)
            v = 0.40528473456935109 * angle * angle  # 4 / pi^2
            alpha = tl.div_rn(v, 1.0 - iou + v + eps)
            most = larger(aw, ah)
            ratio = tl.where(most > 0, smaller(aw, ah) / tl.where(most > 0, most, 1.0), 0.0)
            turn = 0.81056946913870222 * alpha * angle * (ratio / (1.0 + ratio * ratio))
            loss += alpha * v
            s_w -= turn
            s_h += turn
    return loss, s_x, s_y, s_w, s_h


@triton.jit
def load_losses(
    loc, loc_targets, labels, priors, row, valid, num_priors, v0, v1, nwd_constant, eps,
    KIND: tl.constexpr,
):  # fmt: skip
    """Return the losses of rows and their slopes by the offsets; only positives are read."""
    positive = tl.load(labels + row, mask=valid, other=0) > 0
    x, y, w, h = load_four(loc, row, positive)
    tx, ty, tw, th = load_four(loc_targets, row, positive)
    _, _, width, height = load_four(priors, row % num_priors, positive)
    width, height = tl.where(positive, width, 1.0), tl.where(positive, height, 1.0)
    ax, ay, aw, ah = decode_here(x, y, w, h, width, height, v0, v1)
    bx, by, bw, bh = decode_here(tx, ty, tw, th, width, height, v0, v1)
    if KIND == NWD:
        loss, s_x, s_y, s_w, s_h = nwd_loss(ax, ay, aw, ah, bx, by, bw, bh, nwd_constant)
    else:
        loss, s_x, s_y, s_w, s_h = iou_loss(ax, ay, aw, ah, bx, by, bw, bh, eps, KIND)
    # The difference of a number from itself is 0 unless it is infinite or NaN.
    odd = (ax - ax) + (ay - ay) + (aw - aw) + (ah - ah)
    odd += (bx - bx) + (by - by) + (bw - bw) + (bh - bh)
    nan = float("nan")
    bad = odd != 0
    return (
        positive, tl.where(bad, nan, loss),
        tl.where(bad, nan, s_x * (v0 * width)), tl.where(bad, nan, s_y * (v0 * height)),
        tl.where(bad, nan, s_w * v1), tl.where(bad, nan, s_h * v1),
    )  # fmt: skip


@triton.jit
def box_loss_kernel(
    loc, loc_targets, labels, priors, sums, counts, group_rows, num_priors, per_group, v0, v1,
    nwd_constant, eps,
    ROWS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Store the sum of a program's rows, which are in one group, and its number of positives."""
    program = tl.program_id(0)
    begin = (program // per_group).to(tl.int64) * group_rows
    total = tl.zeros((ROWS,), tl.float32)
    positives = tl.zeros((ROWS,), tl.int32)
    first = (program % per_group).to(tl.int64) * ROWS
    for place in range(first, group_rows, tl.cast(per_group, tl.int64) * ROWS):
        index = place + tl.arange(0, ROWS)
        positive, loss, s_x, s_y, s_w, s_h = load_losses(
            loc, loc_targets, labels, priors, begin + index, index < group_rows, num_priors, v0,
            v1, nwd_constant, eps, KIND,
        )  # fmt: skip
        total += tl.where(positive, loss, 0.0)
        positives += positive.to(tl.int32)
    tl.store(sums + program, tl.sum(total, 0))
    tl.store(counts + program, tl.sum(positives.to(tl.int64), 0))


@triton.jit
def box_loss_backward_kernel(
    grad_loss, loc, loc_targets, labels, priors, normaliser, grad_loc, rows, group_rows,
    num_priors, v0, v1, nwd_constant, eps,
    ROWS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of ROWS rows; only the inputs of positives are read."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    positive, _, s_x, s_y, s_w, s_h = load_losses(
        loc, loc_targets, labels, priors, row, valid, num_priors, v0, v1, nwd_constant, eps, KIND
    )
    group = tl.where(positive, row // group_rows, 0)
    divisor = tl.load(normaliser + group).to(tl.float32)
    scale = tl.div_rn(tl.load(grad_loss + group).to(tl.float32), divisor)
    store_four(
        grad_loc, row,
        tl.where(positive, s_x * scale, 0.0), tl.where(positive, s_y * scale, 0.0),
        tl.where(positive, s_w * scale, 0.0), tl.where(positive, s_h * scale, 0.0),
        valid,
    )  # fmt: skip


def box_loss(
    loc: Tensor, loc_targets: Tensor, labels: Tensor, priors: Tensor, settings: BoxLossSettings
) -> tuple[Tensor, Tensor]:
    """Run `mdssd.ops.box_loss`; also return what the sums are divided by."""
    loc, loc_targets, labels, priors = (t.contiguous() for t in (loc, loc_targets, labels, priors))
    loss, normaliser = new_mean_loss(loc, labels, settings.per_image)
    groups, group_rows = group_sizes(labels, settings.per_image)
    if not groups:
        return loss, normaliser
    per_group = programs_per_group(groups, blocks(group_rows, TILES * ROWS))
    sums = loc.new_empty(groups * per_group, dtype=torch.float32)
    counts = loc.new_empty(groups * per_group, dtype=torch.int64)
    box_loss_kernel[(groups * per_group,)](
        loc, loc_targets, labels, priors, sums, counts, group_rows, priors.shape[0], per_group,
        settings.v0, settings.v1, settings.nwd_constant, settings.eps,
        ROWS=ROWS, KIND=settings.kind, **OPTIONS,
    )  # fmt: skip
    finish_groups(sums, counts, groups, per_group, settings.normalise, loss, normaliser)
    return loss, normaliser


def box_loss_backward(
    grad_loss: Tensor, loc: Tensor, loc_targets: Tensor, labels: Tensor, priors: Tensor,
    normaliser: Tensor, settings: BoxLossSettings,
) -> Tensor:  # fmt: skip
    """Return the gradient of `box_loss` with respect to `loc`."""
    loc, loc_targets, labels, priors, grad_loss = (
        t.contiguous() for t in (loc, loc_targets, labels, priors, grad_loss)
    )
    grad = torch.empty_like(loc)
    rows, (_, group_rows) = labels.numel(), group_sizes(labels, settings.per_image)
    if rows:
        box_loss_backward_kernel[(blocks(rows, ROWS),)](
            grad_loss, loc, loc_targets, labels, priors, normaliser, grad, rows, group_rows,
            priors.shape[0], settings.v0, settings.v1, settings.nwd_constant, settings.eps,
            ROWS=ROWS, KIND=settings.kind, **OPTIONS,
        )  # fmt: skip
    return grad
