"""Faults of data: grouped by reason, said in one line, refused above a share."""

import json

import cv2
import numpy as np
import pytest

from mdssd.cli import main
from mdssd.data import DataError, open_dataset
from mdssd.data.dataset import DataPart
from mdssd.data.faults import check_faults, faults_line, grouped, left_out, without_damaged


def coco(folder, boxes, *, crowd=0, images=2):
    """Write a COCO file with boxes [x, y, width, height], by turns in the images."""
    folder.mkdir(exist_ok=True)
    for k in range(images):
        pixels = np.full((60, 80, 3), 10 * k, np.uint8)
        cv2.imwrite(str(folder / f"{k}.png"), pixels)
    content = {
        "images": [
            {"id": k, "file_name": f"{k}.png", "width": 80, "height": 60} for k in range(images)
        ],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": k % images, "category_id": 1, "bbox": box, "iscrowd": crowd}
            for k, box in enumerate(boxes)
        ],
    }
    path = folder / "set.json"
    path.write_text(json.dumps(content))
    return path


GOOD, FLAT = [10, 10, 20, 20], [10, 10, 0, 20]


def test_lines_with_the_same_reason_are_one():
    lines = [f"{k}.xml: box ({k}, 1, 2, 2) has no area" for k in range(3)]
    lines.insert(1, "x.jpg: no such image")
    lines += ["y.xml: xmin is '7,5', expected a number", "z.xml: xmin is '3,0', expected a number"]
    assert grouped(lines) == [
        "0.xml: box (0, 1, 2, 2) has no area, and 2 more like it",
        "y.xml: xmin is '7,5', expected a number, and 1 more like it",
        "x.jpg: no such image",
    ]
    places = ("x.json (a.png): annotations[3] (id 7)", "x.json: annotations[4]")
    flat = [f"{place}: box ({k}, 1, 2, 2) has no area" for k, place in enumerate(places)]
    assert grouped(flat) == [f"{flat[0]}, and 1 more like it"]
    assert grouped([]) == []


@pytest.mark.parametrize("bad, good, refused", [(1, 9, False), (2, 38, False), (2, 37, True)])
def test_more_than_a_twentieth_of_the_boxes_is_refused(tmp_path, bad, good, refused):
    data = open_dataset(coco(tmp_path, [FLAT] * bad + [GOOD] * good))
    assert len(data.dropped) == bad
    if not refused:
        assert left_out(data) == ""
        check_faults(data, [])
        return
    with pytest.raises(DataError, match=r"2 of 39 boxes \(5%\) .*has no area.*--allow-faults"):
        check_faults(data, [])


def test_one_line_says_what_was_left_out(tmp_path):
    data = open_dataset(coco(tmp_path, [FLAT, GOOD, [500, 5, 9, 9]]))
    line = faults_line(data, ["a.jpg: no such image", "b.jpg: no such image"])
    assert line == (
        "set: 2 files left out (a.jpg: no such image, and 1 more like it); 2 of 3 boxes left out "
        f"({tmp_path}/set.json (0.png): annotations[0]: box (10, 10, 10, 30) has no area; "
        f"{tmp_path}/set.json (0.png): annotations[2]: box (500, 5, 509, 14) lies outside the "
        "image of 80 x 60); `mdssd data check` lists them"
    )


def test_a_line_about_a_group_keeps_the_digits_of_names(tmp_path):
    data = open_dataset(coco(tmp_path, [GOOD]))
    line = faults_line(data, [f"a{k}.txt: class {k} has no name in set2/data.yaml" for k in (7, 8)])
    assert "(a7.txt: class 7 has no name in set2/data.yaml, and 1 more like it)" in line
    assert faults_line(open_dataset(coco(tmp_path, [GOOD]))) == ""


def test_training_says_once_that_a_class_has_no_box(tmp_path, capsys):
    path = coco(tmp_path, [GOOD] * 4)
    content = json.loads(path.read_text())
    content["categories"].append({"id": 2, "name": "cyclist"})
    path.write_text(json.dumps(content))
    options = ["--model", "ssd300", "--width", "0.0625", "--batch-size", "2", "--iterations", "1"]
    options += ["--workers", "0", "--threads", "1", "--out", str(tmp_path / "run")]
    assert main(["train", "--data", str(path), *options]) == 0
    assert capsys.readouterr().out.count("no box has the class cyclist") == 1


def test_damaged_images_are_left_out_on_request(tmp_path):
    data = open_dataset(coco(tmp_path, [GOOD] * 4, images=4))
    faults = []
    assert without_damaged(data, faults) is data and not faults
    path = data.image_path(1)
    path.write_bytes(path.read_bytes()[:-20])
    part = without_damaged(data, faults)
    assert isinstance(part, DataPart) and part.image_ids == ["0", "2", "3"]
    assert len(faults) == 1 and "1.png" in faults[0] and "truncated" in faults[0]
    assert part[1].image[0, 0, 0] == 20 and part.image_path(2).name == "3.png"
    assert part.annotation(0).boxes_xyxy.tolist() == [[10, 10, 30, 30]]
    assert part.classes == ["cat"] and not part.upright(0)


def test_crowds_alone_are_named_as_the_reason(tmp_path, capsys):
    path = coco(tmp_path, [GOOD] * 6, crowd=1)
    options = ["--model", "ssd300", "--width", "0.0625", "--out", str(tmp_path / "run")]
    assert main(["train", "--data", str(path), *options]) == 2
    assert "all 6 boxes are crowds (iscrowd is 1" in capsys.readouterr().err
