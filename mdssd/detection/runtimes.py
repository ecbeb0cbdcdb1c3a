"""What runs the network on one device: PyTorch as it is, compiled by it, or OpenVINO."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from mdssd.names import RUNTIMES
from mdssd.ops._dispatch import plain_ops

# Images [B, 3, S, S] minus the mean -> loc [B, N, 4], logits [B, N, C].
Network: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


def check_runtime(runtime: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError where a runtime and device or dtype do not go together."""
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


def make_network(
    model: nn.Module, runtime: str, device: torch.device, dtype: torch.dtype, batch_size: int
) -> Network:
    """The model as `runtime` runs it; what that takes to prepare happens at the first call.

    dtype: what OpenVINO computes in; for the others that is the model's own.
    batch_size: the usual number of images. "compile" and "openvino" have one form for a single
        image and one for this many, to which smaller batches are filled up; another for more.
    Raises ImportError where OpenVINO is not installed.
    """
    if runtime == "compile":
        how: Any = {"options": {"freezing": True}}
        if device.type != "cpu":
            how = {"mode": "max-autotune-no-cudagraphs"}
        return _Filled(torch.compile(model, dynamic=False, **how), batch_size)
    if runtime == "openvino":
        return _Filled(_OpenVINO(model, dtype), batch_size)
    return model


class _Filled:
    """Calls a network with 1 or `batch_size` images, or with more."""

    def __init__(self, network: Network, batch_size: int) -> None:
        self.network = network
        self.batch_size = batch_size

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images)
        if 1 < count < self.batch_size:
            shape = (self.batch_size, *images.shape[1:])
            filled = images.new_zeros(shape).to(memory_format=torch.channels_last)
            filled[:count] = images
            images = filled
        loc, logits = self.network(images)
        return loc[:count], logits[:count]


class _OpenVINO:
    """A float32 model as OpenVINO runs it on the CPU, with as many threads as PyTorch has.

    It is converted in memory, by way of torch.export, once for each number of images.
    dtype: float32, or bfloat16 to compute in that; images, loc and logits are float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        openvino_core()  # raises where there is none
        self._model = model
        self._options = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled: dict[int, Any] = {}

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        compiled = self._compiled.get(len(images)) or self._compile(len(images))
        results = compiled(images.contiguous().numpy(), share_inputs=True)
        return torch.from_numpy(results[0]), torch.from_numpy(results[1])

    def _compile(self, count: int) -> Any:
        side = cast(int, self._model.input_size)
        with torch.inference_mode(False), torch.no_grad():
            exported = torch.export.export(self._model, (torch.zeros(count, 3, side, side),))
            exported = exported.run_decompositions(plain_ops())
        import openvino

        compiled = openvino_core().compile_model(
            openvino.convert_model(exported), "CPU", self._options
        )
        self._compiled[count] = compiled
        return compiled


@functools.cache
def openvino_core() -> Any:
    """The process's one openvino.Core.

    Each Core lends the thread a stack for signal handlers and at its end puts back the one that it
    found. Of two that end in the order in which they began, the second puts back a stack that is no
    more, and the next signal kills the process.
    """
    try:
        import openvino
    except ImportError:
        raise ImportError(
            'Detector: runtime: "openvino" needs a package: pip install openvino'
        ) from None
    return openvino.Core()
