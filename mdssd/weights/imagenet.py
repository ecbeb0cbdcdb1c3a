"""ImageNet weights for the trunks: torchvision's VGG16 and ResNet-101."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mdssd.models.resnet import ResNet101
from mdssd.models.vgg import MEAN_RGB, VGG16
from mdssd.weights.checkpoint_tensors import fault_of
from mdssd.weights.foreign_files import read_tensors

Weights = Mapping[str, Tensor] | str | os.PathLike[str]

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


def load_vgg16(model: nn.Module, weights: Weights, *, rescale_input: bool = True) -> None:
    """Copy torchvision's ImageNet weights of VGG16 into `model.trunk`.

    fc6 takes every 4th of torchvision's 4096 outputs and every 3rd row and column of the 7x7
    kernel; fc7 takes every 4th output and input, as SSD does (section 3).

    torchvision's network expects (RGB / 255 - mean) / std, and this one RGB 0-255 minus `MEAN_RGB`.
    With `rescale_input` conv1_1 is adapted, so that its outputs are those that it was trained to
    compute, except for rounding and for the outermost pixels.

    Args:
        model: an SSD or MDSSD of width 1 without batch normalisation.
        weights: the state dict of torchvision's `vgg16`, or a safetensors or PyTorch file of it.
            The content decides the format, not the name, and no code in a file is executed.
        rescale_input: False copies conv1_1 unchanged, for weights that were trained on RGB 0-255
            minus the mean.

    Raises:
        ValueError: the model is another one, or a tensor is missing, has another shape or is not
            finite. The model is then unchanged.
    """
    trunk = _vgg16_trunk(model)
    source, weights = _read("load_vgg16", weights)
    if any(key.endswith("running_mean") for key in weights):
        raise ValueError(
            f"load_vgg16: {source} holds batch normalisation (vgg16_bn); "
            "expected torchvision's plain vgg16"
        )

    def take(key: str, shape: Sequence[int]) -> Tensor:
        return _take("load_vgg16", source, weights, key, shape).float()

    new: dict[str, Tensor] = {}
    own = trunk.state_dict()
    for name, index in _FEATURES.items():
        for part in ("weight", "bias"):
            shape = own[f"{name}.conv.{part}"].shape
            new[f"{name}.conv.{part}"] = take(f"features.{index}.{part}", shape)
    fc6 = take("classifier.0.weight", [4096, 512 * 7 * 7]).reshape(4096, 512, 7, 7)
    new["fc6.conv.weight"] = fc6[::4, :, ::3, ::3]  # [1024, 512, 3, 3]
    new["fc6.conv.bias"] = take("classifier.0.bias", [4096])[::4]
    new["fc7.conv.weight"] = take("classifier.3.weight", [4096, 4096])[::4, ::4, None, None]
    new["fc7.conv.bias"] = take("classifier.3.bias", [4096])[::4]
    for name, value in new.items():
        if not value.isfinite().all():
            raise ValueError(
                f"load_vgg16: {source}: the values for {name!r} are not finite "
                "(torchvision's IMAGENET1K_FEATURES lacks fc6 and fc7; use IMAGENET1K_V1)"
            )
    if rescale_input:
        first, bias = new["conv1.conv1_1.conv.weight"], new["conv1.conv1_1.conv.bias"]
        weight, added = _rescaled(first)
        new["conv1.conv1_1.conv.weight"] = weight
        new["conv1.conv1_1.conv.bias"] = bias.double().cpu() + added
    trunk.load_state_dict(new)


def _vgg16_trunk(model: nn.Module) -> VGG16:
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
    return trunk


def load_resnet101(model: nn.Module, weights: Weights, *, rescale_input: bool = True) -> None:
    """Copy torchvision's ImageNet weights of ResNet-101 into `model.trunk`.

    The classifier (`fc`) is left out. All other tensors have the same names and shapes. But they
    are only a start for training, because the networks differ: torchvision's has the stride of
    layer2 and layer3 on the 3x3 convolution ("v1.5"), and DSSD's on the 1x1 convolution before it,
    which skips three of four pixels. In DSSD's, layer4 has dilation instead of a stride, the first
    pooling has no padding, and batch normalisation has an eps of 1e-3 instead of 1e-5.

    torchvision's network expects (RGB / 255 - mean) / std, and this one RGB 0-255 minus `MEAN_RGB`.
    With `rescale_input` conv1 and the running mean of bn1 are adapted, so that the outputs of bn1
    are the same, except for rounding and for the outermost pixels.

    Args:
        model: an SSD or DSSD on ResNet-101, of width 1.
        weights: the state dict of torchvision's `resnet101`, or a safetensors or PyTorch file of
            it. The content decides the format, not the name, and no code in a file is executed.
        rescale_input: False copies the first layer unchanged, for weights that were trained on
            RGB 0-255 minus the mean.

    Raises:
        ValueError: the model is another one, or a tensor is missing, superfluous, of another shape
            or not finite. The model is then unchanged.
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
    source, weights = _read("load_resnet101", weights)
    new = {name: _take_finite(source, weights, name, value.shape) for name, value in own.items()}
    # resnet152 has these tensors and others.
    more = [key for key in weights if key not in own and not str(key).startswith("fc.")]
    if more:
        raise ValueError(
            f"load_resnet101: {source} holds {more[0]!r}, which resnet101 does not have "
            f"({len(more)} such tensors)"
        )
    if rescale_input:
        weight, added = _rescaled(new["conv1.weight"])
        new["conv1.weight"] = weight
        # conv1 has no bias, so the mean that bn1 subtracts is reduced instead.
        new["bn1.running_mean"] = new["bn1.running_mean"].double().cpu() - added
    trunk.load_state_dict(new)


