"""Build, check, measure and profile on a machine with an NVIDIA GPU, in slices (`make gpu-day`).

    python tools/gpu_day.py [--minutes 9] [--plan] [--again NAMES] [--fresh] [--report] [--pretend]

Runs the steps that `plan()` lists, for at most --minutes. The same command again continues where
the time ran out, where it was stopped or where the machine was lost: build/gpu-day has the state,
one log for each step, and for steps of pytest a record of every test (tools/resuming.py). A step
that fails does not hold up the next; only without the build and the facts of the machine nothing
else begins. `--again failed` runs what failed once more, `--again NAMES` other steps from the
start.

At the end one JSON, with the steps, all rows of the benchmarks and the profiles, goes into
benchmarks/results, and docs/benchmarks.md and the table in README.md are written from it; --report
does so before the end. Exit status: 0 if all is done and nothing failed, 1 if something failed, 3
if the time ran out: run it again.

Nothing is downloaded. It needs what tools/gpu_check.py needs; a step for which a program or package
is missing is named at the end, with the reason. --pretend rehearses it without a GPU (make gpu-day
PRETEND=1): with small inputs, in build/gpu-day-rehearsal, where its figures stay.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gpu_check
import gpu_profile
import resuming

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


RESERVE = 40  # seconds of a call that are kept for ending the last test and for the JSON
PROFILES = 6
FACTS = (
    "import json; from benchmarks.machine import facts; from mdssd.info import info; "
    "print(info()); print(json.dumps(facts()))"
)


@dataclass(frozen=True)
class Step:
    """One part of the day.

    Attributes:
        command: If it runs pytest, its tests are recorded one by one, and it can be divided.
        environment: Added to that of this process.
        least: Seconds. The step does not begin with less time left in a call, unless it is first.
        essential: Whether nothing after it may run if it fails.
        makes: A pattern of files. If there is none any more, the step runs again.
        not_here: Why it cannot run on this machine, or "".
    """

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    least: float = 0
    essential: bool = False
    makes: str = ""
    not_here: str = ""

    @property
    def divisible(self) -> bool:
        return "pytest" in self.command


# --- the plan ----------------------------------------------------------------------------------


def plan(folder: Path, pretend: bool) -> list[Step]:
    """Return the steps: correct first, then fast, then what takes long and seldom surprises."""
    checks = {step.name: step for step in gpu_check.steps(pretend)}
    slow = [name for name in checks if name.partition("-")[0] in gpu_check.TOOLS]
    last = ["suite", "ops-cpu"]
    first = [name for name in checks if name not in (*slow, *last)]
    return [
        *(_check(checks[name]) for name in first),
        _rows("bench-ops", "cuda and not latency", "benchmarks/test_ops.py", pretend),
        _rows("bench-models", "cuda", "benchmarks/test_models.py", pretend),
        _rows("train-step", "cuda", "benchmarks/test_training.py", pretend),
        _rows("bench-cases", "cuda and latency", "benchmarks/test_ops.py", pretend),
        *_profiles(folder, pretend),
        *(_check(checks[name]) for name in (*slow, *last) if name in checks),
        _rows("bench-cpu", "not cuda", "benchmarks", pretend),
        _report(folder, pretend),
    ]


def _check(step: gpu_check.Step) -> Step:
    return Step(
        step.name,
        step.command,
        step.environment,
        least=240 if step.name == "build" else 0,
        essential=step.name in ("build", "info"),
        makes="mdssd/_C*.so" if step.name == "build" else "",
        not_here=step.not_here or _missing("pytest", "hypothesis"),
    )


def _rows(name: str, key: str, path: str, pretend: bool) -> Step:
    ignored = [f"--ignore={file}" for file in gpu_check.left_out() if file.startswith("benchmarks")]
    command = gpu_check.pytest("--benchmark-only", "-k", key, *ignored, path)
    command = gpu_check.pretended(command, pretend)
    why = _missing("pytest", "hypothesis", "pytest_benchmark")
    if pretend and name in gpu_check.NOT_REHEARSED:
        why = f"not rehearsed: {gpu_check.NOT_REHEARSED[name]}"
    return Step(name, command, not_here=why)


def _profiles(folder: Path, pretend: bool) -> Iterator[Step]:
    """Profile the operators whose rows are furthest above the least time that they could take."""
    program = gpu_profile.find()
    rows = gpu_profile.furthest(measured(folder)[0], PROFILES)
    why = "" if program else f"ncu is not on the PATH or in {gpu_profile.FOLDERS}"
    if pretend:
        why = f"not rehearsed: {gpu_check.NOT_REHEARSED['profile']}"
    for k in range(PROFILES):
        command = gpu_profile.command(program, rows[k], folder) if k < len(rows) else []
        absent = "" if command else "the benchmarks have not measured so many operators yet"
        yield Step(f"profile-{k + 1}", command, least=120, not_here=why or absent)


def _report(folder: Path, pretend: bool) -> Step:
    command = [sys.executable, "-m", "benchmarks.report", "--gpu-day", str(folder / "day.json")]
    if pretend:
        command += ["--folder", str(folder)]
    return Step("report", command, least=60, not_here=_missing("matplotlib"))


def _missing(*packages: str) -> str:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(absent)}" if absent else ""


# --- one step ----------------------------------------------------------------------------------


class Day:
    """The state of a day, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        self._state = folder / "state.json"
        self.about: dict[str, Any] = {}
        self.steps: dict[str, dict[str, Any]] = {}

    def lock(self) -> bool:
        """Return whether no step of another call is running. Each step holds the lock as well."""
        for _ in range(8):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(0.25)
        return False

    def load(self) -> None:
        if self._state.exists():
            state = json.loads(self._state.read_text())
            self.about, self.steps = state["about"], state["steps"]

    def save(self) -> None:
        part = self._state.with_suffix(".part")
        part.write_text(json.dumps({"about": self.about, "steps": self.steps}, indent=1))
        part.replace(self._state)

    def forget(self, name: str, all_tests: bool) -> None:
        """Let a step run again: all its tests, or those that failed."""
        self.steps.pop(name, None)
        record = self.record(name)
        lines = [] if all_tests else resuming.read(record)
        failed = {id for id, end in resuming.ends(lines).items() if end["outcome"] == "failed"}
        kept = [
            line
            for line in lines
            if "exit" not in line and {line.get("end"), line.get("begin")}.isdisjoint(failed)
        ]
        if record.exists():
            record.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def record(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def finished(self, step: Step) -> bool:
        if not self.steps.get(step.name, {}).get("finished"):
            return False
        return not step.makes or any(ROOT.glob(step.makes))

    def run(self, step: Step, left: float, whole: bool) -> bool:
        """Run a step for at most `left` seconds, and return whether it is finished.

        Args:
            whole: Whether this is all the time that a call has, so that more would not come.
        """
        row = self.steps.setdefault(step.name, {"seconds": 0.0, "calls": 0})
        row.update(outcome="interrupted", finished=False, calls=row["calls"] + 1)
        row["commit"] = self.about["commit"]
        self.save()
        start = time.monotonic()
        end = start + left
        code = self._process(step, left)
        if step.divisible:
            begun = -1
            while self._goes_on(step, code, begun) and time.monotonic() < end - 10:
                begun = self._begun(step)
                code = self._process(step, end - time.monotonic())
            row.update(self._tests(step, code))
        elif code is None:
            row.update(outcome=f"failed, not done after {left:.0f} s", finished=whole)
            if not whole:
                row["outcome"] = "interrupted"
        else:
            outcome = "passed" if code == 0 else f"failed, exit status {code}"
            row.update(outcome=outcome, finished=True)
        row["seconds"] = round(row["seconds"] + time.monotonic() - start, 1)
        row.pop("output", None)
        if row["outcome"].startswith("failed"):
            row["output"] = self.log(step).read_text(errors="replace")[-6000:]
        self.save()
        return bool(row["finished"])

    def log(self, step: Step) -> Path:
        return self.folder / f"{step.name}.log"

    def _process(self, step: Step, left: float) -> int | None:
        """Return the exit status, or None if the step was stopped because the time was up."""
        path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **step.environment}
        command = list(step.command)
        if step.divisible:
            at = command.index("pytest") + 1
            command[at:at] = ["-p", "resuming", "--continue-on-collection-errors"]
            environment["MDSSD_RECORD"] = str(self.record(step.name))
            environment["MDSSD_UNTIL"] = str(time.time() + left - RESERVE)
        with self.log(step).open("a") as log:
            print(f"== {datetime.now():%H:%M:%S} {' '.join(command)}", file=log, flush=True)
            try:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(self._lock.fileno(),),
                    preexec_fn=_die_with_parent,
                )
            except OSError as error:
                print(error, file=log)
                return 127
            code = None
            try:
                code = process.wait(timeout=left)
                return code
            except subprocess.TimeoutExpired:
                return None
            finally:  # also what the step has left running, and after Ctrl-C
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if step.divisible:
                    with self.record(step.name).open("a") as record:
                        record.write(f"\n{json.dumps({'exit': code})}\n")

    def _begun(self, step: Step) -> int:
        return sum("begin" in line for line in resuming.read(self.record(step.name)))

    def _goes_on(self, step: Step, code: int | None, begun: int) -> bool:
        """Whether tests are left that a new process could run now."""
        lines = resuming.read(self.record(step.name))
        if code is None or not lines or self._begun(step) == begun:
            return False
        last = _last(lines)
        return "session" not in last or "unusable" in (last["stopped"] or "")

    def _tests(self, step: Step, code: int | None) -> dict[str, Any]:
        """Return the results of a step's tests so far."""
        lines = resuming.read(self.record(step.name))
        results = list(resuming.ends(lines).values())
        why = Counter(end["why"] for end in results if end["outcome"] == "skipped")
        row = {
            **{name: 0 for name in ("passed", "failed", "skipped")},
            **Counter(end["outcome"] for end in results),
            "why_skipped": dict(sorted(why.items())),
            "failures": {e["end"]: e["why"] for e in results if e["outcome"] == "failed"},
        }
        last = _last(lines)
        codes = {line["exit"] for line in lines if "exit" in line} - {0, 1, 2, 5, None}
        over = "session" in last and last["stopped"] is None
        if not over:
            up = code is None or "time" in (last.get("stopped") or "")
            outcome = "interrupted" if up else f"failed, exit status {code}"
            return {**row, "outcome": outcome, "finished": not up}
        outcome = "passed"
        if row["failed"]:
            outcome = f"failed, {row['failed']} of {len(results)} tests"
        elif codes or last["session"] not in (0, 1, 5):
            outcome = f"failed, exit status {min(codes, default=last['session'])}"
        elif row["passed"] == 0:
            outcome = "skipped" if row["skipped"] else "failed, no test ran"
        return {**row, "outcome": outcome, "finished": True}


