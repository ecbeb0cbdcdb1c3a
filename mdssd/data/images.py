"""Reading and decoding image files. Anything wrong with one is a DataError."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np

from mdssd.data.sample import DataError

# The suffixes, in lower case, of the files that count as images when a folder is searched.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

# A JPEG, whose blocks are 8 x 8, can be decoded at these fractions of its size at less cost.
REDUCTIONS = (2, 4, 8)
_DECODE = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
# A marker is FF and a code. FF00 is pixel data, FFD0 to FFD7 are restart markers in it, FFFF is
# padding.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# The frame header is usually within the first part; after large EXIF or ICC data, the second.
_HEADER_BYTES = (1 << 13, 1 << 20)


def path_inside(folder: Path, name: str, where: str) -> Path:
    """Return `folder / name` if it lies inside `folder`, with symbolic links resolved.

    `where` is the file that holds the name, for messages. Raises DataError for any other path.
    """
    path = folder / name
    try:
        real = os.path.realpath(path)
        top = os.path.realpath(folder)
    except (ValueError, OSError) as error:
        raise DataError(f"{where}: {name!r} is not a file name ({error})") from None
    if not real.startswith(top.rstrip(os.sep) + os.sep):
        raise DataError(f"{where}: {name!r} leaves the folder {folder}")
    return path


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file.

    Grey, 16-bit, palette and alpha images are converted to RGB. The EXIF orientation is not
    applied, because annotations refer to the pixels as stored.

    Args:
        path: the file, in any format that OpenCV reads.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        DataError: the file is missing, truncated or not an image. The message names it.

    Example:
        >>> import tempfile
        >>> import cv2, numpy as np
        >>> from mdssd.data import read_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = cv2.imwrite(f"{folder}/a.png", np.zeros((60, 80, 3), np.uint8))
        ...     read_image(f"{folder}/a.png").shape
        (60, 80, 3)
    """
    return decode_image(read_bytes(path), os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes. Raises DataError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG, or None for other formats and a missing header."""
    return _jpeg(data)[0] if data[:2] == b"\xff\xd8" else None


def decode_image(data: bytes, name: str = "image", reduction: int = 1) -> np.ndarray:
    """Decode the bytes of an image file; see `read_image`.

    Args:
        data: the bytes.
        name: the image's name in messages.
        reduction: 1, 2, 4 or 8. Width and height are divided by it and rounded up. For a JPEG
            this makes decoding faster, because the full image is never computed.

    Returns:
        uint8 [ceil(H / reduction), ceil(W / reduction), 3], RGB.

    Raises:
        DataError: the data are truncated or not an image.

    Example:
        >>> import cv2, numpy as np
        >>> from mdssd.data import decode_image
        >>> data = cv2.imencode(".jpg", np.zeros((60, 81, 3), np.uint8))[1].tobytes()
        >>> decode_image(data).shape, decode_image(data, reduction=2).shape
        ((60, 81, 3), (30, 41, 3))
    """
    if not data:
        raise DataError(f"{name}: the file is empty")
    # OpenCV silently fills the missing part of a truncated JPEG with grey.
    if fault := _truncation(data):
        raise DataError(f"{name}: the image is truncated ({fault})")
    try:
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), _DECODE[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error as error:
        raise DataError(f"{name}: cannot be decoded as an image ({error.err})") from None
    if image is None:
        raise DataError(f"{name}: not an image, or a damaged one")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def read_size(path: Path) -> tuple[int, int] | None:
    """Return (width, height) from the header of a JPEG or PNG file, or None if it has none.

    Raises DataError if the file cannot be read.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        data = b""
        for amount in _HEADER_BYTES:
            data += file.read(amount)
            if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
                return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
            if data[:2] != b"\xff\xd8":
                return None
            if size := _jpeg(data)[0]:
                return size
    return None


def _truncation(data: bytes) -> str | None:
    """Return why the data are truncated, or None if they are complete or cannot be checked."""
    if data[:2] == b"\xff\xd8":
        return None if _jpeg(data)[1] else "no end-of-image marker"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return None if _png_ends(data) else "no IEND chunk"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        stated = int.from_bytes(data[4:8], "little") + 8
    elif data[:2] == b"BM":
        stated = int.from_bytes(data[2:6], "little")
    else:
        return None
    return f"{len(data)} of {stated} bytes" if stated > len(data) else None


def _jpeg(data: bytes) -> tuple[tuple[int, int] | None, bool]:
    """Walk the segments. Return (width, height), None without a frame header, and if it ends."""
    size, at = None, 2
    while marker := _JPEG_MARKER.search(data, at):
        code, at = data[marker.end() - 1], marker.end()
        if code == 0xD9:
            return size, True
        if code in _JPEG_FRAMES and len(data) >= at + 7:
            size = (
                int.from_bytes(data[at + 5 : at + 7], "big"),
                int.from_bytes(data[at + 3 : at + 5], "big"),
            )
        at += int.from_bytes(data[at : at + 2], "big")
    return size, False


def _png_ends(data: bytes) -> bool:
    at = 8
    while at + 12 <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False
