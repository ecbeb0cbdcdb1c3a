"""CSV files of boxes: the columns, spellings and encodings, splits, and faults by their line."""

import cv2
import numpy as np
import pytest

from mdssd.data import DataError, csv_table, open_dataset
from mdssd.data.csv_boxes import is_csv
from mdssd.detection.tables import CSV

BOX = [[10, 20, 30.5, 40]]


def photos(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((60, 80, 3), 90, np.uint8))


def opened(folder, content, name="boxes.csv", **options):
    """Open a folder with the images a.png and b.png, and a table."""
    photos(folder, "a.png", "b.png")
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    return open_dataset(folder, **options)


def boxes(dataset):
    found = {}
    for k, name in enumerate(dataset.image_ids):
        sample = dataset.annotation(k)
        labels = [dataset.classes[label - 1] for label in sample.labels]
        found[name] = list(zip(labels, sample.boxes_xyxy.tolist(), strict=True))
    return found


@pytest.mark.parametrize(
    "content",
    [
        "a.png,10,20,30.5,40,car\nb.png,,,,,\n",
        "path,x1,y1,x2,y2,class\na.png,10,20,30.5,40,car\nb.png,,,,,\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,80,60,car,10,20,30.5,40\n"
        "b.png,80,60,,,,,\n",
        "Image Name;Left;Top;Width;Height;Label\na.png;10;20;20,5;20;car\nb.png;;;;;\n",
        "a.png;10;20;30,5;40;car\nb.png;;;;;\n",
        "label_name\tbbox_x\tbbox_y\tbbox_width\tbbox_height\timage_name\timage_width\t"
        "image_height\ncar\t10\t20\t20.5\t20\ta.png\t80\t60\n\t\t\t\t\tb.png\t80\t60\n",
        'sep=;\r\n"path";"x1";"y1";"x2";"y2";"class"\r\n"a.png";10;20;30,5;40;"car"\r\n'
        '"b.png";;;;;\r\n',
        "TRAIN,gs://bucket/a.png,car,0.125,0.3333333333,,,0.38125,0.6666666667,,\n"
        "TRAIN,gs://bucket/b.png,,,,,,,,,\n",
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
        "a,x,car,1,0.125,0.38125,0.3333333333,0.6666666667,0,0\nb,x,,1,,,,,0,0\n",
        "file,x1_norm,y1_norm,x2_norm,y2_norm,class\n"
        "a.png,0.125,0.3333333333,0.38125,0.6666666667,car\nb.png,,,,,\n",
        "path,x1,y1,x2,y2,class\r\n/home/me/data/a.png,10,20,30.5,40,car\r\nC:\\d\\b.png,,,,,\r\n",
    ],
)
def test_what_tools_write(tmp_path, content):
    dataset = opened(tmp_path, content)
    assert dataset.classes == ["car"] and dataset.format == "CSV (boxes.csv)"
    assert not dataset.dropped and not dataset.size_faults
    found = boxes(dataset)
    assert list(found) == ["a", "b"] and found["b"] == []
    (name, box_xyxy), *rest = found["a"]
    assert (name, rest) == ("car", []) and np.allclose(box_xyxy, BOX[0], atol=1e-4)
    assert boxes(open_dataset(tmp_path / "boxes.csv", "all")) == found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(tmp_path, encoding):
    text = "path,x1,y1,x2,y2,class\r\na.png,10,20,30.5,40,größe\r\n"
    dataset = opened(tmp_path, text.encode(encoding))
    assert boxes(dataset) == {"a": [("größe", BOX[0])]}


@pytest.mark.parametrize(
    "rows",
    [
        "path,x1,y1,x2,y2,class\na.png,0.125,0.25,0.5,0.75,car\n",
        "path,x,y,width,height,class\na.png,0.125,0.25,0.375,0.5,car\n",
        "a.png,0.125,0.25,0.5,0.75,car\na.png,,,,,\n",
    ],
)
def test_a_table_of_fractions_is_told(tmp_path, rows):
    dataset = opened(tmp_path, rows)
    assert np.allclose(dataset.annotation(0).boxes_xyxy, [[10, 15, 40, 45]])
    told = "no coordinate is above 1; taken as fractions of the image's width and height"
    assert f"{tmp_path / 'boxes.csv'}: {told}" in dataset.notes
    pixels = opened(tmp_path, rows + ",".join(["a.png", *"2299", "car"]) + "\n")
    assert len(pixels.dropped) == 1 and "coordinates from 0 to 1?" in pixels.dropped[0]


