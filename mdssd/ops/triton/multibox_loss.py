"""multibox_loss and its gradient in Triton.

The forward pass has three launches for any batch: row_kernel reads the logits and computes the
cross-entropy of every prior, select_kernel finds the hardest background priors of each image, and
finish_kernel adds the sums. There are no floating-point atomics: each program stores its sums at
its own place, and they are added in a fixed order, so the results are the same in every run.

The backward pass is one launch. It writes two gradients, nearly all zeros, and reads the logits of
selected rows only.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._results import new_losses
from mdssd.ops._settings import MultiboxLossSettings
from mdssd.ops.triton.common import OPTIONS, blocks, narrow, power_of_2

LANES = tl.constexpr(8)  # neighbouring threads that share a row of logits
TILE = 4096  # logits of a program at a time: 32 registers of each of its 128 threads
BACKWARD_TILE = 2048  # smaller, because programs without a selected row only store zeros
MOST_CLASSES = 256  # most classes of a tile
ROW_PROGRAMS = 2048  # most programs of row_kernel; each stores its sums once, after all its tiles
ROW_TILES = 2  # least number of tiles per program, which halves the number of sums
HELD = 32768  # losses of an image that a program keeps: 64 registers of each of its 512 threads
STEP = 8192  # losses beyond HELD that it loads at a time; with all at once, it would spill
TERMS = 1024  # sums that finish_kernel adds at a time

# Losses are compared as integers that order like the losses. -0 equals +0, and NaN is the largest.
# No loss maps to the two smallest integers, which mark priors that are not candidates for mining.
IGNORED = tl.constexpr(-(2**31))
POSITIVE = tl.constexpr(-(2**31) + 1)
NAN = tl.constexpr(2**31 - 1)


@triton.jit
def to_ordered(x):
    """Convert float32 losses to integers of the same order."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x != x, NAN, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))


@triton.jit
def from_ordered(ordered):
    """Convert the integers of `to_ordered` back to float32."""
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def class_tile(first, CHUNKS: tl.constexpr):
    """Return the classes from `first` on as [CHUNKS, 1, LANES], for a tile [CHUNKS, ROWS, LANES].

    LANES threads share a row, and each has every LANES-th class. So neighbouring threads load
    neighbouring numbers, and most of a sum over a row happens within a thread.
    """
    chunk, lane = tl.arange(0, CHUNKS), tl.arange(0, LANES)
    return first + chunk[:, None, None] * LANES + lane[None, None, :]


@triton.jit
def load_logits(logits, row, wanted, first, classes, CHUNKS: tl.constexpr):
    """Load a tile of rows [ROWS]; classes past the last and unwanted rows are -inf."""
    index = class_tile(first, CHUNKS)
    mask = wanted[None, :, None] & (index < classes)
    pointers = logits + row[None, :, None] * classes + index
    return tl.load(pointers, mask=mask, other=float("-inf")).to(tl.float32)


@triton.jit
def row_max(x, wanted):
    """Return the maximum of each row of a tile; 0 for unwanted rows, to avoid -inf - -inf = NaN."""
    return tl.where(wanted, tl.max(tl.max(x, 0), 1), 0.0)


@triton.jit
def row_sum_of_exp(x, top):
    """Return the sum of exp(x - top) for each row of a tile."""
    return tl.sum(tl.sum(tl.exp(x - top[None, :, None]), 0), 1)


@triton.jit
def softmax_parts(
    logits, row, wanted, classes, ROWS: tl.constexpr, CHUNKS: tl.constexpr, KEPT: tl.constexpr
):
    """Return the maximum of each row and the sum of exp(logit - maximum); 0 and 1 if unwanted.

    If KEPT, one tile has all classes. Otherwise there are two passes over the classes, and the
    second reads from the cache.
    """
    if KEPT:
        x = load_logits(logits, row, wanted, 0, classes, CHUNKS)
        top = row_max(x, wanted)
        total = row_sum_of_exp(x, top)
    else:
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        for first in range(0, classes, CHUNKS * LANES):
            x = load_logits(logits, row, wanted, first, classes, CHUNKS)
            top = tl.maximum(top, row_max(x, wanted))
        total = tl.zeros((ROWS,), tl.float32)
        for first in range(0, classes, CHUNKS * LANES):
            x = load_logits(logits, row, wanted, first, classes, CHUNKS)
            total += row_sum_of_exp(x, top)
    return top, tl.where(wanted, total, 1.0)


