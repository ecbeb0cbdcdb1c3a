"""Reading and decoding image files. Anything wrong with one is a DataError."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdssd.data.decoders import (
    decode_jpeg,
    decode_tiff,
    decode_with_opencv,
    decode_with_pillow,
    pillow_pixels,
    to_8_bits,
)
from mdssd.data.image_headers import ImageHeader, parse_header
from mdssd.data.sample import DataError
from mdssd.system.files import format_bytes, open_regular

# The suffixes, in lower case, of the files that count as images when a folder is searched.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
    *(".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# A JPEG, whose blocks are 8 x 8, can be decoded at these fractions of its size at less cost.
REDUCTIONS = (2, 4, 8)
# OpenCV decodes no more.
_MOST_PIXELS = 1 << 30
# The orientation that undoes another; the others undo themselves.
_BACK = {6: 8, 8: 6}


@dataclass(frozen=True)
class ImageLimits:
    """Which images are read.

    Attributes:
        max_pixels: the most pixels of an image, or twice as many as a JPEG 2000 may have, whose
            decoder needs much memory. A larger image is refused before it is decoded. A file may
            have ten times as many bytes.
        accept_damage: whether to accept a JPEG of which a part is missing or damaged, as far as
            it can be decoded.
        by_windows: whether a data set accepts a TIFF file above `max_pixels`, which detection and
            training on tiles read by windows. As a whole it is still refused.

    Raises:
        ValueError: max_pixels is below 1.

    Example:
        >>> from mdssd.data.images import ImageLimits
        >>> ImageLimits().max_pixels
        100000000
    """

    max_pixels: int = 100_000_000
    accept_damage: bool = False
    by_windows: bool = False

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels: expected 1 or more, got {self.max_pixels}")

    def is_raster(self, header: ImageHeader) -> bool:
        """Return whether a file is so large that it is read by windows, if it can be."""
        return header.format == "TIFF" and header.width * header.height > self.max_pixels

    def check(self, header: ImageHeader, name: str) -> None:
        """Raise DataError if an image has too many pixels."""
        cost = 2 if header.format == "JPEG2000" else 1
        pixels = header.width * header.height
        if cost * pixels > self.max_pixels:
            remedy = f"; if it is meant to be so large, use --max-pixels {cost * pixels}"
            if header.format == "TIFF":
                remedy += ", or --tile, which reads TIFF files by windows"
            raise DataError(
                f"{name}: has {header.width:,} x {header.height:,} pixels, expected at most "
                f"{self.max_pixels // cost:,} in all{remedy if pixels < _MOST_PIXELS else ''}"
            )


def read_image(
    path: str | os.PathLike[str], *, upright: bool = False, limits: ImageLimits = ImageLimits()
) -> NDArray[np.uint8]:
    """Read an image file.

    Every part of mdssd reads images by this function. Grey, palette and CMYK images are converted
    to RGB. An alpha channel is ignored. Of a file with several pages or frames the first is read.

    Pixels of 16 bits are scaled by the number of bits that the largest of them needs: 8, 10, 12,
    14 or 16. So 12 bits stored in 16 have their full brightness. Floating-point pixels are taken
    as 0 to 1, or as 0 to 255 if the largest is above 1.

    Args:
        path: a file in one of the formats JPEG, PNG, BMP, WebP, TIFF, GIF, AVIF, JPEG 2000 and
            PPM. Its contents decide the format, not its name.
        upright: whether to turn the picture as its EXIF orientation says. False returns the
            pixels as stored.
        limits: which images are accepted.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        DataError: the file is missing, not an image, damaged or too large. The message names it.

    Example:
        >>> import tempfile
        >>> import cv2, numpy as np
        >>> from mdssd.data import read_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = cv2.imwrite(f"{folder}/a.png", np.zeros((60, 80, 3), np.uint8))
        ...     read_image(f"{folder}/a.png").shape
        (60, 80, 3)
    """
    data = read_bytes(path, limits)
    return decode_image(data, os.fspath(path), upright=upright, limits=limits)


def read_bytes(path: str | os.PathLike[str], limits: ImageLimits = ImageLimits()) -> bytes:
    """Return the bytes of an image file, if its header says that it can be decoded.

    Raises:
        DataError: the file cannot be read, or it is not an image within the limits.
    """
    name = os.fspath(path)
    try:
        with open_regular(path) as file:
            limits.check(parse_header(file, name), name)
            size, most = os.fstat(file.fileno()).st_size, 10 * limits.max_pixels
            if size > most:
                raise DataError(
                    f"{name}: has {format_bytes(size)}, expected at most {format_bytes(most)}; "
                    "the limit is ten bytes for each pixel of --max-pixels"
                )
            file.seek(0)
            return file.read(size)  # not more: memory is reserved for it
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from None


def read_header(path: str | os.PathLike[str]) -> ImageHeader:
    """Return the size, the orientation and the format of an image file, from its header.

    Raises:
        DataError: the file cannot be read or is not an image. The message says what it is.

    Example:
        >>> import tempfile
        >>> import cv2, numpy as np
        >>> from mdssd.data.images import read_header
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = cv2.imwrite(f"{folder}/a.png", np.zeros((60, 80, 3), np.uint8))
        ...     read_header(f"{folder}/a.png").size(upright=True)
        (80, 60)
    """
    try:
        with open_regular(path) as file:
            return parse_header(file, os.fspath(path))
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from None


def decode_image(
    data: bytes,
    name: str = "image",
    reduction: int = 1,
    *,
    upright: bool = False,
    limits: ImageLimits = ImageLimits(),
) -> NDArray[np.uint8]:
    """Decode the bytes of an image file; see `read_image`.

    Args:
        data: the bytes.
        name: the image's name in messages.
        reduction: 1, 2, 4 or 8. Width and height are divided by it and rounded up. For a JPEG
            this makes decoding faster, because the full image is never computed.
        upright: whether to turn the picture as its EXIF orientation says.
        limits: which images are accepted.

    Returns:
        uint8 [ceil(H / reduction), ceil(W / reduction), 3], RGB; turned upright if asked.

    Raises:
        DataError: the data are not an image, damaged, or too large.

    Example:
        >>> import cv2, numpy as np
        >>> from mdssd.data import decode_image
        >>> data = cv2.imencode(".jpg", np.zeros((60, 81, 3), np.uint8))[1].tobytes()
        >>> decode_image(data).shape, decode_image(data, reduction=2).shape
        ((60, 81, 3), (30, 41, 3))
    """
    try:
        return _decode(data, name, reduction, upright, limits)
    except (MemoryError, cv2.error) as error:  # OpenCV has an error of its own for a lack of memory
        reason = getattr(error, "err", "") or "there is not enough memory"
        raise DataError(f"{name}: cannot be decoded ({reason})") from None


def _decode(
    data: bytes, name: str, reduction: int, upright: bool, limits: ImageLimits
) -> NDArray[np.uint8]:
    header = parse_header(io.BytesIO(data), name)
    limits.check(header, name)
    reduced = header._replace(
        width=-(-header.width // reduction), height=-(-header.height // reduction)
    )
    if header.format == "JPEG":
        image = decode_jpeg(data, name, reduced, reduction, limits.accept_damage)
    elif header.format in ("PNG", "BMP", "DIB") or _is_still_webp(data):
        image = decode_with_opencv(data, name)
    elif header.format == "TIFF":
        image = decode_tiff(data, name, limits.max_pixels)
    else:
        image = decode_with_pillow(data, name, header.format)
    if image.dtype != np.uint8:
        image = to_8_bits(image, name)
    turns = header.orientation if upright else 1
    if header.format == "TIFF":  # the decoders always turn it upright
        turns = 1 if upright else _BACK.get(header.orientation, header.orientation)
    image = turned(image, turns)
    size = reduced.size(upright)
    if image.shape[1::-1] != size:  # of the formats only JPEG is decoded at a fraction
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return image


def from_pillow(
    image: Image.Image, name: str = "image", *, upright: bool = True
) -> NDArray[np.uint8]:
    """Return the pixels of a Pillow image as `read_image` returns those of its file.

    Args:
        image: the image, in any mode. It may be one that is not loaded yet.
        name: its name in messages.
        upright: whether to turn the picture as its EXIF orientation says. (A TIFF that Pillow has
            loaded already is always turned.)

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        DataError: it cannot be loaded, or its pixels are outside the range of `read_image`.

    Example:
        >>> from PIL import Image
        >>> from mdssd.data.images import from_pillow
        >>> from_pillow(Image.new("L", (80, 60))).shape
        (60, 80, 3)
    """
    if not all(image.size):
        size = " x ".join(map(str, image.size))
        raise DataError(f"{name}: the image has {size} pixels, expected at least 1 x 1")
    try:
        stored = _orientation_of(image)
        image.load()
        # Pillow turns a TIFF itself when it loads it, and then removes the orientation.
        loaded = _orientation_of(image)
        pixels = pillow_pixels(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types for damaged pixels
        raise DataError(f"{name}: the image is damaged ({error})") from None
    if pixels.dtype != np.uint8:
        pixels = to_8_bits(pixels, name)
    if upright:
        return turned(pixels, loaded)
    return pixels if stored == loaded else turned(pixels, _BACK.get(stored, stored))


def _orientation_of(image: Image.Image) -> int:
    orientation = image.getexif().get(274, 1)
    return orientation if isinstance(orientation, int) else 1


def turned(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return a picture turned and mirrored as an EXIF orientation says.

    Args:
        image: uint8 [H, W, 3].
        orientation: 1 to 8; 1 leaves it as it is.

    Example:
        >>> import numpy as np
        >>> from mdssd.data.images import turned
        >>> turned(np.zeros((60, 80, 3), np.uint8), 6).shape
        (80, 60, 3)
    """
    if orientation >= 5:
        image = cv2.transpose(image).astype(np.uint8, copy=False)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if flip is None else cv2.flip(image, flip).astype(np.uint8, copy=False)


def _is_still_webp(data: bytes) -> bool:
    animated = data[12:16] == b"VP8X" and bool(data[20] & 2)
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and not animated
