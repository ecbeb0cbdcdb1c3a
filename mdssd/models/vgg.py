"""VGG16 as SSD reduces it, and SSD's extra layers."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from mdssd.priors.maps import InputSize, extra_layers, vgg_extra_layers

# The mean that SSD subtracts from the pixels, RGB in 0-255.
MEAN_RGB = (123.0, 117.0, 104.0)


def scaled(channels: int, width: float) -> int:
    """Round `channels` times `width` to a multiple of 8, at least 8; exact at width 1."""
    return channels if width == 1 else max(8, 8 * math.floor(channels * width / 8 + 0.5))


def conv_block(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int] = 3,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
    batch_norm: bool = False,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution, batch normalisation (instead of the bias) if `batch_norm`, ReLU if `relu`."""
    block = nn.Sequential()
    block.add_module(
        "conv",
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation, bias=not batch_norm
        ),
    )
    if batch_norm:
        block.add_module("norm", nn.BatchNorm2d(out_channels))
    if relu:
        block.add_module("relu", nn.ReLU(inplace=True))
    return block


def _stage(
    number: int, convs: int, in_channels: int, channels: int, batch_norm: bool
) -> nn.Sequential:
    stage = nn.Sequential()
    for k in range(convs):
        block = conv_block(
            in_channels if k == 0 else channels, channels, padding=1, batch_norm=batch_norm
        )
        stage.add_module(f"conv{number}_{k + 1}", block)
    return stage


class VGG16(nn.Module):
    """VGG16 with fc6 and fc7 as convolutions (SSD section 3): conv1_1 to conv7.

    The maps have sizes 300, 150, 75 (conv3), 38 (conv4), 19 (conv5, conv7) for an input of 300,
    and 512, 256, 128, 64, 32 for 512.
    """

    def __init__(self, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        c1, c2, c3, c4, fc = (scaled(c, width) for c in (64, 128, 256, 512, 1024))
        self.conv1 = _stage(1, 2, 3, c1, batch_norm)
        self.conv2 = _stage(2, 2, c1, c2, batch_norm)
        self.conv3 = _stage(3, 3, c2, c3, batch_norm)
        self.conv4 = _stage(4, 3, c3, c4, batch_norm)
        self.conv5 = _stage(5, 3, c4, c4, batch_norm)
        self.fc6 = conv_block(c4, fc, 3, padding=6, dilation=6, batch_norm=batch_norm)
        self.fc7 = conv_block(fc, fc, 1, batch_norm=batch_norm)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return conv3_3 [B, 256, H/4, W/4], conv4_3 [B, 512, H/8, W/8] and conv7
        [B, 1024, H/16, W/16], each after its ReLU, of images [B, 3, H, W]. Sizes are rounded up.
        """
        x = F.max_pool2d(self.conv1(images), 2, ceil_mode=True)
        x = F.max_pool2d(self.conv2(x), 2, ceil_mode=True)
        conv3_3 = self.conv3(x)
        conv4_3 = self.conv4(F.max_pool2d(conv3_3, 2, ceil_mode=True))
        x = self.conv5(F.max_pool2d(conv4_3, 2, ceil_mode=True))
        x = F.max_pool2d(x, 3, stride=1, padding=1)
        return conv3_3, conv4_3, self.fc7(self.fc6(x))


def extra_channels(width: float) -> dict[str, int]:
    """Return the names of the maps of the extra layers, and their channels.

    Small inputs lack the last ones.
    """
    return {f"conv{n}_2": scaled(512 if n == 8 else 256, width) for n in range(8, 14)}


class ExtraLayers(nn.Module):
    """SSD's layers above conv7: conv8_2, conv9_2 and so on, until the map has a single cell.

    conv7 of size 19 becomes maps of sizes 10, 5, 3, 1; conv7 of size 32 becomes 16, 8, 4, 2, 1.
    `vgg_extra_layers` has the rule, and `extra_channels` the channels. conv7 has `in_channels`.
    """

    def __init__(
        self, in_channels: int, input_size: InputSize, width: float, batch_norm: bool
    ) -> None:
        super().__init__()
        for n, sides in enumerate(extra_layers(vgg_extra_layers, input_size), start=8):
            kernel, stride, padding = zip(*sides, strict=True)
            narrow, out = (256, 512) if n == 8 else (128, 256)  # at width 1
            layers = nn.Sequential()
            layers.add_module(
                f"conv{n}_1",
                conv_block(in_channels, scaled(narrow, width), 1, batch_norm=batch_norm),
            )
            in_channels = scaled(out, width)
            layers.add_module(
                f"conv{n}_2",
                conv_block(
                    scaled(narrow, width),
                    in_channels,
                    kernel,
                    stride=stride,
                    padding=padding,
                    batch_norm=batch_norm,
                ),
            )
            self.add_module(f"conv{n}", layers)

    def forward(self, conv7: Tensor) -> list[Tensor]:
        maps = []
        x = conv7
        for layers in self.children():
            x = layers(x)
            maps.append(x)
        return maps
