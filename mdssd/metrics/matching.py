"""Which object a detection is compared with, and whether it is true, as VOC decides both."""

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
    """All detections (D) and objects (M) of a data set, numbered over its images in order.

    nearest: the object of its class and image that a detection overlaps most (ties: the first),
    -1 where none has its class. iou: with that object, 0 where there is none. verdict: TRUE,
    FALSE or IGNORED (see `voc_ap`). order: detections by falling score, ties in the order given.
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
    gt_ignored: NDArray[np.bool_]  # [M], difficult ones and crowds

    def of_class(self, label: int) -> NDArray[np.int64]:
        """The numbers of a class's detections, by falling score."""
        return self.order[self.labels[self.order] == label]

    def counted(self, label: int) -> NDArray[np.int64]:
        """The same without ignored ones."""
        rows = self.of_class(label)
        return rows[self.verdict[rows] != IGNORED]


def match(images: Sequence[ImageBoxes], iou_threshold: float, plus_one: bool) -> Matches:
    """Match every detection with the nearest object of its class and judge it.

    plus_one: widths are x2 - x1 + 1.
    """
    nearest, overlaps = [], []
    first = 0
    for image in images:
        best, overlap = _nearest(image, plus_one)
        nearest.append(np.where(best >= 0, best + first, -1))
        overlaps.append(overlap)
        first += len(image.gt_xyxy)
    scores = cat((image.scores for image in images), np.float64)
    number, iou = cat(nearest, np.int64), cat(overlaps, np.float64)
    ignored = cat((image.gt_difficult | image.gt_crowd for image in images), np.bool_)
    order = np.argsort(-scores, kind="stable")
    hit = np.where(iou >= iou_threshold, number, -1)
    verdict = np.empty(len(scores), np.int64)
    verdict[order] = _judge(hit[order], ignored)
    return Matches(
        scores,
        cat((image.labels for image in images), np.int64),
        _image_numbers([len(image.scores) for image in images]),
        number,
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
    """IoU [A, B] of boxes whose width is x2 - x1, or one more; 0 where the union is empty."""
    one = float(plus_one)
    a_size = a_xyxy[:, 2:] - a_xyxy[:, :2] + one
    b_size = b_xyxy[:, 2:] - b_xyxy[:, :2] + one
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    shared = np.maximum(high - low + one, 0.0).prod(axis=2)
    union = a_size.prod(axis=1)[:, None] + b_size.prod(axis=1)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def cat(parts: Iterable[NDArray[Any]], dtype: type) -> NDArray[Any]:
    """The arrays one after the other; an empty one of this type where there is none."""
    return np.concatenate([np.zeros(0, dtype), *parts])


def _nearest(image: ImageBoxes, plus_one: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each detection of an image its nearest object (-1: none of its class) and their IoU."""
    if not (len(image.boxes_xyxy) and len(image.gt_xyxy)):
        count = len(image.boxes_xyxy)
        return np.full(count, -1, np.int64), np.zeros(count)
    iou = box_iou(image.boxes_xyxy, image.gt_xyxy, plus_one)  # [D, M]
    iou[image.labels[:, None] != image.gt_labels[None, :]] = -1.0
    best = iou.argmax(axis=1)
    overlap = iou[np.arange(len(iou)), best]
    return np.where(overlap >= 0, best, -1), np.maximum(overlap, 0.0)


def _judge(hit: NDArray[np.int64], ignored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """True, false or ignored for detections that hit these objects (-1: none), by falling score."""
    verdict = np.full(len(hit), FALSE, np.int64)
    on_object = np.flatnonzero(hit >= 0)
    _, first = np.unique(hit[on_object], return_index=True)
    verdict[on_object[first]] = TRUE
    verdict[on_object[ignored[hit[on_object]]]] = IGNORED
    return verdict


def _image_numbers(counts: list[int]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)
