"""Keeping freed memory, so that the large buffers of a network are not mapped anew each time."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Tell glibc to keep the memory that this process frees; give whether that was possible.

    By default every buffer above 32 MiB goes back to the system when it is freed and is mapped,
    zeroed and faulted in page by page when it is needed again. Holds for the whole process from
    now on and cannot be undone; other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
