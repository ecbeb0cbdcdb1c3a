"""Reading the images of a detector: arrays, paths and encoded bytes, also in worker processes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from mdssd.data import DataError, Preprocess, decode_image, read_image
from mdssd.data.image_headers import ImageHeader, parse_header
from mdssd.data.images import ImageLimits, from_pillow, read_header
from mdssd.data.opened import check_rasterio
from mdssd.data.rasters import Raster
from mdssd.system.memory import release_memory

# Images of more pixels are decoded one at a time in the main process, and are not kept, so that
# memory stays bounded. Those of most phones have 12 million.
_LARGE = 13_000_000
NOTHING = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class ImageFile:
    """An image file, and how it is read.

    Attributes:
        path: the file.
        upright: whether it is turned as its EXIF orientation says; otherwise the boxes refer to
            the pixels as stored.
        limits: which files are accepted; None for the limits of the detector.
        data: the file's bytes, if it has none that could be read; the path is then only its name.
        opener: opens the file for reading bytes, if it is not at the path, which is then only its
            name. It is called in the process of the detector alone.
    """

    path: str | os.PathLike[str]
    upright: bool = True
    limits: ImageLimits | None = None
    data: bytes | None = None
    opener: Callable[[], BinaryIO] | None = None

    def header(self) -> ImageHeader:
        """Return the header of the file.

        Raises:
            DataError: it cannot be read, or is not an image.
        """
        name = os.fspath(self.path)
        if self.data is not None:
            return parse_header(io.BytesIO(self.data), name)
        if self.opener is None:
            return read_header(name)
        with self.opener() as file:
            return parse_header(file, name)


Image: TypeAlias = "NDArray[np.uint8] | str | os.PathLike[str] | ImageFile | bytes | Pillow.Image"


class ReadImage(NamedTuple):
    """An image that was read.

    Attributes:
        size: (height, width) of the image.
        pixels: the network's input, uint8 [H, W, 3]; with tiles, those of the image.
        image: the image itself, if it was asked for.
        large: the name of a large image in messages, which has to be read again if the image
            itself is asked for. Otherwise "".
        guess: what reading it had to guess; see `ImageHeader`.
        raster: an image that is read by windows instead; it has no pixels.
    """

    size: tuple[int, int]
    pixels: NDArray[np.uint8]
    image: NDArray[np.uint8] | None
    large: str = ""
    guess: str = ""
    raster: Raster | None = None


class Streamed(NamedTuple):
    """The result of `Detector.stream` for one image.

    Attributes:
        source: the image as it was passed.
        size: its (height, width); (0, 0) if it cannot be read.
        found: boxes, scores and labels, as `Detector.__call__` returns them; empty if the image
            cannot be read.
        image: its pixels, if they were asked for; of an image that is read by windows a reduced
            picture, whose longer side has at most 4096 pixels.
        error: why the image cannot be read, or None.
        guess: what reading it had to guess; "" if nothing.
    """

    source: Any
    size: tuple[int, int]
    found: dict[str, Tensor]
    image: NDArray[np.uint8] | None = None
    error: DataError | None = None
    guess: str = ""


@dataclass(frozen=True)
class Large:
    """A large image, which a worker leaves to the main process, by its name in messages."""

    name: str


@dataclass(frozen=True)
class Reader:
    """Reads one image, and resizes it if there is a `preprocess`. Each worker has a copy.

    Without one, images are divided into tiles, and a TIFF above the limit is read by windows.
    """

    preprocess: Preprocess | None
    with_images: bool
    limits: ImageLimits
    upright: bool = True

    def __call__(self, source: Image, name: str) -> ReadImage | Large:
        if isinstance(source, ImageFile) and source.opener is not None:
            return Large(name)
        header = self._header(source, name)
        guess = header.guess if header else ""
        large = header is not None and header.width * header.height > _LARGE
        if header and (large or self._is_raster(source, header)):
            return Large(name)
        return self._read(source, name, self.with_images)._replace(guess=guess)

    def finish(
        self, items: Iterable[tuple[Any, ReadImage | Large | DataError]]
    ) -> Iterator[tuple[Any, ReadImage | DataError]]:
        """Read the large images, in this process, when it is their turn."""
        for source, read in items:
            if isinstance(read, Large):
                try:
                    finished = self.now(source, read.name)
                except DataError as error:
                    yield source, error
                else:
                    yield source, finished
                release_memory()
            else:
                yield source, read

    def now(self, source: Image, name: str) -> ReadImage:
        """Read an image of any size, in this process."""
        header = self._header(source, name)
        guess = header.guess if header else ""
        if header and self._is_raster(source, header):
            file = _as_file(source)  # type: ignore[arg-type]
            upright = file.upright if isinstance(source, ImageFile) else self.upright
            raster = Raster(file.path, upright=upright, opener=file.opener)
            return ReadImage(raster.shape[:2], NOTHING, None, name, guess, raster)
        return self._read(source, name, False)._replace(large=name, guess=guess)

    def _header(self, source: Image, name: str) -> ImageHeader | None:
        """Return the header of an encoded image that can be read; None for an array."""
        header, limits = _header(source, name, self.limits)
        if header is None:
            return None
        if self.preprocess is not None or not self._is_raster(source, header):
            limits.check(header, name)
        else:
            check_rasterio(header, limits, name)
        return header

    def _is_raster(self, source: Image, header: ImageHeader) -> bool:
        """Return whether an image is read by windows."""
        if self.preprocess is not None:
            return False
        if not isinstance(source, (str, os.PathLike, ImageFile)):
            return False
        file = _as_file(source)
        return file.data is None and (file.limits or self.limits).is_raster(header)

    def _read(self, source: Image, name: str, with_image: bool) -> ReadImage:
        image = read_pixels(source, name, self.limits, self.upright)
        height, width = image.shape[:2]
        pixels = image if self.preprocess is None else self.preprocess.warp(image)
        return ReadImage((height, width), pixels, image if with_image else None)


def _header(
    source: Image, name: str, limits: ImageLimits
) -> tuple[ImageHeader | None, ImageLimits]:
    """Return the header of an encoded image, None for an array, and its limits."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        header = parse_header(io.BytesIO(source), name)
    elif isinstance(source, (str, os.PathLike, ImageFile)):
        file = _as_file(source)
        limits = file.limits or limits
        header = file.header()
    else:
        return None, limits
    return header, limits


