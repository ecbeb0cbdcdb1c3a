"""match_priors and encode_targets in Triton.

match_kernel: a program handles 256 priors of one image. It loops over the image's ground truths and
keeps the best one of each prior in registers, so there is no matrix of priors x ground truths. The
best prior of each ground truth is an atomic maximum over all programs, which does not depend on
their order. Afterwards, force_kernel assigns these priors.

Most pairs do not overlap, and the priors of a program lie close together. So the program first
selects the ground truths that meet the common bounds of its priors, and computes IoUs for these
only. A skipped pair has an IoU of 0, which cannot change the result.

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
from mdssd.ops._settings import EncodeTargetsSettings, IgnorePriorsSettings, MatchPriorsSettings
from mdssd.ops.reference import matching as reference
from mdssd.ops.triton.common import (
    OPTIONS,
    area,
    blocks,
    encode,
    iou,
    load_four,
    store_four,
    to_corners,
)

PRIORS = 256  # priors per program
LIST = 32  # ground truths tested against the bounds at a time
TILE = 4  # ground truths compared with all priors at a time
FORCED = 64  # ground truths per program of force_kernel
_LOW = tl.constexpr(0x7FFFFFFF)


@triton.jit
def write(
    first_out, second_out, gt, gt_labels, priors, row, prior, box, begin, v0, v1, mask,
    ENCODE: tl.constexpr,
):  # fmt: skip
    """Write a match: its index in the image's list or, with ENCODE, its offsets and label.

    `box` is an index into the batch's ground truths. `begin` is the first one of the image; lower
    indices mean background.
    """
    hit = mask & (box >= begin)
    if ENCODE:
        zero = row.to(tl.float32) * 0
        ox, oy, ow, oh, label = zero, zero, zero, zero, row * 0
        if tl.max(hit.to(tl.int32), 0) > 0:  # most programs have only background
            x1, y1, x2, y2 = load_four(gt, box, hit)
            cx, cy, w, h = load_four(priors, prior, hit)
            ox, oy, ow, oh = encode(x1, y1, x2, y2, cx, cy, w, h, v0, v1)
            ox, oy = tl.where(hit, ox, 0.0), tl.where(hit, oy, 0.0)
            ow, oh = tl.where(hit, ow, 0.0), tl.where(hit, oh, 0.0)
            label = tl.load(gt_labels + box, mask=hit, other=0)
        store_four(first_out, row, ox, oy, ow, oh, mask)
        tl.store(second_out + row, label, mask=mask)
    else:
        tl.store(first_out + row, tl.where(hit, box - begin, -1), mask=mask)


@triton.jit
def match_kernel(
    gt, gt_labels, begins, priors, best_priors, first_out, second_out, num_priors, programs,
    threshold, eps, v0, v1,
    PRIORS: tl.constexpr, LIST: tl.constexpr, TILE: tl.constexpr, ENCODE: tl.constexpr,
    CORNERS: tl.constexpr,
):  # fmt: skip
    """Assign to each prior the box with the highest IoU, if this is at least `threshold`.

    `programs` programs share an image, and each has PRIORS of its `num_priors` priors.
    best_priors[box] becomes the maximum over all programs of a packed number. Its upper half has
    the bits of the IoU, which order like the IoU because it is not negative. Its lower half has the
    complement of the prior, so that the lower prior wins if IoUs are equal. It is 0 if no prior
    overlaps the box. Source: SSD, section 2.2.
    """
    image = tl.program_id(0) // programs
    first_prior = (tl.program_id(0) % programs) * PRIORS
    prior = first_prior + tl.arange(0, PRIORS)
    inside = prior < num_priors
    begin = tl.load(begins + image) - image
    boxes = (tl.load(begins + image + 1) - (image + 1) - begin).to(tl.int32)

    best = tl.full((PRIORS,), 0.0, tl.float32)
    best_box = tl.full((PRIORS,), 0, tl.int32)  # relative to `begin`
    if boxes > 0:
        x1, y1, x2, y2 = load_four(priors, prior.to(tl.int64), inside)
        if not CORNERS:
            x1, y1, x2, y2 = to_corners(x1, y1, x2, y2)
        own_area = area(x1, y1, x2, y2)
        # A prior with a NaN has IoUs of 0. It is replaced by an empty box, because the bounds must
        # not become NaN.
        real = inside & (own_area == own_area)
        x1, y1 = tl.where(real, x1, float("inf")), tl.where(real, y1, float("inf"))
        x2, y2 = tl.where(real, x2, float("-inf")), tl.where(real, y2, float("-inf"))
        left, top = tl.min(x1, 0), tl.min(y1, 0)
        right, bottom = tl.max(x2, 0), tl.max(y2, 0)
        for first in range(0, boxes, LIST):
            k = first + tl.arange(0, LIST)
            lx1, ly1, lx2, ly2 = load_four(gt, begin + k, k < boxes)
            meets = (k < boxes) & (lx1 < right) & (lx2 > left) & (ly1 < bottom) & (ly2 > top)
            rank = tl.cumsum(meets.to(tl.int32), 0)  # numbers the boxes that meet, from 1
            hits = tl.max(rank, 0)
            for start in range(0, hits, TILE):
                wanted = start + 1 + tl.arange(0, TILE)
                found = meets[None, :] & (rank[None, :] == wanted[:, None])
                box = tl.sum(tl.where(found, k[None, :], 0), 1).to(tl.int32)
                bx1, by1, bx2, by2 = load_four(gt, begin + box, wanted <= hits)
                value = iou(
                    bx1[:, None], by1[:, None], bx2[:, None], by2[:, None],
                    area(bx1, by1, bx2, by2)[:, None],
                    x1[None, :], y1[None, :], x2[None, :], y2[None, :], own_area[None, :],
                    eps,
                )  # fmt: skip
                # On a tie, the lowest box wins. Boxes of earlier iterations are lower.
                highest = tl.max(value, 0)
                winner = tl.min(tl.where(value == highest[None, :], box[:, None], _LOW), 0)
                best_box = tl.where(highest > best, winner, best_box)
                best = tl.where(highest > best, highest, best)
                # The best prior of each box.
                highest, lane = tl.max(value, 1, return_indices=True)
                low = _LOW - (first_prior + lane)
                packed = (highest.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low
                tl.atomic_max(best_priors + begin + box, packed, mask=highest > 0, sem="relaxed")

    row = image.to(tl.int64) * num_priors + prior
    matched = (boxes > 0) & (best >= threshold)
    box = begin + tl.where(matched, best_box, -1)
    write(
        first_out, second_out, gt, gt_labels, priors, row, prior.to(tl.int64), box, begin, v0, v1,
        inside, ENCODE,
    )  # fmt: skip
    if not ENCODE:
        tl.store(second_out + row, best, mask=inside)


@triton.jit
def force_kernel(
    gt, gt_labels, begins, priors, best_priors, first_out, second_out, num_priors, images, total,
    v0, v1, FORCED: tl.constexpr, ENCODE: tl.constexpr,
):  # fmt: skip
    """Assign to each box its best prior. If boxes of an image share one, the last box gets it.

    A program handles FORCED of all `total` boxes. It compares them with the later boxes of their
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
    packed = tl.load(best_priors + k, mask=inside, other=0)
    prior = tl.where(packed == 0, 0, _LOW - (packed & _LOW))  # prior 0 if none overlaps
    last = inside
    for first in range(start, tl.max(end, 0).to(tl.int32), FORCED):
        other = first + tl.arange(0, FORCED)
        packed = tl.load(best_priors + other, mask=other < total, other=0)
        other_prior = tl.where(packed == 0, 0, _LOW - (packed & _LOW))
        later = (other[:, None] > k[None, :]) & (other[:, None] < end[None, :])
        taken = later & (other_prior[:, None] == prior[None, :])
        last = last & (tl.max(taken.to(tl.int32), 0) == 0)
    write(
        first_out, second_out, gt, gt_labels, priors, image * num_priors + prior, prior,
        k.to(tl.int64), begin, v0, v1, last, ENCODE,
    )  # fmt: skip


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
    best_priors = torch.zeros(gt.shape[0], dtype=torch.int64, device=gt.device)
    encoded: dict[str, Any] = {"ENCODE": gt_labels is not None, **OPTIONS}
    programs = blocks(num_priors, PRIORS)
    match_kernel[(programs * images,)](
        gt, gt_labels, begins, priors, best_priors, *outputs, num_priors, programs,
        settings.iou_threshold, settings.iou_eps or None, *variances, PRIORS=PRIORS, LIST=LIST,
        TILE=TILE, CORNERS=settings.corners, num_warps=4, **encoded,
    )  # fmt: skip
    total = gt.shape[0]
    if total:
        force_kernel[(blocks(total, FORCED),)](
            gt, gt_labels, begins, priors, best_priors, *outputs, num_priors, images, total,
            *variances, FORCED=FORCED, num_warps=8, **encoded,
        )  # fmt: skip
    return outputs


def match_priors(
    gt: Tensor, offsets: Tensor, priors: Tensor, settings: MatchPriorsSettings
) -> tuple[Tensor, Tensor]:
    """Run `mdssd.ops.match_priors` on all boxes [sum of M_i, 4] with offsets [B + 1] on the CPU."""
    if settings[3:] != (None, 0, 1, None):
        return reference.match_priors(gt, offsets, priors, settings)
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
    if settings[4:] != (None, 0, 1, None):
        return reference.encode_targets(gt, gt_labels, offsets, priors, settings)
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
    return reference.ignore_priors(marks, ignored, offsets, priors, settings)
