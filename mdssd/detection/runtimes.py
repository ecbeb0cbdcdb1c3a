"""The runtimes by name: "eager", "compile", "openvino" and "graph"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdssd.detection.cuda_graphs import GraphRuntime
from mdssd.detection.openvino import OpenVINONetwork
from mdssd.detection.runtime import Network, NetworkRuntime, Pipeline, Runtime, StageTimes
from mdssd.names import RUNTIMES


def check_runtime(runtime: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError if a runtime, a device and a dtype do not go together."""
    if runtime not in RUNTIMES:
        raise ValueError(f"Detector: runtime: expected one of {list(RUNTIMES)}, got {runtime!r}")
    home = {"openvino": "cpu", "graph": "cuda"}.get(runtime, device.type)
    if device.type != home:
        raise ValueError(f"Detector: runtime: {runtime!r} needs a {home} device, got {device}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"Detector: dtype: expected torch.float32, torch.bfloat16 or torch.float16, got {dtype}"
        )
    if dtype == torch.float16 and device.type == "cpu":
        raise ValueError("Detector: dtype: float16 needs a GPU; a CPU takes float32 or bfloat16")


def network_dtype(runtime: str, dtype: torch.dtype) -> torch.dtype:
    """Return the type of the weights and of the input. OpenVINO converts float32 by itself."""
    return torch.float32 if runtime == "openvino" else dtype


def make_runtime(
    name: str,
    model: nn.Module,
    pipeline: Pipeline,
    dtype: torch.dtype,
    batch_size: int,
    times: StageTimes,
) -> Runtime:
    """Build a runtime. Any preparation (compilation, graph capture) happens at its first batch.

    "compile" and "openvino" prepare one form for a single image and one for `batch_size` images.
    A smaller batch is padded to `batch_size`; each larger size is prepared separately.

    Args:
        name: one of `RUNTIMES`, as checked by `check_runtime`.
        model: the model that `pipeline` calls.
        pipeline: the steps, with the model as the network.
        dtype: the type of the computation.
        batch_size: the usual number of images.
        times: receives the time of each stage.

    Raises:
        ImportError: the package of the runtime is not installed.
    """
    if name == "graph":
        return GraphRuntime(pipeline, batch_size, times)
    network = pipeline.network
    if name == "compile":
        how: Any = {"options": {"freezing": True}}
        if pipeline.device.type != "cpu":
            how = {"mode": "max-autotune-no-cudagraphs"}
        network = _Padded(torch.compile(model, dynamic=False, **how), batch_size)
    elif name == "openvino":
        network = _Padded(OpenVINONetwork(model, pipeline.mean, dtype), batch_size)
    takes_pixels = name == "openvino"
    return NetworkRuntime(replace(pipeline, network=network, takes_pixels=takes_pixels), times)


class _Padded:
    """Calls a network with 1 or `batch_size` images, or with more than these."""

    def __init__(self, network: Network, batch_size: int) -> None:
        self.network = network
        self.batch_size = batch_size

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images)
        if 1 < count < self.batch_size:
            images = F.pad(images, [0] * 7 + [self.batch_size - count])  # keeps channels last
        loc, logits = self.network(images)
        return loc[:count], logits[:count]
