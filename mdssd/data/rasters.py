"""TIFF files of any size, such as GeoTIFFs, which are read by windows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from mdssd.data.decoders import shift_to_8_bits
from mdssd.data.image_headers import open_with_pillow
from mdssd.data.images import turned
from mdssd.data.raster_files import RasterFile, has_rasterio
from mdssd.data.sample import DataError
from mdssd.data.tiff import read_tiff
from mdssd.system.files import format_bytes, open_regular

_MOST_BYTES = 256 << 20  # of a strip or block, which is decoded as a whole
_CHUNK = 1 << 22  # pixels that are read at once where the whole file is
_REDUCED = 4096  # pixels on the longer side of a reduced picture
_JPEG = 7  # the compression
# The kinds of colours that GDAL returns as they are stored: grey with white as 0 or black as 0,
# RGB and a palette. Those of a JPEG it converts to RGB.
_AS_STORED, _IN_JPEG = (0, 1, 2, 3), (1, 2, 6)
_WHITE_IS_ZERO = 0
# By how many bits the pixels of files of 16 bits are shifted, by path, size and time of change, for
# files that are opened several times.
_SHIFTS: dict[tuple[str, int, int], int] = {}


class Raster:
    """A TIFF file that is read by windows, so that memory does not grow with its size.

    The pixels are those that `read_image` returns of the file: RGB, scaled to 8 bits by the bits
    that the largest value in the file needs, and turned upright if asked. To find the largest
    value, the file is read once more.

    Args:
        path: a TIFF or BigTIFF, in tiles or strips, with or without a pyramid.
        upright: whether to turn the picture as its orientation says.
        opener: opens the file, if it is not at the path, which is then only its name.

    Attributes:
        shape: (height, width, 3), as of an array.

    Raises:
        DataError: rasterio is not installed, or the file cannot be read by windows.
        OSError: what `opener` opens cannot be reached. Reading pixels raises it too.

    Example:
        >>> import importlib.util, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from mdssd.data.rasters import Raster
        >>> def corner(path):
        ...     with Raster(path) as raster:
        ...         return raster[10:30, 0:40].shape
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(f"{folder}/a.tif")
        ...     there = importlib.util.find_spec("rasterio") is not None
        ...     corner(f"{folder}/a.tif") if there else (20, 40, 3)
        (20, 40, 3)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        upright: bool = True,
        opener: Callable[[], BinaryIO] | None = None,
    ) -> None:
        self._source = RasterFile(path, opener)
        self._upright = upright
        self._kind = _kind_of(self._source)
        self._file = self._source.dataset()
        self._shift: int | None = None
        self._picture: NDArray[np.uint8] | None = None
        if fault := self._fault():
            self.close()
            raise DataError(f"{self._source.name}: {fault}")
        self.shape = (*self._size(self._file)[::-1], 3)

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __getitem__(self, rows_columns: tuple[slice, slice]) -> NDArray[np.uint8]:
        """Return the pixels of rows and columns, each a slice without a step, as of an array."""
        (top, bottom, _), (left, right, _) = (
            part.indices(length) for part, length in zip(rows_columns, self.shape[:2], strict=True)
        )
        return self._rgb(self._file, left, top, right - left, bottom - top)

    def check(self) -> None:
        """Read the whole file once; raise DataError if a part of it is damaged."""
        for chunk in self._parts():
            self._stored(self._file, *chunk)

    def reduced(self) -> NDArray[np.uint8]:
        """Return a picture of the whole, whose longer side has at most 4096 pixels."""
        if self._picture is None:
            factor = -(-max(self.shape) // _REDUCED)
            with self._source.reading():
                levels = self._file.overviews(1)
            level = max((k for k, f in enumerate(levels) if f <= factor), default=None)
            if level is None:
                self._picture = self._scaled(self._file, factor)
            else:
                with self._source.dataset(overview_level=level) as file:
                    self._picture = self._scaled(file, max(1, factor // levels[level]))
        return self._picture

    def _scaled(self, file: Any, factor: int) -> NDArray[np.uint8]:
        """Return the picture in a level of the pyramid, at a fraction of its size."""
        width, height = self._size(file)
        out = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
        for x, y, across, down in _chunks(width, height, file.block_shapes[0][0], factor):
            size = (-(-across // factor), -(-down // factor))
            part = self._rgb(file, x, y, across, down)
            x, y = x // factor, y // factor
            beyond = size[1] * factor - down, size[0] * factor - across
            part = np.pad(part, ((0, beyond[0]), (0, beyond[1]), (0, 0)), "edge")
            out[y : y + size[1], x : x + size[0]] = cv2.resize(
                part, size, interpolation=cv2.INTER_AREA
            )
        return out

    def _size(self, file: Any) -> tuple[int, int]:
        """Return (width, height) of the picture."""
        stored = (file.width, file.height)
        return stored[::-1] if self._turns >= 5 else stored

    @property
    def _turns(self) -> int:
        return self._kind.orientation if self._upright else 1

    def _rgb(self, file: Any, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return a part of the picture."""
        x, y, width, height = stored_window((x, y, width, height), self._size(file), self._turns)
        pixels = self._stored(file, x, y, width, height)
        if pixels.dtype == np.uint16:
            if self._shift is None:
                self._shift = self._find_shift()
            rgb = (pixels[..., :3] >> self._shift).astype(np.uint8)
            rgb = np.repeat(rgb, 3, axis=2) if rgb.shape[2] == 1 else rgb
        else:
            rgb = self._kind.convert(pixels)
        return np.ascontiguousarray(turned(rgb, self._turns))

    def _stored(self, file: Any, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        """Return pixels [height, width, channels] as they are stored."""
        with self._source.reading():
            window = ((y, y + height), (x, x + width))
            pixels = np.moveaxis(file.read(window=window), 0, 2)
        if pixels.dtype == np.uint16 and self._kind.photometric == _WHITE_IS_ZERO:
            return np.iinfo(np.uint16).max - pixels
        return pixels

    def _find_shift(self) -> int:
        """Return by how many bits the pixels are shifted, which the largest decides."""
        state = self._source.state()
        if state not in _SHIFTS:
            largest = 0
            for chunk in self._parts():
                largest = max(largest, int(self._stored(self._file, *chunk)[..., :3].max()))
                if shift_to_8_bits(largest) == 8:
                    break
            _SHIFTS[state] = shift_to_8_bits(largest)
        return _SHIFTS[state]

    def _parts(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield parts of the file as it is stored that are all of it."""
        return _chunks(self._file.width, self._file.height, self._file.block_shapes[0][0], 1)

    def _fault(self) -> str:
        """Return why the file cannot be read by windows, or ""."""
        kind, file = self._kind, self._file
        blocks = max(rows * columns for rows, columns in file.block_shapes)
        needed = blocks * file.count * np.dtype(file.dtypes[0]).itemsize
        if needed > _MOST_BYTES:
            return (
                f"is stored in blocks of {format_bytes(needed)}, expected at most "
                f"{format_bytes(_MOST_BYTES)}; store it in tiles, for instance by gdal_translate "
                "-co TILED=YES"
            )
        own = {1: "uint8", 2: "uint8", 4: "uint8", 8: "uint8", 16: "uint16"}.get(kind.bits)
        known = _IN_JPEG if kind.compression == _JPEG else _AS_STORED
        if kind.bits == 16:
            known = (0, 1, 2)
        whole = kind.bits >= 8 or kind.channels == 1
        if whole and kind.image is not None and kind.photometric in known:
            if file.count == kind.channels and set(file.dtypes) == {own}:
                return ""
        what = f"{kind.channels} channel{'s' * (kind.channels > 1)} of {kind.bits} bits"
        return (
            f"is a TIFF with {what} of a kind that cannot be read by windows; convert it to grey "
            "or RGB of 8 or 16 bits"
        )


class _Kind(NamedTuple):
    """What the pixels of a TIFF are.

    Attributes:
        image: the file, of which Pillow has read the header; None if Pillow does not know the kind.
        others: as in `TiffHeader`.
    """

    image: ImageFile.ImageFile | None
    bits: int
    channels: int
    planar: bool
    orientation: int
    photometric: int
    compression: int

    def convert(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return pixels of up to 8 bits as RGB, as Pillow converts those of the whole file."""
        image = self.image
        assert image is not None
        height, width = pixels.shape[:2]
        arguments = image.tile[0][3] or ""
        raw = arguments if isinstance(arguments, str) else arguments[0]
        if self.planar or self.compression == _JPEG:
            raw = image.mode
        if self.bits < 8:
            pixels = _packed(pixels[..., 0], self.bits)
        part = Image.frombytes(image.mode, (width, height), pixels.tobytes(), "raw", raw)
        if image.palette is not None:
            part.putpalette(image.palette.palette, image.palette.rawmode or image.palette.mode)
        return np.asarray(part.convert("RGB"))


def _kind_of(source: RasterFile) -> _Kind:
    with source.open() as file:
        tiff = read_tiff(file)
        if tiff is None:
            raise DataError(f"{source.name}: is not a TIFF image")
        image = open_with_pillow(file, ("TIFF",))
    orientation = tiff.orientation if 1 <= tiff.orientation <= 8 else 1
    how = (tiff.planar, orientation, tiff.photometric, tiff.compression)
    return _Kind(image, tiff.bits, tiff.channels, *how)


def _packed(pixels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack pixels of 1, 2 or 4 bits into bytes, each row into whole ones."""
    per_byte = 8 // bits
    padded = np.pad(pixels, ((0, 0), (0, -pixels.shape[1] % per_byte)))
    packed = np.zeros((len(padded), padded.shape[1] // per_byte), np.uint8)
    for k in range(per_byte):
        packed |= padded[:, k::per_byte] << np.uint8(8 - bits * (k + 1))
    return packed


def _chunks(width: int, height: int, rows: int, step: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield parts (x, y, width, height) of an image, whose sides are multiples of `step`.

    rows: the height of its strips or blocks.
    """
    down = -(-max(rows, 256) // step) * step
    across = max(1, _CHUNK // down // step) * step
    for y in range(0, height, down):
        for x in range(0, width, across):
            yield x, y, min(across, width - x), min(down, height - y)


def stored_window(
    window: tuple[int, int, int, int], size: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Return where a window of a picture lies in the picture as it is stored.

    Args:
        window: (x, y, width, height) in the picture that was turned.
        size: (width, height) of that picture.
        orientation: how it was turned, as in EXIF.

    Example:
        >>> from mdssd.data.rasters import stored_window
        >>> stored_window((0, 0, 10, 20), (100, 200), 3)
        (90, 180, 10, 20)
    """
    x, y, width, height = window
    if orientation in (2, 3, 6, 7):
        x = size[0] - x - width
    if orientation in (3, 4, 7, 8):
        y = size[1] - y - height
    return (y, x, height, width) if orientation >= 5 else (x, y, width, height)


def map_coordinates(
    path: str | os.PathLike[str], *, upright: bool = True
) -> Callable[[Any], list[list[float]]] | None:
    """Return the function from points of a GeoTIFF to longitudes and latitudes.

    Args:
        path: the image file.
        upright: whether the points are in the picture turned as its orientation says.

    Returns:
        A function of points [[x, y], ...] in pixels, which returns [[longitude, latitude], ...]
        in degrees of WGS 84. None if the file is not a GeoTIFF whose pixels have a place on earth,
        or rasterio is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mdssd.data.rasters import map_coordinates
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (80, 60)).save(f"{folder}/a.tif")
        ...     print(map_coordinates(f"{folder}/a.tif"))
        None
    """
    if not is_georeferenced(path) or not has_rasterio():
        return None
    import rasterio.warp

    source = RasterFile(path)
    try:
        turns = _kind_of(source).orientation if upright else 1
        with source.dataset() as file:
            crs, size = file.crs, (file.width, file.height)
            a, b, c, d, e, f = file.transform[:6]
    except DataError:  # it can be read, but not by rasterio
        return None
    size = size[::-1] if turns >= 5 else size

    def place(points: Any) -> list[list[float]]:
        stored = [stored_window((x, y, 0, 0), size, turns)[:2] for x, y in points]
        there = [(a * x + b * y + c, d * x + e * y + f) for x, y in stored]
        with source.reading():
            across, up = rasterio.warp.transform(crs, "EPSG:4326", *zip(*there, strict=True))
        return [[round(lon, 8), round(lat, 8)] for lon, lat in zip(across, up, strict=True)]

    if crs is None:
        return None
    try:
        corners = place([[x, y] for x in (0, size[0]) for y in (0, size[1])])
    except DataError:  # a plan of a building, for instance, has coordinates but no place
        return None
    return place if np.isfinite(corners).all() else None


def is_georeferenced(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a TIFF that says where it lies on earth.

    Example:
        >>> from mdssd.data.rasters import is_georeferenced
        >>> is_georeferenced("missing.tif")
        False
    """
    try:
        with open_regular(path) as file:
            tiff = read_tiff(file)
    except OSError:
        return False
    return tiff is not None and tiff.georeferenced
