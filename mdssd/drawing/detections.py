"""Draws detections on an image: boxes, tags with class and score, and a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mdssd.drawing.tags import Style, Tag, place_tags, tag_font, whole_pixels
from mdssd.system.text import printable

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
    scale: float | None = None,
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
        gt: [M, 4] xyxy of the ground truth, drawn as dashed white boxes with a dark edge; None if
            unknown.
        min_side: without `scale`, an image whose shorter side is below this is enlarged to it, so
            that tags on objects of 20 pixels can be read. The longer side stays below 4096 pixels.
        legend: whether to add the strip.
        scale: the size of the picture relative to the image. 1 keeps the image's own pixels. None
            enlarges a small image as `min_side` says.

    Returns:
        uint8 RGB of the scaled size, plus the strip.

    Raises:
        ValueError: a shape, a label or a number does not fit.

    Example:
        >>> import numpy as np
        >>> from mdssd.drawing import draw_detections
        >>> photo = np.zeros((300, 400, 3), np.uint8)
        >>> boxes = [[10, 10, 60, 60]]
        >>> draw_detections(photo, boxes, [1], [0.87], ["car"], legend=False).shape
        (900, 1200, 3)
        >>> draw_detections(photo, boxes, [1], [0.87], ["car"], legend=False, scale=1).shape
        (300, 400, 3)
    """
    found = _checked(image, boxes_xyxy, labels, scores, classes)
    truth = None if gt is None else _boxes("gt", gt)
    height, width = image.shape[:2]
    if scale is None:
        enlarged = min(min_side / min(height, width), _LONGEST_SIDE / max(height, width))
        scale = max(enlarged, 1.0)
    elif not 0 < scale < np.inf:
        raise ValueError(f"draw_detections: scale: expected more than 0, got {scale}")
    if scale != 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        way = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        image = cv2.resize(image, size, interpolation=way).astype(np.uint8)
    down, across = image.shape[:2]
    stretch = np.array([across / width, down / height] * 2)
    edge = np.array([across, down] * 2, np.float64)
    found = found._replace(boxes=np.clip(found.boxes * stretch, 0, edge))
    truth = None if truth is None else np.clip(truth * stretch, 0, edge)
    short = min(across, down)
    style = Style(line=max(2, round(short / 300)), font=tag_font(max(13, round(short / 56))))
    strip = np.zeros((0, across, 3), np.uint8)
    if legend:
        strip = _legend(across, found.labels, classes, truth, style)
    picture = np.concatenate([image, strip])
    _draw(picture[:down], found, truth, classes, style)
    return picture


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
    picture: NDArray[np.uint8],
    found: _Boxes,
    truth: NDArray[np.float64] | None,
    classes: Sequence[str],
    style: Style,
) -> None:
    """Draw the boxes, the best on top, then the ground truth, then the tags."""
    boxes, labels, scores = found
    size = (picture.shape[1], picture.shape[0])
    rank = np.zeros(len(boxes)) if scores is None else -scores
    order = np.argsort(rank, kind="stable")
    for k in order[::-1]:
        _box(picture, boxes[k], class_color(int(labels[k])), style.line)
    for box in truth if truth is not None else ():
        _dashed_box(picture, box, style.dash)
    texts = [(printable(classes[labels[k] - 1]),) * 2 for k in order]
    if scores is not None:
        texts = [
            (f"{text} {scores[k]:.2f}", f"{scores[k]:.2f}")
            for (text, _), k in zip(texts, order, strict=True)
        ]
    for k, tag in zip(order, place_tags(boxes[order], texts, size, style), strict=True):
        if tag is not None:
            _tag(picture, tag, class_color(int(labels[k])), style)


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


def _fill(
    picture: NDArray[np.uint8], left: int, top: int, right: int, bottom: int, color: Color
) -> None:
    """Fill a rectangle, with its last row and column, as far as it is in the picture."""
    rows = slice(max(0, top), max(0, bottom + 1))
    picture[rows, max(0, left) : max(0, right + 1)] = color


def _frame(
    picture: NDArray[np.uint8], corners: tuple[int, int, int, int], color: Color, line: int = 1
) -> None:
    """Draw the inner edge of a rectangle, `line` pixels wide."""
    x1, y1, x2, y2 = corners
    _fill(picture, x1, y1, x2, y1 + line - 1, color)
    _fill(picture, x1, y2 - line + 1, x2, y2, color)
    _fill(picture, x1, y1, x1 + line - 1, y2, color)
    _fill(picture, x2 - line + 1, y1, x2, y2, color)


