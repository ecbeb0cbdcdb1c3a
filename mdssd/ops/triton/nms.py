"""nms and batched_nms in Triton.

The design is that of csrc/cuda/nms.cu. The host goes through the boxes, sorted by falling score, in
chunks of 2048 and launches three kernels for each chunk:
  mask_kernel   compares all pairs of the chunk and stores, as bits, which box suppresses which.
  scan_kernel   finds the kept boxes of the chunk. This is the serial part, so it is a single
                program that works on bits only.
  apply_kernel  lets the kept boxes, and only these, suppress boxes of later chunks.
The number of launches depends only on the number of boxes, and nothing is copied to the host.

Memory: the mask has at most 512 KiB; the rest is proportional to the number of boxes. A group of 64
boxes is a word of 64 bits, and a chunk has as many groups as a program can keep in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._settings import NmsSettings
from mdssd.ops.triton.common import OPTIONS, area, blocks, iou, load_four

GROUP = 64  # boxes per word
GROUPS = 32  # groups per chunk
CHUNK = GROUP * GROUPS
ROWS = 64  # boxes that a program of mask_kernel compares with a group
LATER = 128  # later boxes per program of apply_kernel
KEPT = 16  # kept boxes that it compares with them at a time
SHARES = 8  # programs that share the kept boxes for the same later boxes


@triton.jit
def suppresses(
    boxes, idxs, first_box, first_mask, second_box, second_mask, threshold, eps, IOS: tl.constexpr,
    DIOU: tl.constexpr,
):  # fmt: skip
    """Return [A, B]: whether two boxes, given by index, have one category and overlap."""
    ax1, ay1, ax2, ay2 = load_four(boxes, first_box, first_mask)
    bx1, by1, bx2, by2 = load_four(boxes, second_box, second_mask)
    value = iou(
        ax1[:, None], ay1[:, None], ax2[:, None], ay2[:, None], area(ax1, ay1, ax2, ay2)[:, None],
        bx1[None, :], by1[None, :], bx2[None, :], by2[None, :], area(bx1, by1, bx2, by2)[None, :],
        eps, IOS, DIOU,
    )  # fmt: skip
    result = value > threshold  # false outside the masks, where the overlap is 0 or NaN
    if idxs is not None:
        first_category = tl.load(idxs + first_box, mask=first_mask, other=0)
        second_category = tl.load(idxs + second_box, mask=second_mask, other=0)
        result = result & (first_category[:, None] == second_category[None, :])
    return result


@triton.jit
def mask_kernel(
    boxes, idxs, order, mask, first, num_boxes, lines, threshold, eps,
    GROUP: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, IOS: tl.constexpr,
    DIOU: tl.constexpr,
):  # fmt: skip
    """Set mask[g, i] to the boxes of group g, as bits, that overlap box i of the chunk.

    Only groups up to that of box i are computed. A program compares a group with a line of ROWS
    boxes. These pairs form a triangle, so a row of the grid has two lines: line y and the line at
    the same distance from the end, which together have equally many groups for every y.
    """
    x, y = tl.program_id(0), tl.program_id(1)
    own_length = (y + 1) * (ROWS // GROUP)
    line = tl.where(x < own_length, y, lines - 1 - y)
    group = tl.where(x < own_length, x, x - own_length)
    column = first + group * GROUP + tl.arange(0, GROUP)
    row = line * ROWS + tl.arange(0, ROWS)
    inside = first + row < num_boxes
    column_box = tl.load(order + column, mask=column < num_boxes, other=0)
    row_box = tl.load(order + first + row, mask=inside, other=0)
    hit = suppresses(
        boxes, idxs, column_box, column < num_boxes, row_box, inside, threshold, eps, IOS, DIOU,
    )  # fmt: skip
    bit = tl.full((GROUP,), 1, tl.int64) << tl.arange(0, GROUP)
    word = tl.sum(tl.where(hit, bit[:, None], 0), 0)
    tl.store(mask + group * CHUNK + row, word)


@triton.jit
def scan_kernel(
    mask, removed, order, keep, counts, first, num_boxes, groups,
    GROUP: tl.constexpr, GROUPS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Suppress greedily within a chunk and write its kept boxes to keep[counts[0]:counts[1]].

    A single program goes through the groups. Within a group, each round keeps the boxes that no
    earlier undecided box suppresses, and removes the boxes that these suppress. The first undecided
    box is always kept, so the loop ends; usually most boxes are decided in the first round.
    """
    groups_before = tl.arange(0, GROUPS)
    lane = tl.arange(0, GROUP)
    bit = tl.full((GROUP,), 1, tl.int64) << lane
    words = mask + groups_before[:, None] * CHUNK + lane[None, :]
    base = tl.load(counts)
    kept = tl.full((GROUPS,), 0, tl.int64)
    tile = tl.load(words, mask=(groups_before == 0)[:, None], other=0)
    for group in range(0, groups):
        # The addresses do not depend on the results, so the next words are loaded in the meantime.
        following = tl.minimum(group + 1, groups - 1)
        wanted = groups_before <= following
        next_tile = tl.load(words + following * GROUP, mask=wanted[:, None], other=0)
        i = first + group * GROUP + lane
        gone = tl.load(removed + i, mask=i < num_boxes, other=1).to(tl.int32)
        gone |= tl.max(((tile & kept[:, None]) != 0).to(tl.int32), 0)
        own = tl.sum(tl.where((groups_before == group)[:, None], tile, 0), 0)
        before = own & (bit - 1)
        undecided = tl.sum(tl.where(gone == 0, bit, 0), 0)
        found = undecided & 0
        while undecided != 0:
            is_open = (undecided & bit) != 0
            is_kept = is_open & ((before & undecided) == 0)
            found |= tl.sum(tl.where(is_kept, bit, 0), 0)
            is_open = is_open & (is_kept == 0) & ((before & found) == 0)
            undecided = tl.sum(tl.where(is_open, bit, 0), 0)
        kept = tl.where(groups_before == group, found, kept)
        tile = next_tile
    flags = ((kept[:, None] >> lane[None, :]) & 1).to(tl.int32)
    flags = tl.reshape(flags, (CHUNK,))
    i = first + tl.arange(0, CHUNK)
    position = base + tl.cumsum(flags, 0) - 1
    tl.store(keep + position, tl.load(order + i, mask=flags != 0, other=0), mask=flags != 0)
    tl.store(counts + 1, base + tl.sum(flags, 0))


