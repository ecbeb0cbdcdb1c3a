"""The feature maps of the networks, for each size of the input: one rule.

An input of S pixels, a multiple of 32, has maps of S/4, S/8 and S/16 cells in a row. Layers above
them reduce S/16 to 1. The rules below reproduce the layers of SSD300 and SSD512, and of SSD321 and
SSD513 on ResNet-101, whose papers and code they follow.
"""

from __future__ import annotations

from typing import NamedTuple

from mdssd.names import INPUT_SIZES

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
        """Return the number of cells in a row of the map, from that of the map below."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


class Grid(NamedTuple):
    """The cells of a map: their number in a row, their distance, the centre of the first.

    `step` and `first` are in pixels of the input; `first` None means half a step.
    """

    size: int
    step: float
    first: float | None = None


def check_input_size(where: str, input_size: object, paper_sizes: tuple[int, ...]) -> None:
    """Check that a network can have this input size.

    Args:
        where: what the message begins with, up to what is expected.
        input_size: side of the input, in pixels.
        paper_sizes: the sizes of the network's papers.

    Raises:
        ValueError: it is neither a multiple of 32 from 256 to 1024 nor one of `paper_sizes`.

    Example:
        >>> from mdssd.priors.maps import VGG_PAPER_SIZES, check_input_size
        >>> check_input_size("--input-size: expected", 640, VGG_PAPER_SIZES)
        >>> check_input_size("--input-size: expected", 250, VGG_PAPER_SIZES)
        Traceback (most recent call last):
        ValueError: --input-size: expected a multiple of 32 from 256 to 1024, or 300, got 250
    """
    if type(input_size) is int and input_size in (*INPUT_SIZES, *paper_sizes):
        return
    own = " or ".join(str(size) for size in paper_sizes if size not in INPUT_SIZES)
    raise ValueError(
        f"{where} a multiple of {INPUT_SIZES.step} from {INPUT_SIZES[0]} to "
        f"{INPUT_SIZES[-1]}, or {own}, got {input_size!r}"
    )


def vgg_extra_layers(input_size: int) -> tuple[ExtraLayer, ...]:
    """Return the 3x3 (or 4x4) convolutions of conv8_2 and up, until the map is a single cell.

    A layer halves the map and rounds up: kernel 3, stride 2, padding 1. At the end 5 cells become 3
    and 3 become 1 without stride and padding, and 2 become 1 by kernel 4 and padding 1.

    Example:
        >>> from mdssd.priors.maps import vgg_extra_layers
        >>> vgg_extra_layers(300)[-1], len(vgg_extra_layers(640))
        (ExtraLayer(kernel=3, stride=1, padding=0), 5)
    """
    size, layers = _sixteenth(input_size), []
    while size > 1:
        if size in (3, 5):
            layer = ExtraLayer(3, 1, 0)
        else:
            layer = ExtraLayer(4, 1, 1) if size == 2 else ExtraLayer(3, 2, 1)
        layers.append(layer)
        size = layer.out(size)
    return tuple(layers)


def vgg_grids(input_size: int) -> tuple[Grid, ...]:
    """Return the cells of conv4_3, conv7, conv8_2 and up.

    The cells divide the input evenly. Those of SSD300 are of its code, whose steps are the strides:
    38 cells of 8 pixels, and so on.

    Example:
        >>> from mdssd.priors.maps import vgg_grids
        >>> [grid.size for grid in vgg_grids(640)]
        [80, 40, 20, 10, 5, 3, 1]
        >>> [grid.step for grid in vgg_grids(300)]
        [8, 16, 32, 64, 100.0, 300.0]
    """
    sizes = [-(-input_size // 8), _sixteenth(input_size)]
    for layer in vgg_extra_layers(input_size):
        sizes.append(layer.out(sizes[-1]))
    steps: list[float] = [input_size / size for size in sizes]
    if input_size == 300:
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


def resnet_extra_layers(input_size: int) -> tuple[ExtraLayer, ...]:
    """Return kernel and stride of the residual blocks of res6 and up, until the map has one cell.

    None has padding. An even number of cells is halved by kernel 2, an odd one by kernel 3, so that
    a deconvolution of the same kernel and stride has exactly the size of the map below. At the end
    5 cells become 3 and 3 become 1 without stride.

    Example:
        >>> from mdssd.priors.maps import resnet_extra_layers
        >>> [layer[:2] for layer in resnet_extra_layers(321)]
        [(2, 2), (2, 2), (3, 1), (3, 1)]
    """
    size, layers = input_size // 16, []
    while size > 1:
        layer = ExtraLayer(2 + size % 2, 1 if size in (3, 5) else 2, 0)
        layers.append(layer)
        size = layer.out(size)
    return tuple(layers)


def resnet_grids(input_size: int) -> tuple[Grid, ...]:
    """Return the cells of res3b3, res5c, res6 and up.

    A cell is centred where the middle of its receptive field is; a single cell, in the middle of
    the input. The first cells of res3b3 and res5c are centred at 2.5 pixels, because pool1 has no
    padding.

    Example:
        >>> from mdssd.priors.maps import resnet_grids
        >>> resnet_grids(321)[2:5:2]
        (Grid(size=10, step=32, first=10.5), Grid(size=3, step=64, first=90.5))
    """
    size, step, first = input_size // 16, 16, 2.5
    grids = [Grid(input_size // 8, 8, first), Grid(size, step, first)]
    for layer in resnet_extra_layers(input_size):
        first += step * (layer.kernel - 1) / 2
        size, step = layer.out(size), step * layer.stride
        single = Grid(1, input_size, input_size / 2)
        grids.append(Grid(size, step, first) if size > 1 else single)
    return tuple(grids)


def _sixteenth(input_size: int) -> int:
    """The number of cells in a row of conv7: pooling rounds up."""
    return -(-input_size // 16)
