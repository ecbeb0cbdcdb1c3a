"""The light forms of SSD's and MDSSD's layers: depthwise convolutions and 1x1 convolutions.

Each is normalised and followed by ReLU6, as in SSDlite (MobileNetV2, Sandler et al., 2018). Batch
normalisation folds into the convolution before it, and ReLU6 suits quantisation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdssd import ops
from mdssd.models.vgg import scaled
from mdssd.priors import PriorLayer
from mdssd.priors.maps import ExtraLayer, InputSize, extra_layers, vgg_extra_layers

Sides = int | tuple[int, int]

# Initial L2Norm scales of the low and the high map; `mdssd.models.mdssd` has the reason.
_SCALES = (1.0, 0.1)
_SAME = ExtraLayer(kernel=3, stride=1, padding=1)
# Channels of the extra layers at width 1, as in `mdssd.models.vgg`.
_FIRST, _OTHERS = (256, 512), (128, 256)


def _normalised(convolution: nn.Conv2d, relu: bool) -> nn.Sequential:
    block = nn.Sequential()
    block.add_module("conv", convolution)
    block.add_module("norm", nn.BatchNorm2d(convolution.out_channels))
    if relu:
        block.add_module("relu", nn.ReLU6(inplace=True))
    return block


def pointwise(in_channels: int, out_channels: int, *, relu: bool = True) -> nn.Sequential:
    """1x1 convolution without bias, batch normalisation, ReLU6 if `relu`."""
    return _normalised(nn.Conv2d(in_channels, out_channels, 1, bias=False), relu)


def depthwise(
    channels: int,
    kernel: Sides = 3,
    stride: Sides = 1,
    padding: Sides = 1,
    *,
    relu: bool = True,
) -> nn.Sequential:
    """Depthwise convolution without bias, batch normalisation, ReLU6 if `relu`."""
    return _normalised(
        nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False), relu
    )


class Enlarge(nn.Module):
    """Doubles a map by repeating its cells, then cuts off the edges to leave `size` (height, width)
    cells.

    The edges lose equally much; of an odd number, the last edge loses one cell more. So each cell
    stays where the deconvolution of MDSSD would put it. A depthwise deconvolution takes PyTorch
    many times as long on a CPU (benchmarks/NOTES.md).
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.size is None or self.size == tuple(x.shape[2:]):
            return x
        height, width = self.size
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, left : left + width]


class LightFusion(nn.Module):
    """MDSSD's `FusionModule` from depthwise and 1x1 convolutions, apart from one 3x3 convolution.

    low:  3x3 convolution -> L2Norm
    high: [1x1, twice as large, 3x3 depthwise] x 3 -> L2Norm
    sum -> ReLU -> 3x3 depthwise -> 1x1

    low [B, low_channels, H, W] and high [B, high_channels, T, U] become [B, out_channels, H, W];
    `size` is (H, W). The 1x1 convolutions of the high map come before it is enlarged, which is a
    quarter of the work. The low map has few channels but all detail: with a depthwise and a 1x1
    convolution there, small objects are learnt much later (benchmarks/NOTES.md).
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        middle_channels: int,
        out_channels: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        low = nn.Conv2d(low_channels, out_channels, 3, padding=1, bias=False)
        self.low = _normalised(low, relu=False)
        self.high = nn.Sequential(
            pointwise(high_channels, middle_channels),
            Enlarge(),
            depthwise(middle_channels, relu=False),
            pointwise(middle_channels, middle_channels),
            Enlarge(),
            depthwise(middle_channels, relu=False),
            pointwise(middle_channels, out_channels),
            Enlarge(size),
            depthwise(out_channels, relu=False),
        )
        low_scale, high_scale = _SCALES
        self.scale_low = nn.Parameter(torch.full((out_channels,), low_scale))
        self.scale_high = nn.Parameter(torch.full((out_channels,), high_scale))
        self.out = nn.Sequential(depthwise(out_channels), pointwise(out_channels, out_channels))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        fused = ops.l2norm_add_relu(self.low(low), self.high(high), self.scale_low, self.scale_high)
        return self.out(fused)


class LightExtraLayers(nn.Module):
    """SSD's extra layers: 1x1 convolution, depthwise convolution, 1x1 convolution.

    The depthwise one has the kernel, stride and padding of conv8_2 and so on, so the maps have the
    sizes of `mdssd.models.vgg.ExtraLayers`, and its channels.
    """

    def __init__(self, in_channels: int, input_size: InputSize, width: float) -> None:
        super().__init__()
        for n, sides in enumerate(extra_layers(vgg_extra_layers, input_size), start=8):
            kernel, stride, padding = zip(*sides, strict=True)
            narrow, out = (scaled(c, width) for c in (_FIRST if n == 8 else _OTHERS))
            layers = nn.Sequential()
            layers.add_module(f"conv{n}_1", pointwise(in_channels, narrow))
            layers.add_module("depthwise", depthwise(narrow, kernel, stride, padding))
            layers.add_module(f"conv{n}_2", pointwise(narrow, out))
            self.add_module(f"conv{n}", layers)
            in_channels = out

    def forward(self, conv7: Tensor) -> list[Tensor]:
        maps = []
        x = conv7
        for layers in self.children():
            x = layers(x)
            maps.append(x)
        return maps


def rows_and_columns(layer: PriorLayer) -> tuple[int, int]:
    """Return the height and the width of a layer's map, in cells."""
    row, column = layer.grids
    return column.size, row.size
