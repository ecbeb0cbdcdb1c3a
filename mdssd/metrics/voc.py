"""Average precision of the PASCAL VOC challenge (development kits of 2007 and 2012)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdssd.metrics.boxes import check_images, check_iou_threshold
from mdssd.metrics.matching import FALSE, TRUE, match


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
    check_iou_threshold("voc_ap", iou_threshold)
    images = check_images("voc_ap", detections, ground_truth, num_classes)
    matches = match(images, iou_threshold, plus_one)

    ap = np.full(num_classes - 1, np.nan)
    objects, difficult, found = (np.zeros(num_classes - 1, np.int64) for _ in range(3))
    trues, falses = [], []
    for label in range(1, num_classes):
        k = label - 1
        ignored = matches.gt_ignored[matches.gt_labels == label]
        objects[k] = np.count_nonzero(~ignored)
        difficult[k] = np.count_nonzero(ignored)
        found[k] = np.count_nonzero(matches.labels == label)
        verdict = matches.verdict[matches.counted(label)]
        tp, fp = np.cumsum(verdict == TRUE), np.cumsum(verdict == FALSE)
        trues.append(tp)
        falses.append(fp)
        if objects[k]:
            area = _eleven_points if metric == "voc07" else all_points
            ap[k] = area(tp, fp, int(objects[k]))
    return VocResult(metric, ap, objects, difficult, found, tuple(trues), tuple(falses))


def _eleven_points(tp: NDArray[np.int64], fp: NDArray[np.int64], objects: int) -> float:
    """Mean over recalls 0, 0.1 ... 1 of the best precision at that recall or beyond."""
    precision = tp / (tp + fp)
    points = (precision[10 * tp >= k * objects].max(initial=0.0) for k in range(11))
    return float(sum(points) / 11)


def all_points(
    tp: NDArray[np.int64], fp: NDArray[np.int64], objects: int, weight: float = 1.0
) -> float:
    """Area under precision made monotonic, over every step of recall.

    tp, fp: running counts. weight: what a true detection counts for in precision.
    """
    envelope = np.maximum.accumulate((weight * tp / (weight * tp + fp))[::-1])[::-1]
    steps = np.diff(tp, prepend=0) / objects
    return float((envelope * steps).sum())
