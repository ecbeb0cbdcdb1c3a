"""LabelMe: shapes, where the images are, embedded images, splits and faults."""

import base64
import json
import re

import cv2
import numpy as np
import pytest

from mdssd.data import DataError, labelme_json, open_dataset
from mdssd.data.images import ImageLimits
from mdssd.data.labelme import is_labelme


def shape(kind="rectangle", points=((10, 20), (30.5, 40)), label="car", **others):
    made = {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
    return {**made, **others}


def content(image="a.png", shapes=None, **others):
    made = {"version": "5.4.1", "flags": {}, "shapes": [shape()] if shapes is None else shapes}
    size = {"imageHeight": 60, "imageWidth": 80}
    return {**made, "imagePath": image, "imageData": None, **size, **others}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=2))


def photos(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.full((60, 80, 3), 90, np.uint8))


def opened(folder, *shapes, **options):
    """Open a folder with one image that has these shapes."""
    write(folder / "a.json", content(shapes=list(shapes)))
    photos(folder, "a.png")
    return open_dataset(folder, **options)


def test_a_folder(tmp_path):
    write(tmp_path / "a.json", content())
    write(tmp_path / "day 1" / "b.json", content("b.png", [shape(label="big bus"), shape()]))
    photos(tmp_path, "a.png")
    photos(tmp_path / "day 1", "b.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.split) == ("LabelMe JSON", None)
    assert dataset.classes == ["big bus", "car"] and dataset.image_ids == ["a", "day 1/b"]
    assert dataset[0].boxes_xyxy.tolist() == [[10, 20, 30.5, 40]]
    assert dataset[1].labels.tolist() == [1, 2] and not dataset.notes and not dataset.dropped
    assert open_dataset(tmp_path, "all", train=False).image_ids == dataset.image_ids
    with pytest.raises(DataError, match="no such split val"):
        open_dataset(tmp_path, "val")


SQUARE = [[1, 2], [9, 2], [9, 8], [1, 8]]


@pytest.mark.parametrize(
    "made, box",
    [
        (shape("rectangle", [[30, 40], [10, 20]]), [10, 20, 30, 40]),
        (shape("rectangle", [[10, 40], [30, 20]]), [10, 20, 30, 40]),
        (shape("rectangle", SQUARE), [1, 2, 9, 8]),
        (shape("polygon", [[1, 2], [5, 2], [4, 9.5]]), [1, 2, 5, 9.5]),
        (shape("circle", [[20, 30], [23, 34]]), [15, 25, 25, 35]),
        (shape("mask", [[3, 4], [12, 23]], mask="iVBO"), [3, 4, 13, 24]),
        (shape("ai_polygon", SQUARE), [1, 2, 9, 8]),
        (shape("rotation", [[5, 1], [9, 5], [5, 9], [1, 5]], direction=0.78), [1, 1, 9, 9]),
        ({"label": "car", "points": SQUARE}, [1, 2, 9, 8]),  # as old versions write a polygon
        (shape("rectangle", [["10", "20"], ["30", "40"]]), [10, 20, 30, 40]),
    ],
)
def test_shapes_become_boxes(tmp_path, made, box):
    dataset = opened(tmp_path, made)
    assert dataset[0].boxes_xyxy.tolist() == [box] and not dataset.dropped
    assert (not dataset.notes) == (made.get("shape_type") in ("rectangle", "mask"))


@pytest.mark.parametrize("kind", ["point", "line", "linestrip", "points"])
def test_shapes_without_a_box_are_counted(tmp_path, kind):
    dataset = opened(tmp_path, shape(), shape(kind, SQUARE), shape(kind, SQUARE, label="nose"))
    assert dataset.classes == ["car"] and len(dataset[0].labels) == 1 and not dataset.dropped
    assert dataset.notes == [
        f"{tmp_path}/a.json: shapes[1]: a shape of the type {kind} has no box; left out "
        "(and 1 more time)"
    ]


@pytest.mark.parametrize(
    "made, reason",
    [
        ("x", "is 'x', expected an object"),
        (shape("star"), "shape_type is 'star', expected rectangle, polygon, circle or mask"),
        (shape(["a"]), r"shape_type is \['a'\]"),
        (shape("rectangle", [[1, 2]]), "a rectangle has 1 points"),
        (shape("circle", SQUARE), "a circle has 4 points"),
        (shape("polygon", []), "a polygon has 0 points"),
        (shape("rectangle", None), "points is missing, expected a list of x, y"),
        (shape("rectangle", [[1, 2], [3]]), r"a point is \[3\], expected x, y"),
        (shape("rectangle", [[1, "wide"], [3, 4]]), "a point is .*'wide'"),
        (shape("polygon", [[1, 2], [float("nan"), 5], [7, 8]]), "is not finite"),
        (shape("rectangle", [[10**400, 2], [3, 5]]), "is not finite"),
        (shape("rectangle", [[10, 2], [10, 5]]), "has no area"),
        (shape("rectangle", [[100, 2], [110, 5]]), "lies outside the image of 80 x 60"),
        (shape(label=" "), "label is ' ', expected a name"),
        (shape(label=None), "label is missing, expected a name"),
    ],
)
def test_a_shape_that_cannot_be_used_is_named(tmp_path, made, reason):
    dataset = opened(tmp_path, shape(), made)
    assert len(dataset.dropped) == 1 and len(dataset[0].labels) == 1
    assert re.search(rf"a\.json: shapes\[1\]: .*{reason}", dataset.dropped[0])


def test_flags_and_labels(tmp_path):
    shapes = [
        shape(flags={"Difficult": True}),
        shape(difficult=True),
        shape(flags={"iscrowd": 1}),
        shape(flags={"occluded": True}),
        shape(label=7),
        shape(flags={"difficult": "perhaps"}),
    ]
    dataset = opened(tmp_path, *shapes)
    assert dataset[0].difficult.tolist() == [True, True, False, False, False, False]
    assert dataset[0].crowd.tolist() == [False, False, True, False, False, False]
    assert dataset.classes == ["7", "car"]
    assert "shapes[5]: difficult is 'perhaps', expected true or false" in dataset.notes[0]


@pytest.mark.parametrize(
    "image, place",
    [
        ("..\\images\\a.png", "images/a.png"),
        ("../images/a.png", "images/a.png"),
        ("b.PNG", "labels/b.png"),
        ("C:\\photos\\a.jpg", "labels/a.png"),
    ],
)
def test_where_the_image_is(tmp_path, image, place):
    write(tmp_path / "labels" / "a.json", content(image))
    photos((tmp_path / place).parent, (tmp_path / place).name)
    dataset = open_dataset(tmp_path)
    assert dataset.image_path(0) == tmp_path / place
    assert dataset.image_ids == ["labels/a"] and not dataset.notes


def test_an_image_in_another_folder_is_found_by_its_name_with_a_note(tmp_path):
    write(tmp_path / "json" / "a.json", content("C:\\Users\\me\\a.png"))
    photos(tmp_path / "photos", "a.png")
    dataset = open_dataset(tmp_path)
    assert dataset.image_path(0) == tmp_path / "photos" / "a.png"
    assert dataset.notes == [
        f"{tmp_path}/json/a.json: the image 'C:/Users/me/a.png' was found as 'photos/a.png'"
    ]


def test_a_copied_annotation_that_names_another_image(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", content("a.png"))
    photos(tmp_path, "a.png", "b.png")
    dataset = open_dataset(tmp_path)
    assert [dataset.image_path(k).name for k in range(2)] == ["a.png", "b.png"]
    assert "b.json: names 'a.png', which has an annotation; b.png is used" in dataset.notes[0]


def test_an_image_that_is_embedded(tmp_path):
    pixels = np.full((60, 80, 3), 200, np.uint8)
    data = base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()
    write(tmp_path / "a.json", content(imageData=data))
    write(tmp_path / "b.json", content("b.png", imageData=data))
    photos(tmp_path, "b.png")
    dataset = open_dataset(tmp_path)
    assert dataset.image_path(0) is None and dataset[0].image[0, 0].tolist() == [200, 200, 200]
    assert dataset.image_bytes(0) == base64.b64decode(data) and dataset.image_bytes(1) is None
    # An image file comes first.
    assert dataset.image_path(1).name == "b.png" and dataset[1].image[0, 0].tolist() == [90] * 3
    assert "a.json: has no image file; the image that is embedded in it is used" in dataset.notes[0]


@pytest.mark.parametrize(
    "data, reason",
    [("AAAA", "imageData: .*not an image"), ("A", "imageData is not in base64"), ("", "imageData")],
)
def test_an_embedded_image_that_is_damaged(tmp_path, data, reason):
    write(tmp_path / "a.json", content(imageData=data))
    with pytest.raises(DataError, match=rf"a\.json: {reason}"):
        open_dataset(tmp_path)


def test_splits_are_folders(tmp_path):
    for split, label in (("train", "car"), ("val", "bus")):
        write(tmp_path / split / "a.json", content(shapes=[shape(label=label)]))
        photos(tmp_path / split, "a.png")
    train, val = open_dataset(tmp_path), open_dataset(tmp_path, train=False)
    assert (train.split, train.image_ids) == ("train", ["train/a"])
    assert (val.split, val.image_ids) == ("val", ["val/a"])
    assert train.classes == val.classes == ["bus", "car"]
    everything = open_dataset(tmp_path, "all")
    assert len(everything) == 2 and set(everything.split_lists([])[0].listed) == {"train", "val"}


def test_images_without_an_annotation(tmp_path):
    write(tmp_path / "a.json", content())
    photos(tmp_path, "a.png", "b.png", "c.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1
    assert dataset.notes == [f"{tmp_path}: 2 images without an annotation left out, such as b.png"]
    dataset = open_dataset(tmp_path, unlabelled=True)
    assert dataset.image_ids == ["a", "b", "c"] and not dataset.labelled
    # An annotation without a shape is an image of background.
    write(tmp_path / "b.json", content("b.png", []))
    assert len(open_dataset(tmp_path)) == 2


def test_json_of_something_else(tmp_path):
    write(tmp_path / "a.json", content())
    write(tmp_path / "settings.json", {"theme": "dark"})
    photos(tmp_path, "a.png", "b.png")
    dataset = open_dataset(tmp_path)
    assert any("settings.json: is no annotation of LabelMe" in note for note in dataset.notes)
    write(tmp_path / "b.json", {"shape": []})
    with pytest.raises(DataError, match=r"b\.json: is no annotation .*'shapes'; b.png has this"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "text, reason",
    [
        (json.dumps(content("b.png"), indent=2)[:200], r":16: broken JSON .*where the file ends"),
        (json.dumps(content("b.png"), indent=2)[:-40], r": broken JSON .*where the file ends"),
        ("", ":1: broken JSON .*where the file ends"),
        ("[" * 100_000, ": broken JSON .*nested too deep"),
        (json.dumps(content("../../b.png")), "imagePath '../../b.png' leaves the folder"),
        (json.dumps(content("/etc/hostname")), "b: no such image .*names '/etc/hostname'"),
        (json.dumps(content("gone.png")), "gone.png: no such image .*b.json names 'gone.png'"),
        (json.dumps(content("a.png", [shape()] * 20_001)), "has 20,001 shapes, expected at most"),
    ],
)
def test_an_annotation_that_cannot_be_used(tmp_path, text, reason):
    write(tmp_path / "a.json", content())
    photos(tmp_path, "a.png")
    write(tmp_path / "b.json", text)
    with pytest.raises(DataError, match=reason):
        open_dataset(tmp_path)
    faults: list[str] = []
    assert open_dataset(tmp_path, faults=faults).image_ids == ["a"] and len(faults) == 1


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    data = base64.b64encode(bytes(3000)).decode()
    write(tmp_path / "a.json", content(imageData=data))
    photos(tmp_path, "a.png")
    monkeypatch.setattr(labelme_json, "_MAX_TEXT", 1000)  # which the image does not count for
    assert len(open_dataset(tmp_path)) == 1
    write(tmp_path / "a.json", content(shapes=[shape()] * 10))
    with pytest.raises(DataError, match="without its image, expected at most 1 kB"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_windows_line_ends(tmp_path, encoding):
    text = json.dumps(content("é.png"), indent=2, ensure_ascii=False).replace("\n", "\r\n")
    (tmp_path / "é.json").write_bytes(text.encode(encoding))
    photos(tmp_path, "é.png")
    assert is_labelme(tmp_path)
    assert open_dataset(tmp_path)[0].boxes_xyxy.tolist() == [[10, 20, 30.5, 40]]


def test_two_images_of_one_name_of_which_none_is_named(tmp_path):
    write(tmp_path / "a.json", content("a.tif", [shape()]))
    photos(tmp_path, "a.png", "a.jpg")
    with pytest.raises(DataError, match=r"a\.json: .*a\.jpg and .*a\.png have the same name"):
        open_dataset(tmp_path)
    write(tmp_path / "a.json", content("a.png", [shape()]))
    assert open_dataset(tmp_path).image_path(0).name == "a.png"


def test_what_is_recognised(tmp_path):
    assert not is_labelme(tmp_path) and not is_labelme(tmp_path / "missing")
    write(tmp_path / "a.json", {"images": [], "annotations": []})
    (tmp_path / "b.json").symlink_to("/dev/zero")
    (tmp_path / "c.json").mkdir()
    assert not is_labelme(tmp_path)
    write(tmp_path / "x" / "d.json", {"imageData": "A" * 100_000, "shapes": []})
    assert is_labelme(tmp_path)


def test_chosen_classes(tmp_path):
    dataset = opened(tmp_path, shape(), shape(label="bus"), classes=["bus"])
    assert dataset.classes == ["bus"] and len(dataset[0].labels) == 1
    assert "1 box of classes that were not asked for left out: car 1" in dataset.notes[0]


def test_an_embedded_image_is_not_read_by_windows(tmp_path):
    """A TIFF of the folder would be, but this one has no file."""
    data = cv2.imencode(".tif", np.zeros((60, 80, 3), np.uint8))[1].tobytes()
    write(tmp_path / "a.json", content(imageData=base64.b64encode(data).decode()))
    with pytest.raises(DataError, match=r"a\.json: imageData: has 80 x 60 pixels, expected at m"):
        open_dataset(tmp_path, limits=ImageLimits(max_pixels=1000, by_windows=True))
