"""The base of the single-shot detectors: prediction heads, priors, forward pass, options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from mdssd.models.light import depthwise
from mdssd.models.options import ModelOptions, OptionKeywords
from mdssd.models.vgg import VGG16
from mdssd.names import FREEZABLE
from mdssd.priors import PriorLayer, Sizes, make_priors, with_sizes
from mdssd.priors.maps import InputSize, size_text, width_height

if TYPE_CHECKING:
    from typing_extensions import Unpack

Model = TypeVar("Model", bound="SingleShotDetector")


@dataclass(frozen=True)
class Loaded:
    """The result of `load_pretrained`.

    Attributes:
        layout: whose names the weights had, such as "torchvision's vgg16".
        taken: names of the model's tensors that were loaded.
        fresh: names of the model's tensors that were left as they were.
        unused: names of the tensors of the source that do not fit the model.
        mean: RGB, 0-255; subtract it from the pixels.
        partly: names of the model's tensors of class scores that were loaded for the background
            and for `classes` only, because the source does not have the other classes.
        classes: the classes whose scores were loaded by name.
        by_position: whether class scores were loaded by the position of the class, because the
            class names of the model or of the source are not known.
        other_priors: the maps whose predictions were left as they were, because the priors of the
            source have quite other sizes there.

    Example:
        >>> from mdssd.models import Loaded
        >>> loaded = Loaded("a checkpoint of ssd300", ("a.weight",), ("b.weight",), (), (0, 0, 0))
        >>> f"{len(loaded.taken)} tensors from {loaded.layout}"
        '1 tensors from a checkpoint of ssd300'
    """

    layout: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    mean: tuple[float, ...]
    partly: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    by_position: bool = False
    other_priors: tuple[str, ...] = ()


class PredictionHead(nn.Module):
    """Predicts boxes and class scores from one feature map, by one convolution for each.

    A map [B, C, H, W] becomes loc [B, H*W*P, 4] and logits [B, H*W*P, num_classes], for P priors
    per cell. Channel prior*4 + coordinate of the convolution `loc` predicts a coordinate (cx, cy,
    w, h); channel prior*num_classes + class of `conf` predicts the score of a class.
    """

    loc: nn.Module
    conf: nn.Module

    def __init__(self, channels: int, per_cell: int, num_classes: int, kernel: int = 3) -> None:
        super().__init__()
        self.per_cell = per_cell
        self.num_classes = num_classes
        self.loc = nn.Conv2d(channels, per_cell * 4, kernel, padding=kernel // 2)
        self.conf = nn.Conv2d(channels, per_cell * num_classes, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.shape[2] * x.shape[3] * self.per_cell
        # [B, P*4, H, W] -> [B, H, W, P*4] -> [B, H*W*P, 4]: a view if x is channels-last.
        loc = self.loc(x).permute(0, 2, 3, 1).reshape(x.shape[0], rows, 4)
        logits = self.conf(x).permute(0, 2, 3, 1).reshape(x.shape[0], rows, self.num_classes)
        return loc, logits


class LightHead(PredictionHead):
    """A head of SSDlite: a 3x3 depthwise convolution, batch normalisation, ReLU6 and a 1x1
    convolution for each of its outputs.
    """

    def __init__(self, channels: int, per_cell: int, num_classes: int) -> None:
        super().__init__(channels, per_cell, num_classes, kernel=1)
        self.loc = nn.Sequential(depthwise(channels), self.loc)
        self.conf = nn.Sequential(depthwise(channels), self.conf)


class SingleShotDetector(nn.Module):
    """A network that scores every prior box in one pass; a subclass supplies `feature_maps`.

    Attributes:
        name: the model's name, such as "ssd300".
        paper_sizes: the sizes of the images in the papers of this network; beside them, it can have
            those of `mdssd.names.INPUT_SIZES`.
        input_size: side of the images, in pixels, or (width, height) if they are not squares.
        options: the `ModelOptions` that the model was made with.
        num_classes: number of classes C, with the background (class 0).
        priors: [N, 4] float32, (cx, cy, w, h) in 0-1. They are not part of the state dict, and
            they stay float32 when the model is converted to another type.
        frozen: the parts that training leaves unchanged; see `freeze`.
        loaded: the result of the constructor's `init`; None without it.

    Example:
        >>> from mdssd.models import SingleShotDetector
        >>> import mdssd
        >>> model = mdssd.ssd300(3, width=0.0625)
        >>> isinstance(model, SingleShotDetector), model.name, len(model.priors)
        (True, 'ssd300', 8732)
    """

    family: str
    paper_sizes: tuple[int, ...]
    priors: Tensor
    frozen: tuple[str, ...] = ()
    loaded: Loaded | None = None

    def __init__(self, input_size: InputSize, options: ModelOptions) -> None:
        super().__init__()
        self.name = self.model_name(input_size)
        self.input_size = input_size
        self.options = options
        self.num_classes = options.num_classes
        layers = self.prior_layers(input_size, options.prior_scales)
        options.check(self.name)
        self.heads = nn.ModuleDict()
        # Not strict: small inputs lack the highest maps.
        channels = self._channels(input_size, options)
        for (source, count), layer in zip(channels.items(), layers, strict=False):
            self.heads[source] = self._make_head(source, count, layer.per_cell)
        priors = make_priors(
            layers, input_size, clip=options.clip_priors, truncate_sizes=options.truncate_sizes
        )
        self.register_buffer("priors", priors, persistent=False)

    @classmethod
    def model_name(cls, input_size: InputSize) -> str:
        """Return the name of the model of this size.

        Example:
            >>> from mdssd.models import SSD
            >>> SSD.model_name(640)
            'ssd640'
        """
        return f"{cls.family}{size_text(input_size)}"

    @classmethod
    def prior_layers(
        cls, input_size: InputSize, prior_scales: str | Sizes
    ) -> tuple[PriorLayer, ...]:
        """Return the priors of each feature map with a head, low to high.

        Raises:
            ValueError: the model does not have these scales, or other numbers of sizes.

        Example:
            >>> from mdssd.models import SSD
            >>> [layer.per_cell for layer in SSD.prior_layers(300, "coco")]
            [4, 6, 6, 6, 4, 4]
        """
        if not isinstance(prior_scales, tuple):
            return cls._prior_layers(input_size, prior_scales)
        usual: Any = cls.default_options(input_size).prior_scales
        layers = cls._prior_layers(input_size, usual)
        return with_sizes(cls.model_name(input_size), layers, prior_scales)

    @staticmethod
    def _prior_layers(image_size: InputSize, scales: str) -> tuple[PriorLayer, ...]:
        """The priors of each feature map with a head, low to high."""
        raise NotImplementedError

    @classmethod
    def _channels(cls, input_size: InputSize, options: ModelOptions) -> Mapping[str, int]:
        """The names of these maps, and their channels."""
        raise NotImplementedError

    @classmethod
    def default_options(cls, input_size: InputSize) -> ModelOptions:
        """Return the options that the model of this size has by default."""
        return ModelOptions()

    @classmethod
    def create(
        cls: type[Model],
        input_size: InputSize,
        num_classes: int = 21,
        **options: Unpack[OptionKeywords],
    ) -> Model:
        """Make the model of this size; options that are not given have their defaults.

        Example:
            >>> from mdssd.models import SSD
            >>> SSD.create(300, 3, width=0.0625).name
            'ssd300'
        """
        defaults = cls.default_options(input_size)
        return cls(input_size, replace(defaults, num_classes=num_classes, **options))

    def _make_head(self, source: str, channels: int, per_cell: int) -> PredictionHead:
        head = LightHead if self.options.light else PredictionHead
        return head(channels, per_cell, self.num_classes)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps for the heads, in the order of `heads`."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict boxes and class scores.

        Args:
            images: [B, 3, H, W] of any floating type and memory format, RGB 0-255 minus the mean;
                H and W are the height and the width of `input_size`.

        Returns:
            loc [B, N, 4], encoded against `priors` (`ops.decode_boxes` decodes it), and logits
            [B, N, C] before the softmax, where class 0 is the background.

        Raises:
            ValueError: images have another shape or an integer type.
        """
        width, height = width_height(self.input_size)
        if images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise ValueError(
                f"{self.name}: images must have shape [B, 3, {height}, {width}], "
                f"got {list(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(
                f"{self.name}: images must be floating point (RGB 0-255 minus the mean), "
                f"got {images.dtype}"
            )
        maps = self.feature_maps(images)
        loc, logits = zip(
            *(head(x) for head, x in zip(self.heads.values(), maps, strict=True)), strict=True
        )
        return torch.cat(loc, dim=1), torch.cat(logits, dim=1)

    def freeze(self, *parts: str) -> None:
        """Freeze these parts and no others, so that training does not change them.

        A frozen part has no gradient and remains in evaluation mode when the model is in training
        mode.

        Args:
            parts: "base" is the trunk and the extra layers; "batch-norm" is batch normalisation
                everywhere, with its running statistics. No parts unfreezes everything.

        Raises:
            ValueError: a name is unknown, or the model has no batch normalisation to freeze.

        Example:
            >>> import mdssd
            >>> model = mdssd.ssd300(3, width=0.0625)
            >>> model.freeze("base")
            >>> any(p.requires_grad for p in model.trunk.parameters())
            False
        """
        unknown = [part for part in parts if part not in FREEZABLE]
        if unknown:
            raise ValueError(f"freeze: parts must be among {FREEZABLE}, got {unknown[0]!r}")
        norms = any(isinstance(module, nn.BatchNorm2d) for module in self.modules())
        if "batch-norm" in parts and not norms:
            raise ValueError(f"freeze: 'batch-norm': this {self.name} has no batch normalisation")
        self.frozen = parts
        kept = {p for module in self._frozen_modules() for p in module.parameters()}
        for parameter in self.parameters():
            parameter.requires_grad_(parameter not in kept)
            if parameter in kept:
                parameter.grad = None
        self.train(self.training)

    def train(self, mode: bool = True) -> SingleShotDetector:
        """Set training mode, except for frozen parts, or evaluation mode if `mode` is False."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        modules: list[nn.Module] = []
        if "base" in self.frozen:
            modules += [self.get_submodule("trunk"), self.get_submodule("extras")]
        if "batch-norm" in self.frozen:
            modules += [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        return modules

    def config(self) -> dict[str, Any]:
        """Return the name and the options, from which `build` makes a model of the same kind.

        All values are as JSON has them: sizes of priors are lists.

        Example:
            >>> import mdssd
            >>> config = mdssd.ssd300(3, width=0.0625).config()
            >>> config["model"], config["num_classes"], config["width"]
            ('ssd300', 3, 0.0625)
        """
        config = {"model": self.name, **asdict(self.options)}
        if isinstance(sizes := self.options.prior_scales, tuple):
            config["prior_scales"] = [[list(pair) for pair in of_map] for of_map in sizes]
        return config

    def _init_weights(self) -> None:
        """Draw the weights of all convolutions; each constructor calls this last.

        Heads, and all layers of a model without batch normalisation, use Caffe's "xavier":
        U(+-sqrt(3 / fan_in)), where fan_in is the number of weights over their first dimension.
        (For a deconvolution this is outputs * kernel^2, as in Caffe.) With batch normalisation,
        the other layers draw from N(0, 2 / inputs) (He et al.), where inputs is the number of
        values that reach one output: for a deconvolution channels * kernel^2 / stride^2. Biases
        start at 0. On the meta device there are no weights to draw.
        """
        if any(parameter.is_meta for parameter in self.parameters()):
            return
        heads = set(self.heads.modules())
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                if self.options.batch_norm and module not in heads:
                    inputs = module.in_channels / module.groups * math.prod(module.kernel_size)
                    if isinstance(module, nn.ConvTranspose2d):
                        inputs /= math.prod(module.stride)
                    nn.init.normal_(module.weight, std=math.sqrt(2 / inputs))
                else:
                    bound = math.sqrt(3 * module.weight.shape[0] / module.weight.numel())
                    nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        trunk = self.get_submodule("trunk")
        if self.options.batch_norm and isinstance(trunk, VGG16):
            # Reduce the eight outer taps of fc6 to a tenth. They look 96 pixels away; at full
            # strength conv7 and the maps above it cannot distinguish places until training has
            # found the middle tap.
            taps = torch.full((3, 3), 0.1)
            taps[1, 1] = 1
            with torch.no_grad():
                trunk.fc6.get_parameter("conv.weight").mul_(taps)

    def __prepare_scriptable__(self) -> SingleShotDetector:
        # Called by torch.jit.script, which would otherwise fail with an unrelated message.
        raise NotImplementedError(
            f"{self.name}: torch.jit.script is not supported; use torch.export "
            "(mdssd export --format pt2)"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> SingleShotDetector:
        # half() and to(bfloat16) must not round the priors; box coordinates need float32.
        priors = self.priors
        super()._apply(fn, recurse)
        if self.priors.dtype != torch.float32:
            self.priors = priors.to(self.priors.device)
        return self
