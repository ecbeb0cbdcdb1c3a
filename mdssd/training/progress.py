"""The clock, the running means of the losses, and the progress bar of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from mdssd.system import distributed
from mdssd.system.progress import progress_bar
from mdssd.training.settings import Recipe
from mdssd.training.state import TrainState
from mdssd.training.step import Losses

T = TypeVar("T")


class Clock:
    """The training time of a run, including `before` seconds of earlier sessions.

    With `shared`, every process gets the main process's time, so that all follow one schedule.
    Then all processes must read the clock equally often.
    """

    def __init__(self, before: float, shared: bool) -> None:
        self._started = time.monotonic() - before
        self._shared = shared

    def seconds(self) -> float:
        passed = time.monotonic() - self._started
        return distributed.from_main(passed) if self._shared else passed


class Means(NamedTuple):
    """Mean losses of some iterations, and how fast they were.

    waiting: the fraction of the time (0 to 1) that was spent waiting for images.
    per_minute: iterations in a minute.
    """

    loc: float
    conf: float
    images_per_s: float
    waiting: float
    per_minute: float

    @property
    def total(self) -> float:
        return self.loc + self.conf


class Tally:
    """Sums over the iterations since the last row of loss.csv."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.loc = self.conf = 0.0
        self.images = self.count = 0
        self.lr = 0.0  # of the last iteration
        self.waited = 0.0
        self.since = time.monotonic()

    def add(self, losses: Losses, lr: float) -> None:
        self.loc += losses.loc
        self.conf += losses.conf
        self.images += losses.images
        self.count += 1
        self.lr = lr

    def time_waits(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and add up the time spent waiting for each."""
        since = time.monotonic()
        for batch in batches:
            self.waited += time.monotonic() - since
            yield batch
            since = time.monotonic()

    def means(self) -> Means:
        seconds = max(time.monotonic() - self.since, 1e-9)
        return Means(
            self.loc / self.count,
            self.conf / self.count,
            self.images / seconds,
            self.waited / seconds,
            60 * self.count / seconds,
        )


class Bar:
    """The progress bar of a run, over its iterations, or over its time in a run of minutes."""

    def __init__(self, state: TrainState, settings: Recipe, batches: int, visible: bool) -> None:
        self._timed = settings.minutes is not None
        total = settings.minutes * 60 if settings.minutes else (settings.epochs or 0) * batches
        total = settings.iterations or total
        self._bar = progress_bar(
            total=round(total),
            initial=round(state.seconds) if self._timed else state.step,
            desc="train",
            unit="s" if self._timed else "it",
            visible=visible,
        )
        if self._timed:  # without the rate, as "1.00s/s" says nothing
            self._bar.bar_format = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar.set_postfix_str("first iteration", refresh=terminal)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def show(self, state: TrainState, tally: Tally) -> None:
        if tally.count:
            means = tally.means()
            self._bar.set_postfix_str(
                f"epoch {state.epoch + 1}, iteration {state.step} "
                f"({means.per_minute:.0f} a minute), loss {means.total:.3f} = boxes "
                f"{means.loc:.3f} + classes {means.conf:.3f}, "
                f"lr {tally.lr:.2g}, waiting for images {means.waiting:.0%}",
                refresh=False,
            )
        reached = round(state.seconds) if self._timed else state.step
        self._bar.update(min(reached, self._bar.total) - self._bar.n)

    def note(self, line: str) -> None:
        """Print a line above the bar; print nothing if the bar is hidden."""
        if not self._bar.disable:
            self._bar.write(line)

    def warn(self, line: str) -> None:
        """Print a line to standard error, even if the bar is hidden."""
        self._bar.write(line, file=sys.stderr)
