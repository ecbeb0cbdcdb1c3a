"""Which class is taken for which."""

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
    """Count pairs of object and detection: [C, C], row the object's label, column the detection's.

    Row 0: detections of no object. Column 0: objects without a detection. [0, 0] is 0. C is
    num_classes, background included.
    detections, ground_truth, plus_one: as for `voc_ap`. Only detections of score_threshold or
    more take part.
    In each image, by falling score (ties: in the order given), a detection takes the object of
    its class that it overlaps most among those still free, if by iou_threshold or more (ties:
    the first). What is then left over of both is paired in the same way whatever the class.
    So a class mistaken for another counts once, there, and never hides a right detection.
    A detection without an object that overlaps a difficult object or a crowd of its class by
    iou_threshold is left out, and so are difficult objects and crowds.
    Raises ValueError on wrong shapes, labels, scores or thresholds.
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
    """Add an image. order: its detections that take part."""
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
