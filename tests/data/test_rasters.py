"""TIFF files that are read by windows: the same pixels as those of the whole file."""

import importlib.util
import io
import sys
from functools import partial

import numpy as np
import pytest
from data.tiff_writer import UTM, write_tiff
from PIL import Image

from mdssd.data import DataError, rasters, read_image
from mdssd.data.rasters import Raster, is_georeferenced, map_coordinates

needs_rasterio = pytest.mark.skipif(
    importlib.util.find_spec("rasterio") is None, reason="rasterio is not installed"
)
WIDTH, HEIGHT = 93, 71  # of no multiple of a block


def noise(channels, dtype=np.uint8, most=None):
    rng = np.random.default_rng(0)
    most = most or np.iinfo(dtype).max + 1
    return rng.integers(0, most, (HEIGHT, WIDTH, channels), dtype=dtype)


def blocks_of(image):
    def part(x, y, width, height):
        block = np.zeros((height, width, image.shape[2]), image.dtype)
        own = image[y : y + height, x : x + width]
        block[: own.shape[0], : own.shape[1]] = own
        return block

    return part


def write(path, image, **options):
    options = {"channels": image.shape[2], "dtype": image.dtype, **options}
    options.setdefault("photometric", 2 if image.shape[2] > 2 else 1)
    write_tiff(path, (WIDTH, HEIGHT), blocks_of(image), **options)


def check_windows(path, want, upright=True):
    with Raster(path, upright=upright) as raster:
        assert raster.shape == want.shape
        assert np.array_equal(raster[0 : want.shape[0], 0 : want.shape[1]], want)
        for y, x, height, width in ((0, 0, 1, 1), (5, 7, 30, 50), (40, 60, 100, 100)):
            part = raster[y : y + height, x : x + width]
            assert np.array_equal(part, want[y : y + height, x : x + width])
            assert part.flags.c_contiguous and part.dtype == np.uint8


class Counted(io.FileIO):
    """A file that counts the bytes that are read, and fails behind `most`."""

    count, most, made = 0, 1 << 40, []

    def __init__(self, path):
        super().__init__(path)
        Counted.made.append(self)

    def readinto(self, buffer):
        count = super().readinto(buffer)
        Counted.count += count
        if Counted.count > Counted.most:
            raise ConnectionResetError("the storage is gone")
        return count

    def read(self, size=-1):
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])


@pytest.fixture
def opener(monkeypatch):
    """Return a function that returns one which opens a path; `Counted` counts."""
    monkeypatch.setattr(Counted, "count", 0)
    monkeypatch.setattr(Counted, "made", [])
    return lambda path: partial(Counted, path)


@needs_rasterio
@pytest.mark.parametrize("image", [noise(3), noise(1, np.uint16, 4096)], ids=["rgb", "16 bits"])
def test_a_function_may_open_the_file(image, tmp_path, opener):
    path = tmp_path / "a.tif"
    write(path, image, tile=32, tags=[(274, "H", [6])])
    want = read_image(path, upright=True)
    with Raster("s3://a b/?x=*#1.tif", opener=opener(path)) as one:
        with Raster("s3://a b/?x=*#1.tif", opener=opener(path)) as two:
            for raster in (one, two, one):
                assert np.array_equal(raster[0:93, 0:71], want)
            two.check()
        assert np.array_equal(one.reduced(), want)
    assert all(file.closed for file in Counted.made)


@needs_rasterio
def test_of_an_opened_file_only_the_windows_are_read(tmp_path, opener):
    path = tmp_path / "a.tif"
    image = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8)
    write_tiff(path, (1024, 1024), blocks_of(image), tile=64)
    with Raster("a.tif", opener=opener(path)) as raster:
        assert np.array_equal(raster[100:120, 200:220], image[100:120, 200:220])
    assert 0 < Counted.count < path.stat().st_size // 20


@needs_rasterio
def test_a_function_whose_file_fails_is_no_damage(tmp_path, opener, monkeypatch):
    path = tmp_path / "a.tif"
    write(path, noise(3), tile=32)
    with Raster("a.tif", opener=opener(path)) as raster:
        monkeypatch.setattr(Counted, "most", Counted.count)
        with pytest.raises(ConnectionResetError, match="the storage is gone"):
            raster[0:70, 0:70]
        monkeypatch.undo()
        assert raster[0:70, 0:70].shape == (70, 70, 3)


@needs_rasterio
@pytest.mark.parametrize("layout", [{"tile": 32}, {"rows": 7}, {"rows": HEIGHT}, {"big": False}])
@pytest.mark.parametrize(
    "image",
    [
        noise(1),
        noise(2),
        noise(3),
        noise(4),
        noise(1, np.uint16),
        noise(1, np.uint16, 4096),
        noise(3, np.uint16),
        noise(3, np.uint16, 1 << 11),
        noise(4, np.uint16, 1 << 14),
    ],
    ids=lambda image: f"{image.shape[2]}x{image.dtype}-{image.max()}",
)
def test_windows_are_parts_of_the_whole(image, layout, tmp_path):
    path = tmp_path / "a.tif"
    write(path, image, **layout)
    want = read_image(path)
    assert want.shape == (HEIGHT, WIDTH, 3)
    check_windows(path, want)


@needs_rasterio
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_as_zero(dtype, tmp_path):
    write(tmp_path / "a.tif", noise(1, dtype), photometric=0)
    check_windows(tmp_path / "a.tif", read_image(tmp_path / "a.tif"))


