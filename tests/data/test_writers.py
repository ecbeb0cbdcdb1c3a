"""What the writers of YOLO, COCO and VOC write, with the values worked out by hand."""

import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import yaml
from data.png_files import png
from PIL import Image

from mdssd.data import (
    DetectionDataset,
    Sample,
    SyntheticScenes,
    open_dataset,
    write_coco,
    write_voc,
    write_yolo,
)
from mdssd.data.listed import ListedDataset, ListedImage, NamedBox, ReadOptions

WRITERS = {"yolo": write_yolo, "coco": write_coco, "voc": write_voc}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def listed(folder, images, classes=("car", "bus"), **options):
    """A data set of images: their name with ending, size, boxes and splits."""
    entries = []
    for name, size, boxes, *splits in images:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(png(*size))
        image_id = name.rpartition(".")[0]
        for split in splits or [""]:
            entries.append(ListedImage(image_id, path, boxes, "test", split=split))
    return ListedDataset(
        "roads",
        entries,
        classes,
        ReadOptions(**options),
        format="a test",
        root=folder,
        split="all",
    )


@pytest.fixture
def roads(tmp_path):
    boxes = [
        NamedBox((10, 20, 30, 50), "bus", difficult=True),
        NamedBox((0, 0, 80, 60), "car", crowd=True, area=77.5),
        NamedBox((1.5, 2.25, 8, 10.1), "car"),
    ]
    images = [
        ("images/a.png", (80, 60), boxes, "train", "trainval"),
        ("images/sub/b.png", (100, 50), [], "val", "trainval"),
        ("images/c.png", (40, 40), [NamedBox((5, 5, 45, 15), "bus")], "test"),
    ]
    return listed(tmp_path / "roads", images)


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_yolo_labels(roads, tmp_path):
    losses = []
    out = write_yolo(roads, tmp_path / "out", losses=losses)
    assert files(out) == [
        "data.yaml",
        "images/test/c.png",
        "images/train/a.png",
        "images/val/sub/b.png",
        "labels/test/c.txt",
        "labels/train/a.txt",
        "labels/val/sub/b.txt",
    ]
    assert yaml.safe_load((out / "data.yaml").read_text()) == {
        "train": "images/train",
        "val": "images/val",
        "test": "images/test",
        "names": {0: "car", 1: "bus"},
    }
    # Centre and size of 10, 20 to 30, 50 in 80 x 60, and of 1.5, 2.25 to 8, 10.1.
    assert (out / "labels/train/a.txt").read_text() == (
        "1 0.25 0.58333333333 0.25 0.5\n0 0.059375 0.102916669845 0.08125 0.13083333969\n"
    )
    assert (out / "labels/val/sub/b.txt").read_text() == ""
    # 5 to 45 of 40 pixels: the centre is in the image, and the width is not above 1.
    assert (out / "labels/test/c.txt").read_text() == "1 0.625 0.25 1 0.25\n"
    assert (out / "images/train/a.png").read_bytes() == png(80, 60)
    assert losses == [
        "2 images of the split trainval: written as train or val only; for example a",
        "1 box marked difficult: YOLO labels cannot hold that, written as ordinary boxes; in a",
        "1 box marked as a crowd: YOLO labels cannot hold that, left out; in a",
        "1 box with the area of a mask: YOLO labels cannot hold that, left out; in a",
    ]


def test_yolo_cuts_boxes_that_its_tools_refuse(tmp_path):
    boxes = [NamedBox((-30, 5, 100, 15), "car"), NamedBox((-10, 5, 10, 15), "car")]
    data = listed(tmp_path / "in", [("a.png", (40, 40), boxes, "train")])
    losses = []
    out = write_yolo(data, tmp_path / "out", losses=losses)
    # The width of the first is above 1; the second has its centre and width in the image.
    assert (out / "labels/train/a.txt").read_text() == "0 0.5 0.25 1 0.25\n0 0 0.25 0.5 0.25\n"
    assert losses == [
        "1 box that reaches far beyond its image: YOLO's tools refuse the image, so cut to the "
        "image; in a",
        "no split val, which Ultralytics requires: name one in data.yaml",
    ]


