"""Detection in TIFF files of any size, which are read by windows."""

import importlib.util
import sys

import cv2
import numpy as np
import pytest
from data.tiff_writer import write_tiff
from detection.test_tiled_detection import dotted, marks_detector

from mdssd.data import DataError, tiff
from mdssd.data.images import ImageLimits
from mdssd.detection.reading import ImageFile

needs_rasterio = pytest.mark.skipif(
    importlib.util.find_spec("rasterio") is None, reason="rasterio is not installed"
)
DOTS = [(50, 40), (10, 60), (90, 8), (140, 99), (77, 30)]


def dots_of(dots, channels=3):
    """Return what writes white pixels at these places."""

    def part(x, y, width, height):
        own = [(a - x, b - y) for a, b in dots if x <= a < x + width and y <= b < y + height]
        if not own:
            return None
        block = np.zeros((height, width, channels), np.uint8)
        for a, b in own:
            block[b, a] = 255
        return block

    return part


def boxes_of(dots):
    return {(x + 0.5 - 4, y + 0.5 - 4, x + 0.5 + 4, y + 0.5 + 4) for x, y in dots}


def small_limit(detector):
    detector.limits = ImageLimits(max_pixels=1000)
    return detector


@pytest.fixture
def raster(tmp_path):
    path = tmp_path / "raster.tif"
    write_tiff(path, (160, 120), dots_of(DOTS), tile=64)
    return path


@needs_rasterio
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_neither_batches_nor_workers_nor_windows_change_the_result(raster, batch_size, workers):
    (want,) = marks_detector()(str(raster))
    assert {tuple(box) for box in want["boxes"].tolist()} == boxes_of(DOTS)
    detector = small_limit(marks_detector())
    (found,) = detector(raster, batch_size=batch_size)
    assert all(np.array_equal(found[name], want[name]) for name in want)
    items = [dotted(60, 40, (9, 9)), raster, ImageFile(raster), dotted(40, 40)]
    results = list(detector.stream(items, batch_size=batch_size, workers=workers))
    assert [len(result.found["boxes"]) for result in results] == [1, 5, 5, 0]
    for result in results[1:3]:
        assert result.size == (120, 160) and result.image is None
        assert all(np.array_equal(result.found[name], want[name]) for name in want)


@needs_rasterio
def test_the_whole_is_shown_reduced(raster):
    detector = small_limit(marks_detector(with_whole=True))
    (found,) = detector(raster)
    assert boxes_of(DOTS) <= {tuple(box) for box in found["boxes"].tolist()}
    assert sum(detector.model.batches) == 6 * 5 + 1


def test_a_limit_without_tiles_stays_a_limit(raster):
    detector = small_limit(marks_detector(tile=None))
    with pytest.raises(DataError, match=r"raster.tif: has 160 x 120 pixels, expected at most 1,00"):
        detector(raster)
    # Other formats are decoded as a whole.
    detector = small_limit(marks_detector())
    path = raster.with_suffix(".png")
    cv2.imwrite(str(path), dotted(160, 120))
    with pytest.raises(DataError, match=r"raster.png: has 160 x 120 .* use --max-pixels 19200"):
        detector(path)
    with pytest.raises(DataError, match=r"images\[0\]: has 160 x 120 pixels"):
        detector(raster.read_bytes())


def test_without_rasterio(raster, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    (result, other) = small_limit(marks_detector()).stream([raster, dotted(40, 40)], workers=0)
    assert str(result.error) == (
        f"{raster}: has 160 x 120 pixels, above the 1,000 of --max-pixels; reading it by windows "
        "needs rasterio: pip install 'mdssd[raster]'"
    )
    assert other.error is None


@needs_rasterio
def test_a_raster_that_is_damaged_further_down(raster):
    with open(raster, "rb") as file:
        header = tiff.read_tiff(file)
    assert header is not None
    data = bytearray(raster.read_bytes())
    at = data.rindex(b"\x78\x01", 0, 2000)  # the beginning of the last block
    data[at : at + 40] = bytes(40)
    raster.write_bytes(data)
    detector = small_limit(marks_detector(batch_size=2))
    first, broken, last = detector.stream(
        [dotted(40, 40, (5, 5)), raster, dotted(60, 60, (9, 9))], workers=0
    )
    assert "raster.tif: cannot be read by windows" in str(broken.error)
    assert len(first.found["boxes"]) == len(last.found["boxes"]) == 1
    with pytest.raises(DataError, match="raster.tif: cannot be read by windows"):
        detector(raster)


def test_each_tile_is_announced():
    detector, calls = marks_detector(overlap=0), []
    detector.on_tile = lambda done, total: calls.append((done, total))
    detector([dotted(64, 32), dotted(32, 32)])
    assert calls == [(0, 2), (1, 2), (0, 1)]
