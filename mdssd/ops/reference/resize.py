"""Reference of resize."""

from __future__ import annotations

import torch
from torch import Tensor

_FRACTION_BITS = 11  # of a pixel: kFractionBits of csrc/resize_math.h


def _taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `target` places: two of the `source` places, and the second's share of 2048."""
    i = torch.arange(target, device=device)
    numerator = (((2 * i + 1) * source - target) << _FRACTION_BITS) + target
    position = (numerator.clamp(min=0) // (2 * target)).clamp(max=(source - 1) << _FRACTION_BITS)
    first = position >> _FRACTION_BITS
    return first, (first + 1).clamp(max=source - 1), position & ((1 << _FRACTION_BITS) - 1)


def resize(images: Tensor, height: int, width: int) -> Tensor:
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
