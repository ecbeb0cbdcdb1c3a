"""A plugin of pytest: at the end, each process writes the report of csrc/ptx into a folder.

The environment variable MDSSD_PTX_REPORT names the folder.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def pytest_sessionfinish() -> None:
    # Not before conftest.py has put csrc/ptx in the place of csrc/simt.
    from mdssd.ops import _modules

    library = ctypes.CDLL(_modules.simt.__file__)
    library.mdssd_ptx_report.restype = ctypes.c_char_p
    path = Path(os.environ["MDSSD_PTX_REPORT"], f"{os.getpid()}.json")
    path.write_bytes(library.mdssd_ptx_report())
