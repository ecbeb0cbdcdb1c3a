"""The trunks of SSD and MDSSD by their names."""

from torch import nn

from mdssd.models.efficientnet import EfficientNetLite0
from mdssd.models.resnet import ResNet101
from mdssd.models.timm_trunk import TimmTrunk, check_maps, timm_channels
from mdssd.models.vgg import VGG16, scaled
from mdssd.names import TRUNKS
from mdssd.priors.maps import InputSize, width_height


def make_trunk(name: str, width: float, batch_norm: bool, input_size: InputSize) -> nn.Module:
    """Make the network that turns images into maps of strides 4, 8 and 16, rounded up.

    Args:
        name: one of `mdssd.names.TRUNKS`, or the name of a network of timm.
        width: factor for the channels of VGG16 and ResNet-101; the others have their own.
        batch_norm: whether VGG16 has batch normalisation; the others decide it themselves.
        input_size: of the images, to which the maps of a network of timm must fit.

    Raises:
        ValueError: they do not fit.
    """
    if name == "efficientnet_lite0":
        return EfficientNetLite0()
    if name == "resnet101":
        return ResNet101(width)
    if name == "vgg16":
        return VGG16(width, batch_norm)
    check_maps(name, *reversed(width_height(input_size)))
    return TimmTrunk(name)


def trunk_channels(name: str, width: float) -> tuple[int, int, int]:
    """Return the channels of the maps of strides 4, 8 and 16 of the trunk of this name."""
    if name == "efficientnet_lite0":
        return EfficientNetLite0.channels
    if name not in TRUNKS:
        return timm_channels(name)
    low, middle, high = (256, 512, 2048) if name == "resnet101" else (256, 512, 1024)
    return scaled(low, width), scaled(middle, width), scaled(high, width)