def _last(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return next((line for line in reversed(lines) if "exit" not in line), {})


def _die_with_parent() -> None:
    """Let the kernel end a step whose gpu_day.py is killed (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


# --- the whole day -----------------------------------------------------------------------------


def go_on(day: Day, steps: Callable[[], list[Step]], minutes: float) -> bool:
    """Run the steps that are left, for at most so many minutes. Return whether all are done.

    The plan is made again before each step, as what is profiled depends on what was measured.
    """
    start = time.monotonic()
    end = start + 60 * minutes
    names = [step.name for step in steps()]
    for name in names:
        step = next(each for each in steps() if each.name == name)
        if step.not_here:
            day.steps[name] = {"outcome": f"not run: {step.not_here}", "seconds": 0.0}
            continue
        failed = day.steps.get(name, {}).get("outcome", "").startswith("failed")
        if day.finished(step) and not (step.essential and failed):
            continue
        left, whole = end - time.monotonic(), time.monotonic() - start < 30
        if left < (30 if not whole else 0) or (left < step.least and not whole):
            print(f"-- {name} has to wait for the next call", flush=True)
            return False
        print(f"== {name}: {' '.join(step.command)}", flush=True)
        write_day(day, steps())
        if not day.run(step, left, whole):
            print(f"-- {name} continues in the next call", flush=True)
            return False
        row = day.steps[name]
        print(f"   {row['outcome']}, {row['seconds']:.0f} s", flush=True)
        if step.essential and row["outcome"].startswith("failed"):
            print(row["output"], flush=True)
            return True
    return True


def measured(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, list[str]]]:
    """Return the rows of the benchmarks so far, the facts of the machine, and the skipped rows."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    about: dict[str, Any] = {}
    rates: dict[str, dict[Any, Any]] = {"copy": {}, "matmul": {}}
    skipped: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = resuming.read(path)
        left_out: dict[str, list[str]] = {}
        for line in lines:
            if "left_out" in line:
                left_out.setdefault(line["why"], []).append(line["left_out"])
            if "row" not in line:
                continue
            info = line["row"]["extra_info"]
            rows[info["node"], info["peer"]] = line["row"]
            about = line["about"]
            for rate in about["copy"]:
                rates["copy"][rate["device"], rate["bytes"]] = rate
            for rate in about["matmul"]:
                rates["matmul"][rate["device"], rate["dtype"]] = rate
        for why, names in left_out.items():
            skipped.setdefault(why, []).extend(dict.fromkeys(names))
        for id, end in resuming.ends(lines).items():
            if end["outcome"] == "skipped" and id.startswith("benchmarks/"):
                skipped.setdefault(end["why"], []).append(id.partition("::")[2])
    about = {**about, **{name: list(found.values()) for name, found in rates.items()}}
    return list(rows.values()), about, skipped


def write_day(day: Day, steps: list[Step]) -> Path:
    """Write everything that is known into day.json, which benchmarks/report.py reads."""
    rows, about, skipped = measured(day.folder)
    for row in rows:
        if (commit := row["extra_info"]["commit"]) != day.about["commit"]:
            row["extra_info"]["run"] = f"commit {str(commit)[:12]}"
    data = {
        "datetime": datetime.now(timezone.utc).isoformat(),
        "mdssd": {"copy": [], "matmul": [], **about, **day.about, "skipped": skipped},
        "day": {
            "steps": [{"step": s.name, **day.steps[s.name]} for s in steps if s.name in day.steps],
            "unfinished": [s.name for s in steps[:-1] if not _settled(day, s)],
            "left_out": gpu_check.left_out(),
            "profiles": gpu_profile.collect(day.folder),
        },
        "benchmarks": rows,
    }
    target = day.folder / "day.json"
    part = target.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1))
    part.replace(target)
    return target


