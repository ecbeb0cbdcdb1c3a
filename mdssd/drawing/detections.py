"""Draws detections on an image: boxes, tags with class and score, and a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

# Colours that differ from each other and from skin, soil, grass, sky and asphalt. Further classes
# step round the colour wheel by the golden angle, which never nearly repeats a hue.
_PALETTE: tuple[Color, ...] = (
    (255, 140, 0),
    (0, 200, 255),
    (255, 70, 200),
    (150, 230, 30),
    (255, 225, 50),
    (120, 110, 255),
    (255, 75, 65),
    (30, 215, 150),
    (215, 165, 255),
    (190, 125, 60),
)
_BLACK: Color = (0, 0, 0)
_WHITE: Color = (255, 255, 255)
_PAPER: Color = (24, 24, 24)
_LONGEST_SIDE = 4096


def class_color(label: int) -> Color:
    """Return the RGB colour of a label, which counts from 1."""
    if label <= len(_PALETTE):
        return _PALETTE[label - 1]
    k = label - len(_PALETTE)
    r, g, b = colorsys.hsv_to_rgb((k * 0.381966) % 1.0, (0.55, 0.85)[k % 2], (1.0, 0.8)[k // 2 % 2])
    return round(r * 255), round(g * 255), round(b * 255)


def draw_detections(
    image: NDArray[np.uint8],
    boxes_xyxy: Any,
    labels: Any,
    scores: Any,
    classes: Sequence[str],
    gt: Any = None,
    *,
    min_side: int = 900,
    legend: bool = True,
) -> NDArray[np.uint8]:
    """Draw boxes, tags such as "car 0.87", and a legend in a strip below, on a copy of an image.

    Where objects are crowded, a tag is placed beside, below or inside its box, is shortened to the
    score or, as the last resort, is left out: the colour and the legend still tell the class. Tags
    never overlap.

    Args:
        image: uint8 [H, W, 3] RGB. It is not changed.
        boxes_xyxy: [K, 4] in pixels of the image, an array or a tensor. K may be 0. Boxes are
            clipped to the image.
        labels: [K], from 1.
        scores: [K], or None for tags with the class alone.
        classes: names of labels 1, 2 ...
        gt: [M, 4] xyxy of the ground truth, drawn as thin dashed white boxes; None if unknown.
        min_side: an image whose shorter side is below this is enlarged to it, so that tags on
            objects of 20 pixels can be read. The longer side stays below 4096 pixels.
        legend: whether to add the strip.

    Returns:
        uint8 RGB of the enlarged size, plus the strip.

    Raises:
        ValueError: a shape, a label or a number does not fit.

    Example:
        >>> import numpy as np
        >>> from mdssd.drawing import draw_detections
        >>> photo = np.zeros((300, 400, 3), np.uint8)
        >>> boxes = [[10, 10, 60, 60]]
        >>> draw_detections(photo, boxes, [1], [0.87], ["car"], legend=False).shape
        (900, 1200, 3)
    """
    found = _checked(image, boxes_xyxy, labels, scores, classes)
    truth = None if gt is None else _boxes("gt", gt)
    height, width = image.shape[:2]
    scale = min(min_side / min(height, width), _LONGEST_SIDE / max(height, width))
    if scale > 1:
        size = (round(width * scale), round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    canvas = Image.fromarray(image)
    stretch = np.array([canvas.width / width, canvas.height / height] * 2)
    edge = np.array(canvas.size * 2, np.float64)
    found = found._replace(boxes=np.clip(found.boxes * stretch, 0, edge))
    truth = None if truth is None else np.clip(truth * stretch, 0, edge)
    short = min(canvas.size)
    style = _Style(line=max(2, round(short / 300)), font=_font(max(13, round(short / 56))))
    _draw(canvas, found, truth, classes, style)
    if legend:
        canvas = _with_legend(canvas, found.labels, classes, truth, style)
    return np.array(canvas)


class _Boxes(NamedTuple):
    """Detections, checked: float64 [K, 4], int64 [K], and float64 [K] or None."""

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64] | None


def _checked(
    image: NDArray[np.uint8], boxes_xyxy: Any, labels: Any, scores: Any, classes: Sequence[str]
) -> _Boxes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            "draw_detections: image: expected a non-empty uint8 array [H, W, 3], "
            f"got {image.dtype} {list(image.shape)}"
        )
    boxes = _boxes("boxes_xyxy", boxes_xyxy)
    names = np.asarray(labels).reshape(-1).astype(np.int64)
    values = None if scores is None else np.asarray(scores, np.float64).reshape(-1)
    count = len(names) if values is None else len(values)
    if not len(boxes) == len(names) == count:
        raise ValueError(
            "draw_detections: expected as many labels and scores as boxes, "
            f"got {len(names)} and {count} for {len(boxes)}"
        )
    if len(names) and not (1 <= names.min() and names.max() <= len(classes)):
        raise ValueError(
            f"draw_detections: labels: expected 1 to {len(classes)}, "
            f"got {names.min()} to {names.max()}"
        )
    return _Boxes(boxes, names, values)


def _draw(
    canvas: Image.Image,
    found: _Boxes,
    truth: NDArray[np.float64] | None,
    classes: Sequence[str],
    style: _Style,
) -> None:
    """Draw the boxes, the best on top, then the ground truth, then the tags."""
    pen = ImageDraw.Draw(canvas)
    boxes, labels, scores = found
    rank = np.zeros(len(boxes)) if scores is None else -scores
    order = np.argsort(rank, kind="stable")
    for k in order[::-1]:
        _box(pen, boxes[k], class_color(int(labels[k])), style.line)
    for box in truth if truth is not None else ():
        _dashed_box(pen, box, max(1, style.line // 3))
    texts = [(classes[labels[k] - 1],) * 2 for k in order]
    if scores is not None:
        texts = [
            (f"{text} {scores[k]:.2f}", f"{scores[k]:.2f}")
            for (text, _), k in zip(texts, order, strict=True)
        ]
    for k, tag in zip(order, _place_tags(boxes[order], texts, canvas.size, style), strict=True):
        if tag is not None:
            _tag(pen, tag, class_color(int(labels[k])), style)


@dataclass(frozen=True)
class _Style:
    line: int
    font: ImageFont.FreeTypeFont

    @property
    def pad(self) -> int:
        return max(2, round(self.font.size / 5))

    @property
    def tag_height(self) -> int:
        ascent, descent = self.font.getmetrics()
        return ascent + descent + 2

    def tag_width(self, text: str) -> int:
        return round(self.font.getlength(text)) + 2 * self.pad


@dataclass(frozen=True)
class _Tag:
    text: str
    x1: int
    y1: int
    x2: int
    y2: int


def _boxes(argument: str, boxes_xyxy: Any) -> NDArray[np.float64]:
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"draw_detections: {argument}: expected [N, 4] xyxy, got {list(boxes.shape)}"
        )
    if not np.isfinite(boxes).all():
        raise ValueError(f"draw_detections: {argument}: expected finite numbers")
    return boxes


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib contains DejaVu Sans, which has Greek, Cyrillic and accents. OpenCV's font has not.
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _rect(box: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Return a box in whole pixels, with both corners inside it; it has at least one pixel."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def _box(pen: ImageDraw.ImageDraw, box: NDArray[np.float64], color: Color, line: int) -> None:
    x1, y1, x2, y2 = _rect(box)
    line = max(1, min(line, (x2 - x1) // 6, (y2 - y1) // 6))
    # Dark lines on both sides keep the colour visible on a background of the same colour.
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_BLACK)
    if min(x2 - x1, y2 - y1) > 2 * line + 2:
        pen.rectangle((x1 + line, y1 + line, x2 - line, y2 - line), outline=_BLACK)
    pen.rectangle((x1, y1, x2, y2), outline=color, width=line)


def _dashed_box(pen: ImageDraw.ImageDraw, box: NDArray[np.float64], line: int) -> None:
    x1, y1, x2, y2 = _rect(box)
    for ends in ((x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1)):
        _dashes(pen, ends, line)


def _dashes(pen: ImageDraw.ImageDraw, ends: tuple[int, int, int, int], line: int) -> None:
    """Draw a straight line of white dashes with black between them."""
    x1, y1, x2, y2 = ends
    dash = 3 * line + 3
    length = abs(x2 - x1) + abs(y2 - y1)
    dx, dy = int(np.sign(x2 - x1)), int(np.sign(y2 - y1))
    for number, start in enumerate(range(0, length + 1, dash)):
        end = min(start + dash - 1, length)
        a, b = (x1 + dx * start, y1 + dy * start), (x1 + dx * end, y1 + dy * end)
        pen.line((a, b), fill=_BLACK if number % 2 else _WHITE, width=line)


def _place_tags(
    boxes: NDArray[np.float64],
    texts: Sequence[tuple[str, str]],
    size: tuple[int, int],
    style: _Style,
) -> list[_Tag | None]:
    """Find a place for the tag of each box, in their order; None if there is no room."""
    tags: list[_Tag | None] = []
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
    style: _Style,
    hide: float,
) -> _Tag | None:
    """Return the tag at the place that hides least of other objects and no other tag.

    Ties go to the first of the usual places. `hide` is the fraction of another object that the tag
    may cover.
    """
    x1, y1, x2, y2 = _rect(box)
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
        if (_shared(spot, taken) > 0).any() or _covers_own(spot, (x1, y1, x2, y2), preference):
            continue
        area = np.maximum((others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1]), 1.0)
        hidden = _shared(spot, others) / area
        if hidden.max(initial=0.0) > hide:
            continue
        cost = hidden.sum() + 0.01 * preference
        if cost < least:
            best, least = _Tag(text, x, y, x + w, y + h), cost
    return best


def _covers_own(spot: NDArray[np.float64], rect: tuple[int, int, int, int], number: int) -> bool:
    """Whether the picture's edge has pushed a place beside the box onto the box."""
    return number < 8 and bool(_shared(spot, np.array([rect], np.float64))[0] > 0)


