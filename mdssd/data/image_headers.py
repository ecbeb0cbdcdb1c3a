"""What the first bytes of an image file say: its format, size and orientation."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import simplejpeg
from PIL import Image, ImageFile

from mdssd.data.sample import DataError
from mdssd.data.tiff import is_tiff, read_tiff
from mdssd.system.kinds import kind_of_bytes

# The formats that Pillow is asked about. It is not asked about those that run other programs.
_PILLOW_FORMATS = ("BMP", "DIB", "GIF", "AVIF", "JPEG2000", "PPM")
# The names that `kind_of_bytes` gives the formats that can be read.
_READ = re.compile("a JPEG|a PNG|a GIF|a TIFF|a BMP|a WebP|an AVIF")
# The markers of a JPEG before its pixels usually fit into the first part.
_JPEG_PARTS = (1 << 16, 1 << 26)
_PNG = b"\x89PNG\r\n\x1a\n"
# What follows the pixels of a PNG usually fits into so many bytes.
_PNG_END = 1 << 16
_ORIENTATION = 274
# What has to be guessed of an image; see `ImageHeader.guess`.
MORE_PAGES = "has more than one page or frame; the first is read"
DEEP = "has more than 8 bits per channel; scaled to 8 by the bits that its largest value needs"
FLOATS = "has floating-point pixels; taken as 0 to 1, or as 0 to 255 if the largest is above 1"


class ImageHeader(NamedTuple):
    """What the header of an image file says.

    Attributes:
        width, height: the size in pixels, as stored.
        orientation: how the picture is turned to stand upright, 1 to 8 as in EXIF. 1 is as
            stored; 5 to 8 exchange width and height.
        format: the name that Pillow gives the format, such as "JPEG".
        guess: what reading the pixels has to guess, for people; "" if nothing.
    """

    width: int
    height: int
    orientation: int
    format: str
    guess: str = ""

    def size(self, upright: bool) -> tuple[int, int]:
        """Return (width, height) of the picture as stored, or turned upright.

        Example:
            >>> from mdssd.data.image_headers import ImageHeader
            >>> ImageHeader(4000, 3000, 6, "JPEG").size(upright=True)
            (3000, 4000)
        """
        if upright and self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height


def parse_header(file: BinaryIO, name: str) -> ImageHeader:
    """Read the header of an image.

    Args:
        file: a seekable file at its beginning. It is left at any position.
        name: the image's name in messages.

    Raises:
        DataError: the file is not an image of a format that can be read. The message says what
            it is.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from mdssd.data.image_headers import parse_header
        >>> file = io.BytesIO()
        >>> Image.new("L", (60, 40)).save(file, "PNG")
        >>> _ = file.seek(0)
        >>> parse_header(file, "a.png")
        ImageHeader(width=60, height=40, orientation=1, format='PNG', guess='')
    """
    start = file.read(4096)
    if not start:
        raise DataError(f"{name}: the file is empty")
    header = None
    if start[:2] == b"\xff\xd8":
        header = _jpeg(file, start) or _with_pillow(file, ("JPEG",))
    elif start[:8] == _PNG:
        header = _png(file, start)
    elif is_tiff(start):
        header = _tiff(file)
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        header = _webp(file, start)
    else:
        header = _with_pillow(file, _PILLOW_FORMATS)
    if header is None or min(header.width, header.height) < 1:
        fault = truncation(file)
        raise DataError(f"{name}: {f'the image is {fault}' if fault else _no_image(start)}")
    return header


def truncation(file: BinaryIO) -> str | None:
    """Return "truncated (why)" if a PNG, BMP or WebP file ends early; None for other formats."""
    file.seek(0)
    start = file.read(12)
    length = file.seek(0, os.SEEK_END)
    if start[:8] == _PNG:
        # OpenCV reserves the memory that a chunk asks for, so the last, which is empty, must be so.
        whole = any(kind == b"IEND" and size == 0 for kind, size in png_chunks(file))
        return None if whole else "truncated (no IEND chunk)"
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        stated = int.from_bytes(start[4:8], "little") + 8
    elif start[:2] == b"BM":
        stated = int.from_bytes(start[2:6], "little")
    else:
        return None
    return f"truncated ({length} of {stated} bytes)" if stated > length else None


def _no_image(start: bytes) -> str:
    """Return what is wrong with a file that begins like this and has no header of an image."""
    kind = "a JPEG image" if start[:2] == b"\xff\xd8" else kind_of_bytes(start)
    if _READ.match(kind):
        return f"is {kind} with a damaged header, or of a kind that cannot be read"
    if kind.endswith("image") or "raw" in kind:
        return f"is {kind}, which cannot be read; convert it to JPEG or PNG"
    return f"is not an image, but {kind}"


def open_with_pillow(file: BinaryIO, formats: tuple[str, ...]) -> ImageFile.ImageFile | None:
    """Open an image of one of these formats with Pillow, which reads its header; None if it fails.

    This is what `PIL.Image.open` does, without its limit on the number of pixels, which is global.
    """
    Image.init()
    file.seek(0)
    start = file.read(16)
    for name in formats:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None:
            continue
        file.seek(0)
        try:
            if accept and accept(start) is not True:
                continue
            image: ImageFile.ImageFile = factory(file, "")
        except Exception:  # Pillow raises many types for a damaged header
            continue
        return image
    return None


def _with_pillow(file: BinaryIO, formats: tuple[str, ...]) -> ImageHeader | None:
    image = open_with_pillow(file, formats)
    if image is None:
        return None
    orientation = exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
    # The second picture of an MPO, which many phones write as .jpg, is a preview or depths.
    name = "JPEG" if image.format == "MPO" else str(image.format)
    guesses = [MORE_PAGES] if name != "JPEG" and getattr(image, "is_animated", False) else []
    if image.mode == "F":
        guesses.append(FLOATS)
    elif image.mode.startswith("I"):
        guesses.append(DEEP)
    return ImageHeader(*image.size, orientation, name, "; ".join(guesses))


def _tiff(file: BinaryIO) -> ImageHeader | None:
    tiff = read_tiff(file)
    if tiff is None:
        return None
    guesses = [MORE_PAGES] if tiff.pages else []
    if tiff.floats:
        guesses.append(FLOATS)
    elif tiff.bits > 8:
        guesses.append(DEEP)
    orientation = _checked(tiff.orientation)
    return ImageHeader(tiff.width, tiff.height, orientation, "TIFF", "; ".join(guesses))


def _jpeg(file: BinaryIO, start: bytes) -> ImageHeader | None:
    data = start
    for amount in _JPEG_PARTS:
        more = file.read(amount)
        data += more
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except (ValueError, KeyError):  # KeyError: colours that are subsampled in a rare way
            if not more:
                return None
            continue
        orientation = exif_orientation(_jpeg_exif(data))
        return ImageHeader(width, height, orientation, "JPEG")
    return None


def _jpeg_exif(data: bytes) -> bytes:
    """Return the TIFF structure of a JPEG's EXIF segment, or nothing."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 10 : at + 2 + size]
        at += 2 + size
    return b""


