"""How images are divided into tiles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdssd.data.tiles import Tiling, Window, make_tiling


def places(tiling, width, height):
    return [(window.x, window.y) for window in tiling.windows(width, height)]


def test_the_last_column_and_row_are_moved_inwards():
    tiling = Tiling(300, 200, overlap=0.5)
    assert places(tiling, 700, 200) == [(0, 0), (150, 0), (300, 0), (400, 0)]
    assert places(tiling, 300, 330) == [(0, 0), (0, 100), (0, 130)]
    assert places(Tiling(300, 300, overlap=0), 600, 300) == [(0, 0), (300, 0)]
    assert places(Tiling(300, 300, overlap=0), 601, 300) == [(0, 0), (300, 0), (301, 0)]


def test_one_tile_and_images_smaller_than_a_tile():
    tiling = Tiling(300, 300)
    alone = [Window(0, 0, 300, 300)]
    assert list(tiling.windows(300, 300)) == alone
    assert list(tiling.windows(20, 299)) == alone
    assert list(tiling.windows(1, 700)) == [
        Window(0, 0, 300, 300, (False, False, False, True)),
        Window(0, 240, 300, 300, (False, True, False, True)),
        Window(0, 400, 300, 300, (False, True, False, False)),
    ]


def test_the_whole_image():
    tiling = Tiling(300, 300, with_whole=True)
    windows = list(tiling.windows(500, 300))
    assert windows[0] == Window(0, 0, 500, 300) and len(windows) == 3
    assert list(tiling.windows(300, 300)) == [Window(0, 0, 300, 300)]
    assert len(list(tiling.windows(200, 200))) == 2  # once padded, once enlarged


sides = st.integers(1, 400)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 0.9), sides, sides, st.booleans())
def test_every_pixel_is_in_a_tile_and_objects_smaller_than_the_overlap_are_whole(
    width, height, overlap, image_width, image_height, whole
):
    tiling = Tiling(width, height, overlap, whole)
    windows = list(tiling.windows(image_width, image_height))
    assert len(windows) == tiling.count(image_width, image_height) == len(set(windows))
    tiles = [w for w in windows if (w.width, w.height) == (width, height)]
    for length, side, start, low, high in (
        (image_width, width, "x", 0, 2),
        (image_height, height, "y", 1, 3),
    ):
        starts = sorted({getattr(w, start) for w in tiles})
        assert starts[0] == 0 and starts[-1] == max(0, length - side)
        steps = np.diff(starts)
        assert (steps <= max(1, round(side * (1 - overlap)))).all()
        for w in tiles:
            at = getattr(w, start)
            assert w.inner[low] == (at > 0)
            assert w.inner[high] == (at + side < length)


def test_options():
    assert make_tiling(None, 300) is None
    assert make_tiling("auto", 512) == Tiling(512, 512)
    assert make_tiling("auto", (640, 384), scale=2) == Tiling(320, 192)
    assert make_tiling(300, 512, scale=0.5, overlap=0.3) == Tiling(600, 600, 0.3)
    assert make_tiling((300, 200), 512, with_whole=True) == Tiling(300, 200, 0.2, True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tile": 0}, "tile: expected sides of 32 pixels or more, got 0 x 0"),
        ({"tile": (300, 31)}, "tile: expected sides of 32 pixels or more, got 300 x 31"),
        ({"tile": 300.5}, "tile: expected a number of pixels, .* or 'auto'; got 300.5"),
        ({"tile": (300, 200, 3)}, r"tile: expected a number of .*; got \(300, 200, 3\)"),
        ({"tile": None, "overlap": 0.3}, "overlap: needs a tile beside it"),
        ({"tile": None, "scale": 2}, "tile_scale: needs a tile beside it"),
        ({"tile": None, "with_whole": True}, "with_whole: needs a tile beside it"),
        ({"tile": 100_000}, "tile: expected at most 100,000,000 pixels, got 100,000 x 100,000"),
        ({"tile": "large"}, "tile: expected a number of pixels or 'auto', got 'large'"),
        ({"tile": 300, "overlap": 0.95}, "overlap: expected 0 to 0.9, got 0.95"),
        ({"tile": 300, "overlap": float("nan")}, "overlap: expected 0 to 0.9, got nan"),
        ({"tile": 300, "scale": 0}, "tile_scale: expected a number above 0, up to 16, got 0"),
        (
            {"tile": (300, 400), "scale": 0.01},
            "tile_scale: expected tiles that show at most 100,000,000 pixels of the image, got "
            "0.01 for tiles of 300 x 400",
        ),
        ({"tile": "auto", "scale": 5e-324}, "tile_scale: expected tiles .* got 4.94066e-324 for"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_tiling(options.pop("tile"), 300, **options)
