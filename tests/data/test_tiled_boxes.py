"""In which tile each object is seen best."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mdssd.data.tiled_boxes import best_windows, in_windows, shown_whole
from mdssd.data.tiles import Tiling

TILING = Tiling(100, 80, overlap=0.2)  # columns 0, 80, 100 and rows 0, 40 of 200 x 120


def test_by_hand():
    boxes = np.array([[10, 10, 30, 30], [110, 70, 120, 80], [90, 0, 190, 20], [0, 0, 200, 120.0]])
    windows = best_windows(boxes, (200, 120), TILING)
    assert windows.tolist() == [
        [0, 0, 100, 80],
        [80, 40, 180, 120],  # three columns show it whole, this one nearest to its middle
        [80, 0, 180, 80],
        [80, 0, 180, 80],
    ]
    assert shown_whole(boxes, windows).tolist() == [True, True, False, False]
    shown = in_windows(boxes, windows)
    np.testing.assert_allclose(shown[2], [0.1, 0, 1, 0.25])
    assert shown[3].tolist() == [0, 0, 1, 1]


def test_the_whole_image_for_what_no_tile_shows():
    boxes = np.array([[10, 10, 30, 30], [0, 0, 150, 60.0]])
    whole = Tiling(100, 80, overlap=0.2, with_whole=True)
    windows = best_windows(boxes, (200, 120), whole)
    assert windows.tolist() == [[0, 0, 100, 80], [0, 0, 200, 120]]
    assert shown_whole(boxes, windows).all()
    # Without tiles the image is the only window.
    assert best_windows(boxes, (200, 120), None).tolist() == [[0, 0, 200, 120]] * 2
    assert best_windows(np.zeros((0, 4)), (200, 120), TILING).shape == (0, 4)


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([0, 0.2, 0.5, 0.9]),
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_no_other_tile_shows_more(width, height, across, down, overlap, seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (6, 2, 2)), 1) * (width, height)
    boxes = corners.reshape(6, 4)
    tiling = Tiling(across, down, overlap)
    windows = best_windows(boxes, (width, height), tiling)

    def common(box, window):
        x1, y1 = np.maximum(box[:2], window[:2])
        x2, y2 = np.minimum(box[2:], window[2:])
        return max(x2 - x1, 0) * max(y2 - y1, 0)

    every = [(w.x, w.y, w.x + w.width, w.y + w.height) for w in tiling.windows(width, height)]
    for box, window in zip(boxes, windows, strict=True):
        assert tuple(window) in every
        best = max(common(box, other) for other in every)
        np.testing.assert_allclose(common(box, window), best, rtol=1e-9, atol=1e-6)
