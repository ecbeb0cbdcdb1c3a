"""detection_output in Triton.

Every (image, class) has a list of `capacity` candidates (at least 1024):
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

Where the candidates of all classes count together, detection_joint.py continues after step 3. The
ranking takes a number of comparisons that grows with the square of the lists, so larger limits than
1024 are slower.

A thread has 8 to 32 numbers of a tile, with which no kernel spills registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._checks import check_gpu_limits
from mdssd.ops._results import new_detections
from mdssd.ops._settings import DetectionOutputSettings
from mdssd.ops.triton.common import OPTIONS, decode, load_four, power_of_2, store_four
from mdssd.ops.triton.detection_joint import detect_jointly
from mdssd.ops.triton.detection_scan import (
    ONE,
    WORST,
    clamp,
    decoding_limits,
    find_candidates,
    over,
)
from mdssd.ops.triton.detection_soft import Candidates, detect_softly

RANK_PROGRAMS = 128
RANKED, OTHERS = 128, 64  # a program compares RANKED candidates with OTHERS at a time
# Boxes per tile of suppress_kernel; half as many by the DIoU, which takes more registers.
SUPPRESSED = 64
# Boxes of a program of place_kernel, and lists that it searches at once; 32 would spill on sm_80.
PLACED, LISTS = 64, 16


@triton.jit
def rank_kernel(
    loc, priors, candidates, size, keys, boxes, num_priors, foreground, index_bits, top_k, v0, v1,
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
    image, label = i // foreground, i % foreground + 1
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
        detection = ((key >> index_bits) << 32) | (prior * (foreground + 1) + label)
        tl.store(keys + place, detection, mask=best)


@triton.jit
def suppress_kernel(
    keys, boxes, size, kept_keys, kept_boxes, kept_size, top_k, most, threshold, eps,
    TILE: tl.constexpr, KEEP_EMPTY: tl.constexpr, IOS: tl.constexpr, DIOU: tl.constexpr,
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
            hit = over(ox1, oy1, ox2, oy2, x1, y1, x2, y2, threshold, eps, KEEP_EMPTY, IOS, DIOU)
            hit = hit & (other < kept)[:, None]
            alive = tl.where(tl.max(hit.to(tl.int32), 0) > 0, 0, alive)
        if tl.max(alive, 0) > 0:
            hit = over(x1, y1, x2, y2, x1, y1, x2, y2, threshold, eps, KEEP_EMPTY, IOS, DIOU)
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
    most_kept, PLACED: tl.constexpr, LISTS: tl.constexpr, STEPS: tl.constexpr, MOST: tl.constexpr,
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
        zero = tl.zeros((MOST,), tl.float32)
        for start in range(0, most, MOST):
            row = start + tl.arange(0, MOST)
            unused = (row >= total) & (row < most)
            store_four(boxes, image * most + row, zero, zero, zero, zero, unused)
            tl.store(scores + image * most + row, zero, mask=unused)
            tl.store(labels + image * most + row, zero.to(tl.int64), mask=unused)
        tl.store(count + image, total)
    n = tl.load(kept_size + i)
    first = n * 0
    while first < n:
        mine = first + tl.arange(0, PLACED)
        key = tl.load(kept_keys + i * most_kept + mine, mask=mine < n, other=WORST)
        place = tl.where(mine < n, 0, most)
        start = n * 0
        while (start < joined) & (tl.min(place, 0) < most):
            other = start + tl.arange(0, LISTS)
            sizes = tl.load(kept_size + lists + other, mask=other < joined, other=0)[None, :]
            before = kept_keys + (lists + other[None, :]) * most_kept - 1
            smaller = tl.zeros((PLACED, LISTS), tl.int32)
            for step in tl.static_range(STEPS):
                probe = smaller + (1 << (STEPS - 1 - step))
                its_key = tl.load(before + probe, mask=probe <= sizes, other=WORST)
                smaller = tl.where(its_key < key[:, None], probe, smaller)
            place += tl.sum(smaller, 1)
            start += LISTS
        best = place < most
        row = image * most + place
        x1, y1, x2, y2 = load_four(kept_boxes, i * most_kept + mine, best)
        store_four(boxes, row, x1, y1, x2, y2, best)
        score = (-((key >> 32) - ONE)).to(tl.int32).to(tl.float32, bitcast=True)
        tl.store(scores + row, score, mask=best)
        tl.store(labels + row, (i % foreground + 1) + mine * 0, mask=best)
        # Later boxes of the list have higher rows.
        first = tl.where(tl.min(place, 0) < most, first + PLACED, n)


def detection_output(
    loc: Tensor, logits: Tensor, priors: Tensor, settings: DetectionOutputSettings
) -> tuple[Tensor, ...]:
    """Run `mdssd.ops.detection_output`."""
    check_gpu_limits(logits)
    images, num_priors, classes = logits.shape
    boxes, scores, labels, count = result = new_detections(loc, logits, settings)
    if images == 0 or num_priors == 0 or settings.score_threshold == 1:
        return result
    loc, logits, priors = loc.contiguous(), logits.contiguous(), priors.float().contiguous()
    if settings.class_agnostic or settings.top_k_per_level is not None:
        detect_jointly(loc, logits, priors, settings, result)
        return result
    top_k, max_detections = min(settings.top_k, num_priors), settings.max_detections
    foreground = classes - settings.background
    lists = images * foreground
    candidates, size, index_bits = find_candidates(logits, settings, top_k)
    capacity = candidates.shape[1]
    keys = loc.new_full((lists, top_k), WORST.value, dtype=torch.int64)
    sorted_boxes = loc.new_empty(lists, top_k, 4, dtype=torch.float32)
    parts = max(1, min(capacity // RANKED, RANK_PROGRAMS // lists))
    rank_kernel[(lists * parts,)](
        loc, priors, candidates, size, keys, sorted_boxes, num_priors, foreground, index_bits,
        top_k, settings.v0, settings.v1, *decoding_limits(settings), parts, CAPACITY=capacity,
        RANKED=RANKED, OTHERS=OTHERS, num_warps=8, **OPTIONS,
    )  # fmt: skip
    if settings.suppression:
        low = keys & 0xFFFFFFFF
        scored = Candidates(
            sorted_boxes.view(images, -1, 4),
            keys.view(images, -1),
            32,
            low.view(images, -1) % (foreground + 1),
        )
        detect_softly(scored, foreground, settings, result)
        return result
    # No more boxes of a list are kept than it has.
    most_kept = min(top_k, max_detections)
    kept_keys = loc.new_empty(lists, most_kept, dtype=torch.int64)
    kept_boxes = loc.new_empty(lists, most_kept, 4, dtype=torch.float32)
    kept_size = torch.empty_like(size)
    suppress_kernel[(lists,)](
        keys, sorted_boxes, size, kept_keys, kept_boxes, kept_size, top_k, most_kept,
        settings.nms_threshold, settings.iou_eps or None, TILE=SUPPRESSED // (1 + settings.diou),
        KEEP_EMPTY=settings.keep_empty, IOS=settings.ios, DIOU=settings.diou, num_warps=16,
        **OPTIONS,
    )  # fmt: skip
    joined = 1 if settings.per_class else foreground
    place_kernel[(lists,)](
        kept_keys, kept_boxes, kept_size, boxes, scores, labels, count, foreground, joined,
        max_detections, most_kept, PLACED=PLACED, LISTS=power_of_2(joined, LISTS),
        STEPS=most_kept.bit_length(), MOST=power_of_2(max_detections, 1024),
        FOREGROUND=power_of_2(joined, 1 << 20), num_warps=8, **OPTIONS,
    )  # fmt: skip
    return result
