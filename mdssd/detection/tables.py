"""The tables that `detect` writes: the boxes of all images as JSON or CSV.

A cell of the CSV that a spreadsheet might execute, because the text begins with =, +, -, @, a tab
or a line end, has an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mdssd.detection.detector import Streamed
from mdssd.system.files import atomic_write, open_regular

_COLUMNS = ("file", "width", "height", "class", "label", "score", "x1", "y1", "x2", "y2")
# How a table of each format begins, by which it is recognised.
_BEGINNINGS = {"json": b'[\n  {"file": ', "csv": ",".join(_COLUMNS).encode() + b"\n"}
# A text that a spreadsheet may take for a formula, also behind apostrophes of its own.
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n]")


def table_entry(result: Streamed, classes: Sequence[str]) -> dict[str, Any]:
    """Return an image's row of the tables: its file, its size and its detections."""
    found = result.found
    rows = zip(
        found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
    )
    height, width = result.size
    return {
        "file": str(result.source),
        "width": width,
        "height": height,
        "detections": [
            {
                "class": classes[label - 1],
                "label": label,
                "score": round(score, 6),
                "box_xyxy": [round(value, 3) for value in box],
            }
            for label, score, box in rows
        ],
    }


def table_path(out: Path, form: str) -> Path:
    """Return the file of a table in a folder; `form` is "json" or "csv"."""
    return out / f"detections.{form}"


def is_table(path: Path, form: str) -> bool:
    """Return whether a file is a table that `open_table` has written."""
    beginning = _BEGINNINGS[form]
    try:
        with open_regular(path) as file:
            return file.read(len(beginning)) == beginning
    except OSError:
        return False


class _Empty(Exception):
    """A table got no image."""


class Table:
    """A table that is whole after each image, as `open_table` opens it.

    Attributes:
        path: the file.
        end: the position behind its last row, 0 if it has none.
    """

    def __init__(self, stack: ExitStack, out: Path, form: str) -> None:
        self.path = table_path(out, form)
        self.end = 0
        self._before = 0
        self._stack = stack
        self._file: Any = None
        self._rows, self._tail = {"json": (_json_rows, b"\n]\n"), "csv": (_csv_rows, b"")}[form]

    def add(self, image: dict[str, Any]) -> None:
        """Add an image. If there is no room for it, the table stays as it was."""
        text = self._rows(image, self._file is None).encode("utf-8", "surrogateescape")
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file: Any = self._stack.enter_context(atomic_write(self.path, "wb"))
            self._file = file.raw
        self._before = self.end
        try:
            _write_at(self._file, text + self._tail, self.end)
        except OSError as error:
            self.undo()
            error.filename = error.filename or str(self.path)
            raise
        self.end += len(text)

    def undo(self) -> None:
        """Remove the last image that was added."""
        self.end = self._before
        if not self.end:  # there will be no file
            return
        _write_at(self._file, self._tail, self.end)  # it was there before, so there is room for it
        self._file.truncate(self.end + len(self._tail))


@contextmanager
def open_table(out: Path, form: str, written: list[Path]) -> Iterator[Table]:
    """Open a table for the time of a block, and yield it.

    The file appears when the block ends, and its path is then added to `written`. If no image was
    added, there is no file. If an image cannot be added, because the disk is full, the table still
    holds those before it.

    Args:
        out: the folder, which is created if it is missing.
        form: "json" or "csv".
        written: receives the path.
    """
    with suppress(_Empty), ExitStack() as stack:
        table = Table(stack, out, form)
        yield table
        if not table.end:
            raise _Empty  # so that a file that was begun does not replace another
        written.append(table.path)


def _write_at(file: Any, data: bytes, position: int) -> None:
    """Write all data to an unbuffered file, which may write a part at a time."""
    file.seek(position)
    while data:
        data = data[file.write(data) :]


def _json_rows(image: dict[str, Any], first: bool) -> str:
    """Return an image as an entry of the JSON list, with one line per detection."""
    rows = ",\n".join("    " + json.dumps(found) for found in image["detections"])
    head = json.dumps({name: image[name] for name in ("file", "width", "height")})
    tail = f'"detections": [\n{rows}\n  ]' if rows else '"detections": []'
    return ("[\n" if first else ",\n") + f"  {head[:-1]}, {tail}}}"


def _csv_rows(image: dict[str, Any], first: bool) -> str:
    lines = [_csv_line(_COLUMNS)] if first else []
    for found in image["detections"]:
        head = (_harmless(image["file"]), image["width"], image["height"])
        row = (_harmless(found["class"]), found["label"], found["score"], *found["box_xyxy"])
        lines.append(_csv_line((*head, *row)))
    return "".join(lines)


def _csv_line(cells: Sequence[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\r\n").writerow(cells)  # so that both are quoted in cells
    return stream.getvalue().removesuffix("\r\n") + "\n"


def _harmless(text: str) -> str:
    """Return the text of a cell, such that no spreadsheet executes it."""
    return f"'{text}" if _FORMULA.match(text) else text
