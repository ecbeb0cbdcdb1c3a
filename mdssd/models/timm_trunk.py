"""Networks of timm as trunks. timm is optional, and imported when a model asks for one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from mdssd.models.vgg import MEAN_RGB
from mdssd.names import TRUNKS
from mdssd.system.text import first_line

STRIDES = (4, 8, 16)
_EXPECTED = f"one of {', '.join(TRUNKS)}, or a network of timm"


def check_timm(where: str, name: object) -> None:
    """Check that timm has a network of this name.

    Args:
        where: what the message begins with, such as the model.
        name: the name of the trunk.

    Raises:
        ValueError: it has none, or timm cannot be imported.

    Example:
        >>> from mdssd.models.timm_trunk import check_timm
        >>> try:
        ...     check_timm("ssd300", "no_such_network")
        ... except ValueError as error:
        ...     print(str(error)[:53])
        ssd300: trunk must be one of vgg16, resnet101, effici
    """
    message = f"{where}: trunk must be {_EXPECTED}; got {name!r}"
    if not isinstance(name, str):
        raise ValueError(message)
    try:
        import timm
    except Exception as error:  # a torchvision that does not fit raises a RuntimeError
        missing = isinstance(error, ImportError) and error.name == "timm"
        reason = "is not installed" if missing else f"cannot be imported ({first_line(error)})"
        raise ValueError(
            f"{message}, and timm {reason}; it needs the torchvision that fits "
            f"torch {torch.__version__}: see docs/install.md"
        ) from None
    if not timm.is_model(name):
        raise ValueError(message)


def timm_network(name: str, **options: Any) -> nn.Module:
    """Make the network of timm that returns its maps of strides 4, 8 and 16.

    Args:
        name: its name in timm, such as "mobilenetv3_large_100".
        options: more arguments of `timm.create_model`.

    Raises:
        ValueError: the network has no maps of these strides.
    """
    import timm

    indices, _ = _maps(name)
    network: nn.Module = timm.create_model(
        name, features_only=True, out_indices=indices, **{"pretrained": False, **options}
    )
    return network


def timm_channels(name: str) -> tuple[int, int, int]:
    """Return the channels of the maps of strides 4, 8 and 16 of the network of this name.

    Raises:
        ValueError: the network has no maps of these strides.
    """
    return _maps(name)[1]


@lru_cache
def _maps(name: str) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """Return which of its maps a network has at strides 4, 8 and 16, and their channels."""
    import timm

    try:
        with torch.device("meta"):
            info = timm.create_model(name, features_only=True, pretrained=False).feature_info
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"trunk: timm makes no feature maps of {name!r}: {first_line(error)}"
        ) from None
    strides, channels = list(info.reduction()), info.channels()
    if any(strides.count(stride) != 1 for stride in STRIDES):
        raise ValueError(
            f"trunk: expected a network with a map of each of the strides 4, 8 and 16, got "
            f"{name!r}, which has {', '.join(map(str, strides))}"
        )
    indices = tuple(strides.index(stride) for stride in STRIDES)
    low, middle, high = (channels[k] for k in indices)
    return indices, (low, middle, high)


@lru_cache
def check_maps(name: str, height: int, width: int) -> None:
    """Check that the maps of a network of timm fit images of this size.

    Raises:
        ValueError: the network takes images of another size only, or rounds the sizes of its maps
            down.
    """
    with torch.device("meta"):
        try:
            maps = timm_network(name).eval()(torch.zeros(1, 3, height, width))
        except AssertionError as error:  # Some networks accept only a single size.
            raise ValueError(
                f"trunk {name!r} cannot take images of {width} x {height}: {first_line(error)}"
            ) from None
        except (NotImplementedError, RuntimeError):  # The device meta lacks an operator.
            return
    _check_sizes(name, (height, width), maps)


def _check_sizes(name: str, size: Sequence[int], maps: Sequence[Tensor]) -> None:
    for x, stride in zip(maps, STRIDES, strict=True):
        expected = [-(-side // stride) for side in size]
        if list(x.shape[2:]) != expected:
            raise ValueError(
                f"trunk {name!r}: expected a map of {expected} cells for images of {list(size)}, "
                f"got {list(x.shape[2:])}; choose an input size that is a multiple of 32"
            )


class TimmTrunk(nn.Module):
    """A network of timm up to its map of stride 16.

    It expects what the other trunks expect, RGB 0-255 minus `MEAN_RGB`, and scales it as timm's
    ImageNet weights of this network need it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = timm_network(name)
        config: Any = self.network.default_cfg
        mean, std = (torch.tensor(config[key], device="cpu") for key in ("mean", "std"))
        own = torch.tensor(MEAN_RGB, device="cpu") / 255
        self.register_buffer("scale", (1 / (255 * std))[:, None, None], persistent=False)
        self.register_buffer("shift", ((own - mean) / std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps of strides 4, 8 and 16 of images [B, 3, H, W].

        Raises:
            ValueError: the network rounds the sizes of its maps down, so they do not fit.
        """
        maps = self.network(images * self.scale + self.shift)
        _check_sizes(self.name, images.shape[2:], maps)
        low, middle, high = maps
        return low, middle, high
