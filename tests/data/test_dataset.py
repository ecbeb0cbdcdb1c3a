"""A user's own data set that defines only the required members."""

import numpy as np
import pytest
import torch

from mdssd.data import Augmentation, DetectionDataset, Sample, TrainingSet, VOCDataset, write_voc
from mdssd.evaluation.submission import write_submission
from mdssd.inspection.check import check_data


class Blocks(DetectionDataset):
    """Bright blocks of 20 x 10 pixels; the second image has none."""

    name = "blocks"
    classes = ["low", "high"]
    image_ids = ["a", "b", "c"]

    def __getitem__(self, index):
        image = np.zeros((60, 80, 3), np.uint8)
        boxes = np.array([[10, 10, 30, 20]] * (index != 1), np.float32).reshape(-1, 4)
        labels = np.full(len(boxes), 1 + index // 2)
        return Sample(image, boxes, labels, np.zeros(len(boxes), bool), self.image_ids[index])


def test_defaults():
    data = Blocks()
    assert len(data) == 3 and data.labelled and not data.dropped and not data.size_faults
    assert data.metric == "VOC07 mAP" and data.submission is None and data.image_path(0) is None
    assert data.annotation(2).image.shape == (0, 0, 3)
    assert data.annotation(2).labels.tolist() == [2] and data.split_lists([]) == []
    assert data.report().splitlines() == [
        "blocks: 3 images, 2 boxes", "  low: 1", "  high: 1", "  1 images have no box"
    ]  # fmt: skip


def test_it_serves_training_inspection_and_writing(tmp_path):
    data = Blocks()
    image, boxes, labels = TrainingSet(data, Augmentation(64))[0]
    assert image.shape == (3, 64, 64) and len(boxes) == len(labels)
    priors = torch.tensor([[0.25, 0.25, 0.25, 1 / 6]])
    result = check_data(data, priors, 300, progress=False)
    assert result.image_ids == data.image_ids and result.iou.tolist() == pytest.approx([1, 1])
    # All images have the same pixels. They are no leaks, because there are no splits.
    assert result.duplicates == ["a, b, c"] and not result.leaks
    read = VOCDataset(write_voc(data, tmp_path / "voc"), classes=data.classes)
    assert read.annotation(2).boxes_xyxy.tolist() == [[10, 10, 30, 20]]
    with pytest.raises(ValueError, match="blocks"):
        write_submission(tmp_path, data, [{}] * 3, data.classes)


def test_an_incomplete_class_is_named():
    class Incomplete(DetectionDataset):
        image_ids = ["a"]

    with pytest.raises(NotImplementedError, match="Incomplete: a data set must define __getitem"):
        Incomplete()[0]
