"""`mdssd data convert`: its lines, what it refuses, and what it leaves when it is ended."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from mdssd.cli import main
from mdssd.data import SyntheticScenes, open_dataset, write_voc


@pytest.fixture
def cells(tmp_path):
    """A VOC folder with two splits, a difficult box and a box without area."""
    root = write_voc(SyntheticScenes(3, image_size=96), tmp_path / "cells", "train")
    (root / "ImageSets/Main/train.txt").write_text("scene_000000\nscene_000001\n")
    (root / "ImageSets/Main/val.txt").write_text("scene_000002\n")
    path = root / "Annotations/scene_000000.xml"
    text = path.read_text().replace("<difficult>0</difficult>", "<difficult>1</difficult>", 1)
    flat = "<object><name>disc</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax>"
    flat += "<ymax>9</ymax></bndbox></object></annotation>"
    path.write_text(text.replace("</annotation>", flat))
    return root


def convert(*words):
    return main(["data", "convert", *map(str, words)])


def test_it_prints_what_was_read_left_out_and_lost(cells, tmp_path, capsys):
    boxes = sum(len(sample.labels) for sample in open_dataset(cells, "all"))
    assert convert(cells, "--to", "coco", "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data: VOC XML, split all"
    flat = f"{cells}/Annotations/scene_000000.xml: object[2]: box (5, 5, 5, 9) has no area"
    assert lines[1].startswith(f"cells all: 1 of {boxes + 1} boxes left out ({flat})")
    assert lines[2].startswith('1 box marked difficult: kept as "difficult": 1, which COCO')
    assert lines[3] == f"written: {tmp_path / 'out'}, 3 images, {boxes} boxes of cells all"
    assert lines[4] == f"next: mdssd data check {tmp_path / 'out'}"
    content = json.loads((tmp_path / "out/annotations/instances_val.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["scene_000002.png"]


def test_crowds_that_yolo_cannot_hold_are_not_counted(cells, tmp_path, capsys):
    assert convert(cells, "--to", "coco", "--out", tmp_path / "coco") == 0
    boxes = sum(len(sample.labels) for sample in open_dataset(cells, "all"))
    path = tmp_path / "coco/annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert convert(tmp_path / "coco", "--to", "yolo", "--out", tmp_path / "out") == 0
    assert f"3 images, {boxes - 1} boxes of coco all" in capsys.readouterr().out
    written = (tmp_path / "out/labels").rglob("*.txt")
    assert sum(len(path.read_text().splitlines()) for path in written) == boxes - 1


def test_a_choice_of_split_and_classes(cells, tmp_path, capsys):
    words = ("--split", "val", "--classes", "triangle,cross", "--link")
    assert convert(cells, "--to", "coco", "--out", tmp_path / "out", *words) == 0
    assert os.listdir(tmp_path / "out/annotations") == ["instances_val.json"]
    assert (tmp_path / "out/images/scene_000002.png").is_symlink()
    dataset = open_dataset(tmp_path / "out/annotations/instances_val.json")
    assert dataset.classes == ["triangle", "cross"]


@pytest.mark.parametrize("words, done", [((), "copied"), (("--link",), "linked")])
def test_images_in_a_rare_format_are_said_to_be_copied_or_linked(tmp_path, capsys, words, done):
    source = tmp_path / "source"
    source.mkdir()
    cv2.imwrite(str(source / "a.pgm"), np.zeros((40, 40), np.uint8))
    (source / "a.csv").write_text("a.pgm,1,2,30,40,car\n")
    for form in ("yolo", "voc"):
        assert convert(source, "--to", form, "--out", tmp_path / form, *words) == 0
        assert f"in the format PPM: {done}, but " in capsys.readouterr().out


def test_nothing_of_the_source_changes(cells, tmp_path):
    before = {path: path.read_bytes() for path in cells.rglob("*") if path.is_file()}
    for form in ("yolo", "coco", "voc"):
        assert convert(cells, "--to", form, "--out", tmp_path / form) == 0
    assert before == {path: path.read_bytes() for path in cells.rglob("*") if path.is_file()}


def test_generated_scenes(tmp_path):
    assert convert("--scenes", "2", "--to", "voc", "--out", tmp_path / "out") == 0
    assert len(open_dataset(tmp_path / "out")) == 2


@pytest.mark.parametrize("out", ["", "yolo", "JPEGImages/yolo"])
def test_the_source_is_no_place_to_write_to(cells, out, capsys):
    assert convert(cells, "--to", "yolo", "--out", cells / out) == 2
    assert "--out: expected a folder outside" in capsys.readouterr().err
    assert not (cells / "yolo").exists()


def test_a_folder_with_other_things_is_refused(cells, capsys):
    """The folder above the source holds the source."""
    assert convert(cells, "--to", "yolo", "--out", cells.parent) == 2
    error = capsys.readouterr().err
    assert "exists and is not an empty folder; choose another, or empty it" in error


def test_a_source_with_a_fault_is_refused_unless_that_is_allowed(cells, tmp_path, capsys):
    (cells / "JPEGImages/scene_000001.png").unlink()
    words = (cells, "--to", "coco", "--out", tmp_path / "out")
    assert convert(*words) == 2
    error = capsys.readouterr().err
    assert "scene_000001: no such image" in error and "--allow-faults" in error
    assert not (tmp_path / "out").exists()
    assert convert(*words, "--allow-faults") == 0
    assert "1 file left out (" in capsys.readouterr().out
    # The splits stay when images are left out.
    assert len(os.listdir(tmp_path / "out/annotations")) == 2


@pytest.mark.parametrize("link", [(), ("--link",)])
def test_a_damaged_image_is_a_fault_and_is_not_written(cells, tmp_path, capsys, link):
    path = cells / "JPEGImages/scene_000001.png"
    path.write_bytes(path.read_bytes()[:-20])
    words = (cells, "--to", "yolo", "--out", tmp_path / "out", *link)
    assert convert(*words) == 2
    error = capsys.readouterr().err
    assert f"{path}: " in error and "truncated" in error and "--allow-faults" in error
    assert not (tmp_path / "out").exists()
    assert convert(*words, "--allow-faults") == 0
    assert f"1 file left out ({path}: " in capsys.readouterr().out
    written = sorted(each.stem for each in tmp_path.glob("out/*/*/scene*"))
    assert written == ["scene_000000", "scene_000000", "scene_000002", "scene_000002"]


def test_a_full_disk_is_one_line(cells, tmp_path, capsys, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", source, None, target)

    monkeypatch.setattr("shutil.copyfile", full)
    assert convert(cells, "--to", "coco", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mdssd: error: {tmp_path / 'out'}: cannot be written, the disk is")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_ended_program_leaves_nothing_that_looks_whole(number, tmp_path):
    source = tmp_path / "many"
    images, annotations = source / "JPEGImages", source / "Annotations"
    images.mkdir(parents=True)
    annotations.mkdir()
    data = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    for k in range(400):
        (images / f"{k}.png").write_bytes(data)
        (annotations / f"{k}.xml").write_text(
            "<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
            "<ymax>9</ymax></bndbox></object></annotation>"
        )
    out = tmp_path / "out"
    program = (
        "import shutil, sys, time\n"
        "copy = shutil.copyfile\n"
        "def slow(*words):\n"
        "    time.sleep(0.01)\n"
        "    return copy(*words)\n"
        "shutil.copyfile = slow\n"
        "from mdssd.cli import main\n"
        "sys.exit(main())\n"
    )
    words = ["data", "convert", str(source), "--to", "voc", "--out", str(out)]
    with subprocess.Popen([sys.executable, "-c", program, *words]) as process:
        half = out / ".mdssd-convert.tmp/content/JPEGImages"
        while process.poll() is None and not (half.is_dir() and len(os.listdir(half)) > 5):
            time.sleep(0.02)
        process.send_signal(number)
    status = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    assert process.returncode == status
    if number == signal.SIGKILL:
        assert os.listdir(out) == [".mdssd-convert.tmp"]
    else:
        assert not out.exists()
    assert convert(*words[2:]) == 0
    assert sorted(os.listdir(out)) == ["Annotations", "ImageSets", "JPEGImages"]
    assert len(open_dataset(out)) == 400
