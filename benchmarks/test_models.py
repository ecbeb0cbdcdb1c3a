"""Benchmark the networks and the whole path from a photograph to its boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mdssd
from benchmarks.generators import at_most
from benchmarks.machine import cpu_flags, pretended
from benchmarks.peers import need, network
from benchmarks.rows import Sides, by_device, contenders, ours
from mdssd import ops
from mdssd.models.build import input_size

_CLASSES = 21
_WIDTH = 0.0625 if pretended() else 1.0
_CANDIDATES = 1500  # scores above 0.01 in an image, as in a trained network
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
# Allowed difference from the reference in float32, relative to the largest value.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Let float32 mean float32. By default PyTorch convolves in TF32 on a GPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _images(name: str, batch: int) -> Tensor:
    """Return images [B, 3, S, S], channels-last, with the mean subtracted."""
    generator = torch.Generator().manual_seed(batch)
    size = input_size(name)
    images = 60 * torch.randn(batch, 3, size, size, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def _model(name: str) -> nn.Module:
    """Return a model with random weights whose background bias leaves _CANDIDATES above 0.01."""
    torch.manual_seed(0)
    model = getattr(mdssd, name)(_CLASSES, width=_WIDTH).eval()
    with torch.no_grad():
        logits = model(_images(name, 1))[1][0].double()
        rest = (logits[:, 1:].exp() / 0.01 - logits[:, 1:].exp().sum(1, keepdim=True)).log()
        shift = (rest - logits[:, :1]).nan_to_num(-1e9).flatten().topk(_CANDIDATES).values[-1]
        for head in model.heads.values():
            head.conf.bias[::_CLASSES] += shift.float()
    return model


@lru_cache(maxsize=1)
def _expected(name: str, batch: int) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor], float]:
    """Return the weights, the reference's result for them and its number of operations."""
    model = _model(name)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), ops.backend("reference"), counter:
        result = model(_images(name, batch))
    return model.state_dict(), result, float(counter.get_total_flops())


def _with_weights(name: str, weights: dict[str, Tensor]) -> nn.Module:
    """Return a new module that shares these tensors, which saves initialising its weights."""
    with torch.device("meta"):
        model = getattr(mdssd, name)(_CLASSES, width=_WIDTH).eval()
    model.load_state_dict(weights, assign=True)
    return model


def _check(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        error = (g.float().cpu() - w).abs().max() / w.abs().max()
        assert error <= _TOLERANCE[dtype], f"off by {float(error):.2g} of the largest value"


def _measure_network(
    measure: Callable[..., None],
    name: str,
    batch: int,
    dtype: torch.dtype,
    sides: Sides,
    **more: Any,
) -> None:
    if dtype == torch.bfloat16 and sides.device == "cpu" and not _BF16 & cpu_flags():
        pytest.skip("this processor has no instructions for bfloat16")
    batch = at_most(batch, 2)
    weights, want, flops = _expected(name, batch)
    images = _images(name, batch).to(sides.device, dtype)

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        if peer == "torch.compile" and sides.device == "cpu" and name.endswith("512"):
            pytest.skip("takes minutes to compile on a CPU; measured at 300 only")
        call: Callable[[], Any] = make(_with_weights(name, weights), images)
        _check(call(), want, dtype)
        return call

    elements = sum(p.numel() for p in _with_weights(name, weights).parameters())
    elements += images.numel() + sum(part.numel() for part in want)
    measure(
        sides,
        prepare,
        op="network",
        row=f"{name}, batch {batch}",
        dtype=dtype,
        shape=str(list(images.shape)),
        moved=elements * images.element_size(),
        flops=flops,
        capture=ours,
        **more,
    )


_PEERS = contenders(network.mdssd, network.PEERS, network.ON_GPU)
_OURS = contenders(network.mdssd, {})


@pytest.mark.parametrize("sides", _PEERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["ssd300", "mdssd300", "ssd512", "mdssd512"])
def test_network(
    name: str,
    dtype: torch.dtype,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    """Run a network on one image."""
    _measure_network(measure, name, 1, dtype, sides)


@pytest.mark.parametrize("sides", _OURS)
@pytest.mark.parametrize("batch", [1, 2, 4, 8, 32])
def test_network_by_batch(batch: int, sides: Sides, measure: Callable[..., None]) -> None:
    if sides.device == "cpu" and batch > 4:
        pytest.skip("takes seconds per call on a CPU, where latency grows with the batch")
    dtype = torch.bfloat16 if sides.device == "cuda" else torch.float32
    more = {"axis": "batch", "x": batch}
    _measure_network(measure, "mdssd300", batch, dtype, sides, **more)


# Frames per second of the paper's MDSSD on a GTX 1080 Ti, batch 1, NMS included.
_TARGETS = {"mdssd300": 38.5, "mdssd512": 17.3}
# The paper measured 2,000 images, which would take more than 15 minutes on a CPU.
_IMAGES = {("mdssd300", "cuda"): 2000, ("mdssd512", "cuda"): 2000,
           ("mdssd300", "cpu"): 10, ("mdssd512", "cpu"): 5}  # fmt: skip


def _runtimes(device: str, *names: str) -> Sides:
    return Sides(device, {f"mdssd Detector, {name}": name for name in names})


_RUNTIMES = by_device(_runtimes("cpu", "eager", "openvino"), _runtimes("cuda", "eager", "graph"))


@pytest.mark.parametrize("sides", _RUNTIMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(_TARGETS))
def test_detector(
    name: str, dtype: torch.dtype, sides: Sides, measure: Callable[..., None]
) -> None:
    """Detect objects in photographs of 500 x 375 in memory, one at a time, as the paper does."""
    if dtype == torch.bfloat16 and sides.device == "cpu" and not _BF16 & cpu_flags():
        pytest.skip("this processor has no instructions for bfloat16")
    for package in ("simplejpeg", "defusedxml"):
        need(package)
    random = np.random.default_rng(0)
    photos = [random.integers(0, 256, (375, 500, 3), np.uint8) for _ in range(8)]
    weights, _, flops = _expected(name, 1)

    def prepare(peer: str, runtime: str) -> Callable[[], Any]:
        if runtime == "openvino":
            need(runtime)
        model = _with_weights(name, weights)
        options: dict[str, Any] = {"device": sides.device, "runtime": runtime, "dtype": dtype}
        detector = mdssd.Detector(model, batch_size=1, **options)
        together, alone = detector(photos[:2]), [detector(photo)[0] for photo in photos[:2]]
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a, b)
        turn = count()
        return lambda: detector(photos[next(turn) % len(photos)])

    images = _IMAGES[name, sides.device]
    measure(
        sides,
        prepare,
        op="detector",
        row=f"{name}, {images:,} images one by one",
        dtype=dtype,
        shape="[375, 500, 3] uint8",
        flops=flops,
        rounds=images,
        images=images,
        target_fps=_TARGETS[name],
    )
