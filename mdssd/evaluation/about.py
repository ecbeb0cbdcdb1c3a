"""States what an evaluation measured: the checkpoint, the data, the thresholds, the versions."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import torch

from mdssd.data import DetectionDataset
from mdssd.detection.detector import Detector
from mdssd.detection.quantized import QuantizedNetwork
from mdssd.models.base import SingleShotDetector
from mdssd.system.devices import describe_device
from mdssd.version import __version__
from mdssd.weights.checkpoint_json import find_checkpoint, read_meta


def describe_run(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Describe an evaluation so that it can be repeated; evaluation.json holds it as "about".

    Args:
        detector: the detector.
        dataset: the data set.
        checkpoint: what the detector was loaded from: a checkpoint's file, or the folder of a run.
        data: what the data set was opened from.
        command: the command line.

    Returns:
        Names, numbers, texts, and dicts of them; what is unknown is None.

    Example:
        >>> import mdssd
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.evaluation.about import describe_run
        >>> scenes = SyntheticScenes(2)
        >>> model = mdssd.ssd300(len(scenes.classes) + 1, width=0.0625)
        >>> about = describe_run(mdssd.Detector(model, classes=scenes.classes), scenes)
        >>> about["model"]["model"], about["model"]["input_size"], about["data"]["split"]
        ('ssd300', 300, None)
    """
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": command,
        "checkpoint": None if checkpoint is None else _checkpoint(checkpoint),
        "model": _model(detector),
        "data": {
            "path": None if data is None else os.path.abspath(data),
            "name": dataset.name,
            "split": dataset.split,
            "images": len(dataset),
            "dropped_boxes": len(dataset.dropped),
        },
        "thresholds": {
            "score": detector.score_threshold,
            "nms_iou": detector.nms_threshold,
            "max_detections": detector.max_detections,
            "top_k": detector.top_k,
        },
        "tiles": None if detector.tiling is None else asdict(detector.tiling),
        "device": describe_device(str(detector.device)),
        "versions": {
            "mdssd": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "opencv": cv2.__version__,
        },
    }


def about_rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of `describe_run`'s result for a table; what is unknown is left out.

    Example:
        >>> from mdssd.evaluation.about import about_rows
        >>> about_rows({"command": "mdssd eval runs/mine", "date": None})
        [('command', 'mdssd eval runs/mine')]
    """
    rows = []
    for name, value in about.items():
        if isinstance(value, dict):
            parts = {k: v for k, v in value.items() if v is not None}
            text = ", ".join(f"{k.replace('_', ' ')} {_text(k, v)}" for k, v in parts.items())
        else:
            text = "" if value is None else str(value)
        if text:
            rows.append((name, text))
    return rows


def _text(name: str, value: Any) -> str:
    if name == "sha256":
        return str(value)[:12]
    if name == "prior_scales" and isinstance(value, list):
        return "fitted"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    file = find_checkpoint(path)
    return {"path": str(Path(file).absolute()), "sha256": read_meta(file)["sha256"]}


def _model(detector: Detector) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if isinstance(detector.model, SingleShotDetector | QuantizedNetwork):
        facts = dict(detector.model.config())
        del facts["num_classes"]  # which counts the background
    facts["classes"] = len(detector.classes)
    facts["input_size"] = detector.input_size
    facts["priors"] = len(detector.model.priors)  # type: ignore[arg-type]
    return facts
