"""Rasters that are divided among processes: a shard is some of the windows of one.

What is found in the windows of a shard is a file. The process that writes the last one of a raster
puts all together, as `Detector` does with an image that it sees as a whole.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from mdssd.bulk.places import is_address, open_file
from mdssd.bulk.plan import WINDOWS, Part
from mdssd.data import DataError
from mdssd.data.images import ImageLimits
from mdssd.data.opened import check_rasterio
from mdssd.data.rasters import Raster
from mdssd.data.tiles import Tiling, Window
from mdssd.detection.detector import Detector
from mdssd.detection.reading import ImageFile, Streamed, no_detections
from mdssd.detection.tiled import Found, Shown, put_together


class Cutting(NamedTuple):
    """How rasters are divided among shards.

    Attributes:
        tiling: the tiles of the detector.
        limits, upright: see `Detector`.
        most: the windows in a shard.
    """

    tiling: Tiling
    limits: ImageLimits
    upright: bool
    most: int

    def parts(self, part: Part) -> list[Part]:
        """Return the parts of a raster of many windows; of another image, the image itself."""
        try:
            image = image_at(part.file, self.upright)
            header = image.header()
            if not self.limits.is_raster(header):
                return [part]
            check_rasterio(header, self.limits, part.file)
            with Raster(part.file, upright=self.upright, opener=image.opener) as raster:
                total = self.tiling.count(*raster.shape[1::-1])
        except DataError:
            return [part]  # the process that reads it says why it cannot be read
        if total <= self.most:
            return [part]
        return [
            Part(
                WINDOWS,
                part.file,
                first,
                images=int(first == 0),
                windows=min(self.most, total - first),
                of=total,
            )
            for first in range(0, total, self.most)
        ]


@dataclass(frozen=True)
class SomeWindows(Tiling):
    """A tiling of which only some windows are shown: `most` of them, from number `first` on."""

    first: int = 0
    most: int = 0

    def windows(self, width: int, height: int) -> Iterator[Window]:
        """Yield the windows, see `Tiling`."""
        return islice(super().windows(width, height), self.first, self.first + self.most)

    def count(self, width: int, height: int) -> int:
        """Return how many there are."""
        return max(0, min(self.most, super().count(width, height) - self.first))


class WindowDetector(Detector):
    """A detector that can leave apart what it finds in the windows of an image."""

    _apart: list[tuple[Window, Found]] | None = None

    def find_apart(self, part: Part) -> bytes:
        """Return what is found in some windows of a raster, or why it cannot be read, as a file."""
        tiling = self.tiling
        assert tiling is not None
        shape = (tiling.width, tiling.height, tiling.overlap, tiling.with_whole)
        self.tiling = SomeWindows(*shape, first=part.group, most=part.windows)
        self._apart = []
        try:
            (result,) = self.stream([image_at(part.file, self.upright)], workers=0)
            return _to_bytes([found for _, found in self._apart], result)
        finally:
            self.tiling, self._apart = tiling, None

    def join(self, file: str, contents: Sequence[bytes]) -> Streamed:
        """Return the result of a raster.

        Args:
            file: its path.
            contents: what `find_apart` has returned, in the order of the windows.
        """
        assert self.tiling is not None
        found: list[Found] = []
        guess, source = "", ImageFile(file, self.upright)
        for each, result in (_from_bytes(data, source) for data in contents):
            if result.error is not None:
                return result
            found += each
            size, guess = result.size, guess or result.guess
        windows = self.tiling.windows(*size[::-1])
        pairs = list(zip(windows, found, strict=True))
        return Streamed(source, size, put_together(pairs, size, self.nms_threshold), guess=guess)

    def _found(self, image: Shown) -> Found:
        if self._apart is None:
            return super()._found(image)
        self._apart += image.found
        return no_detections()


def image_at(file: str, upright: bool) -> ImageFile:
    """Return an image file at a path or an address. Only the parts that are needed are read."""
    opener = partial(open_file, file) if is_address(file) else None
    return ImageFile(file, upright, opener=opener)


def is_part(part: Part) -> bool:
    """Return whether a part of a shard is a part of a raster."""
    return part.kind == WINDOWS


def unreadable(part: Part, reason: str) -> bytes:
    """Return what `find_apart` returns of a raster that cannot be read."""
    source = ImageFile(part.file)
    return _to_bytes([], Streamed(source, (0, 0), no_detections(), error=DataError(reason)))


def folder_of(part: Part) -> str:
    """Return the folder that holds what is found in the windows of a raster."""
    return f"windows-{part.home:08}"


def file_of(part: Part) -> str:
    """Return the name of the file of a part in this folder."""
    return f"{part.group:010}-{part.windows}.npz"


def of_raster(names: Iterable[str], part: Part) -> list[str]:
    """Return the files of all windows of a raster in order; an empty list if some are missing.

    Args:
        names: the files in its folder.
        part: one of its parts.
    """
    found = sorted(name for name in names if _count(name))
    return found if sum(map(_count, found)) == part.of else []


def _count(name: str) -> int:
    """Return the number of windows in a file; 0 for a file of another kind."""
    stem = name.removesuffix(".npz").partition("-")[2]
    return int(stem) if name.endswith(".npz") and stem.isdigit() else 0


def _to_bytes(found: Sequence[Found], result: Streamed) -> bytes:
    file = io.BytesIO()
    arrays: dict[str, Any] = {
        name: torch.cat([nothing, *(each[name] for each in found)]).numpy()
        for name, nothing in no_detections().items()
    }
    arrays["counts"] = np.array([len(each["labels"]) for each in found], np.int64)
    arrays["size"] = np.array(result.size)
    arrays["guess"] = np.array(result.guess)
    arrays["error"] = np.array("" if result.error is None else str(result.error))
    np.savez(file, **arrays)
    return file.getvalue()


def _from_bytes(data: bytes, source: ImageFile) -> tuple[list[Found], Streamed]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        height, width = arrays["size"].tolist()
        counts = arrays["counts"].tolist()
        parts = {
            name: torch.from_numpy(arrays[name]).split(counts) if counts else ()
            for name in no_detections()
        }
        error = str(arrays["error"])
        guess = str(arrays["guess"])
    found = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    fault = DataError(error) if error else None
    return found, Streamed(source, (height, width), no_detections(), error=fault, guess=guess)