def test_a_table_of_detections_is_read_back(tmp_path):
    row = {"class": "=car", "label": 1, "score": 0.5, "box_xyxy": [10, 20, 30.5, 40]}
    image = {"file": "a.png", "width": 80, "height": 60, "detections": [row]}
    dataset = opened(tmp_path, CSV.head + "".join(CSV.rows(image, 0)))
    assert boxes(dataset) == {"a": [("=car", BOX[0])]}
    assert any("columns that are not used: label, score" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.png,1,2,3,car", "has 5 columns, expected 6"),
        ("a,b.png,1,2,3,4,car", "has 7 columns, expected 6"),
        ("a.png,1,2,x,4,car", "x2 is 'x', expected a number"),
        ("a.png,1,2,,4,car", "x2 is '', expected a number"),
        ("a.png,nan,2,9,9,car", "box (nan, 2, 9, 9) is not finite"),
        ("a.png,5,5,5,9,car", "box (5, 5, 5, 9) has no area"),
        ("a.png,1,2,9,9,", "the class is '', expected a name"),
        (",1,2,9,9,car", "the image is '', expected the name of a file"),
        ("a.png,0.1,0.1,0.9,0.9,car", "coordinates from 0 to 1?"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row, reason):
    rows = f"path,x1,y1,x2,y2,class\na.png,10,20,30.5,40,car\n\n{row}\nb.png,1,1,9,9,bus\n"
    dataset = opened(tmp_path, rows)
    assert len(dataset.dropped) == 1 and reason in dataset.dropped[0]
    assert dataset.dropped[0].startswith(f"{tmp_path / 'boxes.csv'}:4: ")
    assert boxes(dataset) == {"a": [("car", BOX[0])], "b": [("bus", [1, 1, 9, 9])]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("c.png,1,2,3,4,car", "no such image"),
        ("../c.png,1,2,3,4,car", "leaves the folder"),
        ('a.png,1,2,3,4,"car', "broken CSV"),
        ("a.png,1,2,3,4," + "x" * 200_000, "broken CSV"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, row, reason):
    with pytest.raises(DataError, match=reason) as error:
        opened(tmp_path, f"b.png,10,20,30.5,40,car\n{row}\n")
    assert f"{tmp_path / 'boxes.csv'}:2" in str(error.value)
    faults = []
    assert boxes(open_dataset(tmp_path, faults=faults))["b"] == [("car", BOX[0])]
    assert len(faults) == 1 and reason in faults[0]


@pytest.mark.parametrize("rows", [0, 1, 3000])
def test_bytes_in_another_encoding(tmp_path, rows):
    text = "a.png,10,20,30,40,Straße\n" * rows + "\n"
    remedy = "convert the file to UTF-8 (in Excel: save it as CSV UTF-8)"
    with pytest.raises(DataError) as error:
        opened(tmp_path, text.encode() + "a.png,10,20,30,40,größe\n".encode("cp1252"))
    fault = f"{tmp_path / 'boxes.csv'}:{rows + 2}: byte 0xf6 is not in UTF-8; {remedy}"
    assert str(error.value) == fault
    faults = []
    if rows:
        assert boxes(open_dataset(tmp_path, faults=faults))["a"][0][0] == "Straße"
        assert faults == [fault]
    else:
        with pytest.raises(DataError) as error:
            open_dataset(tmp_path, faults=faults)
        assert str(error.value) == f"{tmp_path}: no object can be read; the first fault: {fault}"
    with pytest.raises(DataError, match=":2: at or after this line .* not in utf-16; convert"):
        opened(tmp_path, "\ufeffa.png,1,2,9,9,a\n".encode("utf-16-le") + b"\x00")


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_table, "_MAX_LINE", 100)
    with pytest.raises(DataError, match="boxes.csv:2: the line has more than 100 characters"):
        opened(tmp_path, "a.png,1,2,3,4,car\n" + "x" * 200)


def test_a_column_of_splits(tmp_path):
    rows = "path,x1,y1,x2,y2,class,subset\n"
    rows += "a.png,10,20,30.5,40,car,TRAIN\nb.png,1,1,9,9,bus,validation\n"
    dataset = opened(tmp_path, rows)
    assert dataset.classes == ["bus", "car"] and dataset.split == "train"
    assert boxes(dataset) == {"a": [("car", BOX[0])]}
    assert open_dataset(tmp_path, train=False).image_ids == ["b"]
    assert open_dataset(tmp_path, "all").split_lists([])[0].listed == {"train": ["a"], "val": ["b"]}
    with pytest.raises(DataError, match="no such split test"):
        open_dataset(tmp_path, "test")


@pytest.mark.parametrize(
    ("first", "second"),
    [("train.csv", "val.csv"), ("train/_annotations.csv", "valid/_annotations.csv")],
)
def test_a_table_for_each_split(tmp_path, first, second):
    for name, row in ((first, "a.png,10,20,30.5,40,car\n"), (second, "b.png,1,1,9,9,bus\n")):
        path = tmp_path / name
        photos(path.parent, row[:5])
        path.write_text(row)
    assert boxes(open_dataset(tmp_path)) == {
        f"{first[:-16]}a" if "/" in first else "a": [("car", BOX[0])]
    }
    test = open_dataset(tmp_path, train=False)
    assert len(test) == 1 and test.classes == ["bus", "car"]
    with pytest.raises(DataError, match="no such split test"):
        open_dataset(tmp_path, "test")


def test_names_of_one_image_and_rows_apart(tmp_path):
    rows = "a.png,10,20,30.5,40,car\nb.png,1,1,9,9,bus\n./A.PNG,5,5,9,9,bus\n"
    (tmp_path / "more.csv").write_text("a.png,2,2,9,9,van\n")
    dataset = opened(tmp_path, rows)
    assert boxes(dataset)["a"] == [
        ("car", BOX[0]), ("bus", [5, 5, 9, 9]), ("van", [2, 2, 9, 9])
    ]  # fmt: skip


def test_a_list_of_classes(tmp_path):
    (tmp_path / "classes.csv").write_text("van,1\r\ncar,0\r\n")
    dataset = opened(tmp_path, "a.png,10,20,30.5,40,car\na.png,1,1,9,9,bus\n", "train.csv")
    assert dataset.classes == ["car", "van"]
    assert dataset.dropped == [
        f"{tmp_path}/train.csv:2: the class 'bus' is not in {tmp_path}/classes.csv"
    ]
    (tmp_path / "classes.csv").write_text("van,0\ncar,0\n")
    with pytest.raises(DataError, match="classes.csv:2: the name or the number occurs twice"):
        open_dataset(tmp_path)


def test_images_elsewhere_in_the_folder(tmp_path):
    photos(tmp_path, "images/day/c.png")
    dataset = opened(tmp_path, "c.png,10,20,30.5,40,car\n")
    assert dataset.image_ids == ["images/day/c"]
    assert any("images were found in images/day/" in note for note in dataset.notes)
    assert any("2 images that no row names left out" in note for note in dataset.notes)


def test_difficult_and_crowds(tmp_path):
    rows = "path,x1,y1,x2,y2,class,difficult,iscrowd\na.png,1,1,9,9,car,1,0\na.png,2,2,9,9,car,,1\n"
    sample = opened(tmp_path, rows)[0]
    assert (sample.difficult.tolist(), sample.crowd.tolist()) == ([True, False], [False, True])


def test_a_stated_size_is_compared(tmp_path):
    rows = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,99,60,car,10,20,30.5,40\n"
    assert (
        "boxes.csv:2: states 99 x 60, the image (a.png) is 80 x 60"
        in opened(tmp_path, rows).size_faults[0]
    )


def test_other_tables_are_not_taken(tmp_path):
    (tmp_path / "loss.csv").write_text("iteration,loss\n1,2\n")
    (tmp_path / "classes.csv").write_text("car,0\n")
    assert not is_csv(tmp_path)
    for split in (None, "val"):
        with pytest.raises(DataError, match=r"loss.csv: is no table of boxes.* got 'iteration,los"):
            open_dataset(tmp_path / "loss.csv", split)
    (tmp_path / "classes.csv").unlink()
    with pytest.raises(DataError, match="recognised; .*row of loss.csv is 'iteration,loss'; exp"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 9, b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_split_whose_file_is_damaged_is_not_taken_for_missing(tmp_path, content):
    rows = "path,x1,y1,x2,y2,class\na.png,1,2,9,9,car\n"
    opened(tmp_path, rows, "test.csv", train=False)
    (tmp_path / "train.csv").write_bytes(content)
    for split in (None, "train", "all"):
        with pytest.raises(DataError, match="train.csv: is .*, expected a table of boxes"):
            open_dataset(tmp_path, split)
    assert len(open_dataset(tmp_path, "test")) == 1
    faults = []
    assert len(open_dataset(tmp_path, "all", faults=faults)) == 1 and len(faults) == 1


def test_tables_that_are_not_read_are_named(tmp_path):
    rows = "path,x1,y1,x2,y2,class\na.png,1,2,9,9,car\n"
    (tmp_path / "loss.csv").write_text("iteration,loss\n1,2\n")
    (tmp_path / "more.csv").write_text(rows)
    (tmp_path / "classes.csv").write_text("car,0\nbus,1\n")
    dataset = opened(tmp_path, rows, "train.csv")
    assert dataset.classes == ["car", "bus"]
    named = [note.removeprefix(f"{tmp_path}/") for note in dataset.notes if "not read" in note]
    assert named == [
        "loss.csv: is no table of boxes; not read",
        "more.csv: is not named after a split, as other tables are; not read",
    ]


def test_tables_in_folders_beside_another_table(tmp_path):
    (tmp_path / "classes.csv").write_text("car,0\nbus,1\n")
    (tmp_path / "train").mkdir()
    dataset = opened(tmp_path, "../a.png,1,2,9,9,car\n", "train/boxes.csv")
    assert dataset.classes == ["car", "bus"] and dataset.split == "train"


def test_a_file_of_many_gigabytes_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("path,x1,y1,x2,y2,class\na.png,1,2,9,9,car\n")
    with path.open("ab") as file:
        file.truncate(100 << 30)  # takes no space on the disk
    with pytest.raises(DataError, match="boxes.csv:3: the line has more than 1,048,576 charac"):
        open_dataset(path)
