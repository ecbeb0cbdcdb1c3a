"""Profile with Nsight Compute the operators that are furthest above the least time they could take.

tools/gpu_day.py runs this after the benchmarks. A row of the benchmarks says how long the call took
on the device, and how long a copy of the same bytes, or a product with as many operations, takes on
the same device: the floor.
"""

from __future__ import annotations

import csv
import glob
import shutil
import sys
from pathlib import Path
from typing import Any

FOLDERS = "/usr/local/cuda*/bin, /opt/nvidia/nsight-compute"
_PROGRAMS = ("/usr/local/cuda*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
# Seconds. Any operator takes its launches, a few of 1 to 2 microseconds each; without this, rows
# with almost no work would come first.
LAUNCHES = 5e-6
_SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "MemoryWorkloadAnalysis", "WarpStateStats")
_KERNELS = 60  # launches that are profiled, of the check and of the call
REFUSED = "ERR_NVGPUCTRPERM"


def find() -> str:
    """Return the path of ncu, or ""."""
    found = [path for pattern in _PROGRAMS for path in sorted(glob.glob(pattern), reverse=True)]
    return shutil.which("ncu") or next(iter(found), "")


def over_floor(row: dict[str, Any]) -> float:
    """Return the time on the device over the floor and the launches."""
    info = row["extra_info"]
    return float(info["device_us"] * 1e-6 / (info["floor_s"] + LAUNCHES))


def furthest(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the CUDA kernels' rows that are furthest from the floor, one of each operator."""
    mine = [
        row
        for row in rows
        if row["extra_info"]["peer"] == "mdssd cuda"
        and row["extra_info"]["node"].startswith("benchmarks/test_ops.py::")
        and {"device_us", "floor_s"} <= set(row["extra_info"])
    ]
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(mine, key=over_floor, reverse=True):
        best.setdefault(row["extra_info"]["op"], row)
    return list(best.values())[:count]


def command(program: str, row: dict[str, Any], folder: Path) -> list[str]:
    """Return the command that runs a row's test once under ncu, and writes what ncu sees as CSV."""
    operator = row["extra_info"]["op"].replace(" ", "-")
    out = folder / f"ncu-{operator}.csv"
    return [
        *(program, "--csv", "--page", "details", "--log-file", str(out)),
        *("--clock-control", "none", "--target-processes", "all"),
        *(word for name in _SECTIONS for word in ("--section", name)),
        *("--kernel-name-base", "demangled", "--kernel-name", "regex:mdssd::"),
        *("--launch-count", str(_KERNELS)),
        *(sys.executable, "-m", "pytest", "-q", "--benchmark-disable", "-p", "no:cacheprovider"),
        row["extra_info"]["node"],
    ]


_SHOWN = {
    "Duration": "duration",
    "Memory Throughput": "memory",
    "Compute (SM) Throughput": "compute",
    "Achieved Occupancy": "occupancy",
    "Registers Per Thread": "registers",
    "L1/TEX Hit Rate": "l1_hits",
    "Warp Cycles Per Issued Instruction": "cycles_per_instruction",
}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the slowest launch of each kernel in a CSV of ncu, with `_SHOWN` and the units."""
    lines = [line for line in path.read_text().splitlines() if line.startswith('"')]
    launches: dict[str, dict[str, Any]] = {}
    for line in csv.DictReader(lines):
        launch = launches.setdefault(line["ID"], {"kernel": short(line["Kernel Name"])})
        launch |= {"grid": line.get("Grid Size", ""), "block": line.get("Block Size", "")}
        name = _SHOWN.get(line["Metric Name"])
        if name and name not in launch:  # the first is that of the section SpeedOfLight
            value = float(line["Metric Value"].replace(",", ""))
            launch[name] = [value, line["Metric Unit"]]
    slowest: dict[str, dict[str, Any]] = {}
    for launch in launches.values():
        key = launch["kernel"]
        if key not in slowest or _microseconds(launch) > _microseconds(slowest[key]):
            slowest[key] = launch
    return sorted(slowest.values(), key=_microseconds, reverse=True)


def short(name: str) -> str:
    """Return a kernel's name without its namespaces and parameters."""
    head = name.replace("(anonymous namespace)::", "").replace("<unnamed>::", "")
    head = head.replace("mdssd::", "").removeprefix("void ")
    return head.partition("(")[0]


def _microseconds(launch: dict[str, Any]) -> float:
    value, unit = launch.get("duration", [0.0, "us"])
    factors = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
    return float(value) * factors.get(unit, 1.0)


def collect(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what ncu saw, by operator."""
    found = {path.stem.removeprefix("ncu-"): read(path) for path in folder.glob("ncu-*.csv")}
    return {operator: launches for operator, launches in sorted(found.items()) if launches}
