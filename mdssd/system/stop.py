"""Ending a run when the system asks for it (SIGTERM)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATED = 128 + 15


class Terminated(SystemExit):
    """SIGTERM ended a run whose checkpoint is saved; uncaught, it ends the process with 143.

    note: for the user.
    """

    def __init__(self, note: str = "") -> None:
        super().__init__(TERMINATED)
        self.note = note


class StopRequest:
    """Takes note of SIGTERM while it is entered, so that the work can end where it is whole.

    `asked` tells of one, `check` raises `Terminated` then. A second SIGTERM kills the process as
    if this were not there, unless `patient`: torchrun passes on its own one, after which it waits
    before it kills, to processes that may have had theirs. Outside the main thread, where Python
    takes no signals, it does nothing.
    """

    def __init__(self, patient: bool = False) -> None:
        self.asked = False
        self._patient = patient
        self._at_once = False
        self._entered = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        self._entered = threading.current_thread() is threading.main_thread()
        if self._entered:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._entered:  # None: of a handler that Python did not set
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def check(self) -> None:
        if self.asked:
            raise Terminated

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work that nothing is lost of: SIGTERM raises `Terminated` in the midst of it."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self._patient else signal.SIG_DFL)
        if self._at_once:
            raise Terminated


class Interrupted(KeyboardInterrupt):
    """Ctrl-C within `interruptible`."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise a subclass of KeyboardInterrupt within the block.

    When a plain KeyboardInterrupt leaves code that `exec` or `eval` runs from a string (that of a
    dataclass, for instance), CPython takes it for unhandled from then on: `python -m` ends by the
    signal, whatever exit status the program returns. CPython compares exact types, so a subclass
    escapes this. Does nothing outside the main thread, or if SIGINT has another handler.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted
