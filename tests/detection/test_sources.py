"""What `detect` reads: folders below folders, lists, standard input."""

import errno
import io
import os
import sys

import pytest
from PIL import Image
from test_detector import GREEN, GREY, RED, Quadrants, files_in, picture, save

from mdssd import cli
from mdssd.detection.detector import Detector
from mdssd.detection.files import detect
from mdssd.detection.sources import find_images


@pytest.fixture
def detector():
    return Detector(Quadrants(), classes=["red", "green"], score_threshold=0.7)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for below in ("", "x", "x/y", ".hidden"):
        (folder / below).mkdir(parents=True, exist_ok=True)
        save(folder / below / "a.png", picture([RED, GREY, GREY, GREEN]))
    (folder / "x" / "notes.txt").write_text("no picture")
    return folder


def piped(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_recursive_search(photos):
    found = find_images([photos], recursive=True)
    assert found.files == {
        str(photos / "a.png"): "",
        str(photos / "x/a.png"): "x",
        str(photos / "x/y/a.png"): "x/y",
    }
    assert found.left_out == [f"{photos}: left out 1 hidden file, 1 other file"]
    assert not found.failed


def test_results_have_the_folders_of_the_images(detector, photos, tmp_path):
    out = tmp_path / "out"
    report = detect(detector, [photos], out, recursive=True, formats=["yolo"], progress=False)
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    assert names == [
        *("a.jpg", "labels/a.txt", "labels/classes.txt", "labels/x/a.txt", "labels/x/y/a.txt"),
        *("x/a.jpg", "x/y/a.jpg"),
    ]
    assert f"3 pictures in {out}\n" in report.table()


def test_a_recursive_search_leaves_out_its_results(detector, photos):
    out = photos / "found"
    for _ in range(2):
        report = detect(detector, [photos], out, recursive=True, progress=False)
        assert report.image_count == 3
    assert f"{out}: left out, because the results are written there" in report.left_out


def test_a_picture_never_replaces_an_image_of_the_same_folder(detector, tmp_path):
    folder = tmp_path / "photos" / "x"
    folder.mkdir(parents=True)
    image = save(folder / "a.jpg", picture([RED] * 4))
    before = image.read_bytes()
    with pytest.raises(ValueError, match=r"x holds the image a\.jpg, which a picture could"):
        detect(detector, [folder.parent], folder.parent, recursive=True, progress=False)
    assert image.read_bytes() == before and files_in(folder.parent) == ["x"]


def test_links_are_followed_and_circles_end(photos, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save(elsewhere / "b.png", picture([RED] * 4))
    (photos / "linked").symlink_to(elsewhere)
    (photos / "x" / "up").symlink_to(photos)
    (elsewhere / "again.png").symlink_to(photos / "a.png")
    found = find_images([photos], recursive=True)
    assert [os.path.relpath(name, photos) for name in found.files] == [
        *("a.png", "linked/b.png", "x/a.png", "x/y/a.png")
    ]


def test_a_folder_that_cannot_be_read_is_named(photos, monkeypatch):
    def scan(folder):
        if folder == str(photos / "x"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return real(folder)

    real = os.scandir  # root may read every folder
    monkeypatch.setattr(os, "scandir", scan)
    found = find_images([photos], recursive=True)
    assert list(found.files) == [str(photos / "a.png")]
    reason = f"{photos / 'x'}: the folder cannot be read (Permission denied)"
    assert found.failed == [(str(photos / "x"), reason)]


def test_a_list_as_windows_writes_it(photos, tmp_path):
    """With a byte order mark, Windows line ends, blank lines, repetitions, and no last line end."""
    text = "photos/a.png\r\n\r\nphotos/x/a.png\r\nphotos/./a.png\r\n  \r\nphotos/x/y/a.png"
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "files.txt").write_bytes(text.encode(encoding))
        found = find_images([f"@{tmp_path / 'files.txt'}"])
        assert list(found.files) == [
            str(photos / name) for name in ("a.png", "x/a.png", "x/y/a.png")
        ]
        assert set(found.files.values()) == {""} and not found.failed
        note = f"{tmp_path / 'files.txt'}: left out 1 name of files that were named before"
        assert found.left_out == [note]


def test_faults_of_a_list_are_named_by_line(photos, tmp_path):
    path = tmp_path / "files.txt"
    path.write_text(f"photos/a.png\n\ngone.png\nphotos/x\n{photos / 'x/a.png'}\n{'x' * 5000}\n")
    found = find_images([f"@{path}"])
    assert list(found.files) == [str(photos / "a.png"), str(photos / "x/a.png")]
    assert [reason for _, reason in found.failed[:2]] == [
        f"{path}:3: {tmp_path / 'gone.png'}: no such file",
        f"{path}:4: {photos / 'x'}: is a folder, expected an image",
    ]
    assert found.failed[2][1].startswith(f"{path}:6: ") and len(found.failed[2][1]) < 500


def test_a_long_text_that_is_no_list_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"y\n" * 20_000)
    with pytest.raises(ValueError, match=r"notes\.txt:10001: the 10,001th line without a file"):
        find_images([f"@{tmp_path / 'notes.txt'}"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "names no file"),
        (b"\n \r\n", "names no file"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is a PNG image, expected a list of image files"),
        (b"a.png\0b.png", "expected a list of image files, one per line"),
        (b"\xff\xfea", "is damaged UTF-16 text"),
    ],
)
def test_files_that_are_no_lists(tmp_path, data, reason):
    path = tmp_path / "files.txt"
    path.write_bytes(data)
    found = find_images([f"@{path}"])
    ((_, told),) = found.failed
    assert told.startswith(f"{path}: ") and reason in told and not found.files


def test_lists_that_cannot_be_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = find_images([f"@{tmp_path}/gone.txt", f"@{tmp_path}", f"@{tmp_path}/pipe"])
    reasons = [reason for _, reason in found.failed]
    assert "gone.txt: No such file or directory (@" in reasons[0]
    assert "is a folder" in reasons[1] and "is a named pipe" in reasons[2]


def test_an_image_whose_name_begins_as_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "@a.png", picture([RED] * 4))
    assert find_images(["@a.png"]).files == {"@a.png": ""}


