"""merge_boxes in Triton.

The steps are those of csrc/cuda/merge_boxes.cu, and mdssd/ops/_merging.py says what comes between
them:
  parents_kernel  finds, for each box, the first of a list of earlier boxes that overlaps it.
  members_kernel  makes merged boxes of their members, one after the other, since each is compared
                  with what the box has grown to. A program handles many merged boxes at once.
  fused_kernel    is wbf, one image and label per program. It is serial: each box is compared with
                  the fused boxes that those before it have made.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops import _merging
from mdssd.ops._settings import MergeBoxesSettings
from mdssd.ops.triton.common import (
    OPTIONS,
    area,
    blocks,
    iou,
    larger,
    load_four,
    smaller,
    store_four,
)
from mdssd.ops.triton.nms import nms_padded

BOXES = 64  # boxes of a program of parents_kernel
CANDIDATES = 32  # earlier boxes that it compares with them at a time
BEGINS = 64  # entries of `members` at which a program of members_kernel looks
FUSED = 256  # fused boxes that a program of fused_kernel compares with a box at a time
NONE = tl.constexpr(2**31 - 1)  # larger than every position


@triton.jit
def parents_kernel(
    boxes, candidates, begin, end, parents, num_boxes, threshold,
    BOXES: tl.constexpr, CANDIDATES: tl.constexpr, IOS: tl.constexpr,
):  # fmt: skip
    """Set parents[i] to the first of candidates[begin[i]:end[i]] that overlaps box i, or to i.

    Neither `begin` nor `end` falls, so those of a program's boxes lie from the first begin to the
    last end.
    """
    first = tl.program_id(0) * BOXES
    i = first + tl.arange(0, BOXES)
    inside = i < num_boxes
    x1, y1, x2, y2 = load_four(boxes, i, inside)
    own_area = area(x1, y1, x2, y2)
    own_begin = tl.load(begin + i, mask=inside, other=0).to(tl.int32)
    own_end = tl.load(end + i, mask=inside, other=0).to(tl.int32)
    parent = i
    is_open = (own_begin < own_end).to(tl.int32)
    base = tl.load(begin + first).to(tl.int32)
    stop = tl.load(end + tl.minimum(first + BOXES, num_boxes) - 1).to(tl.int32)
    while (base < stop) & (tl.max(is_open, 0) > 0):
        k = base + tl.arange(0, CANDIDATES)
        candidate = k
        if candidates is not None:
            candidate = tl.load(candidates + k, mask=k < stop, other=0).to(tl.int32)
        ox1, oy1, ox2, oy2 = load_four(boxes, candidate, k < stop)
        value = iou(
            ox1[:, None], oy1[:, None], ox2[:, None], oy2[:, None],
            area(ox1, oy1, ox2, oy2)[:, None], x1[None, :], y1[None, :], x2[None, :], y2[None, :],
            own_area[None, :], None, IOS,
        )  # fmt: skip
        hit = (own_begin[None, :] <= k[:, None]) & (k[:, None] < own_end[None, :])
        hit = hit & (value > threshold)
        found = tl.min(tl.where(hit, candidate[:, None], NONE), 0)  # candidates rise
        parent = tl.where((is_open > 0) & (found != NONE), found, parent)
        is_open = tl.where(found != NONE, 0, is_open)
        base += CANDIDATES
    tl.store(parents + i, parent.to(tl.int64), mask=inside)


@triton.jit
def members_kernel(
    boxes, members, end, merged, num_boxes, threshold, BEGINS: tl.constexpr, IOS: tl.constexpr,
):  # fmt: skip
    """Make the merged boxes that begin at a program's entries of `members`, all at once.

    In step t, each is compared with its t-th member.
    """
    entry = tl.program_id(0) * BEGINS + tl.arange(0, BEGINS)
    inside = entry < num_boxes
    before = tl.load(end + entry - 1, mask=inside & (entry > 0), other=0)
    begins = inside & (before == entry)
    stop = tl.load(end + entry, mask=begins, other=0).to(tl.int32)
    first = tl.load(members + entry, mask=begins, other=0)
    x1, y1, x2, y2 = load_four(boxes, first, begins)
    k = entry + 1
    while tl.max((k < stop).to(tl.int32), 0) > 0:
        active = k < stop
        member = tl.load(members + k, mask=active, other=0)
        mx1, my1, mx2, my2 = load_four(boxes, member, active)
        own_area, its_area = area(x1, y1, x2, y2), area(mx1, my1, mx2, my2)
        value = iou(x1, y1, x2, y2, own_area, mx1, my1, mx2, my2, its_area, None, IOS)
        joins = active & (value > threshold)
        x1, y1 = tl.where(joins, smaller(x1, mx1), x1), tl.where(joins, smaller(y1, my1), y1)
        x2, y2 = tl.where(joins, larger(x2, mx2), x2), tl.where(joins, larger(y2, my2), y2)
        k += 1
    store_four(merged, first, x1, y1, x2, y2, begins)


@triton.jit
def fused_kernel(
    boxes, scores, starts, fused, sums, firsts, fused_boxes, fused_scores, is_first, num_boxes,
    threshold, models, FUSED: tl.constexpr, IOS: tl.constexpr,
):  # fmt: skip
    """Fuse the boxes of the group that begins at this program's position, if one does.

    Its fused boxes are entries begin, begin + 1, ... of `fused` [N, 4], of `sums` [N, 6] (the four
    sides weighted by the scores, the scores, the number of boxes) and of `firsts`.
    """
    begin = tl.program_id(0)
    i = tl.where(tl.load(starts + begin) == begin, begin, num_boxes)
    count = begin * 0
    lane = tl.arange(0, 8)  # of which the first four, or six, are used
    side = lane < 4
    while i < num_boxes:
        # The box as four numbers of one tile, and its sides for the comparison.
        box = tl.load(boxes + i * 4 + lane, mask=side, other=0)
        x1, y1 = tl.load(boxes + i * 4), tl.load(boxes + i * 4 + 1)
        x2, y2 = tl.load(boxes + i * 4 + 2), tl.load(boxes + i * 4 + 3)
        best, own = x1 * 0 + threshold, count
        start = begin * 0
        while start < count:
            k = start + tl.arange(0, FUSED)
            fx1, fy1, fx2, fy2 = load_four(fused, begin + k, k < count)
            value = iou(
                x1, y1, x2, y2, area(x1, y1, x2, y2), fx1, fy1, fx2, fy2,
                area(fx1, fy1, fx2, fy2), None, IOS,
            )  # fmt: skip
            value = tl.where(k < count, value, 0.0)
            top = tl.max(value, 0)
            at = tl.min(tl.where(value == top, k, NONE), 0)
            own = tl.where(top > best, at, own)
            best = tl.where(top > best, top, best)
            start += FUSED
        is_new = own == count
        place = begin + own
        score = tl.load(scores + i)
        term = tl.where(side, box * score, tl.where(lane == 4, score, 1.0))
        is_old = lane * 0 + own != count
        total = tl.load(sums + place * 6 + lane, mask=is_old & (lane < 6), other=0) + term
        weight = tl.sum(tl.where(lane == 4, total, 0.0), 0)
        mean = tl.div_rn(total, weight + total * 0)
        previous = tl.load(fused + place * 4 + lane, mask=side & is_old, other=0)
        mean = tl.where(weight > 0, mean, previous)
        tl.debug_barrier()  # all threads have read what is written now
        tl.store(sums + place * 6 + lane, total, mask=lane < 6)
        tl.store(fused + place * 4 + lane, tl.where(is_old, mean, box), mask=side)
        tl.store(firsts + place + lane * 0, i, mask=(lane == 0) & (is_old == 0))
        tl.store(is_first + i, is_new)
        count += is_new.to(tl.int32)
        tl.debug_barrier()  # other threads of the program read these boxes next
        i += 1
        following = tl.load(starts + tl.minimum(i, num_boxes - 1))
        i = tl.where(following == begin, i, num_boxes)  # at most num_boxes
    start = begin * 0
    while start < count:
        k = start + tl.arange(0, FUSED)
        inside = k < count
        at = tl.load(firsts + begin + k, mask=inside, other=0)
        fx1, fy1, fx2, fy2 = load_four(fused, begin + k, inside)
        store_four(fused_boxes, at, fx1, fy1, fx2, fy2, inside)
        weight = tl.load(sums + (begin + k) * 6 + 4, mask=inside, other=0)
        members = tl.load(sums + (begin + k) * 6 + 5, mask=inside, other=1)
        found = tl.minimum(members, models)
        score = tl.div_rn(tl.div_rn(weight, members) * found, models + found * 0)
        tl.store(fused_scores + at, score, mask=inside)
        start += FUSED


def _kernels(settings: MergeBoxesSettings) -> _merging.Kernels:
    threshold, ios = settings.threshold, settings.ios

    def parents(boxes: Tensor, candidates: Tensor | None, begin: Tensor, end: Tensor) -> Tensor:
        result = torch.zeros_like(begin)  # positions even if, as in compile_triton, nothing runs
        parents_kernel[(blocks(len(boxes), BOXES),)](
            boxes, candidates, begin, end, result, len(boxes), threshold, BOXES=BOXES,
            CANDIDATES=CANDIDATES, IOS=ios, num_warps=4, **OPTIONS,
        )  # fmt: skip
        return result

    def members(boxes: Tensor, members: Tensor, end: Tensor) -> Tensor:
        result = torch.empty_like(boxes)
        members_kernel[(blocks(len(boxes), BEGINS),)](
            boxes, members, end, result, len(boxes), threshold, BEGINS=BEGINS, IOS=ios,
            num_warps=2, **OPTIONS,
        )  # fmt: skip
        return result

    def fused(boxes: Tensor, scores: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_boxes = len(boxes)
        first = torch.empty_like(starts, dtype=torch.bool)
        result = torch.empty_like(boxes), torch.empty_like(scores), first
        own, sums = torch.empty_like(boxes), boxes.new_empty(num_boxes, 6)
        fused_kernel[(num_boxes,)](
            boxes, scores, starts, own, sums, torch.empty_like(starts), *result, num_boxes,
            threshold, float(settings.models), FUSED=FUSED, IOS=ios, num_warps=4, **OPTIONS,
        )  # fmt: skip
        return result

    return _merging.Kernels(nms_padded, parents, members, fused)


def merge_boxes_padded(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> tuple[Tensor, ...]:
    """Run `mdssd.ops.merge_boxes_padded`."""
    return _merging.merge(boxes, scores, labels, images, settings, _kernels(settings))


def merge_boxes(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> tuple[Tensor, ...]:
    """Run `mdssd.ops.merge_boxes`."""
    *rows, count = merge_boxes_padded(boxes, scores, labels, images, settings)
    found = int(count)  # waits for the device
    return tuple(row[:found].clone() for row in rows)  # not views of N rows
