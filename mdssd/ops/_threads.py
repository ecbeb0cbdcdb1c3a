"""The number of threads that `detection_output` uses on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_here = threading.local()


def cpu_threads() -> int:
    """Return PyTorch's number of threads, or 1 within `on_one_thread`."""
    return 1 if getattr(_here, "alone", False) else torch.get_num_threads()


@contextmanager
def on_one_thread() -> Iterator[None]:
    """In this block `detection_output`, called from this thread, uses no other thread.

    OpenMP's threads spin for some milliseconds after their work, which takes the cores from the
    threads of another library, such as OpenVINO's (benchmarks/NOTES.md). The number of PyTorch's
    threads is not changed for this, since threads that start meanwhile would inherit it.
    """
    before = getattr(_here, "alone", False)
    _here.alone = True
    try:
        yield
    finally:
        _here.alone = before
