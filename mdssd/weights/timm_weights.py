"""ImageNet weights of timm's networks, from files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mdssd.models.timm_trunk import TimmTrunk, timm_network
from mdssd.weights.checkpoint_tensors import fault_of


def load_timm(trunk: TimmTrunk, source: str, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy weights of the whole network, as timm stores them, into a trunk.

    Args:
        trunk: the trunk of a model.
        source: where the weights are from, for messages.
        weights: the tensors, as `read_tensors` returns them.

    Returns:
        The names of the tensors that the trunk does not use, such as those of the classifier.

    Raises:
        ValueError: a tensor is missing, of another shape or not finite. The trunk is then
            unchanged.
    """
    import timm

    where = f"load_timm: {source}"
    with torch.device("meta"):
        whole = timm.create_model(trunk.name, pretrained=False).state_dict()
    for name, value in whole.items():
        got = list(weights[name].shape) if name in weights else "none"
        if got != list(value.shape):
            raise ValueError(
                f"{where}: {name!r} of timm's {trunk.name} must have shape {list(value.shape)}, "
                f"got {got}"
            )
        if fault := fault_of(name, weights[name].float()):
            raise ValueError(f"{where}: {fault}")
    # timm renames the tensors of networks that it divides into stages.
    overlay = {"state_dict": {name: weights[name] for name in whole}}
    filled = timm_network(trunk.name, pretrained=True, pretrained_cfg_overlay=overlay)
    trunk.network.load_state_dict(filled.state_dict())
    own = trunk.network.state_dict()
    return tuple(name for name in weights if not {name, name.replace(".", "_", 1)} & set(own))
