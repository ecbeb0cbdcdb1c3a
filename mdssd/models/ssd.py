"""SSD on VGG16 (Liu et al., 2016)."""

import torch
from torch import Tensor, nn

from mdssd import ops
from mdssd.models.base import SingleShotDetector
from mdssd.models.options import ModelOptions
from mdssd.models.vgg import VGG16, ExtraLayers, scaled
from mdssd.priors import ssd_prior_layers
from mdssd.priors.maps import VGG_PAPER_SIZES, InputSize

_CHANNELS = {
    "conv4_3": 512,
    "conv7": 1024,
    "conv8_2": 512,
    "conv9_2": 256,
    "conv10_2": 256,
    "conv11_2": 256,
    "conv12_2": 256,
    "conv13_2": 256,
}


class SSD(SingleShotDetector):
    """SSD: predicts from conv4_3 (L2-normalised), conv7 and the extra layers.

    The maps have sizes 38, 19, 10, 5, 3, 1 for an input of 300 (8732 priors), and 64, 32, 16, 8, 4,
    2, 1 for 512 (24564); `mdssd.priors.maps` has the rule for other inputs. `mdssd.ssd300`,
    `mdssd.ssd512` and `mdssd.create` make it.

    Example:
        >>> from mdssd.models import ModelOptions, SSD
        >>> SSD(300, ModelOptions(3, width=0.0625)).priors.shape
        torch.Size([8732, 4])
    """

    family = "ssd"
    paper_sizes = VGG_PAPER_SIZES

    _prior_layers = staticmethod(ssd_prior_layers)

    def __init__(self, input_size: InputSize, options: ModelOptions) -> None:
        super().__init__(input_size, options)
        width, batch_norm = options.width, options.batch_norm
        self.trunk = VGG16(width, batch_norm)
        self.extras = ExtraLayers(input_size, width, batch_norm)
        self.conv4_3_scale = nn.Parameter(torch.full((scaled(512, width),), 20.0))
        self._init_weights()

    @classmethod
    def _channels(cls, input_size: InputSize) -> dict[str, int]:
        return _CHANNELS

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        _, conv4_3, conv7 = self.trunk(images)
        # Only the head sees the normalised conv4_3; fc6, in the trunk, does not.
        return [ops.l2norm(conv4_3, self.conv4_3_scale), conv7, *self.extras(conv7)]
