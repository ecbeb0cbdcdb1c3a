"""VOC folders: reading them, dropping boxes, and the messages about faults."""

import os
import re

import cv2
import numpy as np
import pytest
from voc_files import box_xml, make_folder, three_images, write_xml

from mdssd.data import DataError, SyntheticScenes, VOCDataset, open_dataset, write_voc


@pytest.fixture
def folder(tmp_path):
    return three_images(tmp_path / "set")


def test_splits_classes_and_boxes(folder):
    data = VOCDataset(folder)
    assert data.classes == ["ant", "bee", "zebra"]  # of the whole folder, not of the split
    assert data.image_ids == ["a", "c"] and len(data) == 2
    sample = data[0]
    assert sample.image.shape == (60, 80, 3) and sample.image.dtype == np.uint8
    assert sample.boxes_xyxy.tolist() == [[1, 2, 30, 40], [5.5, 6, 70, 50]]
    assert sample.boxes_xyxy.dtype == np.float32 and sample.labels.dtype == np.int64
    assert sample.labels.tolist() == [3, 1] and sample.difficult.tolist() == [False, False]
    assert sample.image_id == "a" and not sample.crowd.any()
    assert sample.area.tolist() == [29 * 38, 64.5 * 44]
    test = VOCDataset(folder, "test")
    assert test.classes == data.classes and test.image_ids == ["b"]
    assert test[0].difficult.tolist() == [True] and test[0].labels.tolist() == [2]
    assert VOCDataset(folder, "all").image_ids == ["a", "b", "c"]


def test_annotation_without_boxes_is_background(folder):
    data = VOCDataset(folder)
    assert data[1].boxes_xyxy.shape == (0, 4) and data[1].labels.shape == (0,)
    assert "1 image without a box" in data.report()
    assert "zebra: 1" in data.report() and "bee: 0" in data.report()


def test_annotation_alone_reads_no_image(folder):
    data = VOCDataset(folder)
    data.image_path(0).write_bytes(b"broken")
    assert data.annotation(0).labels.tolist() == [3, 1]
    assert data.annotation(0).image.shape == (0, 0, 3)
    with pytest.raises(DataError, match=r"a\.png: is not an image"):
        data[0]


def test_a_sample_is_the_callers_own(folder):
    data = VOCDataset(folder)
    data[0].boxes_xyxy[:] = 0
    data[0].labels[:] = 0
    assert data[0].boxes_xyxy[0, 2] == 30 and data[0].labels[0] == 3


def test_without_image_sets_every_annotation_counts(tmp_path):
    make_folder(tmp_path, {"b": box_xml("x", (0, 0, 5, 5)), "a": ""})
    assert VOCDataset(tmp_path, "trainval").image_ids == ["a", "b"]
    assert open_dataset(tmp_path).image_ids == ["a", "b"]


def test_names_with_spaces(tmp_path):
    objects = {"my photo (1)": box_xml("ant", (1, 1, 9, 9)), "b": ""}
    folder = make_folder(tmp_path, objects, {"train": " my photo (1) \nb  1\n"})
    assert VOCDataset(folder, "train").image_ids == ["my photo (1)", "b"]


def test_given_classes_set_the_order(folder):
    data = VOCDataset(folder, classes=["zebra", "bee", "ant", "cow"])
    assert data.classes == ["zebra", "bee", "ant", "cow"]
    assert data[0].labels.tolist() == [1, 3]
    with pytest.raises(ValueError, match="twice"):
        VOCDataset(folder, classes=["ant", "ant"])


def test_bad_boxes_are_dropped_counted_and_listed(tmp_path):
    boxes = {
        "point": (7, 7, 7, 7),
        "turned": (30, 10, 20, 40),
        "flat": (10, 10, 20, 10),
        "nan": (1, 1, "nan", 9),
        "huge": (1, 1, "1e99", 9),
        "right": (80, 5, 90, 15),
        "below": (5, 60, 15, 70),
        "left": (-20, 5, 0, 15),
    }
    objects = "".join(box_xml("x", box) for box in boxes.values())
    make_folder(tmp_path, {"a": objects + box_xml("x", (-5, -5, 100, 100)), "b": ""})
    data = VOCDataset(tmp_path)
    assert data[0].boxes_xyxy.tolist() == [[-5, -5, 100, 100]]  # partly outside: as written
    assert len(data.dropped) == len(boxes)
    for position, line in enumerate(data.dropped):
        assert f"a.xml: object[{position}]: box (" in line
    for line, word in zip(
        data.dropped,
        ["no area"] * 3 + ["not finite"] * 2 + ["outside"] * 3,
        strict=True,
    ):
        assert word in line
    report = data.report()
    assert "8 boxes dropped" in report and all(line in report for line in data.dropped)


