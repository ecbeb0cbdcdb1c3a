"""Check the CUDA and Triton kernels on a machine with an NVIDIA GPU (`make gpu-check`).

    python tools/gpu_check.py [--dry-run] [--steps build,graphs] [--minutes 30] [--out FILE]
                              [--pretend]

Builds the native modules in place for this machine's GPU, without network access, then runs the
steps that `steps()` lists. Prints a table of the results and writes it to
benchmarks/results/gpu-check-DEVICE.json, together with the device, the versions and the commit
(MDSSD_COMMIT, or what git reports). With --steps, the file keeps its other steps if they are from
the same commit and device. --pretend rehearses the steps without a GPU (make gpu-check PRETEND=1):
its JSON goes into build, and what cannot be rehearsed is listed.

Needs nvcc, compute-sanitizer and the Python packages torch, triton, pytest, hypothesis, opencv,
setuptools, cmake, ninja and pybind11.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("cuda", "triton")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


class Step(NamedTuple):
    name: str
    command: list[str]  # --junitxml is added if it runs pytest
    environment: dict[str, str] = {}
    not_here: str = ""  # why it cannot run here


NOT_REHEARSED = {
    "build": "the rehearsal runs the modules that are built here",
    "memcheck, racecheck, initcheck, synccheck": "compute-sanitizer needs a GPU; `make simt-check` "
    "and `make ptx-check` look for the same faults",
    "CUDA graphs": "the pretended GPU has none",
    "torch.compile": "it looks below the tensors that pretend",
    "streams and a second device": "everything runs in order, on one pretended device",
    "ops, most cases": "torch.compile and vmap look below the tensors that pretend, and the rest "
    "takes an hour; its odd and ragged inputs and its ties are rehearsed",
    "rows of Triton": "its interpreter takes minutes for a call; `ops` runs its kernels",
    "suite, other files": "they use the backends of the CPU, or work below the pretended tensors",
    "ops-cpu": "`make test` runs these",
    "bench-cpu": "`make bench` measures these",
    "times and floors": "inputs are small, run once and on the CPU; none is kept",
    "profile": "ncu needs a GPU",
}
# What the step "suite" is in a rehearsal, as the arguments of pytest.
_REHEARSED = (
    *("-k", "cuda and not every_decision and not case and not graph and not vmap"),
    "tests/ops/test_nms_padded.py",
    "tests/ops/test_ops_by_hand.py",
    "tests/ops/test_ops_variants.py",
    "tests/integrations/test_integrations.py",
)


def pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-rs", *arguments]


def pretended(command: list[str], pretend: bool) -> list[str]:
    """Return a command of Python's that runs with tools/pretend_gpu.py, if `pretend`."""
    if not pretend or command[:1] != [sys.executable]:
        return command
    if "pytest" in command:
        at = command.index("pytest") + 1
        return [*command[:at], "-p", "pretend_gpu", *command[at:]]
    return [command[0], str(ROOT / "tools" / "pretend_gpu.py"), *command[1:]]


def left_out() -> dict[str, str]:
    """Return the test files that need a package that is not installed, with the reason.

    Outside of these folders any file may need one, through a file that it imports.
    """
    wanted = ("defusedxml", "pycocotools", "simplejpeg")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    free = ("ops", "models", "integrations", "ptx", "benchmarks")
    users = re.compile(r"from mdssd\.(cli|data|detection|evaluation|inspection|metrics|training)")
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "benchmarks").glob("test_*.py")]
    affected = [
        path
        for path in sorted(files)
        if path.parent.name not in free or users.search(path.read_text())
    ]
    reason = f"needs {' and '.join(missing)}"
    return {str(path.relative_to(ROOT)): reason for path in affected if missing}


