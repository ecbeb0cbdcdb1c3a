"""Fast single-shot detection of small objects: operators, models and a detector."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mdssd.version import __version__

if TYPE_CHECKING:
    from mdssd import ops
    from mdssd.detection.detector import Detector
    from mdssd.weights.pretrained import load_pretrained
    from mdssd.zoo import (
        create,
        dssd321,
        dssd513,
        mdssd300,
        mdssd512,
        ssd300,
        ssd321,
        ssd512,
        ssd513,
    )

__all__ = [
    "Detector",
    "__version__",
    "create",
    "dssd321",
    "dssd513",
    "load_pretrained",
    "mdssd300",
    "mdssd512",
    "ops",
    "ssd300",
    "ssd321",
    "ssd512",
    "ssd513",
]

_HOMES = {name: "mdssd.zoo" for name in __all__} | {
    "Detector": "mdssd.detection.detector",
    "load_pretrained": "mdssd.weights.pretrained",
    "ops": "mdssd.ops",
}


def __getattr__(name: str) -> Any:
    # Import only what is used: `mdssd --help` must not wait seconds for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'mdssd' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if name == "ops" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
