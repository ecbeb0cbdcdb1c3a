"""Decoding at a reduced size keeps the random draws, the boxes and the sharpness of edges."""

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mdssd.data import (
    Augmentation,
    DataError,
    Sample,
    SyntheticScenes,
    TrainingSet,
    VOCDataset,
    collate,
    decode_image,
    subtract_mean,
    worker_init,
    write_voc,
)
from mdssd.data.augment import change_colours


def jpeg(image_rgb, quality=95):
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", image_rgb[..., ::-1], options)[1].tobytes()


def sample(boxes_xyxy):
    boxes = np.array(boxes_xyxy, np.float32).reshape(-1, 4)
    count = len(boxes)
    return Sample(
        np.zeros((0, 0, 3), np.uint8), boxes, np.arange(1, count + 1), np.zeros(count, bool), "made"
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A VOC folder of three JPEGs of 700 x 700 and a PNG."""
    root = tmp_path_factory.mktemp("photos") / "voc"
    write_voc(SyntheticScenes(4, seed=3, image_size=700, objects=(3, 5)), root)
    for path in sorted((root / "JPEGImages").glob("*.png"))[:3]:
        path.with_suffix(".jpg").write_bytes(jpeg(cv2.imread(str(path))[..., ::-1]))
        path.unlink()
    return VOCDataset(root)


@pytest.mark.parametrize("height, width", [(480, 640), (101, 97), (7, 3), (1, 1)])
def test_a_reduced_pixel_covers_a_square_of_the_image(height, width):
    coarse = np.random.default_rng(0).integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    image = cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    data = jpeg(image, 100)
    for reduction in (1, 2, 4, 8):
        small = decode_image(data, "a.jpg", reduction)
        down, across = -(-height // reduction), -(-width // reduction)
        assert small.shape == (down, across, 3)
        padding = (0, down * reduction - height, 0, across * reduction - width)
        padded = cv2.copyMakeBorder(image, *padding, cv2.BORDER_REPLICATE)
        want = padded.reshape(down, reduction, across, reduction, 3).mean((1, 3))
        # They differ only because JPEG stores colour at half the resolution.
        assert np.abs(small - want).mean() < 6


def test_a_reduced_jpeg_that_is_cut_short_is_named():
    data = jpeg(np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(DataError, match=r"a\.jpg: the image is truncated"):
        decode_image(data[:-20], "a.jpg", 4)


def test_the_same_is_drawn_and_the_window_moves_by_half_a_pixel():
    augment = Augmentation(100, turn=True)
    boxes = sample([[100, 100, 400, 300], [600, 500, 640, 560]])
    reductions = dict.fromkeys((1, 2, 4, 8), 0)
    for seed in range(300):
        whole = augment.draw(boxes, (1001, 703), np.random.default_rng(seed))
        view = augment.draw(boxes, (1001, 703), np.random.default_rng(seed), reduced=True)
        reductions[view.reduction] += 1
        assert whole.reduction == 1
        for name in ("colour_change", "interpolation", "mirrored", "turns"):
            assert getattr(view, name) == getattr(whole, name)
        moved = view.window * view.reduction - whole.window
        assert np.abs(moved).max() <= view.reduction // 2
        sides = view.window[2:] - view.window[:2]
        assert (sides >= 100).all() or view.reduction == 1
        if view.reduction < 8:  # the greatest reduction
            assert (whole.window[2:] - whole.window[:2]).min() < 200 * view.reduction
        if len(view.labels) == len(whole.labels):
            np.testing.assert_allclose(view.boxes_xyxy, whole.boxes_xyxy, rtol=0, atol=0.5 / 100)
    assert all(count > 5 for count in reductions.values()), reductions


def test_boxes_stay_on_the_pixels_of_a_reduced_image():
    """The box of a bright rectangle in a JPEG tightly encloses it at every reduction."""
    image = np.zeros((701, 997, 3), np.uint8)
    image[203:505, 301:702] = 255
    data = jpeg(image)
    truth = sample([[301, 203, 702, 505]])
    augment = Augmentation(100, (0.0, 0.0, 0.0), photometric=False)
    checked = dict.fromkeys((1, 2, 4, 8), 0)  # reduction 1 is rare
    for seed in range(150):
        view = augment.draw(truth, (997, 701), np.random.default_rng(seed), reduced=True)
        pixels, boxes, labels = augment.apply(view, decode_image(data, "a.jpg", view.reduction))
        if not len(labels):
            continue
        rows, columns = np.nonzero(pixels[1].numpy() > 127)
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(seen - boxes[0].numpy() * 100).max() < 1.6, (seed, view)
        checked[view.reduction] += 1
    assert min(checked[reduction] for reduction in (2, 4, 8)) > 5, checked


@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST])
@pytest.mark.parametrize("side", [600, 720, 840, 960, 1190])
def test_edges_keep_seven_eighths_of_their_strength(side, interpolation):
    """Compare with the averaged full image, which has no aliasing that looks like sharpness."""
    image = SyntheticScenes(1, seed=5, image_size=1200, objects=(20, 20))[0].image
    data = jpeg(cv2.GaussianBlur(image, (0, 0), 1))
    window = image.shape[0] - side, image.shape[0]

    def strength(decoded, reduction, how):
        low, high = (v // reduction for v in window)
        small = cv2.resize(decoded[low:high, low:high], (300, 300), interpolation=how)
        return sum(np.abs(np.diff(small.astype(float), axis=axis)).mean() for axis in (0, 1))

    best = strength(decode_image(data), 1, cv2.INTER_AREA)
    assert strength(decode_image(data, "a", 2), 2, interpolation) > 7 / 8 * best


def test_other_images_are_read_whole(photos):
    reduced, whole = (TrainingSet(photos, Augmentation(100), reduced=r) for r in (True, False))
    png = next(k for k in range(4) if photos.image_path(k).suffix == ".png")
    different = 0
    for epoch in range(3):
        reduced.set_epoch(epoch), whole.set_epoch(epoch)
        for k in range(4):
            same = torch.equal(reduced[k][0], whole[k][0])
            assert same or k != png
            different += not same
    assert different > 0


def test_raw_samples_are_the_same_without_the_mean(photos):
    mean = (10.0, 20.5, 30.0)
    plain = TrainingSet(photos, Augmentation(100, mean), seed=4)
    raw = TrainingSet(photos, Augmentation(100, mean, raw=True), seed=4)
    batches = []
    for data, workers in ((plain, 0), (plain, 2), (raw, 0), (raw, 2)):
        loader = DataLoader(
            data, 3, num_workers=workers, collate_fn=collate, worker_init_fn=worker_init
        )
        images, boxes, labels = next(iter(loader))
        assert images.is_contiguous(memory_format=torch.channels_last)
        if data is raw:
            assert images.dtype == torch.uint8
            images = subtract_mean(images, mean)
            assert images.is_contiguous(memory_format=torch.channels_last)
        batches.append((images, boxes, labels))
    for images, boxes, labels in batches[1:]:
        assert torch.equal(images, batches[0][0])
        assert all(map(torch.equal, boxes + labels, batches[0][1] + batches[0][2]))


def test_a_damaged_jpeg_is_named_by_the_loader(tmp_path):
    root = tmp_path / "voc"
    write_voc(SyntheticScenes(1), root)
    (path,) = (root / "JPEGImages").glob("*.png")
    data = VOCDataset(root)
    path.write_bytes(jpeg(np.zeros((300, 300, 3), np.uint8))[:-9])
    with pytest.raises(DataError, match=rf"{path.name}: the image is truncated"):
        TrainingSet(data, Augmentation(100))[0]
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: cannot be read"):
        TrainingSet(data, Augmentation(100))[0]


@pytest.mark.parametrize("amount", [-32.0, -7.5, -0.5, 0.0, 0.49, 0.5, 1.5, 12.3, 31.9])
def test_brightness_is_that_of_each_level_rounded(amount):
    image = np.random.default_rng(1).integers(0, 256, (13, 37, 3), np.uint8)
    image[0, :, 0] = np.linspace(0, 255, 37)
    for part in (image, image[1:, 2:-3], np.arange(768).reshape(1, 256, 3).astype(np.uint8)):
        before = part.copy()
        want = np.clip(np.rint(part + amount), 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(change_colours(part, [("brightness", amount)]), want)
        steps = [("brightness", amount), ("contrast", 0.8), ("saturation", 1.2), ("hue", 4.0)]
        change_colours(part, steps)
        np.testing.assert_array_equal(part, before)
