"""The headers of the pages of a Parquet file, which say what reading it will take."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

_Bytes: TypeAlias = bytes | mmap.mmap

_DICTIONARY = 2
# The fields of a page header, and of the headers of its kinds, in Parquet's Thrift.
_KIND, _UNPACKED, _PACKED = 1, 2, 3
_INNER = (5, 7, 8)  # a data page, a dictionary page, a data page of version 2
_VALUES = 1
_DEPTH = 4


class Page(NamedTuple):
    """A page.

    Attributes:
        unpacked: its bytes after decompression.
        values: the number of values, nulls included; 0 for a dictionary.
    """

    unpacked: int
    values: int


def read_pages(data: _Bytes, start: int, end: int) -> Iterator[Page]:
    """Yield the pages of a column of a row group.

    The description at the end of a file may state other sizes than its pages do, and a reader
    allocates what the pages state.

    Args:
        data: the bytes of the file.
        start: the offset of the first page.
        end: the offset behind the last one.

    Raises:
        ValueError: a header is damaged. The message has its offset.

    Example:
        >>> from mdssd.data.parquet_pages import read_pages
        >>> header = bytes([0x15, 0, 0x15, 200, 1, 0x15, 0, 0x2C, 0x15, 14, 0, 0])
        >>> list(read_pages(header, 0, len(header)))
        [Page(unpacked=100, values=7)]
    """
    at = start
    while at < end:
        try:
            header, body = _struct(data, at, _DEPTH)
        except IndexError:
            raise ValueError(f"the page header at byte {at} is not complete") from None
        unpacked, packed = header.get(_UNPACKED), header.get(_PACKED)
        counts = [found for f in _INNER if isinstance(found := header.get(f), dict)]
        values = counts[0].get(_VALUES) if counts else 0
        sizes = [size for size in (unpacked, packed, values) if isinstance(size, int) and size >= 0]
        if len(sizes) < 3 or at < 0:
            raise ValueError(f"the page header at byte {at} has wrong sizes")
        yield Page(sizes[0], 0 if header.get(_KIND) == _DICTIONARY else sizes[2])
        at = body + sizes[1]


class Chunk(NamedTuple):
    """A column of a row group.

    Attributes:
        path: the names of the column and of the fields in it, joined by points.
        start: the offset of its first page.
        end: the offset behind the last one.
    """

    path: str
    start: int
    end: int


def read_chunks(footer: bytes) -> list[list[Chunk]]:
    """Return the columns of each row group, from the description at the end of a Parquet file.

    pyarrow gives them as well, but it ends the process where their statistics are damaged.

    Raises:
        ValueError: the description is damaged.
    """
    try:
        groups = _struct(footer, 0, 12, lists=True)[0][4]
        return [[_chunk(column[3]) for column in group[1]] for group in groups]
    except (IndexError, KeyError, TypeError, UnicodeDecodeError):
        raise ValueError("the description of the columns is damaged") from None


def _chunk(meta: Any) -> Chunk:
    offsets = [meta[9], meta.get(11, 0)]
    start = min((offset for offset in offsets if offset > 0), default=0)
    return Chunk(b".".join(meta[3]).decode(), start, start + meta[7])


def _struct(data: _Bytes, at: int, depth: int, lists: bool = False) -> tuple[dict[int, Any], int]:
    """Return the values of a struct in Thrift's compact form by their numbers, and its end."""
    if not depth:
        raise ValueError(f"the page header at byte {at} is too deep")
    fields: dict[int, Any] = {}
    number = 0
    while True:
        byte = data[at]
        at += 1
        if byte == 0:
            return fields, at
        kind, step = byte & 15, byte >> 4
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        if kind in (1, 2):  # true and false
            fields[number] = kind == 1
        else:
            fields[number], at = _value(data, at, kind, depth, lists)


def _value(data: _Bytes, at: int, kind: int, depth: int, lists: bool) -> tuple[Any, int]:
    if kind == 3 or (kind in (1, 2) and lists):
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _unsigned(data, at)
        return data[at : at + length] if lists else None, at + length
    if kind == 12:
        return _struct(data, at, depth - 1, lists)
    if kind != 9 or not lists:
        raise ValueError(f"the page header at byte {at} has a field of type {kind}")
    byte = data[at]
    size, at = (byte >> 4, at + 1) if byte >> 4 < 15 else _unsigned(data, at + 1)
    values = []
    for _ in range(size):
        value, at = _value(data, at, byte & 15, depth, lists)
        values.append(value)
    return values, at


def _unsigned(data: _Bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"the page header at byte {at} has a number of too many bytes")


def _integer(data: _Bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return value >> 1 ^ -(value & 1), at
