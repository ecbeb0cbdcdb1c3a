"""Training on TIFF files that are too large to be decoded as a whole, and checking them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data.tiff_writer import write_tiff
from detection.test_raster_detection import DOTS, dots_of, scattered, squares_of

from mdssd.cli import main
from mdssd.data import Augmentation, DataError, open_dataset, rasters
from mdssd.data.faults import without_damaged
from mdssd.data.images import ImageLimits
from mdssd.data.rasters import Raster
from mdssd.data.windows import TrainingWindows, WindowDraws

needs_rasterio = pytest.mark.skipif(
    importlib.util.find_spec("rasterio") is None, reason="rasterio is not installed"
)
SIZE = (160, 120)
BY_WINDOWS = ImageLimits(max_pixels=1000, by_windows=True)


def csv_data(folder, names, part, places=DOTS, size=SIZE, side=8, **options):
    """Write TIFF files with an object at each place, and their boxes."""
    folder.mkdir()
    lines = ["path,x1,y1,x2,y2,class"]
    for name in names:
        write_tiff(folder / name, size, part, **{"tile": 64, **options})
        for x, y in places:
            lines.append(f"{name},{x - side},{y - side},{x + side},{y + side},dot")
    (folder / "boxes.csv").write_text("\n".join(lines))
    return folder


def noise(channels=3, dtype=np.uint8):
    """Return what writes pixels that depend on their place alone."""

    def part(x, y, width, height):
        rng = np.random.default_rng(0)
        whole = rng.integers(0, 2000 if dtype == np.uint16 else 256, (192, 192, channels), dtype)
        return whole[y : y + height, x : x + width]

    return part


def damage(path):
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\x78\x01", 0, len(data) - 200)  # the beginning of the last block
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)


@needs_rasterio
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_are_those_of_the_decoded_image(dtype, tmp_path):
    folder = csv_data(tmp_path / "d", ["a.tif", "b.tif"], noise(dtype=dtype), dtype=dtype)
    draws = WindowDraws(50, 40)
    whole, parts = (
        TrainingWindows(open_dataset(folder, limits=limits), Augmentation(32, raw=True), draws)
        for limits in (ImageLimits(), BY_WINDOWS)
    )
    assert len(whole) == len(parts) == 2 * 4 * 3
    for index in range(len(whole)):
        pairs = zip(whole[index], parts[index], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), index
    assert all(isinstance(image, Raster) for _, image in parts._kept.values())


@needs_rasterio
def test_few_rasters_are_open_and_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr("mdssd.data.windows._BYTES", 2)
    monkeypatch.setattr("mdssd.data.windows._RASTER_BYTES", 1)
    folder = csv_data(tmp_path / "d", [f"{k}.tif" for k in range(6)], noise())
    dataset = open_dataset(folder, limits=BY_WINDOWS)
    windows = TrainingWindows(dataset, Augmentation(32), WindowDraws(30, 30))
    seen = set()
    for index in range(len(windows)):
        windows[index]
        seen |= {image for _, image in windows._kept.values()}
        assert sum(not raster._file.closed for raster in seen) <= 2
    assert len(seen) == 6  # each was opened once
    images = windows.plan().images
    changes = int((images[1:] != images[:-1]).sum())
    assert changes > 3 * 24 / 4  # pairs take turns: half of the neighbours differ


@needs_rasterio
def test_the_largest_value_is_looked_for_once(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "a.tif"
    write_tiff(path, SIZE, noise(dtype=np.uint16), tile=64, dtype=np.uint16)
    read, stored = [], Raster._stored
    monkeypatch.setattr(Raster, "_stored", lambda *a: read.append(a[2:]) or stored(*a))
    for _ in range(3):
        with Raster(path) as raster:
            raster[0:10, 0:10]
    assert len(read) == 1 + 3
    write_tiff(path, SIZE, lambda *place: noise()(*place).astype(np.uint16), dtype=np.uint16)
    with Raster(path) as raster:  # another file in its place
        assert raster[0:192, 0:192].max() == 255


@needs_rasterio
def test_rasters_are_checked_before_training(tmp_path):
    folder = csv_data(tmp_path / "d", ["a.tif", "b.tif"], dots_of(DOTS))
    damage(folder / "b.tif")
    dataset = open_dataset(folder, limits=BY_WINDOWS)
    faults = []
    assert without_damaged(dataset, faults).image_ids == ["a"]
    assert len(faults) == 1 and "b.tif: cannot be read by windows" in faults[0]
    with pytest.raises(DataError, match="expected at most 1,000"):
        open_dataset(folder, limits=ImageLimits(max_pixels=1000))


@needs_rasterio
def test_the_commands(tmp_path, capsys, monkeypatch):
    folder = csv_data(tmp_path / "d", ["a.tif", "b.tif"], dots_of(DOTS))

    def run(*words):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    out, few = tmp_path / "run", ["--max-pixels", 1000]
    tiny = "--model ssd300 --width 0.0625 --batch-size 2 --workers 0 --threads 1".split()
    train = ["train", "--data", folder, *few, *tiny, "--iterations", 1, "--out", out]
    for words in (train, ["data", "show", folder, *few, "--out", tmp_path / "a.png"]):
        status, _, err = run(*words)
        assert status == 2 and "a.tif: has 160 x 120 pixels, expected at most 1,000" in err
    status, text, err = run(*train, "--tile", 64, "--eval-data", folder, "--eval-every", 1)
    assert (status, err) == (0, ""), err
    assert "windows: 64 x 64 pixels of the image, 12 in an epoch" in text

    status, text, err = run("data", "check", folder, *few, "--tile", 64)
    assert (status, err) == (0, "") and "files with the same bytes: 1" in text
    whole = run("data", "check", folder, "--tile", 64)
    assert whole == (0, text, "")
    assert run("data", "check", folder, *few)[0] == 2

    monkeypatch.setattr(rasters, "_REDUCED", 80)
    picture = tmp_path / "a.png"
    status, text, err = run("data", "show", folder, *few, "--tile", 64, "--out", picture)
    assert status == 0 and text.endswith("2 images of d\n"), (text, err)
    assert cv2.imread(str(picture)).shape == (144, 328, 3)

    damage(folder / "b.tif")
    status, text, err = run("data", "check", folder, *few, "--tile", 64)
    assert status == 1 and "b.tif: cannot be read by windows" in text
    out = [*train[:-1], tmp_path / "other", "--tile", 64]
    status, _, err = run(*out)
    assert status == 2 and "b.tif: cannot be read by windows" in err
    status, text, _ = run(*out, "--allow-faults")
    assert status == 0 and "6 in an epoch" in text


def test_without_rasterio(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    folder = csv_data(tmp_path / "d", ["a.tif"], noise())
    cv2.imwrite(str(folder / "b.png"), np.zeros((30, 30, 3), np.uint8))
    with (folder / "boxes.csv").open("a") as file:
        file.write("\nb.png,10,10,26,26,dot\n")
    options = [str(folder), "--max-pixels", "1000", "--tile", "64"]
    out = ["--out", str(tmp_path / "run"), "--width", "0.0625", "--workers", "0"]
    needs = (
        "a.tif: has 160 x 120 pixels, above the 1,000 of --max-pixels; reading it by windows needs "
        "rasterio: pip install 'mdssd[raster]'"
    )
    picture = str(tmp_path / "a.png")
    for words in (
        ["train", "--data", *options, *out, "--iterations", "1"],
        ["data", "show", *options, "--out", picture],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err == f"mdssd: error: {folder}/{needs}\n"
    assert main(["data", "show", *options, "--out", picture, "--allow-faults"]) == 0
    capsys.readouterr()
    assert main(["data", "check", *options]) == 1
    assert f"files that cannot be used: 1\n  {needs}\n" in capsys.readouterr().out


# VmHWM is the most memory, in KiB, since the program began; ru_maxrss counts that of pytest too.
PROGRAM = """
import json, sys
from mdssd.cli import main