def _box(picture: NDArray[np.uint8], box: NDArray[np.float64], color: Color, line: int) -> None:
    x1, y1, x2, y2 = whole_pixels(box)
    line = max(1, min(line, (x2 - x1) // 6, (y2 - y1) // 6))
    # Dark lines on both sides keep the colour visible on a background of the same colour.
    _frame(picture, (x1 - 1, y1 - 1, x2 + 1, y2 + 1), _BLACK)
    if min(x2 - x1, y2 - y1) > 2 * line + 2:
        _frame(picture, (x1 + line, y1 + line, x2 - line, y2 - line), _BLACK)
    _frame(picture, (x1, y1, x2, y2), color, line)


def _dashed_box(picture: NDArray[np.uint8], box: NDArray[np.float64], line: int) -> None:
    """Draw white dashes with a dark edge, which shows on light images too."""
    x1, y1, x2, y2 = whole_pixels(box)
    sides = ((x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1))
    dashes = [dash for side in sides for dash in _dashes(side, 3 * line + 2)]
    for edge, color in ((1, _BLACK), (0, _WHITE)):
        for left, top, right, bottom in dashes:
            # A line lies around its place: a pixel on it, and the others on both sides.
            low, high = (line - 1) // 2 + edge, line // 2 + edge
            _fill(picture, left - low, top - low, right + high, bottom + high, color)


def _dashes(side: tuple[int, int, int, int], length: int) -> list[tuple[int, int, int, int]]:
    """Return the dashes of a straight line as rectangles; the gaps between them are shorter."""
    x1, y1, x2, y2 = side
    dx, dy = int(np.sign(x2 - x1)), int(np.sign(y2 - y1))
    whole = abs(x2 - x1) + abs(y2 - y1)
    dashes = []
    for start in range(0, whole + 1, length + length // 2 + 2):
        end = min(start + length - 1, whole)
        xs, ys = (x1 + dx * start, x1 + dx * end), (y1 + dy * start, y1 + dy * end)
        dashes.append((min(xs), min(ys), max(xs), max(ys)))
    return dashes


def _tag(picture: NDArray[np.uint8], tag: Tag, color: Color, style: Style) -> None:
    # Pillow draws the text, on an image of its own: converting the whole picture takes it long.
    own = Image.new("RGB", (tag.x2 - tag.x1, tag.y2 - tag.y1), color)
    ImageDraw.Draw(own).text((style.pad, 1), tag.text, fill=_ink(color), font=style.font)
    picture[tag.y1 : tag.y2, tag.x1 : tag.x2] = np.asarray(own)


def _ink(color: Color) -> Color:
    """Return black or white, whichever contrasts more (relative luminance of WCAG 2)."""
    r, g, b = ((c / 255) ** 2.2 for c in color)
    return _BLACK if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else _WHITE


def _legend(
    width: int,
    names: NDArray[np.int64],
    classes: Sequence[str],
    truth: NDArray[np.float64] | None,
    style: Style,
) -> NDArray[np.uint8]:
    """Return the strip below: the colour, name and number of each class, and the ground truth."""
    present, counts = np.unique(names, return_counts=True)
    entries: list[tuple[str, Color | None]] = [
        (f"{printable(classes[k - 1])}: {n}", class_color(int(k)))
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
        if x + length > width and x > style.pad * 2:
            x, y = style.pad * 2, y + row
        places.append((x, y))
        x += length + 6 * style.pad
    image = Image.new("RGB", (width, y + row), _PAPER)
    pen = ImageDraw.Draw(image)
    for (text, color), (x, y) in zip(entries, places, strict=True):
        left = x if color == _PAPER else x + swatch + 2 * style.pad
        pen.text((left, y + style.pad + 1), text, fill=_WHITE, font=style.font)
    strip = np.array(image)
    for (_, color), (x, y) in zip(entries, places, strict=True):
        top = y + style.pad
        middle = np.array([x, top + 2, x + swatch, top + swatch - 2], np.float64)
        if color is None:
            _dashed_box(strip, middle, style.dash)
        elif color != _PAPER:
            _box(strip, middle, color, style.line)
    return strip
