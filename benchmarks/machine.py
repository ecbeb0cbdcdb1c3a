"""Describe this machine and measure how fast it copies and multiplies."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.stored import PRETENDED, ROOT

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


def seconds_of(call: Callable[[], Any], device: str, rounds: int = 10) -> float:
    """Return the median time of `rounds` calls, after one untimed call."""
    times = []
    for _ in range(rounds + 1):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


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


class Ceilings:
    """The rates of copying and multiplying that bound every kernel, measured on first use."""

    def __init__(self) -> None:
        self.copied: dict[tuple[str, int], float] = {}
        self.multiplied: dict[tuple[str, str], float] = {}

    def bandwidth(self, device: str, moved: int) -> float:
        """Return the bytes per second, read and written, of a copy that moves `moved` bytes.

        The size is rounded up to a power of two from 1 MiB to 256 MiB, so that a copy fits into the
        same cache as the kernel's data.
        """
        size = 2 ** min(max((moved - 1).bit_length(), 20), 28)
        if (device, size) not in self.copied:
            source = torch.zeros(size // 8, device=device)  # half is read, half is written
            target = torch.ones_like(source)
            calls = max(1, 2**25 // size)

            def copy() -> None:
                for _ in range(calls):
                    target.copy_(source)

            self.copied[device, size] = calls * size / seconds_of(copy, device)
        return self.copied[device, size]

    def flops(self, device: str, dtype: torch.dtype) -> float:
        """Return the operations per second of torch.mm; a multiply-add counts as two."""
        key = (device, str(dtype).removeprefix("torch."))
        if key not in self.multiplied:
            side = 1024 if device == "cpu" or pretended() else 8192
            a = torch.randn(side, side, device=device).to(dtype)
            seconds = seconds_of(lambda: torch.mm(a, a), device)
            self.multiplied[key] = 2 * side**3 / seconds
        return self.multiplied[key]

    def floor(self, device: str, moved: int, flops: float, dtype: torch.dtype) -> float:
        """Return the least time for moving `moved` bytes and executing `flops` operations."""
        seconds = moved / self.bandwidth(device, moved) if moved else 0.0
        return max(seconds, flops / self.flops(device, dtype) if flops else 0.0)

    def as_dict(self) -> dict[str, Any]:
        return {
            "copy": [
                {"device": device, "bytes": size, "bytes_per_second": rate}
                for (device, size), rate in sorted(self.copied.items())
            ],
            "matmul": [
                {"device": device, "dtype": dtype, "flops": rate}
                for (device, dtype), rate in sorted(self.multiplied.items())
            ],
        }
