"""The first half of detection_output in Triton: scores, lists of candidates and their bounds.

detection_output.py describes it.
"""

from __future__ import annotations

import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from mdssd.ops._settings import DetectionOutputSettings
from mdssd.ops.triton.common import (
    _INTERPRETED,
    OPTIONS,
    blocks,
    divisor,
    power_of_2,
    squared_distance,
)

DIGIT_BITS = tl.constexpr(11)
BINS = tl.constexpr(2048)
ONE = tl.constexpr(0x3F800000)  # bits of 1.0
WORST = tl.constexpr(2**63 - 1)  # larger than every key

TILE = 2048  # logits that a program of 8 warps handles at a time
SCAN_PROGRAMS = 4096  # several per multiprocessor, but few enough for an idle launch to end quickly


@triton.jit
def exp(x):
    """Return e^x, rounded as well as PyTorch's; tl.exp could change the order of close scores."""
    if _INTERPRETED:
        return tl.exp(x.to(tl.float64)).to(tl.float32)
    else:
        return libdevice.exp(x)


@triton.jit
def append(wanted, key, c, candidates, size, flags, WAYS: tl.constexpr, CAPACITY: tl.constexpr):
    """Append the wanted keys [rows, classes] to the lists of their classes if there is room.

    The program reserves room with one atomic per class. The atomic's tile has WAYS rows, of which
    one is used, so that every thread has an element of its own: up to Triton 3.4 the result of an
    atomic is wrong in threads that duplicate an element (triton issue 7402). Overflowed lists are
    skipped, which saves atomics.
    """
    # The casts are for the interpreter of Triton 3.2, which sums int32 in 64 bits.
    count = tl.sum(wanted.to(tl.int32), 0).to(tl.int64).to(tl.int32)
    way = tl.arange(0, WAYS)[:, None]
    counts = tl.where(way == 0, count[None, :], 0)
    at = size + c[None, :] + 0 * way
    seen = tl.load(at, mask=counts > 0, other=0, volatile=True)
    room = (counts > 0) & (seen <= CAPACITY)
    grown = tl.atomic_add(at, counts, mask=room, sem="relaxed")
    first = tl.sum(tl.where(room, grown, seen), 0)
    place = first[None, :] + tl.cumsum(wanted.to(tl.int32), 0) - 1
    tl.store(candidates + (c[None, :] * CAPACITY + place), key, mask=wanted & (place < CAPACITY))
    tl.store(flags + 0 * c, 1, mask=first + count > CAPACITY)


@triton.jit
def append_each(wanted, key, of, candidates, size, flags, CAPACITY: tl.constexpr):
    """Append the wanted keys [rows, classes] to the lists `of`, with an atomic for each key."""
    seen = tl.load(size + of, mask=wanted, other=0, volatile=True)
    room = wanted & (seen <= CAPACITY)
    one = tl.full(key.shape, 1, tl.int32)
    place = tl.atomic_add(size + of, one, mask=room, sem="relaxed")
    place = tl.where(room, place, CAPACITY)
    tl.store(candidates + (of * CAPACITY + place), key, mask=wanted & (place < CAPACITY))
    tl.store(flags + 0 * of, 1, mask=wanted & (place >= CAPACITY))


