"""Keeping the batch that ended a run, to be looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mdssd.data import MEAN_RGB
from mdssd.drawing import class_color
from mdssd.system.files import atomic_write


def save_batch(
    folder: Path,
    images: Tensor,
    boxes_xyxy: Sequence[Tensor],
    labels: Sequence[Tensor],
    image_ids: Sequence[str],
    classes: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write a batch as the network saw it into a folder, which is made.

    batch.safetensors: "images" [B, 3, S, S], and for image K "boxes.K" [M, 4] (xyxy in 0-1) and
    "labels.K" [M]. batch.json: `facts` and, for each image, its id, picture and objects. KK.png:
    the picture with its boxes, for the eye.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"images": images.detach().cpu().contiguous()}
    rows = []
    for k, (image, boxes, names) in enumerate(
        zip(tensors["images"], boxes_xyxy, labels, strict=True)
    ):
        tensors[f"boxes.{k}"] = boxes.cpu().contiguous()
        tensors[f"labels.{k}"] = names.cpu().contiguous()
        objects = [classes[int(label) - 1] for label in names]
        rows.append({"id": image_ids[k], "picture": f"{k:02}.png", "objects": objects})
        with atomic_write(folder / f"{k:02}.png", "wb") as file:
            file.write(_picture(image, boxes, names))
    with atomic_write(folder / "batch.safetensors", "wb") as file:
        file.write(safetensors.torch.save(tensors))
    with atomic_write(folder / "batch.json") as file:
        json.dump({**facts, "images": rows}, file, indent=1)


def _picture(image: Tensor, boxes_xyxy: Tensor, labels: Tensor) -> bytes:
    """PNG of [3, S, S]; what is not finite is black, and such boxes are left out."""
    levels = image.float().permute(1, 2, 0) + torch.tensor(MEAN_RGB)
    levels = levels.nan_to_num(0.0, 0.0, 0.0).clamp(0, 255)
    pixels = np.ascontiguousarray(levels.round().byte().numpy())
    side = pixels.shape[0]
    for box, label in zip(boxes_xyxy, labels, strict=True):
        if box.isfinite().all():
            x1, y1, x2, y2 = (round(float(v) * side) for v in box.clamp(-1, 2))
            cv2.rectangle(pixels, (x1, y1), (x2, y2), class_color(int(label)), 1)
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