def _settled(day: Day, step: Step) -> bool:
    return bool(step.not_here) or day.finished(step)


def summarise(day: Day, steps: list[Step], pretend: bool) -> None:
    """Print every step with its result, and everything that was not run, with the reason."""
    about = day.about
    print(f"\n{about['gpu']}, driver {about['driver']}, commit {about['commit']}")
    print(f"{'step':<18} {'seconds':>8} {'passed':>7} {'failed':>7} {'skipped':>8}  outcome")
    for step in steps:
        to_do = f"not run: {step.not_here}" if step.not_here else "to do"
        row = day.steps.get(step.name, {"outcome": to_do, "seconds": ""})
        numbers = [row["seconds"], *(row.get(key, "") for key in ("passed", "failed", "skipped"))]
        print("{:<18} {:>8} {:>7} {:>7} {:>8}  {}".format(step.name, *numbers, row["outcome"]))
    for step in steps:
        row = day.steps.get(step.name, {})
        for id in row.get("failures", {}):
            print(f"failed in {step.name}: {id}")
        for why, count in row.get("why_skipped", {}).items():
            print(f"skipped in {step.name}: {count}: {why}")
    for file, why in gpu_check.left_out().items():
        print(f"left out: {file}: {why}")
    if pretend:
        for what, why in gpu_check.NOT_REHEARSED.items():
            print(f"not rehearsed: {what}: {why}")
    print(f"logs and records: {day.folder}")


