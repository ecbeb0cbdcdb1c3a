"""The formats that `detect` writes, read back by other readers; what it replaces and refuses."""

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_detector import GREEN, GREY, RED, Quadrants, picture, save

from mdssd.data import open_dataset
from mdssd.detection import tables
from mdssd.detection.coco_results import images_layout, results_layout
from mdssd.detection.detector import Detector
from mdssd.detection.files import detect
from mdssd.detection.image_files import geojson_text, yolo_text
from mdssd.system.files import AtomicFiles

ALL = ("json", "csv", "jsonl", "coco", "yolo", "geojson")


@pytest.fixture
def detector():
    return Detector(Quadrants(), classes=["red", "green"], score_threshold=0.7)


@pytest.fixture
def photos(tmp_path):
    """a: nothing; b: red above left, green below right; deeper/b: red everywhere."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    save(folder / "a.png", picture([GREY] * 4, 33, 47))
    save(folder / "b.png", picture([RED, GREY, GREY, GREEN]))
    save(folder / "deeper" / "b.png", picture([RED] * 4))
    return folder


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def run(detector, sources, out, formats, **options):
    return detect(*(detector, sources, out), formats=formats, draw=False, progress=False, **options)


def test_every_format_holds_the_same_detections(detector, photos, tmp_path):
    out = tmp_path / "out"
    report = run(detector, [photos], out, ALL, recursive=True)
    assert tree(out) == [
        "coco_images.json",
        "coco_results.json",
        "detections.csv",
        "detections.json",
        "detections.jsonl",
        "geojson/a.geojson",
        "geojson/b.geojson",
        "geojson/deeper/b.geojson",
        "labels/a.txt",
        "labels/b.txt",
        "labels/classes.txt",
        "labels/deeper/b.txt",
    ]
    assert {path.name for path in report.tables} == {
        *("detections.json", "detections.csv", "detections.jsonl"),
        *("coco_results.json", "labels", "geojson"),
    }
    assert [len(one["detections"]) for one in report.images] == [0, 2, 4]
    assert json.loads((out / "detections.json").read_text()) == report.images
    lines = (out / "detections.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == report.images
    with open(out / "detections.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 6


def test_yolo_labels(detector, photos, tmp_path):
    out = tmp_path / "out"
    run(detector, [photos], out, ["yolo"])
    labels = out / "labels"
    assert (labels / "a.txt").read_bytes() == b""  # looked at, and without objects
    assert (labels / "classes.txt").read_text() == "red\ngreen\n"
    rows = sorted(line.split() for line in (labels / "b.txt").read_text().splitlines())
    assert [row[0] for row in rows] == ["0", "1"]
    expected = [[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]
    assert [[float(value) for value in row[1:]] for row in rows] == expected
    run(detector, [photos / "b.png"], tmp_path / "scored", ["yolo"], yolo_scores=True)
    rows = [line.split() for line in (tmp_path / "scored/labels/b.txt").read_text().splitlines()]
    assert all(len(row) == 6 and 0.7 < float(row[5]) <= 1 for row in rows)


def test_yolo_labels_keep_a_thousandth_of_a_pixel():
    box = [1234.567, 0.001, 19999.999, 12345.678]
    found = {"label": 1, "score": 1.0, "box_xyxy": box}
    text = yolo_text({"width": 20000, "height": 15000, "detections": [found]}, scores=False)
    _, cx, cy, w, h = map(float, text.split())
    back = [
        *((cx - w / 2) * 20000, (cy - h / 2) * 15000),
        *((cx + w / 2) * 20000, (cy + h / 2) * 15000),
    ]
    assert back == pytest.approx(box, abs=1e-3)


def test_coco_results_are_read_by_pycocotools(detector, photos, tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    out = tmp_path / "out"
    report = run(detector, [photos], out, ["coco"])
    assert f"images and classes in {out / 'coco_images.json'}" in report.table().splitlines()
    with contextlib.redirect_stdout(None):
        images = coco.COCO(str(out / "coco_images.json"))
        results = images.loadRes(str(out / "coco_results.json"))
    assert {k: v["file_name"] for k, v in images.imgs.items()} == {
        1: str(photos / "a.png"),
        2: str(photos / "b.png"),
    }
    assert {k: v["name"] for k, v in images.cats.items()} == {1: "red", 2: "green"}
    found = sorted(results.anns.values(), key=lambda row: row["category_id"])
    assert [(f["image_id"], f["category_id"], f["bbox"]) for f in found] == [
        (2, 1, [0, 0, 30, 20]),
        (2, 2, [30, 20, 30, 20]),
    ]
    assert all(0.7 < f["score"] <= 1 for f in found)


def coco_file(path, names, categories=("green", "red")):
    """Write a COCO file whose numbers nobody would guess."""
    images = [{"id": 100 + k, "file_name": name} for k, name in enumerate(names)]
    classes = [{"id": 7 * k, "name": name} for k, name in enumerate(categories, 1)]
    text = json.dumps({"images": images, "annotations": [], "categories": classes})
    path.write_text(text)
    return path


def test_coco_results_take_the_numbers_of_a_coco_file(detector, photos, tmp_path, capsys):
    coco = coco_file(tmp_path / "c.json", ["deeper/b.png", "b.png", ".\\photos\\a.png", "x.png"])
    out = tmp_path / "out"
    run(detector, [photos], out, ["coco"], recursive=True, coco_images=coco)
    assert tree(out) == ["coco_results.json"]
    run(detector, [photos], tmp_path / "own", ["coco"])
    detect(detector, [photos], tmp_path / "own", formats=["coco"], draw=False, coco_images=coco)
    said = f"{tmp_path / 'own' / 'coco_images.json'} of an earlier run stays as it is"
    assert said in capsys.readouterr().out
    rows = json.loads((out / "coco_results.json").read_text())
    assert sorted((row["image_id"], row["category_id"]) for row in rows) == [
        *[(100, 14)] * 4,  # red in deeper/b.png
        *[(101, 7), (101, 14)],
    ]


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["b.png"], ("red", "green"), "no image, or several, of the name .*a.png; its first image"),
        (["a.png", "b.png"], ("red",), "no category, or several, of the name green; it has red"),
        (
            ["a.png", "b.png", "b.png"],
            ("red", "green"),
            "no image, or several, of the name .*b.png",
        ),
    ],
)
def test_coco_files_without_a_number_are_refused(
    detector, photos, tmp_path, names, classes, message
):
    coco = coco_file(tmp_path / "c.json", names, classes)
    with pytest.raises(ValueError, match=f"coco_images: .*c.json has {message}"):
        run(detector, [photos], tmp_path / "out", ["coco"], coco_images=coco)
    assert not (tmp_path / "out").exists()


def test_a_coco_file_with_one_image_for_two_is_refused(detector, photos, tmp_path):
    coco = coco_file(tmp_path / "c.json", ["a.png", "b.png"])
    with pytest.raises(ValueError, match="has one image for .*photos/b.png and .*deeper/b.png"):
        run(detector, [photos], tmp_path / "out", ["coco"], coco_images=coco, recursive=True)
    coco.write_text('{"images": [')
    with pytest.raises(ValueError, match="coco_images: .*c.json: expected a COCO file"):
        run(detector, [photos], tmp_path / "out", ["coco"], coco_images=coco)
    with pytest.raises(ValueError, match="coco_images: .*gone.json: No such file"):
        run(detector, [photos], tmp_path / "out", ["coco"], coco_images=tmp_path / "gone.json")


def test_geojson_is_closed_rings_in_pixels(detector, photos, tmp_path):
    out = tmp_path / "out"
    run(detector, [photos], out, ["geojson"])
    assert json.loads((out / "geojson/a.geojson").read_text())["features"] == []
    stored = json.loads((out / "geojson/b.geojson").read_text())
    assert stored["type"] == "FeatureCollection"
    assert stored["image"] == {"file": str(photos / "b.png"), "width": 60, "height": 40}
    features = {one["properties"]["class"]: one for one in stored["features"]}
    assert features["red"]["type"] == "Feature"
    assert features["red"]["geometry"] == {
        "type": "Polygon",
        "coordinates": [[[0, 0], [30, 0], [30, 20], [0, 20], [0, 0]]],
    }
    properties = features["green"]["properties"]
    score = properties.pop("score")
    assert 0.7 < score <= 1
    assert properties == {
        "measurements": {"score": score},
        "objectType": "annotation",
        "classification": {"name": "green"},
        "file": str(photos / "b.png"),
        "class": "green",
        "label": 2,
    }


def test_names_that_are_no_utf_8_and_no_ascii(detector, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    data = save(tmp_path / "a.png", picture([RED, GREY, GREY, GREEN])).read_bytes()
    names = [b"caf\xe9.png", "Übersicht 1.png".encode()]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(data)
    out = tmp_path / "out"
    for _ in range(2):
        report = run(detector, [folder], out, ALL, overwrite=True)
        assert report.image_count == 2
    assert (out / "labels" / "Übersicht 1.txt").is_file()
    assert (out / "geojson" / os.fsdecode(b"caf\xe9.geojson")).is_file()
    stored = json.loads((out / "coco_images.json").read_text())["images"]
    assert {os.fsencode(os.path.basename(one["file_name"])) for one in stored} == set(names)


def test_tables_without_detections_are_whole_and_recognised(detector, photos, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        run(detector, [photos / "a.png"], out, ("json", "csv", "jsonl", "coco", "geojson"))
        assert json.loads((out / "coco_results.json").read_text()) == []
        assert len(json.loads((out / "coco_images.json").read_text())["images"]) == 1
        (line,) = (out / "detections.jsonl").read_text().splitlines()
        assert json.loads(line)["detections"] == []


@pytest.mark.parametrize(
    "name",
    ["detections.jsonl", "coco_results.json", "coco_images.json", "geojson/b.geojson"],
)
@pytest.mark.parametrize("content", [b"", b"[]", b'{"file": "mine"}\n', b'{"type": "Feature'])
def test_files_of_somebody_else_are_not_replaced(detector, photos, tmp_path, name, content):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(content)
    formats = ("jsonl", "coco", "geojson")
    with pytest.raises(ValueError, match=f"{name} exists and is not a result of `mdssd detect`"):
        run(detector, [photos], out, formats)
    assert tree(out) == [name] and (out / name).read_bytes() == content
    run(detector, [photos], out, formats, overwrite=True)
    assert (out / name).read_bytes() != content
    run(detector, [photos], out, formats)


def test_label_files_are_replaced_on_request_only(detector, photos, tmp_path, capsys):
    out = tmp_path / "out"
    run(detector, [photos], out, ["yolo"])
    (out / "labels" / "b.txt").write_text("")  # corrected by hand: there is nothing
    with pytest.raises(ValueError, match=r"a\.txt exists and is a label file, which may have been"):
        run(detector, [photos], out, ["yolo"])
    assert (out / "labels" / "b.txt").read_text() == ""
    detect(detector, [photos / "b.png"], out, formats=["yolo"], draw=False, overwrite=True)
    said = capsys.readouterr().out
    assert f"{out}: replacing 1 label file of an earlier run" in said
    assert f"{out / 'labels'}: 1 file of other images stays as it is" in said
    assert len((out / "labels" / "b.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("listed", ["green\nred\n", None])
def test_labels_of_other_classes_are_not_mixed_with(detector, photos, tmp_path, listed):
    labels = tmp_path / "out" / "labels"
    labels.mkdir(parents=True)
    (labels / "other.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    if listed:
        (labels / "classes.txt").write_text(listed)
    before = tree(labels)
    with pytest.raises(ValueError, match=r"labels holds files, and no classes\.txt with"):
        run(detector, [photos], tmp_path / "out", ["yolo"], overwrite=True)
    assert tree(labels) == before


@pytest.mark.parametrize("recursive", [False, True])
def test_labels_beside_their_images_are_a_yolo_data_set(detector, photos, tmp_path, recursive):
    data = tmp_path / "data"
    data.mkdir()
    photos.rename(data / "images")
    run(detector, [data / "images"], data, ["yolo"], recursive=recursive)
    text = (data / "data.yaml").read_text()
    assert text.endswith("\ntrain: images\nnames:\n  0: red\n  1: green\n")
    dataset = open_dataset(data, faults=[])
    assert (dataset.classes, dataset.split) == (["red", "green"], "train")
    boxes = {name: len(dataset.annotation(k).labels) for k, name in enumerate(dataset.image_ids)}
    other = {"images/deeper/b": 4} if recursive else {"images/deeper/b": 0}
    assert boxes == {"images/a": 0, "images/b": 2, **other}
    # Nothing that was added by hand is lost.
    (data / "data.yaml").write_text(text + "val: images\n")
    run(detector, [data / "images"], data, ["yolo"], recursive=recursive, overwrite=True)
    assert (data / "data.yaml").read_text() == text + "val: images\n"


def test_labels_of_images_elsewhere_have_no_description(detector, photos, tmp_path):
    """Tools would look for labels beside these images."""
    data = tmp_path / "data"
    (data / "images" / "train").mkdir(parents=True)
    save(data / "images" / "train" / "c.png", picture([RED] * 4))
    for sources in ([photos], [data / "images" / "train"]):
        run(detector, sources, data, ["yolo"])
        assert not (data / "data.yaml").exists()
        shutil.rmtree(data / "labels")


def test_labels_are_not_added_to_a_data_set_of_other_classes(detector, photos, tmp_path):
    out = tmp_path / "out"
    (out / "labels").mkdir(parents=True)
    (out / "labels" / "other.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (out / "roads.yaml").write_text("path: x\nnames: [green, red]\n")
    reason = "roads.yaml has the classes green, red, and the detector red, green, so the numbers"
    with pytest.raises(ValueError, match=reason):
        run(detector, [photos], out, ["yolo"])
    (out / "roads.yaml").write_text("path: x\nnames: [red, green\n")
    with pytest.raises(ValueError, match="roads.yaml:.*; labels would belong to it"):
        run(detector, [photos], out, ["yolo"])
    assert tree(out) == ["labels/other.txt", "roads.yaml"]
    (out / "roads.yaml").write_text("path: x\nnames: {0: red, 1: green}\n")
    run(detector, [photos], out, ["yolo"])
    assert len(tree(out / "labels")) == 4


def test_label_files_of_equal_names_are_numbered_and_named(detector, photos, tmp_path):
    save(photos / "b.jpg", picture([RED] * 4))
    save(photos / "classes.png", picture([RED] * 4))
    report = run(detector, [photos], tmp_path / "out", ["yolo"])
    assert tree(tmp_path / "out/labels") == [
        *("a.txt", "b-2.txt", "b.txt", "classes-2.txt", "classes.txt")
    ]
    assert f"{photos / 'b.png'} (labels/b-2.txt)" in report.left_out[-1]
    assert f"{photos / 'classes.png'} (labels/classes-2.txt)" in report.left_out[-1]
    assert (tmp_path / "out/labels/classes.txt").read_text() == "red\ngreen\n"


def test_a_class_that_is_no_line_has_no_yolo_labels(photos, tmp_path):
    detector = Detector(Quadrants(), classes=["red", "gr\neen"])
    with pytest.raises(ValueError, match=r"a line of classes\.txt holds one class, and 'gr\\neen'"):
        run(detector, [photos], tmp_path / "out", ["yolo"])
    with pytest.raises(ValueError, match="yolo_scores: is for the format 'yolo'"):
        run(detector, [photos], tmp_path / "out", ["json"], yolo_scores=True)
    with pytest.raises(ValueError, match="coco_images: is for the format 'coco'"):
        run(detector, [photos], tmp_path / "out", ["json"], coco_images="a.json")


@pytest.mark.parametrize("suffix", [".txt", ".geojson", ".jsonl"])
def test_on_a_full_disk_all_formats_hold_the_same_images(
    detector, photos, tmp_path, monkeypatch, suffix
):
    """The disk is full when the second image comes, for one of the formats."""
    calls = []

    def full(files, path, data):
        if path.suffix == suffix:
            calls.append(path)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(files, path, data)

    def write_at(file, data, position):
        if suffix == ".jsonl" and file.name.endswith(".mdssd.tmp") and ".jsonl" in file.name:
            calls.append(position)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        write(file, data, position)

    write, real = tables._write_at, AtomicFiles.write
    monkeypatch.setattr(tables, "_write_at", write_at)
    monkeypatch.setattr(AtomicFiles, "write", full)
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space left on device; 1 of 3 images done; boxes in"):
        run(detector, [photos], out, ALL, recursive=True)
    assert tree(out) == [
        *("coco_images.json", "coco_results.json"),
        *("detections.csv", "detections.json", "detections.jsonl"),
        *("geojson/a.geojson", "labels/a.txt", "labels/classes.txt"),
    ]
    assert len(json.loads((out / "detections.json").read_text())) == 1
    assert len(json.loads((out / "coco_images.json").read_text())["images"]) == 1
    assert json.loads((out / "coco_results.json").read_text()) == []
    assert len((out / "detections.jsonl").read_text().splitlines()) == 1


def test_a_next_run_removes_the_temporary_files_of_a_killed_one(detector, photos, tmp_path):
    out = tmp_path / "out"
    left = [
        ".d.jsonl.42.mdssd.tmp",
        "labels/deeper/.b.txt.42.mdssd.tmp",
        "deeper/.b.jpg.4.mdssd.tmp",
    ]
    for name in left:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("half")
    (out / "labels" / "classes.txt").write_text("red\ngreen\n")
    run(detector, [photos], out, ["jsonl"], recursive=True)
    assert tree(out) == ["detections.jsonl", "labels/classes.txt"]


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
EDGE = st.integers(0, 4_000_000).map(lambda value: value / 1000)


@st.composite
def entries(draw):
    """An image as the tables get it, with boxes inside."""
    xs, ys = (
        draw(st.lists(EDGE, min_size=2, unique=True)),
        draw(st.lists(EDGE, min_size=2, unique=True)),
    )
    pairs = zip(
        zip(xs[::2], xs[1::2], strict=False), zip(ys[::2], ys[1::2], strict=False), strict=False
    )
    found = [
        {
            "class": draw(NAMES),
            "label": draw(st.integers(1, 90)),
            "score": draw(st.integers(0, 10**6)) / 10**6,
            "box_xyxy": [min(x), min(y), max(x), max(y)],
        }
        for x, y in pairs
    ]
    return {"file": draw(NAMES), "width": 4000, "height": 4000, "detections": found}


@settings(max_examples=40, deadline=None)
@given(images=st.lists(entries(), min_size=1, max_size=4))
def test_all_formats_give_back_any_boxes(images):
    layouts = [tables.JSON, tables.JSONL, tables.CSV, results_layout(None), images_layout(["a"])]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, str(k)) for k in range(len(layouts))]
        for path, layout in zip(paths, layouts, strict=True):
            with tables.open_table(path, layout, []) as table:
                for image in images:
                    table.add(image)
                table.undo()
                table.add(images[-1])
        texts = [path.read_bytes().decode() for path in paths]
    assert json.loads(texts[0]) == images
    assert [json.loads(line) for line in texts[1].splitlines()] == images
    every = [
        (k, image, found) for k, image in enumerate(images, 1) for found in image["detections"]
    ]
    rows = list(csv.reader(io.StringIO(texts[2], newline="")))[1:]
    assert [[float(value) for value in row[6:]] for row in rows] == [
        f["box_xyxy"] for *_, f in every
    ]
    assert [row[0].removeprefix("'") for row in rows] == [
        image["file"].removeprefix("'") for _, image, _ in every
    ]
    for row, (k, _, found) in zip(json.loads(texts[3]), every, strict=True):
        x, y, w, h = row["bbox"]
        assert (row["image_id"], row["category_id"]) == (k, found["label"])
        assert [x, y, x + w, y + h] == pytest.approx(found["box_xyxy"], abs=1e-3)
    listed = json.loads(texts[4])["images"]
    assert [one["file_name"] for one in listed] == [image["file"] for image in images]
    for image in images:
        lines = yolo_text(image, scores=True).splitlines()
        for line, found in zip(lines, image["detections"], strict=True):
            label, cx, cy, w, h, score = map(float, line.split())
            box = [v * 4000 for v in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)]
            assert (label + 1, score) == (found["label"], found["score"])
            assert box == pytest.approx(found["box_xyxy"], abs=1e-3)
        for one, found in zip(
            json.loads(geojson_text(image))["features"], image["detections"], strict=True
        ):
            (ring,) = one["geometry"]["coordinates"]
            assert ring[0] == ring[4] and [*ring[0], *ring[2]] == found["box_xyxy"]


def test_geojson_of_a_name_with_quotes_is_recognised(detector, photos, tmp_path):
    odd = save(photos / 'a "b" \\ c.png', picture([RED] * 4))
    for _ in range(2):
        run(detector, [odd], tmp_path / "out", ("jsonl", "geojson", "coco"))
    text = geojson_text({"file": str(odd), "width": 3, "height": 2, "detections": []})
    assert json.loads(text)["image"]["file"] == str(odd)
