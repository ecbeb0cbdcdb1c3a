"""VOC folders as tools lay them out: names, lists, sub-folders, links, a part of the classes."""

import unicodedata

import cv2
import numpy as np
import pytest
from voc_files import box_xml, make_folder, three_images

from mdssd.data import DataError, VOCDataset, open_dataset


@pytest.fixture
def folder(tmp_path):
    return three_images(tmp_path / "set")


def test_some_of_the_classes(folder):
    data = VOCDataset(folder, "all", classes=["bee", "ant", "cow"])
    assert data.classes == ["bee", "ant", "cow"] and len(data) == 3
    assert [data.annotation(k).labels.tolist() for k in range(3)] == [[2], [1], []]
    assert len(data.notes) == 2 and not data.dropped
    assert data.notes[0].endswith("classes that were not asked for left out: zebra 1")
    assert data.notes[1].endswith("no box has the class cow")
    with pytest.raises(DataError, match="no box has one of the classes cow; .* ant, bee, zebra"):
        VOCDataset(folder, "all", classes=["cow"])


def test_a_folder_without_the_chosen_classes_beside_one_with_them(tmp_path):
    for year, name in (("VOC2007", "ant"), ("VOC2012", "bee")):
        make_folder(tmp_path / year, {"a": box_xml(name, (1, 1, 9, 9))})
    data = open_dataset(tmp_path, "all", classes=["bee", "cow"])
    assert [data.annotation(k).labels.tolist() for k in range(2)] == [[], [1]]
    assert data.notes == [
        f"{tmp_path}: 1 box of classes that were not asked for left out: ant 1",
        f"{tmp_path}: no box has the class cow",
    ]
    with pytest.raises(DataError, match="no box has one of the classes cow"):
        open_dataset(tmp_path, "all", classes=["cow"])


def test_hidden_files_are_none_of_the_data(folder):
    for name in ("Annotations/._a.xml", "JPEGImages/._a.png", "Annotations/.x/b.xml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    data = VOCDataset(folder, "all")
    assert data.image_ids == ["a", "b", "c"] and not data.notes


@pytest.mark.parametrize(
    "lines",
    ["a.png\nc.png", "JPEGImages/a.png\r\nJPEGImages/c.png\r\n", "JPEGImages\\a.png\nc",
     "/home/me/set/JPEGImages/a.PNG 1\nc.xml", "./a\ndata/obj/JPEGImages/c.jpg", "\ufeffa\nc"],
)  # fmt: skip
def test_split_lists_name_files_in_many_ways(folder, lines):
    (folder / "ImageSets/Main/trainval.txt").write_bytes(lines.encode())
    data = VOCDataset(folder)
    assert data.image_ids == ["a", "c"] and data[0].labels.tolist() == [3, 1]
    (folder / "ImageSets/Main/trainval.txt").write_bytes(lines.lstrip("\ufeff").encode("utf-16"))
    assert VOCDataset(folder).image_ids == ["a", "c"]


def test_a_split_list_is_named(folder):
    path = folder / "ImageSets/Main/val.txt"
    path.write_text("a\nnobody\n")
    with pytest.raises(DataError, match=r"nobody\.xml: no such .*Main/val\.txt:2 lists it"):
        VOCDataset(folder, "val")
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"val\.txt: cannot be read .*UTF-8"):
        VOCDataset(folder, "val")


def test_every_line_of_a_split_list_is_looked_at(folder):
    path = folder / "ImageSets/Main/val.txt"
    path.write_text("a\n\n../x\nnobody\n../y\nnobody\n")
    faults: list[str] = []
    lists = VOCDataset(folder, "all", faults=faults).split_lists(faults)
    assert lists[0].listed["val"] == ["a", "nobody"]
    for k, part in enumerate(("3: '../x' leaves", "5: '../y' leaves", "4: lists nobody, which")):
        assert faults[k].startswith(f"{path}:{part}")
    assert len(faults) == 3
    opened: list[str] = []
    data = VOCDataset(folder, "val", faults=opened)
    assert data.image_ids == ["a"] and len(opened) == 3
    data.split_lists(opened)
    assert len(opened) == 3  # no fault twice


