"""Read the weights of a Caffe model, a message of protobuf.

The package protobuf is not used, because it makes an object of every message in a file: one of
600 MB can fill 20 GB. Here only the few fields that lead to weights are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Layers, blobs and dimensions, and the fields beside them. A model of 100 layers has 3,000.
_FIELDS = 100_000
# From caffe.proto: the field of a layer in a net, and those of its name and blobs in a layer. 2 is
# the field of layers in models before 2015.
_LAYERS = {100: (1, 7), 2: (4, 6)}
# The fields of a blob. Models before 2015 have four sizes instead of a shape.
_SIZES, _DATA, _SHAPE, _DIM = (1, 2, 3, 4), 5, 7, 1


class _Field(NamedTuple):
    """A field of a message: its number, and a whole number or the place of its bytes in the file.

    A field of another type, such as a single float, has the number 0.
    """

    number: int
    value: int | range


class _Reader:
    """Reads messages of a file. Together they may have 100,000 fields.

    Raises:
        ValueError: the file is damaged or has more fields.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._left = _FIELDS

    def fields(self, message: range) -> Iterator[_Field]:
        """The fields of the message at this place, in their order."""
        position = message.start
        while position < message.stop:
            start = position
            tag, position = self.number(position, message)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 2**29 or kind not in (0, 1, 2, 5):
                raise _damaged(start)
            if kind == 0:
                value, position = self.number(position, message)
                yield _Field(number, value)
                continue
            size = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                size, position = self.number(position, message)
            if (end := position + size) > message.stop:
                outer = "file" if message.stop == len(self.content) else "message around it"
                raise ValueError(
                    f"a Caffe model cut short: the field at byte {start} ends at byte {end}, "
                    f"the {outer} at byte {message.stop}"
                )
            yield _Field(number if kind == 2 else 0, range(position, end))
            position = end

    def numbers(self, field: _Field) -> list[int]:
        """The whole numbers of a field, which has one, or several packed into bytes."""
        if isinstance(field.value, int):
            return [field.value]
        found, position = [], field.value.start
        while position < field.value.stop:
            number, position = self.number(position, field.value)
            found.append(number)
        return found

    def number(self, position: int, message: range) -> tuple[int, int]:
        """The whole number at a position, of seven bits in a byte, and the position after it."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"a Caffe model of more than {_FIELDS} fields")
        value = 0
        for k, byte in enumerate(self.content[position : min(position + 10, message.stop)]):
            value |= (byte & 127) << 7 * k
            if byte < 128:
                return value % 2**64, position + k + 1
        raise _damaged(position)


def _damaged(place: int) -> ValueError:
    return ValueError(
        f"not a Caffe model, or a damaged one: byte {place} does not begin a valid field"
    )


def read_caffe(content: bytes) -> dict[str, Tensor]:
    """Return the blobs of a Caffe model, with the names `<layer>.weight` and `<layer>.bias`.

    Args:
        content: the content of the file.

    Raises:
        ValueError: it is not a Caffe model, a damaged one, or has no weights.

    Example:
        >>> from mdssd.weights.caffe_files import read_caffe
        >>> blob = bytes([58, 3, 10, 1, 1, 42, 4, 0, 0, 128, 63])  # of shape [1]
        >>> layer = bytes([10, 1]) + b"a" + bytes([58, len(blob)]) + blob
        >>> read_caffe(bytes([162, 6, len(layer)]) + layer)
        {'a.weight': tensor([1.])}
    """
    reader = _Reader(content)
    tensors: dict[str, Tensor] = {}
    for field in reader.fields(range(len(content))):
        if field.number not in _LAYERS or isinstance(field.value, int):
            continue
        name, blobs = _layer(reader, field.value, *_LAYERS[field.number])
        for part, place in zip(("weight", "bias"), blobs, strict=False):
            key = f"{name}.{part}"
            if key in tensors:
                raise ValueError(f"{key!r} occurs twice")
            tensors[key] = _blob(reader, key, place)
    if not tensors:
        raise ValueError(f"a Caffe model without weights ({len(content)} bytes)")
    return tensors


def _layer(
    reader: _Reader, message: range, name_field: int, blob_field: int
) -> tuple[str, list[range]]:
    """The name of a layer, and the places of its blobs."""
    name, blobs = b"", []
    for field in reader.fields(message):
        if isinstance(field.value, range):
            if field.number == name_field:
                name = reader.content[field.value.start : field.value.stop]
            elif field.number == blob_field:
                blobs.append(field.value)
    return name.decode(errors="replace"), blobs


def _blob(reader: _Reader, name: str, message: range) -> Tensor:
    sizes = dict.fromkeys(_SIZES, 0)
    shape: list[int] | None = None
    data = []
    for field in reader.fields(message):
        if isinstance(field.value, int):
            if field.number in sizes:
                sizes[field.number] = field.value
        elif field.number == _DATA:
            data.append(reader.content[field.value.start : field.value.stop])
        elif field.number == _SHAPE:
            shape = shape or []
            for inner in reader.fields(field.value):
                shape += reader.numbers(inner) if inner.number == _DIM else []
    if shape is None:
        shape = list(sizes.values())
        while len(shape) > 1 and shape[0] == 1:  # old models store a vector as 1 x 1 x 1 x length
            del shape[0]
    if len(shape) > 4:
        raise ValueError(f"{name!r}: expected at most 4 dimensions, got {len(shape)}")
    floats = b"".join(data)
    if 4 * math.prod(shape) != len(floats):
        raise ValueError(
            f"{name!r}: its shape {shape} needs {4 * math.prod(shape)} bytes of 32-bit numbers, "
            f"the file has {len(floats)}"
        )
    return torch.from_numpy(np.frombuffer(floats, "<f4").astype(np.float32)).reshape(shape)