@needs_rasterio
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "RGBX", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_every_kind_that_pillow_writes(mode, compression, tmp_path):
    image = Image.fromarray(noise(3))
    if mode == "I;16":
        image = Image.fromarray(noise(1, np.uint16)[..., 0])
    elif mode == "LA":
        image = Image.merge("LA", image.split()[:2])
    elif mode == "RGBX":
        image = Image.merge("RGBX", (*image.split(), image.split()[0]))
    else:
        image = image.convert(mode)
    path = tmp_path / "a.tif"
    image.save(path, compression=compression)
    check_windows(path, read_image(path))


@needs_rasterio
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_in_tiff(mode, tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(noise(3)).convert(mode).save(path, compression="jpeg")
    want = read_image(path).astype(int)
    with Raster(path) as raster:
        assert np.abs(raster[0:HEIGHT, 0:WIDTH].astype(int) - want).max() <= 4


@needs_rasterio
@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, upright, tmp_path):
    path = tmp_path / "a.tif"
    write(path, noise(3), tags=[(274, "H", [orientation])])
    check_windows(path, read_image(path, upright=upright), upright)


@needs_rasterio
def test_the_reduced_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "_REDUCED", 40)
    monkeypatch.setattr(rasters, "_CHUNK", 5000)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, 60:], image[48:, :, 1] = 200, 90
    write(tmp_path / "a.tif", image, tile=32)
    with Raster(tmp_path / "a.tif") as raster:
        small = raster.reduced()
    assert small.shape == (24, 31, 3)  # a third, rounded up
    assert np.array_equal(small, image[1::3, 1::3])


@needs_rasterio
def test_the_reduced_picture_is_made_of_a_pyramid(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "_REDUCED", 40)
    image = noise(3)
    level = np.full((36, 47, 3), 77, np.uint8)
    pages = [((47, 36), blocks_of(level))]
    write(tmp_path / "a.tif", image, tile=32, pages=pages)
    with Raster(tmp_path / "a.tif") as raster:
        assert raster.reduced().shape == (36, 47, 3) and (raster.reduced() == 77).all()
        assert np.array_equal(raster[0:HEIGHT, 0:WIDTH], image)


@needs_rasterio
@pytest.mark.parametrize(
    "image, options, message",
    [
        (noise(5), {}, "is a TIFF with 5 channels of 8 bits of a kind that cannot be read by wi"),
        (noise(1).astype(np.float32), {"tags": [(339, "H", [3])]}, "1 channel of 32 bits"),
        (noise(3), {"photometric": 8}, "3 channels of 8 bits"),
    ],
)
def test_kinds_that_are_refused(image, options, message, tmp_path):
    write(tmp_path / "a.tif", image, **options)
    with pytest.raises(DataError, match=f"^{tmp_path}/a.tif: .*{message}"):
        Raster(tmp_path / "a.tif")


@needs_rasterio
def test_files_that_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    write(path, noise(3), tile=32)
    whole = path.read_bytes()
    monkeypatch.setattr(rasters, "_MOST_BYTES", 3000)
    with pytest.raises(DataError, match="is stored in blocks of 3.07 kB, expected at most 3 kB"):
        Raster(path)
    monkeypatch.undo()
    path.write_bytes(whole[:20])
    with pytest.raises(DataError, match="a.tif: is not a TIFF image"):
        Raster(path)
    damaged = bytearray(whole)
    damaged[5000:9000] = bytes(4000)
    path.write_bytes(damaged)
    with Raster(path) as raster, pytest.raises(DataError, match="a.tif: cannot be read by wind"):
        raster[0:HEIGHT, 0:WIDTH]
    with pytest.raises(DataError, match="cannot be read"):
        Raster(tmp_path / "missing.tif")


def test_without_rasterio(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    write(tmp_path / "a.tif", noise(3), tags=UTM)
    with pytest.raises(DataError, match=r"windows needs rasterio: pip install 'mdssd\[raster\]'"):
        Raster(tmp_path / "a.tif")
    assert is_georeferenced(tmp_path / "a.tif")
    assert map_coordinates(tmp_path / "a.tif") is None


@needs_rasterio
def test_map_coordinates(tmp_path):
    path = tmp_path / "a.tif"
    write(path, noise(3), tags=UTM)
    place = map_coordinates(path)
    # 1,000 m along the meridian, on which the scale is 0.9996: 6378137 * (1 - 0.00669438) / 57.3
    (middle, south) = place([[0, 0], [0, 500]])
    assert middle == [9, 0]
    assert south == pytest.approx([9, -1000 / 0.9996 / 110574.39], abs=1e-7)
    # To the east, along the equator.
    assert place([[500, 0]])[0] == pytest.approx([9 + 1000 / 0.9996 / 111319.49, 0], abs=1e-7)
    # The picture is turned by 180 degrees, so that the corner is at the lower right.
    write(path, noise(3), tags=[*UTM, (274, "H", [3])])
    assert map_coordinates(path)([[WIDTH, HEIGHT]]) == [[9, 0]]
    assert map_coordinates(path, upright=False)([[0, 0]]) == [[9, 0]]


@needs_rasterio
def test_files_without_a_place(tmp_path):
    path = tmp_path / "a.tif"
    write(path, noise(3))
    assert not is_georeferenced(path) and map_coordinates(path) is None
    local = (34735, "H", [1, 1, 0, 1, 1024, 0, 1, 32767])
    write(path, noise(3), tags=[*UTM[:2], local])
    assert is_georeferenced(path) and map_coordinates(path) is None
    assert map_coordinates(tmp_path / "missing.tif") is None
