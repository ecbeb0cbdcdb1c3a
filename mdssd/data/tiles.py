"""Tiles: the parts of a large image that are shown to the network one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import index
from typing import NamedTuple

from mdssd.names import LEAST_TILE_SIDE, MOST_TILE_PIXELS
from mdssd.priors.maps import InputSize, width_height
from mdssd.system.text import plural

# Of two neighbouring tiles; 0.9 already means a hundred times as many tiles as no overlap.
MOST_OVERLAP = 0.9
_MOST_SCALE = 16


class Window(NamedTuple):
    """A part of an image, in pixels; it may reach beyond the image's right and lower edge.

    `inner` says which of its edges (left, top, right, bottom) lie inside the image, so that they
    cut objects.
    """

    x: int
    y: int
    width: int
    height: int
    inner: tuple[bool, bool, bool, bool] = (False, False, False, False)


@dataclass(frozen=True)
class Tiling:
    """How images are divided into tiles.

    All tiles of an image have the same size. They are a grid with steps of `overlap` less than a
    tile, whose last column and row are moved inwards, so that they end with the image. An image
    that is narrower or lower than a tile has one column or row, and its tiles reach beyond it.

    Attributes:
        width, height: the size of a tile, in pixels of the image.
        overlap: the part of a tile that is in the next one too, 0 to 0.9.
        with_whole: whether the whole image is shown as well, for objects larger than a tile.

    Raises:
        ValueError: a size is below 1 or above 100 million pixels, or the overlap is out of range.

    Example:
        >>> from mdssd.data.tiles import Tiling
        >>> tiling = Tiling(300, 300, overlap=0.2)
        >>> [(window.x, window.y) for window in tiling.windows(700, 300)]
        [(0, 0), (240, 0), (400, 0)]
    """

    width: int
    height: int
    overlap: float = 0.2
    with_whole: bool = False

    def __post_init__(self) -> None:
        _check_sides(self.width, self.height)
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise ValueError(f"overlap: expected 0 to {MOST_OVERLAP}, got {self.overlap!r}")

    def windows(self, width: int, height: int) -> Iterator[Window]:
        """Yield the tiles of an image of this size by rows, after the whole image if it is shown.

        The whole image is left out where a single tile shows it at the same size.
        """
        if self.shows_whole(width, height):
            yield Window(0, 0, width, height)
        columns, rows = self.starts(width, height)
        for y in rows:
            for x in columns:
                right, bottom = x + self.width, y + self.height
                inner = (x > 0, y > 0, right < width, bottom < height)
                yield Window(x, y, self.width, self.height, inner)

    def count(self, width: int, height: int) -> int:
        """Return how many windows an image of this size has."""
        columns, rows = self.starts(width, height)
        return len(columns) * len(rows) + self.shows_whole(width, height)

    def starts(self, width: int, height: int) -> tuple[list[int], list[int]]:
        """Return where the columns and where the rows of tiles begin in an image of this size."""
        return (
            _starts(width, self.width, self.overlap),
            _starts(height, self.height, self.overlap),
        )

    def shows_whole(self, width: int, height: int) -> bool:
        """Return whether the whole image is shown beside the tiles of an image of this size."""
        return self.with_whole and (width, height) != (self.width, self.height)


def make_tiling(
    tile: InputSize | str | None,
    input_size: InputSize,
    *,
    overlap: float = 0.2,
    scale: float = 1.0,
    with_whole: bool = False,
) -> Tiling | None:
    """Return the tiling that the options of a command or of `Detector` describe.

    Args:
        tile: side of a tile, or (width, height), in pixels of the image after it is enlarged, 32 or
            more; "auto" is the size of the network's input. None makes no tiles, and returns None.
        input_size: the size of the network's input.
        overlap: see `Tiling`.
        scale: how much larger the image is made before it is divided. With 2, a tile of 300
            shows 150 pixels of the image.
        with_whole: see `Tiling`.

    Raises:
        ValueError: a value is out of range, or without a tile another than its default.

    Example:
        >>> from mdssd.data.tiles import make_tiling
        >>> make_tiling("auto", 300, scale=2)
        Tiling(width=150, height=150, overlap=0.2, with_whole=False)
    """
    if tile is None:
        given = {"overlap": overlap != 0.2, "tile_scale": scale != 1, "with_whole": with_whole}
        if any(given.values()):
            first = next(name for name, is_given in given.items() if is_given)
            raise ValueError(f"{first}: needs a tile beside it")
        return None
    if not 0 < scale <= _MOST_SCALE:
        raise ValueError(f"tile_scale: expected a number above 0, up to {_MOST_SCALE}, got {scale}")
    if isinstance(tile, str):
        if tile != "auto":
            raise ValueError(f"tile: expected a number of pixels or 'auto', got {tile!r}")
        tile = input_size
    try:
        across, down = map(index, width_height(tile))
    except (TypeError, ValueError):
        raise ValueError(
            f"tile: expected a number of pixels, a width and a height, or 'auto'; got {tile!r}"
        ) from None
    sides = across, down
    _check_sides(*sides, LEAST_TILE_SIDE)
    if sides[0] / scale * (sides[1] / scale) > MOST_TILE_PIXELS:
        raise ValueError(
            f"tile_scale: expected tiles that show at most {MOST_TILE_PIXELS:,} pixels of the "
            f"image, got {scale:g} for tiles of {sides[0]} x {sides[1]}"
        )
    width, height = (max(1, round(side / scale)) for side in sides)
    return Tiling(width, height, overlap, with_whole)


def _check_sides(width: int, height: int, least: int = 1) -> None:
    if min(width, height) < least:
        raise ValueError(
            f"tile: expected sides of {plural(least, 'pixel')} or more, got {width} x {height}"
        )
    if width * height > MOST_TILE_PIXELS:
        raise ValueError(
            f"tile: expected at most {MOST_TILE_PIXELS:,} pixels, got {width:,} x {height:,}"
        )


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along a side; the last one ends with the image."""
    step = max(1, round(tile * (1 - overlap)))
    last = max(0, length - tile)
    return [*range(0, last, step), last]
