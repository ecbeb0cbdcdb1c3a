"""Folders with a COCO file for each split."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_files import CONTENT

from mdssd.data import DataError, open_dataset
from mdssd.data.coco_folder import is_coco_folder
from mdssd.inspection.leaks import find_leaks

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 5, "name": "bus"}]


def content(*names, categories=CATEGORIES, category=3):
    """Return a COCO file with an image of each name, numbered from 1, and a box in each."""
    return {
        "images": [
            {"id": k, "file_name": name, "width": 80, "height": 60}
            for k, name in enumerate(names, 1)
        ],
        "annotations": [
            {"id": k, "image_id": k, "category_id": category, "bbox": [k, 2, 10, 20]}
            for k in range(1, len(names) + 1)
        ],
        "categories": categories,
    }


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def photos(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.zeros((60, 80, 3), np.uint8))


@pytest.fixture
def coco(tmp_path):
    """Return a folder of COCO's own layout."""
    root = tmp_path / "coco"
    write(root / "annotations" / "instances_train2017.json", content("a.png", "b.png"))
    write(root / "annotations" / "instances_val2017.json", content("c.png", category=5))
    photos(root / "train2017", "a.png", "b.png")
    photos(root / "val2017", "c.png")
    return root


def test_cocos_own_layout(coco):
    train, val = open_dataset(coco), open_dataset(coco, train=False)
    assert (train.name, train.split, train.image_ids) == ("coco train", "train", ["1", "2"])
    assert (val.name, val.split, val.image_ids) == ("coco val", "val", ["1"])
    assert train.format == "COCO JSON (annotations/instances_train2017.json)"
    assert train.image_path(1) == coco / "train2017" / "b.png"
    assert train.classes == val.classes == ["car", "bus"]
    assert train[0].boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert (train[0].labels.tolist(), val[0].labels.tolist()) == ([1], [2])
    assert train.category_ids == val.category_ids == [3, 5]
    assert (val.submission, val.metric) == ("coco", "COCO AP")


def test_files_of_coco_without_boxes_are_named_and_not_read(coco):
    for name in ("person_keypoints_val2017", "captions_train2017", "image_info_test2017"):
        write(coco / "annotations" / f"{name}.json", content("c.png"))
    dataset = open_dataset(coco, train=False)
    assert dataset.split == "val"  # image_info_test2017 is not what is tested on
    assert [
        note.split(": ")[0].rpartition("/")[2] for note in dataset.notes if "not read" in note
    ] == [
        "captions_train2017.json",
        "image_info_test2017.json",
        "person_keypoints_val2017.json",
    ]


def test_images_without_annotations_are_opened_by_name(coco):
    info = content("d.png")
    del info["annotations"]
    write(coco / "annotations" / "image_info_test2017.json", info)
    photos(coco / "test2017", "d.png")
    dataset = open_dataset(coco, "test2017", unlabelled=True)
    assert not dataset.labelled and dataset.image_path(0) == coco / "test2017" / "d.png"


def test_roboflows_layout(tmp_path):
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "red", "supercategory": "cells"},
    ]
    for split in ("train", "valid", "test"):
        file = content("a_jpg.rf.1.png", categories=categories, category=1)
        write(tmp_path / split / "_annotations.coco.json", file)
        photos(tmp_path / split, "a_jpg.rf.1.png")
    assert open_dataset(tmp_path).split == "train"
    assert open_dataset(tmp_path, train=False).split == "test"
    valid = open_dataset(tmp_path, "valid")
    assert valid.image_path(0) == tmp_path / "valid" / "a_jpg.rf.1.png"
    assert valid.classes == ["red"]
    everything = open_dataset(tmp_path, "all")
    # The ids of the files collide, so the split is part of them.
    assert everything.image_ids == ["train/1", "valid/1", "test/1"]
    assert everything.submission is None and everything.split == "all"
    assert everything[2].image_id == "test/1"
    assert find_leaks(everything.split_lists([]), [0, 1, 2], everything.image_ids, []) == []


@pytest.mark.parametrize("folder", [".", "annotations", "labels"])
@pytest.mark.parametrize("images", [".", "images", "images/train", "train", "data"])
def test_a_file_per_split_beside_or_above_the_images(tmp_path, folder, images):
    write(tmp_path / folder / "train.json", content("a.png"))
    write(tmp_path / folder / "coco_test.json", content("b.png"))
    photos(tmp_path / images, "a.png")
    photos(tmp_path / "test", "b.png")
    assert open_dataset(tmp_path).image_path(0) == tmp_path / images / "a.png"
    assert open_dataset(tmp_path, train=False).split == "test"


def test_a_single_file_of_any_name_is_for_training_and_testing(tmp_path):
    write(tmp_path / "labels.json", content("a.png"))
    photos(tmp_path / "data", "a.png")
    for train in (True, False):
        dataset = open_dataset(tmp_path, train=train)
        assert (len(dataset), dataset.split) == (1, "labels")
    (tmp_path / "labels.json").rename(tmp_path / "train.json")
    with pytest.raises(DataError, match="none of the splits test, val, valid .there are: train"):
        open_dataset(tmp_path, train=False)


