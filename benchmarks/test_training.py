"""Benchmark one training step: forward, targets, loss, backward and SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mdssd
from benchmarks import generators
from benchmarks.machine import pretended
from benchmarks.peers import loss, matching
from benchmarks.rows import Sides, by_device
from mdssd import ops

_CLASSES = 21


def _ours(truth: generators.Truth, priors: torch.Tensor) -> Any:
    return ops.encode_targets(*truth, priors)


_Way = tuple[Callable[..., Any], loss.Loss]  # the targets and the loss
_OURS: _Way = (_ours, loss.mdssd)


def _sides(device: str, backend: str) -> Sides:
    """Return ways whose targets and loss differ; the network is the same."""
    ways: dict[str, _Way] = {
        f"mdssd {backend}": _OURS,
        "ssd.pytorch's way": (matching.torch_targets, loss.ssd_pytorch),
        "torchvision's way": (matching.torch_targets, loss.torchvision_way),
    }
    return Sides(device, ways)


class _Step:
    """A network and a call that trains it on the same batch each time."""

    def __init__(
        self,
        name: str,
        width: float,
        batch: int,
        way: _Way,
        device: str,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.dtype = device, dtype
        build = getattr(mdssd, name)
        self.model = build(_CLASSES, width=width, batch_norm=True, **options).to(device)
        self.model = self.model.to(memory_format=torch.channels_last)
        # The learning rate is so small that the loss does not change.
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=1e-7, momentum=0.9)
        images = 60 * torch.randn(batch, 3, self.model.input_size, self.model.input_size)
        self.images = images.to(device).contiguous(memory_format=torch.channels_last)
        self.truth = generators.to(device, generators.truth(batch, 10))
        self.targets, self.loss = way

    def __call__(self) -> torch.Tensor:
        half = self.dtype is not torch.float32
        with torch.autocast(self.device, self.dtype, enabled=half):
            loc, logits = self.model(self.images)
        loc, logits = loc.float(), logits.float()
        targets = self.targets(self.truth, self.model.priors)
        total = sum(self.loss(loc, logits, *targets))
        self.sgd.zero_grad()
        total.backward()
        self.sgd.step()
        return total.detach()


@pytest.mark.parametrize("sides", by_device(_sides("cpu", "cpp"), _sides("cuda", "cuda")))
@pytest.mark.parametrize("name", ["ssd300", "mdssd300"])
def test_step(name: str, sides: Sides, measure: Callable[..., None]) -> None:
    """Train in float32, with a quarter of the width on a CPU and the full width on a GPU."""
    width, batch = (1.0, 32) if sides.device == "cuda" else (0.25, 4)
    if pretended():
        width, batch = 0.0625, 2
    with ops.backend("reference"):
        reference = _Step(name, width, batch, _OURS, sides.device)
        want, shape = reference(), str(list(reference.images.shape))

    def prepare(peer: str, way: _Way) -> _Step:
        step = _Step(name, width, batch, way, sides.device)
        torch.testing.assert_close(step(), want, rtol=1e-3, atol=0)
        return step

    measure(
        sides,
        prepare,
        op="training step",
        row=f"{name}, width {width}, batch {batch}",
        dtype=torch.float32,
        shape=shape,
        images=batch,
    )


_TYPES = {"mdssd, bfloat16": torch.bfloat16, "mdssd, float32": torch.float32}


@pytest.mark.parametrize("sides", by_device(Sides("cpu", _TYPES), Sides("cuda", _TYPES)))
@pytest.mark.parametrize("name", ["mdssd300", "light mdssd300"])
def test_step_in_bfloat16(name: str, sides: Sides, measure: Callable[..., None]) -> None:
    """Train in bfloat16, as `mdssd train --amp bf16` does, and in float32."""
    device = sides.device
    width, batch = (1.0, 32) if device == "cuda" else (0.25, 8)
    if pretended():
        width, batch = 0.0625, 2
    light = name.startswith("light")
    form = {"trunk": "efficientnet_lite0", "light": True} if light else {}
    with ops.backend("reference"):
        want = _Step("mdssd300", width, batch, _OURS, device, **form)()

    def prepare(peer: str, dtype: torch.dtype) -> _Step:
        step = _Step("mdssd300", width, batch, _OURS, device, dtype, **form)
        torch.testing.assert_close(step(), want, rtol=0.02, atol=0)
        return step

    measure(
        sides,
        prepare,
        op="training step in bfloat16",
        row=f"{name}, width {width}, batch {batch}",
        dtype=torch.bfloat16,
        shape=str([batch, 3, 300, 300]),
        images=batch,
    )
