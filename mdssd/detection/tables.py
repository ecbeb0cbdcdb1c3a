"""The tables that `detect` writes: the boxes of all images as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from mdssd.detection.detector import Streamed
from mdssd.system.files import atomic_write

_COLUMNS = ("file", "width", "height", "class", "label", "score", "x1", "y1", "x2", "y2")


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


@contextmanager
def open_table(out: Path, form: str, written: list[Path]) -> Iterator[AddImage]:
    """Open a table for the time of a block, and yield a function that adds an image to it.

    The file appears when the block ends, and its path is then added to `written`. If no image was
    added, there is no file.

    Args:
        out: the folder, which is created if it is missing.
        form: "json" or "csv".
        written: receives the path.
    """
    path = out / f"detections.{form}"
    rows, tail = {"json": (_json_rows, "\n]\n"), "csv": (_csv_rows, "")}[form]
    file: IO[bytes] | None = None
    with ExitStack() as stack:

        def add(image: dict[str, Any]) -> None:
            nonlocal file
            text = rows(image, file is None)
            if file is None:
                out.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(atomic_write(path, "wb"))
            file.write(text.encode("utf-8", "surrogateescape"))

        yield add
        if file is not None:
            file.write(tail.encode())
            written.append(path)


def _json_rows(image: dict[str, Any], first: bool) -> str:
    """Return an image as an entry of the JSON list, with one line per detection."""
    rows = ",\n".join("    " + json.dumps(found) for found in image["detections"])
    head = json.dumps({name: image[name] for name in ("file", "width", "height")})
    tail = f'"detections": [\n{rows}\n  ]' if rows else '"detections": []'
    return ("[\n" if first else ",\n") + f"  {head[:-1]}, {tail}}}"


def _csv_rows(image: dict[str, Any], first: bool) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if first:
        writer.writerow(_COLUMNS)
    for found in image["detections"]:
        head = (image["file"], image["width"], image["height"])
        row = (found["class"], found["label"], found["score"], *found["box_xyxy"])
        writer.writerow((*head, *row))
    return stream.getvalue()