def sanitizer(tool: str, backend: str) -> Step:
    """Run a small part of the tests under compute-sanitizer, limited to this project's kernels.

    Triton kernels have no namespace, so the filter there is the suffix `_kernel`, which kernels of
    PyTorch share.
    """
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    said = ""
    if Path(program).exists():
        said = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    # The option's name depends on the version.
    option = "--kernel-name" if "--kernel-name" in said else "--kernel-regex"
    own = [option, "kns=mdssd" if backend == "cuda" else "kns=_kernel"]
    more = []
    if tool == "initcheck":
        own = []  # it must also see PyTorch's kernels initialise the inputs
        more = ["--unfilled"]  # and nobody else write to new memory
    return Step(
        f"{tool}-{backend}",
        [
            *(program, "--tool", tool, "--error-exitcode", "9", *own),
            *pytest("--small", *more, "-k", f"agrees and {backend}-cuda-float32"),
            "tests/ops/test_ops.py",
        ],
        # Gives each tensor its own allocation, so that memcheck knows where it ends.
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


def steps(pretend: bool = False) -> list[Step]:
    """Return the steps, or those of a rehearsal, of which some have a reason not to run."""
    cases = "tests/ops/test_ops.py"
    ignored = [f"--ignore={name}" for name in (*left_out(), "tests/ops/test_cuda.py", cases)]
    own = {
        "graphs": "graph or captured",
        "repeat": "two_runs",
        "streams": "stream or waits",
        "devices": "second_device",
        "other": "refused or fixed_size",
    }
    gpu = "cuda or triton"
    if pretend:
        gpu = "(cuda or triton) and agrees and float32 and (odd or ragged or ties)"
    rows = [
        Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], {"MDSSD_CUDA": "on"}),
        Step("info", [sys.executable, "-c", "from mdssd.info import info; print(info())"]),
        *(Step(name, pytest("-k", key, "tests/ops/test_cuda.py")) for name, key in own.items()),
        Step("ops", pytest(*(["--small"] if pretend else []), "-k", gpu, cases)),
        Step("suite", pytest(*(_REHEARSED if pretend else (*ignored, "tests")))),
        Step("ops-cpu", pytest("-k", "not cuda and not triton", cases)),
        *(sanitizer(tool, backend) for backend in BACKENDS for tool in TOOLS),
    ]
    if not pretend:
        return rows
    reasons = {"build": "build", "ops-cpu": "ops-cpu"} | {
        f"{tool}-{backend}": "memcheck, racecheck, initcheck, synccheck"
        for backend in BACKENDS
        for tool in TOOLS
    }
    return [
        row._replace(
            command=pretended(row.command, True),
            not_here=f"not rehearsed: {NOT_REHEARSED[reasons[row.name]]}"
            if row.name in reasons
            else "",
        )
        for row in rows
    ]


def run(step: Step, limit: float) -> dict[str, Any]:
    """Run one step and return its row of the table."""
    if step.not_here:
        return {"step": step.name, "outcome": f"not run: {step.not_here}", "seconds": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder, "report.xml"), Path(folder, "log")
        command = [*step.command, *([f"--junitxml={report}"] if "pytest" in step.command else [])]
        path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
        start = time.perf_counter()
        with log.open("w") as out:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **step.environment},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                ).returncode
                outcome = "passed" if code == 0 else f"failed, exit status {code}"
            except subprocess.TimeoutExpired:
                outcome = f"failed, not done after {limit:.0f} s"
            except OSError as error:
                outcome = f"failed, {error}"
        seconds = round(time.perf_counter() - start, 1)
        row: dict[str, Any] = {"step": step.name, "outcome": outcome, "seconds": seconds}
        if report.exists():
            row |= counts(ElementTree.parse(report).getroot())
            if row["passed"] == 0 and outcome == "passed":
                row["outcome"] = "skipped" if row["skipped"] else "failed, no test ran"
        text = log.read_text(errors="replace")
    if row["outcome"].startswith("failed"):
        row["output"] = text[-6000:]
    print(text[-6000:] if "output" in row else text[-2000:], flush=True)
    return row


