"""Peers of the training loader, which turn the bytes of a JPEG and its boxes into a sample.

Each returns an image float32 [3, S, S], boxes_xyxy in 0-1 [M, 4] and labels [M]. All augment as SSD
does, but draw different random numbers, so their results cannot be compared value by value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import need
from mdssd.data import MEAN_RGB

Load = Callable[[bytes, np.ndarray, np.ndarray, int], tuple[Tensor, Tensor, Tensor]]


def opencv_by_hand(size: int) -> Load:
    """Augment as the PyTorch ports of SSD do: in float32 from the first step, crop by crop."""
    mean = np.array(MEAN_RGB, np.float32)

    def load(
        data: bytes, boxes_xyxy: np.ndarray, labels: np.ndarray, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        pixels = _distort(image.astype(np.float32), rng)[:, :, ::-1]
        pixels, boxes = _expand(pixels, boxes_xyxy.astype(np.float64), mean, rng)
        pixels, boxes, labels = _crop(pixels, boxes, labels, rng)
        height, width = pixels.shape[:2]
        boxes = boxes / (width, height, width, height)
        if rng.random() < 0.5:
            pixels, boxes = pixels[:, ::-1], boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (1, 0, 1, 0)
        resized = cv2.resize(np.ascontiguousarray(pixels), (size, size)) - mean
        image_tensor = torch.from_numpy(resized.transpose(2, 0, 1))
        return image_tensor, torch.from_numpy(boxes).float(), torch.from_numpy(labels)

    return load


def _distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of a float32 BGR image, each half the time.

    The contrast changes before or after saturation and hue.
    """
    if rng.random() < 0.5:
        image += np.float32(rng.uniform(-32, 32))
    late = rng.random() < 0.5
    contrast = np.float32(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else None
    if contrast is not None and not late:
        image *= contrast
    hsv = cv2.cvtColor(np.clip(image, 0, 255), cv2.COLOR_BGR2HSV)
    if rng.random() < 0.5:
        hsv[:, :, 1] *= np.float32(rng.uniform(0.5, 1.5))
        hsv[:, :, 1] = np.minimum(hsv[:, :, 1], 1)
    if rng.random() < 0.5:
        hsv[:, :, 0] = (hsv[:, :, 0] + np.float32(rng.uniform(-18, 18))) % 360
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if contrast is not None and late:
        image *= contrast
    return np.clip(image, 0, 255)


def _expand(
    image: np.ndarray, boxes_xyxy: np.ndarray, mean: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if rng.random() < 0.5:
        return image, boxes_xyxy
    height, width = image.shape[:2]
    ratio = rng.uniform(1, 4)
    left = int(rng.uniform(0, width * ratio - width))
    top = int(rng.uniform(0, height * ratio - height))
    canvas = np.empty((int(height * ratio), int(width * ratio), 3), np.float32)
    canvas[:] = mean
    canvas[top : top + height, left : left + width] = image
    return canvas, boxes_xyxy + (left, top, left, top)


def _crop(
    image: np.ndarray, boxes_xyxy: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw modes, and up to 50 crops for each, until a crop meets its mode's condition."""
    height, width = image.shape[:2]
    while True:
        least = rng.choice([np.nan, -1.0, 0.1, 0.3, 0.5, 0.7, 0.9])
        if np.isnan(least):
            return image, boxes_xyxy, labels
        for _ in range(50):
            w, h = rng.uniform(0.3 * width, width), rng.uniform(0.3 * height, height)
            if not 0.5 <= h / w <= 2:
                continue
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            window = np.array([int(left), int(top), int(left + w), int(top + h)])
            low = np.maximum(boxes_xyxy[:, :2], window[:2])
            high = np.minimum(boxes_xyxy[:, 2:], window[2:])
            inter = np.clip(high - low, 0, None).prod(1)
            area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)
            iou = inter / (area + (window[2:] - window[:2]).prod() - inter)
            centre = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
            inside = ((centre > window[:2]) & (centre < window[2:])).all(1)
            if iou.max(initial=0) < least or not inside.any():
                continue
            boxes = np.hstack([low, high])[inside] - np.tile(window[:2], 2)
            x1, y1, x2, y2 = window
            return image[y1:y2, x1:x2], boxes, labels[inside]


def torchvision_v2(size: int) -> Load:
    """Augment with torchvision's SSD preset and decode with torchvision."""
    need("torchvision")
    from torchvision import tv_tensors
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    fill = {tv_tensors.Image: list(MEAN_RGB), "others": 0}
    steps = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=fill),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(),
            v2.Resize((size, size), antialias=True),
            v2.ToDtype(torch.float32),
            v2.Normalize(list(MEAN_RGB), [1.0, 1.0, 1.0]),
        ]
    )

    def load(
        data: bytes, boxes_xyxy: np.ndarray, labels: np.ndarray, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(seed)
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(boxes_xyxy), format="XYXY", canvas_size=image.shape[-2:]
        )
        sample: dict[str, Any] = {"boxes": boxes, "labels": torch.from_numpy(labels)}
        image, sample = steps(tv_tensors.Image(image), sample)
        return image.as_subclass(torch.Tensor), sample["boxes"] / size, sample["labels"]

    return load
