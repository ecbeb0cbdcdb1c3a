"""OpenVINO as the network of a runtime, on a CPU."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

from mdssd.detection.quantized import QuantizedNetwork
from mdssd.ops._dispatch import plain_ops
from mdssd.priors.maps import InputSize, width_height


class OpenVINONetwork:
    """A model that OpenVINO runs on the CPU, with as many threads as PyTorch uses.

    The model is converted in memory through torch.export, once for each number of images.

    Args:
        model: the model, in float32, or a `QuantizedNetwork`.
        dtype: torch.float32, or torch.bfloat16 to compute in that. Images, loc and logits are
            float32 in either case.

    Raises:
        ImportError: OpenVINO is not installed.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        openvino_core()  # raises if OpenVINO is missing
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

    def _compile(self, batch_size: int) -> Any:
        width, height = width_height(cast(InputSize, self._model.input_size))
        shape = [batch_size, 3, height, width]
        if isinstance(self._model, QuantizedNetwork):
            program = self._read(self._model.onnx, shape)
        else:
            program = self._convert(torch.zeros(shape))
        compiled = openvino_core().compile_model(program, "CPU", self._options)
        self._compiled[batch_size] = compiled
        return compiled

    @staticmethod
    def _read(onnx: bytes, shape: list[int]) -> Any:
        try:
            program = openvino_core().read_model(onnx)
            program.reshape(shape)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"Detector: OpenVINO cannot read the int8 network: {reason}") from None
        return program

    def _convert(self, example: Tensor) -> Any:
        import openvino

        with torch.inference_mode(False), torch.no_grad():
            exported = torch.export.export(self._model, (example,))
            return openvino.convert_model(exported.run_decompositions(plain_ops()))


@functools.cache
def openvino_core() -> Any:
    """Return the process's only openvino.Core.

    Each Core gives the thread a stack for signal handlers and restores the previous one when it
    ends. If two Cores end in the order in which they began, the second restores a stack that no
    longer exists, and the next signal kills the process.
    """
    try:
        import openvino
    except ImportError:
        raise ImportError(
            'Detector: runtime: "openvino" needs a package: pip install openvino'
        ) from None
    return openvino.Core()
