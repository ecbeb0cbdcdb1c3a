"""soft_nms in Triton.

A program handles the boxes of one label, and mdssd/ops/_softening.py sorts them by label before and
by their lowered scores after. The program goes through its boxes once for each that it chooses: it
lowers their scores by the box chosen last and finds the best of them. A score is stored as the
integer of its bits, which orders as scores do, with NaN above all (csrc/soft_nms_math.h).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops import _softening
from mdssd.ops._settings import SoftNmsSettings
from mdssd.ops.triton.common import OPTIONS, area, iou, load_four, power_of_2

BOXES = 256  # boxes that a program handles at a time
NONE = tl.constexpr(2**31 - 1)  # larger than every position
NAN = tl.constexpr(0x7FC00000)  # the bits of every NaN


@triton.jit
def exp_of_minus(x):
    """Return e^-x for x >= 0; see csrc/soft_nms_math.h. The steps are those of the reference."""
    bounded = tl.where(x < 87.0, x, 87.0)
    shifted = bounded * 1.4426950408889634 + 12582912.0
    n = shifted - 12582912.0
    r = (n * 0.693359375 - bounded) + n * -2.12194440e-4
    total = r * 0 + 1 / 5040
    total = total * r + 1 / 720
    total = total * r + 1 / 120
    total = total * r + 1 / 24
    total = total * r + 1 / 6
    total = total * r + 0.5
    total = total * r + 1.0
    total = total * r + 1.0
    scale = ((127 - n.to(tl.int32)) << 23).to(tl.float32, bitcast=True)
    return tl.where(x <= 87.0, total * scale, 0.0)


@triton.jit
def live_key(score, least):
    """Return the integer that ranks a score, or -1 if it is below the least score."""
    key = (score + 0.0).to(tl.int32, bitcast=True)
    key = tl.where(score != score, NAN, key)
    return tl.where(score < least, -1, key)


@triton.jit
def softened_key(key, overlap, threshold, inverse_sigma, least, GAUSSIAN: tl.constexpr):
    """Return the key of a score after a chosen box of this IoU has lowered it."""
    if GAUSSIAN:
        factor = exp_of_minus(overlap * overlap * inverse_sigma)
    else:
        factor = tl.where(overlap > threshold, 1.0 - overlap, 1.0)
    lowered = live_key(key.to(tl.float32, bitcast=True) * factor, least)
    return tl.where(key < 0, -1, lowered)


@triton.jit
def soft_nms_kernel(
    boxes, scores, begins, ends, keys, softened, num_boxes, threshold, inverse_sigma, least, most,
    eps, BOXES: tl.constexpr, GAUSSIAN: tl.constexpr, IOS: tl.constexpr,
):  # fmt: skip
    """Choose boxes from begins[i] to ends[i] - 1 in program i, or of all.

    Step t chooses the t-th box, and lowers the scores of the others before it chooses the next.
    """
    begin = tl.program_id(0).to(tl.int64)
    n = num_boxes - begin
    if begins is not None:
        n = tl.load(ends + begin)
        begin = tl.load(begins + begin)
        n -= begin
    boxes += begin * 4
    scores += begin
    keys += begin
    softened += begin
    start = n * 0
    while start < n:
        k = start + tl.arange(0, BOXES)
        score = tl.load(scores + k, mask=k < n, other=0)
        tl.store(keys + k, live_key(score, least), mask=k < n)
        start += BOXES
    tl.debug_barrier()  # other threads of the program read and write these next
    last = n * 0 - 1  # the box chosen last
    count = n * 0
    lowest = tl.full((), 0, tl.int32)  # the key of the one that is number `most`
    goes_on = n > 0
    while goes_on:
        at = tl.where(last < 0, 0, last)
        x1, y1 = tl.load(boxes + at * 4), tl.load(boxes + at * 4 + 1)
        x2, y2 = tl.load(boxes + at * 4 + 2), tl.load(boxes + at * 4 + 3)
        size = area(x1, y1, x2, y2)
        top = tl.full((), -1, tl.int32)
        best = n * 0
        start = n * 0
        while start < n:
            k = start + tl.arange(0, BOXES)
            key = tl.load(keys + k, mask=k < n, other=-1)
            tl.debug_barrier()  # all threads have read what is written below
            if tl.max(key, 0) >= 0:
                ox1, oy1, ox2, oy2 = load_four(boxes, k, k < n)
                its_area = area(ox1, oy1, ox2, oy2)
                overlap = iou(x1, y1, x2, y2, size, ox1, oy1, ox2, oy2, its_area, eps, IOS)
                lowered = softened_key(key, overlap, threshold, inverse_sigma, least, GAUSSIAN)
                key = tl.where(last < 0, key, tl.where(k == last, -1, lowered))
                tl.store(keys + k, key, mask=k < n)
                own = tl.max(key, 0)
                first = tl.min(tl.where(key == own, k, NONE), 0)
                best = tl.where(own > top, first, best)
                top = tl.where(own > top, own, top)
            start += BOXES
        goes_on = (top >= 0) & ((count < most) | (top >= lowest))
        count += 1
        lowest = tl.where(count == most, top, lowest)
        last = best
        tl.store(softened + best, top.to(tl.float32, bitcast=True), mask=goes_on)
        tl.debug_barrier()  # other threads of the program may read these keys next


def run_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    bounds: tuple[Tensor, Tensor] | None,
    settings: SoftNmsSettings,
    iou_eps: float = 0.0,
    ios: bool = False,
) -> Tensor:
    """Return the lowered scores of the chosen boxes, and -inf for the others.

    `bounds` are where the boxes of each label begin and end. With None all are of one.
    """
    boxes, scores, num_boxes = boxes.contiguous(), scores.contiguous(), len(boxes)
    softened = torch.full_like(scores, -torch.inf)
    keys = torch.empty_like(scores, dtype=torch.int32)
    begins, ends = bounds or (None, None)
    most = num_boxes if settings.max_detections is None else settings.max_detections
    soft_nms_kernel[(1 if begins is None else len(begins),)](
        boxes, scores, begins, ends, keys, softened, num_boxes, settings.iou_threshold,
        1 / settings.sigma, settings.score_threshold, most, iou_eps or None,
        BOXES=power_of_2(num_boxes, BOXES), GAUSSIAN=settings.gaussian, IOS=ios, num_warps=4,
        **OPTIONS,
    )  # fmt: skip
    return softened


def soft_nms_padded(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, settings: SoftNmsSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `mdssd.ops.soft_nms_padded`."""

    def kernel(boxes: Tensor, scores: Tensor, starts: Tensor | None) -> Tensor:
        if starts is None:
            return run_soft_nms(boxes, scores, None, settings)
        # A program for each position; only those at which a label begins have boxes.
        begins = torch.arange(len(boxes), device=boxes.device)
        ends = torch.searchsorted(starts, starts, right=True)
        bounds = begins, torch.where(starts == begins, ends, begins)
        return run_soft_nms(boxes, scores, bounds, settings)

    return _softening.soften(boxes, scores, labels, settings, kernel)


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, settings: SoftNmsSettings
) -> tuple[Tensor, Tensor]:
    """Run `mdssd.ops.soft_nms`."""
    keep, kept_scores, count = soft_nms_padded(boxes, scores, labels, settings)
    found = int(count)  # waits for the device
    return keep[:found].clone(), kept_scores[:found].clone()  # not views of N rows
