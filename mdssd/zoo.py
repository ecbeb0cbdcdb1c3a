"""The public constructors of the models.

`create` makes any model by its name, and the others make those of the papers. Each takes the
options of `ModelOptions` and `init`. The signatures of the papers' models, as `help` and
`inspect.signature` show them, are made from the fields of `ModelOptions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mdssd.models.base import Model, SingleShotDetector
from mdssd.models.build import default_options, network_of
from mdssd.models.dssd import DSSD, ResNetSSD
from mdssd.models.mdssd import MDSSD
from mdssd.models.options import ModelOptions, OptionKeywords
from mdssd.models.ssd import SSD
from mdssd.weights.imagenet import Weights
from mdssd.weights.pretrained import load_pretrained

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "create",
    "dssd321",
    "dssd513",
    "mdssd300",
    "mdssd512",
    "ssd300",
    "ssd321",
    "ssd512",
    "ssd513",
]

Constructor = TypeVar("Constructor", bound=Callable[..., object])


def _spelled_out(constructor: Constructor) -> Constructor:
    """Replace `**options` in a constructor's signature by the options and their defaults."""
    signature = inspect.signature(constructor)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    init = named.pop()
    defaults = default_options(constructor.__name__)
    options = [
        parameter.replace(default=getattr(defaults, name))
        for name, parameter in inspect.signature(ModelOptions).parameters.items()
    ]
    constructor.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*options, init]
    )
    return constructor


def _started(model: Model, init: Weights | None) -> Model:
    if init is not None:
        model.loaded = load_pretrained(model, init)
    return model


def create(
    name: str,
    num_classes: int = 21,
    *,
    init: Weights | None = None,
    **options: Unpack[OptionKeywords],
) -> SingleShotDetector:
    """Make the model of this name, which ends in the side of its input, as in "mdssd640".

    Every network can have an input of 256 to 1024 pixels in steps of 32: "mdssd256" to "mdssd1024",
    "ssd256" and so on, "dssd256", and "resnetssd256" for SSD on ResNet-101. Beside them there are
    the models of the papers, such as "mdssd300". A larger input takes more time and memory, in
    proportion to its area, and shows small objects with more pixels.

    Args:
        name: the name of the model.
        num_classes: number of classes, including the background (class 0).
        init: weights to start from, as `load_pretrained` takes them, also of a model with another
            input: the tensors that both have are loaded. The model's `loaded` says which.
        options: those of `mdssd300`, `ssd300` or `dssd321`, for the network in question.

    Raises:
        ValueError: there is no such model, an option is out of range, or `init` does not fit.

    Example:
        >>> import mdssd, torch
        >>> model = mdssd.create("mdssd384", 3, width=0.0625)
        >>> loc, logits = model(torch.zeros(1, 3, 384, 384))
        >>> loc.shape, logits.shape
        (torch.Size([1, 50656, 4]), torch.Size([1, 50656, 3]))
    """
    network, input_size = network_of(name, "create: name must be")
    return _started(network.create(input_size, num_classes, **options), init)


@_spelled_out
def ssd300(
    num_classes: int = 21, *, init: Weights | None = None, **options: Unpack[OptionKeywords]
) -> SSD:
    """Make SSD for images of 300x300: 8732 priors, 26,285,486 parameters at 21 classes.

    Called with images [B, 3, 300, 300], the model returns loc [B, 8732, 4] and logits
    [B, 8732, num_classes].

    Args:
        num_classes: number of classes, including the background (class 0).
        width: factor on all hidden channel counts, which are rounded to a multiple of 8.
        batch_norm: if True, batch normalisation replaces each bias before a ReLU, for training
            from scratch; the prediction heads do not change. Training then needs at least two
            images in a batch, because the highest map has a single cell.
        prior_scales: sizes of the priors, "voc" or "coco"; or for each map a tuple with (width,
            height) in input pixels of each prior of a cell.
        clip_priors: False, True or "size"; see `make_priors`.
        truncate_sizes: see `make_priors`.
        trunk: the network under the detector: "vgg16", "resnet101", or "efficientnet_lite0" for
            processors without a GPU; or any network of timm, by its name, that has feature maps of
            strides 4, 8 and 16. `width` does not change EfficientNet-Lite0 and those of timm, so
            that ImageNet weights fit. All but VGG16 have their own normalisation in any case, and
            `batch_norm` is about the other layers.
        light: if True, the heads, the extra layers and MDSSD's fusion modules consist of 3x3
            depthwise and 1x1 convolutions, each with batch normalisation, as in SSDlite. This is
            for processors without a GPU, with the trunk "efficientnet_lite0" and a `width` of 0.25.
            Maps, their channels and priors stay. Training then needs at least two images in a
            batch.
        init: weights to start from, as `load_pretrained` takes them: a checkpoint or published
            weights. The model's `loaded` says which tensors they filled.

    Raises:
        ValueError: an option is out of range, or `init` does not fit (see `load_pretrained`).

    Source: SSD (Liu et al., 2016) and its code.

    Example:
        >>> import torch
        >>> from mdssd import ssd300
        >>> loc, logits = ssd300(3, width=0.0625)(torch.zeros(1, 3, 300, 300))
        >>> loc.shape, logits.shape
        (torch.Size([1, 8732, 4]), torch.Size([1, 8732, 3]))
    """
    return _started(SSD.create(300, num_classes, **options), init)


