"""Stop the program on SIGTERM and Ctrl-C without losing work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATED = 128 + 15


class Terminated(SystemExit):
    """SIGTERM ended a run whose checkpoint is saved. Uncaught, it ends the process with 143.

    Attributes:
        note: a message for the user.
    """

    def __init__(self, note: str = "") -> None:
        super().__init__(TERMINATED)
        self.note = note


class StopRequest:
    """Record SIGTERM within the block, so that the work can stop at a safe point.

    A second SIGTERM kills the process. With `patient` it does not: torchrun forwards the SIGTERM
    that it receives to its processes, which may have received one already, and waits before it
    kills them. Outside the main thread, where Python handles no signals, this does nothing.

    Attributes:
        asked: whether SIGTERM has arrived.

    Example:
        >>> import signal
        >>> from mdssd.system.stop import StopRequest
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.asked
        True
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
            self._before = signal.signal(signal.SIGTERM, self._record)
        return self

    def __exit__(self, *error: object) -> None:
        if self._entered:  # the handler before is None if it was not set from Python
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def check(self) -> None:
        """Raise `Terminated` if SIGTERM has arrived."""
        if self.asked:
            raise Terminated

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this block SIGTERM raises `Terminated` immediately, for work that can be lost."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self._patient else signal.SIG_DFL)
        if self._at_once:
            raise Terminated


class Interrupted(KeyboardInterrupt):
    """Ctrl-C within `interruptible`."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block, let Ctrl-C raise a subclass of KeyboardInterrupt.

    The program can then catch it and exit with a status of its own. A plain KeyboardInterrupt does
    not always allow that: if one leaves code that `exec` runs from a string, as `dataclass` does,
    CPython assumes that nobody will catch it, and later ends `python -m` by the signal. It compares
    exact types, so a subclass avoids this.

    Does nothing outside the main thread, or if the program has set a handler for SIGINT.

    Example:
        >>> import signal
        >>> from mdssd.system.stop import interruptible
        >>> with interruptible():
        ...     try:
        ...         exec("signal.raise_signal(signal.SIGINT)")
        ...     except KeyboardInterrupt as interrupt:
        ...         print(type(interrupt).__name__)
        Interrupted
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