def test_coco_json(roads, tmp_path):
    losses = []
    out = write_coco(roads, tmp_path / "out", losses=losses)
    assert files(out) == [
        "annotations/instances_test.json",
        "annotations/instances_train.json",
        "annotations/instances_val.json",
        "images/a.png",
        "images/c.png",
        "images/sub/b.png",
    ]
    content = json.loads((out / "annotations/instances_train.json").read_text())
    assert content == {
        "info": {"description": "roads"},
        "licenses": [],
        "categories": [
            {"id": 1, "name": "car", "supercategory": ""},
            {"id": 2, "name": "bus", "supercategory": ""},
        ],
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
        "annotations": [
            annotation(1, 2, [10, 20, 20, 30], 600, difficult=1),
            annotation(2, 1, [0, 0, 80, 60], 77.5, iscrowd=1),
            annotation(3, 1, [1.5, 2.25, 6.5, 7.85], 51.025),
        ],
    }
    content = json.loads((out / "annotations/instances_test.json").read_text())
    assert content["images"] == [{"id": 3, "file_name": "c.png", "width": 40, "height": 40}]
    assert [(a["id"], a["image_id"], a["bbox"]) for a in content["annotations"]] == [
        (4, 3, [5, 5, 40, 10])
    ]
    assert losses == [
        "2 images of the split trainval: written as train or val only; for example a",
        '1 box marked difficult: kept as "difficult": 1, which COCO\'s tools ignore: they take '
        "ordinary boxes; in a",
    ]


def annotation(number, category, bbox, area, iscrowd=0, **others):
    return {
        "id": number,
        "image_id": 1,
        "category_id": category,
        "bbox": bbox,
        "area": pytest.approx(area),
        "iscrowd": iscrowd,
        "segmentation": [],
        **others,
    }


def test_coco_tools_read_it(roads, tmp_path):
    from pycocotools.coco import COCO

    out = write_coco(roads, tmp_path / "out")
    coco = COCO(out / "annotations/instances_train.json")
    assert coco.getImgIds() == [1] and coco.getCatIds(["bus"]) == [2]
    assert coco.getAnnIds(imgIds=[1], iscrowd=True) == [2]
    assert coco.loadAnns([1])[0]["bbox"] == [10, 20, 20, 30]


def test_voc_folder(roads, tmp_path):
    losses = []
    out = write_voc(roads, tmp_path / "out", None, losses=losses)
    assert files(out) == [
        "Annotations/a.xml",
        "Annotations/c.xml",
        "Annotations/sub/b.xml",
        "ImageSets/Main/test.txt",
        "ImageSets/Main/train.txt",
        "ImageSets/Main/trainval.txt",
        "ImageSets/Main/val.txt",
        "JPEGImages/a.png",
        "JPEGImages/c.png",
        "JPEGImages/sub/b.png",
    ]
    assert (out / "ImageSets/Main/trainval.txt").read_text() == "a\nsub/b\n"
    root = ElementTree.parse(out / "Annotations/a.xml").getroot()
    assert [root.findtext(tag) for tag in ("folder", "filename")] == ["JPEGImages", "a.png"]
    assert [root.findtext(f"size/{tag}") for tag in ("width", "height", "depth")] == [
        "80",
        "60",
        "3",
    ]
    found = [
        (
            each.findtext("name"),
            each.findtext("difficult"),
            *(side.text for side in each.find("bndbox")),
        )
        for each in root.iter("object")
    ]
    assert found == [
        ("bus", "1", "10", "20", "30", "50"),
        ("car", "1", "0", "0", "80", "60"),
        ("car", "0", "1.5", "2.25", "8", "10.1"),
    ]
    assert losses == [
        "3 images in the format PNG: copied, but some tools for VOC look only for .jpg; for "
        "example a",
        "1 box marked as a crowd: VOC cannot hold that, written as difficult boxes; in a",
        "1 box with fractions of a pixel: written so, but some tools for VOC read whole numbers "
        "only; in a",
        "1 box with the area of a mask: VOC cannot hold that, left out; in a",
        "2 classes in another order than by alphabet: VOC has no order, so label 1 is the first "
        "by alphabet unless --classes says more; for example 'car'",
    ]


