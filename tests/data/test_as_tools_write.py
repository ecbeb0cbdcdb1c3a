"""What the usual tools write, in each format: read with the right values, and noted if guessed."""

import json
import os
import shutil
import unicodedata

import cv2
import numpy as np
import pytest

from mdssd.data import open_dataset

pa = pytest.importorskip("pyarrow", reason="pyarrow reads the tables")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads the tables")

BOX = [10, 20, 30, 40]  # in an image of 80 x 60
FORMATS = ["yolo", "labelme", "cvat", "csv", "kitti", "hugging face"]


def png(width=80, height=60):
    return cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def image_folder(form):
    return {"yolo": "images/train", "kitti": "image_2", "cvat": "images"}.get(form, ".")


def image_file(root, form, name="a"):
    return root / image_folder(form) / f"{name}.png"


def yolo(root, names, more=()):
    for name in names:
        write(
            root / "labels" / "train" / f"{name}.txt",
            "\n".join(["0 0.25 0.5 0.25 0.33333333", *more]),
        )
    write(root / "data.yaml", "train: images/train\nval: images/train\nnames: [car, bus]\n")


def labelme(root, names, size=(80, 60), shape=None, **more):
    for name in names:
        shapes = [{"label": "car", "points": [[10, 20], [30, 40]], "shape_type": "rectangle"}]
        shapes[0] |= shape or {}
        content = {"version": "5", "flags": {}, "shapes": shapes, "imagePath": f"{name}.png"}
        content |= {"imageData": None, "imageWidth": size[0], "imageHeight": size[1]} | more
        write(root / f"{name}.json", json.dumps(content, ensure_ascii=False))


def cvat(root, names, size=' width="80" height="60"', inner="", head='encoding="utf-8"', ids=None):
    text = "".join(
        f'<image id="{(ids or range(9))[k]}" name="{name}.png"{size}><box label="car" xtl="10" '
        f'ytl="20" xbr="30" ybr="40">{inner}</box></image>'
        for k, name in enumerate(names)
    )
    text = f'<?xml version="1.0" {head}?><annotations><version>1.1</version>{text}</annotations>'
    write(root / "annotations.xml", text)


def csv(root, names, header="path,x1,y1,x2,y2,class", row="{}.png,10,20,30,40,car"):
    write(root / "boxes.csv", "\n".join([header, *(row.format(name) for name in names)]))


def kitti(root, names, more=()):
    row = "car 0.00 0 1.85 10 20 30 40 1.67 1.87 3.69 -16.53 2.39 58.49 1.57"
    for name in names:
        write(root / "label_2" / f"{name}.txt", "\n".join([row, *more]))


def hugging_face(root, names, label="car", **columns):
    images = [{"bytes": None, "path": f"{name}.png"} for name in names]
    one = {"bbox": [[10.0, 20.0, 20.0, 20.0]], "category": [label]}
    if more := columns.pop("more", None):
        one = {"bbox": [*one["bbox"], [1.0, 2.0, 8.0, 7.0]], "category": [label, more]}
    extra = {key: columns.pop(key) for key in ("difficult", "iscrowd") if key in columns}
    objects = [one | {k: [v] for k, v in extra.items()}] * len(names)
    columns = {k: [v] * len(names) for k, v in columns.items()}
    pq.write_table(pa.table({"image": images, "objects": objects, **columns}), root / "a.parquet")


def made(root, form, names=("a", "b"), **options):
    """Write a data set with an image and a box of each name."""
    for name in names:
        write(image_file(root, form, name), png())
    globals()[form.replace(" ", "_")](root, names, **options)
    return root


def assert_read(root, count=2, classes=("car",), **options):
    """Check that each image has the box; return the data set."""
    dataset = open_dataset(root, **options)
    assert len(dataset) == count
    assert not dataset.dropped and not dataset.size_faults
    for index in range(count):
        sample = dataset[index]
        assert sample.image.shape == (60, 80, 3)
        assert [dataset.classes[label - 1] for label in sample.labels] == list(classes)
        assert np.abs(sample.boxes_xyxy - [BOX] * len(classes)).max() < 1e-3
    return dataset


