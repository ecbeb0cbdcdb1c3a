"""Time the sides of a row in turns.

A round times every side once, in an order that is shuffled anew for each round. If something slows
the machine down, it slows all sides down, and their ratio stays. A ratio is the median of the
rounds' ratios; its spread is that of the 95% interval of this median.

If other processes want the cores, a side with two threads may lose more than a side with one. So
the kernel is asked how long the threads of this process waited for a core during a slice, and a
ratio is marked as disturbed if that was long in most rounds.
"""

from __future__ import annotations

import gc
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Nanoseconds that a timed slice has at least; short calls are repeated to fill it. The clock and
# the loop cost 0.1 us, a thousandth of it. The scheduler's slices of 3 ms are far longer, so most
# slices are not interrupted even if another process wants the core.
SLICE = 100_000
ROUNDS = 96  # divisible by the powers of two up to 32
SECONDS = 2.0  # the time of one side in all rounds; a slow side takes part in fewer
WARMED = 10_000_000  # nanoseconds; a shorter call is made once untimed before each slice
WIDE = 0.07  # two ratios that are each right within 7% differ by at most 15%
DISTURBED = 0.2  # the share of a slice that its threads may wait for a core
ATTEMPTS = 3


class Slice(NamedTuple):
    """A side's part of a round."""

    seconds: float  # the time of one call
    waited: float  # the time that all threads waited for a core, as a share of the slice


Times = dict[int, Slice]  # the slice of each round


@dataclass(frozen=True)
class Side:
    """One implementation in a row.

    Attributes:
        call: Makes one call.
        around: Entered, untimed, around the calls of a round, for example to replace functions.
        more: Stored in the JSON with this side only.
    """

    call: Callable[[], Any]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    more: Mapping[str, Any] = field(default_factory=dict)


def median(times: Times) -> float:
    return statistics.median(each.seconds for each in times.values())


@dataclass(frozen=True)
class Ratio:
    """A median of ratios, its interval with a confidence of 95%, and the median of the waiting."""

    median: float
    low: float
    high: float
    waited: float

    @property
    def spread(self) -> float:
        """The distance from the median to the farther end of the interval, over the median."""
        return max(self.high - self.median, self.median - self.low) / self.median

    @property
    def wide(self) -> bool:
        return self.spread > WIDE

    @property
    def disturbed(self) -> bool:
        """Whether other processes had the cores for so long that the ratio may be off."""
        return self.waited > DISTURBED


def ratio(times: Times, base: Times) -> Ratio:
    """Compare two sides in the rounds in which both took part.

    The interval lies between two of the sorted ratios. Of fewer than six it is all of them.
    """
    rounds = [r for r in times if r in base]
    ratios = sorted(times[r].seconds / base[r].seconds for r in rounds)
    waited = statistics.median(max(times[r].waited, base[r].waited) for r in rounds)
    count, left_out, below = len(ratios), 0, 0.5 ** len(ratios)
    while below <= 0.025:  # the probability that at most `left_out` ratios lie below the median
        left_out += 1
        below += math.comb(count, left_out) * 0.5**count
    first = max(0, left_out - 1)
    return Ratio(statistics.median(ratios), ratios[first], ratios[count - 1 - first], waited)


@dataclass
class _Turn:
    """How a side takes part: `calls` calls in a slice, in every `every`-th round."""

    side: Side
    calls: int = 1
    every: int = 1
    warmed: bool = False
    times: Times = field(default_factory=dict)


class Turns:
    """Times the sides of a row, of which the first is the base of all ratios.

    Args:
        sides: By name.
        rounds: Number of rounds, each with one call of every side. If None, both depend on the
            time of a call.
        clock: Returns nanoseconds.
        waiting: Makes a function that returns how many nanoseconds the threads have waited for a
            core.
    """

    def __init__(
        self,
        sides: Mapping[str, Side],
        rounds: int | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
        waiting: Callable[[], AbstractContextManager[Callable[[], int]]] | None = None,
    ) -> None:
        self._clock = clock
        self._waiting = waiting or WaitedForACore
        self._rounds = rounds or ROUNDS
        self._fixed = rounds is not None
        self._turns = {name: _Turn(side) for name, side in sides.items()}
        self._base = next(iter(self._turns))
        self._next = 0
        self.attempts = 0

    @property
    def times(self) -> dict[str, Times]:
        return {name: turn.times for name, turn in self._turns.items()}

    def ratios(self) -> dict[str, Ratio]:
        """Return the ratios of the sides to the first side."""
        base = self._turns[self._base].times
        return {
            name: ratio(turn.times, base)
            for name, turn in self._turns.items()
            if name != self._base
        }

    def run(self) -> None:
        """Time all sides, and those that are wide or disturbed again, together with the base."""
        with _no_collection():
            for turn in self._turns.values():
                self._plan(turn)
            names = list(self._turns)
            while True:
                self.attempts += 1
                with self._waiting() as waited:
                    self._run_rounds(names, waited)
                found = self.ratios().items()
                again = [name for name, each in found if each.wide or each.disturbed]
                if not again or self._fixed or self.attempts == ATTEMPTS:
                    return
                names = [self._base, *again]

    def _plan(self, turn: _Turn) -> None:
        """Warm a side up, and let it take part as often as its time allows."""
        with turn.side.around():
            turn.side.call()
            if self._fixed:
                turn.side.call()
                return
            spent = [self._time(turn.side.call, 1)]
            while len(spent) < 4 and sum(spent) < WARMED:
                spent.append(self._time(turn.side.call, 1))
        one = max(1, min(spent))
        turn.calls = math.ceil(SLICE / one)
        turn.warmed = one < WARMED
        cost = one * (turn.calls + turn.warmed)
        while self._rounds // turn.every * cost > 1e9 * SECONDS and turn.every < 32:
            turn.every *= 2  # so that a rarer side always meets the more frequent ones

    def _run_rounds(self, names: list[str], waited: Callable[[], int]) -> None:
        for number in range(self._next, self._next + self._rounds):
            order = [name for name in names if number % self._turns[name].every == 0]
            random.Random(number).shuffle(order)
            for name in order:
                turn = self._turns[name]
                with turn.side.around():
                    os.sched_yield()  # so that the slice begins at the start of the scheduler's
                    if turn.warmed:
                        turn.side.call()
                    before = waited()
                    spent = max(1, self._time(turn.side.call, turn.calls))
                    share = max(0, waited() - before) / spent  # a thread may have ended
                turn.times[number] = Slice(1e-9 * spent / turn.calls, share)
        self._next += self._rounds

    def _time(self, call: Callable[[], Any], calls: int) -> int:
        start = self._clock()
        for _ in range(calls):
            call()
        return self._clock() - start


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running within a timed slice."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class WaitedForACore:
    """Returns how many nanoseconds this process's threads have waited for a core since they began.

    Where the kernel does not tell, this is 0.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def __enter__(self) -> WaitedForACore:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)

    def __call__(self) -> int:
        total = 0
        with suppress(OSError):  # not Linux
            for thread in os.listdir("/proc/self/task"):  # pools end threads and start new ones
                total += self._of(thread)
        return total

    def _of(self, thread: str) -> int:
        try:
            if thread not in self._files:
                path = f"/proc/self/task/{thread}/schedstat"
                self._files[thread] = os.open(path, os.O_RDONLY)
            return int(os.pread(self._files[thread], 100, 0).split()[1])
        except OSError:  # the thread has ended, or the kernel has no such file
            return 0
