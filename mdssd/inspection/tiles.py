"""What the check of a data set says about tiles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdssd.data.tiles import Tiling
from mdssd.priors.maps import InputSize, width_height

# Tiles are worth a word if the median box is smaller than this in the input, in pixels ...
_SMALL = 16.0
# ... and so many times larger in a tile.
_LARGER = 1.5
_STEP = 0.05  # of a proposed overlap
# Of the cut boxes, the proposed overlap shows this share whole, if it is not too great.
_MOST = 0.95
_GREAT = 0.5  # A greater overlap is not proposed: a larger tile costs less.
_PERCENTILES = (5, 50, 95)


def advice(size: NDArray[np.float64], own_sides: NDArray[np.float64]) -> list[str]:
    """Return a line that proposes tiles if objects are small in large images, or none.

    Args:
        size: [M], side of the square that has the box's area, in pixels of the input.
        own_sides: [M, 2], width and height in pixels of the image.
    """
    if not len(size):
        return []
    squeezed, tiled = float(np.median(size)), float(np.median(_area_side(own_sides)))
    if squeezed >= _SMALL or tiled < _LARGER * squeezed:
        return []
    return [
        f"  median object: {squeezed:.1f} px in the input; --tile auto would show it with "
        f"{tiled:.1f} px (docs/large-images.md)"
    ]


@dataclass(frozen=True)
class BoxesInTiles:
    """The boxes of a data set, their images and their tiles; M boxes without crowds.

    Attributes:
        tiling: how images are divided.
        input_size: side of the network's input, in pixels, or (width, height).
        image_sizes: how many images have each (width, height).
        own_sides: float64 [M, 2], width and height in pixels of the image.
        extent: float64 [M, 2], width and height of the box's image.
        size: float64 [M], side of the square that has the box's area, in pixels of the input.
        whole: bool [M], whether some tile shows the box whole.
    """

    tiling: Tiling
    input_size: InputSize
    image_sizes: Counter[tuple[int, int]]
    own_sides: NDArray[np.float64]
    extent: NDArray[np.float64]
    size: NDArray[np.float64]
    whole: NDArray[np.bool_]

    def images(self) -> list[str]:
        """Return the size and the number of the tiles, and how large objects are in them."""
        tiling = self.tiling
        wide, high = width_height(self.input_size)
        across, down = 100 * wide / tiling.width, 100 * high / tiling.height
        added = ", and the whole image" if tiling.with_whole else ""
        counts = self._counts(tiling)
        number = f"{np.median(counts):g} (median; {counts.min()} to {counts.max()})"
        if counts.min() == counts.max():
            number = f"{counts[0]}"
        lines = [
            f"  every image is shown in tiles of {tiling.width} x {tiling.height} px with an "
            f"overlap of {tiling.overlap:g}{added}: in the input of {wide} x {high}, 100 x 100 px "
            f"become {across:.1f} x {down:.1f}",
            f"  tiles of an image: {number}, {counts.sum():,} in all; the network works "
            f"{counts.mean():.1f} times as long as for images squeezed to the input",
        ]
        if len(self.size):
            lines.append(
                f"  median object: {np.median(self._squeezed()):.1f} px in the squeezed image, "
                f"{np.median(self.size):.1f} px in its tile"
            )
        return lines

    def cut(self) -> list[str]:
        """Return how many objects are cut in every tile, and which options show them whole."""
        if not len(self.whole):
            return []
        tiling = self.tiling
        cut, larger = ~self.whole, self._larger()
        lines = [
            "whole: share of the boxes that some tile shows whole; of the others, recall is about "
            "the largest part that a tile shows",
            f"boxes that are cut in every tile: {cut.sum():,} of {len(cut):,} ({cut.mean():.1%}), "
            f"{(cut & larger).sum():,} of them larger than a tile",
        ]
        # A box is whole in some tile if the overlap is as large as the box.
        need = (self.own_sides[cut & ~larger] / (tiling.width, tiling.height)).max(1)
        if len(need):
            most = math.ceil(round(np.quantile(need, _MOST) / _STEP, 6)) * _STEP
            overlap = round(min(most, _GREAT), 2)
            if tiling.overlap < overlap and (need <= overlap).any():
                tiles = self._counts(replace(tiling, overlap=overlap)).mean()
                lines.append(
                    f"  --overlap {overlap:g} shows {(need <= overlap).sum():,} of them whole: "
                    f"{tiles:.1f} tiles an image instead of {self._counts(tiling).mean():.1f}"
                )
            if (need > _GREAT).any():
                lines.append("  a larger --tile, or --tile-scale below 1, shows more of them whole")
        if (cut & larger).any() and not tiling.with_whole:
            lines.append("  --with-whole shows those that are larger than a tile whole")
        return lines

    def to_dict(self, ranges: Iterable[tuple[str, NDArray[np.bool_]]]) -> dict[str, Any]:
        """Return all of it as JSON can hold it.

        Args:
            ranges: names, and which boxes they mean, bool [M].
        """
        tiling, counts = self.tiling, self._counts(self.tiling)
        squeezed = np.percentile(self._squeezed(), _PERCENTILES) if len(self.size) else None
        return {
            "width": tiling.width,
            "height": tiling.height,
            "overlap": tiling.overlap,
            "with_whole": tiling.with_whole,
            "tiles": int(counts.sum()),
            "tiles_per_image": [int(counts.min()), float(np.median(counts)), int(counts.max())],
            "cut_in_every_tile": int((~self.whole).sum()),
            "larger_than_a_tile": int(self._larger().sum()),
            "whole": {
                name: float(self.whole[which].mean()) if which.any() else None
                for name, which in [("all", np.ones(len(self.whole), bool)), *ranges]
            },
            "size_squeezed": squeezed if squeezed is None else squeezed.tolist(),
        }

    def _counts(self, tiling: Tiling) -> NDArray[np.int64]:
        """The number of windows of each image; 0 without an image."""
        sizes = self.image_sizes.items()
        counts = [tiling.count(*size) for size, _ in sizes]
        return np.repeat(counts or [0], [count for _, count in sizes] or [1])

    def _larger(self) -> NDArray[np.bool_]:
        return np.asarray((self.own_sides > (self.tiling.width, self.tiling.height)).any(1))

    def _squeezed(self) -> NDArray[np.float64]:
        """[M]: the size of the boxes if the images were squeezed to the input."""
        return _area_side(self.own_sides * width_height(self.input_size) / self.extent)


def _area_side(sides: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(sides.prod(1)))
