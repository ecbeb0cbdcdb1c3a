"""Latency of every operator on every backend, at the sizes that CASES marks for it.

Each row first checks its result against the reference. Run: pytest benchmarks/ --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdssd import ops
from mdssd.testing import Case


@pytest.mark.cases(size=lambda size: size.benchmark, reference=True)
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

        def call() -> None:
            case(*args, **kwargs)
            if device != "cpu":
                getattr(torch, device).synchronize()

        benchmark.pedantic(call, rounds=5 if backend == "reference" else 30, warmup_rounds=1)
