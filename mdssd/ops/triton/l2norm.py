"""l2norm, l2norm_add_relu and their gradients in Triton.

The kernels serve one map or two, in NCHW or channels-last. A program handles a tile of pixels x
channels, which it reads once and keeps in registers. Triton derives from the offsets which of the
two dimensions is contiguous and assigns neighbouring elements to neighbouring threads. If a tile
cannot hold all channels, an additional launch computes the sums over channels first.

A thread has 16 numbers of each map, which leaves registers for several programs per multiprocessor,
so that one can load while another writes. In NCHW, a tile has at least 8 neighbouring pixels
(backward: 4), because 8 float32 numbers fill the 32 bytes of a memory transaction.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._tensors import map_format
from mdssd.ops.triton.common import OPTIONS, blocks, narrow, power_of_2

TILE = 4096  # numbers of a map per program: 16 per thread of 8 warps
WARP_TILE = 512  # numbers of a map per warp
LEAST_RUN = 8  # least number of pixels of a tile in NCHW, even if the tile exceeds TILE
BACKWARD_RUN = 4  # the same for backward; with 8, two maps of 1,024 channels spill registers
MOST_CHANNELS = 1024  # most channels of a tile
SLICES = 512  # most programs of backward; each contributes one term to a scale's gradient
SLICE_TILES = 2  # least number of tiles per program, which halves the number of terms
TERMS = 64  # terms that are added at a time
# The reciprocal root takes a smaller number for 0, and a pixel of zeros would become NaN.
SMALLEST_NORMAL = 2.0**-126


@triton.jit
def tile_pixels(tile, pixels, tiles_per_image, PIXELS: tl.constexpr):
    """Return the image of a tile, its pixels within the image and the mask of valid pixels."""
    pixel = tile % tiles_per_image * PIXELS + tl.arange(0, PIXELS)
    return tile // tiles_per_image, pixel, pixel < pixels


@triton.jit
def tile_offsets(
    image, pixel, channel, pixels, channels, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr
):
    """Return the start of the image in a map and the offsets [pixels, channels] of the tile."""
    start = image.to(tl.int64) * channels * pixels
    if CHANNELS_LAST:
        return start, pixel.to(INDEX)[:, None] * channels + channel[None, :]
    else:
        return start, channel.to(INDEX)[None, :] * pixels + pixel[:, None]


@triton.jit
def channel_sums_kernel(
    x, grad, y, scale, out, eps, pixels, channels, tiles_per_image,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute sums over the channels of each pixel, for maps with more channels than a tile.

    Without `grad`, out = 1 / sqrt(sum of x^2 + eps). With `grad`, out = sum of grad * scale * x,
    and if `y` is given, only terms with y > 0 count. A program handles PIXELS pixels of an image
    and loops over their channels.
    """
    image, pixel, valid = tile_pixels(tl.program_id(0), pixels, tiles_per_image, PIXELS)
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        start, offsets = tile_offsets(image, pixel, channel, pixels, channels, CHANNELS_LAST, INDEX)
        mask = valid[:, None] & (channel < channels)[None, :]
        wide = tl.load(x + start + offsets, mask=mask, other=0).to(tl.float32)
        if grad is None:
            total += wide * wide
        else:
            g = tl.load(grad + start + offsets, mask=mask, other=0).to(tl.float32)
            if y is not None:
                passed = tl.load(y + start + offsets, mask=mask, other=0).to(tl.float32) > 0
                g = tl.where(passed, g, 0.0)
            s = tl.load(scale + channel, mask=channel < channels, other=0).to(tl.float32)
            total += g * s[None, :] * wide
    value = tl.sum(total, 1)
    if grad is None:
        value = tl.rsqrt(value + eps)
    tl.store(out + image.to(tl.int64) * pixels + pixel, value, mask=valid)


