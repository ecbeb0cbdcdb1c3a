"""The networks: SSD and MDSSD on VGG16, SSD and DSSD on ResNet-101."""

from mdssd.models.base import Loaded, SingleShotDetector
from mdssd.models.build import build
from mdssd.models.dssd import DSSD, ResNetSSD
from mdssd.models.mdssd import MDSSD
from mdssd.models.options import ModelOptions
from mdssd.models.ssd import SSD
from mdssd.models.vgg import MEAN_RGB

__all__ = [
    "DSSD",
    "MDSSD",
    "MEAN_RGB",
    "SSD",
    "Loaded",
    "ModelOptions",
    "ResNetSSD",
    "SingleShotDetector",
    "build",
]
