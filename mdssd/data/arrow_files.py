"""Arrow and Parquet files within limits: a small one may state, or unpack to, any size."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mdssd.data.parquet_pages import Chunk, Page, read_chunks, read_pages
from mdssd.data.sample import DataError
from mdssd.data.values import shown
from mdssd.system.files import format_bytes, open_regular
from mdssd.system.kinds import VAGUE, kind_of_file

MAX_PART = 1 << 30  # bytes of a row group, or of all that is compressed in an Arrow file
_MAX_PAGE = 128 << 20  # bytes
_MAX_PAGES = 200_000  # of a column in a row group
_MAX_SCHEMA = 8 << 20  # bytes of the description of a file
_MAX_ROWS = 2_000_000  # of a file
_MAX_VALUES = 1_000_000  # in a row; eight characters count as one
_VALUE = 16  # bytes of a decoded number with what says in which list it is
_BATCH = 64  # rows that are read at a time
_ARROW = b"ARROW1\0\0"  # the first bytes of an Arrow file; a stream begins with its schema
_WORDS = ("binary", "large_binary", "binary_view", "string", "large_string", "string_view")


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet's by its ending."""
    return path.suffix.lower() == ".parquet"


def read_schema(path: Path) -> Any:
    """Return the schema of an Arrow or Parquet file.

    Raises:
        DataError: the file is damaged, or its description is too large.
    """
    with _reading(path):
        schema = _open_parquet(path).schema_arrow if is_parquet(path) else _open_arrow(path).schema
        for field in schema:
            _check_name(field)
        return schema


def _check_name(field: Any) -> None:
    """Raise UnicodeDecodeError if the name of a field, or of one inside it, is no text."""
    assert field.name is not None
    for k in range(field.type.num_fields):
        _check_name(field.type.field(k))


def read_batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Yield the rows of a file as record batches of 64 rows, with some of the columns.

    Raises:
        DataError: the file is damaged, or would take too much memory.
    """
    with _reading(path):
        if is_parquet(path):
            batches = _annotation_batches(path, columns)
        else:
            table = read_arrow(path, columns)
            batches = iter(table.to_batches(_BATCH))
        yield from batches


def read_arrow(path: Path, columns: list[str]) -> Any:
    """Return a table whose data stay in the file.

    Raises:
        DataError: the file is damaged, or would take too much memory.
    """
    with _reading(path):
        table = _open_arrow(path).read_all().select(columns)
        if table.num_rows > _MAX_ROWS:
            raise _too_large(path, f"has {table.num_rows:,} rows", f"{_MAX_ROWS:,}")
        table.validate(full=True)
        return table


def row_group_starts(path: Path) -> list[int]:
    """Return the number of the first row of each row group of a Parquet file."""
    with _reading(path):
        meta = _open_parquet(path).metadata
        starts = [0]
        for group in range(meta.num_row_groups):
            starts.append(starts[-1] + meta.row_group(group).num_rows)
        return starts[:-1]


def read_row_group(path: Path, group: int, column: str) -> Any:
    """Return a column of a row group of a Parquet file, as a table.

    Raises:
        DataError: the file is damaged, or the row group is too large.
    """
    with _reading(path):
        file = _open_parquet(path)
        pages = _pages(path, group, [column])
        largest = max((page.unpacked for page in pages), default=0)
        rows = max(1, min(_BATCH, _MAX_PAGE // max(1, largest)))
        batches, size = [], 0
        for batch in file.iter_batches(rows, [group], [column], use_threads=False):
            batch.validate(full=True)
            batches.append(batch)
            size += batch.nbytes
            if size > MAX_PART:  # a value of a dictionary may be in many rows
                what = f"row group {group} unpacks to more than {format_bytes(MAX_PART)}"
                raise _too_large(path, what, "that", "; write it with smaller row groups")
        arrow = _pyarrow()
        return arrow.Table.from_batches(batches, arrow.schema([file.schema_arrow.field(column)]))


def check_images(path: Path, column: str) -> None:
    """Raise DataError unless a column holds encoded images, or the names of their files."""
    schema = read_schema(path)
    kind = schema.field(schema.names.index(column)).type
    types = _pyarrow().types
    inner = [field.type for field in kind] if types.is_struct(kind) else [kind]
    if not all(str(each) in (*_WORDS, "null") for each in inner):
        raise DataError(
            f"{path}: the column '{column}' holds {shown(str(kind))}, expected the bytes of image "
            "files, or bytes and path"
        )


def as_rows(path: Path, batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yield each row of a batch as Python's values, or as the reason why it cannot be used."""
    with _reading(path):
        if _values(path, batch) <= _MAX_VALUES:
            yield from batch.to_pylist()
            return
        for number in range(len(batch)):
            row = batch.slice(number, 1)
            count = _values(path, row)
            if count <= _MAX_VALUES:
                yield row.to_pylist()[0]
            else:
                yield f"holds {count:,} values, expected at most {_MAX_VALUES:,} in a row"