@triton.jit(do_not_specialize=["level", "levels", "shift"])
def scan_kernel(
    logits, candidates, size, histogram, need, bound, flags, ends, maps, images, num_priors,
    classes, threshold, log_threshold, index_bits, level, levels, shift,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, WAYS: tl.constexpr, CAPACITY: tl.constexpr,
    SOFTMAX: tl.constexpr, SIGMOID: tl.constexpr, FIRST: tl.constexpr, JOINT: tl.constexpr,
):  # fmt: skip
    """Compute scores and, by level, append them to the lists or count them.

    The scores are the softmax or sigmoid of the rows of logits [images, num_priors, classes], or
    the rows are scores, and `log_threshold` is the plain threshold. Columns below FIRST are not
    classes. A program loops over blocks of ROWS rows of one image, with all classes in one tile.
    A list is that of a class or, if they are JOINT, of a feature map, of which `maps` end at the
    priors `ends`.

    Level 0 appends the scores above the threshold and counts them by the first digit of their keys.
    The levels between 0 and `levels` count those in the cells of unfinished lists by the next
    digit.
    Level `levels` appends those within the lists' bounds. All levels are one kernel, because two
    kernels could sum a row in different orders and compute scores that differ in the last bit.
    """
    per_image = (num_priors + ROWS - 1) // ROWS
    busy = (level == 0) | (tl.load(flags + level % levels) != 0)
    stop = tl.where(busy, images * per_image, 0)
    r = tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    for block in range(tl.program_id(0), stop, tl.num_programs(0)):
        image = (block // per_image).to(tl.int64)
        first_row = (block % per_image).to(tl.int64) * ROWS
        inside = (r < num_priors - first_row)[:, None] & (c < classes)[None, :]
        tile = logits + (image * num_priors + first_row) * classes
        x = tl.load(tile + (r[:, None] * classes + c[None, :]), mask=inside, other=0)
        x = tl.where((c < classes)[None, :], x.to(tl.float32), -float("inf"))
        # A score is at most exp(logit - background logit), and comparing this bound with the
        # threshold needs no exponential. The exact test rejects rows that pass by mistake.
        own = (c >= FIRST) & (c < classes)
        background = tl.sum(tl.where(c[None, :] == 0, x, 0.0), 1)
        foreground = tl.max(tl.where(own[None, :], x, -float("inf")), 1)
        top = foreground
        if FIRST > 0:
            top = tl.where(background > foreground, background, foreground)
        if SOFTMAX and FIRST == 0:
            foreground = foreground * 0 + float("inf")  # there is no such bound
        if not SOFTMAX:
            background = background * 0
            usable = own[None, :]
            if not SIGMOID:
                usable = usable & (x <= 1)
            foreground = tl.max(tl.where(usable & (x == x), x, -float("inf")), 1)
        hopeful = (foreground - background >= log_threshold) & (r < num_priors - first_row)
        if tl.max(hopeful.to(tl.int32), 0) > 0:
            score = x
            if SOFTMAX:
                e = exp(x - top[:, None])
                score = tl.div_rn(e, tl.sum(e, 1)[:, None] + tl.zeros_like(e))
            if SIGMOID:
                one = tl.full(x.shape, 1.0, tl.float32)
                score = tl.div_rn(one, one + exp(-x))
            passes = (score > threshold) & (score <= 1) & inside & own[None, :]
            distance = -(score.to(tl.int32, bitcast=True) - ONE).to(tl.int64)
            if JOINT:
                map_of = (first_row + r) * 0
                for m in range(0, maps - 1):
                    map_of += (first_row + r >= tl.load(ends + m)).to(tl.int64)
                mine = image * maps + map_of
                index = (first_row + r)[:, None] * (classes - FIRST) + (c - FIRST)[None, :]
                limit = tl.load(bound + mine)[:, None]
                searched = tl.load(need + mine)[:, None]
                of = mine[:, None] + 0 * c[None, :]
            else:
                # Column c of the image has list skip + c.
                skip = image * (classes - FIRST) - FIRST
                index = (first_row + r)[:, None]
                limit = tl.load(bound + skip + c, mask=own, other=0)[None, :]
                searched = tl.load(need + skip + c, mask=own, other=0)[None, :]
                of = skip + c[None, :] + 0 * r[:, None]
            key = (distance << index_bits) | index
            if level < levels:
                counted = tl.where(level == 0, 1, searched) > 0
                here = passes & counted & ((key >> (shift + DIGIT_BITS)) == limit)
                digit = ((key >> shift) & (BINS - 1)).to(tl.int32)
                bins = histogram + (of * BINS + digit)
                tl.atomic_add(bins, tl.full(key.shape, 1, tl.int32), mask=here, sem="relaxed")
            if level % levels == 0:
                wanted = passes & (key < tl.where(level == 0, WORST, limit))
                if JOINT:
                    append_each(wanted, key, of, candidates, size, flags, CAPACITY)
                else:
                    row = candidates + skip * CAPACITY
                    append(wanted, key, c, row, size + skip, flags, WAYS, CAPACITY)


@triton.jit(do_not_specialize=["level", "shift"])
def select_kernel(size, histogram, need, bound, flags, top_k, level, shift, CAPACITY: tl.constexpr):
    """Find the next digit of a list's bound: that of the candidate of rank `need` in its cell.

    A program handles one list. While `need` is above 0, `bound` has the digits found so far;
    afterwards, it is the bound.
    """
    i = tl.program_id(0).to(tl.int64)
    wanted = tl.load(need + i)
    if level == 0:
        wanted = tl.where(tl.load(size + i) > CAPACITY, top_k, 0)
    if (tl.load(flags + level) != 0) & (wanted > 0):
        digit = tl.arange(0, BINS)
        row = histogram + i * BINS + digit
        counts = tl.load(row).to(tl.uint32, bitcast=True).to(tl.int64)
        up_to = tl.cumsum(counts, 0)
        found = tl.sum((up_to < wanted).to(tl.int32), 0)
        before = tl.sum(tl.where(digit < found, counts, 0), 0)
        cell = tl.sum(tl.where(digit == found, counts, 0), 0)
        prefix = (tl.load(bound + i) << DIGIT_BITS) | found
        settled = top_k - wanted + before + cell <= CAPACITY
        tl.store(bound + i, tl.where(settled, (prefix + 1) << shift, prefix))
        tl.store(need + i, tl.where(settled, 0, wanted - before).to(tl.int32))
        tl.store(flags + level + 1, 1, mask=settled == 0)
        tl.store(size + i, 0)
        tl.store(row, tl.zeros_like(digit))  # for the next digit


@triton.jit
def clamp(x, low, high):
    """Clamp x to [low, high]; a NaN stays."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def over(
    ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, threshold, eps, KEEP_EMPTY: tl.constexpr,
    IOS: tl.constexpr, DIOU: tl.constexpr,
):  # fmt: skip
    """Return [A, B]: whether the overlap of boxes a [A] and b [B] is above the threshold.

    Unless KEEP_EMPTY, also whether both areas are 0. This is `iou` of common.py without the steps
    that matter only for its value: a NaN makes an area NaN, and the comparison is then false.
    """
    width = tl.minimum(ax2[:, None], bx2[None, :]) - tl.maximum(ax1[:, None], bx1[None, :])
    height = tl.minimum(ay2[:, None], by2[None, :]) - tl.maximum(ay1[:, None], by1[None, :])
    intersection = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    area_a, area_b = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    whole = divisor(area_a[:, None], area_b[None, :], intersection, eps, IOS)
    value = tl.div_rn(intersection, whole)
    if DIOU:
        value -= squared_distance(
            ax1[:, None], ay1[:, None], ax2[:, None], ay2[:, None],
            bx1[None, :], by1[None, :], bx2[None, :], by2[None, :],
        )  # fmt: skip
    result = value > threshold
    if not KEEP_EMPTY:
        result = result | ((area_a == 0)[:, None] & (area_b == 0)[None, :])
    return result


def _bits(x: float) -> int:
    """Return the bits of the float32 nearest to x."""
    return int(struct.unpack("I", struct.pack("f", x))[0])


def decoding_limits(settings: DetectionOutputSettings) -> tuple[float, float, float, float]:
    """Return the limits of a box's growth and of its corners, infinite if there is none."""
    clipped = settings.clip_width is not None and settings.clip_height is not None
    return (
        math.inf if settings.max_log_scale is None else settings.max_log_scale,
        0.0 if clipped else -math.inf,
        settings.clip_width if settings.clip_width is not None else math.inf,
        settings.clip_height if settings.clip_height is not None else math.inf,
    )


def _raw_threshold(settings: DetectionOutputSettings) -> float:
    """Return what a score's raw number must reach; the margins cover the rounding of the score."""
    threshold = settings.score_threshold
    if settings.softmax:
        return math.log(threshold) - 1e-3
    if not settings.sigmoid:
        return threshold
    below = threshold * (1 - 1e-6)
    return math.log(below) - math.log1p(-below) - 1e-3


def find_candidates(
    logits: Tensor, settings: DetectionOutputSettings, top_k: int, ends: Tensor | None = None
) -> tuple[Tensor, Tensor, int]:
    """Return lists [lists, capacity] with at least the best `top_k` of each, and their sizes.

    The lists are those of the classes of each image or, with `ends`, of its feature maps. The last
    result is the number of bits of a key's index, of a prior or, with `ends`, of a prior and class.
    """
    images, num_priors, classes = logits.shape
    foreground = classes - settings.background
    maps = foreground if ends is None else len(ends)
    lists, most = images * maps, num_priors * (1 if ends is None else foreground)
    index_bits = (most - 1).bit_length()
    bits = (_bits(1.0) - _bits(settings.score_threshold)).bit_length() + index_bits
    # A list has room for top_k candidates and for the cell that the last digit does not divide,
    # which has at most capacity / 2 keys.
    capacity = 2 * max(512, power_of_2(top_k, 1 << 40))
    levels = max(1, blocks(bits - (capacity // 2).bit_length() + 1, DIGIT_BITS.value))
    shifts = [max(0, bits - (level + 1) * DIGIT_BITS.value) for level in range(levels)]
    # A single tensor, so that a single launch fills it with zeros.
    zeros = logits.new_zeros(lists * (BINS.value + 4) + levels + 1, dtype=torch.int32)
    bound, need, size, histogram, flags = zeros.split(
        [2 * lists, lists, lists, lists * BINS.value, levels + 1]
    )
    bound = bound.view(torch.int64)
    candidates = logits.new_empty(lists, capacity, dtype=torch.int64)

    block_c = power_of_2(classes, 1 << 20)
    rows = max(1, TILE // block_c)
    warps = min(16, 8 * blocks(block_c, TILE))
    programs = min(SCAN_PROGRAMS, images * blocks(num_priors, rows))
    for level in range(levels + 1):
        shift = shifts[level] if level < levels else 0
        scan_kernel[(programs,)](
            logits, candidates, size, histogram, need, bound, flags, ends, maps, images,
            num_priors, classes, settings.score_threshold, _raw_threshold(settings), index_bits,
            level, levels, shift, ROWS=rows, BLOCK_C=block_c, WAYS=max(1, 64 * warps // block_c),
            CAPACITY=capacity, SOFTMAX=settings.softmax, SIGMOID=settings.sigmoid,
            FIRST=int(settings.background), JOINT=ends is not None, num_warps=warps, **OPTIONS,
        )  # fmt: skip
        if level == levels or most <= capacity:  # no list can overflow
            break
        select_kernel[(lists,)](
            size, histogram, need, bound, flags, top_k, level, shift, CAPACITY=capacity,
            num_warps=4, **OPTIONS,
        )  # fmt: skip
    return candidates, size, index_bits
