"""COCO files: ids, boxes, crowds, image folders, and the messages about faults."""

import json
import re

import cv2
import numpy as np
import pytest
from coco_files import CONTENT, write

from mdssd.data import CocoDataset, DataError, open_dataset


def test_ids_boxes_and_crowds(tmp_path):
    data = CocoDataset(write(tmp_path / "set.json", CONTENT))
    assert data.classes == ["dog", "kite"] and data.category_ids == [2, 44]
    assert data.image_ids == ["7", "3"] and data.name == "set"
    sample = data[0]
    assert sample.image.shape == (60, 80, 3)
    assert sample.boxes_xyxy.tolist() == [[10, 20, 40, 35.5], [0, 0, 5, 5]]
    assert sample.labels.tolist() == [2, 1] and sample.crowd.tolist() == [False, True]
    assert sample.area.tolist() == [77, 25] and not sample.difficult.any()
    assert data[1].boxes_xyxy.shape == (0, 4)
    where = f"{data.json_path} (x.png): annotations[2] (id 3)"
    assert data.dropped == [f"{where}: box (4, 4, 4, 13) has no area"]
    assert "1 box marked as a crowd" in data.report() and "1 image without a box" in data.report()


@pytest.mark.parametrize(
    "path, images",
    [
        ("set.json", "."),
        ("set.json", "images"),
        ("annotations/instances_val2017.json", "../val2017"),
        ("annotations/instances_val2017.json", "../images/val2017"),
        ("annotations/a.json", "../images"),
        ("annotations/instances_test-dev2017.json", "../test2017"),
        ("annotations/instances_valminusminival2014.json", "../images/val2014"),
    ],
)
def test_usual_places_of_the_images(tmp_path, path, images):
    data = CocoDataset(write(tmp_path / path, CONTENT, images))
    assert data[0].image.shape == (60, 80, 3)
    assert data.image_dir.resolve() == (tmp_path / path).parent.joinpath(images).resolve()


def test_image_dir(tmp_path):
    path = write(tmp_path / "set.json", CONTENT, "far/away")
    assert len(CocoDataset(path, tmp_path / "far" / "away")) == 2
    assert len(open_dataset(path, image_dir=tmp_path / "far" / "away")) == 2
    with pytest.raises(DataError, match="'x.png' and 1 others not found in .*pass image_dir"):
        CocoDataset(path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        CocoDataset(path, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="split does not apply to a COCO file"):
        open_dataset(path, "test")


def changed(**changes):
    """Return CONTENT with one change, given as name of the list = (position, key, value)."""
    content = json.loads(json.dumps(CONTENT))
    for name, (position, key, value) in changes.items():
        content[name][position][key] = value
    return content


@pytest.mark.parametrize(
    "content, reason",
    [
        ("", "it is empty"),
        ("{", "broken JSON .*at character 1, where it ends"),
        ('{"images": [{"id": 7}', "broken JSON .*where it ends"),
        ('{"images": [}', "broken JSON .*at character 12"),
        ('{"images": [], }', "broken JSON"),
        ('{"images": []} {}', "broken JSON .expected nothing after the object at character 15"),
        ("\x00", "top level is not an object"),
        ('{"a":' + "[" * 100_000, "broken JSON .*nested too deep"),
        ("[" * 100_000, "top level is not an object"),
        ("[]", "top level is not an object"),
        ({"images": [], "categories": []}, "no list 'annotations'"),
        ({**CONTENT, "annotations": {}}, "no list 'annotations'"),
        ({**CONTENT, "images": []}, "the list 'images' is empty"),
        ({**CONTENT, "categories": []}, "the list 'categories' is empty"),
        ({**CONTENT, "images": ["x.png"]}, r"images\[0\]: has no id, expected an id"),
        (changed(images=(1, "id", 7)), r"images\[1\]: id 7 occurs twice, for 'x.png' and 'y.png'"),
        (changed(images=(0, "file_name", 5)), "image 7: file_name is 5, expected the name of"),
        (changed(images=(0, "file_name", "\ud800.png")), "image 7: file_name is '.ud800.png'"),
        (changed(images=(0, "file_name", "x.png\0")), "image 7: file_name is 'x.png.x00'"),
        (changed(categories=(0, "name", "dog")), "two categories have the same name 'dog': ids 2"),
        (changed(categories=(0, "name", "")), "category 44: name is '', expected 1 to 1000"),
        (changed(categories=(0, "id", 2)), r"categories\[1\]: id 2 occurs twice, for 'kite' and"),
    ],
)
def test_broken_files(tmp_path, content, reason):
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(DataError, match=rf"bad\.json: .*{reason}"):
        CocoDataset(path)


@pytest.mark.parametrize(
    "position, key, value, reason",
    [
        (1, "image_id", 8, "there is no image 8"),
        (1, "image_id", None, "has no image_id, expected an id"),
        (1, "category_id", 8, "there is no category 8"),
        (1, "category_id", True, "category_id is True, expected an id"),
        (1, "bbox", [1, 2, 3], r"bbox is \[1, 2, 3\], expected four numbers"),
        (1, "bbox", [1, 2, 3, "wide"], "bbox is .*'wide'.*expected four numbers"),
        (1, "bbox", None, "has no bbox, expected four numbers"),
        (1, "bbox", [], r"bbox is \[\], expected"),
        (1, "bbox", [10**400, 0, 5, 5], "is not finite"),
        (1, "bbox", [1, 2, float("nan"), 4], "is not finite"),
        (1, "bbox", [0.1, 0.2, 0.3, 0.4], "coordinates from 0 to 1"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_left_out(tmp_path, position, key, value, reason):
    content = changed(annotations=(position, key, value))
    del content["annotations"][2]
    data = CocoDataset(write(tmp_path / "bad.json", content))
    assert len(data.dropped) == 1 and re.search(rf"bad\.json.*: .*{reason}", data.dropped[0])
    assert data.annotation(0).labels.tolist() == [2] and len(data.dropped[0]) < 400
    assert re.search(r"bad\.json( \(x\.png\))?: annotations\[1\] \(id 2\): ", data.dropped[0])


def test_integers_that_python_does_not_read(tmp_path):
    text = json.dumps(CONTENT).replace("[0, 0, 5, 5]", f"[{'9' * 5000}, 0, 5, 5]")
    data = CocoDataset(write(tmp_path / "set.json", text))
    assert len(data.dropped) == 2 and "not finite" in data.dropped[0]


def test_missing_file_and_image(tmp_path):
    with pytest.raises(DataError, match="gone.json: cannot be read"):
        CocoDataset(tmp_path / "gone.json")
    path = write(tmp_path / "set.json", CONTENT)
    (tmp_path / "y.png").unlink()
    with pytest.raises(DataError, match=r"y\.png: no such image"):
        CocoDataset(path)


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a/../../secret.png"])
def test_a_file_name_cannot_leave_the_folder(tmp_path, name, position):
    cv2.imwrite(str(tmp_path / "secret.png"), np.zeros((60, 80, 3), np.uint8))
    path = write(tmp_path / "in" / "set.json", changed(images=(position, "file_name", name)))
    with pytest.raises(DataError, match=r"set\.json: .*leaves the folder"):
        CocoDataset(path, tmp_path / "in")
    with pytest.raises(DataError, match=r"set\.json: .*leaves the folder"):
        CocoDataset(path)
