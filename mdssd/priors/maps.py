"""The feature maps of the networks, for each size of the input: one rule.

A side of S pixels, a multiple of 32, has maps of S/4, S/8 and S/16 cells. Layers above them reduce
S/16 to 1. The rules below reproduce the layers of SSD300 and SSD512, and of SSD321 and SSD513 on
ResNet-101, whose papers and code they follow.

The width and the height of an input follow the rule independently of each other. The shorter side
has a single cell first, and keeps it while the layers above reduce the longer side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple, TypeAlias

from mdssd.names import INPUT_SIZES

# The side of a square input, in pixels, or width and height of one that is not a square.
InputSize: TypeAlias = int | tuple[int, int]

# The sizes that the papers have: those of the networks on VGG16, and on ResNet-101.
VGG_PAPER_SIZES = (300, 512)
RESNET_PAPER_SIZES = (321, 513)


class ExtraLayer(NamedTuple):
    """The convolution that makes a map from the one below: kernel, stride and padding.

    Example:
        >>> from mdssd.priors.maps import ExtraLayer
        >>> ExtraLayer(kernel=3, stride=2, padding=1).out(19)
        10
    """

    kernel: int
    stride: int
    padding: int

    def out(self, size: int) -> int:
        """Return the number of cells of the map along a side, from that of the map below."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


# What a layer does along a side that has a single cell already.
_KEEP = ExtraLayer(1, 1, 0)


class Grid(NamedTuple):
    """The cells of a map along one side: their number, their distance, the centre of the first.

    `step` and `first` are in pixels of the input; `first` None means half a step.
    """

    size: int
    step: float
    first: float | None = None


def width_height(input_size: InputSize) -> tuple[int, int]:
    """Return width and height of the input, in pixels.

    Example:
        >>> from mdssd.priors.maps import width_height
        >>> width_height(300), width_height((640, 384))
        ((300, 300), (640, 384))
    """
    return input_size if isinstance(input_size, tuple) else (input_size, input_size)


def mean_side(input_size: InputSize) -> float:
    """Return the side of the square of the same area, in pixels.

    Example:
        >>> from mdssd.priors.maps import mean_side
        >>> mean_side(300), mean_side((512, 288))
        (300, 384.0)
    """
    return math.sqrt(math.prod(input_size)) if isinstance(input_size, tuple) else input_size


def size_text(input_size: InputSize) -> str:
    """Return the size as the names of models have it.

    Example:
        >>> from mdssd.priors.maps import size_text
        >>> size_text(300), size_text((640, 384))
        ('300', '640x384')
    """
    return "x".join(map(str, input_size)) if isinstance(input_size, tuple) else str(input_size)


def check_input_size(where: str, input_size: object, paper_sizes: tuple[int, ...]) -> None:
    """Check that a network can have this input size.

    Args:
        where: what the message begins with, up to what is expected.
        input_size: side of the input, or (width, height) of one that is not a square, in pixels.
        paper_sizes: the sizes of the network's papers.

    Raises:
        ValueError: a side is no multiple of 32 from 256 to 1024, and it is none of `paper_sizes`.

    Example:
        >>> from mdssd.priors.maps import VGG_PAPER_SIZES, check_input_size
        >>> check_input_size("--input-size: expected", 640, VGG_PAPER_SIZES)
        >>> check_input_size("--input-size: expected", 250, VGG_PAPER_SIZES)
        Traceback (most recent call last):
        ValueError: --input-size: expected a multiple of 32 from 256 to 1024, or 300, got 250
    """
    if type(input_size) is int and input_size in (*INPUT_SIZES, *paper_sizes):
        return
    sides = input_size if isinstance(input_size, tuple) else ()
    if len(sides) == 2 and all(type(side) is int and side in INPUT_SIZES for side in sides):
        if sides[0] != sides[1]:
            return
        raise ValueError(f"{where} the number {sides[0]} for a square, got {input_size!r}")
    multiple = f"a multiple of {INPUT_SIZES.step} from {INPUT_SIZES[0]} to {INPUT_SIZES[-1]}"
    if sides:
        raise ValueError(f"{where} width and height, each {multiple}, got {input_size!r}")
    own = " or ".join(str(size) for size in paper_sizes if size not in INPUT_SIZES)
    raise ValueError(f"{where} {multiple}, or {own}, got {input_size!r}")


def extra_layers(
    rule: Callable[[int], tuple[ExtraLayer, ...]], input_size: InputSize
) -> list[tuple[ExtraLayer, ExtraLayer]]:
    """Return what the layers do down a column and along a row, in PyTorch's order of the sides.

    Args:
        rule: `vgg_extra_layers` or `resnet_extra_layers`.
        input_size: as in `check_input_size`.

    Example:
        >>> from mdssd.priors.maps import extra_layers, vgg_extra_layers
        >>> down, along = extra_layers(vgg_extra_layers, (640, 384))[-1]
        >>> down.kernel, along.kernel
        (1, 3)
    """
    width, height = width_height(input_size)
    return list(zip_longest(rule(height), rule(width), fillvalue=_KEEP))


