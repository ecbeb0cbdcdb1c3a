"""Pictures of detections that can be read: boxes, tags with class and score, a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

# Hues that are told apart on skin, soil, grass, sky and asphalt, and from each other; the classes
# beyond go round the colour wheel by the golden angle, which never comes close to repeating.
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
    """The RGB colour of a class; label 1 is the first."""
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
    """A copy of the image with boxes, tags such as "car 0.87", and a legend in a strip below.

    image: uint8 [H, W, 3] RGB, left as it is. boxes_xyxy: [K, 4] in its pixels; labels: [K]
    from 1; scores: [K], or None for tags that name the class alone; arrays or tensors. classes:
    names of labels 1, 2 ... gt: [M, 4] xyxy of the ground truth, drawn as thin dashed white boxes;
    None where it is not known.
    min_side: an image with a shorter side is enlarged to it (as long as the longer stays below
    4096 pixels), so that tags on objects of 20 pixels can be read.
    Where objects crowd, a tag goes beside, below or inside its box, shrinks to the score or, as
    the last resort, is left out: colour and legend still tell the class. Tags never overlap.
    K and M may be 0; boxes are clipped to the image. Returns uint8 RGB of the enlarged size, plus
    the strip.
    Raises ValueError on shapes or labels that do not fit.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            "draw_detections: image: expected a non-empty uint8 array [H, W, 3], "
            f"got {image.dtype} {list(image.shape)}"
        )
    boxes = _boxes("boxes_xyxy", boxes_xyxy)
    truth = None if gt is None else _boxes("gt", gt)
    names = np.asarray(labels).reshape(-1).astype(np.int64)
    known = scores is not None
    values = np.asarray(scores if known else np.ones(len(names)), dtype=np.float64).reshape(-1)
    if not len(boxes) == len(names) == len(values):
        raise ValueError(
            "draw_detections: expected as many labels and scores as boxes, "
            f"got {len(names)} and {len(values)} for {len(boxes)}"
        )
    if len(names) and not (1 <= names.min() and names.max() <= len(classes)):
        raise ValueError(
            f"draw_detections: labels: expected 1 to {len(classes)}, "
            f"got {names.min()} to {names.max()}"
        )

    height, width = image.shape[:2]
    scale = min(min_side / min(height, width), _LONGEST_SIDE / max(height, width))
    if scale > 1:
        size = (round(width * scale), round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
        stretch = np.array([size[0] / width, size[1] / height] * 2)
        boxes = boxes * stretch
        truth = None if truth is None else truth * stretch
    canvas = Image.fromarray(image)
    edge = np.array(canvas.size * 2, np.float64)
    boxes = np.clip(boxes, 0, edge)
    truth = None if truth is None else np.clip(truth, 0, edge)
    short = min(canvas.size)
    style = _Style(line=max(2, round(short / 300)), font=_font(max(13, round(short / 56))))
    pen = ImageDraw.Draw(canvas)

    order = np.argsort(-values, kind="stable")
    for k in order[::-1]:
        _box(pen, boxes[k], class_color(int(names[k])), style.line)
    for box in truth if truth is not None else ():
        _dashed_box(pen, box, max(1, style.line // 3))
    texts = [(classes[names[k] - 1],) * 2 for k in order]
    if known:
        texts = [
            (f"{text} {values[k]:.2f}", f"{values[k]:.2f}")
            for (text, _), k in zip(texts, order, strict=True)
        ]
    for k, tag in zip(order, _place_tags(boxes[order], texts, canvas.size, style), strict=True):
        if tag is not None:
            _tag(pen, tag, class_color(int(names[k])), style)
    if legend:
        canvas = _with_legend(canvas, names, classes, truth, style)
    return np.array(canvas)


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
    # Matplotlib brings DejaVu Sans, which has Greek, Cyrillic and accents; OpenCV's has ASCII only.
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _rect(box: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Whole pixels of a box, both corners inside, at least one pixel."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def _box(pen: ImageDraw.ImageDraw, box: NDArray[np.float64], color: Color, line: int) -> None:
    x1, y1, x2, y2 = _rect(box)
    line = max(1, min(line, (x2 - x1) // 6, (y2 - y1) // 6))
    # A dark edge on either side keeps the colour visible on a background of the same colour.
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_BLACK)
    if min(x2 - x1, y2 - y1) > 2 * line + 2:
        pen.rectangle((x1 + line, y1 + line, x2 - line, y2 - line), outline=_BLACK)
    pen.rectangle((x1, y1, x2, y2), outline=color, width=line)


def _dashed_box(pen: ImageDraw.ImageDraw, box: NDArray[np.float64], line: int) -> None:
    x1, y1, x2, y2 = _rect(box)
    for ends in ((x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1)):
        _dashes(pen, ends, line)


def _dashes(pen: ImageDraw.ImageDraw, ends: tuple[int, int, int, int], line: int) -> None:
    """White dashes with black between them, from one end to the other of a straight line."""
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
    """A place for the tag of every box, the most certain first; None where there is no room."""
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
    """The first of the usual places that hides least of other objects, and no tag.

    hide: the part of another object that may be covered.
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
        # Sideways a tag may slide along its box into the picture; it must still touch the box.
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
    """Whether a place meant to be beside the box was pushed over it by the picture's edge."""
    return number < 8 and bool(_shared(spot, np.array([rect], np.float64))[0] > 0)


def _shared(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area that rectangle a [4] shares with each of b [N, 4]."""
    w = np.minimum(a[2], b[:, 2]) - np.maximum(a[0], b[:, 0])
    h = np.minimum(a[3], b[:, 3]) - np.maximum(a[1], b[:, 1])
    shared: NDArray[np.float64] = np.maximum(w, 0.0) * np.maximum(h, 0.0)
    return shared


def _tag(pen: ImageDraw.ImageDraw, tag: _Tag, color: Color, style: _Style) -> None:
    pen.rectangle((tag.x1, tag.y1, tag.x2 - 1, tag.y2 - 1), fill=color)
    pen.text((tag.x1 + style.pad, tag.y1 + 1), tag.text, fill=_ink(color), font=style.font)


def _ink(color: Color) -> Color:
    """Black or white, whichever stands out more (relative luminance of WCAG 2)."""
    r, g, b = ((c / 255) ** 2.2 for c in color)
    return _BLACK if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else _WHITE


def _with_legend(
    canvas: Image.Image,
    names: NDArray[np.int64],
    classes: Sequence[str],
    truth: NDArray[np.float64] | None,
    style: _Style,
) -> Image.Image:
    """The picture with a strip below it: colour, name and count of each class, ground truth."""
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
