"""The compiled modules, and why one is missing."""

from __future__ import annotations

import importlib
from typing import Any

try:
    native: Any = importlib.import_module("mdssd._C")
    native_error = ""
except ImportError as error:  # an install without the native module still has the reference
    native = None
    native_error = str(error)
try:
    simt: Any = importlib.import_module("mdssd._simt")
except ImportError:  # only an editable install has it
    simt = None