def test_wrong_size_is_reported_and_the_image_trusted(tmp_path):
    make_folder(tmp_path, {"a": box_xml("x", (50, 5, 70, 15))})
    write_xml(tmp_path, "a", box_xml("x", (50, 5, 70, 15)) + box_xml("x", (85, 5, 95, 9)), (40, 90))
    data = VOCDataset(tmp_path)
    assert data[0].boxes_xyxy.tolist() == [[50, 5, 70, 15]] and len(data.dropped) == 1
    assert data.size_faults == [
        f"{tmp_path / 'Annotations' / 'a.xml'}: states 40 x 90, the image (a.png) is 80 x 60"
    ]
    assert "states 40 x 90" in data.report()


def test_a_size_of_zero_drops_nothing(tmp_path):
    make_folder(tmp_path, {"a": ""}, suffix=".bmp")
    write_xml(tmp_path, "a", box_xml("x", (50, 5, 70, 15)), (0, 0))
    assert len(VOCDataset(tmp_path)[0].boxes_xyxy) == 1


def test_image_suffixes(tmp_path):
    make_folder(tmp_path, {"a": box_xml("x", (0, 0, 5, 5)), "b": "", "c": ""})
    images = tmp_path / "JPEGImages"
    (images / "a.png").rename(images / "a.JPG")
    cv2.imwrite(str(images / "b.webp"), np.zeros((60, 80, 3), np.uint8))
    (images / "b.png").unlink()
    names = [VOCDataset(tmp_path).image_path(k).name for k in range(3)]
    assert names == ["a.JPG", "b.webp", "c.png"]


@pytest.mark.parametrize(
    "content, reason",
    [
        ("<annotation><size>", "broken XML"),
        ("", "broken XML"),
        ("<html><body/></html>", "not an annotation in VOC's format, .* found <html>"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "encoding 'klingon' is unknown"),
        ("<?xml version='1.0' encoding='punycode'?><annotation/>", "'punycode' is unknown"),
        ("<annotation>" + "<object/>" * 20_001 + "</annotation>", "has 20,001 objects, expected"),
    ],
)
def test_broken_annotations(folder, content, reason):
    (folder / "Annotations" / "a.xml").write_text(content)
    with pytest.raises(DataError, match=rf"a\.xml: .*{reason}"):
        VOCDataset(folder)
    with pytest.raises(DataError, match=rf"a\.xml: .*{reason}"):
        VOCDataset(folder, classes=["ant", "bee", "zebra"])
    faults = []
    assert VOCDataset(folder, faults=faults).image_ids == ["c"] and len(faults) == 1


@pytest.mark.parametrize(
    "objects, reason",
    [
        (box_xml("x", (1, 2, "three", 4)), "bndbox/xmax is 'three', expected a number"),
        (box_xml("x", (1, 2, "97,5", 4)), "bndbox/xmax is '97,5', .* with a point"),
        (box_xml("x", (1, 2, "", 4)), "bndbox/xmax is ''"),
        (box_xml(" ", (1, 2, 30, 40)), r"object\[0\]: has no name"),
        (box_xml("x" * 1001, (1, 2, 30, 40)), "name is 'xx.*expected 1 to 1000 characters"),
        ("<object><name>x</name></object>", r"object\[0\]: has no bndbox/xmin"),
        (box_xml("x", (0.1, 0.2, 0.5, 0.75)), "coordinates from 0 to 1"),
    ],
)
def test_an_object_that_cannot_be_used_is_left_out(folder, objects, reason):
    write_xml(folder, "a", objects + box_xml("ant", (5, 6, 70, 50)))
    data = VOCDataset(folder)
    assert data.annotation(0).boxes_xyxy.tolist() == [[5, 6, 70, 50]]
    assert len(data.dropped) == 1 and re.search(rf"a\.xml: .*{reason}", data.dropped[0])
    assert ("x" in data.classes) == ("<name>x</name>" in objects)
    assert len(data.dropped[0]) < 400


@pytest.mark.parametrize(
    "word, difficult",
    [("1", True), ("yes", True), ("True", True), ("1.0", True), ("0", False), ("no", False),
     ("", False), ("Unspecified", False), (" ", False), ("perhaps", False), ("nan", False)],
)  # fmt: skip
def test_difficult_in_any_spelling(folder, word, difficult):
    text = f"<difficult>{word}</difficult>" if word else "<difficult/>"
    write_xml(folder, "a", box_xml("ant", (5, 6, 70, 50), text))
    data = VOCDataset(folder)
    assert data.annotation(0).difficult.tolist() == [difficult]
    guessed = [line for line in data.notes if "difficult is" in line]
    assert len(guessed) == (word in ("perhaps", "nan"))


