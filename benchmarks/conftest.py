"""Set up the benchmarks: the allocator, the fixture `measure` and the facts in the JSON."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.machine import (
    ALLOCATOR,
    Ceilings,
    allocator_set,
    device_microseconds,
    facts,
    pretended,
    run_before_others,
    synchronise,
)
from benchmarks.rows import Sides
from benchmarks.stored import STATS
from benchmarks.turns import Side, Times, Turns, median, ratio

_SKIPPED: dict[str, list[str]] = defaultdict(list)
_RATIOS: list[str] = []  # lines of the terminal
_CEILINGS = Ceilings()


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("benchmark_only", False):
        return
    arguments = list(config.invocation_params.args)
    # glibc reads the settings at start, so pytest has to restart itself if it owns the process.
    if not allocator_set() and arguments == sys.argv[1:]:
        config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
        sys.stdout.flush()
        command = [sys.executable, "-m", "pytest", *map(str, arguments)]
        os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})
    if not config.option.benchmark_columns:
        config.option.benchmark_columns = ["median", "iqr", "min", "rounds"]
    run_before_others()


def pytest_report_header() -> str:
    said = facts()
    return (
        f"benchmarks: {said['threads']} {said['scheduler']} threads, allocator: {said['allocator']}"
    )


def prepared(
    sides: Sides, prepare: Callable[[str, Any], Any], test: str
) -> tuple[dict[str, Side], dict[str, str], dict[str, Exception]]:
    """Prepare the sides of a row; return those that can run, why others cannot, and failures.

    The row needs its first side. Without it, the skip or the failure is that of the test.
    """
    ready, skipped, failed = {}, {}, {}
    for peer, make in sides.makes.items():
        try:
            made = prepare(peer, make)
        except pytest.skip.Exception as skip:
            if not ready:
                raise
            skipped[f"{test}, {peer}"] = str(skip.msg)
        except Exception as error:
            if not ready:
                raise
            failed[peer] = error
        else:
            ready[peer] = made if isinstance(made, Side) else Side(made)
    return ready, skipped, failed


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that times the sides of a row and stores them in the JSON."""

    def run(
        sides: Sides,
        prepare: Callable[[str, Any], Any],
        *,
        op: str,
        row: str,
        dtype: torch.dtype,
        shape: str,
        moved: int = 0,
        flops: float = 0.0,
        rounds: int | None = None,
        capture: Callable[[str], bool] = lambda peer: False,
        **more: Any,
    ) -> None:
        """Prepare the sides and time them in turns.

        Args:
            sides: The implementations; ratios are those to the first.
            prepare: Called with each name and value of `sides`. Returns the call, or a Side, after
                checking its result. The row is timed without a side that skips or fails here; if
                one fails, the test fails after the others were timed.
            op, row: The operation and its input.
            moved, flops: Bytes that any implementation must move, and operations it must execute.
            rounds: Number of timed calls. If None, it depends on the time of one call.
            capture: Whether a CUDA graph can capture the call of the side with this name.
            more: Stored as well, for example `axis` and `x` of a sweep.
        """
        node, device = request.node, sides.device
        ready, skipped, failed = prepared(sides, prepare, node.nodeid.partition("::")[2])
        recorder = request.config.pluginmanager.get_plugin("resuming-recorder")
        for name, reason in skipped.items():
            _SKIPPED[reason].append(name)
            if recorder:
                recorder.write(left_out=name, why=reason)
        common = {**facts(), "op": op, "row": row, "device": device, "shape": shape, **more}
        common["dtype"] = str(dtype).removeprefix("torch.")
        entries = _timed(benchmark, device, ready, moved, flops, dtype, rounds, capture)
        for peer, (times, info) in entries.items():
            benchmark.name = f"{node.name}, {peer}"
            benchmark.fullname = f"{node.nodeid}, {peer}"
            benchmark.group = f"{op}, {row}, {device}"
            benchmark.extra_info = {**common, "peer": peer, **ready[peer].more, **info}
            stats = benchmark._make_stats(1)  # an entry of its own for each side
            for each in times.values():
                stats.update(each.seconds)
            if recorder:
                recorder.write(
                    row={
                        "name": benchmark.name,
                        "extra_info": {**benchmark.extra_info, "node": node.nodeid},
                        "stats": {name: getattr(stats.stats, name) for name in STATS},
                    },
                    about={**facts(), **_CEILINGS.as_dict()},
                )
            if "ratio" in info:
                _RATIOS.append(f"{op}, {row}, {device}: {peer} {described(info)}")
        for peer, error in failed.items():
            raise AssertionError(f"{peer}: {error}") from error

    return run


def described(info: dict[str, Any]) -> str:
    marks = "".join(f", {name}" for name in ("wide", "disturbed") if info[name])
    return f"{info['ratio']:.3g}x ±{100 * info['spread']:.0f}%{marks}"


def _timed(
    benchmark: Any,
    device: str,
    ready: dict[str, Side],
    moved: int,
    flops: float,
    dtype: torch.dtype,
    rounds: int | None,
    capture: Callable[[str], bool],
) -> dict[str, tuple[Times, dict[str, Any]]]:
    """Return the times of each side and the facts that are stored with them."""
    benchmark._mode = "turns"  # the fixture was used
    if benchmark.disabled:
        for side in ready.values():
            with side.around():
                side.call()
        return {}
    ceilings = _CEILINGS.sides(device, moved, flops, dtype)
    every = {**{peer: _synchronised(side, device) for peer, side in ready.items()}, **ceilings}
    turns = Turns(every, rounds=1 if pretended() else rounds)
    turns.run()
    floor = _CEILINGS.floor(turns.times, ceilings, device, moved, flops, dtype)
    ratios, entries = turns.ratios(), {}
    for peer, side in ready.items():
        times = turns.times[peer]
        info: dict[str, Any] = {"attempts": turns.attempts}
        if peer in ratios:
            found = ratios[peer]
            info.update(ratio=found.median, spread=found.spread, waited=round(found.waited, 3))
            info.update(wide=found.wide, disturbed=found.disturbed)
        if device == "cuda":
            with side.around():
                info["device_us"] = device_microseconds(side.call, capture(peer))
        if floor:
            share = ratio(floor, times)
            info.update(bytes=moved, flops=flops, floor_s=median(floor))
            info.update(floor_share=share.median, floor_spread=share.spread)
            info.update(floor_wide=share.wide or share.disturbed)
        entries[peer] = (times, info)
    return entries


def _synchronised(side: Side, device: str) -> Side:
    if device == "cpu":
        return side

    def call() -> None:
        side.call()
        synchronise(device)

    return Side(call, side.around, side.more)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "skipped"
        _SKIPPED[reason.removeprefix("Skipped: ")].append(report.nodeid.partition("::")[2])


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json["mdssd"] = {**facts(), **_CEILINGS.as_dict(), "skipped": dict(_SKIPPED)}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _RATIOS:
        terminalreporter.section("times of the sides, over that of the first side of the row")
    for line in _RATIOS:
        terminalreporter.write_line(line)
    if _SKIPPED:
        terminalreporter.section("rows that were not measured, and why")
    for reason, rows in _SKIPPED.items():
        for row in rows:
            terminalreporter.write_line(f"{row}: {reason}")
