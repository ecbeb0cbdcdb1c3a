"""A user's own data set with the required members only, and a reader of a new format."""

import cv2
import numpy as np
import pytest
import torch

from mdssd.data import (
    Augmentation,
    DataError,
    DetectionDataset,
    Sample,
    SyntheticScenes,
    TrainingSet,
    VOCDataset,
    open_dataset,
    write_coco,
    write_voc,
)
from mdssd.data.dataset import DataPart, SplitLists
from mdssd.data.joined import JoinedDataset
from mdssd.data.photos import CollectFaults, PhotoDataset
from mdssd.data.sample import BoxRow
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
        "blocks: 3 images, 2 boxes", "  low: 1", "  high: 1", "  1 image without a box"
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


class Listed(PhotoDataset):
    """A format of one text file per split: image file, label, x1, y1, x2, y2 in each line."""

    def __init__(self, folder, split, faults=None):
        super().__init__(f"listed {split}")
        self.folder, self.split, self.classes = folder, split, ["cat", "dog"]
        for line in (folder / f"{split}.txt").read_text().splitlines():
            with CollectFaults(faults):
                name, label, *box = line.split()
                if not (folder / name).is_file():
                    raise DataError(f"{folder / name}: no such image")
                row = BoxRow(tuple(map(float, box)), int(label))
                self.add_image(name, folder / name, [row], None, f"{split}.txt ({name})")

    def split_lists(self, faults):
        texts = {split: (self.folder / f"{split}.txt").read_text() for split in ("train", "test")}
        listed = {k: [line.split()[0] for line in text.splitlines()] for k, text in texts.items()}
        return [SplitLists(self.folder, listed, self.image_ids)]


def test_a_format_of_image_files_is_one_class(tmp_path):
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((60, 80, 3), ord(name), np.uint8))
    (tmp_path / "train.txt").write_text(
        "a.png 1 10 10 30 20\nb.png 2 5 5 5 9\nx.png 1 1 1 9 9\nc.png 1 10 10 30 20\n"
    )
    (tmp_path / "test.txt").write_text("c.png 1 10 10 30 20\n")
    faults = []
    data = Listed(tmp_path, "train", faults)
    assert data.image_ids == ["a.png", "b.png", "c.png"]
    assert data.dropped == ["train.txt (b.png): box (5, 5, 5, 9) has no area"]
    assert faults == [f"{tmp_path / 'x.png'}: no such image"]
    assert "1 image without a box" in data.report() and "cat: 2" in data.report()
    assert len(TrainingSet(data, Augmentation(64))[0]) == 3
    result = check_data(data, torch.rand(4, 4), 300, faults=faults, progress=False)
    assert result.faults == faults
    assert result.leaks == [f"{tmp_path}: c.png is in train and test"]
    with pytest.raises(DataError, match=r"x\.png: no such image"):
        Listed(tmp_path, "train")


def test_a_part_knows_the_splits_of_its_images(tmp_path):
    """Images that cannot be used are left out by a part, which must not lose the splits."""
    for name, splits in (("one", ("train", "val", "train")), ("two", ("test", "train"))):
        folder = tmp_path / name
        folder.mkdir()
        rows = ["path,x1,y1,x2,y2,class,split"]
        for k, split in enumerate(splits):
            cv2.imwrite(str(folder / f"{k}.png"), np.zeros((60, 80, 3), np.uint8))
            rows.append(f"{k}.png,10,20,30,40,car,{split}")
        (folder / "boxes.csv").write_text("\n".join(rows))
    parts = [open_dataset(tmp_path / name, "all") for name in ("one", "two")]
    joined = JoinedDataset(parts, ["car"])
    part = DataPart(joined, [1, 2, 4, 0])
    one, two, again = part.split_lists([])
    assert [lists.image_ids for lists in (one, two, again)] == [["1", "2"], ["1"], ["0"]]
    assert one.listed == again.listed == {"train": ["0", "2"], "val": ["1"]}
    assert two.listed == {"test": ["0"], "train": ["1"]}
    assert DataPart(parts[0], []).split_lists([]) == []
    assert DataPart(SyntheticScenes(2), [1]).split_lists([]) == []
    written = write_coco(DataPart(parts[0], [1, 2]), tmp_path / "coco", None)
    files = sorted(path.name for path in (written / "annotations").iterdir())
    assert files == ["instances_train.json", "instances_val.json"]


def test_an_incomplete_class_is_named():
    class Incomplete(DetectionDataset):
        image_ids = ["a"]

    with pytest.raises(NotImplementedError, match="Incomplete: a data set must define __getitem"):
        Incomplete()[0]
