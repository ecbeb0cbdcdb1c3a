"""In which tile of a large image each of its objects is seen best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mdssd.data.tiles import Tiling


def best_windows(
    boxes_xyxy: NDArray[np.floating], size: tuple[int, int], tiling: Tiling | None
) -> NDArray[np.float64]:
    """Return the window that shows the most of each box.

    Of several tiles that show a box whole, it is the one in whose middle the box is. A box that no
    tile shows whole has the whole image, if the tiling shows that.

    Args:
        boxes_xyxy: [M, 4], in pixels of the image.
        size: (width, height) of the image.
        tiling: how the image is divided. None: the whole image is the only window.

    Returns:
        [M, 4], the windows as x1, y1, x2, y2 in pixels of the image.

    Example:
        >>> import numpy as np
        >>> from mdssd.data.tiled_boxes import best_windows
        >>> from mdssd.data.tiles import Tiling
        >>> boxes_xyxy = np.array([[310.0, 20, 350, 50]])
        >>> best_windows(boxes_xyxy, (700, 300), Tiling(300, 300))
        array([[240.,   0., 540., 300.]])
    """
    whole_xyxy = np.array([0, 0, *size], np.float64)
    if tiling is None:
        return np.tile(whole_xyxy, (len(boxes_xyxy), 1))
    windows_xyxy = np.empty((len(boxes_xyxy), 4))
    sides = (tiling.width, tiling.height)
    for axis, (starts, side) in enumerate(zip(tiling.starts(*size), sides, strict=True)):
        # What two intervals have in common falls with the distance of their centres.
        middles = np.array(starts) + side / 2
        centres = (boxes_xyxy[:, axis] + boxes_xyxy[:, axis + 2]) / 2
        nearest = np.searchsorted((middles[1:] + middles[:-1]) / 2, centres)
        windows_xyxy[:, axis] = np.array(starts)[nearest]
        windows_xyxy[:, axis + 2] = windows_xyxy[:, axis] + side
    if tiling.shows_whole(*size):
        windows_xyxy[~shown_whole(boxes_xyxy, windows_xyxy)] = whole_xyxy
    return windows_xyxy


def shown_whole(
    boxes_xyxy: NDArray[np.floating], windows_xyxy: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Return which boxes [M, 4] are whole in their windows [M, 4].

    Example:
        >>> import numpy as np
        >>> from mdssd.data.tiled_boxes import shown_whole
        >>> shown_whole(np.array([[5, 5, 9, 9], [5, 5, 11, 9]]), np.array([[0, 0, 10, 10]] * 2))
        array([ True, False])
    """
    before = (boxes_xyxy[:, :2] < windows_xyxy[:, :2]).any(1)
    behind = (boxes_xyxy[:, 2:] > windows_xyxy[:, 2:]).any(1)
    return np.asarray(~before & ~behind)


def in_windows(
    boxes_xyxy: NDArray[np.floating], windows_xyxy: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the parts of boxes [M, 4] that their windows [M, 4] show, as fractions of these.

    Example:
        >>> import numpy as np
        >>> from mdssd.data.tiled_boxes import in_windows
        >>> in_windows(np.array([[50.0, 10, 120, 20]]), np.array([[0.0, 0, 100, 100]]))
        array([[0.5, 0.1, 1. , 0.2]])
    """
    start = np.hstack([windows_xyxy[:, :2]] * 2)
    extent = np.hstack([windows_xyxy[:, 2:] - windows_xyxy[:, :2]] * 2)
    return np.asarray(((boxes_xyxy - start) / extent).clip(0, 1), np.float64)
