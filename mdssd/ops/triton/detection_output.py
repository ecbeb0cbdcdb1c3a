"""detection_output in Triton.

Every (image, class) has a list of `capacity` candidates (1024 or 2048):
  1. scan_kernel reads the logits once, appends the scores above the threshold to the lists and
     counts them in histograms. In a trained network no list overflows, and the launches of steps 2
     and 3 return at once.
  2. For lists that overflow, select_kernel finds a bound that at least top_k and at most `capacity`
     candidates reach. This is a radix selection: if one histogram does not suffice, scan_kernel
     counts the next digit.
  3. scan_kernel fills these lists again, up to the bound.
  4. rank_kernel sorts: each candidate counts the better ones of its list. It also decodes boxes.
  5. suppress_kernel runs greedy NMS, one program per list.
  6. place_kernel writes the results: each kept box counts the better ones of its image, which gives
     its row.

Unlike in csrc/cuda/detection_output.cu, *smaller* keys are better. The key of a candidate is the
difference between the bits of 1 and those of its score, followed by the prior. All keys of a list
are distinct, so the selection always ends, there are no ties, and the result does not depend on the
order in which programs run. Memory is O(images x classes).

A thread has 8 to 32 numbers of a tile, with which no kernel spills registers.
"""

from __future__ import annotations

import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from mdssd.ops._checks import check_gpu_limits
from mdssd.ops._results import new_detections
from mdssd.ops._settings import DetectionOutputSettings
from mdssd.ops.reference import detection_output as reference
from mdssd.ops.triton.common import (
    _INTERPRETED,
    OPTIONS,
    blocks,
    decode,
    divisor,
    load_four,
    power_of_2,
    store_four,
)

DIGIT_BITS = tl.constexpr(11)
BINS = tl.constexpr(2048)
ONE = tl.constexpr(0x3F800000)  # bits of 1.0
WORST = tl.constexpr(2**63 - 1)  # larger than every key

TILE = 2048  # logits that a program of 8 warps handles at a time
SCAN_PROGRAMS = 4096  # several per multiprocessor, but few enough for an idle launch to end quickly
RANK_PROGRAMS = 128
RANKED, OTHERS = 128, 64  # a program compares RANKED candidates with OTHERS at a time
SUPPRESSED = 64  # boxes per tile of suppress_kernel
# Boxes of a program of place_kernel, and lists that it searches at once; 32 would spill on sm_80.
PLACED, LISTS = 64, 16


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


