"""DSSD (Fu et al., 2017), and SSD, on ResNet-101.

The paper has inputs of 321 and 513; `mdssd.priors.maps` has the rule for the maps of others, whose
networks are built like those of 321. Details that the paper does not state follow its code.
Convolutions before batch normalisation have no bias. A prediction module has four times as many
output channels as inner channels, like the blocks of a ResNet: 1024, except for the first two of
SSD513, which have 512 and 2048.
"""

from torch import Tensor, nn

from mdssd.models.base import PredictionHead, SingleShotDetector
from mdssd.models.options import ModelOptions
from mdssd.models.resnet import Bottleneck, ExtraBlocks, ResNet101, conv_bn
from mdssd.models.vgg import scaled
from mdssd.priors import dssd_prior_layers
from mdssd.priors.maps import (
    RESNET_PAPER_SIZES,
    InputSize,
    extra_layers,
    resnet_extra_layers,
    size_text,
)

# The maps of the base network, low to high, and their channels; small inputs lack the last ones.
_CHANNELS = {
    "res3b3": 512,
    "res5c": 2048,
    "res6": 1024,
    "res7": 1024,
    "res8": 1024,
    "res9": 1024,
    "res10": 1024,
    "res11": 1024,
}
# Inner channels of the prediction modules that do not have 256.
_SSD513_INNER = {"res3b3": 128, "res5c": 512}