@triton.jit
def normalised(x, scale, r, offsets, row, valid, channel, fits, eps, KEPT: tl.constexpr):
    """Return scale * x / sqrt(sum of x^2 + eps) for a tile.

    If KEPT, the tile has all channels: compute the reciprocal root and store it in `r`. Otherwise
    load it from `r`.
    """
    mask = valid[:, None] & fits[None, :]
    wide = tl.load(x + offsets, mask=mask, other=0).to(tl.float32)
    if KEPT:
        reciprocal = tl.rsqrt(tl.sum(wide * wide, 1) + eps)
        tl.store(r + row, reciprocal, mask=valid)
    else:
        reciprocal = tl.load(r + row, mask=valid, other=0)
    s = tl.load(scale + channel, mask=fits, other=0).to(tl.float32)
    return wide * reciprocal[:, None] * s[None, :]


@triton.jit
def l2norm_kernel(
    a, b, scale_a, scale_b, out, ra, rb, eps, pixels, channels, tiles_per_image,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Compute n(a), or relu(n(a) + n(b)), with n(x) = scale * x / sqrt(sum_c x^2 + eps).

    Program (t, k) handles PIXELS pixels of an image and the k-th CHANNELS channels. If KEPT, these
    are all channels, and `ra` and `rb` are results; otherwise they are inputs. Sources: SSD,
    section 3.1; MDSSD, section 3.2.
    """
    image, pixel, valid = tile_pixels(tl.program_id(0), pixels, tiles_per_image, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    fits = channel < channels
    start, offsets = tile_offsets(image, pixel, channel, pixels, channels, CHANNELS_LAST, INDEX)
    row = image.to(tl.int64) * pixels + pixel
    value = normalised(a + start, scale_a, ra, offsets, row, valid, channel, fits, eps, KEPT)
    if b is not None:
        value += normalised(b + start, scale_b, rb, offsets, row, valid, channel, fits, eps, KEPT)
        value = tl.where(value <= 0, 0.0, value)  # a NaN stays
    mask = valid[:, None] & fits[None, :]
    tl.store(out + start + offsets, narrow(value, out.dtype.element_ty), mask=mask)


@triton.jit
def map_gradient(g, x, r, dot, out, offsets, row, valid, fits, s, KEPT: tl.constexpr):
    """Store r * (s * g - x * r^2 * dot) for a tile, with dot = sum_c s * g * x; return g * x * r.

    If KEPT, the tile has all channels and dot is computed here. Otherwise it is loaded from `dot`.
    """
    mask = valid[:, None] & fits[None, :]
    wide = tl.load(x + offsets, mask=mask, other=0).to(tl.float32)
    reciprocal = tl.load(r + row, mask=valid, other=0)[:, None]
    scaled = g * s[None, :]
    if KEPT:
        along = tl.sum(scaled * wide, 1)
    else:
        along = tl.load(dot + row, mask=valid, other=0)
    value = reciprocal * (scaled - wide * (reciprocal * reciprocal) * along[:, None])
    tl.store(out + offsets, narrow(value, out.dtype.element_ty), mask=mask)
    return g * wide * reciprocal


@triton.jit
def l2norm_backward_kernel(
    grad, y, a, b, scale_a, scale_b, ra, rb, dot_a, dot_b, grad_a, grad_b, partial,
    pixels, channels, tiles_per_image, tiles,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of `l2norm_kernel`: for the maps, and partial sums for the scales.

    Program (i, k) handles tiles i, i + slices, ... and the k-th CHANNELS channels. If KEPT, these
    are all channels; otherwise `dot_a` and `dot_b` are inputs. The terms of a scale's gradient are
    summed over the tiles first, separately for each pixel of a tile, and then once over the pixels
    into partial[map, i, channel].
    """
    slices = tl.num_programs(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    fits = channel < channels
    s_a = tl.load(scale_a + channel, mask=fits, other=0).to(tl.float32)
    sum_a = tl.zeros((PIXELS, CHANNELS), tl.float32)
    if b is not None:
        s_b = tl.load(scale_b + channel, mask=fits, other=0).to(tl.float32)
        sum_b = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for tile in range(tl.program_id(0), tiles, slices):
        image, pixel, valid = tile_pixels(tile, pixels, tiles_per_image, PIXELS)
        start, offsets = tile_offsets(image, pixel, channel, pixels, channels, CHANNELS_LAST, INDEX)
        row = image.to(tl.int64) * pixels + pixel
        mask = valid[:, None] & fits[None, :]
        g = tl.load(grad + start + offsets, mask=mask, other=0).to(tl.float32)
        if b is not None:
            # Compares in float32, because Triton's interpreter compares bfloat16 numbers by their
            # bits, so that a NaN is > 0.
            passed = tl.load(y + start + offsets, mask=mask, other=0).to(tl.float32) > 0
            g = tl.where(passed, g, 0.0)
            sum_b += map_gradient(
                g, b + start, rb, dot_b, grad_b + start, offsets, row, valid, fits, s_b, KEPT
            )
        sum_a += map_gradient(
            g, a + start, ra, dot_a, grad_a + start, offsets, row, valid, fits, s_a, KEPT
        )
    place = partial + tl.program_id(0) * channels + channel
    tl.store(place, tl.sum(sum_a, 0), mask=fits)
    if b is not None:
        tl.store(place + slices * channels, tl.sum(sum_b, 0), mask=fits)


@triton.jit
def scale_gradient_kernel(
    partial, out_a, out_b, slices, channels, TERMS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Set out_a[c] to the sum over i of partial[0, i, c], and out_b[c] to that of partial[1, i, c].

    Program (k, map) handles the k-th CHANNELS channels and adds in a fixed order.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    fits = channel < channels
    total = tl.zeros((TERMS, CHANNELS), tl.float32)
    for first in range(0, slices, TERMS):
        term = first + tl.arange(0, TERMS)
        offsets = (tl.program_id(1) * slices + term)[:, None] * channels + channel[None, :]
        total += tl.load(partial + offsets, mask=(term < slices)[:, None] & fits[None, :], other=0)
    value = tl.sum(total, 0)
    if tl.program_id(1) == 0:
        tl.store(out_a + channel, narrow(value, out_a.dtype.element_ty), mask=fits)
    if out_b is not None:
        if tl.program_id(1) == 1:
            tl.store(out_b + channel, narrow(value, out_b.dtype.element_ty), mask=fits)


class _Tiles:
    """The division of a map into tiles, and the kernels' arguments that follow from it."""

    def __init__(self, x: Tensor, layout: torch.memory_format, least_run: int) -> None:
        images, self.channels = x.shape[:2]
        self.pixels = x.shape[2] * x.shape[3]
        block = power_of_2(self.channels, MOST_CHANNELS)
        channels_last = layout == torch.channels_last
        pixel_block = TILE // block if channels_last else max(TILE // block, least_run)
        pixel_block = power_of_2(self.pixels, pixel_block)
        self.per_image = blocks(self.pixels, pixel_block)
        self.count = images * self.per_image
        self.channel_blocks = blocks(self.channels, block)
        self.constants: dict[str, Any] = {
            "CHANNELS_LAST": channels_last,
            "INDEX": tl.int32 if self.channels * self.pixels < 2**31 else tl.int64,
            "PIXELS": pixel_block,
            "CHANNELS": block,
            "num_warps": max(1, pixel_block * block // WARP_TILE),
            **OPTIONS,
        }

    @property
    def kept(self) -> bool:
        """Whether a tile has all channels, so that programs keep them in registers."""
        return self.channel_blocks == 1

    def channel_sums(
        self, x: Tensor, grad: Tensor | None, y: Tensor | None, scale: Tensor | None, *rest: Any
    ) -> None:
        """Launch `channel_sums_kernel`."""
        channel_sums_kernel[(self.count,)](
            x, grad, y, scale, *rest, self.pixels, self.channels, self.per_image,
            **self.constants,
        )  # fmt: skip


def _forward(maps: list[Tensor], scales: list[Tensor], eps: float) -> tuple[Tensor, ...]:
    layout = map_format(maps[0])
    maps = [x.contiguous(memory_format=layout) for x in maps]
    scales = [scale.contiguous() for scale in scales]
    eps = max(eps, SMALLEST_NORMAL)
    a = maps[0]
    out = torch.empty_like(a)
    norms = [a.new_empty(a.shape[0], *a.shape[2:], dtype=torch.float32) for _ in maps]
    if a.numel():
        tiles = _Tiles(a, layout, LEAST_RUN)
        if not tiles.kept:
            for x, r in zip(maps, norms, strict=True):
                tiles.channel_sums(x, None, None, None, r, eps)
        missing = [None] * (2 - len(maps))
        l2norm_kernel[(tiles.count, tiles.channel_blocks)](
            *maps, *missing, *scales, *missing, out, *norms, *missing,
            eps, tiles.pixels, tiles.channels, tiles.per_image,
            **tiles.constants, KEPT=tiles.kept,
        )  # fmt: skip
    return out, *norms


def _backward(
    grad: Tensor, y: Tensor | None, maps: list[Tensor], scales: list[Tensor], norms: list[Tensor]
) -> tuple[Tensor, ...]:
    layout = map_format(maps[0])
    grad = grad.contiguous(memory_format=layout)
    if y is not None:
        y = y.contiguous(memory_format=layout)
    maps = [x.contiguous(memory_format=layout) for x in maps]
    scales, norms = [scale.contiguous() for scale in scales], [r.contiguous() for r in norms]
    grads = [torch.empty_like(x) for x in maps]
    if not grad.numel():
        return *grads, *(torch.zeros_like(scale) for scale in scales)
    grad_scales = [torch.empty_like(scale) for scale in scales]
    tiles = _Tiles(grad, layout, BACKWARD_RUN)
    dots: list[Tensor | None] = [None] * len(maps)
    if not tiles.kept:
        dots = [torch.empty_like(r) for r in norms]
        for x, scale, dot in zip(maps, scales, dots, strict=True):
            tiles.channel_sums(x, grad, y, scale, dot, 0.0)
    slices = min(blocks(tiles.count, SLICE_TILES), SLICES)
    partial = grad.new_empty(len(maps), slices, tiles.channels, dtype=torch.float32)
    missing = [None] * (2 - len(maps))
    l2norm_backward_kernel[(slices, tiles.channel_blocks)](
        grad, y, *maps, *missing, *scales, *missing, *norms, *missing, *dots, *missing,
        *grads, *missing, partial, tiles.pixels, tiles.channels, tiles.per_image, tiles.count,
        **tiles.constants, KEPT=tiles.kept,
    )  # fmt: skip
    block = power_of_2(tiles.channels, 32)
    scale_gradient_kernel[(blocks(tiles.channels, block), len(maps))](
        partial, *grad_scales, *missing, slices, tiles.channels,
        TERMS=TERMS, CHANNELS=block, **OPTIONS,
    )  # fmt: skip
    return *grads, *grad_scales


def l2norm(x: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Run `mdssd.ops.l2norm`; also return the reciprocal norms [B, H, W] in float32."""
    return _forward([x], [scale], eps)


def l2norm_backward(grad: Tensor, x: Tensor, scale: Tensor, r: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of `l2norm` with respect to the map and the scale."""
    return _backward(grad, None, [x], [scale], [r])


def l2norm_add_relu(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, eps: float
) -> tuple[Tensor, ...]:
    """Run `mdssd.ops.l2norm_add_relu`; also return the reciprocal norms [B, H, W] in float32."""
    return _forward([a, b], [scale_a, scale_b], eps)


def l2norm_add_relu_backward(
    grad: Tensor, y: Tensor, a: Tensor, b: Tensor,
    scale_a: Tensor, scale_b: Tensor, ra: Tensor, rb: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of `l2norm_add_relu` with respect to the maps, then the scales."""
    return _backward(grad, y, [a, b], [scale_a, scale_b], [ra, rb])