@triton.jit
def load_difference(loc, loc_targets, row, wanted):
    """Return loc - loc_targets [ROWS, 4]; 0 for unwanted rows."""
    offsets = row[:, None] * 4 + tl.arange(0, 4)[None, :]
    mask = wanted[:, None]
    predicted = tl.load(loc + offsets, mask=mask, other=0).to(tl.float32)
    return predicted - tl.load(loc_targets + offsets, mask=mask, other=0).to(tl.float32)


@triton.jit
def row_kernel(
    loc, logits, loc_targets, labels, ordered, shares, parts, rows, classes, tiles,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Store each row's loss, -log softmax(logits)[label], as an integer in `ordered`.

    A program loops over tiles of ROWS rows and stores the sums of its positives' losses in
    shares[program]: localisation, then confidence. Unless `parts` is None, it receives the same two
    losses for each prior, 0 if it is not a positive. A label below -1 or above the last class makes
    its row a positive with a loss of NaN. Source: SSD, section 2.2, equations 1 to 3.
    """
    localisation = tl.zeros((ROWS, 4), tl.float32)
    confidence = tl.zeros((ROWS,), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        valid = row < rows
        top, total = softmax_parts(logits, row, valid, classes, ROWS, CHUNKS, KEPT)
        label = tl.load(labels + row, mask=valid, other=-1)
        fits = (label >= 0) & (label < classes)
        own = tl.load(logits + row * classes + label, mask=fits, other=0).to(tl.float32)
        loss = tl.where(fits, tl.log(total) + (top - own), float("nan"))
        value = tl.where(label == 0, to_ordered(loss), tl.where(label == -1, IGNORED, POSITIVE))
        tl.store(ordered + row, value, mask=valid)

        positive = valid & (label != 0) & (label != -1)
        own_loss = tl.where(positive, loss, 0.0)
        confidence += own_loss
        difference = load_difference(loc, loc_targets, row, positive)
        size = tl.abs(difference)
        distance = tl.where(size < 1, 0.5 * difference * difference, size - 0.5)
        localisation += distance
        if parts is not None:
            tl.store(parts + row, tl.sum(distance, 1), mask=valid)
            tl.store(parts + rows + row, own_loss, mask=valid)
    tl.store(shares + 2 * tl.program_id(0), tl.sum(tl.sum(localisation, 1), 0))
    tl.store(shares + 2 * tl.program_id(0) + 1, tl.sum(confidence, 0))


@triton.jit
def load_ordered(ordered, index, num_priors):
    """Load losses of an image's priors; entries past the last are ignored."""
    return tl.load(ordered + index, mask=index < num_priors, other=IGNORED)


@triton.jit
def count_above(
    ordered, held, num_priors, bound, BLOCK: tl.constexpr, STEP: tl.constexpr, ONE: tl.constexpr
):
    """Count the priors whose loss is above the bound.

    `held` has the losses of the image's first BLOCK priors. If ONE, these are all.
    """
    total = tl.sum((held > bound).to(tl.int32), 0)
    if not ONE:
        later = tl.zeros((STEP,), tl.int32)
        for first in range(BLOCK, num_priors, STEP):
            value = load_ordered(ordered, first + tl.arange(0, STEP), num_priors)
            later += (value > bound).to(tl.int32)
        total += tl.sum(later, 0)
    return total


@triton.jit
def count_ties(ordered, num_priors, bound, last, STEP: tl.constexpr):
    """Count the priors up to `last` whose loss equals the bound.

    This reads memory even for losses that are in registers, because ties are rare.
    """
    total = tl.zeros((STEP,), tl.int32)
    for first in range(0, last + 1, STEP):
        index = first + tl.arange(0, STEP)
        value = load_ordered(ordered, index, num_priors)
        total += ((value == bound) & (index <= last)).to(tl.int32)
    return tl.sum(total, 0)


@triton.jit
def select_kernel(
    ordered, selected, sums, positives, parts, num_priors, ratio_bits,
    BLOCK: tl.constexpr, STEP: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """Mark an image's positives and mine its negatives, one program per image.

    sums[image] receives the localisation and confidence losses of the negatives and, unless `parts`
    is None, of the positives too.

    The bound on the losses is found by bisection over integers: the range is halved until exactly
    as many priors as wanted are above its middle, or until a single value is left. In the second
    case, some of the priors with this loss are selected, and another bisection finds the last.
    Each step counts the losses that are in registers and, if the image has more than HELD priors,
    reads the others from the cache. For distinct losses, about a dozen steps suffice.

    Source: SSD, section 2.2, "hard negative mining".
    """
    image = tl.program_id(0).to(tl.int64)
    ordered += image * num_priors
    selected += image * num_priors
    held = load_ordered(ordered, tl.arange(0, BLOCK), num_priors)
    largest = tl.max(held, 0)
    smallest = tl.min(tl.where(held <= POSITIVE, NAN, held), 0)
    if not ONE:
        for first in range(BLOCK, num_priors, STEP):
            value = load_ordered(ordered, first + tl.arange(0, STEP), num_priors)
            largest = tl.maximum(largest, tl.max(value, 0))
            smallest = tl.minimum(smallest, tl.min(tl.where(value <= POSITIVE, NAN, value), 0))
    background = count_above(ordered, held, num_priors, POSITIVE, BLOCK, STEP, ONE)
    unmarked = count_above(ordered, held, num_priors, IGNORED, BLOCK, STEP, ONE)
    positive_count = unmarked - background
    # All backends compute this in float64, where 0.7 * 10 is 7.
    ratio = tl.cast(ratio_bits, tl.int64).to(tl.float64, bitcast=True)
    most = ratio * positive_count.to(tl.float64)
    limit = background.to(tl.float64)
    wanted = tl.where(most < limit, most, limit).to(tl.int32)
    wanted = tl.where(positive_count == 0, 0, wanted)

    # Invariant: exactly `above` <= `wanted` priors are above `high`, and more than `wanted` are
    # above low - 1.
    high = largest
    low = tl.where(wanted == 0, high, smallest - 1)
    above = 0
    while low < high:
        middle = (low & high) + ((low ^ high) >> 1)  # no overflow
        n = count_above(ordered, held, num_priors, middle, BLOCK, STEP, ONE)
        fits = n <= wanted
        above = tl.where(fits, n, above)
        high = tl.where(fits, middle, high)
        low = tl.where(n == wanted, high, tl.where(fits, low, middle + 1))
    bound = high

    # Of the priors whose loss equals the bound, select those up to `last`.
    missing = wanted - above
    last = tl.where(missing > 0, num_priors - 1, -1)
    begin = tl.where(missing > 0, 0, -1)
    while begin < last:
        middle = (begin + last) >> 1
        enough = count_ties(ordered, num_priors, bound, middle, STEP) >= missing
        last = tl.where(enough, middle, last)
        begin = tl.where(enough, begin, middle + 1)

    loss = tl.zeros((STEP,), tl.float32)
    localisation = tl.zeros((STEP,), tl.float32)
    for first in range(0, num_priors, STEP):
        prior = first + tl.arange(0, STEP)
        value = load_ordered(ordered, prior, num_priors)
        negative = (value > bound) | ((value == bound) & (prior <= last))
        loss += tl.where(negative, from_ordered(value), 0.0)
        if parts is not None:
            own = parts + image * num_priors + prior
            rows = tl.num_programs(0).to(tl.int64) * num_priors
            localisation += tl.load(own, mask=prior < num_priors, other=0)
            loss += tl.load(own + rows, mask=prior < num_priors, other=0)
        tl.store(selected + prior, negative | (value == POSITIVE), mask=prior < num_priors)
    tl.store(sums + 2 * image, tl.sum(localisation, 0))
    tl.store(sums + 2 * image + 1, tl.sum(loss, 0))
    tl.store(positives + image, positive_count)


@triton.jit
def finish_kernel(
    shares, programs, sums, positives, images, loc_loss, conf_loss, normaliser,
    TERMS: tl.constexpr,
):  # fmt: skip
    """Add the sums of row_kernel and select_kernel and divide both losses by max(1, positives)."""
    index = tl.arange(0, TERMS)
    sums += 2 * tl.program_id(0) * images
    positives += tl.program_id(0) * images
    localisation = tl.zeros((TERMS,), tl.float32)
    confidence = tl.zeros((TERMS,), tl.float32)
    image_positives = tl.zeros((TERMS,), tl.int64)
    for first in range(0, programs, TERMS):
        mask = first + index < programs
        localisation += tl.load(shares + 2 * (first + index), mask=mask, other=0)
        confidence += tl.load(shares + 2 * (first + index) + 1, mask=mask, other=0)
    for first in range(0, images, TERMS):
        mask = first + index < images
        localisation += tl.load(sums + 2 * (first + index), mask=mask, other=0)
        confidence += tl.load(sums + 2 * (first + index) + 1, mask=mask, other=0)
        image_positives += tl.load(positives + first + index, mask=mask, other=0)
    total = tl.sum(image_positives, 0)
    total = tl.where(total < 1, 1, total)
    tl.store(loc_loss + tl.program_id(0), tl.div_rn(tl.sum(localisation, 0), total.to(tl.float32)))
    tl.store(conf_loss + tl.program_id(0), tl.div_rn(tl.sum(confidence, 0), total.to(tl.float32)))
    tl.store(normaliser + tl.program_id(0), total)


@triton.jit
def multibox_loss_backward_kernel(
    grad_loc_loss, grad_conf_loss, loc, logits, loc_targets, labels, selected, normaliser,
    grad_loc, grad_logits, rows, group_rows, classes,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Compute both gradients for ROWS rows; only the inputs of selected rows are read.

    The gradient of smooth L1 is clamp(difference, -1, 1) for positives, and that of the
    cross-entropy is softmax - one_hot for selected rows. Each is multiplied by the gradient of its
    loss and divided by the normaliser; both are shared by `group_rows` consecutive rows.
    """
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = first_row + tl.arange(0, ROWS)
    valid = row < rows
    wanted = tl.load(selected + row, mask=valid, other=0) != 0
    label = tl.load(labels + row, mask=wanted, other=0)
    group = tl.where(wanted, row // group_rows, 0)
    divisor = tl.load(normaliser + group).to(tl.float32)

    positive = label != 0
    loc_scale = tl.div_rn(tl.load(grad_loc_loss + group).to(tl.float32), divisor)
    slope = load_difference(loc, loc_targets, row, positive)
    slope = tl.where(slope > 1, 1.0, tl.where(slope < -1, -1.0, slope))  # a NaN stays
    value = tl.where(positive[:, None], slope * loc_scale[:, None], 0.0)
    dtype = grad_logits.dtype.element_ty
    offsets = row[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(grad_loc + offsets, narrow(value, dtype), mask=valid[:, None])

    if tl.sum(wanted.to(tl.int32), 0) > 0:
        scale = tl.div_rn(tl.load(grad_conf_loss + group).to(tl.float32), divisor)
        scale = tl.where((label >= 0) & (label < classes), scale, float("nan"))
        top, total = softmax_parts(logits, row, wanted, classes, ROWS, CHUNKS, KEPT)
        for first in range(0, classes, CHUNKS * LANES):
            x = load_logits(logits, row, wanted, first, classes, CHUNKS)  # now in the cache
            index = class_tile(first, CHUNKS)
            hot = tl.where(index == label[None, :, None], 1.0, 0.0)
            error = tl.div_rn(tl.exp(x - top[None, :, None]), total[None, :, None]) - hot
            error = tl.where(wanted[None, :, None], error * scale[None, :, None], 0.0)
            pointers = grad_logits + row[None, :, None] * classes + index
            mask = valid[None, :, None] & (index < classes)
            tl.store(pointers, narrow(error, dtype), mask=mask)
    else:  # most programs only store zeros
        start = first_row * classes
        end = tl.minimum(first_row + ROWS, rows) * classes
        zeros = tl.zeros((ROWS * CHUNKS * LANES,), dtype)
        for first in range(0, ROWS * classes, ROWS * CHUNKS * LANES):
            number = start + first + tl.arange(0, ROWS * CHUNKS * LANES)
            tl.store(grad_logits + number, zeros, mask=number < end)


def _tile(classes: int, numbers: int) -> dict[str, Any]:
    """Return the kernels' constants, which divide rows of logits into tiles."""
    wide = power_of_2(max(classes, LANES.value), MOST_CLASSES)
    rows = numbers // wide
    return {
        "ROWS": rows,
        "CHUNKS": wide // LANES.value,
        "KEPT": classes <= wide,
        # With few classes, a tile has many rows, whose other numbers need registers too.
        "num_warps": max(4, rows // 64),
        **OPTIONS,
    }


def multibox_loss(
    loc: Tensor, logits: Tensor, loc_targets: Tensor, labels: Tensor,
    settings: MultiboxLossSettings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run `mdssd.ops.multibox_loss`; also return the selected priors and max(1, positives)."""
    loc, logits, loc_targets, labels = (t.contiguous() for t in (loc, logits, loc_targets, labels))
    images, num_priors, classes = logits.shape
    per_image = settings.per_image
    loc_loss, conf_loss, selected, normaliser = result = new_losses(loc, labels, per_image)
    rows = images * num_priors
    if not rows:
        loc_loss.zero_(), conf_loss.zero_(), normaliser.fill_(1)
        return result

    tile = _tile(classes, TILE)
    tiles = blocks(rows, tile["ROWS"])
    programs = min(blocks(tiles, ROW_TILES), ROW_PROGRAMS)
    ordered = loc.new_empty(rows, dtype=torch.int32)
    shares = loc.new_empty(programs, 2, dtype=torch.float32)
    parts = loc.new_empty(2, rows, dtype=torch.float32) if per_image else None
    sums = loc.new_empty(images, 2, dtype=torch.float32)
    positives = loc.new_empty(images, dtype=torch.int32)
    row_kernel[(programs,)](
        loc, logits, loc_targets, labels, ordered, shares, parts, rows, classes, tiles, **tile
    )
    block = power_of_2(num_priors, HELD)
    (ratio_bits,) = struct.unpack("<q", struct.pack("<d", settings.neg_pos_ratio))
    select_kernel[(images,)](
        ordered, selected, sums, positives, parts, num_priors, ratio_bits,
        BLOCK=block, STEP=min(block, STEP), ONE=num_priors <= block,
        num_warps=16 if block > 4096 else 4, **OPTIONS,
    )  # fmt: skip
    if per_image:  # `sums` already includes the positives
        programs, added = 0, 1
    else:
        added = images
    finish_kernel[(images // added,)](
        shares, programs, sums, positives, added, loc_loss, conf_loss, normaliser,
        TERMS=power_of_2(max(programs, added), TERMS), **OPTIONS,
    )  # fmt: skip
    return result


def multibox_loss_backward(
    grad_loc_loss: Tensor, grad_conf_loss: Tensor, loc: Tensor, logits: Tensor,
    loc_targets: Tensor, labels: Tensor, selected: Tensor, normaliser: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of `multibox_loss` with respect to `loc` and `logits`."""
    loc, logits, loc_targets, labels = (t.contiguous() for t in (loc, logits, loc_targets, labels))
    grad_loc, grad_logits = torch.empty_like(loc), torch.empty_like(logits)
    grad_loc_loss, grad_conf_loss = grad_loc_loss.contiguous(), grad_conf_loss.contiguous()
    rows, classes = labels.numel(), logits.shape[2]
    group_rows = labels.shape[1] if normaliser.dim() else rows
    if rows:
        tile = _tile(classes, BACKWARD_TILE)
        multibox_loss_backward_kernel[(blocks(rows, tile["ROWS"]),)](
            grad_loc_loss, grad_conf_loss, loc, logits, loc_targets, labels, selected.contiguous(),
            normaliser, grad_loc, grad_logits, rows, group_rows, classes, **tile,
        )  # fmt: skip
    return grad_loc, grad_logits