def grids(
    rule: Callable[[int], tuple[Grid, ...]], input_size: InputSize
) -> list[tuple[Grid, Grid]]:
    """Return the cells along a row and down a column of each map, low to high.

    Args:
        rule: `vgg_grids` or `resnet_grids`.
        input_size: as in `check_input_size`.

    Example:
        >>> from mdssd.priors.maps import grids, vgg_grids
        >>> [(row.size, column.size) for row, column in grids(vgg_grids, (640, 384))]
        [(80, 48), (40, 24), (20, 12), (10, 6), (5, 3), (3, 1), (1, 1)]
    """
    rows, columns = map(rule, width_height(input_size))
    single = rows[-1] if len(rows) < len(columns) else columns[-1]
    return list(zip_longest(rows, columns, fillvalue=single))


def vgg_extra_layers(side: int) -> tuple[ExtraLayer, ...]:
    """Return the 3x3 (or 4x4) convolutions of conv8_2 and up along a side, until one cell is left.

    A layer halves the map and rounds up: kernel 3, stride 2, padding 1. At the end 5 cells become 3
    and 3 become 1 without stride and padding, and 2 become 1 by kernel 4 and padding 1.

    Example:
        >>> from mdssd.priors.maps import vgg_extra_layers
        >>> vgg_extra_layers(300)[-1], len(vgg_extra_layers(640))
        (ExtraLayer(kernel=3, stride=1, padding=0), 5)
    """
    size, layers = _sixteenth(side), []
    while size > 1:
        if size in (3, 5):
            layer = ExtraLayer(3, 1, 0)
        else:
            layer = ExtraLayer(4, 1, 1) if size == 2 else ExtraLayer(3, 2, 1)
        layers.append(layer)
        size = layer.out(size)
    return tuple(layers)


def vgg_grids(side: int) -> tuple[Grid, ...]:
    """Return the cells of conv4_3, conv7, conv8_2 and up along a side.

    The cells divide the side evenly. Those of SSD300 are of its code, whose steps are the strides:
    38 cells of 8 pixels, and so on.

    Example:
        >>> from mdssd.priors.maps import vgg_grids
        >>> [grid.size for grid in vgg_grids(640)]
        [80, 40, 20, 10, 5, 3, 1]
        >>> [grid.step for grid in vgg_grids(300)]
        [8, 16, 32, 64, 100.0, 300.0]
    """
    sizes = [-(-side // 8), _sixteenth(side)]
    for layer in vgg_extra_layers(side):
        sizes.append(layer.out(sizes[-1]))
    steps: list[float] = [side / size for size in sizes]
    if side == 300:
        steps[:4] = 8, 16, 32, 64
    return tuple(map(Grid, sizes, steps))


def deconvolution(size: int, wanted: int) -> tuple[int, int]:
    """Return kernel and padding of the deconvolution of stride 2 from `size` cells to `wanted`.

    The kernel is 2 or 3, as `wanted` is even or odd, and the padding cuts off what is too much.

    Example:
        >>> from mdssd.priors.maps import deconvolution
        >>> deconvolution(40, 75), deconvolution(20, 38), deconvolution(16, 32)
        ((3, 3), (2, 1), (2, 0))
    """
    kernel = 2 + wanted % 2
    return kernel, ((size - 1) * 2 + kernel - wanted) // 2


def resnet_extra_layers(side: int) -> tuple[ExtraLayer, ...]:
    """Return kernel and stride of the blocks of res6 and up along a side, until one cell is left.

    None has padding. An even number of cells is halved by kernel 2, an odd one by kernel 3, so that
    a deconvolution of the same kernel and stride has exactly the size of the map below. At the end
    5 cells become 3 and 3 become 1 without stride.

    Example:
        >>> from mdssd.priors.maps import resnet_extra_layers
        >>> [layer[:2] for layer in resnet_extra_layers(321)]
        [(2, 2), (2, 2), (3, 1), (3, 1)]
    """
    size, layers = side // 16, []
    while size > 1:
        layer = ExtraLayer(2 + size % 2, 1 if size in (3, 5) else 2, 0)
        layers.append(layer)
        size = layer.out(size)
    return tuple(layers)


def resnet_grids(side: int) -> tuple[Grid, ...]:
    """Return the cells of res3b3, res5c, res6 and up along a side.

    A cell is centred where the middle of its receptive field is; a single cell, in the middle of
    the side. The first cells of res3b3 and res5c are centred at 2.5 pixels, because pool1 has no
    padding.

    Example:
        >>> from mdssd.priors.maps import resnet_grids
        >>> resnet_grids(321)[2:5:2]
        (Grid(size=10, step=32, first=10.5), Grid(size=3, step=64, first=90.5))
    """
    size, step, first = side // 16, 16, 2.5
    cells = [Grid(side // 8, 8, first), Grid(size, step, first)]
    for layer in resnet_extra_layers(side):
        first += step * (layer.kernel - 1) / 2
        size, step = layer.out(size), step * layer.stride
        cells.append(Grid(size, step, first) if size > 1 else Grid(1, side, side / 2))
    return tuple(cells)


def _sixteenth(side: int) -> int:
    """The number of cells of conv7 along a side: pooling rounds up."""
    return -(-side // 16)
