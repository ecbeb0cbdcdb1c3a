"""EfficientNet-Lite0, a trunk for processors without a GPU."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

# Of batch normalisation, as in the original network; PyTorch's default is 1e-5.
_EPS = 1e-3
# The stages up to stride 16: blocks, kernel, stride of the first block, factor of the hidden
# channels, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
)
# The blocks whose outputs are the maps of strides 4, 8 and 16.
_MAPS = (2, 4, 10)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: ceil(size / stride) outputs along each side.

    The zeros lie around the map, and the odd one is below and to the right. In that case the kernel
    gets a row or column of zeros in front, which needs equally many zeros on both sides, so that no
    padded copy of the map is made.
    """

    def forward(self, x: Tensor) -> Tensor:
        (height, above), (width, left) = (
            self._zeros(*sides)
            for sides in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        )
        weight = F.pad(self.weight, [width % 2, 0, height % 2, 0])
        padding = (above + height % 2, left + width % 2)
        return F.conv2d(x, weight, self.bias, self.stride, padding, groups=self.groups)

    @staticmethod
    def _zeros(size: int, kernel: int, stride: int) -> tuple[int, int]:
        """Return how many zeros a side gets, and how many of them lie before the map."""
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total, total // 2


def _normalised(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution without bias, batch normalisation, and ReLU6 if `relu`."""
    block = nn.Sequential()
    block.add_module(
        "conv",
        SameConv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        if stride > 1
        else nn.Conv2d(
            in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False
        ),
    )
    block.add_module("norm", nn.BatchNorm2d(out_channels, _EPS))
    if relu:
        block.add_module("relu", nn.ReLU6(inplace=True))
    return block


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, 1x1 convolution to few channels.

    The input is added if it has the shape of the output. `expand` 1 leaves the first out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expand: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.expand = _normalised(in_channels, hidden) if expand > 1 else nn.Identity()
        self.depthwise = _normalised(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _normalised(hidden, out_channels, relu=False)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = cast(Tensor, self.project(self.depthwise(self.expand(x))))
        return out + x if self.is_residual else out


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last map of stride 16, the 11th of its 16 blocks.

    It has no squeeze-and-excitation and ReLU6 instead of swish, so it can be quantised. Its widths
    are fixed: ImageNet weights fit it. The maps have sizes 75, 38, 19 for an input of 300, and 128,
    64, 32 for 512.

    Source: EfficientNet (Tan and Le, 2019), and the code of its Lite variants.
    """

    channels = (24, 40, 112)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _normalised(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        in_channels = 32
        for count, kernel, stride, expand, out_channels in _STAGES:
            for k in range(count):
                self.blocks.append(
                    InvertedResidual(
                        in_channels, out_channels, kernel, stride if k == 0 else 1, expand
                    )
                )
                in_channels = out_channels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps [B, 24, H/4, W/4], [B, 40, H/8, W/8] and [B, 112, H/16, W/16] of images
        [B, 3, H, W]. No ReLU follows their convolutions. Sizes are rounded up.
        """
        x = self.stem(images)
        maps = []
        for n, block in enumerate(self.blocks):
            x = block(x)
            if n in _MAPS:
                maps.append(x)
        stride4, stride8, stride16 = maps
        return stride4, stride8, stride16
