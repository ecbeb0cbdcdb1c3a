"""Finds places for the tags of boxes, so that they hide little and never overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont


@dataclass(frozen=True)
class Style:
    """The width of a picture's lines and the font of its texts, in pixels."""

    line: int
    font: ImageFont.FreeTypeFont

    @property
    def pad(self) -> int:
        """The space at the left and right of a text."""
        return max(2, round(self.font.size / 5))

    @property
    def dash(self) -> int:
        """The width of a dashed line."""
        return max(2, 2 * self.line // 3)

    @property
    def tag_height(self) -> int:
        """The height of every tag."""
        ascent, descent = self.font.getmetrics()
        return ascent + descent + 2

    def tag_width(self, text: str) -> int:
        """Return the width of a tag with this text."""
        return round(self.font.getlength(text)) + 2 * self.pad


@dataclass(frozen=True)
class Tag:
    """A text and the rectangle that it takes; the right and lower edges are excluded."""

    text: str
    x1: int
    y1: int
    x2: int
    y2: int


@lru_cache(maxsize=8)
def tag_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of the texts."""
    # Matplotlib contains DejaVu Sans, which has Greek, Cyrillic and accents. OpenCV's font has not.
    # Importing Matplotlib would take time and write into the home folder.
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ImportError("draw_detections needs matplotlib, whose font it draws with")
    fonts = Path(spec.origin).with_name("mpl-data") / "fonts" / "ttf"
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", size)


def whole_pixels(box: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Return a box in whole pixels, with both corners inside it; it has at least one pixel."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def place_tags(
    boxes: NDArray[np.float64],
    texts: Sequence[tuple[str, str]],
    size: tuple[int, int],
    style: Style,
) -> list[Tag | None]:
    """Find a place for the tag of each box, in their order; None if there is no room."""
    tags: list[Tag | None] = []
    taken = np.zeros((0, 4))
    for k, box in enumerate(boxes):
        others = np.delete(boxes, k, axis=0)
        tag = next(
            (
                found
                for text, hide in zip(texts[k], (0.25, 0.45), strict=True)
                if (found := _place_tag(box, text, others, taken, size, style, hide))
            ),
            None,
        )
        tags.append(tag)
        if tag:
            taken = np.vstack([taken, (tag.x1, tag.y1, tag.x2, tag.y2)])
    return tags


def _place_tag(
    box: NDArray[np.float64],
    text: str,
    others: NDArray[np.float64],
    taken: NDArray[np.float64],
    size: tuple[int, int],
    style: Style,
    hide: float,
) -> Tag | None:
    """Return the tag at the place that hides least of other objects and no other tag.

    Ties go to the first of the usual places. `hide` is the fraction of another object that the tag
    may cover.
    """
    x1, y1, x2, y2 = whole_pixels(box)
    w, h = style.tag_width(text), style.tag_height
    if w > size[0] or h > size[1]:
        return None
    above, below, gap = y1 - h - 1, y2 + 2, style.line
    spots = [
        (x1 - 1, above),
        (x2 + 2 - w, above),
        (x1 - 1, below),
        (x2 + 2 - w, below),
        (x2 + 2, y1 - 1),
        (x1 - 1 - w, y1 - 1),
        (x2 + 2, y2 + 2 - h),
        (x1 - 1 - w, y2 + 2 - h),
    ]
    if x2 - x1 >= 1.5 * w and y2 - y1 >= 3 * h:
        spots += [(x1 + gap + 1, y1 + gap + 1), (x1 + gap + 1, y2 - gap - h)]
    best, least = None, float("inf")
    for preference, (x, y) in enumerate(spots):
        # A tag may slide sideways into the picture, as long as it still touches its box.
        x = min(max(x, 0), size[0] - w)
        if y < 0 or y + h > size[1]:
            continue
        spot = np.array([x, y, x + w, y + h], np.float64)
        if (shared_area(spot, taken) > 0).any() or _covers_own(spot, (x1, y1, x2, y2), preference):
            continue
        area = np.maximum((others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1]), 1.0)
        hidden = shared_area(spot, others) / area
        if hidden.max(initial=0.0) > hide:
            continue
        cost = hidden.sum() + 0.01 * preference
        if cost < least:
            best, least = Tag(text, x, y, x + w, y + h), cost
    return best


def _covers_own(spot: NDArray[np.float64], rect: tuple[int, int, int, int], number: int) -> bool:
    """Whether the picture's edge has pushed a place beside the box onto the box."""
    return number < 8 and bool(shared_area(spot, np.array([rect], np.float64))[0] > 0)


def shared_area(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area that rectangle a [4] shares with each rectangle of b [N, 4]."""
    w = np.minimum(a[2], b[:, 2]) - np.maximum(a[0], b[:, 0])
    h = np.minimum(a[3], b[:, 3]) - np.maximum(a[1], b[:, 1])
    shared: NDArray[np.float64] = np.maximum(w, 0.0) * np.maximum(h, 0.0)
    return shared
