"""Boxes of a sample that training takes for neither objects nor background."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from mdssd.data.sample import Sample
from mdssd.names import IGNORABLE

IGNORED = -1  # the label of such a box


def check_ignore(where: str, ignore: Collection[str]) -> tuple[str, ...]:
    """Return the kinds of boxes to ignore, or raise ValueError if one is not known.

    Example:
        >>> from mdssd.data.ignored import check_ignore
        >>> check_ignore("Augmentation", ["cut", "crowd"])
        ('cut', 'crowd')
    """
    if isinstance(ignore, str) or not all(kind in IGNORABLE for kind in ignore):
        raise ValueError(
            f"{where}: ignore: expected a list of some of {', '.join(IGNORABLE)}; got {ignore!r}"
        )
    return tuple(ignore)


def objects_of(sample: Sample, ignore: Collection[str]) -> NDArray[np.bool_]:
    """Return which boxes [M] are objects to learn: no crowds, and none that is ignored.

    Example:
        >>> import numpy as np
        >>> from mdssd.data import Sample
        >>> from mdssd.data.ignored import objects_of
        >>> image, boxes = np.zeros((9, 9, 3), np.uint8), np.ones((2, 4), np.float32)
        >>> sample = Sample(image, boxes, np.array([1, 1]), np.array([False, True]), "a")
        >>> objects_of(sample, ()), objects_of(sample, ["difficult"])
        (array([ True,  True]), array([ True, False]))
    """
    objects = ~sample.crowd & (sample.labels > 0)
    return np.asarray(objects & ~sample.difficult if "difficult" in ignore else objects)


def ignored_of(sample: Sample, ignore: Collection[str]) -> NDArray[np.bool_]:
    """Return which boxes [M] are ignored: those with the label -1, and those of these kinds.

    Example:
        >>> import numpy as np
        >>> from mdssd.data import Sample
        >>> from mdssd.data.ignored import ignored_of
        >>> image, boxes = np.zeros((9, 9, 3), np.uint8), np.ones((2, 4), np.float32)
        >>> sample = Sample(image, boxes, np.array([1, -1]), np.array([False, False]), "a")
        >>> ignored_of(sample, ["cut"])
        array([False,  True])
    """
    ignored = sample.labels == IGNORED
    if "crowd" in ignore:
        ignored = ignored | sample.crowd
    if "difficult" in ignore:
        ignored = ignored | (sample.difficult & ~sample.crowd)
    return np.asarray(ignored)


def parts_in_window(
    boxes_xyxy: NDArray[np.floating], window: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return what a window [4] shows of boxes [M, 4], in fractions of it, without empty parts.

    Example:
        >>> import numpy as np
        >>> from mdssd.data.ignored import parts_in_window
        >>> parts_in_window(np.array([[50, 10, 120, 20], [200, 0, 300, 50]]), [0, 0, 100, 100])
        array([[0.5, 0.1, 1. , 0.2]])
    """
    start, end = np.asarray(window[:2], np.float64), np.asarray(window[2:], np.float64)
    corners = boxes_xyxy.astype(np.float64).reshape(-1, 2, 2)
    parts = ((corners - start) / (end - start)).clip(0, 1).reshape(-1, 4)
    return np.asarray(parts[(parts[:, 2:] > parts[:, :2]).all(1)])
