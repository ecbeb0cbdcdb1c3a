"""The tables that `detect` writes: the boxes of all images as JSON or CSV.

A cell of the CSV that a spreadsheet might execute, because the text begins with =, +, -, @, a tab
or a line end, has an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

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


AddImage: TypeAlias = Callable[[dict[str, Any]], None]


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


@contextmanager
def open_table(out: Path, form: str, written: list[Path]) -> Iterator[AddImage]:
    """Open a table for the time of a block, and yield a function that adds an image to it.

    The file appears when the block ends, and its path is then added to `written`. If no image was
    added, there is no file. If an image cannot be added, because the disk is full, the table still
    holds those before it.

    Args:
        out: the folder, which is created if it is missing.
        form: "json" or "csv".
        written: receives the path.
    """
    path = table_path(out, form)
    rows, tail = {"json": (_json_rows, b"\n]\n"), "csv": (_csv_rows, b"")}[form]
    file: Any = None
    end = 0  # of the rows, where the tail begins
    with ExitStack() as stack:

        def add(image: dict[str, Any]) -> None:
            nonlocal file, end
            text = rows(image, file is None).encode("utf-8", "surrogateescape")
            if file is None:
                out.mkdir(parents=True, exist_ok=True)
                buffered: Any = stack.enter_context(atomic_write(path, "wb"))
                file = buffered.raw
            try:
                _write_at(file, text + tail, end)
            except OSError as error:
                _write_at(file, tail, end)  # it was there before, so the disk has room for it
                file.truncate(end + len(tail))
                error.filename = error.filename or str(path)
                raise
            end += len(text)

        yield add
        if end:
            written.append(path)


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
