"""SSD's augmentation: geometry by hand, and properties over many seeds."""

import cv2
import numpy as np
import pytest
import torch

from mdssd.data import MEAN_RGB, Augmentation, Preprocess, Sample, SyntheticScenes
from mdssd.data.augment import (
    MIN_IOUS,
    View,
    boxes_in_window,
    change_colours,
    crop_candidates,
    crop_ious,
    cut_window,
    draw_colour_change,
    draw_expansion,
)

PLAIN = {"expand": 1.0, "photometric": False, "crop": False, "mirror": False}
MEAN = np.array(MEAN_RGB, np.float32)


def make_sample(image, boxes_xyxy, labels=None, crowd=None):
    boxes_xyxy = np.array(boxes_xyxy, np.float32).reshape(-1, 4)
    count = len(boxes_xyxy)
    return Sample(
        image,
        boxes_xyxy,
        np.arange(1, count + 1) if labels is None else np.array(labels),
        np.zeros(count, bool),
        "made",
        np.zeros(count, bool) if crowd is None else np.array(crowd),
    )


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_nothing_but_resize_when_all_is_off():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 20:] = (255, 128, 0)
    sample = make_sample(image, [[10, 5, 30, 15], [0, 0, 40, 20]], [3, 1])
    tensor, boxes, labels = Augmentation(30, **PLAIN)(sample, np.random.default_rng(0))
    assert tensor.shape == (3, 30, 30) and tensor.dtype == torch.float32
    torch.testing.assert_close(boxes, torch.tensor([[0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1]]))
    assert boxes.dtype == torch.float32
    assert labels.tolist() == [3, 1] and labels.dtype == torch.int64
    torch.testing.assert_close(tensor[:, 15, 0], torch.from_numpy(-MEAN))
    torch.testing.assert_close(
        tensor[:, 15, 29], torch.tensor([255.0, 128, 0]) - torch.tensor(MEAN)
    )


def test_mean_is_subtracted_in_rgb_order():
    image = np.full((30, 30, 3), (200, 100, 50), np.uint8)
    tensor, _, _ = Augmentation(30, (1.0, 2.0, 3.0), **PLAIN)(
        make_sample(image, []), np.random.default_rng(0)
    )
    assert tensor[:, 7, 7].tolist() == [199, 98, 47]


def test_mirror_flips_image_and_boxes_half_of_the_time():
    image = noise(24, 24)
    sample = make_sample(image, [[2, 3, 8, 12]])
    augment = Augmentation(24, **{**PLAIN, "mirror": True})
    flips = 0
    for seed in range(60):
        tensor, boxes, _ = augment(sample, np.random.default_rng(seed))
        pixels = tensor.permute(1, 2, 0).numpy() + MEAN
        x1, y1, x2, y2 = (boxes[0] * 24).tolist()
        if x1 == pytest.approx(2, abs=1e-4):
            np.testing.assert_allclose(pixels, image, atol=1e-4)
            assert (y1, x2, y2) == pytest.approx((3, 8, 12), abs=1e-4)
        else:
            flips += 1
            np.testing.assert_allclose(pixels, image[:, ::-1], atol=1e-4)
            assert (x1, y1, x2, y2) == pytest.approx((16, 3, 22, 12), abs=1e-4)
    assert 15 <= flips <= 45


def test_turns_by_each_quarter_with_its_boxes():
    """The box encloses the bright pixels after any turn, and all eight orientations occur."""
    image = np.zeros((24, 24, 3), np.uint8)
    image[3:12, 2:8] = 255  # tells the eight orientations apart
    image[3:5, 2:4] = 128
    sample = make_sample(image, [[2, 3, 8, 12]])
    augment = Augmentation(24, (0.0, 0.0, 0.0), **{**PLAIN, "mirror": True, "turn": True})
    seen = {}
    for seed in range(100):
        tensor, boxes, _ = augment(sample, np.random.default_rng(seed))
        rows, columns = np.nonzero(tensor[0].numpy())
        bright = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert (boxes[0] * 24).tolist() == pytest.approx(bright, abs=1e-4)
        seen[tensor.numpy().tobytes()] = seen.get(tensor.numpy().tobytes(), 0) + 1
    assert len(seen) == 8 and min(seen.values()) >= 4


def test_expansion_places_the_image_inside_its_canvas():
    ratios = []
    for seed in range(300):
        width, height, left, top = draw_expansion(60, 40, 4.0, np.random.default_rng(seed))
        ratios.append(width / 60)
        assert 60 <= width <= 240 and 40 <= height <= 160
        assert abs(width / 60 - height / 40) < 0.05
        assert 0 <= left <= width - 60 and 0 <= top <= height - 40
    assert min(ratios) < 1.2 and max(ratios) > 3.8 and 2.2 < np.mean(ratios) < 2.8


