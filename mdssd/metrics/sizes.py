"""Average precision by the size of the objects, after Hoiem et al."""

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
# Tenths of a class's objects that are of a smaller size or this one.
_UP_TO_TENTHS = (1, 3, 7, 9)
# Hoiem's tool takes this many objects per image in place of a class's own number of them.
_OBJECTS_PER_IMAGE = 0.15


@dataclass(frozen=True)
class SizeResult:
    """AP of each class (row k: label k + 1) and size (column: SIZES); NaN where no such object.

    `normalized_ap` is what the paper's Fig. 6 and Table IV show. `overall` is the normalised AP
    of all sizes together. `limits`: the greatest area of an XS, S, M and L, in square pixels.
    """

    ap: NDArray[np.float64]  # [num_classes - 1, 5]
    normalized_ap: NDArray[np.float64]  # [num_classes - 1, 5]
    overall: NDArray[np.float64]  # [num_classes - 1]
    objects: NDArray[np.int64]  # [num_classes - 1, 5]
    limits: NDArray[np.float64]  # [num_classes - 1, 4], NaN for a class without objects
    normal_objects: float

    @property
    def mean_ap(self) -> NDArray[np.float64]:
        """[5]: mean AP over the classes that have objects of a size."""
        return _mean_of_known(self.ap)

    @property
    def mean_normalized_ap(self) -> NDArray[np.float64]:
        """[5]: the same of normalised AP."""
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
    """AP of a class's extra-small, small, medium, large and extra-large objects.

    detections, ground_truth, plus_one: as for `voc_ap`; difficult objects and crowds are left out.
    normal_objects: N below; None: 0.15 times the number of images, as Hoiem et al. take it.

    The n objects of a class are ranked by the area of their boxes: XS are the bottom 10%, S the
    next 20%, M 40%, L 20%, XL the top 10%. The limits are the areas at ranks n/10, 3n/10, 7n/10
    and 9n/10, rounded (halves up); an object is of the smallest size whose limit it does not
    exceed, so equal areas are of one size, the smaller one. A limit at rank 0 lies below every
    object: with fewer than 5 none is XS (1: M. 2: S, L. 3: S, M, L. 4: S, M, M, L).

    Detections are judged as in `voc_ap`. For the AP of a size, true detections of other sizes
    are left out; false ones, which have no size, count against every size. AP is VOC's of 2012,
    over every step of recall. It is low for a size with few objects, as they stand among the
    false detections of all sizes. The normalised AP takes, at recall R,
        precision = R N / (R N + false detections)
    with the same N for every class and size in place of its own number of objects, so that sizes
    and classes can be compared; where a size has N objects, both are the same.
    No detections: AP 0. Raises ValueError on wrong shapes, labels, scores or thresholds.
    Source: Hoiem, Chodpathumwan, Dai, "Diagnosing error in object detectors", ECCV 2012, section
    3; MDSSD paper, section IV-A. Their tool lets a detection take the nearest object that is
    free; this follows VOC, where one whose nearest object is taken is false.
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
    """The size of each object of a class, 0 to 4, and the four limits."""
    ordered = np.sort(areas)
    ranks = [(tenths * len(areas) + 5) // 10 for tenths in _UP_TO_TENTHS]
    limits = np.array([ordered[rank - 1] if rank else -np.inf for rank in ranks])
    return (areas[:, None] > limits).sum(axis=1), limits


def _measure(result: SizeResult, k: int, matches: Matches, size: NDArray[np.int64]) -> None:
    """Fill in the APs of class k, which has objects."""
    rows = matches.counted(k + 1)
    true = matches.verdict[rows] == TRUE
    found = np.where(true, size[matches.nearest[rows]], -1)

    def areas(chosen: NDArray[np.bool_], objects: int) -> tuple[float, float]:
        kept = chosen | ~true
        tp = np.cumsum(chosen[kept])
        fp = np.cumsum(matches.verdict[rows[kept]] == FALSE)
        weight = result.normal_objects / objects
        return all_points(tp, fp, objects), all_points(tp, fp, objects, weight)

    result.overall[k] = areas(true, int(result.objects[k].sum()))[1]
    for s in range(5):
        if result.objects[k, s]:
            result.ap[k, s], result.normalized_ap[k, s] = areas(
                found == s, int(result.objects[k, s])
            )


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
