"""Latency of every operator on every backend, at the sizes that CASES marks for it.

Each row first checks its result against the reference. Run: pytest benchmarks/ --benchmark-only
On a GPU `extra_info` has "device_us" too: the time of a call without the host's part, from a CUDA
graph of several calls where the call can be captured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mdssd import ops
from mdssd.testing import Case

_READS_BACK = ("nms", "batched_nms")  # how many boxes are kept


def device_microseconds(call: Callable[[], Any], capture: bool) -> float:
    """Median over 30 runs of ten calls."""
    calls, times = 10, []
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    if capture:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(30):
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


@pytest.mark.cases(size=lambda size: size.benchmark, reference=True, emulated=())
def test_latency(
    case: Case, size: str, dtype: torch.dtype, backend: str, device: str, benchmark: Any
) -> None:
    args, kwargs = case.inputs(size, dtype, device)
    with ops.backend("reference"):
        want = case(*args, **kwargs)
    with ops.backend(backend):
        got = case(*args, **kwargs)
        for position, (g, w) in enumerate(zip(got, want, strict=True)):
            rtol, atol = (0, 0) if position in case.exact else case.tolerance[dtype]
            torch.testing.assert_close(g, w, rtol=rtol, atol=atol, equal_nan=True)
        benchmark.group = f"{case.op} {size} {device}"
        benchmark.extra_info.update(
            op=case.op,
            backend=backend,
            size=size,
            dtype=str(dtype),
            device=device,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
        )
        if device == "cuda":
            capture = backend != "reference" and case.op not in _READS_BACK
            microseconds = device_microseconds(lambda: case(*args, **kwargs), capture)
            benchmark.extra_info["device_us"] = microseconds

        def call() -> None:
            case(*args, **kwargs)
            if device != "cpu":
                getattr(torch, device).synchronize()

        benchmark.pedantic(call, rounds=5 if backend == "reference" else 30, warmup_rounds=1)
