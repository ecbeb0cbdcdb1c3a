"""What false detections are: badly placed, a similar class, another class, or nothing at all."""

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
# Hoiem et al., section 2: classes of VOC that are alike.
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
    """The counted detections of each class (position k: label k + 1) by falling score.

    rows[k]: their numbers, over all images in order. kinds[k]: TRUE_KIND, or the position in KINDS
    of what is wrong. objects: how many each class has, difficult ones left out.
    """

    rows: tuple[NDArray[np.int64], ...]
    kinds: tuple[NDArray[np.int64], ...]
    objects: NDArray[np.int64]  # [num_classes - 1]

    def counts(self, top: int | None = None) -> NDArray[np.int64]:
        """[num_classes - 1, 5]: true ones, then those of each of KINDS, among a class's first.

        top: how many are looked at; None: as many as the class has objects (Hoiem et al.), with
        which a perfect detector would have found all. A class may have fewer.
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
    """Say of every false detection what is wrong with it.

    detections, ground_truth, iou_threshold, plus_one: as for `voc_ap`, which also says what is
    false. similar: groups of labels that are alike; a label may be in several, or in none.

    The first of these that holds:
    localisation: IoU with an object of its class is background_iou or more (below iou_threshold,
        or a second detection of an object);
    similar: the same with an object of a class in a group with its own;
    other: the same with an object of any other class;
    background: the rest.
    Difficult objects and crowds count as objects here. Ignored detections are left out.
    Raises ValueError on wrong shapes, labels, scores, thresholds or groups.
    Source: Hoiem, Chodpathumwan, Dai, "Diagnosing error in object detectors", ECCV 2012, section 2.
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
    """Groups of names as labels (label k is classes[k - 1]), for `false_positives`.

    groups: None takes VOC_GROUPS where all the classes are VOC's, and otherwise no group.
    Raises ValueError for a name in `groups` that is not among the classes.
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
    """[num_classes, num_classes]: whether two different labels are in a group."""
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
    """[D] each: whether a detection lies on an object of a similar class, or of another."""
    on_similar, on_other = [], []
    for image in images:
        touches = box_iou(image.boxes_xyxy, image.gt_xyxy, plus_one) >= background_iou  # [D, M]
        similar = alike[image.labels[:, None], image.gt_labels[None, :]]
        other = image.labels[:, None] != image.gt_labels[None, :]
        on_similar.append(np.any(touches & similar, axis=1))
        on_other.append(np.any(touches & other, axis=1))
    return cat(on_similar, np.bool_), cat(on_other, np.bool_)
