"""Detection in TIFF files of any size, which are read by windows."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from data.tiff_writer import UTM, write_tiff
from detection.test_tiled_detection import dotted, marks_detector

from mdssd.data import DataError, open_dataset, rasters
from mdssd.data.images import ImageLimits
from mdssd.detection.files import detect
from mdssd.detection.reading import ImageFile
from mdssd.evaluation.evaluate import evaluate

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


def squares_of(places, side):
    """Return what writes white squares about these places."""

    def part(x, y, width, height):
        block = None
        for a, b in places:
            left, top = a - side // 2 - x, b - side // 2 - y
            if -side < left < width and -side < top < height:
                if block is None:
                    block = np.zeros((height, width, 3), np.uint8)
                block[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 255
        return block

    return part


def scattered(width, height, count):
    """Return places that are 400 pixels apart or more, and also near the edges of tiles."""
    rng = np.random.default_rng(0)
    cells = [(x, y) for x in range(200, width - 400, 800) for y in range(200, height - 400, 800)]
    chosen = rng.permutation(cells)[:count]
    return [(int(x), int(y)) for x, y in chosen + rng.integers(0, 400, chosen.shape)]


def check_found_once(places, detections):
    assert len(detections) == len(places)
    for x, y in places:
        boxes = [found["box_xyxy"] for found in detections]
        inside = [b for b in boxes if b[0] < x < b[2] and b[1] < y < b[3]]
        assert len(inside) == 1, (x, y, inside)


# VmHWM is the most memory, in KiB, since the program began; ru_maxrss counts that of pytest too.
PROGRAM = """
import json, sys
from detection.marks import marks_detector
from mdssd.detection.files import detect

