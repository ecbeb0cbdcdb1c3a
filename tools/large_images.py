"""Draws the pictures of docs/large-images.md, and prints their figures.

    python tools/large_images.py

A generated scene of 900 x 900 pixels with small objects goes through the demo's network: squeezed
to its input, in tiles without merging, and in tiles as `--tile auto` does it.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

import mdssd
from mdssd import ops
from mdssd.data import SyntheticScenes
from mdssd.data.tiles import Tiling
from mdssd.inspection.tile_sheet import tile_sheet

ROOT = Path(__file__).parents[1]
SCENES = {"seed": 31, "image_size": 900, "objects": (3, 7), "sizes": (12.0, 40.0)}
PART = (180, 100, 330, 250)  # of the picture that is shown enlarged, where tiles overlap
SIDE = 600  # of a picture, in pixels
FOUND, UNMERGED = (60, 255, 60), (255, 40, 40)


def main() -> None:
    torch.set_num_threads(1)
    scenes = SyntheticScenes(1, **SCENES)
    sample = scenes[0]
    truth, labels = torch.from_numpy(sample.boxes_xyxy), torch.from_numpy(sample.labels)
    squeezed, tiled = (detect(sample.image, tile) for tile in (None, "auto"))
    every = [detect(part, None, (x, y)) for x, y, part in parts(sample.image)]
    unmerged = {name: torch.cat([found[name] for found in every]) for name in squeezed}
    for name, found in (("squeezed", squeezed), ("unmerged", unmerged), ("tiled", tiled)):
        hits = (ops.box_iou(truth, found["boxes"]) >= 0.5) & (labels[:, None] == found["labels"])
        print(
            f"{name}: {len(found['boxes'])} boxes, which find {int(hits.any(1).sum())} of "
            f"{len(truth)} objects; {int((~hits.any(0)).sum())} boxes are of no object"
        )
    write("squeezed", draw(sample.image, squeezed["boxes"], FOUND, (0, 0, 900, 900)))
    write("tiles", tile_sheet(scenes, Tiling(300, 300), 1)[24:])
    write("unmerged", draw(sample.image, unmerged["boxes"], UNMERGED, PART))
    write("merged", draw(sample.image, tiled["boxes"], FOUND, PART))


def detect(image, tile, start=(0, 0)):
    """Return what is found; start: where the image lies in the whole one."""
    checkpoint = ROOT / "demo/mdssd300-shapes.json"
    detector = mdssd.Detector.from_checkpoint(
        checkpoint, device="cpu", score_threshold=0.5, tile=tile
    )
    (found,) = detector(image)
    return {**found, "boxes": found["boxes"] + torch.tensor([*start, *start])}


def parts(image):
    for window in Tiling(300, 300).windows(image.shape[1], image.shape[0]):
        x, y = window.x, window.y
        yield x, y, image[y : y + window.height, x : x + window.width]


def draw(image, boxes, color, part):
    """Return a square part of an image, resized, with its boxes."""
    left, top, right, bottom = part
    picture = cv2.resize(image[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    shown = (boxes.numpy() - (left, top, left, top)) * SIDE / (right - left)
    for x1, y1, x2, y2 in np.rint(shown).astype(int).tolist():
        cv2.rectangle(picture, (x1 - 2, y1 - 2), (x2 + 1, y2 + 1), color, 2)
    return picture


def write(name, picture):
    """Write a picture of the docs, at the size of all."""
    path = ROOT / f"docs/large-images-{name}.jpg"
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(path, quality=85, optimize=True, subsampling=0)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
