"""The kinds of false detections: localisation, similar class, other class, background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdssd.metrics.boxes import ImageBoxes, check_images, check_iou_threshold
from mdssd.metrics.matching import FALSE, box_iou, cat, match

KINDS = ("localisation", "similar", "other", "background")
TRUE_KIND = -1
# Classes of VOC that are alike: Hoiem et al., section 2.
VOC_GROUPS = (
    ("bird", "cat", "cow", "dog", "horse", "person", "sheep"),
    ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
    ("chair", "diningtable", "sofa"),
    ("aeroplane", "bird"),
)
_VOC_CLASSES = {name for group in VOC_GROUPS for name in group} | {
    "bottle",
    "pottedplant",
    "tvmonitor",
}


@dataclass(frozen=True)
class FalsePositives:
    """The kind of each detection. Position k of every attribute is the class with label k + 1.

    Attributes:
        rows: for each class, its detections that are not ignored, by falling score, as numbers
            that count the detections of all images.
        kinds: for each of these, -1 if it is true, else 0 localisation, 1 similar, 2 other,
            3 background.
        objects: [num_classes - 1], the number of objects that are not difficult.

    Example:
        >>> from mdssd.metrics import false_positives
        >>> result = false_positives(
        ...     [{"boxes": [[0, 0, 9, 9], [50, 0, 59, 9]], "scores": [0.9, 0.8], "labels": [1, 1]}],
        ...     [{"boxes": [[0, 0, 9, 9]], "labels": [1]}], 2)
        >>> result.kinds[0].tolist(), result.counts().tolist()
        ([-1, 3], [[1, 0, 0, 0, 0]])
    """

    rows: tuple[NDArray[np.int64], ...]
    kinds: tuple[NDArray[np.int64], ...]
    objects: NDArray[np.int64]

    def counts(self, top: int | None = None) -> NDArray[np.int64]:
        """Count the kinds of each class's highest-scoring detections.

        Args:
            top: the number of detections per class; a class may have fewer. None: as many as the
                class has objects (Hoiem et al.), all of which a perfect detector would find.

        Returns:
            [num_classes - 1, 5]: true, localisation, similar, other, background.

        Raises:
            ValueError: `top` is negative.
        """
        if top is not None and top < 0:
            raise ValueError(f"FalsePositives.counts: top: expected 0 or more, got {top}")
        first = self.objects if top is None else np.full(len(self.kinds), top)
        counts = [
            np.bincount(kinds[:n] + 1, minlength=5)
            for kinds, n in zip(self.kinds, first, strict=True)
        ]
        return np.array(counts, np.int64).reshape(-1, 5)


def false_positives(
    detections: Sequence[Mapping[str, Any]],
    ground_truth: Sequence[Mapping[str, Any]],
    num_classes: int,
    *,
    similar: Sequence[Sequence[int]] = (),
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
    plus_one: bool = True,
) -> FalsePositives:
    """Classify every false detection by its error.

    The kind of a false detection is the first of these that applies:

    - localisation: its IoU with an object of its class is at least background_iou. It is below
      iou_threshold, or another detection has found the object.
    - similar: the same with an object of a class that is in a group with its own.
    - other: the same with an object of any other class.
    - background: everything else.

    Difficult objects and crowds count as objects here. Detections that `voc_ap` ignores are left
    out.

    Args:
        detections: boxes, scores and labels of each image; see `mdssd.metrics`.
        ground_truth: boxes and labels of each image, and optional flags.
        num_classes: the number of classes including the background.
        similar: groups of labels that are alike; see `similar_labels`. Groups may overlap.
        iou_threshold: the least IoU of a true detection; see `voc_ap`.
        background_iou: the least IoU of a detection that is not background.
        plus_one: widths are x2 - x1 + 1; see `voc_ap`.

    Returns:
        The kind of each detection, by class.

    Raises:
        ValueError: an argument is not as described.

    Source: Hoiem, Chodpathumwan, Dai, "Diagnosing error in object detectors", ECCV 2012, section 2.

    Example:
        >>> from mdssd.metrics import false_positives
        >>> detections = [{"boxes": [[0, 0, 9, 9], [5, 0, 14, 9]], "scores": [0.9, 0.8],
        ...                "labels": [1, 1]}]
        >>> ground_truth = [{"boxes": [[0, 0, 9, 9]], "labels": [1]}]
        >>> false_positives(detections, ground_truth, 2).counts(top=10).tolist()
        [[1, 1, 0, 0, 0]]
    """
    check_iou_threshold("false_positives", iou_threshold)
    if not 0 < background_iou <= iou_threshold:
        raise ValueError(
            "false_positives: background_iou: expected more than 0 and at most iou_threshold "
            f"({iou_threshold}), got {background_iou}"
        )
    images = check_images("false_positives", detections, ground_truth, num_classes)
    alike = _alike(similar, num_classes)
    matches = match(images, iou_threshold, plus_one)
    on_similar, on_other = _elsewhere(images, alike, background_iou, plus_one)
    kinds = np.select(
        [matches.verdict != FALSE, matches.iou >= background_iou, on_similar, on_other],
        [TRUE_KIND, KINDS.index("localisation"), KINDS.index("similar"), KINDS.index("other")],
        KINDS.index("background"),
    )
    labels = range(1, num_classes)
    rows = tuple(matches.counted(label) for label in labels)
    objects = np.bincount(matches.gt_labels[~matches.gt_ignored], minlength=num_classes)[1:]
    return FalsePositives(rows, tuple(kinds[r] for r in rows), objects)


def similar_labels(
    classes: Sequence[str], groups: Sequence[Sequence[str]] | None = None
) -> list[list[int]]:
    """Convert groups of class names to groups of labels, for `false_positives`.

    Args:
        classes: class names; label k is classes[k - 1].
        groups: groups of names that are alike. None: those of Hoiem et al. if all classes are
            VOC's, else no groups.

    Returns:
        The labels of each group, without groups of a single class.

    Raises:
        ValueError: a name in `groups` is not in `classes`.

    Example:
        >>> from mdssd.metrics import similar_labels
        >>> similar_labels(["van", "car", "tree"], [["car", "van"]])
        [[2, 1]]
    """
    if groups is None:
        groups = VOC_GROUPS if set(classes) <= _VOC_CLASSES else ()
        groups = [[name for name in group if name in classes] for group in groups]
    label_of = {name: label for label, name in enumerate(classes, 1)}
    for name in (name for group in groups for name in group):
        if name not in label_of:
            raise ValueError(
                f"similar_labels: groups: {name!r} is not among the classes {', '.join(classes)}"
            )
    return [[label_of[name] for name in group] for group in groups if len(group) > 1]


def _alike(groups: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.bool_]:
    """Return [num_classes, num_classes]: whether two different labels are in the same group."""
    alike = np.zeros((num_classes, num_classes), np.bool_)
    for group in groups:
        labels = np.asarray(group, np.int64).reshape(-1)
        if labels.size and not (1 <= labels.min() and labels.max() < num_classes):
            raise ValueError(
                f"false_positives: similar: expected labels 1 to {num_classes - 1}, "
                f"got {list(group)}"
            )
        alike[np.ix_(labels, labels)] = True
    np.fill_diagonal(alike, False)
    return alike


def _elsewhere(
    images: Sequence[ImageBoxes],
    alike: NDArray[np.bool_],
    background_iou: float,
    plus_one: bool,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return [D] each: whether a detection overlaps an object of a similar, of any other class."""
    on_similar, on_other = [], []
    for image in images:
        touches = box_iou(image.boxes_xyxy, image.gt_xyxy, plus_one) >= background_iou  # [D, M]
        similar = alike[image.labels[:, None], image.gt_labels[None, :]]
        other = image.labels[:, None] != image.gt_labels[None, :]
        on_similar.append(np.any(touches & similar, axis=1))
        on_other.append(np.any(touches & other, axis=1))
    return cat(on_similar, np.bool_), cat(on_other, np.bool_)
