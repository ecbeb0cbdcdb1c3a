"""Progress bars: one that moves on a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from mdssd.system.text import printable

# Seconds between two lines in a log file, and the seconds that pass before the first.
_LINE_EVERY, _LINES_AFTER = 30.0, 2.0


class _Moving(tqdm):
    """A progress bar that moves on a terminal."""

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        super().write(printable(s), file, end, nolock)


class _Lines(tqdm):
    """A progress bar that is written as whole lines, for a file that collects the output."""

    @staticmethod
    def status_printer(file: Any) -> Any:
        return lambda text: print(text, file=file, flush=True)

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        print(printable(s), file=file, end=end, flush=True)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None:  # otherwise tqdm wants to erase the bar
            self.sp(str(self))
        return False

    def clear(self, nolock: bool = False) -> None:
        pass  # there is no bar to remove

    def close(self) -> None:
        shown = not self.disable and self.last_print_t > self.start_t
        if shown and self.n != self.last_print_n:
            self.display()
        super().close()


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    desc: str,
    total: float | None = None,
    unit: str = "it",
    initial: int = 0,
    visible: bool = True,
    leave: bool = True,
    delay: float = 0.0,
) -> tqdm[Any]:
    """Make a progress bar on standard error.

    On a terminal the bar moves. Anywhere else, such as in a log file, it is a line every 30
    seconds, and nothing at all for work of less than 2 seconds.

    Args:
        items: what is iterated over; None if the caller calls `update`.
        desc: what is done, in front of the bar.
        total: number of steps; None takes the length of `items`.
        unit: the name of a step.
        initial: the steps that an earlier session has done.
        visible: False makes a bar that shows nothing.
        leave: whether the finished bar stays on the terminal.
        delay: seconds before the bar appears on a terminal.

    Returns:
        A bar of tqdm: iterate over it, or call `update(steps)` and at last `close()`. Its `write`
        prints a line above the bar.

    Example:
        >>> from mdssd.system.progress import progress_bar
        >>> [number * number for number in progress_bar([1, 2, 3], desc="squares", visible=False)]
        [1, 4, 9]
    """
    # Python has no standard error if the program was started with it closed.
    visible = visible and sys.stderr is not None
    shared: dict[str, Any] = {
        "iterable": items,
        "desc": printable(desc),
        "total": total,
        "unit": unit,
        "initial": initial,
        "disable": not visible,
    }
    if visible and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return _Moving(**shared, leave=leave, delay=delay)
    return _Lines(
        **shared,
        leave=False,
        delay=_LINES_AFTER,
        mininterval=_LINE_EVERY,
        maxinterval=_LINE_EVERY,
        miniters=1,
        ascii=True,
    )
