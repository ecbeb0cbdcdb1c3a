"""Reading the JSON files of LabelMe, one for each image."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mdssd.data.json_lists import whole_number
from mdssd.data.listed import NamedBox
from mdssd.data.reasons import Tally
from mdssd.data.sample import MAX_BOXES, DataError, box_around
from mdssd.data.text_files import read_text
from mdssd.data.values import flag, number, shown, stated_size, text
from mdssd.system.files import format_bytes

# A file holds its image in base64 as well.
MAX_BYTES = 256 << 20
# Without images and masks. As objects in memory, JSON takes up to thirty times its characters.
_MAX_TEXT = 8 << 20
_EMBEDDED = re.compile(r'"(imageData|mask)"\s*:\s*"([^"\\]*)"')
_CUT = "cut out"
_NO_BOX = ("point", "points", "line", "linestrip", "lines")
_TURNED = ("rotation", "oriented_rectangle")
_CROWD = ("is_crowd", "iscrowd", "crowd")


class LabelMeFile(NamedTuple):
    """What an annotation says.

    Attributes:
        image: the name of the image, relative to the annotation; "" if none is stated.
        embedded: whether the image itself is in the file.
        size: the stated (width, height); None if none is stated.
        boxes: those that can be used.
        names: the class names of all shapes that have a box, also of the unusable.
    """

    image: str
    embedded: bool
    size: tuple[float, float] | None
    boxes: list[NamedBox]
    names: set[str]


def read_labelme(path: Path, dropped: list[str], tally: Tally) -> LabelMeFile | None:
    """Read an annotation; None if the JSON is of something else.

    Args:
        path: the file.
        dropped: receives a line for each shape whose box cannot be used.
        tally: counts shapes without a box, and those whose box was derived.

    Raises:
        DataError: the file cannot be read, or is broken. The message names it and the line.
    """
    content = _parse(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        return None
    if len(shapes) > MAX_BOXES:
        raise DataError(
            f"{path}: has {len(shapes):,} shapes, expected at most {MAX_BOXES:,} in an image"
        )
    names: set[str] = set()
    boxes = list(_boxes(path, shapes, names, dropped, tally))
    return LabelMeFile(
        text(content.get("imagePath")) or "",
        isinstance(content.get("imageData"), str),
        stated_size(content.get("imageWidth"), content.get("imageHeight")),
        boxes,
        names,
    )


def embedded_image(path: Path) -> bytes:
    """Return the bytes of the image that is in an annotation.

    Raises:
        DataError: there is none, or it is damaged.
    """
    for found in _EMBEDDED.finditer(read_text(path, MAX_BYTES)):
        if found[1] == "imageData":
            try:
                return base64.b64decode(found[2])
            except (binascii.Error, ValueError) as error:
                raise DataError(f"{path}: imageData is not in base64 ({error})") from None
    raise DataError(f"{path}: has no imageData in base64")


def _parse(path: Path) -> Any:
    content = _EMBEDDED.sub(rf'"\1": "{_CUT}"', read_text(path, MAX_BYTES))
    if len(content) > _MAX_TEXT:
        most = format_bytes(_MAX_TEXT)
        raise DataError(
            f"{path}: has {format_bytes(len(content))} without its image, expected at most {most}"
        )
    try:
        return json.loads(content, parse_int=whole_number)
    except json.JSONDecodeError as error:
        rest = content[error.pos :].strip()
        cut = ", where the file ends" if not rest or error.msg.startswith("Unterminated") else ""
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg}{cut})") from None
    except RecursionError:
        raise DataError(f"{path}: broken JSON (lists or objects are nested too deep)") from None


def _boxes(
    path: Path, shapes: list[Any], names: set[str], dropped: list[str], tally: Tally
) -> Iterator[NamedBox]:
    for position, shape in enumerate(shapes):
        place = f"{path}: shapes[{position}]"
        try:
            if not isinstance(shape, dict):
                raise ValueError(f"is {shown(shape)}, expected an object")
            kind = shape.get("shape_type", "polygon")
            if kind in _NO_BOX:
                tally.add(place, f"a shape of the type {kind} has no box; left out")
                continue
            label = shape.get("label")
            label = str(label) if isinstance(label, int) and not isinstance(label, bool) else label
            name = text(label)
            if name is None:
                raise ValueError(f"label is {shown(shape.get('label'))}, expected a name")
            names.add(name)
            box_xyxy = _box(kind, shape, tally, place)
        except ValueError as error:
            dropped.append(f"{place}: {error}")
            continue
        difficult = _is_set(shape, ("difficult",), place, tally)
        crowd = _is_set(shape, _CROWD, place, tally)
        yield NamedBox(box_xyxy, name, difficult, crowd, where=place)


def _box(
    kind: Any, shape: dict[str, Any], tally: Tally, place: str
) -> tuple[float, float, float, float]:
    """Return the box around a shape. Raises ValueError with the reason."""
    xs, ys = _points(shape)
    kind = kind.removeprefix("ai_") if isinstance(kind, str) else kind
    if kind == "rectangle" and len(xs) >= 2:
        return box_around(xs, ys)
    if kind in ("polygon", *_TURNED) and len(xs) >= 2:
        tally.add(place, f"is a {kind}; the box around it is used")
        return box_around(xs, ys)
    if kind == "circle" and len(xs) == 2:
        tally.add(place, "is a circle; the box around it is used")
        radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        return xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
    if kind == "mask" and len(xs) == 2:
        # The points are the first and the last pixel of the mask.
        x1, y1, x2, y2 = box_around(xs, ys)
        return x1, y1, x2 + 1, y2 + 1
    if kind in ("rectangle", "polygon", "circle", "mask", *_TURNED):
        raise ValueError(f"a {kind} has {len(xs)} points")
    raise ValueError(f"shape_type is {shown(kind)}, expected rectangle, polygon, circle or mask")


def _points(shape: dict[str, Any]) -> tuple[list[float], list[float]]:
    points = shape.get("points")
    if not isinstance(points, list):
        raise ValueError(f"points is {shown(points)}, expected a list of x, y")
    pairs = []
    for point in points:
        values = [number(v) for v in point] if isinstance(point, list) and len(point) == 2 else []
        known = [value for value in values if value is not None]
        if len(known) != 2:
            raise ValueError(f"a point is {shown(point)}, expected x, y")
        pairs.append(known)
    return [x for x, _ in pairs], [y for _, y in pairs]


def _is_set(shape: dict[str, Any], names: tuple[str, ...], place: str, tally: Tally) -> bool:
    """Return whether a shape has one of some flags, of its own or in its `flags`."""
    inner = shape.get("flags")
    flags = {**(inner if isinstance(inner, dict) else {}), **shape}
    values = [value for name, value in flags.items() if name.lower() in names]
    if any(flag(value) is None for value in values):
        tally.add(place, f"{names[0]} is {shown(values[0])}, expected true or false")
    return any(flag(value) for value in values)
