"""One image with its ground truth, as data sets store it and return it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """A fault in a user's data. The message names the file and the reason.

    Example:
        >>> from mdssd.data import DataError, read_image
        >>> try:
        ...     read_image("missing.png")
        ... except DataError as error:
        ...     print(error)
        missing.png: cannot be read (No such file or directory)
    """


@dataclass
class Sample:
    """One image and its ground truth, M boxes.

    Attributes:
        image: uint8 [H, W, 3], RGB. [0, 0, 3] if only the annotation was read.
        boxes_xyxy: float32 [M, 4], in pixels, as annotated. M may be 0.
        labels: int64 [M], 1 to the number of classes (0 is the background).
        difficult: bool [M]. Evaluation ignores these boxes, training uses them.
        image_id: the image's name in its data set.
        crowd: bool [M], boxes around a group of objects. Training leaves them out. Default: False.
        area: float32 [M], square pixels. Default: the area of the box. COCO states the area of
            the object's mask instead.

    Raises:
        ValueError: an array does not have one entry per box.

    Example:
        >>> import numpy as np
        >>> from mdssd.data import Sample
        >>> image = np.zeros((60, 80, 3), np.uint8)
        >>> boxes_xyxy = np.array([[10, 10, 30, 20]], np.float32)
        >>> sample = Sample(image, boxes_xyxy, np.array([1]), np.array([False]), "first")
        >>> sample.area.tolist(), sample.crowd.tolist()
        ([200.0], [False])
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    image_id: str
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    area: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        boxes = len(self.boxes_xyxy)
        if not len(self.crowd):
            self.crowd = np.zeros(boxes, bool)
        if not len(self.area):
            self.area = np.prod(self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2], axis=1)
        for name in ("labels", "difficult", "crowd", "area"):
            if len(getattr(self, name)) != boxes:
                raise ValueError(
                    f"Sample: {name}: expected {boxes} entries, one per box, "
                    f"got {len(getattr(self, name))}"
                )


NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


class BoxRow(NamedTuple):
    """One annotated box, with the values that its file states.

    area None: that of the box. where: the file and line, for messages; "": that of the annotation.
    """

    box_xyxy: tuple[float, float, float, float]
    label: int
    difficult: bool = False
    crowd: bool = False
    area: float | None = None
    where: str = ""


# More boxes in one image are damage: no network finds a hundredth of them.
MAX_BOXES = 20_000


class Annotation:
    """The usable boxes of one image, as a data set keeps them in memory.

    A box that is not finite, has no area or lies completely outside the image is left out, and
    a line "where: reason" is added to `dropped`.

    Args:
        rows: the boxes as the file states them.
        size: (width, height) of the image, or None if it is unknown.
        where: the file, for messages.
        dropped: receives the lines about boxes that were left out.
        relative: whether the file states fractions of the image's width and height. Otherwise a
            box of less than a pixel in the first pixel is left out, since it probably does, too.

    Raises:
        DataError: there are more than 20,000 boxes.
    """

    def __init__(
        self,
        rows: list[BoxRow],
        size: tuple[int, int] | None,
        where: str,
        dropped: list[str],
        relative: bool = False,
    ) -> None:
        if len(rows) > MAX_BOXES:
            raise DataError(
                f"{where}: has {len(rows):,} boxes, expected at most {MAX_BOXES:,} in an image"
            )
        with np.errstate(over="ignore"):
            boxes_xyxy = np.array([row.box_xyxy for row in rows], np.float32).reshape(-1, 4)
        reasons = [box_fault(box_xyxy, size, relative) for box_xyxy in boxes_xyxy.tolist()]
        kept = rows
        if any(reasons):
            kept = [row for row, reason in zip(rows, reasons, strict=True) if not reason]
            boxes_xyxy = boxes_xyxy[[not reason for reason in reasons]]
            dropped += [
                f"{row.where or where}: box ({', '.join(f'{v:g}' for v in row.box_xyxy)}) {reason}"
                for row, reason in zip(rows, reasons, strict=True)
                if reason
            ]
        self.boxes_xyxy = boxes_xyxy
        self.labels = np.array([row.label for row in kept], np.int64)
        self.difficult = np.array([row.difficult for row in kept], bool)
        self.crowd = np.array([row.crowd for row in kept], bool)
        self.area = np.prod(self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2], axis=1)
        for k, row in enumerate(kept):
            if row.area is not None:
                self.area[k] = row.area

    def merge(self, other: Annotation) -> int:
        """Add the boxes of another annotation that this one has not. Return how many they are.

        A box is the same if its corners, label and flags are.
        """
        own = set(self._keys())
        new = [key not in own for key in other._keys()]
        for name in ("boxes_xyxy", "labels", "difficult", "crowd", "area"):
            both = [getattr(self, name), getattr(other, name)[new]]
            setattr(self, name, np.concatenate(both))
        return sum(new)

    def _keys(self) -> list[tuple[object, ...]]:
        columns = (self.labels, self.difficult, self.crowd)
        rows = zip(self.boxes_xyxy.tolist(), *(column.tolist() for column in columns), strict=True)
        return [(*box, *rest) for box, *rest in rows]

    def sample(self, image: np.ndarray, image_id: str) -> Sample:
        """Return a Sample whose arrays are copies, so that no caller can change the data set."""
        return Sample(
            image,
            self.boxes_xyxy.copy(),
            self.labels.copy(),
            self.difficult.copy(),
            image_id,
            self.crowd.copy(),
            self.area.copy(),
        )


def box_fault(
    box_xyxy: Sequence[float], size: tuple[int, int] | None, relative: bool = False
) -> str:
    """Return why a box cannot be used; "" if it can.

    Args:
        box_xyxy: in pixels, rounded to float32, as stored.
        size: (width, height) of the image, or None if it is unknown.
        relative: whether its file states fractions of the width and height.
    """
    x1, y1, x2, y2 = box_xyxy
    if not all(map(math.isfinite, box_xyxy)):
        return "is not finite"
    if x2 <= x1 or y2 <= y1:
        return "has no area"
    if x2 <= 0 or y2 <= 0:
        return "lies outside the image"
    if not relative and x2 <= 1 and y2 <= 1 and (x2 - x1 < 1 or y2 - y1 < 1):
        return "is less than a pixel: coordinates from 0 to 1? Expected pixels"
    if size is not None and (x1 >= size[0] or y1 >= size[1]):
        return f"lies outside the image of {size[0]} x {size[1]}"
    return ""


def box_around(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the box around points, one or more; of NaN if one of them is, which min would hide.

    Example:
        >>> from mdssd.data.sample import box_around
        >>> box_around([3, 1, 2], [5, 9, 7])
        (1, 5, 3, 9)
    """
    if any(math.isnan(value) for value in (*xs, *ys)):
        return math.nan, math.nan, math.nan, math.nan
    return min(xs), min(ys), max(xs), max(ys)
