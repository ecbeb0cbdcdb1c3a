"""COCO files: ids, boxes, crowds, image folders, and the messages about faults."""

import json

import cv2
import numpy as np
import pytest

from mdssd.data import CocoDataset, DataError, open_dataset

CONTENT = {
    "images": [
        {"id": 7, "file_name": "x.png", "width": 80, "height": 60},
        {"id": 3, "file_name": "y.png", "width": 80, "height": 60},
    ],
    "categories": [{"id": 44, "name": "kite"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 44, "bbox": [10, 20, 30, 15.5], "area": 77},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [4, 4, 0, 9], "iscrowd": 0},
    ],
}


def write(path, content, images="."):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    folder = path.parent / images
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("x.png", "y.png"):
        cv2.imwrite(str(folder / name), np.zeros((60, 80, 3), np.uint8))
    return path


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
    assert len(data.dropped) == 1 and "(x.png): box (4, 4, 4, 13) has no area" in data.dropped[0]
    assert "1 boxes are crowds" in data.report() and "1 images have no box" in data.report()


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
    with pytest.raises(DataError, match="'x.png' not found in .*pass image_dir"):
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
        ("{", "broken JSON"),
        ("\x00", "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ("[]", "top level is not an object"),
        ({"images": [], "categories": []}, "no list 'annotations'"),
        ({**CONTENT, "images": []}, "the list 'images' is empty"),
        ({**CONTENT, "categories": []}, "the list 'categories' is empty"),
        ({**CONTENT, "images": ["x.png"]}, r"images\[0\]: id is None, expected int"),
        (changed(images=(1, "id", 7)), r"images\[1\]: id 7 occurs twice"),
        (changed(images=(0, "file_name", 5)), "image 7: file_name is 5, expected str"),
        (changed(images=(0, "width", "wide")), "image 7: width is 'wide', expected int"),
        (changed(categories=(0, "name", "dog")), "two categories have the same name"),
        (changed(annotations=(1, "image_id", 8)), r"annotations\[1\]: there is no image 8"),
        (changed(annotations=(1, "category_id", 8)), r"annotations\[1\]: there is no category 8"),
        (changed(annotations=(2, "bbox", [1, 2, 3])), r"annotations\[2\]: bbox is \[1, 2, 3\]"),
        (changed(annotations=(2, "bbox", [1, 2, 3, "4"])), r"annotations\[2\]: bbox is"),
        (changed(annotations=(2, "bbox", None)), r"annotations\[2\]: bbox is None, expected list"),
        (changed(annotations=(0, "area", "big")), r"annotations\[0\]: area is 'big'"),
    ],
)
def test_broken_files(tmp_path, content, reason):
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(DataError, match=rf"bad\.json: .*{reason}"):
        CocoDataset(path)


def test_missing_file_and_image(tmp_path):
    with pytest.raises(DataError, match="gone.json: cannot be read"):
        CocoDataset(tmp_path / "gone.json")
    path = write(tmp_path / "set.json", CONTENT)
    (tmp_path / "y.png").unlink()
    with pytest.raises(DataError, match=r"y\.png: no such image"):
        CocoDataset(path)


def test_not_a_number_is_dropped(tmp_path):
    text = json.dumps(changed(annotations=(0, "bbox", [1, 2, float("nan"), 4])))
    data = CocoDataset(write(tmp_path / "set.json", text))
    assert len(data.dropped) == 2 and "not finite" in data.dropped[0]


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a/../../secret.png"])
def test_a_file_name_cannot_leave_the_folder(tmp_path, name, position):
    cv2.imwrite(str(tmp_path / "secret.png"), np.zeros((60, 80, 3), np.uint8))
    path = write(tmp_path / "in" / "set.json", changed(images=(position, "file_name", name)))
    with pytest.raises(DataError, match=r"set\.json: .*leaves the folder"):
        CocoDataset(path, tmp_path / "in")
    with pytest.raises(DataError, match=r"set\.json: .*leaves the folder"):
        CocoDataset(path)