def _take_finite(
    source: str, weights: Mapping[str, Tensor], key: str, shape: Sequence[int]
) -> Tensor:
    is_count = key.endswith("num_batches_tracked")
    if is_count and weights.get(key) is None:
        return torch.tensor(0)  # PyTorch before 0.4.1 did not save it
    value = _take("load_resnet101", source, weights, key, shape, floating=not is_count)
    if fault := fault_of(key, value.float()):
        raise ValueError(f"load_resnet101: {source}: {fault}")
    return value


def _read(function: str, weights: Weights) -> tuple[str, Mapping[str, Tensor]]:
    """The name of the source, for messages, and its tensors."""
    if isinstance(weights, Mapping):
        return "weights", weights
    return os.fspath(weights), read_tensors(function, weights)


def _take(
    function: str,
    source: str,
    weights: Mapping[str, Tensor],
    key: str,
    shape: Sequence[int],
    floating: bool = True,
) -> Tensor:
    value = weights.get(key)
    if not isinstance(value, Tensor):
        network = function.removeprefix("load_")
        raise ValueError(
            f"{function}: {source} lacks {key!r}; expected the state dict of torchvision's "
            f"{network}, got keys {sorted(map(str, weights))[:4]} ..."
        )
    if value.shape != torch.Size(shape):
        raise ValueError(
            f"{function}: {source}: {key!r} must have shape {list(shape)}, got {list(value.shape)}"
        )
    if floating and not value.is_floating_point():
        raise ValueError(
            f"{function}: {source}: {key!r} must be of floating point, got {value.dtype}"
        )
    return value


def _rescaled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The first convolution's weights for RGB 0-255 minus `MEAN_RGB`, and a term for its bias.

    weight [O, 3, K, K] expects torchvision's input: x * scale + shift for our input x. Returns
    [O, 3, K, K] and [O], both float64.
    """
    mean, std, ours = (
        torch.tensor(values, dtype=torch.float64, device="cpu")
        for values in (_TORCHVISION_MEAN, _TORCHVISION_STD, MEAN_RGB)
    )
    scale, shift = 1 / (255 * std), (ours / 255 - mean) / std
    weight = weight.double().cpu()
    return weight * scale[:, None, None], (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
