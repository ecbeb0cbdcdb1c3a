"""Networks in int8, which `mdssd quantize` makes and OpenVINO runs on a CPU."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from mdssd.models import SingleShotDetector
from mdssd.system.devices import best_device
from mdssd.weights.checkpoint import load_checkpoint, load_quantized
from mdssd.weights.checkpoint_json import find_checkpoint, is_quantized, read_meta


class QuantizedNetwork(nn.Module):
    """An int8 network as ONNX, with what a `Detector` needs to know of its model.

    It has no weights of PyTorch's and is not called: the detector runs it in OpenVINO.

    Args:
        model: the model that was quantised; it may be on the meta device.
        onnx: the network, "images" [B, 3, H, W] -> "loc" [B, N, 4], "logits" [B, N, C].

    Attributes:
        name, input_size, num_classes, priors: the model's.
        onnx: as above.
    """

    priors: Tensor

    def __init__(self, model: SingleShotDetector, onnx: bytes) -> None:
        super().__init__()
        self.name = model.name
        self.input_size = model.input_size
        self.num_classes = model.num_classes
        self.register_buffer("priors", model.priors, persistent=False)
        self.onnx = onnx
        self._config = model.config()

    def config(self) -> dict[str, Any]:
        """Return the options of the model that was quantised, and "quantized": "int8"."""
        return {**self._config, "quantized": "int8"}


def load_network(
    path: str | os.PathLike[str],
) -> tuple[SingleShotDetector | QuantizedNetwork, dict[str, Any]]:
    """Load the network of any checkpoint that can detect, and the content of its JSON.

    Args:
        path: the checkpoint's JSON, the weights file beside it, or the folder of a run.

    Raises:
        CheckpointError: see `load_checkpoint`.

    Example:
        >>> import tempfile, mdssd
        >>> from mdssd.detection.quantized import load_network
        >>> from mdssd.weights.checkpoint import save_checkpoint
        >>> model = mdssd.ssd300(2, width=0.0625)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(
        ...         f"{folder}/a.json", model, classes=["cell"], mean=(1, 2, 3), extra={}
        ...     )
        ...     network, meta = load_network(f"{folder}/a.json")
        >>> network.name, meta["mean"]
        ('ssd300', [1.0, 2.0, 3.0])
    """
    path = find_checkpoint(path)
    if not is_quantized(read_meta(path)):
        return load_checkpoint(path)
    model, meta, onnx = load_quantized(path)
    return QuantizedNetwork(model, onnx), meta


def usual_device(model: nn.Module) -> str:
    """Return the device that a model runs on by default: int8 networks run on the CPU."""
    return "cpu" if isinstance(model, QuantizedNetwork) else best_device()


def runtime_of(model: nn.Module, runtime: str) -> str:
    """Return the runtime to use for a model: an int8 network runs in OpenVINO by default.

    Raises:
        ValueError: the model is an int8 network, which the runtime cannot run.
    """
    if not isinstance(model, QuantizedNetwork) or runtime == "openvino":
        return runtime
    if runtime == "eager":  # the default
        return "openvino"
    raise ValueError(f"Detector: runtime: an int8 network runs in 'openvino' only, got {runtime!r}")
