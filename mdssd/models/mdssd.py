"""MDSSD: SSD whose low maps are fused with deconvolved high maps (Xu et al.)."""

import torch
from torch import Tensor, nn

from mdssd import ops
from mdssd.models.base import SingleShotDetector
from mdssd.models.light import LightExtraLayers, LightFusion, rows_and_columns
from mdssd.models.options import ModelOptions
from mdssd.models.trunks import make_trunk, trunk_channels
from mdssd.models.vgg import ExtraLayers, conv_block, extra_channels, scaled
from mdssd.priors import PriorLayer, mdssd_prior_layers
from mdssd.priors.maps import VGG_PAPER_SIZES, InputSize, deconvolution

# The channels of the fused maps, at width 1.
_MODULES = (256, 512, 1024)
# Initial L2Norm scales of the low and the high map before batch normalisation, where only their
# ratio matters. If both were 20, gradients would hardly change the ratio, and half of the sum would
# remain a high map that is still noise. The high map therefore starts small and can grow, as in
# LayerScale (Touvron et al. 2021, arXiv:2103.17239).
_NORMALISED_SCALES = (1.0, 0.1)


class FusionModule(nn.Module):
    """Fuses a low, detailed map with a high, semantic map (MDSSD, table I and figure 4).

    low:  3x3 conv -> L2Norm
    high: [2x2 deconv, 3x3 conv, ReLU] x 2 -> deconv -> 3x3 conv -> L2Norm
    sum -> ReLU -> 3x3 conv -> ReLU

    low [B, low_channels, H, W] and high [B, high_channels, T, U] become [B, out_channels, H, W];
    three deconvolutions of stride 2 enlarge T to H and U to W. Both L2Norm scales are learned
    and start at 20, as in SSD. With `batch_norm` the convolutions are normalised, and the scales
    start at 1 (low) and 0.1 (high). The deconvolutions are not normalised, because the next
    convolution follows without a ReLU in between.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        middle_channels: int,
        out_channels: int,
        last_kernel: int | tuple[int, int],
        last_padding: int | tuple[int, int],
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.low = conv_block(
            low_channels, out_channels, padding=1, batch_norm=batch_norm, relu=False
        )
        self.high = nn.Sequential(
            nn.ConvTranspose2d(high_channels, middle_channels, 2, stride=2),
            conv_block(middle_channels, middle_channels, padding=1, batch_norm=batch_norm),
            nn.ConvTranspose2d(middle_channels, middle_channels, 2, stride=2),
            conv_block(middle_channels, middle_channels, padding=1, batch_norm=batch_norm),
            nn.ConvTranspose2d(
                middle_channels, out_channels, last_kernel, stride=2, padding=last_padding
            ),
            conv_block(out_channels, out_channels, padding=1, batch_norm=batch_norm, relu=False),
        )
        low_scale, high_scale = _NORMALISED_SCALES if batch_norm else (20.0, 20.0)
        self.scale_low = nn.Parameter(torch.full((out_channels,), low_scale))
        self.scale_high = nn.Parameter(torch.full((out_channels,), high_scale))
        self.out = conv_block(out_channels, out_channels, padding=1, batch_norm=batch_norm)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        fused = ops.l2norm_add_relu(self.low(low), self.high(high), self.scale_low, self.scale_high)
        return self.out(fused)


class MDSSD(SingleShotDetector):
    """MDSSD: predicts from three fusion modules and SSD's extra layers.

    Module 1 fuses conv3_3 and conv8_2, Module 2 conv4_3 and conv9_2, Module 3 conv7 and conv10_2.
    The maps have sizes 75, 38, 19, 10, 5, 3, 1 for an input of 300 (31232 priors), and 128, 64, 32,
    16, 8, 4, 2, 1 for 512 (90100); `mdssd.priors.maps` has the rule for other inputs.
    `mdssd.mdssd300`, `mdssd.mdssd512` and `mdssd.create` make it.

    On another trunk than VGG16, its maps of strides 4, 8 and 16 take the places of conv3_3, conv4_3
    and conv7. The channels of the modules and of the layers above do not change.

    The last deconvolution of a module makes four times its high map as large as its low map: for
    300, 40 -> 75, 20 -> 38 and 12 -> 19, with the kernels that the paper states.

    Example:
        >>> from mdssd.models import MDSSD, ModelOptions
        >>> MDSSD(300, ModelOptions(3, width=0.0625)).priors.shape
        torch.Size([31232, 4])
    """

    family = "mdssd"
    paper_sizes = VGG_PAPER_SIZES

    _prior_layers = staticmethod(mdssd_prior_layers)

    def __init__(self, input_size: InputSize, options: ModelOptions) -> None:
        super().__init__(input_size, options)
        width, batch_norm = options.width, options.batch_norm
        low, middle, high = trunk_channels(options.trunk, width)
        self.trunk = make_trunk(options.trunk, width, batch_norm, input_size)
        c256, c512, c1024 = (scaled(c, width) for c in (256, 512, 1024))
        layers = self.prior_layers(input_size, options.prior_scales)
        self.extras: nn.Module
        self.module1: nn.Module
        self.module2: nn.Module
        self.module3: nn.Module
        if options.light:
            size1, size2, size3 = map(rows_and_columns, layers[:3])
            self.extras = LightExtraLayers(high, input_size, width)
            self.module1 = LightFusion(low, c512, c256, c256, size1)
            self.module2 = LightFusion(middle, c256, c256, c512, size2)
            self.module3 = LightFusion(high, c256, c512, c1024, size3)
        else:
            last1, last2, last3 = map(_last_deconvolution, layers[:3], layers[3:6])
            self.extras = ExtraLayers(high, input_size, width, batch_norm)
            self.module1 = FusionModule(low, c512, c256, c256, *last1, batch_norm)
            self.module2 = FusionModule(middle, c256, c256, c512, *last2, batch_norm)
            self.module3 = FusionModule(high, c256, c512, c1024, *last3, batch_norm)
        self._init_weights()

    @classmethod
    def _channels(cls, input_size: InputSize, options: ModelOptions) -> dict[str, int]:
        low, middle, high = (scaled(c, options.width) for c in _MODULES)
        return {
            "module1": low,
            "module2": middle,
            "module3": high,
            **extra_channels(options.width),
        }

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        conv3_3, conv4_3, conv7 = self.trunk(images)
        extras = self.extras(conv7)
        return [
            self.module1(conv3_3, extras[0]),
            self.module2(conv4_3, extras[1]),
            self.module3(conv7, extras[2]),
            *extras,
        ]


def _last_deconvolution(
    low: PriorLayer, high: PriorLayer
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and padding, each down a column and along a row, from four times `high` to `low`."""
    along, down = (
        deconvolution(4 * from_.size, to.size)
        for from_, to in zip(high.grids, low.grids, strict=True)
    )
    return (down[0], along[0]), (down[1], along[1])