def _as_file(source: str | os.PathLike[str] | ImageFile) -> ImageFile:
    return source if isinstance(source, ImageFile) else ImageFile(source)


def read_pixels(
    source: Image, name: str, limits: ImageLimits, upright: bool = True
) -> NDArray[np.uint8]:
    """Return the pixels [H, W, 3] uint8 RGB of an array (checked) or of any other image.

    Args:
        source: the image.
        name: its name in messages, unless it is a path.
        limits: which files are accepted.
        upright: whether files, bytes and images of Pillow are turned as their EXIF orientation
            says. An `ImageFile` says it for itself.

    Raises:
        TypeError, ValueError: an array is not an image.
        DataError: a file cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode_image(bytes(source), name, upright=upright, limits=limits)
    if isinstance(source, ImageFile):
        limits = source.limits or limits
        if source.data is not None:
            return decode_image(source.data, name, upright=source.upright, limits=limits)
        if source.opener is not None:
            with source.opener() as file:
                return decode_image(file.read(), name, upright=source.upright, limits=limits)
        return read_image(source.path, upright=source.upright, limits=limits)
    if isinstance(source, (str, os.PathLike)):
        return read_image(source, upright=upright, limits=limits)
    if isinstance(source, Pillow.Image):
        return from_pillow(source, name, upright=upright)
    if not isinstance(source, np.ndarray):
        raise TypeError(
            f"Detector: {name}: expected a numpy array, a Pillow image, a path or bytes, "
            f"got {type(source).__name__}"
        )
    if source.dtype != np.uint8:
        raise TypeError(f"Detector: {name}: expected dtype uint8 (0-255), got {source.dtype}")
    if source.ndim != 3 or source.shape[2] != 3:
        raise ValueError(
            f"Detector: {name}: expected shape [H, W, 3] in RGB order, got {list(source.shape)}"
        )
    if not source.size:
        raise ValueError(f"Detector: {name}: is empty, its shape is {list(source.shape)}")
    return source


def listed(images: Any) -> list[Any]:
    """Return the images of a call as a list: a single image becomes a list of one."""
    single = (np.ndarray, str, os.PathLike, ImageFile, bytes, bytearray, memoryview)
    if isinstance(images, (*single, Pillow.Image)):
        return [images]
    if isinstance(images, Tensor) or not hasattr(images, "__iter__"):
        raise TypeError(
            "Detector: images: expected a numpy array, a Pillow image, a path, bytes or a list of "
            f"them, got {type(images).__name__}"
        )
    return list(images)


def name_of(source: Image, otherwise: str) -> str:
    """Return the name of an image in messages: its path, or `otherwise`."""
    known = isinstance(source, (str, os.PathLike, ImageFile))
    return os.fspath(_as_file(source).path) if known else otherwise  # type: ignore[arg-type]


def no_detections() -> dict[str, Tensor]:
    """Return the result of an image in which nothing was found."""
    return {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0, dtype=torch.int64),
    }
