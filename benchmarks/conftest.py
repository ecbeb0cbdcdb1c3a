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
    seconds_of,
    synchronise,
)
from benchmarks.stored import STATS

_WARM_UP = 2  # calls before the first timed one
_SKIPPED: dict[str, list[str]] = defaultdict(list)
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


def pytest_report_header() -> str:
    return f"benchmarks: {facts()['threads']} threads, allocator: {facts()['allocator']}"


def rounds_for(seconds: float) -> int:
    """Return 20 to 200 rounds, for about 0.6 s; for calls above 0.15 s at least 3, for 3 s.

    On a pretended GPU one round must do.
    """
    if pretended():
        return 1
    return max(3, int(3 / seconds)) if seconds > 0.15 else max(20, min(200, int(0.6 / seconds)))


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that times a call and stores its description in the JSON."""

    def run(
        call: Callable[[], Any],
        *,
        op: str,
        row: str,
        peer: str,
        device: str,
        dtype: torch.dtype,
        shape: str,
        moved: int = 0,
        flops: float = 0.0,
        rounds: int | None = None,
        capture: bool = False,
        **more: Any,
    ) -> None:
        """Time `call`.

        Args:
            op, row, peer: The operation, its input and the implementation ("mdssd ..." is ours).
            moved, flops: Bytes that any implementation must move, and operations it must execute.
            rounds: Number of timed calls. If None, it depends on the time of one call.
            capture: Whether a CUDA graph can capture the call.
            more: Stored as well, for example `axis` and `x` of a sweep.
        """

        def timed() -> None:
            call()
            synchronise(device)

        benchmark.group = f"{op}, {row}, {device}"
        benchmark.extra_info.update(
            facts(), op=op, row=row, peer=peer, device=device, shape=shape, warmup=_WARM_UP, **more
        )
        benchmark.extra_info["dtype"] = str(dtype).removeprefix("torch.")
        if benchmark.disabled:
            benchmark(timed)
            return
        if device == "cuda":
            benchmark.extra_info["device_us"] = device_microseconds(call, capture)
        seconds = seconds_of(call, device, rounds=_WARM_UP - 1)
        benchmark.pedantic(timed, rounds=(not pretended() and rounds) or rounds_for(seconds))
        if moved or flops:
            floor = _CEILINGS.floor(device, moved, flops, dtype)
            benchmark.extra_info.update(
                bytes=moved,
                flops=flops,
                floor_s=floor,
                floor_share=floor / benchmark.stats.stats.median,
            )
        if recorder := request.config.pluginmanager.get_plugin("resuming-recorder"):
            stats, node = benchmark.stats.stats, request.node.nodeid
            recorder.write(
                row={
                    "name": benchmark.name,
                    "extra_info": {**benchmark.extra_info, "node": node},
                    "stats": {name: getattr(stats, name) for name in STATS},
                },
                about={**facts(), **_CEILINGS.as_dict()},
            )

    return run


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "skipped"
        _SKIPPED[reason.removeprefix("Skipped: ")].append(report.nodeid.partition("::")[2])


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json["mdssd"] = {**facts(), **_CEILINGS.as_dict(), "skipped": dict(_SKIPPED)}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _SKIPPED:
        terminalreporter.section("rows that were not measured, and why")
    for reason, rows in _SKIPPED.items():
        for row in rows:
            terminalreporter.write_line(f"{row}: {reason}")
