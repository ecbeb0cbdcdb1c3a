"""The confusion matrix of a detector: which classes it mistakes for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdssd.metrics.boxes import ImageBoxes, check_images, check_iou_threshold
from mdssd.metrics.matching import box_iou


def confusion_matrix(
    detections: Sequence[Mapping[str, Any]],
    ground_truth: Sequence[Mapping[str, Any]],
    num_classes: int,
    *,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    plus_one: bool = True,
) -> NDArray[np.int64]:
    """Count which classes the objects of each class are detected as.

    In each image, detections by falling score (ties: in the order given) are first paired with
    the free object of their own class that they overlap most, if the IoU is at least
    iou_threshold (ties: the first object). The remaining detections and objects are then paired
    in the same way whatever their classes. A mistaken class thus counts once, and never hides a
    right detection. Difficult objects and crowds are ignored, and so are unpaired detections
    that overlap one of their own class by iou_threshold or more.

    Args:
        detections: boxes, scores and labels of each image; see `mdssd.metrics`.
        ground_truth: boxes and labels of each image, and optional flags.
        num_classes: the number of classes including the background, C.
        score_threshold: detections with lower scores are ignored.
        iou_threshold: the least IoU of a pair.
        plus_one: widths are x2 - x1 + 1; see `voc_ap`.

    Returns:
        [C, C]: one row per label of the object, one column per label of the detection. Row 0
        counts detections without an object, column 0 objects without a detection. [0, 0] is 0.

    Raises:
        ValueError: an argument is not as described.

    Example:
        >>> from mdssd.metrics import confusion_matrix
        >>> detections = [{"boxes": [[0, 0, 9, 9]], "scores": [0.9], "labels": [2]}]
        >>> ground_truth = [{"boxes": [[0, 0, 9, 9], [50, 0, 59, 9]], "labels": [1, 2]}]
        >>> confusion_matrix(detections, ground_truth, 3).tolist()
        [[0, 0, 0], [0, 0, 1], [1, 0, 0]]
    """
    check_iou_threshold("confusion_matrix", iou_threshold)
    if not np.isfinite(score_threshold):
        raise ValueError(
            f"confusion_matrix: score_threshold: expected a number, got {score_threshold}"
        )
    images = check_images("confusion_matrix", detections, ground_truth, num_classes)
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for image in images:
        order = np.argsort(-image.scores, kind="stable")
        order = order[image.scores[order] >= score_threshold]
        _count(matrix, image, order, iou_threshold, plus_one)
    return matrix


def _count(
    matrix: NDArray[np.int64],
    image: ImageBoxes,
    order: NDArray[np.int64],
    iou_threshold: float,
    plus_one: bool,
) -> None:
    """Count the pairs of one image. order: its detections, by falling score."""
    labels = image.labels[order]
    iou = box_iou(image.boxes_xyxy[order], image.gt_xyxy, plus_one)  # [D, M]
    own_class = labels[:, None] == image.gt_labels[None, :]
    ignored = image.gt_difficult | image.gt_crowd
    excused = ((iou >= iou_threshold) & own_class & ignored).any(axis=1)

    partner = np.full(len(order), -1)
    free = ~ignored
    for allowed in (own_class, ~own_class):
        for d in np.flatnonzero(partner < 0):
            open_iou = np.where(free & allowed[d], iou[d], 0.0)
            best = int(open_iou.argmax()) if open_iou.size else -1
            if best >= 0 and open_iou[best] >= iou_threshold:
                partner[d], free[best] = best, False
    paired = partner >= 0
    np.add.at(matrix, (image.gt_labels[partner[paired]], labels[paired]), 1)
    matrix[0] += np.bincount(labels[~paired & ~excused], minlength=len(matrix))
    matrix[:, 0] += np.bincount(image.gt_labels[free], minlength=len(matrix))
