"""Resizing of images on the device, so that a camera's frame goes up as bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._dispatch import check_tensor, define, native

_FRACTION_BITS = 11  # of a pixel: kFractionBits of csrc/resize_math.h


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images linearly, as OpenCV's `resize` with INTER_LINEAR does, to within one level.

    Args:
        images: [..., H, W, C] uint8, channels last, H and W at least 1.
        size: (height, width) of the result, at least 1.

    Returns:
        [..., height, width, C] uint8. Pixel centres lie at halves, the border pixels extend
        outwards, nothing is smoothed when the image shrinks, halves round up: the same bytes on
        every backend. Any leading size, and C, may be 0. No gradient.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype or shape, an image has no
            pixel, a size is below 1.
    """
    check_tensor("resize", "images", images, (None, "H", "W", "C"), dtypes=(torch.uint8,))
    if 0 in images.shape[-3:-1]:
        raise ValueError(f"resize: images: expected H and W above 0, got {list(images.shape)}")
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"resize: size: expected (height, width), got {size!r}")
    for side in size:
        if isinstance(side, bool) or not isinstance(side, int):
            raise TypeError(f"resize: size: expected two ints, got {size!r}")
        if side < 1:
            raise ValueError(f"resize: size: expected sides above 0, got {size!r}")
    return _resize(images, size[0], size[1])


# --- reference ---------------------------------------------------------------------------------


def _taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of `target` places: two of `source` places and the second's share, of 2048."""
    i = torch.arange(target, device=device)
    numerator = (((2 * i + 1) * source - target) << _FRACTION_BITS) + target
    position = (numerator.clamp(min=0) // (2 * target)).clamp(max=(source - 1) << _FRACTION_BITS)
    first = position >> _FRACTION_BITS
    return first, (first + 1).clamp(max=source - 1), position & ((1 << _FRACTION_BITS) - 1)


def _resize_reference(images: Tensor, height: int, width: int) -> Tensor:
    top, bottom, down = _taps(images.shape[-3], height, images.device)
    left, right, along = _taps(images.shape[-2], width, images.device)
    one = 1 << _FRACTION_BITS

    def line(rows: Tensor) -> Tensor:
        pixels = images.index_select(-3, rows).int()
        a, b = pixels.index_select(-2, left), pixels.index_select(-2, right)
        return a * (one - along)[:, None] + b * along[:, None]

    down = down[:, None, None]
    total = line(top) * (one - down) + line(bottom) * down
    return ((total + one * one // 2) >> (2 * _FRACTION_BITS)).to(torch.uint8)


# --- cpp, cuda -----------------------------------------------------------------------------------


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """The result before it is written, dense."""
    return images.new_empty(*images.shape[:-3], height, width, images.shape[-1])


def _arguments(images: Tensor, out: Tensor) -> tuple[int, ...]:
    count = images.shape[:-3].numel()
    return (images.data_ptr(), count, *images.shape[-3:], *out.shape[-3:-1], out.data_ptr())


def _resize_cpp(images: Tensor, height: int, width: int) -> Tensor:
    images, out = images.contiguous(), resized(images, height, width)
    native.resize_cpu(*_arguments(images, out), torch.get_num_threads())
    return out


def _resize_cuda(kernels: Any, stream: int, images: Tensor, height: int, width: int) -> Tensor:
    images, out = images.contiguous(), resized(images, height, width)
    kernels.resize_cuda(*_arguments(images, out), stream)
    return out


# --- definition ----------------------------------------------------------------------------------

_resize = define(
    "resize(Tensor images, SymInt height, SymInt width) -> Tensor",
    reference=_resize_reference,
    cpp=_resize_cpp,
    cuda=_resize_cuda,
    triton="resize.resize",
    batched=(0,),
    leading=True,
    fake=resized,
)
