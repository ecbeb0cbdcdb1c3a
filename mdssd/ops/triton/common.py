"""What kernels share: rows of four numbers, and the box maths of `csrc/box_math.h`.

Each operation rounds as PyTorch's does, so that IoUs agree with the reference to the last bit: the
division is `div_rn`, and the kernels are launched with `enable_fp_fusion=False`.
"""

from __future__ import annotations

import os
from typing import Any

import triton
import triton.language as tl

# Triton's interpreter cuts float32 off to bfloat16 where GPUs round.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
# Of every launch: a fused multiply-add rounds once where PyTorch rounds twice.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}


def blocks(n: int, block: int) -> int:
    """Programs that cover n items."""
    return (n + block - 1) // block


def power_of_2(n: int, most: int) -> int:
    """The least power of 2 that covers n, but at most `most`."""
    return min(most, 1 << max(0, n - 1).bit_length())


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """A float32 rounded to the storage type, to nearest even."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = tl.where(value != value, bits, rounded)
        value = rounded.to(tl.uint32).to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def load_four(pointer, row, mask):
    """Rows [BLOCK] of an array [..., 4], as four float32 columns; one access of 16 bytes each."""
    offsets = row[:, None] * 4 + tl.arange(0, 4)[None, :]
    four = tl.load(pointer + offsets, mask=mask[:, None], other=0).to(tl.float32)
    even, odd = tl.split(tl.reshape(four, (row.shape[0], 2, 2)))  # numbers 0 and 2, 1 and 3
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def store_four(pointer, row, first, second, third, fourth, mask):
    """The inverse of `load_four`, in the type of the pointer."""
    four = tl.join(tl.join(first, third), tl.join(second, fourth))
    offsets = row[:, None] * 4 + tl.arange(0, 4)[None, :]
    value = narrow(tl.reshape(four, (row.shape[0], 4)), pointer.dtype.element_ty)
    tl.store(pointer + offsets, value, mask=mask[:, None])


@triton.jit
def area(x1, y1, x2, y2):
    """Of boxes by their corners; negative if one of the two sides is."""
    return (x2 - x1) * (y2 - y1)


@triton.jit
def larger(a, b):
    """a > b ? a : b."""
    return tl.where(a > b, a, b)


@triton.jit
def smaller(a, b):
    """a < b ? a : b."""
    return tl.where(a < b, a, b)


@triton.jit
def iou(ax1, ay1, ax2, ay2, area_a, bx1, by1, bx2, by2, area_b, eps):
    """Intersection over union; 0 without overlap, and where a side is degenerate or NaN.

    `eps` joins the union's area; None costs nothing.
    """
    width = larger(smaller(ax2, bx2) - larger(ax1, bx1), 0.0)
    height = larger(smaller(ay2, by2) - larger(ay1, by1), 0.0)
    intersection = width * height
    union = area_a + area_b - intersection
    if eps is not None:
        union += eps
    quotient = tl.div_rn(intersection, union)
    return larger(quotient, 0.0)  # NaN compares false


@triton.jit
def to_corners(cx, cy, w, h):
    """Centre and size -> corners."""
    half_w, half_h = w * 0.5, h * 0.5
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


@triton.jit
def encode(x1, y1, x2, y2, cx, cy, w, h, v0, v1):
    """Offsets of boxes against priors: SSD, section 2.2, equation 2."""
    return (
        tl.div_rn((x1 + x2) * 0.5 - cx, w * v0),
        tl.div_rn((y1 + y2) * 0.5 - cy, h * v0),
        tl.div_rn(tl.log(tl.div_rn(x2 - x1, w)), v1),
        tl.div_rn(tl.log(tl.div_rn(y2 - y1, h)), v1),
    )


@triton.jit
def decode(ox, oy, ow, oh, cx, cy, w, h, v0, v1, max_log_scale):
    """Corners of offsets against priors: the inverse of `encode`, but for a limit of the size."""
    scale_w, scale_h = ow * v1, oh * v1
    half_w = w * tl.exp(tl.where(scale_w > max_log_scale, max_log_scale, scale_w)) * 0.5
    half_h = h * tl.exp(tl.where(scale_h > max_log_scale, max_log_scale, scale_h)) * 0.5
    x, y = cx + ox * v0 * w, cy + oy * v0 * h
    return x - half_w, y - half_h, x + half_w, y + half_h
