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

    It takes pixels, uint8 [B, H, W, 3], and OpenVINO subtracts the mean as it reads them. It gives
    loc and logits in float32, in memory that the next call overwrites. The model is converted in
    memory through torch.export, once for each number of images.

    Args:
        model: the model, in float32, or a `QuantizedNetwork`.
        mean: the mean of each channel, 0 to 255.
        dtype: torch.float32, or torch.bfloat16 to compute in that.

    Raises:
        ImportError: OpenVINO is not installed.
    """

    def __init__(
        self, model: nn.Module, mean: tuple[float, float, float], dtype: torch.dtype
    ) -> None:
        openvino_core()  # raises if OpenVINO is missing
        self._model = model
        self._mean = mean
        self._options = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled: dict[int, Any] = {}

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        compiled = self._compiled.get(len(pixels)) or self._compile(len(pixels))
        results = compiled(pixels.numpy(), share_inputs=True, share_outputs=True)
        return torch.from_numpy(results[0]), torch.from_numpy(results[1])

    def _compile(self, batch_size: int) -> Any:
        width, height = width_height(cast(InputSize, self._model.input_size))
        shape = [batch_size, 3, height, width]
        if isinstance(self._model, QuantizedNetwork):
            program = self._read(self._model.onnx, shape)
        else:
            program = self._convert(torch.zeros(shape))
        program = self._from_pixels(program)
        compiled = openvino_core().compile_model(program, "CPU", self._options)
        self._compiled[batch_size] = compiled
        return compiled

    def _from_pixels(self, program: Any) -> Any:
        """Let a program that takes float32 [B, 3, H, W] take pixels instead."""
        import openvino
        from openvino.preprocess import PrePostProcessor

        steps = PrePostProcessor(program)
        images = steps.input()
        images.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
        images.preprocess().convert_element_type(openvino.Type.f32).mean([*self._mean])
        images.model().set_layout(openvino.Layout("NCHW"))
        return steps.build()

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