@each_writer
def test_nothing_is_there_until_all_is(write, roads, tmp_path):
    """An image that cannot be read ends the writing; the folder is as it was before."""
    out = tmp_path / "out"
    roads.image_path(2).unlink()
    with pytest.raises(ValueError, match="c.png: cannot be read"):
        write(roads, out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(ValueError, match="c.png: cannot be read"):
        write(roads, out)
    assert os.listdir(out) == []


@each_writer
def test_a_folder_with_other_things_is_refused(write, roads, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out: exists and is not an empty folder"):
        write(roads, tmp_path / "out")
    assert files(tmp_path / "out") == ["notes.txt"]


@each_writer
def test_what_a_killed_program_left_is_removed(write, roads, tmp_path):
    left = tmp_path / "out" / ".mdssd-convert.tmp" / "content" / "images"
    left.mkdir(parents=True)
    (left / "half.png").write_bytes(b"half")
    out = write(roads, tmp_path / "out")
    assert not any("half" in name or "tmp" in name for name in files(out))


def test_two_programs_do_not_write_one_folder(roads, tmp_path):
    program = (
        "import sys, fcntl\n"
        "file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()\n"
    )
    work = tmp_path / "out" / ".mdssd-convert.tmp"
    work.mkdir(parents=True)
    command = [sys.executable, "-c", program, str(work / "lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(FileExistsError, match="another program is writing a data set there"):
            write_coco(roads, tmp_path / "out")
        other.stdin.close()
    assert files(write_coco(roads, tmp_path / "out"))


@each_writer
def test_links_lead_to_the_source(write, roads, tmp_path):
    out = write(roads, tmp_path / "out", link=True)
    links = sorted(path.resolve() for path in out.rglob("*.png") if path.is_symlink())
    assert links == sorted(roads.image_path(k).resolve() for k in range(3))


def turned(folder, orientation, size=(80, 60)):
    """A JPEG of this stored size that EXIF data turn."""
    exif = Image.Exif()
    exif[274] = orientation
    folder.mkdir(exist_ok=True)
    path = folder / f"{orientation}.jpg"
    Image.new("RGB", size).save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    "orientation,box",
    [
        (1, (10, 20, 30, 25)),
        (2, (50, 20, 70, 25)),
        (3, (50, 35, 70, 40)),
        (4, (10, 35, 30, 40)),
        (5, (20, 10, 25, 30)),
        (6, (35, 10, 40, 30)),
        (7, (35, 50, 40, 70)),
        (8, (20, 50, 25, 70)),
    ],
)
def test_boxes_on_stored_pixels_turn_with_the_picture(orientation, box, tmp_path):
    """The pixels of the box, cut out of the turned picture, are those that it held before."""
    path = turned(tmp_path / "in", orientation)

    class Stored(DetectionDataset):
        name, classes, image_ids = "stored", ["car"], ["one"]

        def __getitem__(self, index):
            boxes = np.array([[10, 20, 30, 25]], np.float32)
            return Sample(np.zeros((60, 80, 3), np.uint8), boxes, [1], np.array([False]), "one")

        def image_path(self, index):
            return path

    losses = []
    write_coco(Stored(), tmp_path / "out", "train", losses=losses)
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    x, y, width, height = content["annotations"][0]["bbox"]
    assert (x, y, x + width, y + height) == box
    image = content["images"][0]
    assert (image["width"], image["height"]) == ((60, 80) if orientation >= 5 else (80, 60))
    assert bool(losses) == (orientation != 1)
    # Where the box lies after the pixels themselves are turned.
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:25, 10:30] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "white.png", exif=exif)
    from mdssd.data import read_image

    rows, columns = np.nonzero(read_image(tmp_path / "white.png", upright=True)[..., 0])
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == box


def test_images_without_a_file_are_written_as_png(tmp_path):
    scenes = SyntheticScenes(2, image_size=96)
    out = write_coco(scenes, tmp_path / "out", "train")
    image = cv2.imread(str(out / "images" / f"{scenes.image_ids[1]}.png"))[..., ::-1]
    np.testing.assert_array_equal(image, scenes[1].image)


def test_bytes_inside_a_table_are_written_as_they_are(tmp_path):
    class Table(DetectionDataset):
        name, classes, image_ids = "table", ["car"], ["rows/0"]

        def __getitem__(self, index):
            boxes = np.array([[1, 2, 3, 4]], np.float32)
            image = np.zeros((60, 80, 3), np.uint8)
            return Sample(image, boxes, np.array([1]), np.array([False]), "rows/0")

        def image_bytes(self, index):
            return png(80, 60)

    out = write_yolo(Table(), tmp_path / "out")
    assert (out / "images/train/rows/0.png").read_bytes() == png(80, 60)
    assert (out / "labels/train/rows/0.txt").read_text().startswith("0 0.025 0.05 ")


def test_names_are_safe_and_unique(tmp_path):
    box = [NamedBox((1, 1, 9, 9), "car")]
    names = ["a:b.png", "con.png", "A.png", "sub/a.png", "dot. .png", ".h/x.png", "two words.png"]
    images = [(name, (20, 20), box, "train") for name in (*names, "x" * 200 + ".png")]
    data = listed(tmp_path / "in", images, ["car"])
    losses = []
    out = write_yolo(data, tmp_path / "out", losses=losses)
    found = [name.removeprefix("images/train/") for name in files(out) if "images" in name]
    long = next(name for name in found if name.startswith("xxx"))
    assert sorted(found) == sorted(
        ["a_b.png", "_con.png", "A.png", "sub/a.png", "dot.png", "_.h/x.png", "two words.png", long]
    )
    assert len(long) == 124
    assert losses[0].startswith(
        "5 images whose name is not safe on every system: renamed; for example 'a:b' to 'a_b'"
    )
    out = write_voc(data, tmp_path / "voc", None)
    assert (out / "JPEGImages/two_words.png").exists()  # lists of VOC end a name at a space


def test_folders_of_splits_and_images_are_left_out_of_names(tmp_path):
    box = [NamedBox((1, 1, 9, 9), "car")]
    images = [
        ("images/train/day1/a.png", (20, 20), box, "train"),
        ("images/val/day1/b.png", (20, 20), box, "val"),
    ]
    out = write_coco(listed(tmp_path / "in", images, ["car"]), tmp_path / "out")
    assert files(out / "images") == ["day1/a.png", "day1/b.png"]
    # They stay where names would be the same without them.
    images += [("images/val/day1/a.png", (20, 20), box, "val")]
    out = write_coco(listed(tmp_path / "in", images, ["car"]), tmp_path / "other")
    assert files(out / "images") == ["train/day1/a.png", "val/day1/a.png", "val/day1/b.png"]


def test_images_that_differ_in_their_ending_get_names_of_their_own(tmp_path):
    content = {
        "images": [{"id": k, "file_name": f"a.{s}"} for k, s in enumerate(("png", "bmp"))],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 5 + k, 5]} for k in (0, 1)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    for suffix in ("png", "bmp"):
        cv2.imwrite(str(tmp_path / f"a.{suffix}"), np.zeros((10, 10, 3), np.uint8))
    losses = []
    out = write_voc(open_dataset(tmp_path / "a.json"), tmp_path / "out", "train", losses=losses)
    assert files(out / "JPEGImages") == ["a.png", "a_2.bmp"]
    root = ElementTree.parse(out / "Annotations/a_2.xml")
    assert root.findtext("object/bndbox/xmax") == "7"
    assert losses[0] == (
        "1 image with the name of another one, apart from its ending or case: renamed; 'a' to 'a_2'"
    )


