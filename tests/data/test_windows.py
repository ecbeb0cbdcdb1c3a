"""Windows for training: where they lie, what they show, in which order they come."""

import cv2
import numpy as np
import pytest
import torch

from mdssd.data import Augmentation, DetectionDataset, Sample, decode_image
from mdssd.data.windows import (
    TrainingWindows,
    WindowDraws,
    count_windows,
    cut_sample,
    draw_window,
    visible_share,
)


class Planted(DetectionDataset):
    """Images of given sizes with bright boxes on black, as PNG files."""

    name = "planted"
    classes = ["box"]

    def __init__(self, folder, sizes, boxes):
        self.folder, self.sizes, self.boxes = folder, sizes, boxes
        self.image_ids = [str(k) for k in range(len(sizes))]
        for k, (width, height) in enumerate(sizes):
            image = np.zeros((height, width, 3), np.uint8)
            for x1, y1, x2, y2 in boxes[k]:
                image[y1:y2, x1:x2] = 255
            cv2.imwrite(str(self.image_path(k)), image)

    def image_path(self, index):
        return self.folder / f"{index}.png"

    def annotation(self, index):
        boxes = np.array(self.boxes[index], np.float32).reshape(-1, 4)
        ones = np.ones(len(boxes), np.int64)
        return Sample(np.zeros((0, 0, 3), np.uint8), boxes, ones, ones < 0, str(index))


PLAIN = {"expand": 1, "photometric": False, "crop": False, "mirror": False}


def planted(tmp_path):
    boxes = [[[500, 300, 540, 320], [5, 5, 25, 45]], [[60, 20, 90, 60]], [], [[40, 0, 60, 1]]]
    return Planted(tmp_path, [(700, 400), (120, 80), (300, 300), (1000, 1)], boxes)


def test_epoch_has_as_many_windows_as_images_have_tiles(tmp_path):
    dataset, draws = planted(tmp_path), WindowDraws(100, 100)
    windows = TrainingWindows(dataset, Augmentation(32, **PLAIN), draws)
    assert len(windows) == count_windows(dataset, draws) == 7 * 4 + 2 * 1 + 3 * 3 + 10
    plan = windows.plan()
    assert len(plan.images) == len(plan.objects) == 49
    assert (plan.objects < 0).sum() in (12, 13)  # a quarter


def test_objects_are_chosen_evenly_and_images_without_any_only_by_windows_anywhere(tmp_path):
    dataset, draws = planted(tmp_path), WindowDraws(20, 20, background=0.5)
    windows = TrainingWindows(dataset, Augmentation(32, **PLAIN), draws)
    plan = windows.plan()
    chosen = plan.objects >= 0
    pairs, counts = np.unique(
        np.stack([plan.images[chosen], plan.objects[chosen]]), axis=1, return_counts=True
    )
    assert pairs.T.tolist() == [[0, 0], [0, 1], [1, 0], [3, 0]]
    assert counts / counts.sum() == pytest.approx(0.25, abs=0.06)
    anywhere = np.bincount(plan.images[~chosen], minlength=4)
    tiles = np.array([35 * 20, 6 * 4, 15 * 15, 50])
    assert anywhere / anywhere.sum() == pytest.approx(tiles / tiles.sum(), abs=0.06)


def test_window_contains_the_centre_and_lies_in_the_image():
    rng = np.random.default_rng(0)
    draws = WindowDraws(120, 90, jitter=1.5)
    corners = []
    for _ in range(500):
        x1, y1, x2, y2 = draw_window((400, 300), np.array([350, 10, 370, 30.0]), draws, rng)
        assert 0 <= x1 <= 360 <= x2 <= 400 and 0 <= y1 <= 20 <= y2 <= 300
        assert 80 <= x2 - x1 <= 180 and abs((x2 - x1) * 90 - (y2 - y1) * 120) <= 105
        corners.append((x1, x2 - x1))
    widths = np.array(corners)[:, 1]
    assert widths.min() < 90 and widths.max() > 165 and 110 < np.median(widths) < 130


@pytest.mark.parametrize("size", [(300, 300), (301, 300), (302, 302)])
def test_windows_anywhere_reach_every_edge(size):
    rng, draws = np.random.default_rng(0), WindowDraws(300, 300, jitter=1)
    seen = {tuple(draw_window(size, None, draws, rng)[:2].tolist()) for _ in range(300)}
    assert seen == {(x, y) for x in range(size[0] - 299) for y in range(size[1] - 299)}


