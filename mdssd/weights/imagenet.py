"""ImageNet weights for the trunks: torchvision's VGG16 and ResNet-101."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mdssd.models.resnet import ResNet101
from mdssd.models.vgg import MEAN_RGB, VGG16
from mdssd.weights.foreign_files import read_tensors

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


def load_resnet101(
    model: nn.Module,
    weights: Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    rescale_input: bool = True,
) -> None:
    """Copy ImageNet weights, as torchvision's `resnet101` names them, into `model.trunk`.

    `weights`: the state dict (`conv1.weight`, `layer1.0.bn1.running_mean`, ...) or a file that
    holds it, safetensors or a PyTorch file; the content decides, not the name, and nothing in a
    file is ever executed. The classifier (`fc`) is left out.

    All tensors have the same names and shapes, but they were trained in a network that differs a
    little, so they are a start for training and no finished features. torchvision's has the stride
    of layer2 and layer3 on the 3x3 convolution ("v1.5"), this one, as DSSD's, on the 1x1 ahead of
    it, which skips three of four pixels; layer4 here has dilation in place of a stride, the first
    pooling no padding, and batch normalisation an eps of 1e-3 for 1e-5.

    torchvision's network expects (RGB / 255 - mean) / std, this one RGB 0-255 minus `MEAN_RGB`.
    With `rescale_input` conv1 and the running mean of bn1 absorb the difference (to a rounding
    error, and but for the outermost pixels). False copies them as they are, for weights that were
    trained on mean-subtracted 0-255 RGB.

    A model of another width, a missing key, another shape, values that are not finite, or weights
    of another network are a ValueError; the model is then unchanged.
    """
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, ResNet101):
        raise ValueError(
            "load_resnet101: model must have a ResNet-101 trunk (ssd321, ssd513, dssd321 or "
            f"dssd513), got {type(model).__name__}"
        )
    own = trunk.state_dict()
    if own["conv1.weight"].shape[0] != 64:
        raise ValueError(
            "load_resnet101: model must be made with width=1, got a trunk whose conv1 has weights "
            f"of shape {list(own['conv1.weight'].shape)} instead of [64, 3, 7, 7]"
        )
    source = "weights"
    if not isinstance(weights, Mapping):
        source = os.fspath(weights)
        weights = read_tensors("load_resnet101", source)
    new = {name: _take(weights, name, tensor.shape, source) for name, tensor in own.items()}
    # resnet152 has the same tensors, and more of them.
    more = [key for key in weights if key not in own and not str(key).startswith("fc.")]
    if more:
        raise ValueError(
            f"load_resnet101: {source} holds {more[0]!r}, which resnet101 has not "
            f"({len(more)} such tensors)"
        )
    if rescale_input:
        scale, shift = input_scale()
        weight = new["conv1.weight"].double().cpu()  # [64, 3, 7, 7]
        mean = new["bn1.running_mean"].double().cpu()
        new["conv1.weight"] = weight * scale[:, None, None]
        # conv1 has no bias: what it would add is taken off the mean that bn1 subtracts.
        new["bn1.running_mean"] = mean - (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
    trunk.load_state_dict(new)


def _take(weights: Mapping[str, Tensor], key: str, shape: torch.Size, source: str) -> Tensor:
    value = weights.get(key)
    if value is None and key.endswith("num_batches_tracked"):
        return torch.tensor(0)  # files from before PyTorch 0.4.1 lack it
    if not isinstance(value, Tensor):
        raise ValueError(
            f"load_resnet101: {source} lacks {key!r}; expected the state dict of torchvision's "
            f"resnet101, got keys {sorted(map(str, weights))[:4]} ..."
        )
    if value.shape != shape:
        raise ValueError(
            f"load_resnet101: {source}: {key!r} must have shape {list(shape)}, "
            f"got {list(value.shape)}"
        )
    if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
        raise ValueError(
            f"load_resnet101: {source}: {key!r} must be of floating point, got {value.dtype}"
        )
    if not value.float().isfinite().all():
        raise ValueError(f"load_resnet101: {source}: the values of {key!r} are not finite")
    return value
