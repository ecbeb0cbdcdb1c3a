"""SSD (Liu et al., 2016), on VGG16 as in the paper or on another trunk."""

import torch
from torch import Tensor, nn

from mdssd import ops
from mdssd.models.base import SingleShotDetector
from mdssd.models.light import LightExtraLayers
from mdssd.models.options import ModelOptions
from mdssd.models.trunks import make_trunk, trunk_channels
from mdssd.models.vgg import ExtraLayers, extra_channels
from mdssd.priors import ssd_prior_layers
from mdssd.priors.maps import VGG_PAPER_SIZES, InputSize


class SSD(SingleShotDetector):
    """SSD: predicts from conv4_3 (L2-normalised), conv7 and the extra layers.

    The maps have sizes 38, 19, 10, 5, 3, 1 for an input of 300 (8732 priors), and 64, 32, 16, 8, 4,
    2, 1 for 512 (24564); `mdssd.priors.maps` has the rule for other inputs. `mdssd.ssd300`,
    `mdssd.ssd512` and `mdssd.create` make it. On another trunk than VGG16, the maps of strides 8
    and 16 are called conv4_3 and conv7 too.

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
        _, middle, high = trunk_channels(options.trunk, width)
        self.trunk = make_trunk(options.trunk, width, batch_norm, input_size)
        self.extras = (
            LightExtraLayers(high, input_size, width)
            if options.light
            else ExtraLayers(high, input_size, width, batch_norm)
        )
        self.conv4_3_scale = nn.Parameter(torch.full((middle,), 20.0))
        self._init_weights()

    @classmethod
    def _channels(cls, input_size: InputSize, options: ModelOptions) -> dict[str, int]:
        _, middle, high = trunk_channels(options.trunk, options.width)
        return {"conv4_3": middle, "conv7": high, **extra_channels(options.width)}

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        _, conv4_3, conv7 = self.trunk(images)
        # Only the head sees the normalised conv4_3; fc6, in the trunk, does not.
        return [ops.l2norm(conv4_3, self.conv4_3_scale), conv7, *self.extras(conv7)]