def test_images_in_no_split_are_kept_apart(tmp_path):
    box = [NamedBox((1, 1, 9, 9), "car")]
    images = [("a.png", (20, 20), box, "train"), ("b.png", (20, 20), box)]
    data = listed(tmp_path / "in", images, ["car"])
    losses = []
    out = write_coco(data, tmp_path / "coco", losses=losses)
    assert files(out / "annotations") == ["instances_train.json", "instances_unlisted.json"]
    assert losses == ["1 image in no split: written as unlisted; b"]
    out = write_yolo(data, tmp_path / "yolo")
    assert (out / "labels/unlisted/b.txt").exists()
    assert len(open_dataset(out, "all")) == 2
    out = write_voc(data, tmp_path / "voc", None)
    assert files(out / "ImageSets") == ["Main/train.txt"]
    assert files(out / "Annotations") == ["a.xml", "b.xml"]


def test_without_splits_all_is_for_training(tmp_path):
    data = listed(tmp_path / "in", [("a.png", (20, 20), [NamedBox((1, 1, 9, 9), "car")])])
    losses = []
    assert (write_yolo(data, tmp_path / "yolo", losses=losses) / "images/train/a.png").exists()
    assert losses[0] == "1 image without splits: written as train; a"
    out = write_voc(data, tmp_path / "voc", None)
    assert (out / "ImageSets/Main/trainval.txt").read_text() == "a\n"


def test_test_images_serve_ultralytics_as_val(tmp_path):
    box = [NamedBox((1, 1, 9, 9), "car")]
    images = [("a.png", (20, 20), box, "trainval"), ("b.png", (20, 20), box, "test")]
    losses = []
    out = write_yolo(listed(tmp_path / "in", images), tmp_path / "out", losses=losses)
    content = yaml.safe_load((out / "data.yaml").read_text())
    assert (content["train"], content["val"], content["test"]) == (
        "images/train",
        "images/test",
        "images/test",
    )
    read = open_dataset(out, "all")
    assert list(read.split_lists([])[0].listed) == ["train", "test"]
    assert any("val and test name the same images; taken as test" in line for line in read.notes)
    assert open_dataset(out, "val").image_ids == open_dataset(out, "test").image_ids
    assert "path" not in content  # Ultralytics takes "." for a folder of its own
    assert losses == [
        "1 image of the split trainval: written as train; a",
        "no split val, which Ultralytics requires: data.yaml names test as val, too",
    ]


