"""The rows of a CSV file with a box in each row."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mdssd.data.reasons import Tally
from mdssd.data.sample import DataError
from mdssd.data.values import flag, number, shown, text
from mdssd.system.files import open_regular

_UTF_8 = "utf-8-sig"  # with or without a byte order mark
_REMEDY = "convert the file to UTF-8 (in Excel: save it as CSV UTF-8)"
_MAX_LINE = 1 << 20  # characters
_DELIMITERS = ("\t", ";", ",", "|")
# The names of the columns, without spaces and signs and in lower case. The first one that occurs
# counts.
SYNONYMS = {
    "image": (
        "path filename file filepath imagepath imagename imagefile image imageid imageuri img "
        "imgpath imgname url"
    ),
    "class": "class classname labelname categoryname category label labels name objectclass object",
    "x1": "x1 xmin xtopleft left minx bboxx1 bboxxmin bboxleft",
    "y1": "y1 ymin ytopleft top miny bboxy1 bboxymin bboxtop",
    "x2": "x2 xmax xbottomright right maxx bboxx2 bboxxmax bboxright",
    "y2": "y2 ymax ybottomright bottom maxy bboxy2 bboxymax bboxbottom",
    "x": "x bboxx boxx",
    "y": "y bboxy boxy",
    "w": "w bboxwidth boxwidth bboxw boxw",
    "h": "h bboxheight boxheight bboxh boxh",
    "width": "width imagewidth imgwidth imagew",
    "height": "height imageheight imgheight imageh",
    "split": "split subset set mluse usage",
    "difficult": "difficult isdifficult",
    "crowd": "iscrowd crowd isgroupof",
}
_RELATIVE = ("normalized", "normalised", "norm", "relative", "rel")
_CORNERS = ("x1", "y1", "x2", "y2")
_SIDES = ("x", "y", "w", "h")
_AUTOML = {"TRAIN": "train", "TEST": "test", "VALIDATE": "val", "VALIDATION": "val"}
_AUTOML_COLUMNS = {"split": 0, "image": 1, "class": 2, "x1": 3, "y1": 4, "x2": 7, "y2": 8}


class CsvRow(NamedTuple):
    """A row. The box is None for an image without boxes."""

    line: int
    image: str
    name: str
    box: tuple[float, float, float, float] | None
    split: str
    size: tuple[float, float] | None
    difficult: bool
    crowd: bool


@dataclass
class CsvLayout:
    """How the rows of a file are to be read.

    Attributes:
        delimiter: what separates the cells.
        columns: the position of each known column.
        width: the number of cells of a row.
        header: whether the first row has the names of the columns.
        relative: whether the boxes are in fractions of the image's width and height.
        unused: the names of the columns that are not read.
        encoding: of the file.
    """

    delimiter: str
    columns: dict[str, int]
    width: int
    header: bool
    relative: bool = False
    unused: list[str] = field(default_factory=list)
    encoding: str = _UTF_8

    @property
    def sides(self) -> tuple[str, ...]:
        """The columns of the box: corners, or a corner with the width and height."""
        return _CORNERS if "x2" in self.columns else _SIDES


def find_layout(path: Path) -> CsvLayout | None:
    """Return the layout of a file by its first row; None if it is no table of boxes.

    Raises:
        DataError: the file cannot be read.
    """
    first = first_line(path)
    with _opened(path) as file:
        encoding = _encoding(file)
    for delimiter in _DELIMITERS:
        try:
            cells = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error:
            continue
        layout = _by_header(cells, delimiter) or _without_header(cells, delimiter)
        if layout is not None:
            layout.encoding = encoding
            return layout
    return None


def first_line(path: Path) -> str:
    """Return the first line that is not empty, and not Excel's "sep=;"; "" if there is none.

    Raises:
        DataError: the file cannot be read.
    """
    with _opened(path) as file:
        lines = _lines(path, file, _encoding(file), "replace")  # `read_rows` names what is wrong
        first = next((line for line in lines if line.strip()), "")
        return next(lines, "") if re.fullmatch(r"sep=.\s*", first) else first


def read_rows(path: Path, layout: CsvLayout, dropped: list[str], tally: Tally) -> Iterator[CsvRow]:
    """Yield the rows of a file; one that cannot be used adds a line to `dropped`.

    Args:
        path: the file.
        layout: from `find_layout`.
        dropped: receives the lines.
        tally: counts what was guessed.

    Raises:
        DataError: the file cannot be read, or its quotes are broken from some line on.
    """
    header = layout.header
    with _opened(path) as file:
        lines = _lines(path, file, layout.encoding)
        reader = csv.reader(lines, delimiter=layout.delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{path}:{line}: broken CSV ({error})") from None
            if not any(map(str.strip, cells)) or (line == 1 and cells[0].startswith("sep=")):
                continue
            if header:
                header = False
                continue
            try:
                yield _row(cells, line, layout, f"{path}:{line}", tally)
            except ValueError as error:
                dropped.append(f"{path}:{line}: {error}")


def _row(cells: list[str], line: int, layout: CsvLayout, where: str, tally: Tally) -> CsvRow:
    """Read a row. Raises ValueError with the reason."""
    if len(cells) < layout.width or any(map(str.strip, cells[layout.width :])):
        raise ValueError(f"has {len(cells)} columns, expected {layout.width}")
    cell = {name: cells[position].strip() for name, position in layout.columns.items()}
    image = text(cell["image"])
    if image is None:
        raise ValueError(f"the image is {shown(cell['image'])}, expected the name of a file")
    size = None
    if cell.get("width") and cell.get("height"):
        size = number(cell["width"]) or 0.0, number(cell["height"]) or 0.0
    flags = [flag(cell.get(name)) for name in ("difficult", "crowd")]
    if None in flags:
        tally.add(where, "difficult or iscrowd is neither 0 nor 1; taken as 0")
    split = _AUTOML.get(cell.get("split", ""), cell.get("split", ""))
    stated = [cell[side] for side in layout.sides]
    if not any(stated):
        return CsvRow(line, _plain(image), "", None, split, size, False, False)
    box = _box(stated, layout, where, tally)
    name = text(cell["class"])
    if name is None:
        raise ValueError(f"the class is {shown(cell['class'])}, expected a name")
    return CsvRow(line, _plain(image), _plain(name), box, split, size, *map(bool, flags))


def _box(
    stated: Sequence[str], layout: CsvLayout, where: str, tally: Tally
) -> tuple[float, float, float, float]:
    values = []
    for side, value in zip(layout.sides, stated, strict=True):
        read = number(value)
        if read is None and layout.delimiter != "," and value.count(",") == 1:
            read = number(value.replace(",", "."))
            tally.add(where, "decimal commas are read as points")
        if read is None:
            raise ValueError(f"{side} is {shown(value)}, expected a number")
        values.append(read)
    a, b, c, d = values
    return (a, b, c, d) if layout.sides == _CORNERS else (a, b, a + c, b + d)


def _plain(name: str) -> str:
    """Return a name without the sign that keeps a spreadsheet from taking it as a formula."""
    return name[1:] if re.match(r"'[=+\-@\t\r]", name) else name


def _by_header(cells: Sequence[str], delimiter: str) -> CsvLayout | None:
    plain = [re.sub(r"[\W_]", "", cell.lower()) for cell in cells]
    relative = [next((end for end in _RELATIVE if name.endswith(end)), "") for name in plain]
    names = [name.removesuffix(end) for name, end in zip(plain, relative, strict=True)]
    columns = {}
    for column, synonyms in SYNONYMS.items():
        position = next((names.index(each) for each in synonyms.split() if each in names), None)
        if position is not None:
            columns[column] = position
    if "x2" not in columns:
        # Without corners, left and top, width and height are those of the box.
        for side, other in zip(_SIDES, ("x1", "y1", "width", "height"), strict=True):
            if side not in columns and other in columns:
                columns[side] = columns.pop(other)
    sides = _CORNERS if "x2" in columns else _SIDES
    if any(column not in columns for column in ("image", "class", *sides)):
        return None
    used = {*columns.values()}
    openimages = {"imageid", "labelname", "isgroupof"} <= {*names}
    return CsvLayout(
        delimiter,
        columns,
        len(cells),
        header=True,
        relative=openimages or all(relative[columns[side]] for side in sides),
        unused=[cell.strip() for k, cell in enumerate(cells) if k not in used and cell.strip()],
    )


def _without_header(cells: Sequence[str], delimiter: str) -> CsvLayout | None:
    if len(cells) == 6:
        box = [cell.strip().replace(",", ".") for cell in cells[1:5]]
        if cells[0].strip() and (not any(box) or all(number(value) is not None for value in box)):
            columns = dict(zip(("image", *_CORNERS, "class"), range(6), strict=True))
            return CsvLayout(delimiter, columns, 6, header=False)
    if len(cells) >= 9 and cells[0].strip() in (*_AUTOML, "UNASSIGNED"):
        width = min(len(cells), 11)
        return CsvLayout(delimiter, dict(_AUTOML_COLUMNS), width, header=False, relative=True)
    return None


def read_class_ids(path: Path) -> list[str] | None:
    """Return the names of a file with a name and a number in each row, in the order of the numbers.

    Returns:
        The names; None if the file is no such list.

    Raises:
        DataError: the file cannot be read, or two names have a number, or two numbers a name.
    """
    names: dict[int, str] = {}
    with _opened(path) as file:
        lines = _lines(path, file, _encoding(file))
        for count, line in enumerate(lines, 1):
            cells = [cell.strip() for cell in re.split("[,;\t]", line.strip())]
            if cells == [""]:
                continue
            name = text(cells[0].strip('"'))
            if len(cells) != 2 or name is None or not re.fullmatch("[0-9]{1,6}", cells[1]):
                if count == 1 and len(cells) == 2:  # a header
                    continue
                return None
            if int(cells[1]) in names or name in names.values():
                raise DataError(f"{path}:{count}: the name or the number occurs twice")
            names[int(cells[1])] = name
    return [names[k] for k in sorted(names)] or None


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _encoding(file: BinaryIO) -> str:
    """Return the encoding of a file by its first bytes, and go back to its beginning."""
    start = file.read(4)
    file.seek(0)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    found = json.detect_encoding(start)
    return _UTF_8 if found == "utf-8" else found


def _lines(path: Path, file: BinaryIO, encoding: str, errors: str = "strict") -> Iterator[str]:
    """Yield the lines with their ends. A file without ends of lines does not fill the memory."""
    # A stream decodes thousands of bytes at once, and would not know the line of a wrong one.
    escaped = encoding == _UTF_8 and errors == "strict"
    stream = io.TextIOWrapper(file, encoding, "surrogateescape" if escaped else errors, newline="")
    count = 0
    while True:
        try:
            line = stream.readline(_MAX_LINE)
        except UnicodeError:
            raise DataError(
                f"{path}:{count + 1}: at or after this line there is a byte that is not in "
                f"{encoding}; {_REMEDY}"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        if not line:
            return
        count += 1
        if len(line) >= _MAX_LINE:
            raise DataError(f"{path}:{count}: the line has more than {_MAX_LINE:,} characters")
        if escaped and (wrong := re.search("[\udc80-\udcff]", line)):
            byte = ord(wrong[0]) - 0xDC00
            raise DataError(f"{path}:{count}: byte {byte:#x} is not in UTF-8; {_REMEDY}")
        yield line
