"""The rows of YOLO label files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from mdssd.data.listed import NamedBox
from mdssd.data.text_files import read_label_rows
from mdssd.data.values import number, shown

Box: TypeAlias = tuple[float, float, float, float]

_MAX_CLASS = 10**6
# How far values may lie outside 0 to 1, as in Ultralytics' check: tools round them.
_MARGIN = 0.01
_MAX_USUAL = 200  # characters of a row with nothing but numbers

_COMMAS = "commas between the values; read as spaces"
_DECIMAL_COMMAS = "decimal commas; read as points"
_FRACTION = "a class with a decimal point; read as a whole number"
_SIXTH = "a sixth value, as the confidence of a prediction or a track id; ignored"
_TEXT = "text after the values; ignored"
_TWICE = "a row that occurs twice; taken once"


class LabelReader:
    """Reads label files of one data set.

    A row is `class cx cy width height`, with coordinates in fractions of the image's width and
    height. A row of 7 or more values, an odd number, is a polygon: `class x1 y1 x2 y2 ...`.

    Args:
        names: the name of each class number. None: the numbers are the names.
        origin: the file that gives the names, for messages.
        keypoints: the number of values that follow a box, for the key points of poses.

    Attributes:
        dropped: receives a line per row that cannot be used.
        notes: receives a line per file and thing that was repaired or ignored.
        polygons: the number of rows that are polygons.
        first_polygon: the file and line of the first.
    """

    def __init__(
        self, names: Mapping[int, str] | None, origin: str = "", keypoints: int = 0
    ) -> None:
        self._names = names
        self._origin = origin
        self._columns = 5 + keypoints if keypoints else 0
        self.dropped: list[str] = []
        self.notes: list[str] = []
        self.polygons = 0
        self.first_polygon = ""

    def read(self, path: Path) -> list[NamedBox]:
        """Return the boxes of a label file, in fractions of the image's width and height.

        Raises:
            DataError: the file cannot be read, or has more than 20,000 rows.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from mdssd.data.yolo_labels import LabelReader
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = Path(folder, "a.txt")
            ...     _ = path.write_text("1 0.5 0.5 0.25 0.5")
            ...     LabelReader({0: "car", 1: "bus"}).read(path)[0][:2]
            ((0.375, 0.25, 0.625, 0.75), 'bus')
        """
        return [
            NamedBox(box_xyxy, name, where=where) for _, name, box_xyxy, where in self._rows(path)
        ]

    def class_numbers(self, path: Path) -> set[int]:
        """Return the class numbers of a label file.

        Raises:
            DataError: as `read`.
        """
        return {label for label, *_ in self._rows(path)}

    def _rows(self, path: Path) -> Iterator[tuple[int, str, Box, str]]:
        lines = read_label_rows(path)
        taken = set()
        repairs: Counter[str] = Counter()
        first: dict[str, str] = {}
        for count, line in enumerate(lines, 1):
            if not line or line.isspace():
                continue
            where = f"{path}:{count}"
            kinds: list[str] = []
            try:
                label, box = self._row(line, kinds, where)
                name = self._name(label)
            except ValueError as error:
                self.dropped.append(f"{where}: {error}")
                continue
            if (label, box) in taken:
                kinds.append(_TWICE)
            else:
                taken.add((label, box))
                yield label, name, box, where
            for kind in kinds:
                first.setdefault(kind, where)
                repairs[kind] += 1
        for kind, times in repairs.items():
            more = f" ({times} rows of this file)" if times > 1 else ""
            self.notes.append(f"{first[kind]}: {kind}{more}")

    def _row(self, line: str, kinds: list[str], where: str) -> tuple[int, Box]:
        """Return the class number and the corners of a row. Raises ValueError with the fault."""
        if (usual := _usual_row(line)) is not None:
            return usual
        fields = _fields(line, kinds)
        if not fields:
            raise ValueError("has no number, only commas")
        numbers = _numbers(fields)
        bad = len(numbers)
        if bad < len(fields):
            if bad < 5 or (bad > 6 and bad % 2 == 0):
                raise ValueError(f"{shown(fields[bad])} is not a number")
            kinds.append(_TEXT)
        label = _class(numbers[0], fields[0], kinds)
        columns = len(numbers)
        if columns == 6 and self._columns != 6:
            kinds.append(_SIXTH)
        if columns in (5, 6, self._columns):
            return label, _corners(numbers[1:5])
        if columns >= 7 and columns % 2:
            self.polygons += 1
            self.first_polygon = self.first_polygon or where
            return label, _bounds(numbers[1:])
        raise ValueError(
            f"has {columns} columns, expected 5 (class, centre, width and height) or the points "
            "of a polygon; key points need kpt_shape in data.yaml"
        )

    def _name(self, label: int) -> str:
        if self._names is None:
            return str(label)
        if label not in self._names:
            raise ValueError(f"class {label} has no name in {self._origin}")
        return self._names[label]


def _usual_row(line: str) -> tuple[int, Box] | None:
    """Return a row without anything to repair or refuse, as nearly all are, in a third of the time.

    None: the row needs a closer look.
    """
    fields = line.split()
    if len(fields) != 5 or not fields[0].isdecimal() or "_" in line or len(line) > _MAX_USUAL:
        return None
    try:
        cx, cy, width, height = map(float, fields[1:])
    except ValueError:
        return None
    label = int(fields[0])
    # NaN is in no range.
    inside = 0 <= cx <= 1 and 0 <= cy <= 1 and 0 < width <= 1 and 0 < height <= 1
    return (label, _edges(cx, cy, width, height)) if inside and label < _MAX_CLASS else None


def _fields(line: str, kinds: list[str]) -> list[str]:
    fields = line.split()
    if "," in line:
        if len(fields) >= 5 and all(f.count(",") == 1 and f[-1] != "," for f in fields[1:5]):
            kinds.append(_DECIMAL_COMMAS)
            return [field.replace(",", ".") for field in fields]
        kinds.append(_COMMAS)
        return line.replace(",", " ").split()
    return fields


def _numbers(fields: Sequence[str]) -> list[float]:
    """Return the numbers that the fields begin with."""
    numbers: list[float] = []
    for field in fields:
        value = number(field)
        if value is None:
            break
        numbers.append(value)
    return numbers


def _class(value: float, text: str, kinds: list[str]) -> int:
    if not 0 <= value < _MAX_CLASS or value != int(value):
        raise ValueError(f"class {shown(text)}: expected a whole number from 0")
    if not text.isdecimal():
        kinds.append(_FRACTION)
    return int(value)


def _corners(box_cxcywh: Sequence[float]) -> Box:
    _check(box_cxcywh)
    cx, cy, width, height = box_cxcywh
    if not (width > 0 and height > 0):
        raise ValueError(f"width {width:g}, height {height:g}: expected above 0")
    return _edges(cx, cy, width, height)


def _edges(cx: float, cy: float, width: float, height: float) -> Box:
    # Rounded, so that a box at the edge of the image ends there and not 1e-17 of a side beyond it.
    return (
        round(cx - width / 2, 12) + 0.0,
        round(cy - height / 2, 12) + 0.0,
        round(cx + width / 2, 12) + 0.0,
        round(cy + height / 2, 12) + 0.0,
    )


def _bounds(points: Sequence[float]) -> Box:
    _check(points)
    x, y = points[::2], points[1::2]
    if max(x) <= min(x) or max(y) <= min(y):
        raise ValueError("polygon without area")
    return min(x), min(y), max(x), max(y)


def _check(values: Sequence[float]) -> None:
    """Raise ValueError if a value is not a fraction of an image's side."""
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"value {value:g} is not finite")
        if value > 1 + _MARGIN:
            raise ValueError(
                f"value {value:g} is above 1: pixels? Expected fractions of the image's width and "
                "height"
            )
        if value < -_MARGIN:
            raise ValueError(f"value {value:g} is negative, expected 0 to 1")
