"""resize in Triton: a program computes a block of consecutive pixels of the result.

It is expected to be bound by memory. Each thread has four pixels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._results import new_images
from mdssd.ops.triton.common import OPTIONS, blocks

PIXELS = 512  # pixels per program of four warps


@triton.jit
def tap(i, source, target):
    """Return the two neighbouring pixels and the weight of the second, of 2048.

    This is `tap` of csrc/resize_math.h.
    """
    numerator = ((2 * i + 1) * source - target) * 2048 + target
    position = tl.maximum(numerator, 0) // (2 * target)
    position = tl.minimum(position, (source - 1) * 2048)
    first = position // 2048
    return first, tl.minimum(first + 1, source - 1), (position % 2048).to(tl.int32)


@triton.jit
def resize_kernel(
    images, out, pixels, height, width, channels, out_height, out_width, BLOCK: tl.constexpr
):
    """Compute out[n, y, x, c] as the weighted mean of the four input pixels around its centre."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < pixels
    line = pixel // out_width
    image = line // out_height
    left, right, along = tap(pixel - line * out_width, width, out_width)
    top, bottom, down = tap(line - image * out_height, height, out_height)
    upper = images + (image * height + top) * width * channels
    lower = images + (image * height + bottom) * width * channels
    for c in range(channels):
        a = tl.load(upper + left * channels + c, mask=mask, other=0).to(tl.int32)
        b = tl.load(upper + right * channels + c, mask=mask, other=0).to(tl.int32)
        under_a = tl.load(lower + left * channels + c, mask=mask, other=0).to(tl.int32)
        under_b = tl.load(lower + right * channels + c, mask=mask, other=0).to(tl.int32)
        first = a * (2048 - along) + b * along
        second = under_a * (2048 - along) + under_b * along
        value = (first * (2048 - down) + second * down + (1 << 21)) >> 22
        tl.store(out + pixel * channels + c, value.to(tl.uint8), mask=mask)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Run `mdssd.ops.resize`."""
    images, out = images.contiguous(), new_images(images, height, width)
    pixels = images.shape[:-3].numel() * height * width
    if out.numel():
        resize_kernel[(blocks(pixels, PIXELS),)](
            images, out, pixels, *images.shape[-3:], height, width, BLOCK=PIXELS, **OPTIONS
        )
    return out
