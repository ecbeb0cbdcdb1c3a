"""Opening TIFF files that are read by windows: at a path, or by a function such as of a storage."""

from __future__ import annotations

import importlib.util
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from mdssd.data.sample import DataError
from mdssd.system.files import open_regular

NEEDS = "needs rasterio: pip install 'mdssd[raster]'"
# GDAL keeps decoded strips and blocks, so that those that several windows touch are decoded once:
# 300 rows of RGB up to a width of 110,000 pixels.
_CACHE = 96 << 20
_OPENING = threading.Lock()  # as warnings are set for all threads
_NUMBERS = itertools.count()


def has_rasterio() -> bool:
    """Return whether rasterio is installed."""
    return importlib.util.find_spec("rasterio") is not None


class RasterFile:
    """A file that is read by windows.

    Args:
        path: its path, or its name in messages if there is a function.
        opener: opens the file for reading bytes, wherever it is. None: at the path.
    """

    def __init__(
        self, path: str | os.PathLike[str], opener: Callable[[], BinaryIO] | None = None
    ) -> None:
        self.name = os.fspath(path)
        self._opener = opener
        self._faults: list[OSError] = []

    def open(self) -> BinaryIO:
        """Open the file for reading bytes.

        Raises:
            DataError: there is no function, and the path cannot be read.
        """
        if self._opener is not None:
            return self._opener()
        try:
            return open_regular(self.name)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror})") from None

    def dataset(self, **options: Any) -> Any:
        """Open the file by rasterio.

        Raises:
            DataError: rasterio is not installed, or cannot read the file.
            OSError: the function cannot read the file.
        """
        try:
            import rasterio
        except ImportError:
            raise DataError(f"{self.name}: reading it by windows {NEEDS}") from None
        where = os.path.abspath(self.name)
        if self._opener is not None:
            # rasterio keeps one function for a name as long as the file is open.
            where = f"{next(_NUMBERS)}.tif"
            options["opener"] = lambda name, mode="rb": self._opened(name == where)
        with self.reading(), _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing georeference
            return rasterio.open(where, driver="GTiff", **options)

    def _opened(self, asked: bool) -> _Watched:
        if not asked or self._opener is None:
            raise FileNotFoundError  # GDAL looks for files beside it
        return _Watched(self._opener(), self._faults)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Set what GDAL may do for the time of a block, whose errors become DataErrors.

        Raises:
            DataError: the file is damaged.
            OSError: the function, or what it has opened, could not be read.
        """
        import rasterio

        # It neither looks for files beside the image, nor keeps more in memory.
        options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": _CACHE}
        try:
            with rasterio.Env(**options):
                yield
        except Exception as error:  # rasterio passes on many types
            self._raise_fault()
            reason = error.__cause__ or error
            raise DataError(f"{self.name}: cannot be read by windows ({reason})") from None
        self._raise_fault()

    def _raise_fault(self) -> None:
        if self._faults:
            fault = self._faults[0]
            self._faults.clear()
            raise fault from None

    def state(self) -> tuple[str, int, int]:
        """Return what tells the file from others, and from itself after a change."""
        if self._opener is None:
            status = os.stat(self.name)
            return self.name, status.st_size, status.st_mtime_ns
        with self._opener() as file:
            return self.name, file.seek(0, os.SEEK_END), 0


class _Watched:
    """A file for GDAL, which takes an error for the end of the file: here it is remembered."""

    def __init__(self, file: BinaryIO, faults: list[OSError]) -> None:
        self._file, self._faults = file, faults
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self._faults.append(error)
            return b""
