"""A picture of the tiles of large images, and of the objects that every tile cuts."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from mdssd.data import DetectionDataset, Sample
from mdssd.data.opened import opened
from mdssd.data.rasters import Raster
from mdssd.data.tiled_boxes import best_windows, shown_whole
from mdssd.data.tiles import Tiling
from mdssd.system.text import plural

Color = tuple[int, int, int]

_SIDE = 3600  # of the whole picture, at most
_GAP = 8  # between two images
_WIDE = 600  # pixels of an image with room for its name
_WHOLE: Color = (60, 255, 60)
_CUT: Color = (255, 40, 40)
_EDGE: Color = (255, 255, 255)
_SHARED = 0.7  # the light of what two tiles share, as a part of what a single tile shows
_BLACK: Color = (0, 0, 0)


def tile_sheet(
    dataset: DetectionDataset, tiling: Tiling, count: int = 4, seed: int = 0
) -> NDArray[np.uint8]:
    """Draw images with their tiles and boxes.

    What several tiles share is darker. A box that some tile shows whole is green, one that every
    tile cuts is red; without the whole image that `with_whole` adds, which cuts nothing. A line
    above each image says how many there are. The highest images stand at the top.

    Args:
        dataset: the data set.
        tiling: how images are divided.
        count: the number of images, at most those of the data set. They are chosen at random.
        seed: the seed of the choice.

    Returns:
        uint8 [H, W, 3], RGB: the images in columns, of at most about 3600 pixels in all.

    Raises:
        DataError: an image cannot be read.
        ValueError: `count` is less than 1.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.tiles import Tiling
        >>> from mdssd.inspection.tile_sheet import tile_sheet
        >>> tile_sheet(SyntheticScenes(2, image_size=700), Tiling(300, 300), 1).shape
        (724, 700, 3)
    """
    if count < 1:
        raise ValueError(f"tile_sheet: count must be at least 1, got {count}")
    order = np.random.default_rng(seed).permutation(len(dataset))[:count]
    columns = math.ceil(math.sqrt(len(order)))
    longest = _SIDE // columns
    pictures = []
    for index in order.tolist():
        with opened(dataset, index) as image:
            pictures.append(_picture(dataset.annotation(index), image, tiling, longest))
    return _in_columns(pictures, columns)


def _in_columns(pictures: list[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Put each picture, the highest first, below those of the column that is shortest so far."""
    across = max(picture.shape[1] for picture in pictures) + _GAP
    down = [0] * columns
    places = []
    for picture in sorted(pictures, key=len, reverse=True):
        column = down.index(min(down))
        places.append((down[column], column * across, picture))
        down[column] += len(picture) + _GAP
    sheet = np.full((max(down) - _GAP, columns * across - _GAP, 3), 255, np.uint8)
    for y, x, picture in places:
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet


def _picture(
    sample: Sample, image: NDArray[np.uint8] | Raster, tiling: Tiling, longest: int
) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = image.reduced() if isinstance(image, Raster) else image
    picture = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    columns, rows = tiling.starts(width, height)
    across = _times_shown(columns, tiling.width, size[0], scale)
    down = _times_shown(rows, tiling.height, size[1], scale)
    shared = (down[:, None] > 1) | (across[None] > 1)
    picture[shared] = (picture[shared] * _SHARED).astype(np.uint8)
    for y in rows:
        for x in columns:
            corners = np.rint(np.array([x, y, x + tiling.width, y + tiling.height]) * scale)
            _rectangle(picture, corners, _EDGE)
    boxes = sample.boxes_xyxy[~sample.crowd].astype(np.float64)
    boxes = boxes.clip(0, (width, height, width, height))
    in_tiles = Tiling(tiling.width, tiling.height, tiling.overlap)
    whole = shown_whole(boxes, best_windows(boxes, (width, height), in_tiles))
    for box, is_whole in zip(np.rint(boxes * scale), whole.tolist(), strict=True):
        _rectangle(picture, box, _WHOLE if is_whole else _CUT, 1 if is_whole else 2)
    text = f"{plural(tiling.count(width, height), 'tile')}, {plural(len(whole), 'box')}, "
    text += f"{(~whole).sum()} cut in every tile"
    band = np.full((24, size[0], 3), 255, np.uint8)
    text = f"{sample.image_id}: {text}" if size[0] >= _WIDE else text
    cv2.putText(band, text, (2, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _BLACK, 1, cv2.LINE_AA)
    return np.asarray(np.concatenate((band, picture)), np.uint8)


def _times_shown(starts: list[int], side: int, length: int, scale: float) -> NDArray[np.int64]:
    """How many columns or rows of tiles show each pixel along a side of the picture."""
    middles = (np.arange(length) + 0.5) / scale
    begun = np.searchsorted(np.array(starts), middles, side="right")
    return np.asarray(begun - np.searchsorted(np.array(starts) + side, middles, side="right"))


def _rectangle(
    picture: NDArray[np.uint8], corners: NDArray[np.float64], color: Color, thickness: int = 1
) -> None:
    x1, y1, x2, y2 = (int(value) for value in corners)
    cv2.rectangle(picture, (x1, y1), (x2 - 1, y2 - 1), color, thickness)