class ResNetSSD(SingleShotDetector):
    """SSD on ResNet-101: predicts from res3b3, res5c and the extra blocks.

    A residual block ("prediction module") precedes each head. The maps have sizes 40, 20, 10, 5, 3,
    1 for an input of 321 (17080 priors), and 64, 32, 16, 8, 4, 2, 1 for 513 (43688).
    `mdssd.ssd321`, `mdssd.ssd513` and `mdssd.create` make it. For another input its name begins
    with "resnetssd", as in "resnetssd640", because "ssd640" is the `SSD` on VGG16.

    Example:
        >>> from mdssd.models import ResNetSSD
        >>> ResNetSSD.create(321, 3, width=0.0625).priors.shape
        torch.Size([17080, 4])
    """

    family = "resnetssd"
    paper_sizes = RESNET_PAPER_SIZES

    _prior_layers = staticmethod(dssd_prior_layers)

    def __init__(self, input_size: InputSize, options: ModelOptions) -> None:
        super().__init__(input_size, options)
        width = options.width
        if not options.batch_norm:
            raise ValueError(f"{self.name}: batch_norm must be True: ResNet-101 has it, got False")
        if options.trunk != "resnet101":
            raise ValueError(
                f"{self.name}: trunk must be 'resnet101', got {options.trunk!r}; the models whose "
                "names begin with mdssd and ssd300, ssd512 have others"
            )
        if options.light:
            raise ValueError(
                f"{self.name}: light must be False, got True; the models whose names begin with "
                "mdssd and ssd300, ssd512 have a light form"
            )
        self.trunk = ResNet101(width)
        self.extras = ExtraBlocks(input_size, width)
        into = self._add_layers([scaled(_CHANNELS[source], width) for source in self.heads])
        self.predict = nn.ModuleDict()
        for source, channels in zip(self.heads, into, strict=True):
            inner = self._inner(input_size, source)
            self.predict[source] = Bottleneck(
                channels, scaled(inner, width), scaled(4 * inner, width)
            )
        self._init_weights()

    @classmethod
    def model_name(cls, input_size: InputSize) -> str:
        family = "ssd" if input_size in cls.paper_sizes else cls.family
        return f"{family}{size_text(input_size)}"

    @classmethod
    def default_options(cls, input_size: InputSize) -> ModelOptions:
        scales = "coco" if input_size == 513 else "voc"
        return ModelOptions(trunk="resnet101", batch_norm=True, prior_scales=scales)

    @classmethod
    def _channels(cls, input_size: InputSize, options: ModelOptions) -> dict[str, int]:
        return {
            source: scaled(4 * cls._inner(input_size, source), options.width)
            for source in _CHANNELS
        }

    @staticmethod
    def _inner(input_size: InputSize, source: str) -> int:
        """Inner channels of a prediction module at width 1."""
        return _SSD513_INNER.get(source, 256) if input_size == 513 else 256

    def _add_layers(self, channels: list[int]) -> list[int]:
        """Make the layers between the base network and the prediction modules.

        Takes the channels of the maps that enter them, and returns those of the maps that leave
        them, low to high.
        """
        return channels

    def _make_head(self, source: str, channels: int, per_cell: int) -> PredictionHead:
        return PredictionHead(channels, per_cell, self.num_classes, _head_kernel(source))

    def base_maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of ResNet-101 and the extra blocks, low to high."""
        _, res3b3, res5c = self.trunk(images)
        return [res3b3, res5c, *self.extras(res5c)]

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        maps = self.base_maps(images)
        return [module(x) for module, x in zip(self.predict.values(), maps, strict=True)]


class DeconvolutionModule(nn.Module):
    """relu(a * b), where a is from a map of the base network and b from the deeper map above it.

    lateral [B, C, S, S] and deep [B, D, T, T] become [B, 512, S, S]; a deconvolution without
    padding enlarges T to S.
    """

    def __init__(
        self,
        lateral_channels: int,
        deep_channels: int,
        channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
    ) -> None:
        super().__init__()
        self.lateral = nn.Sequential(
            conv_bn(lateral_channels, channels, 3, padding=1),
            conv_bn(channels, channels, 3, padding=1, relu=False),
        )
        self.deep = nn.Sequential(
            nn.ConvTranspose2d(deep_channels, channels, kernel, stride),
            conv_bn(channels, channels, 3, padding=1, relu=False),
        )

    def forward(self, lateral: Tensor, deep: Tensor) -> Tensor:
        # A fused kernel would save less than 1% of a forward pass (benchmarks/NOTES.md).
        return (self.lateral(lateral) * self.deep(deep)).relu_()


class DeepPredictionHead(PredictionHead):
    """A head with a 3x3 convolution, batch normalisation and ReLU before each of its outputs."""

    def __init__(
        self, channels: int, hidden: int, per_cell: int, num_classes: int, kernel: int
    ) -> None:
        super().__init__(hidden, per_cell, num_classes, kernel)
        self.loc = nn.Sequential(conv_bn(channels, hidden, 3, padding=1), self.loc)
        self.conf = nn.Sequential(conv_bn(channels, hidden, 3, padding=1), self.conf)


class DSSD(ResNetSSD):
    """DSSD: `ResNetSSD` with a top-down path from the highest map to res3b3.

    A `DeconvolutionModule` combines each map, except the highest, with the result above it. Sizes
    and priors are those of `ResNetSSD`. `mdssd.dssd321`, `mdssd.dssd513` and `mdssd.create` make
    it.

    Example:
        >>> from mdssd.models import DSSD
        >>> DSSD.create(321, 3, width=0.0625).priors.shape
        torch.Size([17080, 4])
    """

    family = "dssd"

    @classmethod
    def model_name(cls, input_size: InputSize) -> str:
        return f"{cls.family}{size_text(input_size)}"

    @staticmethod
    def _inner(input_size: InputSize, source: str) -> int:
        return 256

    def _add_layers(self, channels: list[int]) -> list[int]:
        out = scaled(512, self.options.width)
        *lower, deep = channels
        out_channels = [deep]
        self.deconv = nn.ModuleDict()  # top to bottom
        # Each undoes the layer that made the map above. Of a single cell the stride has no meaning,
        # and is the paper's: 1.
        reverse = [((2, 2), (2, 2))]
        for down, along in extra_layers(resnet_extra_layers, self.input_size):
            reverse.insert(0, ((down.kernel, along.kernel), (down.stride, along.stride)))
        reverse[0] = (reverse[0][0], (1, 1))
        for source, lateral, (kernel, stride) in zip(
            list(self.heads)[-2::-1], lower[::-1], reverse, strict=True
        ):
            self.deconv[source] = DeconvolutionModule(lateral, deep, out, kernel, stride)
            deep = out
            out_channels.append(out)
        return out_channels[::-1]

    def _make_head(self, source: str, channels: int, per_cell: int) -> PredictionHead:
        if self.input_size != 513:
            return super()._make_head(source, channels, per_cell)
        hidden, kernel = scaled(512, self.options.width), _head_kernel(source)
        return DeepPredictionHead(channels, hidden, per_cell, self.num_classes, kernel)

    def base_maps(self, images: Tensor) -> list[Tensor]:
        *lower, deep = super().base_maps(images)
        maps = [deep]
        for module, lateral in zip(self.deconv.values(), reversed(lower), strict=True):
            deep = module(lateral, deep)
            maps.append(deep)
        return maps[::-1]


def _head_kernel(source: str) -> int:
    return 5 if source in ("res3b3", "res5c") else 3