report = detect(marks_detector(tile=500), [sys.argv[1]], sys.argv[2], workers=0)
assert not report.failed, report.failed
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak": peak, "table": report.table(), "found": report.images[0]}))
"""


def detect_in_a_process(path, out):
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@needs_rasterio
@pytest.mark.nightly("reads 400 million pixels, and starts a process to measure its memory")
@pytest.mark.parametrize("layout", [{"tile": 512}, {"rows": 16}], ids=["tiles", "strips"])
def test_memory_does_not_grow_with_a_raster(layout, tmp_path):
    """Decoded, this raster has 1.2 GB; a process that has loaded PyTorch needs up to 0.6 GB."""
    places = scattered(20_000, 20_000, 300)
    path = tmp_path / "large.tif"
    write_tiff(path, (20_000, 20_000), squares_of(places, 20), **layout)
    result = detect_in_a_process(path, tmp_path / "found")
    assert result["peak"] < 1_000_000  # KiB
    check_found_once(places, result["found"]["detections"])
    assert "is too large for a picture of its own size; drawn at 20.0% of it" in result["table"]
    assert cv2.imread(f"{tmp_path}/found/large.jpg").shape[1] == 4000


@needs_rasterio
def test_planted_objects_are_found_once(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "_REDUCED", 1000)
    places = scattered(3_000, 4_000, 12)
    path = tmp_path / "large.tif"
    write_tiff(path, (3_000, 4_000), squares_of(places, 20), tags=UTM)
    detector = small_limit(marks_detector(tile=500))
    report = detect(
        detector, [path], tmp_path / "found", formats=["json", "geojson"], progress=False
    )
    check_found_once(places, report.images[0]["detections"])
    assert list(report.guesses) == [
        "is too large for a picture of its own size; drawn at 25.0% of it"
    ]
    picture = cv2.imread(f"{tmp_path}/found/large.jpg")
    assert picture.shape[1] == 750 and picture.shape[0] >= 1000  # and the legend
    x, y = places[0]
    assert picture[y // 4, x // 4].min() > 200 and picture[y // 4, x // 4 + 9].max() < 60
    text = json.loads(Path(f"{tmp_path}/found/geojson/large.geojson").read_text())
    for feature, found in zip(text["features"], report.images[0]["detections"], strict=True):
        assert feature["properties"]["box_xyxy"] == found["box_xyxy"]
        x1, y1, x2, y2 = found["box_xyxy"]
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1] and len(ring) == 5
        # Pixels of 2 m from 9 degrees east and the equator, to the east and to the south.
        assert min(lon for lon, _ in ring) == pytest.approx(9 + 2 * x1 / 111275, abs=1e-4)
        assert max(lat for _, lat in ring) == pytest.approx(-2 * y1 / 110530, abs=1e-4)
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:], strict=False))
        assert area > 0  # counterclockwise


def test_a_geotiff_without_rasterio_has_pixels(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    path = tmp_path / "a.tif"
    write_tiff(path, (64, 64), dots_of([(30, 20)]), tags=UTM)
    report = detect(marks_detector(), [path], tmp_path / "found", formats=["geojson"])
    assert list(report.guesses) == [
        "is a GeoTIFF, but its boxes are in pixels: converting them needs rasterio: pip install "
        "'mdssd[raster]'"
    ]
    text = json.loads(Path(f"{tmp_path}/found/geojson/a.geojson").read_text())
    assert text["features"][0]["geometry"]["coordinates"][0][0] == [26.5, 16.5]


@needs_rasterio
def test_ctrl_c_in_the_middle_of_a_raster_leaves_whole_tables(tmp_path):
    cv2.imwrite(f"{tmp_path}/a.png", dotted(40, 32, (9, 9)))
    write_tiff(tmp_path / "b.tif", (1600, 1600), dots_of([(800, 800)]), tile=512)
    detector = marks_detector()
    detector.limits = ImageLimits(max_pixels=10_000)
    calls = []

    def on_tile(done, total):
        calls.append(done)
        if (done, total) == (60, 62 * 62):
            signal.raise_signal(signal.SIGINT)

    detector.on_tile = on_tile
    with pytest.raises(KeyboardInterrupt, match="1 of 2 images done; boxes in .*detections.json"):
        detect(detector, [tmp_path], tmp_path / "found", formats=["json", "csv", "geojson"])
    assert calls[-1] == 60 and detector.on_tile is on_tile
    (image,) = json.loads(Path(f"{tmp_path}/found/detections.json").read_text())
    assert image["file"].endswith("a.png") and len(image["detections"]) == 1
    assert len(Path(f"{tmp_path}/found/detections.csv").read_text().splitlines()) == 2
    left = {path.name for path in Path(f"{tmp_path}/found").rglob("*") if path.is_file()}
    assert left == {"a.jpg", "detections.json", "detections.csv", "a.geojson"}


@needs_rasterio
def test_evaluation_reads_rasters_by_windows(raster, tmp_path):
    """One object more than there are dots is missed, and shown in the report."""
    boxes = [f"raster.tif,{x - 4},{y - 4},{x + 4},{y + 4},class 1" for x, y in [*DOTS, (120, 60)]]
    (tmp_path / "boxes.csv").write_text("\n".join(["path,x1,y1,x2,y2,class", *boxes]))
    with pytest.raises(DataError, match=r"raster.tif: has 160 x 120 pixels"):
        open_dataset(tmp_path, limits=ImageLimits(max_pixels=1000))
    limits = ImageLimits(max_pixels=1000, by_windows=True)
    data = open_dataset(tmp_path, limits=limits)
    with pytest.raises(DataError, match=r"raster.tif: has 160 x 120 pixels"):
        data[0]
    result = evaluate(marks_detector(), data, out_dir=tmp_path / "windows", progress=False)
    assert result.voc12.mean_ap == pytest.approx(5 / 6)
    assert "missed: class 1" in (tmp_path / "windows/report.html").read_text()

    whole = open_dataset(tmp_path)
    evaluate(marks_detector(), whole, out_dir=tmp_path / "whole", progress=False)
    pages = [(tmp_path / name / "report.html").read_text() for name in ("windows", "whole")]
    pictures = [re.findall(r"data:image/jpeg;base64,[^\"]+", page) for page in pages]
    assert pictures[0] == pictures[1] != []