def test_folders_in_the_folders(tmp_path):
    """As CVAT exports several tasks: the same file name occurs in each."""
    objects = {"1": box_xml("ant", (1, 1, 9, 9)), "2": box_xml("bee", (2, 2, 9, 9))}
    for day, text in objects.items():
        source = make_folder(tmp_path / day, {"frame": text})
        for name in ("Annotations", "JPEGImages"):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            (source / name).rename(tmp_path / "set" / name / f"day{day}")
    (tmp_path / "set/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "set/ImageSets/Main/default.txt").write_text("day2/frame\nday1\\frame.png\n")
    data = VOCDataset(tmp_path / "set", "default")
    assert data.image_ids == ["day2/frame", "day1/frame"] and data.classes == ["ant", "bee"]
    assert [data[k].labels.tolist() for k in range(2)] == [[2], [1]]
    assert data.image_path(0).parent.name == "day2"
    assert VOCDataset(tmp_path / "set", "all").image_ids == ["day1/frame", "day2/frame"]
    (tmp_path / "set/JPEGImages/day2/frame.png").unlink()
    with pytest.raises(DataError, match="day2/frame: no such image"):
        VOCDataset(tmp_path / "set", "all")


def test_the_image_that_the_annotation_names(folder):
    objects = box_xml("ant", (5, 6, 70, 50))
    text = f"<annotation><filename>photo.png</filename>{objects}</annotation>"
    (folder / "Annotations" / "b.xml").write_text(text)
    (folder / "JPEGImages" / "b.png").rename(folder / "JPEGImages" / "photo.png")
    data = VOCDataset(folder, "all")
    assert data.image_path(1).name == "photo.png" and data.image_ids[1] == "b"
    # A copied annotation still names the image of the other one.
    (folder / "JPEGImages" / "photo.png").unlink()
    (folder / "Annotations" / "b.xml").write_text(text.replace("photo", "a"))
    with pytest.raises(DataError, match=r"JPEGImages/b: no such image .*and for 'a\.png', which"):
        VOCDataset(folder, "all")


def test_of_two_images_of_one_name_the_annotation_decides(folder):
    cv2.imwrite(str(folder / "JPEGImages/b.jpg"), np.zeros((20, 30, 3), np.uint8))
    for told in ("b.jpg", "b.png"):
        text = f"<filename>{told}</filename>{box_xml('ant', (5, 6, 70, 50))}"
        (folder / "Annotations/b.xml").write_text(f"<annotation>{text}</annotation>")
        assert VOCDataset(folder, "all").image_path(1) == folder / "JPEGImages" / told


def test_accents_in_either_form_and_endings_in_any_case(folder):
    composed, split = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (folder / "Annotations/a.xml").rename(folder / f"Annotations/{composed}.XML")
    (folder / "JPEGImages/a.png").rename(folder / f"JPEGImages/{split}.Png")
    (folder / "ImageSets/Main/trainval.txt").write_text(f"{split}\nC\n")
    data = VOCDataset(folder)
    assert data.image_path(0).name == f"{split}.Png" and data.image_ids == [composed, "c"]


def test_annotations_beside_their_images(folder, tmp_path):
    for name in ("train", "valid"):
        (tmp_path / "flat" / name).mkdir(parents=True)
    for k, name in (("a", "train"), ("c", "train"), ("b", "valid")):
        (folder / f"Annotations/{k}.xml").rename(tmp_path / f"flat/{name}/{k}.xml")
        (folder / f"JPEGImages/{k}.png").rename(tmp_path / f"flat/{name}/{k}.png")
    one = open_dataset(tmp_path / "flat/train")
    assert one.image_ids == ["a", "c"] and one[0].labels.tolist() == [2, 1]
    # Folders of that kind that are named after splits are splits with the same classes.
    train = open_dataset(tmp_path / "flat")
    assert train.classes == ["ant", "bee", "zebra"] and train.image_ids == ["a", "c"]
    assert train.annotation(0).labels.tolist() == [3, 1]
    test = open_dataset(tmp_path / "flat", train=False)
    assert test.image_ids == ["b"] and test.annotation(0).labels.tolist() == [2]
    everything = open_dataset(tmp_path / "flat", "all")
    assert everything.image_ids == ["a", "c", "b"]
    assert [each.listed for each in everything.split_lists([])] == [
        {"train": ["a", "c"]}, {"valid": ["b"]}
    ]  # fmt: skip
    with pytest.raises(DataError, match="no such split moon .there are: train, valid; or all"):
        open_dataset(tmp_path / "flat", "moon")


def test_a_folder_of_something_else_says_what_to_give(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(DataError, match="found labels/; expected one of: VOC"):
        open_dataset(tmp_path)


def test_images_without_an_annotation_are_counted(folder):
    cv2.imwrite(str(folder / "JPEGImages" / "d.png"), np.zeros((60, 80, 3), np.uint8))
    notes = VOCDataset(folder, "all").notes
    assert len(notes) == 1 and "1 image without an annotation left out" in notes[0]
    assert "such as d.png" in notes[0] and not VOCDataset(folder).notes[1:]


def test_the_only_split_may_have_any_name(tmp_path):
    make_folder(tmp_path / "voc", {"a": box_xml("ant", (1, 2, 30, 40))}, {"default": "a\n"})
    for train in (True, False):
        dataset = open_dataset(tmp_path / "voc", train=train)
        assert (dataset.split, dataset.image_ids) == ("default", ["a"])


def test_two_images_of_one_name_of_which_none_is_named(folder):
    cv2.imwrite(str(folder / "JPEGImages" / "a.jpg"), np.zeros((60, 80, 3), np.uint8))
    faults: list[str] = []
    assert VOCDataset(folder, "all", faults=faults).image_ids == ["b", "c"]
    images = folder / "JPEGImages"
    assert faults == [
        f"{folder / 'Annotations/a.xml'}: {images / 'a.jpg'} and {images / 'a.png'} have the same "
        "name without the ending, and the annotation names neither; expected one image of each name"
    ]
