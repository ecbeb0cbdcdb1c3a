"""match_priors, encode_targets and ignore_priors in Triton.

match_kernel: a program handles 256 priors of one image. It loops over the image's ground truths and
keeps the best one of each prior in registers, so there is no matrix of priors x ground truths. The
best prior of each ground truth is an atomic maximum over all programs, which does not depend on
their order. Afterwards, force_kernel assigns these priors; with top_k, claim_kernel first finds the
others. With "low_quality", match_kernel runs a second time instead, now that the highest rank of
each box is known.

A rank is the IoU or, with NWD, a number that orders like the overlap (csrc/match_math.h): higher is
better, and 0 is no overlap.

Most pairs do not overlap, and the priors of a program lie close together. So the program first
selects the ground truths that meet the common bounds of its priors, and computes IoUs for these
only. A skipped pair has an IoU of 0, which cannot change the result. With NWD, none is skipped.

A program has few priors, so that their bounds are tight, and compares four ground truths at a time,
because usually only a few meet the bounds. With four warps, a thread has 8 pairs, and registers
suffice for 24 warps per multiprocessor.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._results import new_matches, new_targets
from mdssd.ops._settings import (
    FORCES,
    EncodeTargetsSettings,
    IgnorePriorsSettings,
    MatchPriorsSettings,
)
from mdssd.ops.reference.matching import nwd_limit
from mdssd.ops.triton.common import (
    OPTIONS,
    area,
    blocks,
    encode,
    iou,
    larger,
    load_four,
    smaller,
    store_four,
    to_corners,
)

PRIORS = 256  # priors per program
LIST = 32  # ground truths tested against the bounds at a time
TILE = 4  # ground truths compared with all priors at a time
FORCED = 64  # ground truths per program of force_kernel
CLAIMED = 1024  # priors that claim_kernel compares at a time
_LOW = tl.constexpr(0x7FFFFFFF)
_INF_BITS = tl.constexpr(0x7F800000)


@triton.jit
def mirrored(x):
    """Return the number with the bits of infinity minus the bits of x, which orders reversed."""
    bits = -x.to(tl.int32, bitcast=True) + _INF_BITS
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def match_rank(
    ax1, ay1, ax2, ay2, area_a, bx1, by1, bx2, by2, area_b, eps, NWD: tl.constexpr,
):  # fmt: skip
    """Return the IoU or, with NWD, the mirrored sum of the squared differences of the corners."""
    if NWD:
        x1, y1, x2, y2 = ax1 - bx1, ay1 - by1, ax2 - bx2, ay2 - by2
        total = (x1 * x1 + y1 * y1) + (x2 * x2 + y2 * y2)
        rank = tl.where(total == total, mirrored(total), 0.0)
    else:
        rank = iou(ax1, ay1, ax2, ay2, area_a, bx1, by1, bx2, by2, area_b, eps)
    return rank


@triton.jit
def write(
    first_out, second_out, gt, gt_labels, priors, row, prior, box, begin, v0, v1, mask,
    ENCODE: tl.constexpr,
):  # fmt: skip
    """Write a match: its index in the image's list or, with ENCODE, its offsets and label.

    `box` is an index into the batch's ground truths. `begin` is the first one of the image;
    `begin` - 1 means background and `begin` - 2 ignored.
    """
    hit = mask & (box >= begin)
    if ENCODE:
        zero = row.to(tl.float32) * 0
        ox, oy, ow, oh, label = zero, zero, zero, zero, box - begin + 1
        if tl.max(hit.to(tl.int32), 0) > 0:  # most programs have only background
            x1, y1, x2, y2 = load_four(gt, box, hit)
            cx, cy, w, h = load_four(priors, prior, hit)
            ox, oy, ow, oh = encode(x1, y1, x2, y2, cx, cy, w, h, v0, v1)
            ox, oy = tl.where(hit, ox, 0.0), tl.where(hit, oy, 0.0)
            ow, oh = tl.where(hit, ow, 0.0), tl.where(hit, oh, 0.0)
            label = tl.where(hit, tl.load(gt_labels + box, mask=hit, other=0), label)
        store_four(first_out, row, ox, oy, ow, oh, mask)
        tl.store(second_out + row, label, mask=mask)
    else:
        tl.store(first_out + row, box - begin, mask=mask)


@triton.jit
def match_kernel(
    gt, gt_labels, begins, priors, best_priors, first_out, second_out, num_priors, programs,
    high, low, eps, constant, v0, v1,
    PRIORS: tl.constexpr, LIST: tl.constexpr, TILE: tl.constexpr, ENCODE: tl.constexpr,
    CORNERS: tl.constexpr, NWD: tl.constexpr, RESTORE: tl.constexpr,
):  # fmt: skip
    """Assign to each prior the box with the highest rank, if this is at least `high`.

    Otherwise it is ignored if its rank is at least `low`. `programs` programs share an image, and
    each has PRIORS of its `num_priors` priors. best_priors[box] becomes the maximum over all
    programs of a packed number. Its upper half has the bits of the rank, which order like the rank
    because it is not negative. Its lower half has the complement of the prior, so that the lower
    prior wins if ranks are equal. It is 0 if no prior overlaps the box. Source: SSD, section 2.2.

    With RESTORE, best_priors is known, and each prior with the highest rank of some box takes its
    own best box. A box whose highest rank is 0 has it with every prior.
    """
    image = tl.program_id(0) // programs
    first_prior = (tl.program_id(0) % programs) * PRIORS
    prior = first_prior + tl.arange(0, PRIORS)
    inside = prior < num_priors
    begin = tl.load(begins + image) - image
    boxes = (tl.load(begins + image + 1) - (image + 1) - begin).to(tl.int32)

    best = tl.full((PRIORS,), 0.0, tl.float32)
    best_box = tl.full((PRIORS,), 0, tl.int32)  # relative to `begin`
    restored = tl.full((PRIORS,), 0, tl.int32)
    if boxes > 0:
        x1, y1, x2, y2 = load_four(priors, prior.to(tl.int64), inside)
        if not CORNERS:
            x1, y1, x2, y2 = to_corners(x1, y1, x2, y2)
        own_area = area(x1, y1, x2, y2)
        # A prior with a NaN has ranks of 0. It is replaced by an empty box, because the bounds must
        # not become NaN.
        real = inside & (own_area == own_area)
        x1, y1 = tl.where(real, x1, float("inf")), tl.where(real, y1, float("inf"))
        x2, y2 = tl.where(real, x2, float("-inf")), tl.where(real, y2, float("-inf"))
        left, top = tl.min(x1, 0), tl.min(y1, 0)
        right, bottom = tl.max(x2, 0), tl.max(y2, 0)
        for first in range(0, boxes, LIST):
            k = first + tl.arange(0, LIST)
            meets = k < boxes
            if RESTORE:
                nothing = meets & (tl.load(best_priors + begin + k, mask=meets, other=1) == 0)
                restored += tl.max(nothing.to(tl.int32), 0)
            if not NWD:
                lx1, ly1, lx2, ly2 = load_four(gt, begin + k, k < boxes)
                meets = meets & (lx1 < right) & (lx2 > left) & (ly1 < bottom) & (ly2 > top)
            rank = tl.cumsum(meets.to(tl.int32), 0)  # numbers the boxes that meet, from 1
            hits = tl.max(rank, 0)
            for start in range(0, hits, TILE):
                wanted = start + 1 + tl.arange(0, TILE)
                found = meets[None, :] & (rank[None, :] == wanted[:, None])
                box = tl.sum(tl.where(found, k[None, :], 0), 1).to(tl.int32)
                bx1, by1, bx2, by2 = load_four(gt, begin + box, wanted <= hits)
                value = match_rank(
                    bx1[:, None], by1[:, None], bx2[:, None], by2[:, None],
                    area(bx1, by1, bx2, by2)[:, None],
                    x1[None, :], y1[None, :], x2[None, :], y2[None, :], own_area[None, :],
                    eps, NWD,
                )  # fmt: skip
                if NWD:  # a row without a box has an IoU of 0, but not every rank of 0
                    value = tl.where((wanted <= hits)[:, None], value, 0.0)
                # On a tie, the lowest box wins. Boxes of earlier iterations are lower.
                highest = tl.max(value, 0)
                winner = tl.min(tl.where(value == highest[None, :], box[:, None], _LOW), 0)
                best_box = tl.where(highest > best, winner, best_box)
                best = tl.where(highest > best, highest, best)
                if RESTORE:
                    packed = tl.load(best_priors + begin + box, mask=wanted <= hits, other=0)
                    same = value.to(tl.int32, bitcast=True) == (packed >> 32).to(tl.int32)[:, None]
                    restored += tl.max((same & (value > 0)).to(tl.int32), 0)
                else:  # the best prior of each box
                    highest, lane = tl.max(value, 1, return_indices=True)
                    low_half = _LOW - (first_prior + lane)
                    bits = highest.to(tl.int32, bitcast=True).to(tl.int64)
                    packed = (bits << 32) | low_half
                    tl.atomic_max(
                        best_priors + begin + box, packed, mask=highest > 0, sem="relaxed"
                    )

    row = image.to(tl.int64) * num_priors + prior
    if RESTORE:
        inside = inside & (restored > 0)
        box = begin + best_box
    else:
        other = tl.where((boxes > 0) & (best >= low), -2, -1)
        box = begin + tl.where((boxes > 0) & (best >= high), best_box, other)
    write(
        first_out, second_out, gt, gt_labels, priors, row, prior.to(tl.int64), box, begin, v0, v1,
        inside, ENCODE,
    )  # fmt: skip
    if not ENCODE and not RESTORE:
        overlap = best
        if NWD:
            overlap = tl.exp(-tl.div_rn(tl.sqrt(mirrored(best) * 0.5), constant))
        tl.store(second_out + row, overlap, mask=inside)


@triton.jit
def claim_kernel(
    gt, priors, best_priors, claims, num_priors, total, top_k, last_row, eps,
    CLAIMED: tl.constexpr, CORNERS: tl.constexpr, NWD: tl.constexpr,
):  # fmt: skip
    """Find the `top_k` priors that a box takes, in the numbers of best_priors.

    A program has one of all `total` boxes. Each round finds the largest number below that of the
    round before. claims [top_k, total] has the best priors in its last row, which begins at
    `last_row`, and the others above it.
    """
    box = tl.program_id(0).to(tl.int64)
    bx1, by1 = tl.load(gt + box * 4).to(tl.float32), tl.load(gt + box * 4 + 1).to(tl.float32)
    bx2, by2 = tl.load(gt + box * 4 + 2).to(tl.float32), tl.load(gt + box * 4 + 3).to(tl.float32)
    box_area = area(bx1, by1, bx2, by2)
    last = tl.load(best_priors + box)
    place = claims + last_row + box
    tl.store(place, last)
    for _ in range(1, top_k):
        best = tl.full((CLAIMED,), 0, tl.int64)
        for first in range(0, num_priors, CLAIMED):
            prior = first + tl.arange(0, CLAIMED)
            inside = prior < num_priors
            x1, y1, x2, y2 = load_four(priors, prior.to(tl.int64), inside)
            if not CORNERS:
                x1, y1, x2, y2 = to_corners(x1, y1, x2, y2)
            value = match_rank(
                bx1, by1, bx2, by2, box_area, x1, y1, x2, y2, area(x1, y1, x2, y2), eps, NWD
            )
            bits = value.to(tl.int32, bitcast=True).to(tl.int64)
            packed = (bits << 32) | (-prior + _LOW).to(tl.int64)
            packed = tl.where(inside & (value > 0) & (packed < last), packed, 0)
            best = tl.where(packed > best, packed, best)
        last = tl.max(best, 0)
        place -= total
        tl.store(place, last)


@triton.jit
def force_kernel(
    gt, gt_labels, begins, priors, claims, first_out, second_out, num_priors, images, total,
    top_k, v0, v1, FORCED: tl.constexpr, ENCODE: tl.constexpr,
):  # fmt: skip
    """Assign to each box the priors that it takes, one of each row of claims [top_k, total].

    If boxes of an image share one, the claim of the last row wins and, in a row, that of the last
    box. A program handles FORCED claims of a row. It compares them with the later ones of their
    image, so that no prior is written twice.
    """
    start = tl.program_id(0) * FORCED
    k = start + tl.arange(0, FORCED)
    inside = k < total
    image = tl.full((FORCED,), 0, tl.int64)  # the number of images whose boxes end before box k
    for first in range(0, images, FORCED):
        i = first + 1 + tl.arange(0, FORCED)
        ends = tl.load(begins + i, mask=i <= images, other=1 << 62) - i
        image += tl.sum((ends[:, None] <= k[None, :]).to(tl.int64), 0)
    begin = tl.load(begins + image, mask=inside, other=0) - image
    end = tl.load(begins + image + 1, mask=inside, other=0) - (image + 1)
    own_row = tl.program_id(1)
    row_of_claims = claims + own_row.to(tl.int64) * total
    packed = tl.load(row_of_claims + k, mask=inside, other=0)
    none = tl.where(own_row == top_k - 1, 0, -1)  # the best prior is prior 0 if none overlaps
    prior = tl.where(packed == 0, none, _LOW - (packed & _LOW))
    last = inside & (prior >= 0)
    low = start
    for row in range(own_row, top_k):
        for first in range(low, tl.max(end, 0).to(tl.int32), FORCED):
            other = first + tl.arange(0, FORCED)
            packed = tl.load(row_of_claims + other, mask=other < total, other=0)
            none = tl.where(row == top_k - 1, 0, -1)
            other_prior = tl.where(packed == 0, none, _LOW - (packed & _LOW))
            later = (other[:, None] > k[None, :]) | (row > own_row)
            later = later & (other[:, None] >= begin[None, :]) & (other[:, None] < end[None, :])
            taken = later & (other_prior[:, None] == prior[None, :])
            last = last & (tl.max(taken.to(tl.int32), 0) == 0)
        low = tl.min(tl.where(inside, begin, total), 0).to(tl.int32)
        row_of_claims += total
    write(
        first_out, second_out, gt, gt_labels, priors, image * num_priors + prior, prior,
        k.to(tl.int64), begin, v0, v1, last, ENCODE,
    )  # fmt: skip


@triton.jit
def ignore_kernel(
    marks, ignored, begins, priors, result, num_priors, programs, threshold, background,
    PRIORS: tl.constexpr, TILE: tl.constexpr, CORNERS: tl.constexpr,
):  # fmt: skip
    """Mark the background priors of which a box covers at least a share `threshold`."""
    image = tl.program_id(0) // programs
    prior = (tl.program_id(0) % programs) * PRIORS + tl.arange(0, PRIORS)
    inside = prior < num_priors
    begin = tl.load(begins + image) - image
    boxes = (tl.load(begins + image + 1) - (image + 1) - begin).to(tl.int32)
    x1, y1, x2, y2 = load_four(priors, prior.to(tl.int64), inside)
    if not CORNERS:
        x1, y1, x2, y2 = to_corners(x1, y1, x2, y2)
    own_area = area(x1, y1, x2, y2)
    covered = tl.full((PRIORS,), 0, tl.int32)
    for first in range(0, boxes, TILE):
        k = first + tl.arange(0, TILE)
        bx1, by1, bx2, by2 = load_four(ignored, begin + k, k < boxes)
        real = (bx1 == bx1) & (by1 == by1) & (bx2 == bx2) & (by2 == by2)
        width = smaller(bx2[:, None], x2[None, :]) - larger(bx1[:, None], x1[None, :])
        height = smaller(by2[:, None], y2[None, :]) - larger(by1[:, None], y1[None, :])
        intersection = larger(width, 0.0) * larger(height, 0.0)
        share = tl.div_rn(intersection, own_area[None, :])
        hit = (intersection > 0) & (share >= threshold) & real[:, None]
        covered += tl.max(hit.to(tl.int32), 0)
    row = image.to(tl.int64) * num_priors + prior
    mark = tl.load(marks + row, mask=inside, other=0)
    mark = tl.where((covered > 0) & (mark == background), background - 1, mark)
    tl.store(result + row, mark, mask=inside)


def _begins(offsets: Tensor, device: torch.device) -> Tensor:
    """Return offsets[i] + i on the device, for offsets [B + 1] on the CPU.

    The numbers are cut from an arange instead of being copied. A copy would have to wait, or its
    source would have to live as long as a CUDA graph that replays it. `i` is added because no piece
    may be empty.
    """
    counts = offsets.diff().tolist()
    pieces = [size for boxes in counts for size in (1, boxes)] + [1]
    numbers = torch.arange(sum(pieces), device=device)
    return torch.cat(numbers.split(pieces)[::2])


def _match(
    gt: Tensor,
    gt_labels: Tensor | None,
    offsets: Tensor,
    priors: Tensor,
    settings: MatchPriorsSettings,
    variances: tuple[float, float],
    outputs: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Launch the kernels of `match_priors` or, if labels are given, of `encode_targets`."""
    images, num_priors = offsets.shape[0] - 1, priors.shape[0]
    if images == 0 or num_priors == 0:
        return outputs
    gt, priors = gt.contiguous(), priors.float().contiguous()
    gt_labels = None if gt_labels is None else gt_labels.contiguous()
    begins = _begins(offsets, gt.device)
    total, force, nwd = gt.shape[0], FORCES[settings.force], settings.nwd_constant is not None
    best_priors = torch.zeros(total, dtype=torch.int64, device=gt.device)
    encoded: dict[str, Any] = {"ENCODE": gt_labels is not None, **OPTIONS}
    metric: dict[str, Any] = {"CORNERS": settings.corners, "NWD": nwd}
    eps = settings.iou_eps or None
    for restore in (False, True) if force == "low_quality" else (False,):
        size = PRIORS // 2 if restore else PRIORS  # with all, restoring would spill registers
        programs = blocks(num_priors, size)
        match_kernel[(programs * images,)](
            gt, gt_labels, begins, priors, best_priors, *outputs, num_priors, programs,
            *_limits(settings), eps, settings.nwd_constant, *variances, PRIORS=size, LIST=LIST,
            TILE=TILE, RESTORE=restore, num_warps=4, **metric, **encoded,
        )  # fmt: skip
    if total and force == "best_prior":
        top_k, claims = min(settings.top_k, num_priors), best_priors
        if top_k > 1:
            claims = torch.empty(total * top_k, dtype=torch.int64, device=gt.device)
            claim_kernel[(total,)](
                gt, priors, best_priors, claims, num_priors, total, top_k, total * (top_k - 1), eps,
                CLAIMED=CLAIMED, num_warps=4, **metric, **OPTIONS,
            )  # fmt: skip
        force_kernel[(blocks(total, FORCED), top_k)](
            gt, gt_labels, begins, priors, claims, *outputs, num_priors, images, total, top_k,
            *variances, FORCED=FORCED, num_warps=8, **encoded,
        )  # fmt: skip
    return outputs


