"""Fast single-shot detection of small objects: SSD operators, SSD and MDSSD models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mdssd.version import __version__

if TYPE_CHECKING:
    from mdssd import ops
    from mdssd.detection.detector import Detector
    from mdssd.models import (
        dssd321,
        dssd513,
        load_pretrained,
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

_HOMES = {name: "mdssd.models" for name in __all__} | {
    "Detector": "mdssd.detection.detector",
    "ops": "mdssd.ops",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `mdssd --help` should not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module 'mdssd' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if name == "ops" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
