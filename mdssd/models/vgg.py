"""VGG16 as SSD reduces it, SSD's extra layers, and ImageNet weights for the trunk."""

import math
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdssd.weights.foreign_files import read_tensors

MEAN_RGB = (123.0, 117.0, 104.0)

_TORCHVISION_MEAN = (0.485, 0.456, 0.406)
_TORCHVISION_STD = (0.229, 0.224, 0.225)
# Index of each convolution in torchvision's vgg16().features.
_FEATURES = {
    "conv1.conv1_1": 0,
    "conv1.conv1_2": 2,
    "conv2.conv2_1": 5,
    "conv2.conv2_2": 7,
    "conv3.conv3_1": 10,
    "conv3.conv3_2": 12,
    "conv3.conv3_3": 14,
    "conv4.conv4_1": 17,
    "conv4.conv4_2": 19,
    "conv4.conv4_3": 21,
    "conv5.conv5_1": 24,
    "conv5.conv5_2": 26,
    "conv5.conv5_3": 28,
}


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, to the nearest multiple of 8, at least 8; exact at width 1."""
    return channels if width == 1 else max(8, 8 * math.floor(channels * width / 8 + 0.5))


def conv_block(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    batch_norm: bool = False,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution, then batch normalisation if asked for (the bias is dropped), then ReLU."""
    block = nn.Sequential()
    block.add_module(
        "conv",
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation, bias=not batch_norm
        ),
    )
    if batch_norm:
        block.add_module("norm", nn.BatchNorm2d(out_channels))
    if relu:
        block.add_module("relu", nn.ReLU(inplace=True))
    return block


def _stage(
    number: int, convs: int, in_channels: int, channels: int, batch_norm: bool
) -> nn.Sequential:
    stage = nn.Sequential()
    for k in range(convs):
        block = conv_block(
            in_channels if k == 0 else channels, channels, padding=1, batch_norm=batch_norm
        )
        stage.add_module(f"conv{number}_{k + 1}", block)
    return stage