@pytest.mark.parametrize(
    "size",
    ["", "<size/>", "<size><width/><height></height></size>", "<size><depth>3</depth></size>"],
)
def test_without_a_stated_size_the_image_has_one(folder, size):
    boxes = box_xml("ant", (5, 6, 70, 50)) + box_xml("ant", (85, 6, 90, 50))
    (folder / "Annotations" / "a.xml").write_text(f"<annotation>{size}{boxes}</annotation>")
    data = VOCDataset(folder)
    assert data.annotation(0).boxes_xyxy.tolist() == [[5, 6, 70, 50]]
    assert not data.size_faults and "outside the image of 80 x 60" in data.dropped[0]


@pytest.mark.parametrize(
    "encoding, declared",
    [
        ("utf-8", None), ("utf-8", "utf8"), ("utf-8", "utf-16"), ("utf-8-sig", None),
        ("utf-16", "utf-16"), ("utf-16-le", None), ("gb2312", "gb2312"), ("gbk", "GBK"),
        ("gb18030", "gb2312"), ("big5", "big5"),
    ],
)  # fmt: skip
def test_encodings(folder, encoding, declared):
    head = f"<?xml version='1.0' encoding='{declared}'?>\r\n" if declared else ""
    text = f"{head}<annotation>{box_xml('車', (1, 2, 30, 40))}</annotation>"
    (folder / "Annotations" / "a.xml").write_bytes(
        text.replace("車", "车" if encoding.startswith("gb2") else "車").encode(encoding)
    )
    assert VOCDataset(folder).classes[-1] in "车車"


def test_bytes_in_another_encoding_are_named(folder):
    text = f"<annotation>{box_xml('café', (1, 2, 30, 40))}</annotation>"
    (folder / "Annotations" / "a.xml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.xml: broken XML \(.*UTF-8"):
        VOCDataset(folder)
    declared = f"<?xml version='1.0' encoding='latin-1'?>{text}"
    (folder / "Annotations" / "a.xml").write_bytes(declared.encode("latin-1"))
    assert "café" in VOCDataset(folder).classes