def counts(root: ElementTree.Element) -> dict[str, Any]:
    """Count the tests of a JUnit report by outcome, and the skipped ones by reason."""
    cases = list(root.iter("testcase"))
    skipped = [skip.get("message", "") for case in cases for skip in case.iter("skipped")]
    failed = sum(
        case.find("failure") is not None or case.find("error") is not None for case in cases
    )
    return {
        "passed": len(cases) - failed - len(skipped),
        "failed": failed,
        "skipped": len(skipped),
        "why_skipped": {reason: skipped.count(reason) for reason in sorted(set(skipped))},
    }


def said(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def facts() -> dict[str, Any]:
    """Return the device, the versions and the commit."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "devices": torch.cuda.device_count(),
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "triton": said(sys.executable, "-c", "import triton; print(triton.__version__)"),
        "nvcc": said("nvcc", "--version").rpartition("release ")[2].partition(",")[0] or "unknown",
        "python": sys.version.split()[0],
        "commit": os.environ.get("MDSSD_COMMIT") or said("git", "rev-parse", "HEAD"),
        "changed": said("git", "status", "--porcelain").splitlines(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the kernels on this machine's GPU.")
    parser.add_argument("--dry-run", action="store_true", help="list the steps and stop")
    parser.add_argument("--steps", help="run only these steps, separated by commas")
    parser.add_argument("--minutes", type=float, default=30, help="time limit of each step")
    parser.add_argument("--out", type=Path, help="path of the JSON file")
    parser.add_argument("--pretend", action="store_true", help="rehearse without a GPU")
    options = parser.parse_args()
    every = steps(options.pretend)
    wanted = options.steps.split(",") if options.steps else [step.name for step in every]
    todo = [step for step in every if step.name in wanted]
    if unknown := set(wanted) - {step.name for step in todo}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    if options.dry_run:
        for step in todo:
            setting = "".join(f"{key}={value} " for key, value in step.environment.items())
            print(f"{step.name}: {setting}{' '.join(step.command)}")
        for name, why in left_out().items():
            print(f"left out: {name}: {why}")
        return 0

    about = facts() | ({"device": "pretended GPU", "devices": 1} if options.pretend else {})
    if about["device"] == "none":
        parser.error("torch sees no NVIDIA GPU here")
    name = re.sub(r"\W+", "-", about["device"].lower())
    folder = ROOT / ("build" if options.pretend else "benchmarks/results")
    path = options.out or folder / f"gpu-check-{name}.json"
    if options.pretend and path.resolve().is_relative_to(ROOT / "benchmarks"):
        parser.error(f"{path}: a rehearsal is no result")
    before = json.loads(path.read_text()) if path.exists() else {}
    same = all(before.get(key) == about[key] for key in ("device", "commit"))
    rows = {row["step"]: row for row in before.get("steps", [])} if same and options.steps else {}
    for step in todo:
        print(f"== {step.name}: {' '.join(step.command)}", flush=True)
        rows[step.name] = run(step, 60 * options.minutes)
        ordered = [rows[step.name] for step in every if step.name in rows]
        result = {**about, "left_out": left_out(), "steps": ordered}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{about['device']}, torch {about['torch']}, commit {about['commit']}")
    print(f"{'step':<16} {'seconds':>8} {'passed':>7} {'failed':>7} {'skipped':>8}  outcome")
    for row in ordered:
        numbers = [str(row.get(key, "")) for key in ("passed", "failed", "skipped")]
        print(
            f"{row['step']:<16} {row['seconds']:>8} {numbers[0]:>7} {numbers[1]:>7} "
            f"{numbers[2]:>8}  {row['outcome']}"
        )
    reasons = {(r["step"], why): n for r in ordered for why, n in r.get("why_skipped", {}).items()}
    for (step_name, why), count in reasons.items():
        print(f"skipped in {step_name}: {count}: {why}")
    for file, why in left_out().items():
        print(f"left out: {file}: {why}")
    for what, why in NOT_REHEARSED.items() if options.pretend else ():
        print(f"not rehearsed: {what}: {why}")
    print(path)
    return int(any(row["outcome"].startswith("failed") for row in ordered))


if __name__ == "__main__":
    sys.exit(main())