@pytest.mark.parametrize("form", FORMATS)
def test_the_plain_form(tmp_path, form):
    assert not [
        n
        for n in assert_read(made(tmp_path, form)).notes
        if "taken as x, y, w" not in n and "no box has" not in n
    ]


SIZES = {
    "labelme": [{"size": size} for size in [(None, None), ("", ""), (80.0, 60.0), ("80", "60")]],
    "cvat": [
        {"size": size}
        for size in [
            "",
            ' width="" height=""',
            ' width="80.0" height="60.0"',
        ]
    ],
    "csv": [
        {"header": "path,width,height,x1,y1,x2,y2,class", "row": f"{{}}.png,{size},10,20,30,40,car"}
        for size in ["80,60", ",", "80.0,60.0", '"80","60"']
    ],
    "hugging face": [
        {"width": width, "height": height}
        for width, height in [(80, 60), (80.0, 60.0), ("80", "60"), (None, None)]
    ],
}


@pytest.mark.parametrize(
    ("form", "options"), [(form, each) for form, found in SIZES.items() for each in found]
)
def test_sizes_in_any_spelling(tmp_path, form, options):
    assert_read(made(tmp_path, form, **options))


WRONG = {
    "labelme": {"size": (0, 0)},
    "cvat": {"size": ' width="0" height="0"'},
    "csv": {"header": "path,width,height,x1,y1,x2,y2,class", "row": "{}.png,0,0,10,20,30,40,car"},
    "hugging face": {"width": 0, "height": 0},
}


@pytest.mark.parametrize("form", WRONG)
def test_a_size_of_zero_is_named_and_drops_nothing(tmp_path, form):
    made(tmp_path, form, **WRONG[form])
    dataset = open_dataset(tmp_path)
    assert np.abs(dataset[1].boxes_xyxy - [BOX]).max() < 1e-3
    assert len(dataset.size_faults) == 2 and "states 0 x 0, the image" in dataset.size_faults[0]


@pytest.mark.parametrize(
    ("word", "difficult"),
    [("1", True), ("true", True), ("Yes", True), ("0", False), ("", False), ("Unspecified", False)],
)
@pytest.mark.parametrize("form", ["labelme", "cvat", "csv", "hugging face"])
def test_difficult_as_a_word(tmp_path, form, word, difficult):
    options = {
        "labelme": {"shape": {"flags": {"difficult": word}}},
        "cvat": {"inner": f'<attribute name="difficult">{word}</attribute>'},
        "csv": {
            "header": "path,x1,y1,x2,y2,class,difficult",
            "row": f"{{}}.png,10,20,30,40,car,{word}",
        },
        "hugging face": {"difficult": word},
    }
    dataset = assert_read(made(tmp_path, form, **options[form]))
    assert dataset[0].difficult.tolist() == [difficult]


