"""The images of a data set, each as a whole or, where it is too large for that, by windows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from mdssd.data.dataset import DetectionDataset
from mdssd.data.image_headers import ImageHeader
from mdssd.data.images import ImageLimits, read_header, read_image
from mdssd.data.raster_files import NEEDS, has_rasterio
from mdssd.data.rasters import Raster
from mdssd.data.sample import DataError


def raster_of(dataset: DetectionDataset, index: int) -> Raster | None:
    """Open an image that is read by windows; return None for one that is read as a whole.

    Raises:
        DataError: the image cannot be read.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.opened import raster_of
        >>> print(raster_of(SyntheticScenes(1), 0))
        None
    """
    path, limits = dataset.image_path(index), dataset.limits
    if path is None or not limits.by_windows or not limits.is_raster(read_header(path)):
        return None
    return Raster(path, upright=dataset.upright(index))


def check_rasterio(header: ImageHeader, limits: ImageLimits, name: str) -> None:
    """Refuse a file above the limits, which is read by windows, if rasterio is not installed.

    Args:
        header: the header of the file.
        limits: the limits.
        name: the name of the file, for the message.

    Raises:
        DataError: rasterio is not installed.

    Example:
        >>> import importlib.util
        >>> from mdssd.data.images import ImageLimits
        >>> from mdssd.data.image_headers import ImageHeader
        >>> from mdssd.data.opened import check_rasterio
        >>> if importlib.util.find_spec("rasterio") is not None:
        ...     check_rasterio(ImageHeader(20_000, 20_000, 1, "TIFF"), ImageLimits(), "a.tif")
    """
    if not has_rasterio():
        raise DataError(
            f"{name}: has {header.width:,} x {header.height:,} pixels, above the "
            f"{limits.max_pixels:,} of --max-pixels; reading it by windows {NEEDS}"
        )


@contextmanager
def opened(dataset: DetectionDataset, index: int) -> Iterator[NDArray[np.uint8] | Raster]:
    """Open an image for the time of a block: as pixels [H, W, 3], or by windows.

    Raises:
        DataError: the image cannot be read.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.opened import opened
        >>> with opened(SyntheticScenes(1), 0) as image:
        ...     image[10:30, 0:40].shape
        (20, 40, 3)
    """
    raster = raster_of(dataset, index)
    if raster is None:
        yield dataset[index].image
    else:
        with raster:
            yield raster


def check_file(dataset: DetectionDataset, index: int) -> None:
    """Read all of an image that is a file, to find damage.

    Raises:
        DataError: it cannot be read.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.opened import check_file
        >>> check_file(SyntheticScenes(1), 0)  # is no file
    """
    path, raster = dataset.image_path(index), raster_of(dataset, index)
    if raster is not None:
        with raster:
            raster.check()
    elif path is not None:
        read_image(path, upright=dataset.upright(index), limits=dataset.limits)
