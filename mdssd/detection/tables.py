"""The tables that `detect` writes: the boxes of all images in one file.

A cell of the CSV that a spreadsheet might execute, because the text begins with =, +, -, @, a tab
or a line end, has an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mdssd.detection.reading import Streamed, name_of
from mdssd.system.files import atomic_write

_COLUMNS = ("file", "width", "height", "class", "label", "score", "x1", "y1", "x2", "y2")
# A text that a spreadsheet may take for a formula, also behind apostrophes of its own.
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n]")


class Layout(NamedTuple):
    """How a table is composed: `head`, the rows with `between` in between, `tail`.

    Attributes:
        rows: returns the rows of an image, from its entry and its number in the table, from 1.
    """

    head: str
    rows: Callable[[dict[str, Any], int], list[str]]
    between: str
    tail: str


def shown(result: Streamed, score_threshold: float, labels: Sequence[int]) -> Streamed:
    """Return a result with the detections that are drawn and written.

    Args:
        result: the result of an image.
        score_threshold: the least score.
        labels: the labels of the classes.
    """
    found = result.found
    kept = found["scores"] >= score_threshold
    kept &= torch.isin(found["labels"], torch.tensor(labels, dtype=torch.int64))
    return result._replace(found={name: value[kept] for name, value in found.items()})


def table_entry(result: Streamed, classes: Sequence[str]) -> dict[str, Any]:
    """Return an image's row of the tables: its file, its size and its detections."""
    found = result.found
    rows = zip(
        found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
    )
    height, width = result.size
    return {
        "file": name_of(result.source, ""),
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


class _Empty(Exception):
    """A table got no image."""


class _State(NamedTuple):
    """How far a table is written: the position behind its last row, its rows and its images."""

    end: int = 0
    rows: int = 0
    images: int = 0


class Table:
    """A table that is whole after each image, as `open_table` opens it.

    Attributes:
        path: the file.
        images: the number of images in it.
    """

    def __init__(self, stack: ExitStack, path: Path, layout: Layout) -> None:
        self.path = path
        self._layout = layout
        self._tail = layout.tail.encode()
        self._state = self._before = _State()
        self._stack = stack
        self._file: Any = None

    @property
    def images(self) -> int:
        return self._state.images

    def add(self, image: dict[str, Any]) -> None:
        """Add an image. If there is no room for it, the table stays as it was."""
        end, rows, images = self._before = self._state
        added = self._layout.rows(image, images + 1)
        text = self._layout.between.join(added)
        if rows and added:
            text = self._layout.between + text
        if not images:
            text = self._layout.head + text
        data = text.encode("utf-8", "surrogateescape")
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file: Any = self._stack.enter_context(atomic_write(self.path, "wb"))
            self._file = file.raw
        try:
            _write_at(self._file, data + self._tail, end)
        except OSError as error:
            self.undo()
            error.filename = error.filename or str(self.path)
            raise
        self._state = _State(end + len(data), rows + len(added), images + 1)

    def undo(self) -> None:
        """Remove the last image that was added."""
        self._state = self._before
        if not self.images:  # there will be no file
            return
        end = self._state.end
        _write_at(self._file, self._tail, end)  # it was there before, so there is room for it
        self._file.truncate(end + len(self._tail))


@contextmanager
def open_table(path: Path, layout: Layout, written: list[Path]) -> Iterator[Table]:
    """Open a table for the time of a block, and yield it.

    The file appears when the block ends, and its path is then added to `written`. If no image was
    added, there is no file. If an image cannot be added, because the disk is full, the table still
    holds those before it.

    Args:
        path: the file, whose folder is created if it is missing.
        layout: how it is composed.
        written: receives the path.
    """
    with suppress(_Empty), ExitStack() as stack:
        table = Table(stack, path, layout)
        yield table
        if not table.images:
            raise _Empty  # so that a file that was begun does not replace another
        written.append(table.path)


def _write_at(file: Any, data: bytes, position: int) -> None:
    """Write all data to an unbuffered file, which may write a part at a time."""
    file.seek(position)
    while data:
        data = data[file.write(data) :]


def _json_rows(image: dict[str, Any], number: int) -> list[str]:
    """Return an image as an entry of the JSON list, with one line per detection."""
    rows = ",\n".join("    " + json.dumps(found) for found in image["detections"])
    head = json.dumps({name: image[name] for name in ("file", "width", "height")})
    tail = f'"detections": [\n{rows}\n  ]' if rows else '"detections": []'
    return [f"  {head[:-1]}, {tail}}}"]


def _csv_rows(image: dict[str, Any], number: int) -> list[str]:
    rows = []
    for found in image["detections"]:
        head = (_harmless(image["file"]), image["width"], image["height"])
        row = (_harmless(found["class"]), found["label"], found["score"], *found["box_xyxy"])
        rows.append(_csv_line((*head, *row)))
    return rows


def _csv_line(cells: Sequence[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\r\n").writerow(cells)  # so that both are quoted in cells
    return stream.getvalue().removesuffix("\r\n") + "\n"


def _harmless(text: str) -> str:
    """Return the text of a cell, such that no spreadsheet executes it."""
    return f"'{text}" if _FORMULA.match(text) else text


def _jsonl_rows(image: dict[str, Any], number: int) -> list[str]:
    return [json.dumps(image) + "\n"]


# The entries of the JSON, the CSV and the JSON Lines are the same.
JSON = Layout("[\n", _json_rows, ",\n", "\n]\n")
CSV = Layout(_csv_line(_COLUMNS), _csv_rows, "", "")
JSONL = Layout("", _jsonl_rows, "", "")
