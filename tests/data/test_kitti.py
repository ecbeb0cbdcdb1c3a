"""KITTI's labels: rows, DontCare regions, lists of splits, and faults by their line."""

import cv2
import numpy as np
import pytest

from mdssd.data import DataError, open_dataset
from mdssd.data.kitti import is_kitti
from mdssd.data.yolo import is_yolo


def row(name="Car", box=(10, 20, 30.5, 40), score=""):
    sides = " ".join(map(str, box))
    return f"{name} 0.00 0 1.85 {sides} 1.67 1.87 3.69 -16.53 2.39 58.49 1.57 {score}\n"


def write(root, images=("a", "b"), labels="label_2", **rows):
    """Write images, and labels for those that are in `rows`."""
    place = root / ("images" if labels == "labels" else "image_2")
    for folder in (place, root / labels):
        folder.mkdir(parents=True, exist_ok=True)
    for name in images:
        cv2.imwrite(str(place / f"{name}.png"), np.full((60, 80, 3), 90, np.uint8))
    for name, content in rows.items():
        (root / labels / f"{name}.txt").write_text(content)
    return root


@pytest.mark.parametrize("inner", ["", "training"])
@pytest.mark.parametrize("labels", ["label_2", "labels"])
def test_a_folder(tmp_path, inner, labels):
    write(tmp_path / inner, labels=labels, a=row() + row("Misc", (1, 1, 9, 9), "0.9"), b="")
    dataset = open_dataset(tmp_path)
    assert dataset.format.startswith("KITTI (image") and dataset.classes == ["Car", "Misc"]
    assert dataset.image_ids == ["a", "b"] and not dataset.dropped and not dataset.notes
    assert dataset[0].boxes_xyxy.tolist() == [[10, 20, 30.5, 40], [1, 1, 9, 9]]
    assert dataset[0].labels.tolist() == [1, 2] and not len(dataset[1].labels)
    assert open_dataset(tmp_path, "all", train=False).image_ids == ["a", "b"]
    with pytest.raises(DataError, match="no such split val"):
        open_dataset(tmp_path, "val")


def test_dontcare_is_a_crowd_of_each_class(tmp_path):
    ignored = "DontCare -1 -1 -10 2 3 20 30 -1 -1 -1 -1000 -1000 -1000 -10\n"
    write(tmp_path, a=row() + ignored, b=row("Van"))
    sample = open_dataset(tmp_path)[0]
    assert sample.labels.tolist() == [1, 1, 2] and sample.crowd.tolist() == [False, True, True]
    assert sample.boxes_xyxy[1:].tolist() == [[2, 3, 20, 30]] * 2
    dataset = open_dataset(tmp_path, classes=["Van"])
    assert dataset[0].labels.tolist() == [1] and dataset[0].crowd.tolist() == [True]
    assert any("a.txt:2: a DontCare region; taken as a crowd" in note for note in dataset.notes)


def test_lists_of_splits(tmp_path):
    write(tmp_path / "training", ("a", "b", "c"), a=row(), b=row("Van"), c=row())
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_text("a\r\n\r\n")
    (tmp_path / "ImageSets" / "val.txt").write_text("b.png\na\n")
    dataset = open_dataset(tmp_path)
    assert (dataset.split, dataset.image_ids, dataset.classes) == ("train", ["a"], ["Car", "Van"])
    assert open_dataset(tmp_path, train=False).image_ids == ["b", "a"]
    every = open_dataset(tmp_path, "all")
    assert every.image_ids == ["a", "b", "c"]
    assert every.split_lists([])[0].listed == {"train": ["a"], "val": ["b", "a"]}
    (tmp_path / "ImageSets" / "val.txt").write_text("../../a\n")
    with pytest.raises(DataError, match="val.txt:1: '../../a' leaves the folder"):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("Car 0 0 1 2 3\n", "has 6 columns, expected 15, or 16 with a score"),
        (row(box=(1, 2, "x", 4)), "the box is '1 2 x 4', expected four numbers"),
        (row(box=(1, 2, "nan", 4)), "box (1, 2, nan, 4) is not finite"),
        (row("3"), "the class is '3', expected a name"),
        (row(box=(5, 5, 5, 9)), "box (5, 5, 5, 9) has no area"),
        (row(box=(0.1, 0.1, 0.5, 0.5)), "coordinates from 0 to 1?"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, bad, reason):
    dataset = open_dataset(write(tmp_path, a=row() + bad + row("Van"), b=row()))
    assert len(dataset.dropped) == 1 and reason in dataset.dropped[0]
    assert dataset.dropped[0].startswith(f"{tmp_path / 'label_2' / 'a.txt'}:2: ")
    assert len(dataset[0].labels) == 2


def test_files_that_are_missing(tmp_path):
    write(tmp_path, ("a", "alone"), a=row(), b=row())
    with pytest.raises(DataError, match=r"image_2/b: no such image \(.*b.txt names it\)"):
        open_dataset(tmp_path)
    faults = []
    dataset = open_dataset(tmp_path, faults=faults)
    assert dataset.image_ids == ["a"] and len(faults) == 1
    assert any("1 image without labels left out, such as alone" in n for n in dataset.notes)
    (tmp_path / "label_2" / "a.txt").write_bytes(row().encode() + b"\xff")
    with pytest.raises(DataError, match="a.txt: cannot be read"):
        open_dataset(tmp_path)


def test_what_two_lists_name_is_told_once(tmp_path):
    ignored = "DontCare -1 -1 -10 2 3 20 30 -1 -1 -1 -1000 -1000 -1000 -10\n"
    write(tmp_path, ("a", "c", "d"), a=row() + ignored + "Car\n", b=row(), c=row(), d=row())
    (tmp_path / "label_2" / "c.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "image_2" / "d.png").write_bytes(b"")
    (tmp_path / "ImageSets").mkdir()
    for name in ("train", "val"):
        (tmp_path / "ImageSets" / f"{name}.txt").write_text("a\nb\nc\nd\nnone\n")
    faults = []
    dataset = open_dataset(tmp_path, "all", faults=faults)
    assert dataset.image_ids == ["a"] and len(dataset.dropped) == len(dataset.notes) == 1
    assert dataset.notes[0].endswith("a.txt:2: a DontCare region; taken as a crowd of each class")
    assert [line.partition(" (")[0].replace(f"{tmp_path}/", "") for line in faults] == [
        "image_2/b: no such image",
        "label_2/c.txt: cannot be read",
        "label_2/none.txt: no such labels",
        "image_2/d.png: the file is empty",
    ]
    assert "declare utf-16, but byte 2 is not in it; convert it to UTF-8" in faults[1]


def test_labels_of_yolo_are_told_apart(tmp_path):
    write(tmp_path, labels="labels", a="0 0.5 0.5 0.25 0.5\n")
    assert is_yolo(tmp_path) and not is_kitti(tmp_path)
    (tmp_path / "labels" / "a.txt").write_text(row())
    assert is_kitti(tmp_path)
