"""Let pytest record every test as it ends, stop in time, and continue where it stopped.

    MDSSD_RECORD=build/suite.jsonl PYTHONPATH=tools python -m pytest -p resuming tests

The same command again runs only the tests that the file does not have. MDSSD_UNTIL is the time, in
seconds since 1970, after which no further test begins. A test during which the process ended is the
first to run the next time; if that happens twice, it is recorded as failed and passed over. After a
failed test that leaves the GPU unusable the session stops, so that the next test meets a new
process.

The file has one JSON object a line: {"begin": ID}, {"end": ID, "outcome": ..., "why": ...,
"seconds": ...}, {"row": ..., "about": ...} for a side of a row of the benchmarks, {"left_out": ...,
"why": ...} for a side that cannot run here, and {"session": STATUS, "stopped": ...} when a session
is over. tools/gpu_day.py reads it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ATTEMPTS = 2
_NOT_ENDED = f"the process ended during this test, {ATTEMPTS} times, or was out of time"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a record. A line that was cut off in the middle is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def ends(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the last result of each test that has one."""
    return {line["end"]: line for line in lines if "end" in line}


class Recorder:
    """Writes the record of one session."""

    def __init__(self, path: Path, until: float) -> None:
        self.until = until
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = read(path)
        self.done = ends(lines)
        begun = Counter(line["begin"] for line in lines if "begin" in line)
        self.interrupted = {id: n for id, n in begun.items() if id not in self.done}
        self._file = path.open("a")
        self._file.write("\n")  # ends a line that was cut off
        self._now: dict[str, Any] = {}

    def write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        there = {item.nodeid for item in items}
        for id, times in self.interrupted.items():
            if times >= ATTEMPTS and id in there:
                self.write(end=id, outcome="failed", why=_NOT_ENDED, seconds=0)
                self.done[id] = {}
        done = [item for item in items if item.nodeid in self.done]
        left = [item for item in items if item.nodeid not in self.done]
        if done:
            config.hook.pytest_deselected(items=done)
        items[:] = sorted(left, key=lambda item: item.nodeid not in self.interrupted)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._now = {"outcome": "passed", "why": "", "seconds": 0.0}
        self.write(begin=item.nodeid)
        result = yield
        self.write(end=item.nodeid, **self._now)
        if self._now["outcome"] == "failed" and (fault := gpu_fault()):
            item.session.shouldstop = f"the GPU is unusable in this process: {fault}"
        elif time.time() > self.until:
            item.session.shouldstop = "the time is up"
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        now = self._now
        now["seconds"] = round(now["seconds"] + report.duration, 2)
        if report.failed:
            now["outcome"] = "failed"
            now["why"] = str(report.longrepr)[-2000:]
        elif report.skipped:
            now["outcome"] = "skipped"
            where = report.longrepr
            why = str(where[2]) if isinstance(where, tuple) else "skipped"
            now["why"] = why.removeprefix("Skipped: ")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            why = str(report.longrepr)[-2000:]
            self.write(end=report.nodeid, outcome="failed", why=why, seconds=0)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        stopped = session.shouldstop or session.shouldfail
        self.write(session=int(exitstatus), stopped=str(stopped) if stopped else None)


def gpu_fault() -> str:
    """Return the error with which a GPU answers every call since a kernel failed, or ""."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


def pytest_configure(config: pytest.Config) -> None:
    if path := os.environ.get("MDSSD_RECORD"):
        until = float(os.environ.get("MDSSD_UNTIL", "inf"))
        config.pluginmanager.register(Recorder(Path(path), until), "resuming-recorder")