def test_two_files_of_one_split_keep_their_names(tmp_path):
    for year in (2014, 2017):
        write(tmp_path / "annotations" / f"instances_train{year}.json", content("a.png"))
        photos(tmp_path / f"train{year}", "a.png")
    with pytest.raises(DataError, match="there are: train2014, train2017; or all"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, "train2014").split == "train2014"


def test_categories_are_joined_by_their_names(tmp_path):
    photos(tmp_path / "images", "a.png", "b.png")
    write(tmp_path / "train.json", content("a.png", category=5))
    others = [{"id": 3, "name": "bus"}, {"id": 9, "name": "tram"}]
    write(tmp_path / "val.json", content("b.png", categories=others, category=9))
    train, val = open_dataset(tmp_path), open_dataset(tmp_path, "val")
    everything = open_dataset(tmp_path, "all")
    for dataset in (train, val, everything):
        assert dataset.classes == ["car", "bus", "tram"]
        assert "different ids for the category 'bus': 5, 3" in "\n".join(dataset.notes)
    labels = [train[0].labels.tolist(), val[0].labels.tolist()]
    assert labels == [[2], [3]] == [everything[k].labels.tolist() for k in range(2)]
    assert train.category_ids == [3, 5, 9] and train.submission == "coco"
    # 3 is the car of one file and the bus of the other.
    assert not everything.category_ids and everything.submission is None


def test_a_group_of_categories_is_no_class_whichever_split_is_opened(tmp_path):
    photos(tmp_path, "a.png", "b.png")
    categories = [{"id": 0, "name": "all"}, {"id": 1, "name": "car", "supercategory": "all"}]
    write(tmp_path / "train.json", content("a.png", categories=categories, category=1))
    empty = {**content("b.png", categories=categories), "annotations": []}
    write(tmp_path / "test.json", empty)
    assert open_dataset(tmp_path).classes == ["car"]
    assert open_dataset(tmp_path, "test").classes == ["car"]
    assert open_dataset(tmp_path, "all").classes == ["car"]


def test_chosen_classes(coco):
    dataset = open_dataset(coco, classes=["bus", "car", "tram"])
    assert dataset.classes == ["bus", "car"] and dataset[0].labels.tolist() == [2]
    assert dataset.category_ids == [5, 3]
    with pytest.raises(DataError, match="has none of the classes tram"):
        open_dataset(coco, classes=["tram"])


@pytest.mark.parametrize("inner", ["", "{}", "{}2017", "images/{}"])
def test_images_in_another_place(tmp_path, inner):
    for name, photo in (("train", "a.png"), ("val", "b.png")):
        write(tmp_path / "json" / f"instances_{name}2017.json", content(photo))
        photos(tmp_path / "elsewhere" / inner.format(name), photo)
    with pytest.raises(DataError, match="a.png' not found in .*--image-dir"):
        open_dataset(tmp_path / "json")
    for split in ("train", "all"):
        dataset = open_dataset(tmp_path / "json", split, image_dir=str(tmp_path / "elsewhere"))
        place = tmp_path / "elsewhere" / inner.format("train")
        assert dataset.image_path(0) == place / "a.png"
        (lists,) = dataset.split_lists([])
        assert len(lists.listed["val"]) == 1  # also found where the split is not opened
    with pytest.raises(DataError, match="nowhere: no such folder .given as image_dir."):
        open_dataset(tmp_path / "json", image_dir=tmp_path / "nowhere")


def test_classes_without_a_box_are_named_once(coco):
    both = open_dataset(coco, "all")
    assert both.notes == []  # each split has one of the classes
    train = open_dataset(coco)
    assert train.notes == [f"{coco}/annotations/instances_train2017.json: no box has the class bus"]
    categories = [*CATEGORIES, {"id": 9, "name": "kite"}]
    for name, image, category in (("train", "a.png", 3), ("val", "c.png", 5)):
        value = content(image, categories=categories, category=category)
        write(coco / "annotations" / f"instances_{name}2017.json", value)
    assert open_dataset(coco, "all").notes == [f"{coco}: no box has the class kite"]


def test_a_split_without_the_chosen_classes_beside_one_with_them(coco):
    dataset = open_dataset(coco, "all", classes=["bus"])
    assert [len(dataset.annotation(k).labels) for k in range(3)] == [0, 0, 1]
    assert dataset.classes == ["bus"] and dataset.category_ids == [5]
    left = "2 boxes of classes that were not asked for left out: car 2"
    assert dataset.notes == [f"{coco}: {left}"]
    with pytest.raises(DataError, match="train2017.json: no box has one of the classes bus"):
        open_dataset(coco, "train", classes=["bus"])
    with pytest.raises(DataError, match="has none of the classes kite; it has car, bus"):
        open_dataset(coco, "all", classes=["kite"])


