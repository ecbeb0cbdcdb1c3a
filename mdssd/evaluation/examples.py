"""Chooses the worst misses and the worst false detections, and draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mdssd.data import DetectionDataset
from mdssd.data.opened import opened
from mdssd.drawing import draw_detections, encode_image
from mdssd.evaluation.result import EvalData, EvalResult
from mdssd.metrics.boxes import check_images
from mdssd.metrics.errors import KINDS, TRUE_KIND
from mdssd.metrics.matching import TRUE, Matches, match

# The longer side of a picture in pixels. The page shows it at 260 or more.
_SIDE = 420
# A picture shows a square of this many times the subject's longer side, but at least _LEAST
# pixels of the image.
_SURROUNDINGS = 4.0
_LEAST = 64


@dataclass(frozen=True)
class Subject:
    """A box to show, and its caption.

    Attributes:
        image: the position of the image in the data set.
        box_xyxy: [4], in pixels of the image.
        caption: the first line below the picture.
        details: the second line.
        detection: the position among the image's detections. None for a missed object.
    """

    image: int
    box_xyxy: NDArray[np.float64]
    caption: str
    details: str
    detection: int | None = None


def misses(
    data: EvalData,
    classes: Sequence[str],
    count: int,
    score_threshold: float,
) -> list[Subject]:
    """Choose at most `count` objects that no detection with `score_threshold` or more matches.

    Objects that no detection matches come first, from the largest to the smallest. The others
    follow by ascending score. The classes take turns, and each image occurs at most once.
    """
    matches = _match(data, len(classes) + 1)
    boxes = np.concatenate([np.zeros((0, 4)), *(_array(t["boxes"]) for t in data.truth)])
    sides = boxes[:, 2:] - boxes[:, :2]
    score = np.full(len(boxes), -np.inf)
    true = np.flatnonzero(matches.verdict == TRUE)
    score[matches.nearest[true]] = matches.scores[true]
    missed = np.flatnonzero((score < score_threshold) & ~matches.gt_ignored)
    missed = missed[np.lexsort((-sides[missed].prod(axis=1), score[missed]))]
    subjects = []
    for n in _turns(missed, matches.gt_labels, matches.gt_images, count):
        name = classes[matches.gt_labels[n] - 1]
        how = f"found only with score {score[n]:.2f}"
        if score[n] == -np.inf:
            how = _nearest_try(matches, n)
        size = f"{sides[n, 0]:.0f} x {sides[n, 1]:.0f} pixels"
        subjects.append(
            Subject(int(matches.gt_images[n]), boxes[n], f"missed: {name}", f"{size}; {how}")
        )
    return subjects


def false_ones(data: EvalData, result: EvalResult, count: int) -> list[Subject]:
    """Choose at most `count` false detections, with the highest scores, one per image."""
    matches = _match(data, len(result.classes) + 1)
    kinds = np.full(len(matches.scores), TRUE_KIND)
    for rows, of_rows in zip(result.errors.rows, result.errors.kinds, strict=True):
        kinds[rows] = of_rows
    false = matches.order[kinds[matches.order] != TRUE_KIND]
    first = np.searchsorted(matches.images, np.arange(len(data.truth)))
    subjects = []
    for d in _one_an_image(false, matches.images, count):
        image = int(matches.images[d])
        own = int(d - first[image])
        details = KINDS[kinds[d]]
        if details == "localisation":
            again = " (a second detection)" if matches.iou[d] >= 0.5 else ""
            details += f": IoU {_cut(matches.iou[d])}{again}"
        subjects.append(
            Subject(
                image,
                _array(data.detections[image]["boxes"])[own],
                f"false: {result.classes[matches.labels[d] - 1]} {matches.scores[d]:.2f}",
                details,
                own,
            )
        )
    return subjects


def show(
    subject: Subject,
    data: EvalData,
    dataset: DetectionDataset,
    classes: Sequence[str],
    score_threshold: float,
) -> bytes:
    """Return a JPEG of the subject and its surroundings, with detections and ground truth.

    The picture shows the detections whose score is at least `score_threshold`, and the subject.
    """
    x1, y1, x2, y2 = subject.box_xyxy
    side = max(_LEAST, _SURROUNDINGS * max(x2 - x1, y2 - y1))
    with opened(dataset, subject.image) as image:
        height, width = image.shape[:2]
        left, right = _span((x1 + x2) / 2, side, width)
        top, bottom = _span((y1 + y2) / 2, side, height)
        crop = image[top:bottom, left:right]
    window = np.array([left, top, left, top])
    crop = _lit(crop, subject.box_xyxy - window)
    scale = _SIDE / max(crop.shape[:2])
    size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    way = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    canvas = cv2.resize(crop, size, interpolation=way).astype(np.uint8)

    detections = data.detections[subject.image]
    shown = np.asarray(detections["scores"]) >= score_threshold
    if subject.detection is not None:
        shown[subject.detection] = True
    boxes, kept = _inside((_array(detections["boxes"]) - window) * scale, shown, size)
    truth = _array(data.truth[subject.image]["boxes"])
    gt, _ = _inside((truth - window) * scale, np.ones(len(truth), np.bool_), size)
    drawn = draw_detections(
        canvas,
        boxes,
        np.asarray(detections["labels"])[kept],
        np.asarray(detections["scores"])[kept],
        classes,
        gt,
        min_side=1,
        legend=False,
    )
    return encode_image(drawn, ".jpg", quality=85, fine=False)


def _match(data: EvalData, num_classes: int) -> Matches:
    return match(check_images("report", data.detections, data.truth, num_classes), 0.5, True)


def _nearest_try(matches: Matches, n: int) -> str:
    """Describe the detection with the highest IoU with an object that none matches."""
    tries = np.flatnonzero(matches.nearest == n)
    if not tries.size or matches.iou[tries].max() <= 0:
        return "no detection of its class touches it"
    best = tries[matches.iou[tries].argmax()]
    return f"best IoU {_cut(matches.iou[best])}, with score {matches.scores[best]:.2f}"


def _cut(iou: float) -> str:
    # The IoU is rounded down: 0.496 must not read as 0.50, which would be a match.
    return f"{math.floor(100 * iou) / 100:.2f}"


def _turns(
    ranked: NDArray[np.int64], labels: NDArray[np.int64], images: NDArray[np.int64], count: int
) -> list[int]:
    """Take the first object of each class, then the second of each, at most one per image."""
    seen: dict[int, int] = {}
    turn = []
    for n in ranked.tolist():
        turn.append(seen.get(int(labels[n]), 0))
        seen[int(labels[n])] = turn[-1] + 1
    order = np.argsort(np.array(turn, np.int64), kind="stable")
    return _one_an_image(ranked[order], images, count)


def _one_an_image(ranked: NDArray[np.int64], images: NDArray[np.int64], count: int) -> list[int]:
    """Return the first entry of each image, at most `count`."""
    chosen: dict[int, int] = {}
    for n in ranked.tolist():
        if len(chosen) == count:
            break
        chosen.setdefault(int(images[n]), n)
    return list(chosen.values())


def _span(centre: float, side: float, length: int) -> tuple[int, int]:
    """Return the first and the end pixel of a window around a point, moved into the image."""
    side = min(round(side), length)
    start = min(max(round(centre - side / 2), 0), length - side)
    return start, start + side


def _lit(image: NDArray[np.uint8], box_xyxy: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return a copy of the image that is darkened except in the box and a margin around it."""
    x1, y1, x2, y2 = box_xyxy
    margin = 3 + 0.1 * max(x2 - x1, y2 - y1)
    left, top = (max(0, round(v - margin)) for v in (x1, y1))
    right, bottom = round(x2 + margin), round(y2 + margin)
    dark = (image * 0.6).astype(np.uint8)
    dark[top:bottom, left:right] = image[top:bottom, left:right]
    return dark


def _inside(
    boxes: NDArray[np.float64], shown: NDArray[np.bool_], size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the shown boxes that reach into the picture, clipped to it, and their positions."""
    clipped = np.clip(boxes, 0, np.array(size * 2))
    kept = np.flatnonzero(shown & ((clipped[:, 2:] - clipped[:, :2]) >= 2).all(axis=1))
    return clipped[kept], kept


def _array(boxes: Any) -> NDArray[np.float64]:
    return np.asarray(boxes, np.float64).reshape(-1, 4)
