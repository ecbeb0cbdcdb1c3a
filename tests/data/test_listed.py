"""Data sets that a reader lists image by image."""

import cv2
import numpy as np
import pytest
from PIL import Image

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


def test_the_boxes_of_both_splits_of_an_image_are_kept(tmp_path):
    path = photo(tmp_path, "a")
    same, car = NamedBox((1, 1, 9, 9), "car"), NamedBox((2, 2, 9, 9), "car", area=5.0)
    bus = NamedBox((2, 2, 9, 9), "bus", difficult=True)
    images = [
        ListedImage("a", path, [same, car], "train.csv:2", split="train"),
        ListedImage("b", photo(tmp_path, "b"), [], "train.csv:4", split="train"),
        ListedImage("a", path, [bus, same, bus], "val.csv:2", split="val"),
    ]
    dataset = listed(tmp_path, images)
    assert dataset.image_ids == ["a", "b"]
    sample = dataset[0]
    assert sample.boxes_xyxy[:, 0].tolist() == [1, 2, 2, 2]
    assert sample.labels.tolist() == [1, 1, 2, 2] and sample.area.tolist() == [64, 5, 49, 49]
    assert sample.difficult.tolist() == [False, False, True, True]
    note = "val.csv:2: 2 boxes added to those of train.csv:2, which is the same image"
    assert dataset.notes == [note]
    # A box that cannot be used is named for each entry; the same entry again adds nothing.
    images[2].boxes.append(NamedBox((5, 5, 5, 9), "car", where="val.csv:3"))
    dataset = listed(tmp_path, [*images, images[0], images[2]])
    assert dataset.dropped == ["val.csv:3: box (5, 5, 5, 9) has no area"]


def test_two_entries_of_an_image_that_exif_turns_agree_or_are_a_fault(tmp_path):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(path, exif=exif)
    car = NamedBox((1, 1, 9, 9), "car")
    images = [
        ListedImage("a", path, [car], "a.csv:2", stated=(80, 60)),
        ListedImage("a", path, [car], "b.csv:2", stated=(60, 80)),
    ]
    fault = "b.csv:2: takes a.jpg as turned upright, a.csv:2 takes it as stored"
    with pytest.raises(DataError, match=fault):
        listed(tmp_path, images)
    faults: list[str] = []
    dataset = listed(tmp_path, images, options=ReadOptions(faults=faults))
    assert len(faults) == len(dataset) == len(dataset[0].labels) == 1
    assert not dataset.upright(0)


def test_a_small_box_in_fractions_is_a_box(tmp_path):
    """In pixels it would be taken for a mistake: coordinates from 0 to 1."""
    box = NamedBox((0.0, 0.0, 0.01, 0.01), "car")
    image = ListedImage("a", photo(tmp_path, "a"), [box], "a.txt", relative=True)
    dataset = listed(tmp_path, [image])
    assert dataset.dropped == []
    np.testing.assert_allclose(dataset[0].boxes_xyxy, [[0, 0, 0.8, 0.6]], rtol=1e-6)
    image = ListedImage("a", image.path, [box], "a.csv:1")
    assert "coordinates from 0 to 1?" in listed(tmp_path, [image]).dropped[0]


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