def _shared(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area that rectangle a [4] shares with each rectangle of b [N, 4]."""
    w = np.minimum(a[2], b[:, 2]) - np.maximum(a[0], b[:, 0])
    h = np.minimum(a[3], b[:, 3]) - np.maximum(a[1], b[:, 1])
    shared: NDArray[np.float64] = np.maximum(w, 0.0) * np.maximum(h, 0.0)
    return shared


def _tag(pen: ImageDraw.ImageDraw, tag: _Tag, color: Color, style: _Style) -> None:
    pen.rectangle((tag.x1, tag.y1, tag.x2 - 1, tag.y2 - 1), fill=color)
    pen.text((tag.x1 + style.pad, tag.y1 + 1), tag.text, fill=_ink(color), font=style.font)


def _ink(color: Color) -> Color:
    """Return black or white, whichever contrasts more (relative luminance of WCAG 2)."""
    r, g, b = ((c / 255) ** 2.2 for c in color)
    return _BLACK if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else _WHITE


def _with_legend(
    canvas: Image.Image,
    names: NDArray[np.int64],
    classes: Sequence[str],
    truth: NDArray[np.float64] | None,
    style: _Style,
) -> Image.Image:
    """Add a strip below: the colour, name and number of each class, and the ground truth."""
    present, counts = np.unique(names, return_counts=True)
    entries: list[tuple[str, Color | None]] = [
        (f"{classes[k - 1]}: {n}", class_color(int(k)))
        for k, n in zip(present.tolist(), counts.tolist(), strict=True)
    ]
    if truth is not None:
        entries.append((f"ground truth: {len(truth)}", None))
    if not len(names):
        entries.insert(0, ("no detections", _PAPER))

    swatch, row = style.tag_height, style.tag_height + 2 * style.pad
    places, x, y = [], style.pad * 2, 0
    for text, _ in entries:
        length = swatch + 2 * style.pad + round(style.font.getlength(text))
        if x + length > canvas.width and x > style.pad * 2:
            x, y = style.pad * 2, y + row
        places.append((x, y))
        x += length + 6 * style.pad
    result = Image.new("RGB", (canvas.width, canvas.height + y + row), _PAPER)
    result.paste(canvas, (0, 0))
    pen = ImageDraw.Draw(result)
    for (text, color), (x, y) in zip(entries, places, strict=True):
        top = canvas.height + y + style.pad
        middle = np.array([x, top + 2, x + swatch, top + swatch - 2], np.float64)
        if color is None:
            _dashed_box(pen, middle, max(1, style.line // 3))
        elif color != _PAPER:
            _box(pen, middle, color, style.line)
        else:
            x -= swatch + 2 * style.pad
        pen.text((x + swatch + 2 * style.pad, top + 1), text, fill=_WHITE, font=style.font)
    return result
