"""ImageNet weights of timm's networks, from files and from timm itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mdssd.models.timm_trunk import TimmTrunk, timm_network
from mdssd.system.text import first_line
from mdssd.weights.checkpoint_tensors import fault_of

TIMM = "timm"  # instead of a file: the weights that timm downloads


def download_timm(model: nn.Module) -> dict[str, Tensor]:
    """Return the ImageNet weights that timm has for the trunk of a model.

    timm downloads them from the Hugging Face Hub and keeps them in its cache.

    Raises:
        ValueError: the trunk is not a network of timm.
        OSError: timm has no weights of it, or they can neither be downloaded nor be found in its
            cache.
    """
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, TimmTrunk):
        raise ValueError(
            f"load_pretrained: {TIMM}: expected a model whose trunk is a network of timm, got "
            f"{type(trunk).__name__}; its weights come from a file"
        )
    import timm

    try:
        return dict(timm.create_model(trunk.name, pretrained=True).state_dict())
    except Exception as error:  # timm and the client of the hub raise many kinds
        raise OSError(
            f"load_pretrained: {TIMM}: no weights of {trunk.name} could be had, a file of them can "
            f"take their place: {first_line(error)}"
        ) from error


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
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of the tensors that are returned as unused
    try:
        filled = timm_network(trunk.name, pretrained=True, pretrained_cfg_overlay=overlay)
    finally:
        log.setLevel(level)
    trunk.network.load_state_dict(filled.state_dict())
    own = trunk.network.state_dict()
    return tuple(name for name in weights if not {name, name.replace(".", "_", 1)} & set(own))
