"""Keep the memory that a process frees, or give it back to the system."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# Parameters of mallopt, as numbered in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Tell glibc to keep the memory that this process frees.

    By default glibc returns every freed buffer above 32 MiB to the system. The next such buffer is
    then mapped, zeroed and faulted in page by page, which costs more time than many operators. The
    setting applies to the whole process and cannot be undone. Other C libraries are left alone.

    Returns:
        Whether the setting was possible.

    Example:
        >>> from mdssd.system.memory import keep_memory
        >>> keep_memory() in (True, False)
        True
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])


def release_memory() -> None:
    """Return freed memory to the system, also that which `keep_memory` keeps. Needs glibc.

    Example:
        >>> from mdssd.system.memory import release_memory
        >>> release_memory()
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """Return a function of glibc, or None if this process has another C library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
