"""Other implementations of the same tasks.

Each is a function that takes an input from generators.py and returns a callable without arguments.
Packages that are not dependencies of this project are imported by `need`.
"""

from __future__ import annotations

from typing import Any

import pytest

_INSTALLED_BY = {
    "ensemble_boxes": "pip install --no-deps ensemble-boxes numba llvmlite",
    "lsnms": "pip install --no-deps lsnms numba llvmlite",
    "sahi.models.base": "pip install sahi",
    "sahi.postprocess.combine": "pip install sahi",
    "sahi.predict": "pip install sahi",
    "sahi.prediction": "pip install sahi",
    "torchvision": "pip install torchvision",
}


def need(package: str) -> Any:
    """Import a package, or skip the row with the command that installs the package."""
    how = _INSTALLED_BY.get(package, "pip install -e '.[bench]'")
    return pytest.importorskip(
        package, reason=f"needs {package}: {how}", exc_type=(ImportError, RuntimeError)
    )