def test_expansion_surrounds_with_the_mean_and_moves_the_boxes():
    image = np.full((50, 50, 3), 250, np.uint8)
    sample = make_sample(image, [[0, 0, 50, 50]])
    augment = Augmentation(100, **{**PLAIN, "expand": 4.0})
    expanded = 0
    for seed in range(40):
        tensor, boxes, _ = augment(sample, np.random.default_rng(seed))
        x1, y1, x2, y2 = (boxes[0] * 100).tolist()
        # The canvas has the aspect ratio of the image, so a square stays square within a pixel.
        assert abs((x2 - x1) - (y2 - y1)) < 1e-3
        assert x2 - x1 >= 24.9
        outside = torch.ones(100, 100, dtype=torch.bool)
        reach = 6  # pixels, of the widest interpolation kernel when enlarging
        outside[
            max(0, int(y1) - reach) : int(y2) + reach + 1,
            max(0, int(x1) - reach) : int(x2) + reach + 1,
        ] = False
        if outside.any():
            expanded += 1
            assert tensor[:, outside].abs().max() == 0
        middle = tensor[:, int((y1 + y2) / 2), int((x1 + x2) / 2)]
        torch.testing.assert_close(middle, torch.from_numpy(250 - MEAN))
    assert 8 <= expanded <= 32


def test_window_reaching_beyond_the_image_is_filled_with_the_mean():
    image = noise(4, 6)
    pixels = cut_window(image, np.array([-2, 1, 8, 5]), [], (10.0, 20.0, 30.4))
    assert pixels.shape == (4, 10, 3)
    np.testing.assert_array_equal(pixels[:3, 2:8], image[1:])
    assert (pixels[3] == (10, 20, 30)).all()
    assert (pixels[:, :2] == (10, 20, 30)).all() and (pixels[:, 8:] == (10, 20, 30)).all()


def test_window_wholly_beside_the_image_is_all_mean():
    pixels = cut_window(noise(4, 6), np.array([6, 0, 9, 2]), [("brightness", 30.0)], MEAN_RGB)
    assert pixels.shape == (2, 3, 3) and (pixels == (123, 117, 104)).all()


def test_cutting_first_gives_the_colours_of_changing_first():
    image = noise(30, 40)
    steps = [("brightness", 20.0), ("saturation", 1.4), ("hue", -12.0), ("contrast", 0.7)]
    cut = cut_window(image, np.array([5, 6, 25, 28]), steps, MEAN_RGB)
    whole = change_colours(image, steps)[6:28, 5:25]
    # OpenCV's vectorised and scalar loops round HSV to RGB differently, by one level.
    assert np.abs(cut.astype(int) - whole).max() <= 1


