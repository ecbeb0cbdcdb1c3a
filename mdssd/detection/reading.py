"""Reading the images of a detector: arrays, paths and encoded bytes, also in worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mdssd.data import DataError, Preprocess, decode_image, read_image

Image: TypeAlias = NDArray[np.uint8] | str | os.PathLike[str] | bytes


class ReadImage(NamedTuple):
    """An image that was read.

    Attributes:
        size: (height, width) of the image.
        pixels: the network's input, uint8 [S, S, 3].
        image: the image itself, if it was asked for.
    """

    size: tuple[int, int]
    pixels: NDArray[np.uint8]
    image: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Reader:
    """Reads and resizes one image. Each worker process has a copy."""

    preprocess: Preprocess
    with_images: bool

    def __call__(self, source: Image, name: str) -> ReadImage:
        image = read_pixels(source, name)
        height, width = image.shape[:2]
        pixels = self.preprocess.warp(image)
        return ReadImage((height, width), pixels, image if self.with_images else None)


def read_pixels(source: Image, name: str) -> NDArray[np.uint8]:
    """Return the pixels [H, W, 3] uint8 RGB of an array (checked), a path or encoded bytes.

    Args:
        source: the image.
        name: its name in messages, unless it is a path.

    Raises:
        TypeError, ValueError: an array is not an image.
        DataError: a file cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode_image(bytes(source), name)
    if isinstance(source, (str, os.PathLike)):
        return read_image(source)
    if not isinstance(source, np.ndarray):
        raise TypeError(
            f"Detector: {name}: expected a numpy array, a path or bytes, "
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
    if isinstance(images, (np.ndarray, str, os.PathLike, bytes, bytearray, memoryview)):
        return [images]
    if isinstance(images, Tensor) or not hasattr(images, "__iter__"):
        raise TypeError(
            "Detector: images: expected a numpy array, a path, bytes or a list of them, "
            f"got {type(images).__name__}"
        )
    return list(images)


def name_of(source: Image, otherwise: str) -> str:
    """Return the name of an image in messages: its path, or `otherwise`."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else otherwise


def next_batch(
    items: Iterable[tuple[Any, ReadImage | DataError]], size: int
) -> list[tuple[Any, ReadImage | DataError]]:
    """Take items until `size` images are among them, as other batch sizes cost memory.

    It stops after four times as many items, so that a long run of broken files shows early.
    """
    batch: list[tuple[Any, ReadImage | DataError]] = []
    good = 0
    for item in items:
        batch.append(item)
        good += isinstance(item[1], ReadImage)
        if good == size or len(batch) == 4 * size:
            break
    return batch
