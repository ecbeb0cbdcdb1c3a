"""Functions that kernels share: loads and stores of boxes, box arithmetic (csrc/box_math.h), sums.

Each operation rounds as PyTorch's does, so that IoUs agree with the reference to the last bit. This
is why divisions use `div_rn` and kernels are launched with `enable_fp_fusion=False`.
"""

from __future__ import annotations

import os
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

# Triton's interpreter truncates float32 to bfloat16, whereas GPUs round to nearest.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
# Options of every launch. A fused multiply-add would round once where PyTorch rounds twice.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}
_MOST_PROGRAMS = 2048  # of a kernel that stores sums; each stores once, after all its tiles
_TERMS = 1024  # sums that finish_groups_kernel adds at a time


def blocks(n: int, block: int) -> int:
    """Return the number of blocks that cover n items."""
    return (n + block - 1) // block


def power_of_2(n: int, most: int) -> int:
    """Return the smallest power of 2 that is at least n, but at most `most`."""
    return min(most, 1 << max(0, n - 1).bit_length())


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """Round a float32 to the storage type, to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = tl.where(value != value, bits, rounded)
        value = rounded.to(tl.uint32).to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def load_four(pointer, row, mask):
    """Load rows [BLOCK] of an array [..., 4] as four float32 columns, with one access per row."""
    offsets = row[:, None] * 4 + tl.arange(0, 4)[None, :]
    four = tl.load(pointer + offsets, mask=mask[:, None], other=0).to(tl.float32)
    even, odd = tl.split(tl.reshape(four, (row.shape[0], 2, 2)))  # columns 0 and 2, columns 1 and 3
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def store_four(pointer, row, first, second, third, fourth, mask):
    """Store four columns as rows of an array [..., 4], in the type of the pointer."""
    four = tl.join(tl.join(first, third), tl.join(second, fourth))
    offsets = row[:, None] * 4 + tl.arange(0, 4)[None, :]
    value = narrow(tl.reshape(four, (row.shape[0], 4)), pointer.dtype.element_ty)
    tl.store(pointer + offsets, value, mask=mask[:, None])


@triton.jit
def area(x1, y1, x2, y2):
    """Return the area of boxes given by corners. It is negative if exactly one side is."""
    return (x2 - x1) * (y2 - y1)


@triton.jit
def larger(a, b):
    """Return a if a > b, else b."""
    return tl.where(a > b, a, b)


@triton.jit
def smaller(a, b):
    """Return a if a < b, else b."""
    return tl.where(a < b, a, b)


@triton.jit
def divisor(area_a, area_b, intersection, eps, IOS: tl.constexpr):
    """Return what an overlap is divided by: the union's area or, with IOS, the smaller box's.

    `eps` is added to it. With None, no addition is compiled. With IOS it is infinite, so that the
    overlap is 0 or NaN, if an area is NaN or the sum of the areas infinite.
    """
    if IOS:
        whole = tl.where(area_a < area_b, area_a, area_b)
    else:
        whole = area_a + area_b - intersection
    if eps is not None:
        whole += eps
    if IOS:
        whole = tl.where(area_a + area_b < float("inf"), whole, float("inf"))
    return whole


@triton.jit
def squared_distance(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Return the squared distance of the centres over the squared diagonal of the box around both.

    It is NaN for two equal points, and if both squares overflow.
    """
    dx = ((ax1 - bx1) + (ax2 - bx2)) * 0.5
    dy = ((ay1 - by1) + (ay2 - by2)) * 0.5
    width = larger(ax2, bx2) - smaller(ax1, bx1)
    height = larger(ay2, by2) - smaller(ay1, by1)
    return tl.div_rn(dx * dx + dy * dy, width * width + height * height)


