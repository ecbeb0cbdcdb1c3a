"""Create pytest parameters: which implementations take turns in a row, and on which device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.machine import pretended
from mdssd import ops


class Sides(NamedTuple):
    """The implementations of a row, by name. The first is this project's default."""

    device: str
    makes: Mapping[str, Any]


def contenders(
    mdssd: Callable[..., Any],
    peers: Mapping[str, Callable[..., Any]],
    on_gpu: Collection[str] = (),
) -> list[Any]:
    """Return parameters of type Sides. On a GPU, only peers in `on_gpu` and ours run."""
    on_cpu = Sides("cpu", {"mdssd cpp": mdssd, **peers})
    return by_device(on_cpu, on_cuda(mdssd, {name: peers[name] for name in on_gpu}))


def on_cuda(mdssd: Callable[..., Any], peers: Mapping[str, Callable[..., Any]]) -> Sides:
    """Return our backends on a GPU and the peers. A pretended GPU takes too long for Triton."""
    names = ("cuda",) if pretended() else ("cuda", "triton")
    return Sides("cuda", {**{f"mdssd {n}": forced(mdssd, n) for n in names}, **peers})


def backends(op: str, device: str) -> dict[str, str]:
    """Return the backends that run an operator on a device, under the names of sides."""
    names = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}.get(device, ("triton",))
    if pretended():
        names = names[:1]
    able = ops.backends()["nms" if op == "batched_nms" else op]
    return {f"mdssd {name}": name for name in (*names, "reference") if name in able}


def by_device(*sides: Sides) -> list[Any]:
    return params((one,) for one in sides)


def params(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return parameters from tuples that end with Sides; GPU rows are skipped without a GPU."""
    absent = not torch.cuda.is_available()
    return [
        pytest.param(
            *row,
            id="-".join([*map(str, row[:-1]), row[-1].device]).replace(" ", "_"),
            marks=pytest.mark.skipif(
                absent and row[-1].device == "cuda", reason="torch sees no NVIDIA GPU here"
            ),
        )
        for row in rows
    ]


def ours(peer: str) -> bool:
    """Whether a side is this project's."""
    return peer.startswith("mdssd")


def forced(make: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """Wrap `make` so that its call runs on the given backend."""

    def prepared(*inputs: Any) -> Callable[[], Any]:
        call = make(*inputs)

        def run() -> Any:
            with ops.backend(backend):
                return call()

        return run

    return prepared