@triton.jit
def apply_kernel(
    boxes, idxs, order, keep, counts, removed, first, num_boxes, threshold, eps,
    LATER: tl.constexpr, KEPT: tl.constexpr, SHARES: tl.constexpr, IOS: tl.constexpr,
    DIOU: tl.constexpr,
):  # fmt: skip
    """Set removed[i] = 1 for boxes i >= first that the boxes keep[counts[0]:counts[1]] suppress.

    A program handles LATER of these boxes and one of SHARES parts of the kept boxes.
    """
    i = first + tl.program_id(0) * LATER + tl.arange(0, LATER)
    box = tl.load(order + i, mask=i < num_boxes, other=0)
    start, end = tl.load(counts), tl.load(counts + 1)
    hit = tl.full((KEPT, LATER), 0, tl.int32)
    for k in range(start + tl.program_id(1) * KEPT, end, KEPT * SHARES):
        slot = k + tl.arange(0, KEPT)
        kept = tl.load(keep + slot, mask=slot < end, other=0)
        hits = suppresses(
            boxes, idxs, kept, slot < end, box, i < num_boxes, threshold, eps, IOS, DIOU,
        )  # fmt: skip
        hit |= hits.to(tl.int32)
    one = tl.full((LATER,), 1, tl.uint8)
    tl.store(removed + i, one, mask=tl.max(hit, 0) != 0)  # all programs store the same value


def nms_padded(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, settings: NmsSettings
) -> tuple[Tensor, Tensor]:
    """Run `mdssd.ops.nms_padded`."""
    num_boxes = boxes.shape[0]
    threshold, eps = settings.iou_threshold, settings.iou_eps or None
    metric = {"IOS": settings.ios, "DIOU": settings.diou}
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes.contiguous()
    idxs = None if idxs is None else idxs.contiguous()
    keep = torch.zeros_like(order)
    chunks = blocks(num_boxes, CHUNK)
    counts = order.new_zeros(chunks + 1)  # boxes kept in all earlier chunks
    removed = torch.zeros(num_boxes, dtype=torch.uint8, device=boxes.device)
    # The first chunk is the largest. Its last line may extend past the boxes.
    mask = order.new_empty(min(CHUNK, blocks(num_boxes, ROWS) * ROWS) // GROUP, CHUNK)
    for chunk in range(chunks):
        first = chunk * CHUNK
        groups = min(GROUPS, blocks(num_boxes - first, GROUP))
        lines = blocks(groups * GROUP, ROWS)
        mask_kernel[((lines + 1) * (ROWS // GROUP), blocks(lines, 2))](
            boxes, idxs, order, mask, first, num_boxes, lines, threshold, eps,
            GROUP=GROUP, ROWS=ROWS, CHUNK=CHUNK, **metric, num_warps=8, **OPTIONS,
        )  # fmt: skip
        scan_kernel[(1,)](
            mask, removed, order, keep, counts[chunk:], first, num_boxes, groups,
            GROUP=GROUP, GROUPS=GROUPS, CHUNK=CHUNK, num_warps=4, **OPTIONS,
        )  # fmt: skip
        later = num_boxes - first - CHUNK
        if later > 0:
            apply_kernel[(blocks(later, LATER), SHARES)](
                boxes, idxs, order, keep, counts[chunk:], removed, first + CHUNK, num_boxes,
                threshold, eps, LATER=LATER, KEPT=KEPT, SHARES=SHARES, **metric, num_warps=4,
                **OPTIONS,
            )  # fmt: skip
    return keep, counts[chunks].clone()  # cloned, so that the result does not keep `counts` alive


def nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, settings: NmsSettings) -> Tensor:
    """Run `mdssd.ops.nms` or, with `idxs`, `mdssd.ops.batched_nms`."""
    keep, kept = nms_padded(boxes, scores, idxs, settings)
    return keep[: int(kept)].clone()  # int() waits for the device; the clone frees the other rows