def _webp(file: BinaryIO, start: bytes) -> ImageHeader | None:
    """Read the header of a WebP, of which Pillow would read the whole file."""
    orientation, guess = 1, ""
    try:
        if start[12:16] == b"VP8 ":  # lossy
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", start, 26))
        elif start[12:16] == b"VP8L":  # lossless
            (sides,) = struct.unpack_from("<I", start, 21)
            width, height = (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
        elif start[12:16] == b"VP8X":
            width, height = (int.from_bytes(start[k : k + 3], "little") + 1 for k in (24, 27))
            guess = MORE_PAGES if start[20] & 2 else ""
            if start[20] & 8:
                orientation = exif_orientation(_webp_exif(file))
        else:
            return None
    except (struct.error, IndexError):  # it is cut short
        return None
    return ImageHeader(width, height, orientation, "WEBP", guess)


def _webp_exif(file: BinaryIO) -> bytes:
    """Return the TIFF structure of a WebP's EXIF chunk, or nothing."""
    at = 12
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return b""
        kind, size = struct.unpack("<4sI", head)
        if kind == b"EXIF":
            return file.read(min(size, 1 << 16)).removeprefix(b"Exif\0\0")
        at += 8 + size + size % 2


def _png(file: BinaryIO, start: bytes) -> ImageHeader | None:
    if len(start) < 33 or start[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", start, 16)
    orientation = 1
    guesses = [DEEP] if start[24] > 8 else []
    for kind, size in _png_metadata(file):
        if kind == b"eXIf":
            orientation = exif_orientation(file.read(min(size, 1 << 16)))
        elif kind == b"acTL":
            guesses.append(MORE_PAGES)
    return ImageHeader(width, height, orientation, "PNG", "; ".join(guesses))


def _png_metadata(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the chunks of a PNG file as `png_chunks` does, but few of the pixels in between.

    Most programs divide the pixels into chunks of 8 KiB, of which a photograph has hundreds.
    """
    for kind, size in png_chunks(file):
        yield kind, size
        if kind == b"IDAT":
            break
    else:
        return
    first = file.tell() + size + 4
    last = max(first, file.seek(0, os.SEEK_END) - _PNG_END)
    file.seek(last)
    end = file.read()
    at = end.rfind(b"IDAT") - 4
    while (
        at >= 0
    ):  # if the chunks from here on lead to the last one, this is the last of the pixels
        chunks = list(png_chunks(io.BytesIO(end), at))
        if chunks[-1][0] == b"IEND":
            first = last + at
            break
        at = end.rfind(b"IDAT", 0, at + 4) - 4
    yield from png_chunks(file, first)


def png_chunks(file: BinaryIO, at: int = len(_PNG)) -> Iterator[tuple[bytes, int]]:
    """Yield the name and the size of each chunk of a PNG file, with the file at its content.

    They begin at the chunk at position `at`. The last is IEND, if the file is whole.
    """
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head)
        yield kind, size
        if kind == b"IEND":
            return
        at += 12 + size


def exif_orientation(tiff: bytes) -> int:
    """Return the orientation, 1 to 8, of the TIFF structure of EXIF data; 1 if there is none.

    Example:
        >>> from PIL import Image
        >>> from mdssd.data.image_headers import exif_orientation
        >>> exif = Image.Exif()
        >>> exif[274] = 6
        >>> exif_orientation(exif.tobytes().removeprefix(b"Exif" + bytes(2)))
        6
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for k in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * k)
            if tag == _ORIENTATION:
                return _checked(value)
    except struct.error:  # it is cut short
        pass
    return 1


def _checked(orientation: object) -> int:
    valid = isinstance(orientation, int) and 1 <= orientation <= 8
    return orientation if valid else 1  # type: ignore[return-value]
