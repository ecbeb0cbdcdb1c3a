"""What a data set hands out: one photograph with its annotated boxes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """A fault in a user's data. The message names the file and the reason."""


@dataclass
class Sample:
    """One image and its ground truth.

    image: uint8 [H, W, 3] RGB; [0, 0, 3] where only the annotation was asked for.
    boxes_xyxy: float32 [M, 4], pixels of the image as annotated; M may be 0.
    labels: int64 [M], 1-based (0 is background). difficult, crowd: bool [M]; crowd defaults to
    False. area: float32 [M] square pixels, of the mask where the annotation states it (COCO);
    defaults to that of the box.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    image_id: str
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    area: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        count = len(self.boxes_xyxy)
        if not len(self.crowd):
            self.crowd = np.zeros(count, bool)
        if not len(self.area):
            self.area = np.prod(self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2], axis=1)
        for name in ("labels", "difficult", "crowd", "area"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"Sample: {name}: expected {count} entries, one per box, "
                    f"got {len(getattr(self, name))}"
                )


NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


class BoxRow(NamedTuple):
    """One annotated box as it stands in the file. area: None for that of the box."""

    box_xyxy: tuple[float, float, float, float]
    label: int
    difficult: bool = False
    crowd: bool = False
    area: float | None = None


class Annotation:
    """The usable boxes of one image, as a data set keeps them in memory.

    rows: the boxes as written. size: (width, height) of the image, None if unknown. A box that
    is not finite, has no area or lies wholly outside the image is left out, and a line
    "where: reason" goes to `dropped`.
    """

    def __init__(
        self, rows: list[BoxRow], size: tuple[int, int] | None, where: str, dropped: list[str]
    ) -> None:
        kept = []
        for row in rows:
            reason = box_fault(row.box_xyxy, size)
            if reason is None:
                kept.append(row)
            else:
                dropped.append(f"{where}: {reason}")
        self.boxes_xyxy = np.array([row.box_xyxy for row in kept], np.float32).reshape(-1, 4)
        self.labels = np.array([row.label for row in kept], np.int64)
        self.difficult = np.array([row.difficult for row in kept], bool)
        self.crowd = np.array([row.crowd for row in kept], bool)
        self.area = np.prod(self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2], axis=1)
        for k, row in enumerate(kept):
            if row.area is not None:
                self.area[k] = row.area

    def sample(self, image: np.ndarray, image_id: str) -> Sample:
        """A Sample with arrays of its own, so that no caller can change the data set."""
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
    box_xyxy: tuple[float, float, float, float], size: tuple[int, int] | None
) -> str | None:
    """Why a box cannot be used, or None. It is judged in float32, as it will be kept."""
    with np.errstate(over="ignore"):
        values = np.array(box_xyxy, np.float32)
    text = "(" + ", ".join(f"{v:g}" for v in box_xyxy) + ")"
    if not np.isfinite(values).all():
        return f"box {text} is not finite"
    x1, y1, x2, y2 = values.tolist()
    if x2 <= x1 or y2 <= y1:
        return f"box {text} has no area"
    if x2 <= 0 or y2 <= 0:
        return f"box {text} lies outside the image"
    if size is not None and (x1 >= size[0] or y1 >= size[1]):
        return f"box {text} lies outside the image of {size[0]} x {size[1]}"
    return None
