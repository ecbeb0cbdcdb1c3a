"""What others offer for the same task, each as a function that prepares a call and returns it.

A function takes the input that generators.py makes and returns a callable without arguments. What
it needs beyond this project's dependencies it imports through `need`.
"""

from __future__ import annotations

from typing import Any

import pytest

_INSTALLED_BY = {
    "lsnms": "pip install --no-deps lsnms numba llvmlite",
    "torchvision": "pip install torchvision",
}


def need(package: str) -> Any:
    """Import a package, or skip the row and say how to get it."""
    how = _INSTALLED_BY.get(package, "pip install -e '.[bench]'")
    return pytest.importorskip(
        package, reason=f"needs {package}: {how}", exc_type=(ImportError, RuntimeError)
    )
