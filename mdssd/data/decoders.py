"""Decoding image files to RGB with the library that can, and scaling pixels to 8 bits."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile

from mdssd.data.image_headers import ImageHeader, open_with_pillow, truncation
from mdssd.data.sample import DataError
from mdssd.data.tiff import read_tiff
from mdssd.system.files import format_bytes

# What simplejpeg says of a whole picture that its encoder wrote carelessly, or in a rare way.
_NO_DAMAGE = re.compile("^Invalid SOS|^Unknown Adobe|unknown JFIF|subsampling level")
# The numbers of bits that cameras and scanners store in 16.
_BITS = (8, 10, 12, 14, 16)
# Pillow's modes of pixels that do not have 8 bits.
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")
# The most bytes of a decoded pixel of more than 8 bits per channel, on average: RGBA of 16 bits.
_BYTES = 8
# A picture is converted in strips of about this many pixels, because a copy of all might be large.
_STRIP = 1 << 18


def decode_jpeg(
    data: bytes, name: str, reduced: ImageHeader, reduction: int, accept_damage: bool
) -> NDArray[Any]:
    """Decode a JPEG. libjpeg fills the missing parts with grey and warns, which is damage here."""
    size = {"min_height": reduced.height, "min_width": reduced.width, "min_factor": reduction}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=not accept_damage, **size)
    except KeyError:  # colours that are subsampled in a rare way
        return decode_with_opencv(data, name)
    except ValueError as error:
        fault = str(error)
    if accept_damage or _NO_DAMAGE.search(fault):
        return decode_with_opencv(data, name)
    if "Premature end of JPEG file" in fault:
        raise DataError(f"{name}: the image is truncated (no end-of-image marker)")
    raise DataError(f"{name}: the image is damaged ({fault})")


def decode_with_opencv(data: bytes, name: str) -> NDArray[Any]:
    """Decode to RGB of 8 bits, or of more if the file has more."""
    if fault := truncation(io.BytesIO(data)):
        raise DataError(f"{name}: the image is {fault}")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise DataError(f"{name}: the image is damaged, or of a kind that cannot be decoded")
    for strip in _strips(image):
        cv2.cvtColor(strip, cv2.COLOR_BGR2RGB, dst=strip)
    return image


def decode_with_pillow(data: bytes, name: str, form: str) -> NDArray[Any]:
    """Decode to RGB of 8 bits, or to grey of more."""
    image = open_with_pillow(io.BytesIO(data), (form,))
    if image is None:
        why = truncation(io.BytesIO(data)) or "damaged"
        raise DataError(f"{name}: the image is {why}")
    return _loaded(image, name)


def decode_tiff(data: bytes, name: str, max_pixels: int) -> NDArray[Any]:
    """Decode with Pillow, and with OpenCV what Pillow cannot: colours of more than 8 bits."""
    tiff = read_tiff(io.BytesIO(data))
    assert tiff is not None  # its header was read before
    image = open_with_pillow(io.BytesIO(data), ("TIFF",))
    if image is not None and (image.mode in _DEEP_MODES or tiff.bits <= 8):
        return _loaded(image, name)
    kind = f"{tiff.channels} channel{'s' * (tiff.channels > 1)} of {tiff.bits} bits"
    needed, most = tiff.width * tiff.height * tiff.channels * tiff.bits // 8, _BYTES * max_pixels
    if needed > most:
        raise DataError(
            f"{name}: {tiff.width:,} x {tiff.height:,} pixels, each with {kind}, need "
            f"{format_bytes(needed)}, expected at most {format_bytes(most)}; the limit is {_BYTES} "
            "bytes for each pixel of --max-pixels"
        )
    pixels = None
    if not tiff.planar or tiff.bits <= 8:  # otherwise OpenCV mixes the channels up
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    grey = pixels is not None and pixels.ndim == 2
    if (
        pixels is None
        or (tiff.bits > 8 and pixels.dtype == np.uint8)
        or (grey and tiff.channels > 2)  # colours that the file says are grey
    ):
        how = " one after another (planar)" if tiff.planar else ""
        raise DataError(
            f"{name}: is a damaged TIFF, or of a kind that cannot be read, with {kind}{how}; "
            "convert it to interleaved RGB of 8 or 16 bits"
        )
    if pixels.ndim == 3:
        for strip in _strips(pixels):
            strip[..., :3] = strip[..., 2::-1]
        pixels = pixels[..., :3]
        if pixels.dtype == np.uint8:  # otherwise scaling makes a copy
            pixels = np.ascontiguousarray(pixels)
    elif pixels.dtype == np.uint8:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return _black_is_zero(pixels) if tiff.white_is_zero else pixels


def _black_is_zero(pixels: NDArray[Any]) -> NDArray[Any]:
    """Turn the numbers of a grey image of more than 8 bits in which 0 is white."""
    return np.iinfo(pixels.dtype).max - pixels if pixels.dtype == np.uint16 else pixels


def _loaded(image: ImageFile.ImageFile, name: str) -> NDArray[Any]:
    try:
        return pillow_pixels(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types for damaged pixels
        raise DataError(f"{name}: the image is damaged ({error})") from None


def pillow_pixels(image: Image.Image) -> NDArray[Any]:
    """Return the pixels of a Pillow image as RGB of 8 bits, or as grey of more."""
    image.load()
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    if image.mode in _DEEP_MODES:
        pixels = np.asarray(image)
        return _black_is_zero(pixels) if tags.get(262) == 0 else pixels  # Pillow does not turn them
    if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8:
        raise ValueError("Pillow mixes up channels of 16 bits that lie one after another")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    top = 0
    for strip in _strips(pixels):
        part = image.crop((0, top, image.width, top + len(strip)))
        strip[:] = np.asarray(part.convert("RGB"))
        top += len(strip)
    return pixels


def _strips(image: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield views of a few rows each: a temporary copy of a whole large image would be large."""
    rows = max(1, _STRIP // image.shape[1])
    return (image[top : top + rows] for top in range(0, len(image), rows))


def shift_to_8_bits(largest: int) -> int:
    """Return by how many bits whole numbers up to 65535 are shifted, from the largest of them.

    Example:
        >>> from mdssd.data.decoders import shift_to_8_bits
        >>> shift_to_8_bits(4095), shift_to_8_bits(255)
        (4, 0)
    """
    return next(bits for bits in _BITS if largest < 1 << bits) - 8


def to_8_bits(image: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Scale whole numbers by the bits that they use, and fractions from 0-1. Return RGB."""
    low, high = image.min(), image.max()
    if image.dtype.kind == "f":
        if not 0 <= low <= high <= 255:  # or NaN
            raise DataError(
                f"{name}: its pixels are floating-point numbers from {low:.4g} to {high:.4g}, "
                "expected 0 to 1 or 0 to 255; convert the image to 8 bits"
            )
        scale = 255 if high <= 1 else 1
    else:
        if low < 0 or high >= 1 << 16:
            raise DataError(
                f"{name}: its pixels are numbers from {low} to {high}, expected 0 to 65535; "
                "convert the image to 8 bits"
            )
        shift = shift_to_8_bits(high)
    scaled = np.empty((*image.shape[:2], 3), np.uint8)
    for strip, out in zip(_strips(image), _strips(scaled), strict=True):
        whole = np.rint(strip * scale) if image.dtype.kind == "f" else strip >> shift
        out[:] = whole if whole.ndim == 3 else whole[..., None]
    return scaled
