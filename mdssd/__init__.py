"""Fast single-shot detection of small objects: SSD operators, SSD and MDSSD models."""

from mdssd import ops

__version__ = "0.1.0"

__all__ = ["__version__", "ops"]
