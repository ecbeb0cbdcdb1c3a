"""Describe this machine and measure how fast it copies and multiplies."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import timeit
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.stored import PRETENDED, ROOT
from benchmarks.turns import Side, Slice, Times, median

# These settings make glibc keep freed memory. Otherwise it returns every large buffer to the system
# and faults it in again, which slows eager PyTorch down by up to 25 times. glibc reads them when a
# process starts.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}
PACKAGES = ("torch", "triton", "numpy", "onnxruntime", "openvino", "opencv-python-headless",
            "lsnms", "torchvision", "sahi", "ensemble-boxes", "numba")  # fmt: skip


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return os.uname().machine
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else os.uname().machine


def cpu_flags() -> set[str]:
    """Return the processor's flags, such as "avx2", from /proc/cpuinfo, or an empty set."""
    try:
        found = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(found[1].split()) if found else set()


def allocator_set() -> bool:
    return all(os.environ.get(name) == value for name, value in ALLOCATOR.items())


def run_before_others() -> None:
    """Make Linux run this process's threads before all usual ones, where that is permitted.

    They are real-time threads then, which it also spreads over the cores at once. Processes that
    are not get 5% of the time.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # threads inherit it


def pretended() -> bool:
    """Return whether tools/pretend_gpu.py pretends that there is a GPU. Inputs are then small."""
    return torch.cuda.is_available() and torch.cuda.get_device_name() == PRETENDED


def synchronise(device: str) -> None:
    if device != "cpu":
        getattr(torch, device).synchronize()


@lru_cache(maxsize=1)
def facts() -> dict[str, Any]:
    """Return the hardware, driver, versions, commit and settings, which all rows of a run share."""
    gpu = torch.cuda.is_available()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if gpu
        else None,
        "cuda": torch.version.cuda,
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "commit": os.environ.get("MDSSD_COMMIT") or _said("git", "rev-parse", "HEAD"),
        "changed": bool(_said("git", "diff", "--name-only", "HEAD", "--", *_BUT_RESULTS)),
        "threads": torch.get_num_threads(),
        "scheduler": "real-time" if os.sched_getscheduler(0) == os.SCHED_RR else "usual",
        "allocator": " ".join(f"{k}={v}" for k, v in ALLOCATOR.items())
        if allocator_set()
        else "default",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


_BUT_RESULTS = (
    ".",
    ":!docs",
    ":!README.md",
    ":!benchmarks/results",
)  # excludes the files that benchmarks write


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device_microseconds(call: Callable[[], Any], capture: bool) -> float:
    """Return the time of a call on an NVIDIA GPU without most of the host's part.

    The result is the median over 30 runs of ten calls each. With `capture`, a CUDA graph replays
    the ten calls; otherwise they are launched one after another. A pretended GPU has no graphs.
    """
    calls, runs, times = (1, 1, []) if pretended() else (10, 30, [])
    capture = capture and not pretended()
    call()
    torch.cuda.synchronize()
    if capture:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(runs):
        start.record()
        if capture:
            graph.replay()
        else:
            for _ in range(calls):
                call()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / calls)
    return statistics.median(times)


_COPY, _MATMUL = "copy", "product"


class Ceilings:
    """The rates of copying and multiplying that bound every kernel.

    They are sides of the rows, so that a moment in which the machine is slow slows them as well.
    """

    def __init__(self) -> None:
        self.copied: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.multiplied: dict[tuple[str, str], list[float]] = defaultdict(list)

    def sides(self, device: str, moved: int, flops: float, dtype: torch.dtype) -> dict[str, Side]:
        """Return a copy of `moved` bytes, read and written, and a product of two matrices.

        The copy has the size of the kernel's data, from 1 MiB to 256 MiB, so that it fits into the
        same cache. On a GPU short copies are repeated, as launching one takes longer.
        """
        sides = {}
        if moved:
            size, calls = _copy_size(moved, device)
            source = torch.zeros(size // 8, device=device)  # half is read, half is written
            target = torch.ones_like(source)

            def copy() -> None:
                for _ in range(calls):
                    target.copy_(source)
                synchronise(device)

            sides[_COPY] = Side(copy)
        if flops:
            sides[_MATMUL] = Side(_product(device, dtype))
        return sides

    def floor(
        self,
        times: Mapping[str, Times],
        sides: Mapping[str, Side],
        device: str,
        moved: int,
        flops: float,
        dtype: torch.dtype,
    ) -> Times:
        """Return the least time of each round for moving `moved` bytes and `flops` operations.

        Args:
            times: Those of a row whose sides include `sides`, the result of the method `sides`.
        """
        floors = []
        if _COPY in sides:
            size, calls = _copy_size(moved, device)
            rate = calls * size / median(times[_COPY])
            self.copied[device, 2 ** (size - 1).bit_length()].append(rate)
            floors.append((times[_COPY], moved / (calls * size)))
        if _MATMUL in sides:
            operations = 2 * _matrix_side(device) ** 3
            key = (device, str(dtype).removeprefix("torch."))
            self.multiplied[key].append(operations / median(times[_MATMUL]))
            floors.append((times[_MATMUL], flops / operations))
        rounds = set.intersection(*(set(part) for part, _ in floors)) if floors else set()
        return {
            r: Slice(
                max(part[r].seconds * factor for part, factor in floors),
                max(part[r].waited for part, _ in floors),
            )
            for r in sorted(rounds)
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the median rates of all rows, by device and by size or type."""
        return {
            "copy": [
                {"device": d, "bytes": size, "bytes_per_second": statistics.median(rates)}
                for (d, size), rates in sorted(self.copied.items())
            ],
            "matmul": [
                {"device": d, "dtype": dtype, "flops": statistics.median(rates)}
                for (d, dtype), rates in sorted(self.multiplied.items())
            ],
        }


def _copy_size(moved: int, device: str) -> tuple[int, int]:
    """Return the bytes of a copy, and how many copies make one call."""
    size = min(max(8 * (moved // 8), 2**20), 2**28)
    return size, 1 if device == "cpu" else max(1, 2**25 // size)


def _product(device: str, dtype: torch.dtype) -> Callable[[], None]:
    """Return the fastest known product of two matrices with `_matrix_side` rows and columns."""
    side = _matrix_side(device)
    a = torch.randn(side, side, device=device).to(dtype)

    def multiply() -> None:
        torch.mm(a, a)
        synchronise(device)

    if device != "cpu":
        return multiply
    # torch.mm calls MKL, which does not use all of an AMD processor. A convolution calls oneDNN.
    pixels = a.view(1, 1, side, side).permute(0, 3, 1, 2)  # channels-last
    weight = a.view(side, side, 1, 1)

    def convolve() -> None:
        torch.conv2d(pixels, weight)

    def seconds(way: Callable[[], None]) -> float:
        return min(timeit.repeat(way, number=1, repeat=5))

    return min(multiply, convolve, key=seconds)


def _matrix_side(device: str) -> int:
    if pretended():
        return 512
    return 1024 if device == "cpu" else 4096
