"""Who runs a row, and where: parameters for pytest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pytest
import torch

from mdssd import ops


def contenders(
    mdssd: Callable[..., Any],
    peers: Mapping[str, Callable[..., Any]],
    on_gpu: Collection[str] = (),
) -> list[Any]:
    """Parameters (peer, make, device) of a benchmark: ours and all peers on the CPU; ours and the
    peers of `on_gpu` on a GPU.
    """
    rows = [("mdssd cpp", mdssd, "cpu"), *((name, make, "cpu") for name, make in peers.items())]
    rows += [(f"mdssd {name}", forced(mdssd, name), "cuda") for name in ("cuda", "triton")]
    rows += [(name, peers[name], "cuda") for name in on_gpu]
    return params(rows)


def params(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Parameters whose last is the device; those for a GPU are skipped where there is none."""
    absent = not torch.cuda.is_available()
    return [
        pytest.param(
            *row,
            id="-".join(str(part) for part in row if not callable(part)).replace(" ", "_"),
            marks=pytest.mark.skipif(
                absent and row[-1] == "cuda", reason="torch sees no NVIDIA GPU here"
            ),
        )
        for row in rows
    ]


def forced(make: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """`make`, whose call runs on a backend."""

    def prepared(*inputs: Any) -> Callable[[], Any]:
        call = make(*inputs)

        def run() -> Any:
            with ops.backend(backend):
                return call()

        return run

    return prepared
