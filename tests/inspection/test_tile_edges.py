"""Images of unusual sizes in tiles: detection, evaluation, training, the check and the picture."""

import numpy as np
import pytest
from detection.marks import dotted, marks_detector

from mdssd.data import Augmentation, DetectionDataset, Sample
from mdssd.data.tiles import Tiling
from mdssd.data.windows import TrainingWindows, WindowDraws, count_windows
from mdssd.evaluation.evaluate import evaluate
from mdssd.inspection.check import check_data
from mdssd.inspection.tile_sheet import tile_sheet
from mdssd.priors import make_priors, ssd_prior_layers

PRIORS = make_priors(ssd_prior_layers(300), 300)
TILE = 32
# (width, height), overlap, and how many tiles there are.
CASES = [
    ((TILE, TILE), 0.2, 1),
    ((TILE, TILE), 0.9, 1),
    ((TILE + 1, TILE), 0, 2),
    ((20, 10), 0.2, 1),
    ((20, 10), 0, 1),
    ((1, 1), 0.9, 1),
    ((TILE, 5), 0.9, 1),
    ((70, 40), 0, 6),
    ((70, 40), 0.9, 14 * 4),
    ((20_000, 1), 0, 625),
    ((1, 20_000), 0.2, 769),
]


class Dots(DetectionDataset):
    """An image with a dot in its lower right corner, and one of that size without any object."""

    name = "dots"
    classes = ["class 1"]
    image_ids = ["dot", "nothing"]

    def __init__(self, size, objects=True):
        self.size, self.objects = size, objects

    def __getitem__(self, index):
        width, height = self.size
        x, y = width - 1, height - 1
        boxes = np.zeros((0, 4))
        image = dotted(width, height)
        if index == 0 and self.objects:
            image[y, x] = 255
            boxes = np.array([[max(0, x - 3.5), max(0, y - 3.5), width, height]])
        ones = np.ones(len(boxes), np.int64)
        return Sample(image, boxes.astype(np.float32), ones, ones < 0, self.image_ids[index])


@pytest.mark.parametrize(("size", "overlap", "tiles"), CASES)
def test_detection_and_evaluation(size, overlap, tiles):
    detector = marks_detector(overlap=overlap, batch_size=64)
    result = evaluate(detector, Dots(size), progress=False, batch_size=64)
    assert result.voc12.mean_ap == 1 and result.voc12.detections.sum() == 1
    assert sum(detector.model.batches) == 2 * tiles


def test_detection_and_evaluation_without_an_object():
    result = evaluate(marks_detector(), Dots((70, 40), objects=False), progress=False)
    assert np.isnan(result.voc12.mean_ap) and result.voc12.detections.sum() == 0


@pytest.mark.parametrize(("size", "overlap", "tiles"), CASES)
def test_training(size, overlap, tiles):
    draws = WindowDraws(TILE, TILE)
    windows = TrainingWindows(Dots(size), Augmentation(16, raw=True), draws)
    count = -(-size[0] // TILE) * -(-size[1] // TILE)
    assert len(windows) == count_windows(Dots(size), draws) == 2 * count
    for index in range(min(len(windows), 20)):
        image, boxes, labels = windows[index]
        assert image.shape == (3, 16, 16) and len(boxes) == len(labels) <= 1
        assert ((boxes >= 0) & (boxes <= 1)).all() and (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize(("size", "overlap", "tiles"), CASES)
def test_the_check_and_the_picture(size, overlap, tiles, objects):
    data, tiling = Dots(size, objects), Tiling(TILE, TILE, overlap)
    result = check_data(data, PRIORS, 300, tiling=tiling, workers=1, progress=False)
    told = result.to_dict()["tiles"]
    assert told["tiles"] == 2 * tiles and told["cut_in_every_tile"] == 0
    assert told["whole"]["all"] == (1.0 if objects else None)
    assert "every image is shown in tiles of 32 x 32 px" in result.text()
    scale = min(1, 1800 / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    assert tile_sheet(data, tiling, 2).shape[0] == 24 + height
    assert tile_sheet(data, tiling, 1).dtype == np.uint8
