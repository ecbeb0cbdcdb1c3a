"""Every part reads the same pixels from an image file, whatever its kind."""

import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
from image_kinds import DARK_IN_PILLOW, GREY, HEIGHT, KINDS, NOT_IN_PILLOW, RGB, WIDTH, deep, tiff
from PIL import Image

import mdssd
from mdssd.data import (
    Augmentation,
    DataError,
    TrainingSet,
    VOCDataset,
    decode_image,
    read_image,
)
from mdssd.data.image_headers import DEEP, FLOATS, MORE_PAGES
from mdssd.data.images import ImageLimits, from_pillow, read_header
from mdssd.evaluation.evaluate import _images
from mdssd.inspection.check import check_data
from mdssd.inspection.plots import contact_sheet

SIDE = 32


@pytest.fixture(scope="module")
def detector():
    return mdssd.Detector(mdssd.ssd300(2, width=0.0625))


def in_a_data_set(folder, suffix, data):
    """Return a data set of one image with a box, and the image's path."""
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir()
    path = folder / f"JPEGImages/a{suffix}"
    path.write_bytes(data)
    box = "<xmin>30</xmin><ymin>20</ymin><xmax>90</xmax><ymax>80</ymax>"
    (folder / "Annotations/a.xml").write_text(
        f"<annotation><object><name>x</name><bndbox>{box}</bndbox></object></annotation>"
    )
    return VOCDataset(folder, "all"), path


def difference(a, b):
    assert a.shape == b.shape and a.dtype == np.uint8
    return np.abs(a.astype(int) - b).max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_road_gives_the_same_pixels(tmp_path, detector, kind):
    suffix, data, shown = KINDS[kind]
    dataset, path = in_a_data_set(tmp_path, suffix, data)
    image = read_image(path)
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    if shown is not None:
        shown = shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, 2)
        np.testing.assert_array_equal(image, shown)

    header = read_header(path)
    assert (header.width, header.height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(decode_image(data), image)
    np.testing.assert_array_equal(dataset[0].image, image)
    np.testing.assert_array_equal(read_image(path, upright=True), image)
    for source in (path, str(path), data, image):
        np.testing.assert_array_equal(detector.read(source), image)
    (result,) = detector.stream([path], workers=0, with_images=True)
    np.testing.assert_array_equal(result.image, image)
    truth = []
    (evaluated,) = _images(dataset, [0], np.arange(2), truth)
    np.testing.assert_array_equal(detector.read(evaluated), image)

    plain = {"expand": 1, "photometric": False, "crop": False, "mirror": False}
    augmentation = Augmentation(SIDE, **plain, raw=True)
    sample = replace(dataset.annotation(0), image=image)
    warped = augmentation(sample, np.random.default_rng(0))[0].permute(1, 2, 0).numpy()
    whole, _, _ = TrainingSet(dataset, augmentation, reduced=False)[0]
    np.testing.assert_array_equal(whole.permute(1, 2, 0).numpy(), warped)
    reduced, _, _ = TrainingSet(dataset, augmentation)[0]
    # A JPEG is decoded at a quarter of its size: each pixel is the mean of 16, where the resize
    # of the whole image takes the four nearest. They differ at most by the picture's slope.
    most = 12 if header.format == "JPEG" else 0
    assert difference(reduced.permute(1, 2, 0).numpy(), warped) <= most
    half = decode_image(data, reduction=2)
    means = cv2.resize(image, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    assert difference(half, means) <= (6 if header.format == "JPEG" else 0)

    check = check_data(dataset, detector.model.priors, 300, progress=False, workers=1)
    assert not check.faults and check.image_sizes == {(WIDTH, HEIGHT): 1}
    sheet = contact_sheet(dataset, Augmentation(SIDE, **plain), count=1)
    corner = warped[-3, -3].astype(int)  # below the box and its name
    assert (np.abs(sheet.reshape(-1, 3) - corner).max(1) <= most + 1).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_pillow_opened_is_read_as_its_file(detector, kind):
    _, data, _ = KINDS[kind]
    if kind in NOT_IN_PILLOW:
        with pytest.raises(OSError, match="cannot identify"):
            Image.open(io.BytesIO(data))
        return
    expected = decode_image(data)
    for load in (False, True):
        image = Image.open(io.BytesIO(data))
        if load:
            image.load()
        if kind in DARK_IN_PILLOW:
            assert from_pillow(image).mean() < expected.mean() / 8
            continue
        # Pillow and libjpeg convert CMYK to RGB with another rounding.
        most = 1 if image.format == "JPEG" and image.mode == "CMYK" else 0
        assert difference(from_pillow(image), expected) <= most
        assert difference(detector.read(image), expected) <= most


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("tile", [None, 32])
def test_deep_colours_one_after_another_are_refused_not_mixed_up(bits, tile):
    pixels = deep(RGB) if bits == 16 else (RGB / 255).astype(np.float32)
    data = tiff(pixels, planar=True, tile=tile)
    reason = rf"a.tif: is a damaged TIFF, or .* 3 channels of {bits} bits one after another \(pla"
    with pytest.raises(DataError, match=reason + r".*; convert it to interleaved RGB"):
        decode_image(data, "a.tif")
    if bits == 16:
        with pytest.raises(DataError, match="image: .*one after another"):
            from_pillow(Image.open(io.BytesIO(data)))
    for odd in (np.dstack([deep(GREY)] * 2), np.dstack([deep(GREY)] * 5)):
        with pytest.raises(DataError, match="of 16 bits; convert it"):
            decode_image(tiff(odd, extra=0))


@pytest.mark.parametrize("photometric", [0, 1])
def test_colours_that_a_tiff_says_are_grey(photometric):
    with pytest.raises(DataError, match="is a damaged TIFF.* with 3 channels of 8 bits"):
        decode_image(tiff(RGB, photometric=photometric), "a.tif")


def test_deep_tiffs_have_a_limit_of_their_bytes():
    data = tiff((RGB / 255).astype(np.float32))
    pixels = HEIGHT * WIDTH
    assert decode_image(data, limits=ImageLimits(12 * pixels // 8)).shape == (HEIGHT, WIDTH, 3)
    reason = "a: 128 x 96 pixels, each with 3 channels of 32 bits, need 147 kB, expected at most 14"
    with pytest.raises(DataError, match=reason):
        decode_image(data, "a", limits=ImageLimits(12 * pixels // 8 - 1))


def guess_of(kind):
    """Return what reading a file has to guess."""
    if "float" in kind:
        return FLOATS
    pages = MORE_PAGES if "pages" in kind or "frames" in kind else ""
    bits = DEEP if "16" in kind else ""
    return "; ".join(filter(None, (pages, bits)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_guessed_has_a_line(tmp_path, kind):
    suffix, data, _ = KINDS[kind]
    dataset, path = in_a_data_set(tmp_path, suffix, data)
    guess = guess_of(kind)
    assert read_header(path).guess == guess
    assert dataset.notes == ([f"{path}: {guess}"] if guess else [])


def test_a_deep_tiff_keeps_its_orientation():
    for pixels in (deep(RGB), RGB, (RGB / 255).astype(np.float32)):
        data = tiff(pixels, orientation=6)
        np.testing.assert_array_equal(decode_image(data), RGB)
        np.testing.assert_array_equal(decode_image(data, upright=True), np.rot90(RGB, -1))
        if pixels.dtype != np.float32:
            for upright, expected in ((False, RGB), (True, np.rot90(RGB, -1))):
                image = Image.open(io.BytesIO(data))
                np.testing.assert_array_equal(from_pillow(image, upright=upright), expected)
