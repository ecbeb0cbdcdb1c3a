"""The second half of detection_output in Triton where the candidates of all classes count together.

A list has the candidates of a feature map, or of an image (detection_scan.py):
  1. take_kernel finds the best `most` of each list: the rank of a candidate is the number of
     smaller keys.
  2. order_kernel sorts the candidates of an image in the same way, finds the rank of each in its
     class, and decodes its box.
  3. suppress_kernel, a program per image, runs greedy NMS in this order and writes the results.

The first two compare each candidate of an image with all others, so their time grows with the
square of the limits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._settings import DetectionOutputSettings
from mdssd.ops.triton.common import OPTIONS, blocks, decode, load_four, store_four
from mdssd.ops.triton.detection_scan import (
    ONE,
    WORST,
    clamp,
    decoding_limits,
    find_candidates,
    over,
)
from mdssd.ops.triton.detection_soft import Candidates, detect_softly

RANKED, OTHERS = 128, 64  # a program compares RANKED candidates with OTHERS at a time
# Boxes per tile of suppress_kernel; half as many by the DIoU, which takes more registers.
SUPPRESSED = 64


@triton.jit
def take_kernel(
    candidates, size, taken, most, CAPACITY: tl.constexpr, RANKED: tl.constexpr,
    OTHERS: tl.constexpr,
):  # fmt: skip
    """Write the best `most` keys of each list by rank to `taken` [lists, most]; the rest is WORST.

    A program handles RANKED keys of a list.
    """
    i = (tl.program_id(0) // (CAPACITY // RANKED)).to(tl.int64)
    mine = tl.program_id(0) % (CAPACITY // RANKED) * RANKED + tl.arange(0, RANKED)
    found = tl.load(size + i)
    row = candidates + i * CAPACITY
    key = tl.load(row + mine, mask=mine < found, other=WORST)
    rank = tl.zeros((RANKED,), tl.int32)
    for start in range(0, found, OTHERS):
        other = start + tl.arange(0, OTHERS)
        its_key = tl.load(row + other, mask=other < found, other=WORST)
        rank += tl.sum((its_key[None, :] < key[:, None]).to(tl.int32), 1)
    rank = tl.where(mine < found, rank, mine)
    tl.store(taken + i * most + rank, key, mask=rank < most)


@triton.jit
def order_kernel(
    loc, priors, taken, keys, boxes, allowed, num_priors, foreground, index_bits, count, top_k,
    v0, v1, max_log_scale, clip_low, clip_width, clip_height, RANKED: tl.constexpr,
    OTHERS: tl.constexpr, AGNOSTIC: tl.constexpr,
):  # fmt: skip
    """Sort the `count` keys of each image, of which those that are WORST are none.

    By rank it writes the key, the decoded box and whether the candidate is among the best top_k of
    its class, or of all with AGNOSTIC.
    """
    parts = (count + RANKED - 1) // RANKED
    image = (tl.program_id(0) // parts).to(tl.int64)
    mine = tl.program_id(0) % parts * RANKED + tl.arange(0, RANKED)
    row = taken + image * count
    key = tl.load(row + mine, mask=mine < count, other=WORST)
    index = key & ((tl.full((), 1, tl.int64) << index_bits) - 1)
    column = index % foreground
    rank = tl.zeros((RANKED,), tl.int32)
    class_rank = tl.zeros((RANKED,), tl.int32)
    for start in range(0, count, OTHERS):
        other = start + tl.arange(0, OTHERS)
        its_key = tl.load(row + other, mask=other < count, other=WORST)
        smaller = its_key[None, :] < key[:, None]
        rank += tl.sum(smaller.to(tl.int32), 1)
        if not AGNOSTIC:
            its_column = (its_key & ((tl.full((), 1, tl.int64) << index_bits) - 1)) % foreground
            same = its_column[None, :] == column[:, None]
            class_rank += tl.sum((smaller & same).to(tl.int32), 1)
    if AGNOSTIC:
        class_rank = rank
    best = (mine < count) & (key != WORST)
    prior = index // foreground
    ox, oy, ow, oh = load_four(loc, image * num_priors + prior, best)
    cx, cy, w, h = load_four(priors, prior, best)
    x1, y1, x2, y2 = decode(ox, oy, ow, oh, cx, cy, w, h, v0, v1, max_log_scale)
    x1, x2 = clamp(x1, clip_low, clip_width), clamp(x2, clip_low, clip_width)
    y1, y2 = clamp(y1, clip_low, clip_height), clamp(y2, clip_low, clip_height)
    place = image * count + rank
    is_box = (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2)  # no NaN
    tl.store(keys + place, key, mask=best)
    store_four(boxes, place, x1, y1, x2, y2, best)
    tl.store(allowed + place, ((class_rank < top_k) & is_box).to(tl.int32), mask=best)


@triton.jit
def suppress_kernel(
    keys, boxes, allowed, kept_boxes, kept_columns, out_boxes, scores, labels, counts, foreground,
    index_bits, count, most, threshold, eps, TILE: tl.constexpr, KEEP_EMPTY: tl.constexpr,
    IOS: tl.constexpr, DIOU: tl.constexpr, AGNOSTIC: tl.constexpr, PER_CLASS: tl.constexpr,
):  # fmt: skip
    """Run greedy NMS on the candidates of an image, in tiles, and write what is kept.

    See suppress_kernel of detection_output.py. Boxes of different classes suppress each other only
    with AGNOSTIC. With PER_CLASS each class has rows and a count of its own.
    """
    image = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, TILE)
    keys += image * count
    allowed += image * count
    kept_columns += image * count
    boxes += image * count * 4
    kept_boxes += image * count * 4
    kept = count * 0
    first = count * 0
    goes_on = count * 0 + 1
    while (first < count) & (goes_on > 0):
        mine = first + t
        x1, y1, x2, y2 = load_four(boxes, mine, mine < count)
        key = tl.load(keys + mine, mask=mine < count, other=WORST)
        column = (key & ((tl.full((), 1, tl.int64) << index_bits) - 1)) % foreground
        alive = tl.load(allowed + mine, mask=mine < count, other=0)
        row = tl.zeros((TILE,), tl.int32)  # kept boxes of the class before
        for start in range(0, kept, TILE):
            other = start + t
            ox1, oy1, ox2, oy2 = load_four(kept_boxes, other, other < kept)
            its_column = tl.load(kept_columns + other, mask=other < kept, other=-1)
            same = its_column[:, None] == column[None, :]
            hit = over(ox1, oy1, ox2, oy2, x1, y1, x2, y2, threshold, eps, KEEP_EMPTY, IOS, DIOU)
            hit = hit & (other < kept)[:, None]
            if not AGNOSTIC:
                hit = hit & same
            alive = tl.where(tl.max(hit.to(tl.int32), 0) > 0, 0, alive)
            row += tl.sum(same.to(tl.int32), 0)
        if tl.max(alive, 0) > 0:
            before = t[:, None] < t[None, :]
            same = column[:, None] == column[None, :]
            hit = over(x1, y1, x2, y2, x1, y1, x2, y2, threshold, eps, KEEP_EMPTY, IOS, DIOU)
            hit = hit & before
            if not AGNOSTIC:
                hit = hit & same
            hits = hit.to(tl.int32)
            candidates = alive
            changed = count * 0 + 1
            while changed > 0:
                suppressed = tl.max(hits * alive[:, None], 0)
                now = candidates * (1 - suppressed)
                changed = tl.max((now != alive).to(tl.int32), 0)
                alive = now
            place = kept + tl.cumsum(alive, 0) - 1
            tl.store(kept_columns + place, column, mask=alive > 0)
            store_four(kept_boxes, place, x1, y1, x2, y2, alive > 0)
            score = (-((key >> index_bits) - ONE)).to(tl.int32).to(tl.float32, bitcast=True)
            if PER_CLASS:
                row += tl.sum((before & same).to(tl.int32) * alive[:, None], 0)
                fits = (alive > 0) & (row < most)
                to = (image * foreground + column) * most + row
                one = tl.full((TILE,), 1, tl.int64)
                tl.atomic_add(counts + image * foreground + column, one, mask=fits, sem="relaxed")
            else:
                fits = (alive > 0) & (place < most)
                to = image * most + place
            store_four(out_boxes, to, x1, y1, x2, y2, fits)
            tl.store(scores + to, score, mask=fits)
            tl.store(labels + to, column + 1, mask=fits)
            kept += tl.sum(alive, 0)
            tl.debug_barrier()  # other threads of the program read these boxes next
        first += TILE
        if not PER_CLASS:
            goes_on = (kept < most).to(tl.int32)
    if not PER_CLASS:
        tl.store(counts + image, tl.where(kept < most, kept, most).to(tl.int64))


def detect_jointly(
    loc: Tensor,
    logits: Tensor,
    priors: Tensor,
    settings: DetectionOutputSettings,
    result: tuple[Tensor, ...],
) -> None:
    """Fill the results, which hold zeros, for contiguous arguments that are not empty."""
    images, num_priors, classes = logits.shape
    foreground = classes - settings.background
    sizes = tuple(settings.levels or (num_priors,))
    ends = loc.new_empty(len(sizes), dtype=torch.int64)
    end = 0
    for i, levels_size in enumerate(sizes):  # fills, since a copy to a device would wait for it
        end += levels_size
        ends[i].fill_(end)
    wanted = settings.top_k if settings.top_k_per_level is None else settings.top_k_per_level
    most = min(wanted, max(sizes) * foreground)
    candidates, size, index_bits = find_candidates(logits, settings, most, ends)
    lists, capacity = candidates.shape
    taken = loc.new_full((lists, most), WORST.value, dtype=torch.int64)
    take_kernel[(lists * (capacity // RANKED),)](
        candidates, size, taken, most, CAPACITY=capacity, RANKED=RANKED, OTHERS=OTHERS,
        num_warps=8, **OPTIONS,
    )  # fmt: skip
    count = len(sizes) * most
    keys = torch.full_like(taken, WORST.value)
    boxes = loc.new_empty(images, count, 4, dtype=torch.float32)
    allowed = loc.new_zeros(images, count, dtype=torch.int32)
    order_kernel[(images * blocks(count, RANKED),)](
        loc, priors, taken, keys, boxes, allowed, num_priors, foreground, index_bits, count,
        min(settings.top_k, 2**31 - 1), settings.v0, settings.v1, *decoding_limits(settings),
        RANKED=RANKED, OTHERS=OTHERS, AGNOSTIC=settings.class_agnostic, num_warps=8, **OPTIONS,
    )  # fmt: skip
    if settings.suppression:
        keys = torch.where(allowed.view(-1) > 0, keys.view(-1), WORST.value).view(images, count)
        index = keys & ((1 << index_bits) - 1)
        scored = Candidates(boxes, keys, index_bits, index % foreground + 1)
        detect_softly(scored, foreground, settings, result)
        return
    kept_boxes, kept_columns = torch.empty_like(boxes), torch.empty_like(keys)
    suppress_kernel[(images,)](
        keys, boxes, allowed, kept_boxes, kept_columns, *result, foreground, index_bits, count,
        settings.max_detections, settings.nms_threshold, settings.iou_eps or None,
        TILE=SUPPRESSED // (1 + settings.diou), KEEP_EMPTY=settings.keep_empty, IOS=settings.ios,
        DIOU=settings.diou, AGNOSTIC=settings.class_agnostic, PER_CLASS=settings.per_class,
        num_warps=8, **OPTIONS,
    )  # fmt: skip
