"""Exports a detector for other programs: as ONNX, torch.export or AOTInductor.

An exported file turns pixels into the result of `ops.detection_output` in one call. ONNX needs none
of this package; the other two need `import mdssd.ops` first.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdssd import ops
from mdssd.detection.onnx import onnx_model, traced
from mdssd.detection.quantized import QuantizedNetwork
from mdssd.models import MEAN_RGB, SingleShotDetector
from mdssd.names import EXPORTS
from mdssd.priors.maps import width_height
from mdssd.system.files import atomic_write
from mdssd.weights.checkpoint import check_classes


class _Pipeline(nn.Module):
    """Pixels [B, H, W, 3] uint8 RGB -> boxes, scores, labels, count."""

    mean: Tensor

    def __init__(
        self, model: SingleShotDetector, mean: Sequence[float], settings: dict[str, Any]
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        values = torch.tensor(mean, dtype=torch.float32, device=model.priors.device)
        self.register_buffer("mean", values)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        loc, logits = self.model((pixels - self.mean).permute(0, 3, 1, 2))
        return tuple(ops.detection_output(loc, logits, self.model.priors, **self.settings))


def export(
    model: SingleShotDetector | QuantizedNetwork,
    path: str | os.PathLike[str],
    *,
    form: str = "onnx",
    classes: Sequence[str],
    mean: Sequence[float] = MEAN_RGB,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.45,
    top_k: int = 400,
    max_detections: int = 200,
) -> None:
    """Write a whole detector, from pixels to detections, into one file.

    The input "pixels" [batch, S, S, 3] uint8 RGB holds one or more images, resized to S x S. The
    outputs are "boxes" [batch, K, 4] float32 xyxy, 0-1, not clipped; "scores" [batch, K] in
    descending order; "labels" [batch, K] int64, from 1; and "count" [batch] int64: the rows from
    `count` on are 0. K is `max_detections`. The file also holds the classes, the mean, S, the
    settings, and a sentence on each input and output.

    Args:
        model: a model of `mdssd.models` in float32, which is put in evaluation mode, or an int8
            network (`QuantizedNetwork`), for "onnx" only.
        path: the file to write.
        form: "onnx" uses ONNX's standard operators only; the facts are in metadata_props, as JSON,
            and in the doc strings of the model, its input and its outputs. "pt2" is for
            `torch.export.load`; the facts are in its extra file mdssd.json. "aoti" is compiled for
            the model's device, by a C++ compiler, for `torch._inductor.aoti_load_package`; the
            facts are in its metadata, as JSON.
        classes: names of labels 1, 2 ...
        mean: the mean of each channel (RGB, 0-255), which the exported program subtracts.
        score_threshold, nms_threshold, top_k, max_detections: see `ops.detection_output`.

    Raises:
        ValueError, TypeError: an argument is out of range.
        ImportError: "onnx" needs the packages onnx and onnxscript.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> import mdssd, torch
        >>> from mdssd.detection.export import export
        >>> model = mdssd.ssd300(2, width=0.0625)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export(model, f"{folder}/model.pt2", form="pt2", classes=["cell"])
        ...     program = torch.export.load(f"{folder}/model.pt2").module()
        >>> boxes, scores, labels, count = program(torch.zeros(3, 300, 300, 3, dtype=torch.uint8))
        >>> boxes.shape
        torch.Size([3, 200, 4])
    """
    _check_form(form, model)
    check_classes("export", classes, model.num_classes)
    if len(mean) != 3 or not all(map(math.isfinite, mean)):
        raise ValueError(f"export: mean: expected three finite numbers, got {list(mean)}")
    settings: dict[str, Any] = {
        "score_threshold": score_threshold,
        "nms_threshold": nms_threshold,
        "top_k": top_k,
        "max_detections": max_detections,
    }
    nothing = model.priors.new_zeros(0, 4)
    ops.detection_output(nothing[None], nothing[None, :, :2], nothing, **settings)  # checks them
    facts: dict[str, Any] = {
        "classes": list(classes),
        "mean": [float(value) for value in mean],
        "input_size": model.input_size,
        "model": model.config(),
        **settings,
        **_meanings(width_height(model.input_size), max_detections),
    }
    model.eval()
    with torch.no_grad(), quiet_exporters():
        if form == "onnx" or isinstance(model, QuantizedNetwork):
            content = onnx_model(model, facts).SerializeToString()
        else:
            content = _program(_Pipeline(model, facts["mean"], settings), form, facts)
    with atomic_write(path, "wb") as file:
        file.write(content)


def _check_form(form: str, model: nn.Module) -> None:
    if form not in EXPORTS:
        raise ValueError(f"export: form: expected one of {list(EXPORTS)}, got {form!r}")
    if form != "onnx" and isinstance(model, QuantizedNetwork):
        raise ValueError(f"export: form: an int8 network can be exported as 'onnx', got {form!r}")


def _meanings(size: tuple[int, int], rows: int) -> dict[str, Any]:
    """What the input and the outputs mean, for who finds the file without these pages."""
    width, height = size
    shape = "the square" if width == height else "this width and height"
    return {
        "channels": "RGB",
        "resize": f"linear, without averages, to {shape}, without regard to the aspect ratio",
        "inputs": {
            "pixels": f"[batch, {height}, {width}, 3] uint8, 0-255, channels RGB (OpenCV reads "
            f"BGR: reverse them). Each image is resized as a whole to {width} x {height}, whatever "
            "its aspect ratio, by linear interpolation without averages, as OpenCV's INTER_LINEAR. "
            "The program subtracts the mean itself.",
        },
        "outputs": {
            "boxes": f"[batch, {rows}, 4] float32: x1, y1, x2, y2 as fractions of the image's "
            "width and height, from 0 to 1, not clipped. Multiply them by the size of the "
            "original image.",
            "scores": f"[batch, {rows}] float32, from high to low, above score_threshold.",
            "labels": f"[batch, {rows}] int64: label k is the k-th name of classes, from 1; 0 in "
            "the rows that are no detections.",
            "count": "[batch] int64: how many of the rows are detections; the others are 0.",
        },
    }


def _program(pipeline: _Pipeline, form: str, facts: dict[str, Any]) -> bytes:
    """Return the bytes of a "pt2" or "aoti" file."""
    program = traced(pipeline, _pixels(pipeline.model))
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.pt2"
        if form == "pt2":
            torch.export.save(program, package, extra_files={"mdssd.json": json.dumps(facts)})
        else:
            texts = {name: json.dumps(value) for name, value in facts.items()}
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(package),
                inductor_configs={"aot_inductor.metadata": texts},
            )
        return package.read_bytes()


def _pixels(model: SingleShotDetector) -> Tensor:
    width, height = width_height(model.input_size)
    return torch.zeros(2, height, width, 3, dtype=torch.uint8, device=model.priors.device)


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Suppress the exporters' messages about packages that are not needed and about themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
