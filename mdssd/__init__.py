"""Fast single-shot detection of small objects: SSD operators, SSD and MDSSD models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdssd import ops
    from mdssd.engine.detector import Detector
    from mdssd.models import mdssd300, mdssd512, ssd300, ssd512

__version__ = "0.1.0"

__all__ = ["Detector", "__version__", "mdssd300", "mdssd512", "ops", "ssd300", "ssd512"]

_HOMES = {"Detector": "mdssd.engine.detector", "ops": "mdssd.ops"} | dict.fromkeys(
    ("mdssd300", "mdssd512", "ssd300", "ssd512"), "mdssd.models"
)


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `mdssd --help` should not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module 'mdssd' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    return module if name == "ops" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