@pytest.mark.parametrize("encoding", ["gb2312", "utf8", "UTF-8", "latin-1", "windows-1252"])
def test_encodings_that_xml_declares(tmp_path, encoding):
    made(tmp_path, "cvat", head=f'encoding="{encoding}"')
    path = tmp_path / "annotations.xml"
    word = "车" if encoding.startswith(("gb", "ut", "UT")) else "Fußgänger"
    path.write_bytes(path.read_text().replace('"car"', f'"{word}"').encode(encoding))
    assert_read(tmp_path, classes=[word])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize(
    ("form", "name"), [("yolo", "data.yaml"), ("labelme", "a.json"), ("csv", "boxes.csv")]
)
def test_encodings_that_nothing_declares(tmp_path, form, name, encoding):
    made(tmp_path, form, ["a"])
    path = tmp_path / name
    path.write_bytes(path.read_text().replace("car", "车").encode(encoding))
    if encoding != "gb18030":
        assert_read(tmp_path, 1, ["车"])
        return
    with pytest.raises(ValueError, match=rf"{name}.*not in.*convert") as error:
        open_dataset(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_names_with_accents_as_another_system_writes_them(tmp_path, form, on_disk):
    other = "NFD" if on_disk == "NFC" else "NFC"
    name = unicodedata.normalize(on_disk, "café")
    made(tmp_path, form, [name])
    image = image_file(tmp_path, form, name)
    image.rename(image.with_name(unicodedata.normalize(other, image.name)))
    assert_read(tmp_path, 1)


@pytest.mark.parametrize("form", FORMATS)
def test_linked_images(tmp_path, form):
    """DVC, git-annex and snapshots of the hub link to files that are named by their hash."""
    root = made(tmp_path / "data", form)
    for name in "ab":
        path = image_file(root, form, name)
        blob = tmp_path / "cache" / f"{ord(name):032x}"
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    assert_read(root)


@pytest.mark.parametrize("form", FORMATS)
def test_a_linked_folder_of_annotations(tmp_path, form):
    made(tmp_path / "real", form)
    (tmp_path / "link").symlink_to("real")
    assert_read(tmp_path / "link")
    snapshot = tmp_path / "snapshot"
    for place, _, names in os.walk(tmp_path / "real"):
        for name in names:
            path = snapshot / os.path.relpath(place, tmp_path / "real") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.join(place, name))
    assert_read(snapshot)


def test_links_that_are_not_fetched(tmp_path):
    """git-annex leaves links to nothing for files that are elsewhere."""
    for form in FORMATS:
        root = made(tmp_path / form.replace(" ", "_"), form)
        path = image_file(root, form, "b")
        path.unlink()
        path.symlink_to("../.git/annex/objects/b.png")
        faults = []
        dataset = open_dataset(root, faults=faults)
        assert len(dataset) == 1 and len(faults) == 1
        assert "b.png" in faults[0] or "b.parquet" in faults[0], faults


def test_ids_as_strings(tmp_path):
    assert_read(made(tmp_path / "cvat", "cvat", ids=["first", ""]))
    for k, label in enumerate(["3", 3, 3.0]):
        root = tmp_path / str(k)
        root.mkdir()
        assert_read(made(root, "hugging face", label=label), classes=["3"])


def test_lists_of_kitti_with_endings(tmp_path):
    made(tmp_path, "kitti", ["a", "b.c", "d.e.f"])
    for line in ("b.c", "b.c.png", "image_2/b.c.png", "training/image_2/b.c.png", "b.c.txt"):
        write(tmp_path / "ImageSets" / "train.txt", f"{line}\n")
        assert assert_read(tmp_path, 1).image_ids == ["b.c"]


def test_an_annotation_of_another_name(tmp_path):
    made(tmp_path, "labelme", ["a"])
    (tmp_path / "a.json").rename(tmp_path / "annotation-7.json")
    assert_read(tmp_path, 1)


@pytest.mark.parametrize("form", ["yolo", "labelme", "cvat", "csv", "hugging face"])
def test_annotations_beside_the_images(tmp_path, form):
    made(tmp_path, form)
    if form in ("yolo", "cvat"):
        for name in "ab":
            image_file(tmp_path, form, name).rename(tmp_path / f"{name}.png")
            if form == "yolo":
                (tmp_path / "labels" / "train" / f"{name}.txt").rename(tmp_path / f"{name}.txt")
        shutil.rmtree(tmp_path / "images")
    if form == "yolo":
        shutil.rmtree(tmp_path / "labels")
        (tmp_path / "data.yaml").unlink()
        write(tmp_path / "classes.txt", "car\nbus\n")
    assert_read(tmp_path)