def test_a_list_on_standard_input(photos, monkeypatch):
    monkeypatch.chdir(photos)
    piped(monkeypatch, b"a.png\nx/a.png\ngone.png\n")
    found = find_images(["-"])
    assert list(found.files) == ["a.png", "x/a.png"] and found.stdin is None
    assert found.failed[0][1] == "standard input:3: gone.png: no such file"
    piped(monkeypatch, b"")
    assert find_images(["-"]).failed == [("standard input", "standard input: names no file")]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_on_standard_input(detector, photos, tmp_path, monkeypatch, workers):
    piped(monkeypatch, (photos / "a.png").read_bytes())
    out = tmp_path / "out"
    report = detect(detector, ["-"], out, formats=["json", "yolo"], progress=False, workers=workers)
    assert [(one["file"], one["width"], one["height"]) for one in report.images] == [("-", 60, 40)]
    assert report.detection_count == 2 and not report.left_out
    assert files_in(out) == ["detections.json", "labels", "stdin.jpg"]
    assert files_in(out / "labels") == ["classes.txt", "stdin.txt"]
    turned = Image.Exif()
    turned[274] = 6
    stream = io.BytesIO()
    Image.open(photos / "a.png").save(stream, "JPEG", exif=turned)
    for detector.upright, size in ((True, (40, 60)), (False, (60, 40))):
        piped(monkeypatch, stream.getvalue())
        options = {"progress": False, "workers": workers, "draw": False}
        (one,) = detect(detector, ["-"], tmp_path / "turned", **options).images
        assert (one["width"], one["height"]) == size
    piped(monkeypatch, (photos / "a.png").read_bytes()[:60])
    report = detect(detector, ["-"], tmp_path / "bad", progress=False, workers=workers)
    assert report.failed == [("-", "-: the image is truncated (no IEND chunk)")]


def test_the_options_of_the_command(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = "train --model ssd300 --width 0.0625 --scenes 2 --batch-size 2 --iterations 1"
    assert cli.main([*train.split(), "--workers", "0", "--out", "run"]) == 0
    (tmp_path / "files.txt").write_text("photos/a.png\n")
    detect = "detect run @files.txt --format yolo,jsonl --csv --yolo-scores --no-draw --out found"
    assert cli.main(detect.split()) == 0
    assert files_in(tmp_path / "found") == ["detections.csv", "detections.jsonl", "labels"]
    assert cli.main("detect run photos --recursive --format coco --no-draw --out f".split()) == 0
    assert files_in(tmp_path / "f") == ["coco_images.json", "coco_results.json"]
    assert cli.main("detect run photos --format xml".split()) == 2