@_spelled_out
def ssd512(
    num_classes: int = 21, *, init: Weights | None = None, **options: Unpack[OptionKeywords]
) -> SSD:
    """Make SSD for images of 512x512: 24564 priors, 27,188,676 parameters at 21 classes.

    Called with images [B, 3, 512, 512], the model returns loc [B, 24564, 4] and logits
    [B, 24564, num_classes]. The arguments are those of `ssd300`.

    Example:
        >>> from mdssd import ssd512
        >>> ssd512(3, width=0.0625).priors.shape
        torch.Size([24564, 4])
    """
    return _started(SSD.create(512, num_classes, **options), init)


@_spelled_out
def mdssd300(
    num_classes: int = 21, *, init: Weights | None = None, **options: Unpack[OptionKeywords]
) -> MDSSD:
    """Make MDSSD for images of 300x300: 31232 priors, 79,483,410 parameters at 21 classes.

    Called with images [B, 3, 300, 300], the model returns loc [B, 31232, 4] and logits
    [B, 31232, num_classes]. The arguments are those of `ssd300`, with two differences:

    Args:
        batch_norm: if True, it also replaces the biases before an L2Norm.
        prior_scales: "voc" or "coco" for SSD's sizes, "small" for objects from 8 pixels,
            "paper" for the second of the paper's two descriptions (see `mdssd_prior_layers`), or
            your own sizes.

    Source: MDSSD (Xu et al.), section III. The paper does not state the padding of the
    deconvolutions; the padding here is the one that makes the map sizes meet.

    Example:
        >>> from mdssd import mdssd300
        >>> model = mdssd300(3, width=0.0625, prior_scales="small")
        >>> model.priors.shape
        torch.Size([31232, 4])
    """
    return _started(MDSSD.create(300, num_classes, **options), init)


@_spelled_out
def mdssd512(
    num_classes: int = 21, *, init: Weights | None = None, **options: Unpack[OptionKeywords]
) -> MDSSD:
    """Make MDSSD for images of 512x512: 90100 priors, 77,437,480 parameters at 21 classes.

    Called with images [B, 3, 512, 512], the model returns loc [B, 90100, 4] and logits
    [B, 90100, num_classes]. The arguments are those of `mdssd300`.

    Example:
        >>> from mdssd import mdssd512
        >>> mdssd512(3, width=0.0625).priors.shape
        torch.Size([90100, 4])
    """
    return _started(MDSSD.create(512, num_classes, **options), init)


@_spelled_out
def ssd321(
    num_classes: int = 21, *, init: Weights | None = None, **options: Unpack[OptionKeywords]
) -> ResNetSSD:
    """Make SSD on ResNet-101 for 321x321: 17080 priors, 116,526,320 parameters at 21 classes.

    Called with images [B, 3, 321, 321], the model returns loc [B, 17080, 4] and logits
    [B, 17080, num_classes]. The arguments are those of `ssd300`, with four differences:

    Args:
        trunk: must be "resnet101".
        light: must be False.
        batch_norm: must be True, because ResNet-101 has batch normalisation. Training needs at
            least two images in a batch, because the highest map has a single cell, unless the
            normalisation is frozen (`freeze`).
        prior_scales: "voc", as the original code has no other named sizes for this input size, or
            your own.

    Source: DSSD (Fu et al., 2017) and its code.

    Example:
        >>> from mdssd import ssd321
        >>> ssd321(3, width=0.0625).priors.shape
        torch.Size([17080, 4])
    """
    return _started(ResNetSSD.create(321, num_classes, **options), init)


@_spelled_out
def ssd513(
    num_classes: int = 21, *, init: Weights | None = None, **options: Unpack[OptionKeywords]
) -> ResNetSSD:
    """Make SSD on ResNet-101 for 513x513: 43688 priors, 173,145,304 parameters at 81 classes.

    Called with images [B, 3, 513, 513], the model returns loc [B, 43688, 4] and logits
    [B, 43688, num_classes]. The arguments are those of `ssd321`, except that the
    named `prior_scales` are "coco".

    Example:
        >>> from mdssd import ssd513
        >>> ssd513(3, width=0.0625).priors.shape
        torch.Size([43688, 4])
    """
    return _started(ResNetSSD.create(513, num_classes, **options), init)


@_spelled_out
def dssd321(
    num_classes: int = 21, *, init: Weights | None = None, **options: Unpack[OptionKeywords]
) -> DSSD:
    """Make DSSD for images of 321x321: 17080 priors, 172,380,912 parameters at 21 classes.

    Called with images [B, 3, 321, 321], the model returns loc [B, 17080, 4] and logits
    [B, 17080, num_classes]. The arguments are those of `ssd321`. DSSD is trained in stages,
    starting from an `ssd321`; see `freeze`.

    Example:
        >>> from mdssd import dssd321
        >>> model = dssd321(3, width=0.0625)
        >>> model.freeze("base")  # the first stage
        >>> model.frozen
        ('base',)
    """
    return _started(DSSD.create(321, num_classes, **options), init)


@_spelled_out
def dssd513(
    num_classes: int = 21, *, init: Weights | None = None, **options: Unpack[OptionKeywords]
) -> DSSD:
    """Make DSSD for images of 513x513: 43688 priors, 254,983,896 parameters at 81 classes.

    Called with images [B, 3, 513, 513], the model returns loc [B, 43688, 4] and logits
    [B, 43688, num_classes]. The arguments are those of `ssd513`. DSSD is trained in stages,
    starting from an `ssd513`; see `freeze`.

    Example:
        >>> from mdssd import dssd513
        >>> dssd513(3, width=0.0625).priors.shape
        torch.Size([43688, 4])
    """
    return _started(DSSD.create(513, num_classes, **options), init)
