"""Average precision as in the PASCAL VOC challenge (development kits of 2007 and 2012)."""

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
    """The AP of each class. Position k of every attribute is the class with label k + 1.

    Attributes:
        metric: "voc07" or "voc12".
        ap: [num_classes - 1]. NaN for a class without objects, not counting difficult ones.
        objects: [num_classes - 1], the number of objects that are not difficult.
        difficult: [num_classes - 1], the number of difficult objects and crowds.
        detections: [num_classes - 1], the number of detections.
        true_positives: for each class, the running number of true detections after each of its
            detections that is not ignored, by falling score.
        false_positives: the running number of false detections, likewise.

    Example:
        >>> from mdssd.metrics import voc_ap
        >>> result = voc_ap([{"boxes": [[0, 0, 9, 9]], "scores": [0.9], "labels": [1]}],
        ...                 [{"boxes": [[0, 0, 9, 9], [50, 0, 59, 9]], "labels": [1, 1]}], 2)
        >>> recall, precision = result.curve(1)
        >>> recall.tolist(), precision.tolist()
        ([0.5], [1.0])
    """

    metric: str
    ap: NDArray[np.float64]
    objects: NDArray[np.int64]
    difficult: NDArray[np.int64]
    detections: NDArray[np.int64]
    true_positives: tuple[NDArray[np.int64], ...]
    false_positives: tuple[NDArray[np.int64], ...]

    @property
    def mean_ap(self) -> float:
        """The mean AP of the classes that have objects; NaN if none has."""
        known = self.ap[~np.isnan(self.ap)]
        return float(known.mean()) if known.size else float("nan")

    def curve(self, label: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return recall and precision after each of a class's detections that is not ignored."""
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
    """Compute the average precision of each class as PASCAL VOC does.

    Detections are judged by falling score (ties: earlier image, then earlier detection). Each is
    compared with the object of its class and image that it overlaps most (ties: the first). It
    is false if their IoU is below the threshold, and ignored if the object is difficult or a
    crowd. Otherwise the first detection of an object is true, and every later one is false.
    The AP is 0 without detections. It is NaN, and left out of the mean, without objects.

    Args:
        detections: boxes, scores and labels of each image; see `mdssd.metrics`.
        ground_truth: boxes and labels of each image, and optional flags.
        num_classes: the number of classes including the background.
        iou_threshold: the least IoU of a true detection.
        metric: "voc07" averages the precision at 11 recalls, "voc12" uses every recall.
        plus_one: widths are x2 - x1 + 1, because VOC's x2 is the last pixel of the object.

    Returns:
        The AP and the counts of each class.

    Raises:
        ValueError: an argument is not as described.

    Source: VOCevaldet.m of the development kits. Recalls are compared as whole numbers
    (10 * true >= k * objects), because 3 * 0.1 > 3 / 10 in floating point.

    Example:
        >>> from mdssd.metrics import voc_ap
        >>> detections = [{"boxes": [[0, 0, 9, 9]], "scores": [0.9], "labels": [1]}]
        >>> ground_truth = [{"boxes": [[0, 0, 9, 9]], "labels": [1]}]
        >>> voc_ap(detections, ground_truth, 2).mean_ap
        1.0
    """
    if metric not in ("voc07", "voc12"):
        raise ValueError(f"voc_ap: metric: expected 'voc07' or 'voc12', got {metric!r}")
    check_iou_threshold("voc_ap", iou_threshold)
    images = check_images("voc_ap", detections, ground_truth, num_classes)
    matches = match(images, iou_threshold, plus_one)

    ap = np.full(num_classes - 1, np.nan)
    objects, difficult, detected = (np.zeros(num_classes - 1, np.int64) for _ in range(3))
    true_positives, false_positives = [], []
    for label in range(1, num_classes):
        k = label - 1
        ignored = matches.gt_ignored[matches.gt_labels == label]
        objects[k] = np.count_nonzero(~ignored)
        difficult[k] = np.count_nonzero(ignored)
        detected[k] = np.count_nonzero(matches.labels == label)
        verdict = matches.verdict[matches.counted(label)]
        tp, fp = np.cumsum(verdict == TRUE), np.cumsum(verdict == FALSE)
        true_positives.append(tp)
        false_positives.append(fp)
        if objects[k]:
            area = _eleven_points if metric == "voc07" else all_points
            ap[k] = area(tp, fp, int(objects[k]))
    return VocResult(
        metric, ap, objects, difficult, detected, tuple(true_positives), tuple(false_positives)
    )


def _eleven_points(tp: NDArray[np.int64], fp: NDArray[np.int64], objects: int) -> float:
    """Return the mean over recalls 0, 0.1 ... 1 of the best precision at that recall or more."""
    precision = tp / (tp + fp)
    points = (precision[10 * tp >= k * objects].max(initial=0.0) for k in range(11))
    return float(sum(points) / 11)


def all_points(
    tp: NDArray[np.int64], fp: NDArray[np.int64], objects: int, weight: float = 1.0
) -> float:
    """Return the area under the monotonic envelope of precision, over every step of recall.

    tp, fp: running counts. weight: the weight of a true detection in the precision.
    """
    envelope = np.maximum.accumulate((weight * tp / (weight * tp + fp))[::-1])[::-1]
    steps = np.diff(tp, prepend=0) / objects
    return float((envelope * steps).sum())