def test_image_smaller_than_the_window_keeps_its_scale(tmp_path):
    dataset = Planted(tmp_path, [(40, 20)], [[[10, 5, 30, 15]]])
    draws = WindowDraws(100, 100, jitter=1)
    windows = TrainingWindows(dataset, Augmentation(100, (9, 9, 9), raw=True, **PLAIN), draws)
    assert len(windows) == 1
    for epoch in range(5):
        windows.set_epoch(epoch)
        image, boxes_xyxy, labels = windows[0]
        x1, y1, x2, y2 = (boxes_xyxy[0] * 100).round().int().tolist()
        assert (x2 - x1, y2 - y1, labels.tolist()) == (20, 10, [1])
        assert (image[:, y1:y2, x1:x2] == 255).all()
        assert (image == 255).sum() == 3 * 200 and (image == 0).sum() == 3 * 600
        assert (image == 9).sum() == 3 * (10000 - 800)  # the mean beyond the image


def test_boxes_lie_where_the_window_shows_their_pixels(tmp_path):
    dataset, draws = planted(tmp_path), WindowDraws(100, 100, jitter=1, min_visible=0.01)
    windows = TrainingWindows(dataset, Augmentation(100, raw=True, **PLAIN), draws)
    for index in range(len(windows)):
        image, boxes_xyxy, _ = windows[index]
        bright = torch.zeros(100, 100, dtype=torch.bool)
        for x1, y1, x2, y2 in (boxes_xyxy * 100).round().int().tolist():
            bright[y1:y2, x1:x2] = True
        shown = int((image[0] == 255).sum())
        assert (image[0][bright] == 255).all() and shown - int(bright.sum()) <= 8


def test_box_is_kept_by_its_visible_share():
    boxes = np.array([[90, 0, 110, 10], [91, 0, 111, 10], [0, 0, 10, 10]], np.float32)
    window = np.array([0, 0, 100, 100])
    assert visible_share(boxes.astype(float), window).tolist() == [0.5, 0.45, 1.0]
    image, ones = np.zeros((200, 200, 3), np.uint8), np.ones(3, np.int64)
    sample = Sample(image, boxes, ones, ones < 0, "a", crowd=np.array([False, False, True]))
    cut = cut_sample(sample, image, window, WindowDraws(100, 100), Augmentation(100))
    assert cut.image.shape == (100, 100, 3) and cut.boxes_xyxy.tolist() == [[90, 0, 100, 10]]
    draws = WindowDraws(100, 100, min_visible=0.4)
    cut = cut_sample(sample, image, window, draws, Augmentation(100))
    assert len(cut.boxes_xyxy) == 2


def test_windows_depend_on_seed_epoch_and_number_alone(tmp_path):
    dataset, draws = planted(tmp_path), WindowDraws(100, 100)
    first, second, other = (
        TrainingWindows(dataset, Augmentation(32), draws, seed) for seed in (0, 0, 1)
    )
    for windows in (first, second, other):
        windows.set_epoch(2)
    backwards = [first[i][0] for i in reversed(range(12))][::-1]
    assert all(torch.equal(a, second[i][0]) for i, a in enumerate(backwards))
    assert not all(torch.equal(a, other[i][0]) for i, a in enumerate(backwards))
    second.set_epoch(3)
    assert not all(torch.equal(a, second[i][0]) for i, a in enumerate(backwards))


def test_each_image_is_decoded_once_in_an_epoch(tmp_path, monkeypatch):
    sizes = [(400, 300)] * 6
    dataset = Planted(tmp_path, sizes, [[[10, 10, 30, 30]]] * 6)
    monkeypatch.setattr("mdssd.data.windows._BYTES", 2 * 400 * 300 * 3)
    windows = TrainingWindows(dataset, Augmentation(32), WindowDraws(100, 100))
    decoded = []
    decode = "mdssd.data.windows.decode_image"
    monkeypatch.setattr(decode, lambda data, name, **o: decoded.append(name) or decode_image(data))
    for index in range(len(windows)):
        windows[index]
        kept = sum(image.nbytes for _, image in windows._kept.values())
        assert kept <= 2 * 400 * 300 * 3
    assert len(decoded) == len(set(decoded)) == 6
    images = windows.plan().images.reshape(-1, 12)
    assert len(set(images[0]) | set(images[1])) == 2 or len(set(images[0])) == 2  # mixed in pairs


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"width": 0}, "tile"), ({"jitter": 0.5}, "jitter"), ({"background": 2}, "background"),
        ({"min_visible": 0}, "min_visible"),
    ],
)  # fmt: skip
def test_draws_out_of_range_are_refused(options, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        WindowDraws(**{"width": 100, "height": 100, **options})