def facts(pretend: bool) -> dict[str, Any]:
    """Return the device, driver, versions and commit, as another process sees them."""
    command = gpu_check.pretended([sys.executable, "-c", FACTS], pretend)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the facts of this machine: {done.stderr[-2000:]}")
    about: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return about


def main() -> int:
    parser = argparse.ArgumentParser(description="Check and measure on this machine's GPU.")
    parser.add_argument("--minutes", type=float, default=9, help="time limit of this call")
    parser.add_argument("--plan", action="store_true", help="list the steps and stop")
    parser.add_argument("--again", help="`failed`, or steps to run again, separated by commas")
    parser.add_argument("--fresh", action="store_true", help="begin a new day, keep the old folder")
    parser.add_argument("--report", action="store_true", help="write the report of what there is")
    parser.add_argument("--pretend", action="store_true", help="rehearse without a GPU")
    parser.add_argument("--folder", type=Path, help="default: build/gpu-day")
    options = parser.parse_args()
    name = "gpu-day-rehearsal" if options.pretend else "gpu-day"
    folder = (options.folder or ROOT / "build" / name).resolve()

    def steps() -> list[Step]:
        return plan(folder, options.pretend)

    if options.plan:
        for step in steps():
            why = f"  not run: {step.not_here}" if step.not_here else " ".join(step.command)
            print(f"{step.name}: {why}")
        return 0
    if options.fresh and folder.exists():
        old = folder.with_name(f"{folder.name}-{datetime.now():%Y%m%d-%H%M%S-%f}")
        print(f"the old day is now {folder.rename(old)}")
    day = Day(folder)
    if not day.lock():
        parser.error(f"{folder}: a step of another call is still running")
    day.load()
    about = facts(options.pretend)
    if not about["gpu"]:
        parser.error("torch sees no NVIDIA GPU here; --pretend rehearses without one")
    if day.about and day.about["gpu"] != about["gpu"]:
        parser.error(
            f"{folder} is about {day.about['gpu']}, this is {about['gpu']}; "
            "--fresh begins a new day and keeps that folder"
        )
    if day.about and day.about["commit"] != about["commit"]:
        print(
            f"what is done is of commit {day.about['commit']}, and says so; --again runs it again"
        )
    day.about = about
    names = again_steps(options.again, day, steps(), parser)
    for again in (*names, "report") if names else ():  # the report is then of what is new
        day.forget(again, all_tests=options.again != "failed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    done = options.report or go_on(day, steps, options.minutes)
    if options.report:
        write_day(day, steps())
        day.run(_report(folder, options.pretend), 600, True)
        day.steps["report"]["finished"] = all(_settled(day, step) for step in steps())
    day.save()
    write_day(day, steps())
    summarise(day, steps(), options.pretend)
    if not done:
        print("the time is up: run the same command again to go on")
        return 3
    return int(any(row["outcome"].startswith("failed") for row in day.steps.values()))


def again_steps(
    wanted: str | None, day: Day, steps: list[Step], parser: argparse.ArgumentParser
) -> list[str]:
    if not wanted:
        return []
    if wanted == "failed":
        return [name for name, row in day.steps.items() if row["outcome"].startswith("failed")]
    names = wanted.split(",")
    if unknown := set(names) - {step.name for step in steps}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
