"""EfficientNet-Lite0, a trunk for processors without a GPU."""

from typing import Any, cast

import torch
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


class Float32Gradient(torch.autograd.Function):
    """A convolution in the types of its arguments, whose gradient is computed in float32.

    On a CPU, oneDNN takes three to nine times as long for the gradient of a depthwise convolution
    of 4x4 or 5x5 in bfloat16 as in float32 (benchmarks/NOTES.md).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding, groups
        return F.conv2d(x, weight, None, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, groups = ctx.options
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            grad.float(),
            x.float(),
            weight.float(),
            None,
            stride,
            padding,
            [1, 1],
            False,
            [0, 0],
            groups,
            [*ctx.needs_input_grad[:2], False],
        )
        return (
            None if of_x is None else of_x.to(x.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            None,
            None,
            None,
        )


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
        weight, padding = self.weight, [above + height % 2, left + width % 2]
        if height % 2 or width % 2:
            weight = F.pad(weight, [width % 2, 0, height % 2, 0])
        if self._trains_slowly(x):
            return cast(
                Tensor, Float32Gradient.apply(x, weight, [*self.stride], padding, self.groups)
            )
        return F.conv2d(x, weight, self.bias, self.stride, padding, groups=self.groups)

    def _trains_slowly(self, x: Tensor) -> bool:
        """Return whether the gradient is one that `Float32Gradient` computes faster."""
        device = x.device.type
        narrow = device == "cpu" and torch.is_autocast_enabled(device)
        return self.groups > 1 and self.bias is None and narrow and torch.is_grad_enabled()

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
        if stride > 1 or kernel > 3
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