@triton.jit(do_not_specialize=["level", "levels", "shift"])
def scan_kernel(
    logits, candidates, size, histogram, need, bound, flags, images, num_priors, classes,
    threshold, log_threshold, index_bits, level, levels, shift,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, WAYS: tl.constexpr, CAPACITY: tl.constexpr,
    SOFTMAX: tl.constexpr,
):  # fmt: skip
    """Compute scores and, by level, append them to the lists or count them.

    The scores are the softmax of the rows of logits [images, num_priors, classes]. Without SOFTMAX
    the rows are scores, and `log_threshold` is the plain threshold. A program loops over blocks of
    ROWS rows of one image, with all classes in one tile.

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
        background = tl.sum(tl.where(c[None, :] == 0, x, 0.0), 1)
        foreground = tl.max(tl.where(c[None, :] > 0, x, -float("inf")), 1)
        if not SOFTMAX:
            background = background * 0
            foreground = tl.max(tl.where((c > 0)[None, :] & (x <= 1), x, 0.0), 1)
        hopeful = (foreground - background >= log_threshold) & (r < num_priors - first_row)
        if tl.max(hopeful.to(tl.int32), 0) > 0:
            score = x
            if SOFTMAX:
                top = tl.where(background > foreground, background, foreground)
                e = exp(x - top[:, None])
                score = tl.div_rn(e, tl.sum(e, 1)[:, None] + tl.zeros_like(e))
            passes = (score > threshold) & (score <= 1) & inside & (c > 0)[None, :]
            distance = -(score.to(tl.int32, bitcast=True) - ONE).to(tl.int64)
            key = (distance << index_bits) | (first_row + r)[:, None]
            # Class c of the image has list skip + c. Class 0 has none.
            skip = image * (classes - 1) - 1
            listed = (c > 0) & (c < classes)
            limit = tl.load(bound + skip + c, mask=listed, other=0)[None, :]
            if level < levels:
                searched = tl.load(need + skip + c, mask=listed, other=0)
                searched = tl.where(level == 0, 1, searched)[None, :] > 0
                here = passes & searched & ((key >> (shift + DIGIT_BITS)) == limit)
                digit = ((key >> shift) & (BINS - 1)).to(tl.int32)
                bins = histogram + skip * BINS + (c[None, :] * BINS + digit)
                tl.atomic_add(bins, tl.full(key.shape, 1, tl.int32), mask=here, sem="relaxed")
            if level % levels == 0:
                wanted = passes & (key < tl.where(level == 0, WORST, limit))
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
def rank_kernel(
    loc, priors, candidates, size, keys, boxes, num_priors, classes, index_bits, top_k, v0, v1,
    max_log_scale, clip_low, clip_width, clip_height, parts, CAPACITY: tl.constexpr,
    RANKED: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Sort the lists: the rank of a candidate is the number of smaller keys in its list.

    The best top_k candidates are written by rank to `keys` [lists, top_k], and their decoded boxes
    to `boxes` [lists, top_k, 4]. The keys written there order detections of all classes: by the
    difference of the score's bits, then by lower prior, then by lower class. `parts` programs share
    a list, and each loops over blocks of RANKED keys.
    """
    i = (tl.program_id(0) // parts).to(tl.int64)
    image, label = i // (classes - 1), i % (classes - 1) + 1
    found = tl.load(size + i)
    row = candidates + i * CAPACITY
    for first in range(tl.program_id(0) % parts * RANKED, found, parts * RANKED):
        mine = first + tl.arange(0, RANKED)
        key = tl.load(row + mine, mask=mine < found, other=0)
        smaller = tl.zeros((RANKED, OTHERS), tl.int32)
        for start in range(0, found, OTHERS):
            other = start + tl.arange(0, OTHERS)
            its_key = tl.load(row + other, mask=other < found, other=WORST)
            smaller += (its_key[None, :] < key[:, None]).to(tl.int32)
        rank = tl.sum(smaller, 1)
        best = (mine < found) & (rank < top_k)
        prior = key & ((tl.full((), 1, tl.int64) << index_bits) - 1)
        ox, oy, ow, oh = load_four(loc, image * num_priors + prior, best)
        cx, cy, w, h = load_four(priors, prior, best)
        x1, y1, x2, y2 = decode(ox, oy, ow, oh, cx, cy, w, h, v0, v1, max_log_scale)
        x1, x2 = clamp(x1, clip_low, clip_width), clamp(x2, clip_low, clip_width)
        y1, y2 = clamp(y1, clip_low, clip_height), clamp(y2, clip_low, clip_height)
        place = i * top_k + rank
        store_four(boxes, place, x1, y1, x2, y2, best)
        detection = ((key >> index_bits) << 32) | (prior * classes + label)
        tl.store(keys + place, detection, mask=best)


@triton.jit
def clamp(x, low, high):
    """Clamp x to [low, high]; a NaN stays."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def over(
    ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, threshold, eps, KEEP_EMPTY: tl.constexpr,
    IOS: tl.constexpr,
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
    result = tl.div_rn(intersection, whole) > threshold
    if not KEEP_EMPTY:
        result = result | ((area_a == 0)[:, None] & (area_b == 0)[None, :])
    return result


@triton.jit
def suppress_kernel(
    keys, boxes, size, kept_keys, kept_boxes, kept_size, top_k, most, threshold, eps,
    TILE: tl.constexpr, KEEP_EMPTY: tl.constexpr, IOS: tl.constexpr,
):  # fmt: skip
    """Run greedy NMS on `boxes` [lists, top_k, 4], sorted by falling score, one list per program.

    The program goes through the boxes in tiles. It compares all boxes kept so far with the tile,
    and then the pairs within the tile. For these, it applies
        alive[j] = not any(alive[i] and over[i, j] for i < j)
    until nothing changes. After t rounds the first t boxes are final, and chains of suppression are
    short, so a few rounds suffice. The program stops after `most` boxes, because more boxes of a
    class cannot be among the best of the image.
    """
    i = tl.program_id(0).to(tl.int64)
    found = tl.load(size + i)
    n = tl.where(found < top_k, found, top_k)
    t = tl.arange(0, TILE)
    keys += i * top_k
    boxes += i * top_k * 4
    kept_keys += i * most
    kept_boxes += i * most * 4
    kept = found * 0
    first = found * 0
    while (first < n) & (kept < most):
        mine = first + t
        x1, y1, x2, y2 = load_four(boxes, mine, mine < n)
        is_box = (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2)  # no NaN
        alive = ((mine < n) & is_box).to(tl.int32)
        for start in range(0, kept, TILE):
            other = start + t
            ox1, oy1, ox2, oy2 = load_four(kept_boxes, other, other < kept)
            hit = over(ox1, oy1, ox2, oy2, x1, y1, x2, y2, threshold, eps, KEEP_EMPTY, IOS)
            hit = hit & (other < kept)[:, None]
            alive = tl.where(tl.max(hit.to(tl.int32), 0) > 0, 0, alive)
        if tl.max(alive, 0) > 0:
            hit = over(x1, y1, x2, y2, x1, y1, x2, y2, threshold, eps, KEEP_EMPTY, IOS)
            hit = (hit & (t[:, None] < t[None, :])).to(tl.int32)
            candidates = alive
            changed = n * 0 + 1
            while changed > 0:
                suppressed = tl.max(hit * alive[:, None], 0)
                now = candidates * (1 - suppressed)
                changed = tl.max((now != alive).to(tl.int32), 0)
                alive = now
            place = kept + tl.cumsum(alive, 0) - 1
            fits = (alive > 0) & (place < most)
            key = tl.load(keys + mine, mask=mine < n, other=0)
            tl.store(kept_keys + place, key, mask=fits)
            store_four(kept_boxes, place, x1, y1, x2, y2, fits)
            kept += tl.sum(alive, 0)
            tl.debug_barrier()  # other threads of the program read these boxes next
        first += TILE
    tl.store(kept_size + i, tl.where(kept < most, kept, most))


@triton.jit
def place_kernel(
    kept_keys, kept_boxes, kept_size, boxes, scores, labels, count, foreground, joined, most,
    PLACED: tl.constexpr, LISTS: tl.constexpr, STEPS: tl.constexpr, MOST: tl.constexpr,
    FOREGROUND: tl.constexpr,
):  # fmt: skip
    """Write each kept box to a row of the result: the number of smaller keys among its rivals.

    The rivals are the boxes of `joined` consecutive lists: those of all `foreground` classes of the
    image or, with results per class, only its own. The lists are sorted, so a binary search of
    STEPS steps counts the smaller keys of each. A program handles one list, PLACED boxes at a time,
    and stops when the rows reach `most`. The program of the first list also writes the count and
    fills the remaining rows with zeros.
    """
    i = tl.program_id(0).to(tl.int64)
    image = i // joined
    lists = image * joined
    if i == lists:
        c = tl.arange(0, FOREGROUND)
        total = tl.sum(tl.load(kept_size + lists + c, mask=c < joined, other=0).to(tl.int64), 0)
        total = tl.where(total < most, total, most)
        row = tl.arange(0, MOST)
        unused = (row >= total) & (row < most)
        zero = tl.zeros((MOST,), tl.float32)
        store_four(boxes, image * most + row, zero, zero, zero, zero, unused)
        tl.store(scores + image * most + row, zero, mask=unused)
        tl.store(labels + image * most + row, zero.to(tl.int64), mask=unused)
        tl.store(count + image, total)
    n = tl.load(kept_size + i)
    first = n * 0
    while first < n:
        mine = first + tl.arange(0, PLACED)
        key = tl.load(kept_keys + i * most + mine, mask=mine < n, other=WORST)
        place = tl.where(mine < n, 0, most)
        start = n * 0
        while (start < joined) & (tl.min(place, 0) < most):
            other = start + tl.arange(0, LISTS)
            sizes = tl.load(kept_size + lists + other, mask=other < joined, other=0)[None, :]
            before = kept_keys + (lists + other[None, :]) * most - 1
            smaller = tl.zeros((PLACED, LISTS), tl.int32)
            for step in tl.static_range(STEPS):
                probe = smaller + (1 << (STEPS - 1 - step))
                its_key = tl.load(before + probe, mask=probe <= sizes, other=WORST)
                smaller = tl.where(its_key < key[:, None], probe, smaller)
            place += tl.sum(smaller, 1)
            start += LISTS
        best = place < most
        row = image * most + place
        x1, y1, x2, y2 = load_four(kept_boxes, i * most + mine, best)
        store_four(boxes, row, x1, y1, x2, y2, best)
        score = (-((key >> 32) - ONE)).to(tl.int32).to(tl.float32, bitcast=True)
        tl.store(scores + row, score, mask=best)
        tl.store(labels + row, (i % foreground + 1) + mine * 0, mask=best)
        # Later boxes of the list have higher rows.
        first = tl.where(tl.min(place, 0) < most, first + PLACED, n)


def _bits(x: float) -> int:
    """Return the bits of the float32 nearest to x."""
    return int(struct.unpack("I", struct.pack("f", x))[0])


def detection_output(
    loc: Tensor, logits: Tensor, priors: Tensor, settings: DetectionOutputSettings
) -> tuple[Tensor, ...]:
    """Run `mdssd.ops.detection_output`."""
    if not settings.is_plain:
        return reference.detection_output(loc, logits, priors, settings)
    check_gpu_limits(logits, settings)
    images, num_priors, classes = logits.shape
    top_k, max_detections = min(settings.top_k, num_priors), settings.max_detections
    score_threshold = settings.score_threshold
    boxes, scores, labels, count = result = new_detections(loc, logits, settings)
    if images == 0 or num_priors == 0 or score_threshold == 1:
        return result
    loc, logits, priors = loc.contiguous(), logits.contiguous(), priors.float().contiguous()
    lists = images * (classes - 1)

    index_bits = (num_priors - 1).bit_length()
    bits = (_bits(1.0) - _bits(score_threshold)).bit_length() + index_bits
    # A list has room for top_k candidates and for the cell that the last digit does not divide,
    # which has at most capacity / 2 keys.
    capacity = 2 * max(512, power_of_2(top_k, 1024))
    levels = max(1, blocks(bits - (capacity // 2).bit_length() + 1, DIGIT_BITS.value))
    shifts = [max(0, bits - (level + 1) * DIGIT_BITS.value) for level in range(levels)]
    # A single tensor, so that a single launch fills it with zeros.
    zeros = loc.new_zeros(lists * (BINS.value + 4) + levels + 1, dtype=torch.int32)
    bound, need, size, histogram, flags = zeros.split(
        [2 * lists, lists, lists, lists * BINS.value, levels + 1]
    )
    bound = bound.view(torch.int64)
    candidates = loc.new_empty(lists, capacity, dtype=torch.int64)

    block_c = power_of_2(classes, 1 << 20)
    rows = max(1, TILE // block_c)
    warps = min(16, 8 * blocks(block_c, TILE))
    # The margin of 1e-3 covers the rounding of the softmax.
    log_threshold = math.log(score_threshold) - 1e-3 if score_threshold > 0 else -math.inf
    if not settings.softmax:
        log_threshold = score_threshold
    programs = min(SCAN_PROGRAMS, images * blocks(num_priors, rows))
    for level in range(levels + 1):
        shift = shifts[level] if level < levels else 0
        scan_kernel[(programs,)](
            logits, candidates, size, histogram, need, bound, flags, images, num_priors, classes,
            score_threshold, log_threshold, index_bits, level, levels, shift, ROWS=rows,
            BLOCK_C=block_c, WAYS=max(1, 64 * warps // block_c), CAPACITY=capacity,
            SOFTMAX=settings.softmax, num_warps=warps, **OPTIONS,
        )  # fmt: skip
        if level == levels or num_priors <= capacity:  # no list can overflow
            break
        select_kernel[(lists,)](
            size, histogram, need, bound, flags, top_k, level, shift, CAPACITY=capacity,
            num_warps=4, **OPTIONS,
        )  # fmt: skip

    keys = loc.new_empty(lists, top_k, dtype=torch.int64)
    sorted_boxes = loc.new_empty(lists, top_k, 4, dtype=torch.float32)
    parts = max(1, min(capacity // RANKED, RANK_PROGRAMS // lists))
    clipped = settings.clip_width is not None
    limits = (
        math.inf if settings.max_log_scale is None else settings.max_log_scale,
        0.0 if clipped else -math.inf,
        settings.clip_width if clipped else math.inf,
        settings.clip_height if clipped else math.inf,
    )
    rank_kernel[(lists * parts,)](
        loc, priors, candidates, size, keys, sorted_boxes, num_priors, classes, index_bits, top_k,
        settings.v0, settings.v1, *limits, parts, CAPACITY=capacity, RANKED=RANKED,
        OTHERS=OTHERS, num_warps=8, **OPTIONS,
    )  # fmt: skip
    kept_keys = loc.new_empty(lists, max_detections, dtype=torch.int64)
    kept_boxes = loc.new_empty(lists, max_detections, 4, dtype=torch.float32)
    kept_size = torch.empty_like(size)
    suppress_kernel[(lists,)](
        keys, sorted_boxes, size, kept_keys, kept_boxes, kept_size, top_k, max_detections,
        settings.nms_threshold, settings.iou_eps or None, TILE=SUPPRESSED,
        KEEP_EMPTY=settings.keep_empty, IOS=settings.ios, num_warps=16, **OPTIONS,
    )  # fmt: skip
    most_kept = min(top_k, max_detections)
    joined = 1 if settings.per_class else classes - 1
    place_kernel[(lists,)](
        kept_keys, kept_boxes, kept_size, boxes, scores, labels, count, classes - 1, joined,
        max_detections, PLACED=PLACED, LISTS=power_of_2(joined, LISTS),
        STEPS=most_kept.bit_length(), MOST=power_of_2(max_detections, 1024),
        FOREGROUND=power_of_2(joined, 1 << 20), num_warps=8, **OPTIONS,
    )  # fmt: skip
    return result
