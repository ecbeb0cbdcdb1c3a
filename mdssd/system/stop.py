"""Stop the program on SIGTERM and Ctrl-C without losing work."""

from __future__ import annotations

import os
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
    """Record SIGTERM and Ctrl-C within the block, so that the work can stop at a safe point.

    After the first signal, a second SIGTERM kills the process and a second Ctrl-C raises
    `Interrupted`. With `patient` they do neither: torchrun forwards the signals that it receives to
    its processes, which may have received them already, and waits before it kills them. Outside the
    main thread, where Python handles no signals, this does nothing. A handler of the program's own
    for Ctrl-C stays.

    Args:
        patient: whether further signals are ignored.
        note: a line that is written to standard error when Ctrl-C arrives.

    Attributes:
        signal: the first signal that has arrived, or None.

    Example:
        >>> import signal
        >>> from mdssd.system.stop import StopRequest
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.asked
        True
    """

    def __init__(self, patient: bool = False, note: str = "") -> None:
        self.signal: int | None = None
        self._patient = patient
        self._note = note
        self._at_once = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._take(signal.SIGTERM)
            if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _interrupt):
                self._take(signal.SIGINT)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # The handler before is None if it was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def error(self) -> Interrupted | Terminated:
        """Return what ends the work: `Interrupted` after Ctrl-C, otherwise `Terminated`."""
        return Interrupted() if self.signal == signal.SIGINT else Terminated()

    def check(self) -> None:
        """Raise `error()` if a signal has arrived."""
        if self.asked:
            raise self.error()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this block a signal raises `error()` immediately, for work that can be lost."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def _take(self, number: int) -> None:
        self._before[number] = signal.signal(number, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        again: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: _interrupt}
        for each in self._before:
            signal.signal(each, signal.SIG_IGN if self._patient else again[each])
        if self._at_once:
            raise self.error()
        if self._note and number == signal.SIGINT:
            # Not by print: the signal may have come while the program was printing.
            os.write(2, f"\n{self._note}\n".encode())


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