class VGG16(nn.Module):
    """VGG16 with fc6 and fc7 as convolutions (SSD section 3): conv1_1 to conv7.

    Map sizes for an input of 300: 300, 150, 75 (conv3), 38 (conv4), 19 (conv5, conv7);
    of 512: 512, 256, 128, 64, 32.
    """

    def __init__(self, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        c1, c2, c3, c4, fc = (scaled(c, width) for c in (64, 128, 256, 512, 1024))
        self.conv1 = _stage(1, 2, 3, c1, batch_norm)
        self.conv2 = _stage(2, 2, c1, c2, batch_norm)
        self.conv3 = _stage(3, 3, c2, c3, batch_norm)
        self.conv4 = _stage(4, 3, c3, c4, batch_norm)
        self.conv5 = _stage(5, 3, c4, c4, batch_norm)
        self.fc6 = conv_block(c4, fc, 3, padding=6, dilation=6, batch_norm=batch_norm)
        self.fc7 = conv_block(fc, fc, 1, batch_norm=batch_norm)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, S, S] -> conv3_3 [B, 256, S/4, S/4], conv4_3 [B, 512, S/8, S/8] and
        conv7 [B, 1024, S/16, S/16] (sizes rounded up), each after its ReLU.
        """
        x = F.max_pool2d(self.conv1(images), 2, ceil_mode=True)
        x = F.max_pool2d(self.conv2(x), 2, ceil_mode=True)
        conv3_3 = self.conv3(x)
        # Ceil mode: 75 -> 38.
        conv4_3 = self.conv4(F.max_pool2d(conv3_3, 2, ceil_mode=True))
        x = self.conv5(F.max_pool2d(conv4_3, 2, ceil_mode=True))
        x = F.max_pool2d(x, 3, stride=1, padding=1)
        return conv3_3, conv4_3, self.fc7(self.fc6(x))


class ExtraLayers(nn.Module):
    """SSD's layers above conv7: conv8_2, conv9_2, conv10_2, conv11_2, and conv12_2 for 512.

    conv7 [B, 1024, 19, 19] -> maps of 10, 5, 3, 1; [B, 1024, 32, 32] -> 16, 8, 4, 2, 1.
    Channels 512, then 256.
    """

    def __init__(self, input_size: int, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        # (1x1 channels, channels, kernel, stride, padding) of conv8 and up.
        halving = (128, 256, 3, 2, 1)
        rest = [halving, (128, 256, 3, 1, 0), (128, 256, 3, 1, 0)]
        if input_size == 512:
            rest = [halving, halving, halving, (128, 256, 4, 1, 1)]
        in_channels = scaled(1024, width)
        for n, (narrow, out, kernel, stride, padding) in enumerate(
            [(256, 512, 3, 2, 1), *rest], start=8
        ):
            layers = nn.Sequential()
            layers.add_module(
                f"conv{n}_1",
                conv_block(in_channels, scaled(narrow, width), 1, batch_norm=batch_norm),
            )
            in_channels = scaled(out, width)
            layers.add_module(
                f"conv{n}_2",
                conv_block(
                    scaled(narrow, width),
                    in_channels,
                    kernel,
                    stride=stride,
                    padding=padding,
                    batch_norm=batch_norm,
                ),
            )
            self.add_module(f"conv{n}", layers)

    def forward(self, conv7: Tensor) -> list[Tensor]:
        maps = []
        x = conv7
        for layers in self.children():
            x = layers(x)
            maps.append(x)
        return maps


def load_vgg16(
    model: nn.Module,
    weights: Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    rescale_input: bool = True,
) -> None:
    """Copy ImageNet weights, as torchvision's `vgg16` names them, into `model.trunk`.

    `weights`: the state dict (`features.N.weight`, `classifier.0.weight`, ...) or a file that holds
    it, safetensors or a PyTorch file; the content decides, not the name, and nothing in a file is
    ever executed. fc6 takes every 4th of its 4096 outputs and every 3rd row and column of its 7x7
    kernel, fc7 every 4th output and input, as SSD does (section 3).

    torchvision's network expects (RGB / 255 - mean) / std, this one RGB 0-255 minus `MEAN_RGB`.
    With `rescale_input` conv1_1 absorbs the difference, so that it computes what it was trained to
    (to a rounding error, and but for its outermost pixels). False copies conv1_1 as it is, for
    weights that were trained on mean-subtracted 0-255 RGB.

    A model of another width or with batch normalisation, a missing key, another shape, values that
    are not finite, or weights of another network are a ValueError; the model is then unchanged.
    """
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, VGG16):
        raise ValueError(
            f"load_vgg16: model must have a VGG16 trunk (SSD or MDSSD), got {type(model).__name__}"
        )
    own = trunk.state_dict()
    if "fc6.conv.bias" not in own:
        raise ValueError(
            "load_vgg16: model must be made with batch_norm=False, got batch_norm=True"
        )
    if own["fc6.conv.weight"].shape != (1024, 512, 3, 3):
        raise ValueError(
            "load_vgg16: model must be made with width=1, got a trunk whose fc6 has weights of "
            f"shape {list(own['fc6.conv.weight'].shape)} instead of [1024, 512, 3, 3]"
        )
    source = "weights"
    if not isinstance(weights, Mapping):
        source = os.fspath(weights)
        weights = read_tensors("load_vgg16", source)
    if any(key.endswith("running_mean") for key in weights):
        raise ValueError(
            f"load_vgg16: {source} holds batch normalisation (vgg16_bn); "
            "expected torchvision's plain vgg16"
        )

    def tensor(key: str, *shape: int) -> Tensor:
        value = weights.get(key)
        if not isinstance(value, Tensor):
            raise ValueError(
                f"load_vgg16: {source} lacks {key!r}; expected the state dict of torchvision's "
                f"vgg16, got keys {sorted(map(str, weights))[:4]} ..."
            )
        if value.shape != shape:
            raise ValueError(
                f"load_vgg16: {source}: {key!r} must have shape {list(shape)}, "
                f"got {list(value.shape)}"
            )
        if not value.is_floating_point():
            raise ValueError(
                f"load_vgg16: {source}: {key!r} must be of floating point, got {value.dtype}"
            )
        return value.float()

    new: dict[str, Tensor] = {}
    for name, index in _FEATURES.items():
        for part in ("weight", "bias"):
            shape = own[f"{name}.conv.{part}"].shape
            new[f"{name}.conv.{part}"] = tensor(f"features.{index}.{part}", *shape)
    fc6 = tensor("classifier.0.weight", 4096, 512 * 7 * 7).reshape(4096, 512, 7, 7)
    new["fc6.conv.weight"] = fc6[::4, :, ::3, ::3]  # [1024, 512, 3, 3]
    new["fc6.conv.bias"] = tensor("classifier.0.bias", 4096)[::4]
    new["fc7.conv.weight"] = tensor("classifier.3.weight", 4096, 4096)[::4, ::4, None, None]
    new["fc7.conv.bias"] = tensor("classifier.3.bias", 4096)[::4]
    for name, value in new.items():
        if not value.isfinite().all():
            raise ValueError(
                f"load_vgg16: {source}: the values for {name!r} are not finite "
                "(torchvision's IMAGENET1K_FEATURES lacks fc6 and fc7; use IMAGENET1K_V1)"
            )
    if rescale_input:
        scale, shift = input_scale()
        weight = new["conv1.conv1_1.conv.weight"].double().cpu()  # [64, 3, 3, 3]
        bias = new["conv1.conv1_1.conv.bias"].double().cpu()
        new["conv1.conv1_1.conv.weight"] = weight * scale[:, None, None]
        new["conv1.conv1_1.conv.bias"] = bias + (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
    trunk.load_state_dict(new)


def input_scale() -> tuple[Tensor, Tensor]:
    """What turns RGB 0-255 minus `MEAN_RGB` into the input of torchvision's networks.

    scale and shift [3] float64: x * scale + shift = ((x + MEAN_RGB) / 255 - mean) / std.
    """
    mean, std, ours = (
        torch.tensor(v, dtype=torch.float64, device="cpu")
        for v in (_TORCHVISION_MEAN, _TORCHVISION_STD, MEAN_RGB)
    )
    return 1 / (255 * std), (ours / 255 - mean) / std