status = main(sys.argv[1:])
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([status, peak]))
"""


def run_in_a_process(*words):
    root = Path(__file__).parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    *text, last = process.stdout.splitlines()
    status, peak = json.loads(last)
    assert status == 0, process.stderr
    return "\n".join(text), peak


@needs_rasterio
@pytest.mark.nightly("reads 400 million pixels three times, in processes to measure their memory")
@pytest.mark.parametrize("layout", [{"tile": 512}, {"tile": None}], ids=["tiles", "strips"])
def test_memory_does_not_grow_with_a_raster(layout, tmp_path):
    """Decoded, this raster has 1.2 GB."""
    size, places = (20_000, 20_000), scattered(20_000, 20_000, 300)
    part = squares_of(places, 20)
    folder = csv_data(tmp_path / "d", ["a.tif"], part, places, size, side=10, **layout)
    tiny = "--model ssd300 --width 0.0625 --batch-size 4 --workers 0 --threads 1".split()
    run = ["--iterations", 10, "--out", tmp_path / "run", "--tile", 300]
    text, peak = run_in_a_process("train", "--data", folder, *tiny, *run)
    assert "windows: 300 x 300 pixels of the image, 4,489 in an epoch" in text
    assert peak < 1_000_000  # KiB
    text, peak = run_in_a_process("data", "check", folder, "--tile", 300, "--workers", 2)
    assert "300 boxes" in text and peak < 1_000_000
    picture = tmp_path / "a.png"
    text, peak = run_in_a_process("data", "show", folder, "--tile", 2000, "--out", picture)
    assert peak < 1_000_000 and cv2.imread(str(picture)).shape == (3624, 3600, 3)