def _limits(settings: MatchPriorsSettings) -> tuple[float, float]:
    """Return the two thresholds as ranks: match_limits of csrc/match_math.h."""
    high, low = settings.iou_threshold, settings.low_threshold
    low = high if low is None else low
    if settings.nwd_constant is None:
        return high, low
    limits = [nwd_limit(overlap, settings.nwd_constant) for overlap in (high, low)]
    bits = 0x7F800000 - torch.tensor(limits, dtype=torch.float32).view(torch.int32)
    first, second = bits.view(torch.float32).tolist()
    return first, second


def match_priors(
    gt: Tensor, offsets: Tensor, priors: Tensor, settings: MatchPriorsSettings
) -> tuple[Tensor, Tensor]:
    """Run `mdssd.ops.match_priors` on all boxes [sum of M_i, 4] with offsets [B + 1] on the CPU."""
    outputs = new_matches(gt, offsets, priors)
    return _match(gt, None, offsets, priors, settings, (1.0, 1.0), outputs)


def encode_targets(
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: EncodeTargetsSettings,
) -> tuple[Tensor, Tensor]:
    """Run `mdssd.ops.encode_targets` on all boxes and labels with offsets [B + 1] on the CPU."""
    outputs = new_targets(gt, offsets, priors)
    variances = (settings.v0, settings.v1)
    return _match(gt, gt_labels, offsets, priors, settings.match(), variances, outputs)


def ignore_priors(
    marks: Tensor,
    ignored: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: IgnorePriorsSettings,
) -> Tensor:
    """Run the op of that name on all boxes [sum of K_i, 4] with offsets [B + 1] on the CPU."""
    result = torch.empty_like(marks, memory_format=torch.contiguous_format)
    images, num_priors = marks.shape
    if images == 0 or num_priors == 0:
        return result
    programs = blocks(num_priors, PRIORS)
    ignore_kernel[(programs * images,)](
        marks.contiguous(), ignored.contiguous(), _begins(offsets, marks.device),
        priors.float().contiguous(), result, num_priors, programs, settings.threshold,
        settings.background, PRIORS=PRIORS, TILE=TILE, CORNERS=settings.corners, num_warps=4,
        **OPTIONS,
    )  # fmt: skip
    return result