def test_a_crop_of_many_pixels_is_resized_before_its_colours_are_changed():
    """From four times the input's pixels on, inside the image; hardly any pixel is another one."""
    steps = [("contrast", 1.3), ("saturation", 1.2), ("hue", 7.0)]
    image = cv2.resize(noise(30, 40) // 2 + 60, (400, 300), interpolation=cv2.INTER_CUBIC)
    augmentation = Augmentation(100, raw=True)

    def apply(*window):
        none = np.zeros((0, 4)), np.zeros(0, np.int64)
        view = View(np.array(window), 1, steps, cv2.INTER_AREA, False, 0, *none)
        pixels = augmentation.apply(view, image)[0].movedim(0, -1).numpy()
        return pixels, cut_window(image, view.window, steps, MEAN_RGB)

    def resized(pixels):
        return cv2.resize(pixels, (100, 100), interpolation=cv2.INTER_AREA)

    pixels, changed = apply(10, 20, 210, 220)
    np.testing.assert_array_equal(pixels, change_colours(resized(image[20:220, 10:210]), steps))
    difference = np.abs(pixels.astype(int) - resized(changed))
    assert 0 < difference.mean() < 1.5  # of 256 levels
    for window in ((10, 20, 209, 220), (-1, 20, 210, 220), (300, 150, 550, 400)):
        pixels, changed = apply(*window)
        np.testing.assert_array_equal(pixels, resized(changed))


def test_boxes_by_hand():
    boxes = np.array(
        [
            [10, 10, 30, 30],  # centre (20, 20): the window's corner, kept, a quarter remains
            [0, 0, 39, 39],  # centre (19.5, 19.5): outside
            [50, 40, 70, 60],  # inside
            [90, 90, 150, 150],  # centre (120, 120): the other corner
            [50, 50, 50, 60],  # no width
        ],
        float,
    )
    relative, kept = boxes_in_window(boxes, np.array([20, 20, 120, 120]))
    assert kept.tolist() == [True, False, True, True, False]
    np.testing.assert_allclose(relative, [[0, 0, 0.1, 0.1], [0.3, 0.2, 0.5, 0.4], [0.7, 0.7, 1, 1]])


def test_crop_iou_by_hand():
    crops = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    boxes = np.array([[0, 0, 10, 5], [5, 5, 15, 15], [10, 0, 20, 10]])
    expected = [[0.5, 25 / 175, 0], [0, 0, 0]]
    np.testing.assert_allclose(crop_ious(crops, boxes), expected)


def test_crops_meet_their_constraint_and_their_ranges():
    boxes = np.array([[30, 20, 190, 150], [200, 100, 290, 190], [5, 5, 20, 20]], float)
    seen = dict.fromkeys(["whole", "any", *MIN_IOUS], 0)
    for seed in range(300):
        found = crop_candidates(boxes, 320, 200, np.random.default_rng(seed))
        for sampler, window in found.items():
            seen[sampler] += 1
            x1, y1, x2, y2 = window
            assert 0 <= x1 < x2 <= 320 and 0 <= y1 < y2 <= 200
            share_x, share_y = (x2 - x1) / 320, (y2 - y1) / 200
            assert np.sqrt(share_x * share_y) > 0.29
            assert 0.48 < share_x / share_y < 2.08
            if isinstance(sampler, float):
                assert crop_ious(window[None], boxes).max() >= sampler
    assert seen["whole"] == seen["any"] == 300
    # The test is only meaningful if some samplers fail at times, as the one of 0.9 does.
    assert seen[0.1] == 300 and seen[0.5] > 250 and seen[0.9] < seen[0.7] <= seen[0.5]


def test_any_box_is_enough_for_the_constraint():
    large = np.array([[50, 50, 150, 150]], float)
    many = np.vstack([large, [[300, 300, 303, 303]] * 5])
    for seed in range(50):
        alone = crop_candidates(large, 400, 400, np.random.default_rng(seed))
        among = crop_candidates(many, 400, 400, np.random.default_rng(seed))
        assert alone.keys() == among.keys()


def test_a_box_too_small_for_any_overlap_leaves_two_samplers():
    speck = np.array([[100, 100, 101, 101]], float)
    for boxes in (speck, np.zeros((0, 4))):
        found = crop_candidates(boxes, 300, 300, np.random.default_rng(1))
        assert found.keys() == {"whole", "any"}


def test_crop_scale_can_be_weakened():
    for seed in range(100):
        found = crop_candidates(
            np.zeros((0, 4)), 300, 300, np.random.default_rng(seed), min_scale=0.8
        )
        x1, y1, x2, y2 = found["any"]
        assert np.sqrt((x2 - x1) * (y2 - y1)) / 300 > 0.79


def test_samplers_are_picked_uniformly():
    image = np.zeros((200, 200, 3), np.uint8)
    sample = make_sample(image, [[80, 80, 81, 81]])
    augment = Augmentation(32, **{**PLAIN, "crop": True})
    # Only "whole" and "any" succeed; the width of the box tells them apart.
    whole = sum(
        torch.allclose(boxes, torch.tensor([[0.4, 0.4, 0.405, 0.405]]))
        for boxes in (augment(sample, np.random.default_rng(s))[1] for s in range(200))
        if len(boxes)
    )
    assert 70 <= whole <= 130


def test_boxes_stay_in_place_on_the_image_whatever_is_drawn():
    """A coloured rectangle on black: its box must tightly enclose the coloured pixels."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[40:90, 50:110] = 255
    sample = make_sample(image, [[50, 40, 110, 90]])
    augment = Augmentation(200, (0.0, 0.0, 0.0), photometric=False)
    checked = empty = 0
    for seed in range(200):
        tensor, boxes, labels = augment(sample, np.random.default_rng(seed))
        assert len(boxes) == len(labels) <= 1
        if not len(boxes):
            empty += 1
            continue
        assert (boxes >= 0).all() and (boxes <= 1).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        rows, columns = np.nonzero(tensor[0].numpy() > 127)
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        # Nearest-neighbour enlargement may shift an edge by a source pixel, up to 200/36.
        assert np.abs(seen - boxes[0].numpy() * 200).max() < 7
        checked += 1
    assert checked > 150 and empty > 0


def test_properties_over_scenes():
    scenes = SyntheticScenes(10, seed=5)
    augment = Augmentation(96)
    counts = []
    samples = list(scenes)
    for seed in range(60):
        sample = samples[seed % 10]
        before = sample.image.copy(), sample.boxes_xyxy.copy()
        tensor, boxes, labels = augment(sample, np.random.default_rng(seed))
        assert tensor.shape == (3, 96, 96) and torch.isfinite(tensor).all()
        assert (tensor >= -123.01).all() and (tensor <= 151.01).all()
        assert len(boxes) == len(labels) <= len(sample.labels)
        assert (boxes >= 0).all() and (boxes <= 1).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        np.testing.assert_array_equal(sample.image, before[0])
        np.testing.assert_array_equal(sample.boxes_xyxy, before[1])
        counts.append(len(boxes))
    assert max(counts) > 5


def test_same_generator_same_bits():
    sample = SyntheticScenes(1)[0]
    first, second = (Augmentation(64)(sample, np.random.default_rng(9)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = Augmentation(64)(sample, np.random.default_rng(10))
    assert not torch.equal(first[0], other[0])


def test_image_without_boxes_and_crowds():
    image = noise(40, 50)
    for sample in (make_sample(image, []), make_sample(image, [[5, 5, 30, 30]], crowd=[True])):
        for seed in range(20):
            tensor, boxes, labels = Augmentation(32)(sample, np.random.default_rng(seed))
            assert boxes.shape == (0, 4) and labels.shape == (0,)
            assert tensor.shape == (3, 32, 32)


def test_image_of_one_pixel():
    sample = make_sample(noise(1, 1), [[0, 0, 1, 1]])
    for seed in range(20):
        tensor, boxes, _ = Augmentation(16)(sample, np.random.default_rng(seed))
        assert tensor.shape == (3, 16, 16) and (boxes <= 1).all()


def test_brightness_and_contrast_saturate_step_by_step():
    image = np.array([[[0, 100, 250]]], np.uint8)
    steps = [("brightness", 20.0), ("contrast", 0.5)]
    assert change_colours(image, steps).tolist() == [[[10, 60, 128]]]
    assert change_colours(image, [("contrast", 1.5)]).tolist() == [[[0, 150, 255]]]
    assert change_colours(image, []).tolist() == image.tolist()
    assert image.tolist() == [[[0, 100, 250]]]


def test_saturation_and_hue():
    grey = np.full((3, 3, 3), 90, np.uint8)
    np.testing.assert_array_equal(change_colours(grey, [("saturation", 1.5), ("hue", 15.0)]), grey)
    red = np.array([[[200, 0, 0]]], np.uint8)
    pale = change_colours(red, [("saturation", 0.5)])[0, 0].tolist()
    assert pale[0] == 200 and pale[1] == pale[2] == pytest.approx(100, abs=2)
    # A hue of -10 (of 180) must wrap around to 170, a red towards magenta.
    assert change_colours(red, [("hue", -10.0)])[0, 0].tolist() == pytest.approx(
        [200, 0, 67], abs=2
    )
    assert change_colours(red, [("hue", 10.0)])[0, 0].tolist() == pytest.approx([200, 67, 0], abs=2)


def test_contrast_before_or_after_the_hsv_steps_and_each_step_half_of_the_time():
    counts = dict.fromkeys(["brightness", "contrast", "saturation", "hue"], 0)
    second = last = 0
    for seed in range(800):
        steps = draw_colour_change(np.random.default_rng(seed))
        names = [name for name, _ in steps]
        for name, amount in steps:
            counts[name] += 1
            low, high = {"brightness": (-32, 32), "hue": (-18, 18)}.get(name, (0.5, 1.5))
            assert low <= amount <= high
        assert "brightness" not in names[1:]
        if "saturation" in names and "hue" in names:
            assert names.index("hue") == names.index("saturation") + 1
        if "contrast" in names and "hue" in names:
            second += names.index("contrast") < names.index("hue")
            last += names.index("contrast") > names.index("hue")
    assert all(330 <= n <= 470 for n in counts.values())
    assert second > 60 and last > 60


@pytest.mark.parametrize(
    "options, word", [({"expand": 0.5}, "expand"), ({"crop_min_scale": 0}, "crop_min_scale")]
)
def test_bad_options(options, word):
    with pytest.raises(ValueError, match=f"Augmentation: {word}"):
        Augmentation(300, **options)


def test_preprocess_warps_linearly_and_subtracts_the_mean():
    image = noise(37, 61)
    tensor = Preprocess(48)(image)
    expected = cv2.resize(image, (48, 48), interpolation=cv2.INTER_LINEAR) - MEAN
    assert tensor.shape == (3, 48, 48) and tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.permute(1, 2, 0).numpy(), expected)
    view = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
    assert torch.equal(Preprocess(48)(view), tensor)
    square = noise(48, 48)
    assert torch.equal(
        Preprocess(48)(np.ascontiguousarray(square[:, ::-1])[:, ::-1]), Preprocess(48)(square)
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_preprocess_names_what_it_got(image):
    with pytest.raises(ValueError, match="Preprocess: image"):
        Preprocess(300)(image)
