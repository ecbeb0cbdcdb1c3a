"""SSD300 and SSD512 on VGG16 (Liu et al., 2016)."""

import torch
from torch import Tensor, nn

from mdssd import ops
from mdssd.models.base import SingleShotDetector
from mdssd.models.vgg import VGG16, ExtraLayers, scaled
from mdssd.priors import ssd_prior_layers
from mdssd.weights.pretrained import Weights, start

_CHANNELS = {
    "conv4_3": 512,
    "conv7": 1024,
    "conv8_2": 512,
    "conv9_2": 256,
    "conv10_2": 256,
    "conv11_2": 256,
    "conv12_2": 256,
}


class SSD(SingleShotDetector):
    """SSD: predictions from conv4_3 (L2-normalised), conv7 and the extra layers.

    Map sizes for an input of 300: 38, 19, 10, 5, 3, 1 (8732 priors); for 512: 64, 32, 16, 8, 4, 2,
    1 (24564). The options are those of `ssd300`.
    """

    def __init__(
        self,
        input_size: int,
        num_classes: int = 21,
        *,
        width: float = 1.0,
        batch_norm: bool = False,
        prior_scales: str = "voc",
        clip_priors: bool | str = False,
        truncate_sizes: bool = False,
    ) -> None:
        layers = ssd_prior_layers(input_size, prior_scales)
        super().__init__(
            f"ssd{input_size}",
            input_size,
            num_classes,
            layers,
            dict(list(_CHANNELS.items())[: len(layers)]),
            width=width,
            batch_norm=batch_norm,
            prior_scales=prior_scales,
            clip_priors=clip_priors,
            truncate_sizes=truncate_sizes,
        )
        self.trunk = VGG16(width, batch_norm)
        self.extras = ExtraLayers(input_size, width, batch_norm)
        self.conv4_3_scale = nn.Parameter(torch.full((scaled(512, width),), 20.0))
        self._init_weights()

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        _, conv4_3, conv7 = self.trunk(images)
        # fc6 goes on from the un-normalised conv4_3, inside the trunk.
        return [ops.l2norm(conv4_3, self.conv4_3_scale), conv7, *self.extras(conv7)]


def ssd300(
    num_classes: int = 21,
    *,
    width: float = 1.0,
    batch_norm: bool = False,
    prior_scales: str = "voc",
    clip_priors: bool | str = False,
    truncate_sizes: bool = False,
    init: Weights | None = None,
) -> SSD:
    """SSD for images of 300x300: 8732 priors, 26,285,486 parameters at 21 classes.

    images [B, 3, 300, 300] -> loc [B, 8732, 4], logits [B, 8732, num_classes].

    Args:
        num_classes: classes, background (class 0) included.
        width: multiplies all hidden channel counts, rounded to a multiple of 8.
        batch_norm: batch normalisation in place of each bias ahead of a ReLU, for training from
            scratch; the prediction heads stay as they are. Training then needs at least two images
            in a batch, because the highest map has a single cell.
        prior_scales: "voc" or "coco".
        clip_priors, truncate_sizes: see `make_priors`.
        init: what to start from, a checkpoint or published weights, as `load_pretrained` takes it
            (and raises); what that did is then in the model's `loaded`.

    Raises ValueError for an option out of range. Source: SSD (Liu et al., 2016) and its code.
    """
    model = SSD(
        300,
        num_classes,
        width=width,
        batch_norm=batch_norm,
        prior_scales=prior_scales,
        clip_priors=clip_priors,
        truncate_sizes=truncate_sizes,
    )
    return start(model, init)


def ssd512(
    num_classes: int = 21,
    *,
    width: float = 1.0,
    batch_norm: bool = False,
    prior_scales: str = "voc",
    clip_priors: bool | str = False,
    truncate_sizes: bool = False,
    init: Weights | None = None,
) -> SSD:
    """SSD for images of 512x512: 24564 priors, 27,188,676 parameters at 21 classes.

    images [B, 3, 512, 512] -> loc [B, 24564, 4], logits [B, 24564, num_classes]. The options are
    those of `ssd300`.
    """
    model = SSD(
        512,
        num_classes,
        width=width,
        batch_norm=batch_norm,
        prior_scales=prior_scales,
        clip_priors=clip_priors,
        truncate_sizes=truncate_sizes,
    )
    return start(model, init)