def test_an_image_of_two_splits_is_in_both(tmp_path):
    box = [NamedBox((1, 1, 9, 9), "car")]
    data = listed(tmp_path / "in", [("a.png", (20, 20), box, "train", "test")], ["car"])
    losses = []
    out = write_yolo(data, tmp_path / "yolo", losses=losses)
    assert files(out / "labels") == ["test/a.txt", "train/a.txt"]
    assert losses[0] == "1 image in several splits: written to each; a in train and test"
    out = write_coco(data, tmp_path / "coco")
    names = ("instances_train.json", "instances_test.json")
    contents = [json.loads((out / "annotations" / name).read_text()) for name in names]
    assert [[a["id"] for a in content["annotations"]] for content in contents] == [[1], [1]]
    assert files(out / "images") == ["a.png"]


def test_odd_class_names(tmp_path):
    classes = ["no", "1", "null", "a: b # c", "'\"", " spaced ", "汽车", "a\x01b", "a\nb"]
    boxes = [NamedBox((1, 1, 9 + k, 9), name) for k, name in enumerate(classes)]
    data = listed(tmp_path / "in", [("a.png", (20, 20), boxes, "train")], classes)
    want = [name.strip() for name in classes]
    out = write_yolo(data, tmp_path / "yolo")
    text = (out / "data.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["names"] == dict(enumerate(want))
    assert "汽车" in text
    out = write_coco(data, tmp_path / "coco")
    content = json.loads((out / "annotations/instances_train.json").read_text())
    assert [category["name"] for category in content["categories"]] == want
    losses = []
    out = write_voc(data, tmp_path / "voc", losses=losses)
    root = ElementTree.parse(out / "Annotations/a.xml")
    want[7] = "a b"
    assert [each.findtext("name") for each in root.iter("object")] == want
    assert losses[0] == (
        "1 class name with a character that XML cannot hold: renamed; 'a\\x01b' to 'a b'"
    )


def test_class_names_that_would_be_the_same_are_refused(tmp_path):
    data = listed(tmp_path / "in", [("a.png", (9, 9), [NamedBox((1, 1, 9, 9), "a")])], ["a", " a"])
    with pytest.raises(ValueError, match="class names 'a', ' a' would be written as 'a'"):
        write_yolo(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unusual_endings_and_formats(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, form in (("a.jfif", "JPEG"), ("b.JPEG", "JPEG"), ("c.gif", "GIF"), ("d.jpg", "PNG")):
        Image.new("RGB", (20, 20)).save(folder / name, form)
    box = [NamedBox((1, 1, 9, 9), "car")]
    names = [path.name for path in sorted(folder.iterdir())]
    data = listed(folder, [(name, (20, 20), box, "train") for name in names], ["car"])
    losses = []
    out = write_yolo(data, tmp_path / "yolo", losses=losses)
    assert files(out / "images/train") == ["a.jpg", "b.JPEG", "c.gif", "d.jpg"]
    assert losses[0] == "1 image in the format GIF: copied, but not all tools for YOLO read it; c"
    assert (out / "images/train/a.jpg").read_bytes() == (folder / "a.jfif").read_bytes()
    out = write_voc(data, tmp_path / "voc")
    assert files(out / "JPEGImages") == ["a.jpg", "b.jpg", "c.gif", "d.jpg"]


def test_boxes_of_large_images_keep_their_float32(tmp_path):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 9_999, (50, 2, 2)), axis=1).reshape(-1, 4)
    boxes = [NamedBox(tuple(np.float32(box).tolist()), "car") for box in corners]
    data = listed(tmp_path / "in", [("a.png", (9_999, 9_999), boxes, "train")], ["car"])
    want = data.annotation(0).boxes_xyxy
    out = write_yolo(data, tmp_path / "yolo")
    rows = np.loadtxt(out / "labels/train/a.txt")[:, 1:] * 9_999
    corners = np.concatenate([rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2], 1)
    np.testing.assert_array_equal(np.float32(corners), want)
    out = write_coco(data, tmp_path / "coco")
    read = open_dataset(out / "annotations/instances_train.json")
    np.testing.assert_array_equal(read.annotation(0).boxes_xyxy, want)
    out = write_voc(data, tmp_path / "voc")
    np.testing.assert_array_equal(open_dataset(out).annotation(0).boxes_xyxy, want)
