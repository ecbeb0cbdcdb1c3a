"""The inputs of a metric, checked and turned into NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageBoxes:
    """The D detections and the M objects of one image, boxes in pixels."""

    boxes_xyxy: NDArray[np.float64]  # [D, 4]
    scores: NDArray[np.float64]  # [D]
    labels: NDArray[np.int64]  # [D]
    gt_xyxy: NDArray[np.float64]  # [M, 4]
    gt_labels: NDArray[np.int64]  # [M]
    gt_difficult: NDArray[np.bool_]  # [M]
    gt_crowd: NDArray[np.bool_]  # [M]
    gt_area: NDArray[np.float64]  # [M]


def check_images(
    function: str,
    detections: Sequence[Mapping[str, Any]],
    ground_truth: Sequence[Mapping[str, Any]],
    num_classes: int,
) -> list[ImageBoxes]:
    """Check the arguments of a metric (see `mdssd.metrics`); return one `ImageBoxes` per image.

    Raises ValueError, naming `function`, the image and the fault.
    """
    if num_classes < 2:
        raise ValueError(
            f"{function}: num_classes: expected at least 2 (with background), got {num_classes}"
        )
    if len(detections) != len(ground_truth):
        raise ValueError(
            f"{function}: detections: expected one entry per image of ground_truth "
            f"({len(ground_truth)}), got {len(detections)}"
        )
    images = []
    for i, (detected, gt) in enumerate(zip(detections, ground_truth, strict=True)):
        where = f"{function}: detections[{i}]"
        boxes = _boxes(where, detected)
        labels = _labels(where, detected, len(boxes), num_classes)
        scores = _column(where, detected, "scores", len(boxes)).astype(np.float64)
        if not np.isfinite(scores).all():
            raise ValueError(f"{where}: scores: expected finite numbers, got NaN or infinity")
        where = f"{function}: ground_truth[{i}]"
        gt_xyxy = _boxes(where, gt)
        objects = len(gt_xyxy)
        gt_labels = _labels(where, gt, objects, num_classes)
        difficult, crowd = (
            _column(where, gt, name, objects).astype(np.bool_)
            if name in gt
            else np.zeros(objects, np.bool_)
            for name in ("difficult", "crowd")
        )
        if "area" in gt:
            area = _column(where, gt, "area", objects).astype(np.float64)
        else:
            area = (gt_xyxy[:, 2] - gt_xyxy[:, 0]) * (gt_xyxy[:, 3] - gt_xyxy[:, 1])
        images.append(ImageBoxes(boxes, scores, labels, gt_xyxy, gt_labels, difficult, crowd, area))
    return images


def check_iou_threshold(function: str, value: float) -> None:
    """Raise ValueError unless 0 < value <= 1."""
    if not 0 < value <= 1:
        raise ValueError(f"{function}: iou_threshold: expected 0 < t <= 1, got {value}")


def _boxes(where: str, image: Mapping[str, Any]) -> NDArray[np.float64]:
    boxes = np.asarray(image["boxes"], dtype=np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes: expected [N, 4] xyxy, got shape {boxes.shape}")
    if not np.isfinite(boxes).all():
        raise ValueError(f"{where}: boxes: expected finite numbers, got NaN or infinity")
    return boxes


def _column(where: str, image: Mapping[str, Any], name: str, length: int) -> NDArray[Any]:
    values = np.asarray(image[name])
    if values.size == 0 and length == 0:
        return np.zeros(0)
    if values.shape != (length,):
        raise ValueError(f"{where}: {name}: expected [{length}], one per box, got {values.shape}")
    return values


def _labels(
    where: str, image: Mapping[str, Any], length: int, num_classes: int
) -> NDArray[np.int64]:
    labels = _column(where, image, "labels", length).astype(np.int64)
    if length and not (1 <= labels.min() and labels.max() < num_classes):
        raise ValueError(
            f"{where}: labels: expected 1 to {num_classes - 1}, "
            f"got {labels.min()} to {labels.max()}"
        )
    return labels