def test_a_huge_annotation_is_refused_before_it_is_read(folder):
    with open(folder / "Annotations" / "a.xml", "wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(DataError, match=r"a\.xml: cannot be read \(has 3\.22 GB, expected at most"):
        VOCDataset(folder)


def test_xml_bomb_and_outside_entity_are_refused(folder):
    bomb = '<!DOCTYPE z [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY a{k} "{f"&a{k - 1};" * 10 if k > 1 else "&a;" * 10}">' for k in range(1, 10)
    )
    outside = '<!DOCTYPE z [<!ENTITY f SYSTEM "file:///etc/hostname">'
    for head, entity in ((bomb, "&a9;"), (outside, "&f;")):
        (folder / "Annotations" / "a.xml").write_text(
            f"<?xml version='1.0'?>{head}]><annotation><name>{entity}</name></annotation>"
        )
        with pytest.raises(DataError, match=r"a\.xml: refused"):
            VOCDataset(folder)


def test_missing_things(folder, tmp_path):
    with pytest.raises(DataError, match="val.txt: no such split .*test, trainval"):
        VOCDataset(folder, "val")
    (folder / "ImageSets" / "Main" / "val.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="val.txt: the split lists no image"):
        VOCDataset(folder, "val")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("nobody\n")
    with pytest.raises(DataError, match=r"nobody\.xml: no such annotation"):
        VOCDataset(folder, "val")
    (folder / "JPEGImages" / "a.png").unlink()
    with pytest.raises(DataError, match=r"JPEGImages/a: no such image"):
        VOCDataset(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: not in VOC layout"):
        VOCDataset(tmp_path / "empty")
    make_folder(tmp_path / "bare", {})
    with pytest.raises(DataError, match="holds no annotation"):
        VOCDataset(tmp_path / "bare")
    make_folder(tmp_path / "void", {"a": ""})
    with pytest.raises(DataError, match="no annotation holds an object"):
        VOCDataset(tmp_path / "void")


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "../Annotations/a"])
def test_a_split_cannot_leave_the_folder(folder, name):
    (folder.parent / "secret.xml").write_text("<annotation/>")
    (folder / "ImageSets" / "Main" / "val.txt").write_text(f"{name}\n")
    with pytest.raises(DataError, match="leaves the folder|no such (image|annotation)"):
        VOCDataset(folder, "val")
    with pytest.raises(DataError, match="leaves the folder"):
        VOCDataset(folder, "../../../x")


def test_links_to_files_are_followed(folder, tmp_path):
    """As DVC, git-annex and the caches of Hugging Face lay data sets out."""
    for path in (folder / "JPEGImages" / "a.png", folder / "Annotations" / "a.xml"):
        path.rename(tmp_path / f"0123{path.suffix}")
        os.symlink(tmp_path / f"0123{path.suffix}", path)
    data = VOCDataset(folder)
    assert data[0].image.shape == (60, 80, 3) and data[0].labels.tolist() == [3, 1]
    (folder / "JPEGImages").rename(tmp_path / "pictures")
    os.symlink(tmp_path / "pictures", folder / "JPEGImages")
    os.symlink(".", tmp_path / "pictures" / "circle")
    assert VOCDataset(folder)[0].image.shape == (60, 80, 3)
    (tmp_path / "0123.png").write_text("root:x:0:0")
    with pytest.raises(DataError, match=r"a\.png: is not an image, but text"):
        VOCDataset(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_opened(folder):
    for path in (folder / "JPEGImages" / "a.png", folder / "Annotations" / "b.xml"):
        path.unlink()
        os.mkfifo(path)
    faults = []
    VOCDataset(folder, "all", faults=faults)
    assert len(faults) == 2 and all("is a named pipe, expected" in line for line in faults)


def test_written_scenes_read_back_as_they_were(tmp_path):
    scenes = SyntheticScenes(4, seed=3, image_size=120)
    folder = write_voc(scenes, tmp_path / "out" / "scenes", "test")
    data = VOCDataset(folder, "test", scenes.classes)
    assert data.image_ids == scenes.image_ids and not data.dropped and not data.size_faults
    for made, read in zip(scenes, data, strict=True):
        np.testing.assert_array_equal(made.image, read.image)
        np.testing.assert_array_equal(made.boxes_xyxy, read.boxes_xyxy)
        np.testing.assert_array_equal(made.labels, read.labels)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scenes"]


def test_writing_never_touches_what_is_there(tmp_path, folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        write_voc(SyntheticScenes(1), folder)
    assert sorted(folder.rglob("*")) == before


def test_writing_that_fails_leaves_nothing(tmp_path, folder):
    data = VOCDataset(folder, "all")
    data.image_path(2).write_bytes(b"broken")
    with pytest.raises(DataError):
        write_voc(data, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_open_dataset_chooses_the_split(folder, tmp_path):
    assert open_dataset(folder).split == "trainval"
    assert open_dataset(folder, train=False).split == "test"
    assert open_dataset(folder, "all", classes=["bee", "ant", "zebra"]).classes[0] == "bee"
    (folder / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(DataError, match="none of the splits test, val, valid .*trainval"):
        open_dataset(folder, train=False)
    with pytest.raises(DataError, match="gone: no such file or folder"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(ValueError, match="image_dir does not apply to the folder"):
        open_dataset(folder, image_dir=folder)


def test_a_devkit_is_the_union_of_its_years(tmp_path):
    kit = tmp_path / "VOCdevkit"
    (kit / "VOCcode").mkdir(parents=True)
    objects = {"1": box_xml("dog", (1, 1, 9, 9)), "2": box_xml("cat", (1, 1, 9, 9)), "3": ""}
    make_folder(kit / "VOC2007", objects, {"trainval": "1\n3\n", "test": "2\n"})
    objects = {"2008_1": box_xml("ant", (0, 0, 0, 9)) + box_xml("dog", (1, 2, 8, 9))}
    make_folder(kit / "VOC2012", objects, {"trainval": "2008_1\n", "val": "2008_1\n"})
    data = open_dataset(kit)
    assert data.name == "VOC2007 trainval + VOC2012 trainval"
    assert data.classes == ["ant", "cat", "dog"] and data.image_ids == ["1", "3", "2008_1"]
    assert [data[k].labels.tolist() for k in range(3)] == [[3], [], [3]]
    assert data.image_path(2) == kit / "VOC2012" / "JPEGImages" / "2008_1.png"
    assert len(data.dropped) == 1 and data.years[1][0].labels.tolist() == [2]
    given = ["dog", "cat", "ant"]
    assert open_dataset(kit, "all", classes=given).classes == given
    # If one year has the split, the result is that VOCDataset, which can be submitted.
    test = open_dataset(kit, train=False, classes=data.classes)
    assert isinstance(test, VOCDataset) and test.image_ids == ["2"] and test.classes == data.classes
    with pytest.raises(DataError, match="VOCdevkit: none of VOC2007, VOC2012 has a split x"):
        open_dataset(kit, "x")


def test_a_folder_of_coco_files_is_told_apart(tmp_path):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text("{}")
    with pytest.raises(DataError, match=r"instances_val2017\.json: not a COCO instances file"):
        open_dataset(tmp_path / "coco", train=False)
