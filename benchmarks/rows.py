"""Create pytest parameters: which implementation runs a row, and on which device."""

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
    """Return parameters (peer, make, device). On a GPU, only peers in `on_gpu` and ours run."""
    rows = [("mdssd cpp", mdssd, "cpu"), *((name, make, "cpu") for name, make in peers.items())]
    rows += [(f"mdssd {name}", forced(mdssd, name), "cuda") for name in ("cuda", "triton")]
    rows += [(name, peers[name], "cuda") for name in on_gpu]
    return params(rows)


def params(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return parameters from tuples that end with a device; GPU rows are skipped without a GPU."""
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
    """Wrap `make` so that its call runs on the given backend."""

    def prepared(*inputs: Any) -> Callable[[], Any]:
        call = make(*inputs)

        def run() -> Any:
            with ops.backend(backend):
                return call()

        return run

    return prepared