@pytest.mark.parametrize("split", ["train", "all"])
def test_an_image_of_two_splits_is_a_leak(tmp_path, split):
    photos(tmp_path / "images", "a.png", "b.png", "c.png")
    write(tmp_path / "annotations" / "train.json", content("a.png", "b.png"))
    write(tmp_path / "annotations" / "test.json", content("c.png", "./b.png"))
    dataset = open_dataset(tmp_path, split)
    lists = dataset.split_lists([])
    assert [name for each in lists for name in each.image_ids][1] == "images/b.png"
    leaks = find_leaks(lists, range(len(dataset)), dataset.image_ids, [])
    assert leaks == [f"{tmp_path}: images/b.png is in train and test"]


def test_a_broken_file_is_an_error_of_its_split_and_of_the_classes(tmp_path):
    photos(tmp_path, "a.png")
    write(tmp_path / "train.json", content("a.png"))
    write(tmp_path / "test.json", json.dumps(content("b.png"))[:-40])
    with pytest.raises(DataError, match="test.json: broken JSON .*name the classes .--classes"):
        open_dataset(tmp_path)
    faults: list[str] = []
    assert open_dataset(tmp_path, faults=faults).classes == ["car", "bus"] and len(faults) == 1
    # Where the classes are known, or are only compared with those of a network, it is a note.
    chosen = open_dataset(tmp_path, classes=["bus", "car"])
    tested = open_dataset(tmp_path, "train", train=False)
    for dataset, classes in ((chosen, ["bus", "car"]), (tested, ["car", "bus"])):
        assert dataset.classes == classes
        assert any("test.json: broken JSON" in note for note in dataset.notes)
    with pytest.raises(DataError, match=r"test\.json: broken JSON .the file ends within a string"):
        open_dataset(tmp_path, "test")


def test_a_damaged_file_does_not_hide_the_others(tmp_path):
    photos(tmp_path, "a.png", "c.png")
    write(tmp_path / "train.json", content("a.png"))
    write(tmp_path / "val.json", json.dumps(content("b.png"))[:-40])
    write(tmp_path / "test.json", content("c.png", "gone.png"))
    with pytest.raises(DataError, match="val.json: broken JSON"):
        open_dataset(tmp_path, "all")
    faults = []
    dataset = open_dataset(tmp_path, "all", faults=faults)
    assert (dataset.split, dataset.classes, len(dataset)) == ("all", ["car", "bus"], 2)
    assert list(dataset.split_lists([])[0].listed) == ["train", "test"]
    assert [Path(line.partition(": ")[0]).name for line in faults] == ["val.json", "gone.png"]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.json", json.dumps(content("a.png"))[:-40])
    with pytest.raises(DataError, match="no file can be used; the first fault: .*train.json: brok"):
        open_dataset(tmp_path, "all", faults=[])


@pytest.mark.parametrize("damage", ["", "\0" * 5000, "no JSON", None])
def test_a_split_whose_file_is_no_json_is_not_taken_for_missing(coco, damage):
    for split in ("train", "val"):
        old = coco / "annotations" / f"instances_{split}2017.json"
        old.rename(old.with_name(f"{split}.json"))
        (coco / f"{split}2017").rename(coco / split)
    path = coco / "annotations" / "train.json"
    if damage is None:
        path.unlink()
        path.mkdir()  # no regular file
    else:
        path.write_text(damage)
    for split in (None, "all"):
        with pytest.raises(DataError, match=r"annotations/train\.json: "):
            open_dataset(coco, split)
    assert len(open_dataset(coco, train=False)) == 1


def test_other_json_files_are_named(tmp_path):
    photos(tmp_path, "a.png")
    write(tmp_path / "train.json", content("a.png"))
    write(tmp_path / "config.json", {"lr": 1})
    assert f"{tmp_path}/config.json: is no COCO file; not read" in open_dataset(tmp_path).notes


@pytest.mark.parametrize(
    "text, found",
    [
        (json.dumps(CONTENT), True),
        ("\ufeff" + json.dumps(CONTENT, indent=2).replace("\n", "\r\n"), True),
        ('{"info": {}, "annotations": [', True),
        ('{"categories": [{"id": 1, "name": "a"}]}', False),  # as beside the labels of other tools
        ('{"categories": [' + '{"id": 1, "name": "a"}, ' * 5000, True),
        (json.dumps({"images": 1, "shapes": []}), False),
        ("[]", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_what_is_recognised(tmp_path, text, found, encoding):
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    assert is_coco_folder(tmp_path) is found


def test_recognition_never_raises(tmp_path):
    assert not is_coco_folder(tmp_path / "missing")
    (tmp_path / "a.json").mkdir()
    (tmp_path / "b.json").symlink_to("/dev/zero")
    assert not is_coco_folder(tmp_path)
