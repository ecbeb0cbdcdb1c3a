"""COCO files as tools write them: values, names, encodings, groups, and large files."""

import json
import os
import unicodedata

import pytest
from coco_files import CONTENT, write

from mdssd.data import CocoDataset, DataError, open_dataset


def changed(**changes):
    """Return CONTENT with one change, given as name of the list = (position, key, value)."""
    content = json.loads(json.dumps(CONTENT))
    for name, (position, key, value) in changes.items():
        content[name][position][key] = value
    return content


@pytest.mark.parametrize("stated", [80.0, "80", " 80.0 ", None, "MISSING"])
def test_sizes_in_any_spelling(tmp_path, stated):
    content = changed(images=(0, "width", stated))
    if stated in (None, "MISSING"):
        content["images"][0].pop("width"), content["images"][0].pop("height")
    data = CocoDataset(write(tmp_path / "set.json", content))
    assert not data.size_faults and len(data.annotation(0).labels) == 2


@pytest.mark.parametrize("width, text", [(0, "0 x 60"), (40, "40 x 60"), ("wide", "nan x 60")])
def test_a_size_that_is_not_the_images_is_named_and_drops_nothing(tmp_path, width, text):
    data = CocoDataset(write(tmp_path / "set.json", changed(images=(0, "width", width))))
    assert data.size_faults == [
        f"{tmp_path / 'set.json'} (x.png): states {text}, the image (x.png) is 80 x 60"
    ]
    assert len(data.annotation(0).labels) == 2


@pytest.mark.parametrize(
    "value, crowd",
    [("0", False), ("1", True), (True, True), ("true", True), (1.0, True), (0.0, False),
     (None, False), ("", False), ("false", False), ("maybe", False)],
)  # fmt: skip
def test_crowds_in_any_spelling(tmp_path, value, crowd):
    data = CocoDataset(write(tmp_path / "set.json", changed(annotations=(0, "iscrowd", value))))
    assert data.annotation(0).crowd[0] == crowd
    assert len([line for line in data.notes if "iscrowd is" in line]) == (value == "maybe")


@pytest.mark.parametrize(
    "area, want",
    [(77, 77), ("12.5", 12.5), (0, 465), (None, 465), ("big", 465), (-3, 465), (1e999, 465)],
)
def test_areas_in_any_spelling(tmp_path, area, want):
    data = CocoDataset(write(tmp_path / "set.json", changed(annotations=(0, "area", area))))
    assert data.annotation(0).area[0] == want


def test_ids_as_text_and_boxes_as_text(tmp_path):
    content = json.loads(json.dumps(CONTENT))
    content["images"][0]["id"], content["categories"][0]["id"] = "7", "44"
    content["annotations"][1]["image_id"], content["annotations"][1]["category_id"] = "7", 2.0
    content["annotations"][0]["bbox"] = ["10", "20.0", " 30", 15.5]
    data = CocoDataset(write(tmp_path / "set.json", content))
    assert data.image_ids == ["7", "3"] and data.category_ids == [2, 44]
    assert data.annotation(0).boxes_xyxy.tolist() == [[10, 20, 40, 35.5], [0, 0, 5, 5]]
    for entry in content["images"] + content["categories"]:
        entry["id"] = f"k{entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"k{int(entry['image_id'])}"
        entry["category_id"] = f"k{int(entry['category_id'])}"
    data = CocoDataset(write(tmp_path / "set.json", content))
    assert data.image_ids == ["k7", "k3"] and data.category_ids == ["k2", "k44"]
    assert data.annotation(0).labels.tolist() == [2, 1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_encodings(tmp_path, encoding):
    path = write(tmp_path / "set.json", changed(categories=(0, "name", "車")))
    path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode(encoding))
    assert CocoDataset(path).classes == ["dog", "車"]
    path.write_bytes('{"images": ["caf\xe9"]}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"set\.json: broken JSON \(its text is not utf-8.*save it"):
        CocoDataset(path)


def rename(path, name, file):
    """Give the first image another name in the JSON, and another name as a file."""
    path.write_text(json.dumps(changed(images=(0, "file_name", name))))
    (path.parent / file).parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "x.png").rename(path.parent / file)


@pytest.mark.parametrize(
    "name, file",
    [
        ("images\\x.png", "images/x.png"),
        ("C:\\me\\images\\x.png", "images/x.png"),
        ("/home/me/data/images/x.png", "images/x.png"),
        ("/home/me/data/x.png", "x.png"),
        ("./x.png", "x.png"),
        ("x.PNG", "x.png"),
        ("x.png", "x.Png"),
        (unicodedata.normalize("NFD", "café.png"), unicodedata.normalize("NFC", "café.png")),
        ("a\\b.png", "a\\b.png"),
    ],
)
def test_names_of_images_as_other_systems_write_them(tmp_path, name, file):
    path = write(tmp_path / "set.json", CONTENT)
    rename(path, name, file)
    for data in (CocoDataset(path), CocoDataset(path, tmp_path)):
        assert data.image_path(0) == tmp_path / file and data[0].image.shape == (60, 80, 3)


