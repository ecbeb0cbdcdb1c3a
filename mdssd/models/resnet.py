"""ResNet-101 as SSD and DSSD use it, and residual blocks."""

from torch import Tensor, nn
from torch.nn import functional as F

from mdssd.models.vgg import scaled
from mdssd.priors.maps import InputSize, extra_layers, resnet_extra_layers

# Of batch normalisation, as in Caffe; PyTorch's default is 1e-5.
_EPS = 1e-3


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    padding: int = 0,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution without bias, batch normalisation, and ReLU if `relu`."""
    block = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False),
        nn.BatchNorm2d(out_channels, _EPS),
    )
    if relu:
        block.append(nn.ReLU(inplace=True))
    return block


class Bottleneck(nn.Module):
    """A residual block: convolutions 1x1, 3x3, 1x1 with batch normalisation, sum, ReLU.

    `kernel` and `stride` apply to the first convolution and, with `project`, to the convolution in
    the shortcut; `dilation` applies to the 3x3. Parameters are named as in torchvision.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        kernel: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        project: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, mid_channels, kernel, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_channels, _EPS)
        self.conv2 = nn.Conv2d(
            mid_channels, mid_channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(mid_channels, _EPS)
        self.conv3 = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, _EPS)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel, stride, bias=False),
                nn.BatchNorm2d(out_channels, _EPS),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


def _stage(
    blocks: int, in_channels: int, mid: int, out: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    first = Bottleneck(in_channels, mid, out, stride=stride, dilation=dilation)
    rest = (Bottleneck(out, mid, out, dilation=dilation, project=False) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class ResNet101(nn.Module):
    """ResNet-101 (He et al., 2016) without its classifier, as in DSSD.

    The stride of a stage is on its first 1x1 convolution. The last stage has stride 1 and dilation
    2. pool1 has no padding and rounds up. The maps have sizes 161, 80, 40 (res3b3), 20, 20 (res5c)
    for an input of 321, and 257, 128, 64, 32, 32 for 513.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (scaled(c, width) for c in (64, 128, 256, 512, 1024))
        self.conv1 = nn.Conv2d(3, c1, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(c1, _EPS)
        self.layer1 = _stage(3, c1, c1, c3)
        self.layer2 = _stage(4, c3, c2, c4, stride=2)
        self.layer3 = _stage(23, c4, c3, c5, stride=2)
        self.layer4 = _stage(3, c5, c4, scaled(2048, width), dilation=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return res2c [B, 256, H/4, W/4], res3b3 [B, 512, H/8, W/8] and res5c
        [B, 2048, H/16, W/16], each after its ReLU, of images [B, 3, H, W].

        Sizes of 321 and 513 are rounded down, and those of the other inputs up.
        """
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        res2c = self.layer1(x)
        res3b3 = self.layer2(res2c)
        return res2c, res3b3, self.layer4(self.layer3(res3b3))


class ExtraBlocks(nn.Module):
    """DSSD's residual blocks above res5c: res6 and up, until the map has a single cell.

    res5c of size 20 becomes maps of sizes 10, 5, 3, 1; res5c of size 32 becomes 16, 8, 4, 2, 1.
    `resnet_extra_layers` has the rule. All have 1024 channels.
    """

    def __init__(self, input_size: InputSize, width: float = 1.0) -> None:
        super().__init__()
        in_channels, out = scaled(2048, width), scaled(1024, width)
        for n, sides in enumerate(extra_layers(resnet_extra_layers, input_size), start=6):
            kernel, stride, _ = zip(*sides, strict=True)
            block = Bottleneck(in_channels, scaled(256, width), out, kernel=kernel, stride=stride)
            self.add_module(f"res{n}", block)
            in_channels = out

    def forward(self, res5c: Tensor) -> list[Tensor]:
        maps = []
        x = res5c
        for block in self.children():
            x = block(x)
            maps.append(x)
        return maps
