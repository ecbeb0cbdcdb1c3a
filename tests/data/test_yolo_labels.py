"""The rows of YOLO label files, in the forms in which tools and people write them."""

import pytest
from yolo_files import write

from mdssd.data import DataError
from mdssd.data.yolo_labels import LabelReader

NAMES = {0: "car", 1: "bus", 3: "van"}


def read(tmp_path, content, keypoints=0):
    """Return the boxes, and the lines about rows, without the folder."""
    path = write(tmp_path / "a.txt", content)
    reader = LabelReader(NAMES, "data.yaml", keypoints)
    boxes = [(box.name, [round(v, 6) for v in box.box_xyxy]) for box in reader.read(path)]
    lines = [line.replace(f"{tmp_path}/", "") for line in (*reader.dropped, *reader.notes)]
    return boxes, lines, reader


CAR = ("car", [0.375, 0.25, 0.625, 0.75])


@pytest.mark.parametrize(
    "content",
    [
        b"0 0.5 0.5 0.25 0.5",
        b"0 0.5 0.5 0.25 0.5\r\n\r\n",
        b"\n  0\t0.5  .5 2.5e-1\t0.50 \n",
        b"\xef\xbb\xbf0 0.5 0.5 0.25 0.5\n",
        "0 0.5 0.5 0.25 0.5\n".encode("utf-16"),
        "0 0.5 0.5 0.25 0.5\n".encode("utf-16-le"),
    ],
)
def test_a_row(tmp_path, content):
    assert read(tmp_path, content)[:2] == ([CAR], [])


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ("0,0.5,0.5,0.25,0.5", "commas between the values; read as spaces"),
        ("0, 0.5, 0.5, 0.25, 0.5", "commas between the values; read as spaces"),
        ("0 0,5 0,5 0,25 0,5", "decimal commas; read as points"),
        ("0.0 0.5 0.5 0.25 0.5", "a class with a decimal point; read as a whole number"),
        (
            "0 0.5 0.5 0.25 0.5 0.87",
            "a sixth value, as the confidence of a prediction or a track id; ignored",
        ),
        ("0 0.5 0.5 0.25 0.5 # a car", "text after the values; ignored"),
    ],
)
def test_a_repaired_row(tmp_path, row, note):
    assert read(tmp_path, f"\n{row}\n")[:2] == ([CAR], [f"a.txt:2: {note}"])


def test_repairs_are_counted_by_file(tmp_path):
    rows = "0.0 0.5 0.5 0.25 0.5\n1.0 0.5 0.5 0.25 0.5\n"
    note = "a class with a decimal point; read as a whole number (2 rows of this file)"
    assert read(tmp_path, rows)[1] == [f"a.txt:1: {note}"]


def test_a_row_that_occurs_twice_is_taken_once(tmp_path):
    boxes, lines, _ = read(tmp_path, "0 0.5 0.5 0.25 0.5\n1 0.5 0.5 0.25 0.5\n0 .5 .5 .25 .5\n")
    assert [name for name, _ in boxes] == ["car", "bus"]
    assert lines == ["a.txt:3: a row that occurs twice; taken once"]


def test_polygons_become_their_boxes(tmp_path):
    rows = "0 0.1 0.2 0.5 0.3 0.3 0.9\n1 0.1 0.1 0.4 0.2 0.3 0.5 0.05 0.4\n"
    boxes, lines, reader = read(tmp_path, rows)
    assert boxes == [("car", [0.1, 0.2, 0.5, 0.9]), ("bus", [0.05, 0.1, 0.4, 0.5])]
    assert lines == []
    assert (reader.polygons, reader.first_polygon) == (2, f"{tmp_path}/a.txt:1")


def test_key_points_are_ignored(tmp_path):
    row = "0 0.5 0.5 0.25 0.5 0.4 0.4 2 0.6 0.6 1"
    assert read(tmp_path, row, keypoints=6)[:2] == ([CAR], [])
    (line,) = read(tmp_path, "0 0.5 0.5 0.25 0.5 0.4 0.4 2")[1]
    assert line.startswith("a.txt:1: has 8 columns, expected 5")


def test_values_a_little_outside_are_kept(tmp_path):
    boxes, lines, _ = read(tmp_path, "0 0.5 0.5 1.000001 1\n0 0.99 0.5 0.1 0.1\n")
    assert [box for _, box in boxes] == [[-0.0, 0, 1.000001, 1], [0.94, 0.45, 1.04, 0.55]]
    assert lines == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 nan 0.5 0.25 0.5", "value nan is not finite"),
        ("0 0.5 inf 0.25 0.5", "value inf is not finite"),
        (
            "0 320 240 60 40",
            "value 320 is above 1: pixels? Expected fractions of the image's width and height",
        ),
        ("0 -0.2 0.5 0.25 0.5", "value -0.2 is negative, expected 0 to 1"),
        ("0 0.5 0.5 -0.25 0.5", "value -0.25 is negative, expected 0 to 1"),
        ("0 0.5 0.5 0 0.5", "width 0, height 0.5: expected above 0"),
        ("0.5 0.5 0.5 0.25 0.5", "class '0.5': expected a whole number from 0"),
        ("-1 0.5 0.5 0.25 0.5", "class '-1': expected a whole number from 0"),
        ("nan 0.5 0.5 0.25 0.5", "class 'nan': expected a whole number from 0"),
        ("car 0.5 0.5 0.25 0.5", "'car' is not a number"),
        ("0 0.5 0.5 0.25 wide", "'wide' is not a number"),
        ("2 0.5 0.5 0.25 0.5", "class 2 has no name in data.yaml"),
        ("9 0.5 0.5 0.25 0.5", "class 9 has no name in data.yaml"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.1 0.4 nan", "value nan is not finite"),
        ("0 0.1 0.1 0.1 0.2 0.1 0.3", "polygon without area"),
        (" , ,", "has no number, only commas"),
    ],
)
def test_a_row_that_cannot_be_used(tmp_path, row, reason):
    boxes, lines, _ = read(tmp_path, f"0 0.5 0.5 0.25 0.5\n{row}\n")
    assert (boxes, lines) == ([CAR], [f"a.txt:2: {reason}"])


@pytest.mark.parametrize("row", ["0 0.5 0.5 0.25", "0", "0 0.5 0.5 0.25 0.5 0.4 0.4 2"])
def test_a_row_of_a_wrong_length(tmp_path, row):
    (line,) = read(tmp_path, row)[1]
    assert line.startswith(f"a.txt:1: has {len(row.split())} columns, expected 5")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(no encoding is declared"):
        read(tmp_path, b"\xff0 0.5 0.5 0.25 0.5")
    with pytest.raises(DataError, match=r"a\.txt: has 20,001 rows, expected at most 20,000"):
        read(tmp_path, "\n" * 20_001)
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(has 9 MB, expected at most"):
        read(tmp_path, b"0" * 9_000_000)


def test_without_names_the_numbers_are_the_names(tmp_path):
    path = write(tmp_path / "a.txt", "7 0.5 0.5 0.25 0.5\n2 0.5 0.5 0.25 0.5\n")
    assert [box.name for box in LabelReader(None).read(path)] == ["7", "2"]
    assert LabelReader(None).class_numbers(path) == {2, 7}