def _values(path: Path, batch: Any) -> int:
    return sum(_count(path, array) for array in batch.columns)


def _count(path: Path, array: Any) -> int:
    """Return about how many values Python makes of an array."""
    import pyarrow.compute

    types, kind = _pyarrow().types, array.type
    if types.is_struct(kind):
        return len(array) + sum(_count(path, child) for child in array.flatten())
    if "list" in str(kind).split("<")[0]:  # also of fixed size, large ones and views
        inside = pyarrow.compute.sum(pyarrow.compute.list_value_length(array)).as_py() or 0
        if inside > _MAX_VALUES:
            return int(inside)
        return len(array) + _count(path, array.flatten())
    if types.is_dictionary(kind):
        longest = 0
        if str(kind.value_type) in _WORDS:
            longest = int(_lengths(array.dictionary).max(initial=0))
        return len(array) * (1 + longest // 8)
    if str(kind) in _WORDS:
        return len(array) + int(_lengths(array).sum(dtype=np.int64)) // 8
    if types.is_primitive(kind) or types.is_null(kind) or types.is_decimal(kind):
        return len(array)
    raise DataError(
        f"{path}: a column holds {shown(str(kind))}, expected numbers, text, lists and structs"
    )


def _lengths(array: Any) -> Any:
    """Return the bytes of each text of an array, as a numpy array."""
    import pyarrow.compute

    if not str(array.type).endswith("_view"):
        lengths = pyarrow.compute.fill_null(pyarrow.compute.binary_length(array), 0)
        return lengths.to_numpy(zero_copy_only=False)
    # Arrow has no function for views, each of which is its length and 12 bytes more.
    views = np.frombuffer(array.buffers()[1], "<i4").reshape(-1, 4)
    return np.maximum(views[array.offset : array.offset + len(array), 0], 0)


def _annotation_batches(path: Path, columns: list[str]) -> Iterator[Any]:
    file = _open_parquet(path)
    meta = file.metadata
    if meta.num_rows > _MAX_ROWS:
        raise _too_large(path, f"has {meta.num_rows:,} rows", f"{_MAX_ROWS:,}")
    # A text that is in many rows is in memory once, as it is in the file.
    words = {
        meta.schema.column(k).path
        for k in range(len(meta.schema))
        if meta.schema.column(k).physical_type == "BYTE_ARRAY"
    }
    file = _open_parquet(path, read_dictionary=sorted(words))
    for group in range(meta.num_row_groups):
        _pages(path, group, columns)
        for batch in file.iter_batches(_BATCH, [group], columns, use_threads=False):
            batch.validate(full=True)
            yield batch


@lru_cache(maxsize=8)
def _chunks(path: Path, changed: int, size: int) -> list[list[Chunk]]:
    """Return the columns of each row group of a file that was last changed at this time."""
    with open_regular(path) as file:
        file.seek(size - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(size - 8 - length)
        return read_chunks(file.read(length))


def _pages(path: Path, group: int, columns: list[str]) -> list[Page]:
    """Return the pages of columns in a row group.

    Raises:
        DataError: reading them would take too much memory.
    """
    pages: list[Page] = []
    size = 0
    with open_regular(path) as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        state = os.fstat(opened.fileno())
    for chunk in _chunks(path, state.st_mtime_ns, state.st_size)[group]:
        if not any(chunk.path == name or chunk.path.startswith(f"{name}.") for name in columns):
            continue
        for count, page in enumerate(read_pages(data, chunk.start, chunk.end)):
            size += page.unpacked + _VALUE * page.values
            where = f"row group {group}, column {shown(chunk.path)}:"
            if page.unpacked > _MAX_PAGE:
                what = f"{where} a page has {format_bytes(page.unpacked)}"
                raise _too_large(path, what, format_bytes(_MAX_PAGE))
            if count >= _MAX_PAGES:
                raise _too_large(path, f"{where} has too many pages", f"{_MAX_PAGES:,}")
            pages.append(page)
            if size > MAX_PART:
                what = f"row group {group} unpacks to {format_bytes(size)} or more"
                remedy = "; write it with smaller row groups"
                raise _too_large(path, what, format_bytes(MAX_PART), remedy)
    return pages


def _too_large(path: Path, what: str, most: str, remedy: str = "") -> DataError:
    return DataError(f"{path}: {what}, expected at most {most}{remedy}")


def _open_parquet(path: Path, **options: Any) -> Any:
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        end = file.read(8)
    if end[4:] in (b"PAR1", b"PARE"):
        _check_schema(path, int.from_bytes(end[:4], "little"))
    return _pyarrow().parquet.ParquetFile(path, memory_map=True, pre_buffer=False, **options)


def _check_schema(path: Path, size: int) -> None:
    if size > _MAX_SCHEMA:
        what = f"its description of the columns has {format_bytes(size)}"
        raise _too_large(path, what, format_bytes(_MAX_SCHEMA))


def _open_arrow(path: Path) -> Any:
    """Return a reader of an Arrow file or stream, which reads nothing that is too large."""
    arrow = _pyarrow()
    with open_regular(path) as file:
        at = len(_ARROW) if file.read(len(_ARROW)) == _ARROW else 0
    source = arrow.memory_map(str(path))
    source.seek(at)
    size = 0
    for message in arrow.ipc.MessageReader.open_stream(source):
        _check_schema(path, message.metadata.size)
        size += _unpacked(message)
        if size > MAX_PART:
            what = f"its batches unpack to {format_bytes(size)} or more"
            raise _too_large(path, what, format_bytes(MAX_PART), "; write it uncompressed")
    source.seek(at)
    return arrow.ipc.open_stream(source)


def _unpacked(message: Any) -> int:
    """Return the bytes to which the compressed buffers of a batch unpack.

    Arrow describes a batch in a FlatBuffer: a message's header is a record batch, or a dictionary
    that holds one. In a record batch the third field lists the buffers, and the fourth is there
    if they are compressed. Each of those begins with its size.
    """
    if message.type not in ("record batch", "dictionary"):
        return 0
    data, body = message.metadata, message.body
    table = _field(data, _pointer(data, 0), 2)
    if message.type == "dictionary" and table is not None:
        table = _field(data, _pointer(data, table), 1)
    batch = None if table is None else _pointer(data, table)
    if batch is None or _field(data, batch, 3) is None or (place := _field(data, batch, 2)) is None:
        return 0
    place = _pointer(data, place)
    size = 0
    for k in range(struct.unpack_from("<I", data, place)[0]):
        offset, length = struct.unpack_from("<qq", data, place + 4 + 16 * k)
        if length >= 8:
            size += max(0, *struct.unpack_from("<q", body, offset))
    return size


def _pointer(data: Any, at: int) -> int:
    return int(at + struct.unpack_from("<I", data, at)[0])


def _field(data: Any, table: int, number: int) -> int | None:
    """Return where a field of a FlatBuffer's table is; None if it has none."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    at = 4 + 2 * number
    if at >= struct.unpack_from("<H", data, fields)[0]:
        return None
    offset = struct.unpack_from("<H", data, fields + at)[0]
    return table + offset if offset else None


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "a Hugging Face data set needs the package pyarrow: pip install 'mdssd[parquet]'"
        ) from None
    return pyarrow


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises about a damaged file into a DataError."""
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path}: there is not enough memory to read it") from None
    except Exception as error:  # pyarrow raises many types
        kind = kind_of_file(path)
        if kind not in (*VAGUE, "a folder"):
            raise DataError(f"{path}: is {kind}, expected an Arrow or Parquet file") from None
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read, is it complete? ({reason})") from None
