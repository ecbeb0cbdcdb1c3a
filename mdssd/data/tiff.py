"""What the first directory of a TIFF file says about its pixels."""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

# The tags that are read, by the names of the fields below, and their values where one is absent.
_TAGS = {
    256: ("width", 0),
    257: ("height", 0),
    258: ("bits", 1),
    259: ("compression", 1),
    262: ("photometric", 1),
    274: ("orientation", 1),
    277: ("channels", 1),
    284: ("planes", 1),
    339: ("numbers", 1),
    34735: ("georeference", 0),
}
# The sizes and codes of the types of whole numbers: 8, 16, 32 and 64 bits.
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MOST_ENTRIES = 4096
_WHITE_IS_ZERO = 0
_FLOATS = 3


class TiffHeader(NamedTuple):
    """The size and the kind of the pixels of a TIFF file's first page.

    Attributes:
        width, height: in pixels, as stored.
        orientation: as in EXIF; 1 if the file does not state one.
        bits: of a channel.
        channels: of a pixel.
        planar: whether each channel lies by itself, one after another.
        floats: whether the pixels are floating-point numbers.
        white_is_zero: whether a grey image has the number 0 for white.
        pages: whether there is another page behind the first.
        photometric: the number of the kind of colours.
        compression: the number of the kind of compression.
        georeferenced: whether it is a GeoTIFF, which says where it lies on earth.
    """

    width: int
    height: int
    orientation: int
    bits: int
    channels: int
    planar: bool
    floats: bool
    white_is_zero: bool
    pages: bool
    photometric: int = 1
    compression: int = 1
    georeferenced: bool = False


def is_tiff(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is a TIFF or a BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff(file: BinaryIO) -> TiffHeader | None:
    """Read the first directory of a TIFF file; None if it is damaged.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from mdssd.data.tiff import read_tiff
        >>> file = io.BytesIO()
        >>> Image.new("I;16", (60, 40)).save(file, "TIFF")
        >>> header = read_tiff(file)
        >>> header.width, header.height, header.bits, header.channels
        (60, 40, 16, 1)
    """
    file.seek(0)
    start = file.read(16)
    if not is_tiff(start):
        return None
    order = "<" if start[:2] == b"II" else ">"
    big = b"+" in start[2:4]
    count_code, word, size = ("Q", "Q", 20) if big else ("H", "I", 12)
    try:
        (at,) = struct.unpack_from(order + word, start, 8 if big else 4)
        file.seek(at)
        (count,) = struct.unpack(order + count_code, file.read(struct.calcsize(count_code)))
        if not 0 < count <= _MOST_ENTRIES:
            return None
        directory = file.read(count * size + struct.calcsize(word))
        values = dict(_TAGS.values())
        for k in range(count):
            tag, kind, length = struct.unpack_from(f"{order}HH{word}", directory, k * size)
            if tag not in _TAGS or kind not in _TYPES or not length:
                continue
            code, place = _TYPES[kind], k * size + size - struct.calcsize(word)
            if length * struct.calcsize(code) <= struct.calcsize(word):
                (value,) = struct.unpack_from(order + code, directory, place)
            else:  # the values, of which the first is taken, lie elsewhere
                file.seek(*struct.unpack_from(order + word, directory, place))
                (value,) = struct.unpack(order + code, file.read(struct.calcsize(code)))
            values[_TAGS[tag][0]] = value
        (following,) = struct.unpack_from(order + word, directory, count * size)
    except (struct.error, OSError, OverflowError, ValueError):
        return None  # it is cut short, or an offset is senseless
    return TiffHeader(
        values["width"],
        values["height"],
        values["orientation"],
        values["bits"],
        values["channels"],
        planar=values["planes"] == 2 and values["channels"] > 1,
        floats=values["numbers"] == _FLOATS,
        white_is_zero=values["photometric"] == _WHITE_IS_ZERO,
        pages=following > 0,
        photometric=values["photometric"],
        compression=values["compression"],
        georeferenced=values["georeference"] > 0,
    )
