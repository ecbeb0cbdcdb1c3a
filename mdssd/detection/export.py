"""A detector as a file for other programs: ONNX, torch.export, AOTInductor.

Each takes pixels and gives what `ops.detection_output` gives, in one call: ONNX without this code,
the others after `import mdssd.ops`.
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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mdssd import ops
from mdssd.detection.onnx import onnx_model, traced
from mdssd.models.vgg import MEAN_RGB
from mdssd.names import EXPORTS
from mdssd.system.files import atomic_write
from mdssd.weights.checkpoint import check_classes

if TYPE_CHECKING:
    from mdssd.models import SingleShotDetector


class _Pipeline(nn.Module):
    """Pixels [B, S, S, 3] uint8 RGB -> boxes, scores, labels, count."""

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
    model: SingleShotDetector,
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
    """Write the whole detector, from pixels to detections, into one file.

    Input "pixels" [batch, S, S, 3] uint8: RGB, the image resized to S x S, one image or more.
    Outputs "boxes" [batch, K, 4] float32 xyxy, 0-1, not clipped; "scores" [batch, K], falling;
    "labels" [batch, K] int64, from 1; "count" [batch] int64, behind which all rows are 0; K is
    `max_detections`. With the file come the classes, the mean, S and the settings.

    Args:
        model: a model of `mdssd.models` in float32; it is put in evaluation mode.
        form: "onnx": standard operators only, NonMaxSuppression among them; metadata_props hold the
            facts, as JSON; takes the packages onnx and onnxscript. "pt2": for `torch.export.load`
            after `import mdssd.ops`, which it calls; the extra file mdssd.json holds the facts.
            "aoti": compiled, with a C++ compiler, for the device that the model is on, for
            `torch._inductor.aoti_load_package`, also after `import mdssd.ops`.
        classes: names of labels 1, 2 ...
        mean: RGB, subtracted from the pixels (0-255), inside.
        score_threshold, nms_threshold, top_k, max_detections: as in `ops.detection_output`.

    Raises ValueError or TypeError for arguments out of range, ImportError where a package is
    missing, OSError where the file cannot be written.
    """
    if form not in EXPORTS:
        raise ValueError(f"export: form: expected one of {list(EXPORTS)}, got {form!r}")
    check_classes("export", classes, model.num_classes)
    settings: dict[str, Any] = {
        "score_threshold": score_threshold,
        "nms_threshold": nms_threshold,
        "top_k": top_k,
        "max_detections": max_detections,
    }
    if len(mean) != 3 or not all(map(math.isfinite, mean)):
        raise ValueError(f"export: mean: expected three finite numbers, got {list(mean)}")
    nothing = model.priors.new_zeros(0, 4)
    ops.detection_output(nothing[None], nothing[None, :, :2], nothing, **settings)  # checks them
    facts: dict[str, Any] = {
        "classes": list(classes),
        "mean": [float(value) for value in mean],
        "input_size": model.input_size,
        "model": model.config(),
        **settings,
    }
    model.eval()
    path = Path(path)
    with torch.no_grad(), _quiet():
        if form == "onnx":
            content = onnx_model(model, facts).SerializeToString()
            with atomic_write(path, "wb") as file:
                file.write(content)
            return
        program = traced(_Pipeline(model, facts["mean"], settings), _pixels(model))
        with atomic_write(path, "wb") as file, tempfile.TemporaryDirectory() as folder:
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
            file.write(package.read_bytes())


def _pixels(model: SingleShotDetector) -> Tensor:
    side = model.input_size
    return torch.zeros(2, side, side, 3, dtype=torch.uint8, device=model.priors.device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporters say of packages that are not needed and of themselves."""
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
