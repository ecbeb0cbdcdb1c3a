"""Keeping the batch that ended a run, so that it can be looked at."""

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
from mdssd.drawing import class_color, encode_image
from mdssd.system import distributed
from mdssd.system.files import atomic_write
from mdssd.training.loading import Batch


def keep_batch(
    out_dir: Path,
    batch: Batch,
    image_ids: Sequence[str],
    classes: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """Save the batch of an iteration that failed, and return a message that says where it is.

    Each process saves its share; all must call this, and all get the same message.

    Args:
        out_dir: the folder of the run.
        batch: this process's share, as the network saw it.
        image_ids: the image of each row of the batch.
        classes: the names of labels 1, 2, ...
        facts: further entries of batch.json. "iteration" is in the name of the folder.
    """
    rank = distributed.rank()
    name = f"not-finite-{facts['iteration']:08}" + (f"-rank{rank}" if rank else "")
    folder = out_dir / name
    message = f"{folder} has its batch"
    try:
        if image_ids:
            save_batch(folder, batch, image_ids, classes, facts)
    except OSError as error:
        message = f"its batch could not be saved in {folder} ({error.strerror})"
    # A process that ends makes torchrun end the others, so all wait until all have written.
    messages = distributed.gather(message if image_ids else "")
    return distributed.from_main("; ".join(filter(None, messages)))


def save_batch(
    folder: Path,
    batch: Batch,
    image_ids: Sequence[str],
    classes: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write a batch into a folder, which is created.

    batch.safetensors contains "images" [B, 3, S, S], and for image K "boxes.K" [M, 4] (xyxy in 0-1)
    and "labels.K" [M]. batch.json contains `facts` and, for each image, its id, picture and
    objects. The picture KK.png shows the image with its boxes.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"images": batch.images.detach().cpu().contiguous()}
    rows = []
    for k, (image, boxes, labels) in enumerate(
        zip(tensors["images"], batch.boxes_xyxy, batch.labels, strict=True)
    ):
        tensors[f"boxes.{k}"] = boxes.cpu().contiguous()
        tensors[f"labels.{k}"] = labels.cpu().contiguous()
        names = ["ignored", *classes]
        objects = [names[max(0, int(label))] for label in labels]
        rows.append({"id": image_ids[k], "picture": f"{k:02}.png", "objects": objects})
        with atomic_write(folder / f"{k:02}.png", "wb") as file:
            file.write(_picture(image, boxes, labels))
    with atomic_write(folder / "batch.safetensors", "wb") as file:
        file.write(safetensors.torch.save(tensors))
    with atomic_write(folder / "batch.json") as file:
        json.dump({**facts, "images": rows}, file, indent=1)


def _picture(image: Tensor, boxes_xyxy: Tensor, labels: Tensor) -> bytes:
    """Return a PNG of an image [3, S, S], with pixels that are not finite in black.

    Boxes that are not finite are left out.
    """
    levels = image.float().permute(1, 2, 0) + torch.tensor(MEAN_RGB)
    levels = levels.nan_to_num(0.0, 0.0, 0.0).clamp(0, 255)
    pixels = np.ascontiguousarray(levels.round().byte().numpy())
    side = pixels.shape[0]
    for box, label in zip(boxes_xyxy, labels, strict=True):
        if box.isfinite().all():
            x1, y1, x2, y2 = (round(float(v) * side) for v in box.clamp(-1, 2))
            cv2.rectangle(pixels, (x1, y1), (x2, y2), class_color(int(label)), 1)
    return encode_image(pixels)
