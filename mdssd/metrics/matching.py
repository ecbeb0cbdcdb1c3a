"""Matching detections with objects, and judging them, by the rules of PASCAL VOC."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdssd.metrics.boxes import ImageBoxes

TRUE, FALSE, IGNORED = 1, 0, -1


@dataclass(frozen=True)
class Matches:
    """All D detections and M objects of a data set, numbered consecutively over its images.

    Attributes:
        scores, labels, images: the score, label and image of each detection.
        nearest: the object of the same class and image that the detection overlaps most (ties:
            the first), or -1 if there is none.
        iou: the IoU with that object, or 0 if there is none.
        verdict: TRUE, FALSE or IGNORED; see `voc_ap`.
        order: the detections by falling score (ties: in the order given).
        gt_labels, gt_images: the label and image of each object.
        gt_ignored: whether the object is difficult or a crowd.
    """

    scores: NDArray[np.float64]  # [D]
    labels: NDArray[np.int64]  # [D]
    images: NDArray[np.int64]  # [D]
    nearest: NDArray[np.int64]  # [D]
    iou: NDArray[np.float64]  # [D]
    verdict: NDArray[np.int64]  # [D]
    order: NDArray[np.int64]  # [D]
    gt_labels: NDArray[np.int64]  # [M]
    gt_images: NDArray[np.int64]  # [M]
    gt_ignored: NDArray[np.bool_]  # [M]

    def of_class(self, label: int) -> NDArray[np.int64]:
        """Return the numbers of a class's detections, by falling score."""
        return self.order[self.labels[self.order] == label]

    def counted(self, label: int) -> NDArray[np.int64]:
        """Return the numbers of a class's detections that are not ignored, by falling score."""
        rows = self.of_class(label)
        return rows[self.verdict[rows] != IGNORED]


def match(images: Sequence[ImageBoxes], iou_threshold: float, plus_one: bool) -> Matches:
    """Match every detection with the nearest object of its class, and judge it.

    plus_one: widths are x2 - x1 + 1.
    """
    numbers, ious = [], []
    first = 0
    for image in images:
        best, best_iou = _nearest(image, plus_one)
        numbers.append(np.where(best >= 0, best + first, -1))
        ious.append(best_iou)
        first += len(image.gt_xyxy)
    scores = cat((image.scores for image in images), np.float64)
    nearest, iou = cat(numbers, np.int64), cat(ious, np.float64)
    ignored = cat((image.gt_difficult | image.gt_crowd for image in images), np.bool_)
    order = np.argsort(-scores, kind="stable")
    hit = np.where(iou >= iou_threshold, nearest, -1)
    verdict = np.empty(len(scores), np.int64)
    verdict[order] = _judge(hit[order], ignored)
    return Matches(
        scores,
        cat((image.labels for image in images), np.int64),
        _image_numbers([len(image.scores) for image in images]),
        nearest,
        iou,
        verdict,
        order,
        cat((image.gt_labels for image in images), np.int64),
        _image_numbers([len(image.gt_xyxy) for image in images]),
        ignored,
    )


def box_iou(
    a_xyxy: NDArray[np.float64], b_xyxy: NDArray[np.float64], plus_one: bool
) -> NDArray[np.float64]:
    """Return the IoU [A, B] of boxes whose width is x2 - x1, or one more; 0 for an empty union."""
    one = float(plus_one)
    a_size = a_xyxy[:, 2:] - a_xyxy[:, :2] + one
    b_size = b_xyxy[:, 2:] - b_xyxy[:, :2] + one
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    shared = np.maximum(high - low + one, 0.0).prod(axis=2)
    union = a_size.prod(axis=1)[:, None] + b_size.prod(axis=1)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def cat(parts: Iterable[NDArray[Any]], dtype: type) -> NDArray[Any]:
    """Concatenate arrays; without arrays, return an empty one of this type."""
    return np.concatenate([np.zeros(0, dtype), *parts])


def _nearest(image: ImageBoxes, plus_one: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest object of each detection (-1: none of its class), and their IoU."""
    if not (len(image.boxes_xyxy) and len(image.gt_xyxy)):
        return np.full(len(image.boxes_xyxy), -1), np.zeros(len(image.boxes_xyxy))
    iou = box_iou(image.boxes_xyxy, image.gt_xyxy, plus_one)  # [D, M]
    iou[image.labels[:, None] != image.gt_labels[None, :]] = -1.0
    best = iou.argmax(axis=1)
    best_iou = iou[np.arange(len(iou)), best]
    return np.where(best_iou >= 0, best, -1), np.maximum(best_iou, 0.0)


def _judge(hit: NDArray[np.int64], ignored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Judge detections, by falling score. hit: the object that each one hits, or -1."""
    verdict = np.full(len(hit), FALSE, np.int64)
    on_object = np.flatnonzero(hit >= 0)
    _, first = np.unique(hit[on_object], return_index=True)
    verdict[on_object[first]] = TRUE
    verdict[on_object[ignored[hit[on_object]]]] = IGNORED
    return verdict


def _image_numbers(lengths: list[int]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