@triton.jit
def iou(
    ax1, ay1, ax2, ay2, area_a, bx1, by1, bx2, by2, area_b, eps, IOS: tl.constexpr = False,
    DIOU: tl.constexpr = False,
):  # fmt: skip
    """Return the intersection over union or, with IOS, over the area of the smaller box.

    It is 0 without overlap and for degenerate or NaN boxes. With DIOU, the squared distance of the
    centres is subtracted, and it is NaN or not above 0 for these.
    """
    width = larger(smaller(ax2, bx2) - larger(ax1, bx1), 0.0)
    height = larger(smaller(ay2, by2) - larger(ay1, by1), 0.0)
    intersection = width * height
    quotient = tl.div_rn(intersection, divisor(area_a, area_b, intersection, eps, IOS))
    value = larger(quotient, 0.0)  # 0 for NaN
    if DIOU:
        value -= squared_distance(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
    return value


@triton.jit
def to_corners(cx, cy, w, h):
    """Convert centre and size to corners."""
    half_w, half_h = w * 0.5, h * 0.5
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


@triton.jit
def encode(x1, y1, x2, y2, cx, cy, w, h, v0, v1):
    """Encode boxes relative to priors. Source: SSD, section 2.2, equation 2."""
    return (
        tl.div_rn((x1 + x2) * 0.5 - cx, w * v0),
        tl.div_rn((y1 + y2) * 0.5 - cy, h * v0),
        tl.div_rn(tl.log(tl.div_rn(x2 - x1, w)), v1),
        tl.div_rn(tl.log(tl.div_rn(y2 - y1, h)), v1),
    )


@triton.jit
def decode(ox, oy, ow, oh, cx, cy, w, h, v0, v1, max_log_scale):
    """Decode offsets relative to priors to corners; `max_log_scale` limits the size."""
    scale_w, scale_h = ow * v1, oh * v1
    half_w = w * tl.exp(tl.where(scale_w > max_log_scale, max_log_scale, scale_w)) * 0.5
    half_h = h * tl.exp(tl.where(scale_h > max_log_scale, max_log_scale, scale_h)) * 0.5
    x, y = cx + ox * v0 * w, cy + oy * v0 * h
    return x - half_w, y - half_h, x + half_w, y + half_h


# --- sums over groups: the images, or the batch ---------------------------------------------------


def programs_per_group(groups: int, wanted: int) -> int:
    """Return the number of programs that add the rows of each group."""
    return max(1, min(wanted, _MOST_PROGRAMS // groups))


@triton.jit
def finish_groups_kernel(
    sums, counts, per_group, loss, normaliser, NORMALISE: tl.constexpr, TERMS: tl.constexpr
):
    """Add the sums of a group's programs and divide them by max(1, positives) if NORMALISE."""
    group = tl.program_id(0)
    index = tl.arange(0, TERMS)
    total = tl.zeros((TERMS,), tl.float32)
    positives = tl.zeros((TERMS,), tl.int64)
    first_program = group.to(tl.int64) * per_group
    for first in range(0, per_group, TERMS):
        mask = first + index < per_group
        total += tl.load(sums + first_program + first + index, mask=mask, other=0)
        positives += tl.load(counts + first_program + first + index, mask=mask, other=0)
    divisor = tl.sum(positives, 0)
    divisor = tl.where(divisor < 1, 1, divisor)
    if not NORMALISE:
        divisor = tl.full((), 1, tl.int64)
    tl.store(loss + group, tl.div_rn(tl.sum(total, 0), divisor.to(tl.float32)))
    tl.store(normaliser + group, divisor)


def finish_groups(
    sums: Tensor, counts: Tensor, groups: int, per_group: int, normalise: bool,
    loss: Tensor, normaliser: Tensor,
) -> None:  # fmt: skip
    """Write the losses [groups] of programs' sums, and what they are divided by."""
    finish_groups_kernel[(groups,)](
        sums, counts, per_group, loss, normaliser,
        NORMALISE=normalise, TERMS=power_of_2(per_group, _TERMS), **OPTIONS,
    )  # fmt: skip
