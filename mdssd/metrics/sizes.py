"""Average precision by the size of objects, after Hoiem et al."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdssd.metrics.boxes import check_images, check_iou_threshold
from mdssd.metrics.matching import FALSE, TRUE, Matches, cat, match
from mdssd.metrics.voc import all_points

SIZES = ("XS", "S", "M", "L", "XL")
# Tenths of a class's objects that are at most XS, S, M, L.
_UP_TO_TENTHS = (1, 3, 7, 9)
# The tool of Hoiem et al. assumes this many objects per image for every class and size.
_OBJECTS_PER_IMAGE = 0.15


@dataclass(frozen=True)
class SizeResult:
    """The AP of each class (row k: label k + 1) and size (columns: XS, S, M, L, XL).

    Attributes:
        ap: [num_classes - 1, 5]. NaN without objects of that class and size.
        normalized_ap: [num_classes - 1, 5], as in Fig. 6 and Table IV of the MDSSD paper.
        overall: [num_classes - 1], the normalised AP of all sizes together.
        objects: [num_classes - 1, 5], the number of objects.
        limits: [num_classes - 1, 4], the greatest area of an XS, S, M and L object, in square
            pixels. NaN for a class without objects.
        normal_objects: the number N that the AP is normalised to.

    Example:
        >>> from mdssd.metrics import size_ap
        >>> boxes = [[0, 0, 9, 9], [50, 0, 89, 39]]
        >>> detections = [{"boxes": boxes[1:], "scores": [0.9], "labels": [1]}]
        >>> result = size_ap(detections, [{"boxes": boxes, "labels": [1, 1]}], 2)
        >>> result.objects.tolist(), result.mean_ap.tolist()
        ([[0, 1, 0, 1, 0]], [nan, 0.0, nan, 1.0, nan])
    """

    ap: NDArray[np.float64]
    normalized_ap: NDArray[np.float64]
    overall: NDArray[np.float64]
    objects: NDArray[np.int64]
    limits: NDArray[np.float64]
    normal_objects: float

    @property
    def mean_ap(self) -> NDArray[np.float64]:
        """[5]: for each size, the mean AP of the classes that have objects of it."""
        return _mean_of_known(self.ap)

    @property
    def mean_normalized_ap(self) -> NDArray[np.float64]:
        """[5]: for each size, the mean normalised AP of the classes that have objects of it."""
        return _mean_of_known(self.normalized_ap)


def size_ap(
    detections: Sequence[Mapping[str, Any]],
    ground_truth: Sequence[Mapping[str, Any]],
    num_classes: int,
    *,
    iou_threshold: float = 0.5,
    plus_one: bool = True,
    normal_objects: float | None = None,
) -> SizeResult:
    """Compute the AP of each class's extra-small, small, medium, large and extra-large objects.

    The n objects of a class are ranked by the area of their boxes: XS are the bottom 10%, S the
    next 20%, M 40%, L 20%, XL the top 10%. The limits are the areas at ranks n/10, 3n/10, 7n/10
    and 9n/10, rounded (halves up). An object has the smallest size whose limit it does not
    exceed, so objects of equal area have the same size. With fewer than 5 objects none is XS
    (1: M. 2: S, L. 3: S, M, L. 4: S, M, M, L).

    Detections are judged as by `voc_ap`, and the AP is "voc12". For the AP of one size, true
    detections of other sizes are ignored, while false ones, which have no size, count against
    every size. The AP is therefore low for a size with few objects. The normalised AP computes
    the precision at recall R as R N / (R N + false detections), with the same N for every class
    and size instead of the number of objects, so that they can be compared.

    Args:
        detections: boxes, scores and labels of each image; see `mdssd.metrics`.
        ground_truth: boxes and labels of each image. Difficult objects and crowds are ignored.
        num_classes: the number of classes including the background.
        iou_threshold: the least IoU of a true detection.
        plus_one: widths are x2 - x1 + 1; see `voc_ap`.
        normal_objects: N. None: 0.15 times the number of images, as Hoiem et al. use.

    Returns:
        The AP of each class and size: 0 without detections, NaN without objects.

    Raises:
        ValueError: an argument is not as described.

    Source: Hoiem, Chodpathumwan, Dai, "Diagnosing error in object detectors", ECCV 2012, section
    3; MDSSD paper, section IV-A. Their tool matches a detection with the nearest free object;
    here, as in VOC, a detection whose nearest object is taken is false.

    Example:
        >>> from mdssd.metrics import size_ap
        >>> boxes = [[0, 0, 9, 9], [50, 0, 89, 39]]
        >>> detections = [{"boxes": boxes, "scores": [0.9, 0.8], "labels": [1, 1]}]
        >>> size_ap(detections, [{"boxes": boxes, "labels": [1, 1]}], 2).ap.tolist()
        [[nan, 1.0, nan, 1.0, nan]]
    """
    check_iou_threshold("size_ap", iou_threshold)
    if normal_objects is not None and not 0 < normal_objects < np.inf:
        raise ValueError(f"size_ap: normal_objects: expected more than 0, got {normal_objects}")
    images = check_images("size_ap", detections, ground_truth, num_classes)
    if normal_objects is None:
        normal_objects = _OBJECTS_PER_IMAGE * len(images)
    matches = match(images, iou_threshold, plus_one)
    areas = cat((_areas(image.gt_xyxy, plus_one) for image in images), np.float64)

    classes = num_classes - 1
    result = SizeResult(
        np.full((classes, 5), np.nan),
        np.full((classes, 5), np.nan),
        np.full(classes, np.nan),
        np.zeros((classes, 5), np.int64),
        np.full((classes, 4), np.nan),
        normal_objects,
    )
    size = np.full(len(areas), -1)
    for k in range(classes):
        own = np.flatnonzero((matches.gt_labels == k + 1) & ~matches.gt_ignored)
        if own.size:
            size[own], result.limits[k] = _rank(areas[own])
            result.objects[k] = np.bincount(size[own], minlength=5)
            _measure(result, k, matches, size)
    return result


def _areas(boxes_xyxy: NDArray[np.float64], plus_one: bool) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = np.prod(
        boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] + float(plus_one), axis=1
    )
    return areas


def _rank(areas: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the size of each object of a class, 0 to 4, and the four limits."""
    ordered = np.sort(areas)
    ranks = [(tenths * len(areas) + 5) // 10 for tenths in _UP_TO_TENTHS]
    limits = np.array([ordered[rank - 1] if rank else -np.inf for rank in ranks])
    return (areas[:, None] > limits).sum(axis=1), limits


def _measure(result: SizeResult, k: int, matches: Matches, size: NDArray[np.int64]) -> None:
    """Set the APs of class k, which has objects."""
    rows = matches.counted(k + 1)
    true = matches.verdict[rows] == TRUE
    size_found = np.where(true, size[matches.nearest[rows]], -1)

    def aps(chosen: NDArray[np.bool_], objects: int) -> tuple[float, float]:
        kept = chosen | ~true
        tp = np.cumsum(chosen[kept])
        fp = np.cumsum(matches.verdict[rows[kept]] == FALSE)
        weight = result.normal_objects / objects
        return all_points(tp, fp, objects), all_points(tp, fp, objects, weight)

    result.overall[k] = aps(true, int(result.objects[k].sum()))[1]
    for s in range(5):
        if result.objects[k, s]:
            result.ap[k, s], result.normalized_ap[k, s] = aps(
                size_found == s, int(result.objects[k, s])
            )


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