def test_two_names_are_never_the_same_file_by_guess(tmp_path):
    content = changed(images=(0, "file_name", "/a/x.png"))
    content["images"][1]["file_name"] = "/b/x.png"
    path = write(tmp_path / "set.json", content)
    with pytest.raises(DataError, match="'/a/x.png' and '/b/x.png' would be the same file"):
        CocoDataset(path)


def test_links_to_images_are_followed(tmp_path):
    path = write(tmp_path / "in" / "set.json", CONTENT)
    (tmp_path / "in" / "x.png").rename(tmp_path / "blob")
    os.symlink(tmp_path / "blob", tmp_path / "in" / "x.png")
    os.symlink(path, tmp_path / "in" / "link.json")
    assert CocoDataset(tmp_path / "in" / "link.json")[0].image.shape == (60, 80, 3)


def test_a_missing_first_image_hides_nothing(tmp_path):
    path = write(tmp_path / "set.json", CONTENT)
    (tmp_path / "x.png").unlink()
    faults = []
    data = CocoDataset(path, faults=faults)
    assert data.image_ids == ["3"] and not data.dropped
    assert faults == [f"{tmp_path / 'x.png'}: no such image ({path} lists it)"]


def test_images_one_folder_up_from_inside_the_folder(tmp_path, monkeypatch):
    write(tmp_path / "annotations" / "train.json", CONTENT, "../images")
    monkeypatch.chdir(tmp_path / "annotations")
    assert CocoDataset("train.json")[0].image.shape == (60, 80, 3)


def grouped_content(group, category_ids=(44, 2)):
    """Return CONTENT with a category 0 that only groups the others."""
    content = json.loads(json.dumps(CONTENT))
    for entry in content["categories"]:
        entry["supercategory"] = group
    content["categories"].insert(0, {"id": 0, "name": group, "supercategory": "none"})
    return content


def test_a_category_that_only_groups_others_is_no_class(tmp_path):
    data = CocoDataset(write(tmp_path / "set.json", grouped_content("things")))
    assert data.classes == ["dog", "kite"] and data.category_ids == [2, 44]
    assert len(data.notes) == 1 and "category 'things' has no box" in data.notes[0]
    # One that has a box is a class.
    content = grouped_content("things")
    content["annotations"][0]["category_id"] = 0
    data = CocoDataset(write(tmp_path / "set.json", content))
    assert data.classes == ["things", "dog", "kite"]
    assert "no box has the class kite" in data.notes[0]


def test_an_unused_category_of_the_same_name_is_left_out(tmp_path):
    data = CocoDataset(write(tmp_path / "set.json", grouped_content("dog")))
    assert data.classes == ["dog", "kite"] and data.category_ids == [2, 44]
    assert data.annotation(0).labels.tolist() == [2, 1]
    assert "2 categories are named 'dog'; the one with boxes, id 2" in data.notes[0]


def test_some_of_the_classes(tmp_path):
    path = write(tmp_path / "set.json", CONTENT)
    data = CocoDataset(path, classes=["kite", "boat"])
    assert data.classes == ["kite"] and data.category_ids == [44]
    assert data.annotation(0).labels.tolist() == [1]
    assert data.notes == [f"{path}: 2 boxes of classes that were not asked for left out: dog 2"]
    assert open_dataset(path, classes=["kite", "dog"]).category_ids == [44, 2]
    with pytest.raises(DataError, match="has none of the classes boat; it has dog, kite"):
        CocoDataset(path, classes=["boat"])


def test_large_files_are_read_entry_by_entry(tmp_path):
    """Entries that cross the pieces in which the file is read, and lists that are not wanted."""
    entries = [
        {"image_id": 7, "category_id": 2, "bbox": [1, 1, 5 + k % 3, 6], "segmentation": "猫" * k}
        for k in range(1500)
    ]
    content = {"info": {"a": [1, {}]}, "annotations": entries, "licenses": [1, [2], "}"], "x": 1.5}
    text = json.dumps({**content, **{k: CONTENT[k] for k in ("categories", "images")}}, indent=1)
    path = write(tmp_path / "set.json", text)
    assert path.stat().st_size > 3 << 20
    data = CocoDataset(path)
    assert data.annotation(0).boxes_xyxy[:, 2].tolist() == [6 + k % 3 for k in range(1500)]
    assert not data.dropped


def test_an_entry_of_many_megabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mdssd.data.json_lists.MAX_ENTRY", 1 << 20)
    path = write(tmp_path / "set.json", '{"images": [[' + "[]," * (1 << 20) + "[]]]}")
    with pytest.raises(DataError, match="an entry of over 1,048,576 characters at character 12"):
        CocoDataset(path)


def test_a_list_of_millions_of_entries_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mdssd.data.json_lists.MAX_ENTRIES", 1000)
    for name in ("annotations", "unknown"):
        path = write(tmp_path / "set.json", f'{{"{name}": [{"[]," * 1000}[]]}}')
        with pytest.raises(DataError, match="expected at most 1,000 entries in a list"):
            CocoDataset(path)
