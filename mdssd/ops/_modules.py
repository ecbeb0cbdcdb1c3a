"""The compiled modules, and why one is missing."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]


def _remedy() -> str:
    """Say why the native module is missing, as far as the files tell, and what to do."""
    built = sorted(path.name for path in _PACKAGE.glob("_C.*"))
    if built:
        return f"{_PACKAGE / built[0]} is of no use to this Python; install mdssd again"
    if not (_PACKAGE.parent / "csrc").is_dir():
        return f"{_PACKAGE} has no such file; install mdssd again"
    sources = (
        f"Python imports the sources in {_PACKAGE.parent}, which are not built; run "
        "`pip install -e .` there"
    )
    for folder in map(Path, sys.path):
        other = folder.resolve() / "mdssd"
        if other != _PACKAGE and any(other.glob("_C.*")):
            return f"{sources}, or start Python elsewhere to use the mdssd in {other.parent}"
    return sources


try:
    native: Any = importlib.import_module("mdssd._C")
    native_error = ""
except ImportError as error:  # an install without the native module still has the reference
    native = None
    native_error = str(error)
    warnings.warn(
        "mdssd: the native module does not load, so the operators run as plain PyTorch, about 35 "
        f"times slower on a CPU: {native_error}; {_remedy()}",
        stacklevel=2,
    )
try:
    simt: Any = importlib.import_module("mdssd._simt")
except ImportError:  # only an editable install has it
    simt = None
