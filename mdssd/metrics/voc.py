"""Average precision of the PASCAL VOC challenge (development kits of 2007 and 2012)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdssd.metrics.boxes import ImageBoxes, check_images

_TRUE, _FALSE, _IGNORED = 1, 0, -1


@dataclass(frozen=True)
class VocResult:
    """AP of each class; position k is label k + 1.

    `ap` is NaN for a class without a (not difficult) object: `mean_ap` is the mean over the
    others, NaN where there is none. `true_positives[k]` and `false_positives[k]` are running
    counts over the detections of that class by falling score, ignored ones left out.
    """

    metric: str
    ap: NDArray[np.float64]  # [num_classes - 1]
    objects: NDArray[np.int64]  # [num_classes - 1], without difficult ones
    difficult: NDArray[np.int64]  # [num_classes - 1]
    detections: NDArray[np.int64]  # [num_classes - 1]
    true_positives: tuple[NDArray[np.int64], ...]
    false_positives: tuple[NDArray[np.int64], ...]

    @property
    def mean_ap(self) -> float:
        """Mean AP over the classes that have objects; NaN where none has."""
        known = self.ap[~np.isnan(self.ap)]
        return float(known.mean()) if known.size else float("nan")

    def curve(self, label: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall and precision after each counted detection of a class, by falling score."""
        tp, fp = self.true_positives[label - 1], self.false_positives[label - 1]
        return tp / max(int(self.objects[label - 1]), 1), tp / np.maximum(tp + fp, 1)


def voc_ap(
    detections: Sequence[Mapping[str, Any]],
    ground_truth: Sequence[Mapping[str, Any]],
    num_classes: int,
    *,
    iou_threshold: float = 0.5,
    metric: Literal["voc07", "voc12"] = "voc07",
    plus_one: bool = True,
) -> VocResult:
    """VOC average precision per class: "voc07" over 11 recalls, "voc12" over all of them.

    detections: one dict per image, "boxes" [D, 4] xyxy in pixels, "scores" [D], "labels" [D].
    ground_truth: one dict per image, "boxes" [M, 4], "labels" [M], optionally "difficult" [M]
    and "crowd" [M] (counted as difficult). Labels run from 1 to num_classes - 1.
    plus_one: widths are x2 - x1 + 1, as for boxes whose corners are both inside the object.

    A detection is compared with the object of its class and image that it overlaps most (ties:
    the first). Below the threshold it is false; on a difficult object it is left out; otherwise
    the first detection of that object is true and every later one false. Detections are taken
    by falling score; ties: earlier image first, then earlier detection.
    No detections: AP 0. A class without objects: NaN, left out of the mean.
    Raises ValueError on shapes, labels or scores that cannot be.
    Source: VOCevaldet.m of the development kits; recalls are compared as whole numbers
    (10 * true >= k * objects), because k * 0.1 exceeds 3 / 10 in binary fractions.
    """
    if metric not in ("voc07", "voc12"):
        raise ValueError(f"voc_ap: metric: expected 'voc07' or 'voc12', got {metric!r}")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"voc_ap: iou_threshold: expected 0 < t <= 1, got {iou_threshold}")
    images = check_images("voc_ap", detections, ground_truth, num_classes)
    scores, labels, matched = _match_all(images, iou_threshold, 1.0 if plus_one else 0.0)
    gt_labels = _cat([image.gt_labels for image in images], np.int64)
    ignored = _cat([image.gt_difficult | image.gt_crowd for image in images], np.bool_)

    ap = np.full(num_classes - 1, np.nan)
    objects, difficult, found = (np.zeros(num_classes - 1, np.int64) for _ in range(3))
    trues, falses = [], []
    for label in range(1, num_classes):
        k = label - 1
        of_class = gt_labels == label
        objects[k] = np.count_nonzero(of_class & ~ignored)
        difficult[k] = np.count_nonzero(of_class & ignored)
        rows = np.flatnonzero(labels == label)
        found[k] = rows.size
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        verdict = _judge(matched[rows], ignored)
        verdict = verdict[verdict != _IGNORED]
        tp, fp = np.cumsum(verdict == _TRUE), np.cumsum(verdict == _FALSE)
        trues.append(tp)
        falses.append(fp)
        if objects[k]:
            area = _eleven_points if metric == "voc07" else _all_points
            ap[k] = area(tp, fp, int(objects[k]))
    return VocResult(metric, ap, objects, difficult, found, tuple(trues), tuple(falses))


def _match_all(
    images: Sequence[ImageBoxes], iou_threshold: float, one: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Score, label and object (its number over all images, -1: none) of every detection."""
    scores, labels, matched = [], [], []
    first = 0
    for image in images:
        best = np.full(len(image.boxes_xyxy), -1, np.int64)
        if len(image.boxes_xyxy) and len(image.gt_xyxy):
            iou = _iou(image.boxes_xyxy, image.gt_xyxy, one)  # [D, M]
            iou[image.labels[:, None] != image.gt_labels[None, :]] = -1.0
            nearest = iou.argmax(axis=1)
            hit = iou[np.arange(len(iou)), nearest] >= iou_threshold
            best[hit] = nearest[hit] + first
        scores.append(image.scores)
        labels.append(image.labels)
        matched.append(best)
        first += len(image.gt_xyxy)
    return _cat(scores, np.float64), _cat(labels, np.int64), _cat(matched, np.int64)


def _judge(matched: NDArray[np.int64], ignored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """True, false or ignored for the detections of one class, given by falling score."""
    verdict = np.full(len(matched), _FALSE, np.int64)
    on_object = np.flatnonzero(matched >= 0)
    _, first = np.unique(matched[on_object], return_index=True)
    verdict[on_object[first]] = _TRUE
    verdict[on_object[ignored[matched[on_object]]]] = _IGNORED
    return verdict


def _iou(
    a_xyxy: NDArray[np.float64], b_xyxy: NDArray[np.float64], one: float
) -> NDArray[np.float64]:
    """IoU [A, B] of boxes whose width is x2 - x1 + one; 0 where the union is empty."""
    a_size = a_xyxy[:, 2:] - a_xyxy[:, :2] + one
    b_size = b_xyxy[:, 2:] - b_xyxy[:, :2] + one
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    shared = np.maximum(high - low + one, 0.0).prod(axis=2)
    union = a_size.prod(axis=1)[:, None] + b_size.prod(axis=1)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _eleven_points(tp: NDArray[np.int64], fp: NDArray[np.int64], objects: int) -> float:
    """Mean over recalls 0, 0.1 ... 1 of the best precision at that recall or beyond."""
    precision = tp / (tp + fp)
    points = (precision[10 * tp >= k * objects].max(initial=0.0) for k in range(11))
    return float(sum(points) / 11)


def _all_points(tp: NDArray[np.int64], fp: NDArray[np.int64], objects: int) -> float:
    """Area under precision made monotonic, over every step of recall."""
    envelope = np.maximum.accumulate((tp / (tp + fp))[::-1])[::-1]
    steps = np.diff(tp, prepend=0) / objects
    return float((envelope * steps).sum())


def _cat(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
