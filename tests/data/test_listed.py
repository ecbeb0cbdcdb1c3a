"""Data sets that a reader lists image by image."""

import cv2
import numpy as np
import pytest

from mdssd.data import DataError
from mdssd.data.listed import ListedDataset, ListedImage, NamedBox, ReadOptions
from mdssd.inspection.leaks import find_leaks


def photo(folder, name, width=80, height=60):
    path = folder / f"{name}.png"
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
    return path


def listed(folder, images, classes=("car", "bus"), options=None, **others):
    return ListedDataset(
        "roads",
        images,
        classes,
        options or ReadOptions(),
        format="a test",
        root=folder,
        split=None,
        **others,
    )


def test_boxes_in_fractions_become_pixels(tmp_path):
    box = NamedBox((0.25, 0.5, 0.5, 1.0), "bus", difficult=True)
    image = ListedImage("a", photo(tmp_path, "a"), [box], "a.txt", relative=True)
    sample = listed(tmp_path, [image])[0]
    assert sample.boxes_xyxy.tolist() == [[20, 30, 40, 60]]
    assert (sample.labels.tolist(), sample.difficult.tolist()) == ([2], [True])


def test_a_dropped_box_names_its_line(tmp_path):
    boxes = [NamedBox((5, 5, 5, 9), "car", where="a.txt:3"), NamedBox((5, 5, 9, 9), "car")]
    image = ListedImage("a", photo(tmp_path, "a"), boxes, "a.txt")
    dataset = listed(tmp_path, [image], dropped=["a.txt:1: has 2 columns"])
    assert dataset.dropped == ["a.txt:3: box (5, 5, 5, 9) has no area", "a.txt:1: has 2 columns"]
    assert len(dataset[0].labels) == 1


def test_a_missing_image_names_its_annotation(tmp_path):
    images = [
        ListedImage("a", tmp_path / "a.png", [], "a.txt"),
        ListedImage("b", photo(tmp_path, "b"), [NamedBox((1, 1, 9, 9), "car")], "b.txt"),
    ]
    with pytest.raises(DataError, match="a.png: no such image .a.txt names it"):
        listed(tmp_path, images)
    faults: list[str] = []
    dataset = listed(tmp_path, images, options=ReadOptions(faults=faults))
    assert dataset.image_ids == ["b"]
    assert faults == [f"{tmp_path / 'a.png'}: no such image (a.txt names it)"]


def test_two_images_of_one_name_are_a_fault(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    images = [ListedImage("a", photo(folder, "a"), [], "a.txt") for folder in (tmp_path, other)]
    with pytest.raises(DataError, match="have the same name without the ending"):
        listed(tmp_path, images)


def test_an_image_of_two_splits_is_one_image_and_a_leak(tmp_path):
    path, box = photo(tmp_path, "a"), NamedBox((1, 1, 9, 9), "car")
    images = [ListedImage("a", path, [box], "a.txt", split=split) for split in ("train", "val")]
    dataset = listed(tmp_path, images)
    assert dataset.image_ids == ["a"]
    lists = dataset.split_lists([])
    assert find_leaks(lists, [0], ["a.png"], []) == [f"{tmp_path}: a is in train and val"]


def test_chosen_classes_have_their_order_and_the_others_are_counted(tmp_path):
    boxes = [NamedBox((1, 1, 9, 9), "car"), NamedBox((2, 2, 9, 9), "bus")]
    image = ListedImage("a", photo(tmp_path, "a"), boxes, "a.txt")
    dataset = listed(tmp_path, [image], options=ReadOptions(classes=["bus", "tram"]))
    assert dataset.classes == ["bus", "tram"]
    assert dataset[0].labels.tolist() == [1]
    assert dataset.notes == [
        f"{tmp_path}: 1 box of classes that were not asked for left out: car 1",
        f"{tmp_path}: no box has the class tram",
    ]
    with pytest.raises(DataError, match="has none of the classes tram; it has car, bus"):
        listed(tmp_path, [image], options=ReadOptions(classes=["tram"]))
