"""The trunks of SSD and MDSSD by their names."""

from torch import nn

from mdssd.models.efficientnet import EfficientNetLite0
from mdssd.models.resnet import ResNet101
from mdssd.models.vgg import VGG16, scaled


def make_trunk(name: str, width: float, batch_norm: bool) -> nn.Module:
    """Make the network that turns images into maps of strides 4, 8 and 16, rounded up.

    Args:
        name: one of `mdssd.names.TRUNKS`.
        width: factor for the channels of VGG16 and ResNet-101; EfficientNet-Lite0 has its own.
        batch_norm: whether VGG16 has batch normalisation; the others always have it.
    """
    if name == "efficientnet_lite0":
        return EfficientNetLite0()
    return ResNet101(width) if name == "resnet101" else VGG16(width, batch_norm)


def trunk_channels(name: str, width: float) -> tuple[int, int, int]:
    """Return the channels of the maps of strides 4, 8 and 16 of the trunk of this name."""
    if name == "efficientnet_lite0":
        return EfficientNetLite0.channels
    low, middle, high = (256, 512, 2048) if name == "resnet101" else (256, 512, 1024)
    return scaled(low, width), scaled(middle, width), scaled(high, width)