@pytest.mark.parametrize("header", [True, False])
def test_folders_of_roboflow(tmp_path, header):
    for split in ("train", "valid", "test"):
        folder = tmp_path / split
        names = [f"{split}_jpg.rf.{k}" for k in (1, 2)]
        if header:
            row = "{}.png,80,60,car,10,20,30,40"
            made(
                folder,
                "csv",
                names,
                header="filename,width,height,class,xmin,ymin,xmax,ymax",
                row=row,
            )
        else:
            made(folder, "csv", names, header=f"{names[0]}.png,10,20,30,40,car")
            lines = [f"{name}.png,10,20,30,40,car" for name in names]
            write(folder / "boxes.csv", "\n".join(lines))
            write(folder / "_classes.csv", "car,0\n")
        (folder / "boxes.csv").rename(folder / "_annotations.csv")
    write(tmp_path / "README.roboflow.txt", "Exported by Roboflow")
    assert assert_read(tmp_path).split == "train"
    assert assert_read(tmp_path, train=False).split == "test"
    assert assert_read(tmp_path, split="valid").image_ids[0] == "valid/valid_jpg.rf.1"
    assert_read(tmp_path, 6, split="all")


BAD = {
    "yolo": (lambda root: yolo(root, ["b"], ["0 0.5 half 0.2 0.2"]), "b.txt:2: "),
    "labelme": (lambda root: labelme(root, ["b"], shape={"points": [[1, "x"]]}), "b.json: "),
    "cvat": (
        lambda root: cvat(root, ["a", "b"], inner='</box><box label="car" xtl="1">'),
        "annotations.xml:1: ",
    ),
    "csv": (
        lambda root: csv(root, ["a", "b"], row="{0}.png,10,20,30,40,car\n{0}.png,1,x,9,9,car"),
        "boxes.csv:3: ",
    ),
    "kitti": (lambda root: kitti(root, ["b"], ["car 0 0 1 1 x 9 9 1 1 1 1 1 1 1"]), "b.txt:2: "),
    "hugging face": (lambda root: hugging_face(root, ["a", "b"], more=" "), "row 0: objects[1]: "),
}


@pytest.mark.parametrize("form", FORMATS)
def test_one_bad_row_costs_itself_only(tmp_path, form):
    made(tmp_path, form)
    change, where = BAD[form]
    change(tmp_path)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 2 and where in dataset.dropped[0]
    assert np.abs(dataset[0].boxes_xyxy - [BOX]).max() < 1e-3
    assert len(dataset[1].labels) == (0 if form == "labelme" else 1)


@pytest.mark.parametrize("form", FORMATS)
def test_some_of_the_classes(tmp_path, form):
    made(tmp_path, form)
    other = {
        "yolo": lambda: yolo(tmp_path, ["b"], ["1 0.5 0.5 0.2 0.2"]),
        "labelme": lambda: labelme(tmp_path, ["b"], shape={"label": "bus"}),
        "csv": lambda: csv(
            tmp_path, ["a", "b"], row="{0}.png,10,20,30,40,car\n{0}.png,1,2,9,9,bus"
        ),
        "kitti": lambda: kitti(tmp_path, ["b"], ["bus 0 0 1 1 2 9 9 1 1 1 1 1 1 1"]),
        "cvat": lambda: write(
            tmp_path / "annotations.xml",
            (tmp_path / "annotations.xml").read_text().replace('label="car"', 'label="bus"', 1),
        ),
        "hugging face": lambda: hugging_face(tmp_path, ["a", "b"], more="bus"),
    }
    other[form]()
    dataset = open_dataset(tmp_path, classes=["car"])
    assert dataset.classes == ["car"] and len(dataset) == 2
    assert any("of classes that were not asked for left out: bus" in note for note in dataset.notes)
    with pytest.raises(ValueError, match=r"none of the classes lorry; it has (bus, )?car"):
        open_dataset(tmp_path, classes=["lorry"])


@pytest.mark.parametrize("form", FORMATS)
def test_files_that_macos_leaves(tmp_path, form):
    made(tmp_path, form)
    double = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \xff\xfe"
    for place, _, names in list(os.walk(tmp_path)):
        for name in names:
            path = os.path.join(place, f"._{name}")
            with open(path, "wb") as file:
                file.write(double)
            inner = os.path.relpath(place, tmp_path)
            write(tmp_path / "__MACOSX" / inner / f"._{name}", double)
        write(tmp_path / os.path.relpath(place, tmp_path) / ".DS_Store", double)
    dataset = assert_read(tmp_path)
    assert "._" not in "".join(dataset.notes)
