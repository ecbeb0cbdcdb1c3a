"""The rows that a bulk job writes, as Parquet."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

# One row is a detection. An image without detections, and one that cannot be read, has one row, in
# which everything from the class on is missing, apart from the error.
COLUMNS = {
    "file": "string",
    "width": "int32",
    "height": "int32",
    "class": "string",
    "label": "int32",
    "score": "float32",
    "x1": "float32",
    "y1": "float32",
    "x2": "float32",
    "y2": "float32",
    "tiles": "int32",
    "error": "string",
}
_NOTHING: dict[str, Any] = dict.fromkeys(COLUMNS)


class Rows:
    """Collects the rows of a shard.

    Attributes:
        images, failed, detections: how many there are: images that were read, images that could
            not be, and boxes.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.images = self.failed = self.detections = 0

    def add(self, entry: Mapping[str, Any], tiles: int) -> None:
        """Add an image by its entry of the tables, see `table_entry`.

        Args:
            entry: the image and its detections.
            tiles: how many tiles the network was shown; 0 if it was shown the whole image.
        """
        size = {"width": entry["width"], "height": entry["height"], "tiles": tiles}
        image = _NOTHING | size | {"file": _text(entry["file"])}
        for found in entry["detections"]:
            box = dict(zip(("x1", "y1", "x2", "y2"), found["box_xyxy"], strict=True))
            named = {name: found[name] for name in ("class", "label", "score")}
            self._append(image | named | box)
        if not entry["detections"]:
            self._append(image)
        self.images += 1
        self.detections += len(entry["detections"])

    def add_failed(self, file: str, reason: str) -> None:
        """Add an image that cannot be read."""
        self._append(_NOTHING | {"file": _text(file), "error": _text(reason)})
        self.failed += 1

    def _append(self, row: Mapping[str, Any]) -> None:
        for name, values in self._columns.items():
            values.append(row[name])

    def to_parquet(self) -> bytes:
        """Return the rows as a Parquet file with one row group."""
        import pyarrow
        from pyarrow import parquet

        schema = pyarrow.schema([(name, kind) for name, kind in COLUMNS.items()])
        table = pyarrow.table(self._columns, schema=schema)
        file = io.BytesIO()
        parquet.write_table(table, file, row_group_size=max(1, table.num_rows))
        return file.getvalue()


def _text(name: str) -> str:
    """Return a text that UTF-8 can hold: bytes of a name that are no text become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
