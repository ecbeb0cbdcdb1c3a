"""Parquet and Arrow files that state, or unpack to, far more than they hold."""

import json
import re

import numpy as np
import pytest
from test_hugging_face import BOX, BOX_XYXY, TWO, WIDE, parquet, picture, saved, table

from mdssd.data import DataError, arrow_files, open_dataset
from mdssd.data.parquet_pages import read_chunks, read_pages

pa = pytest.importorskip("pyarrow", reason="pyarrow reads the tables")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads the tables")


def of_one_row(boxes, classes, images=None):
    """Return a table of one row, whose boxes and classes are arrays."""
    objects = pa.StructArray.from_arrays([boxes, classes], ["bbox", "category"])
    return pa.table({"image": images or [{"bytes": picture(), "path": None}], "objects": objects})


def in_a_list(values):
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def many_boxes(count):
    zeros = pa.array(np.zeros(4 * count, np.float32))
    boxes = in_a_list(pa.FixedSizeListArray.from_arrays(zeros, 4))
    return of_one_row(boxes, in_a_list(pa.array(np.zeros(count, np.int8))))


ONE_BOX = pa.array([[BOX]])


def arrow_file(path, made, **options):
    with pa.ipc.new_stream(
        str(path), made.schema, options=pa.ipc.IpcWriteOptions(**options)
    ) as out:
        out.write_table(made)
    return path


def refused(path, reason):
    with pytest.raises(DataError, match=re.escape(reason)) as error:
        open_dataset(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("codec", ["zstd", "gzip", "snappy"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_headers_of_pages(tmp_path, codec, version):
    options = {"compression": codec, "data_page_version": version, "data_page_size": 100}
    path = parquet(tmp_path / "a.parquet", table(TWO * 50), row_group_size=30, **options)
    meta = pq.ParquetFile(path).metadata
    data = path.read_bytes()
    chunks = read_chunks(data[-8 - meta.serialized_size : -8])
    assert len(chunks) == meta.num_row_groups
    for group in range(meta.num_row_groups):
        for number in range(meta.num_columns):
            chunk = meta.row_group(group).column(number)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            end = start + chunk.total_compressed_size
            assert chunks[group][number] == (chunk.path_in_schema, start, end)
            pages = list(read_pages(data, start, end))
            assert sum(page.values for page in pages) == chunk.num_values
            # The whole of the column, except for the headers.
            assert 0 < sum(page.unpacked for page in pages) < chunk.total_uncompressed_size


@pytest.mark.parametrize(
    "data", [b"", b"\x15", b"\x15\x00\x15\x01\x15\x01\x00", b"\x19\x00", b"\xff"]
)
def test_damaged_headers_of_pages(data):
    with pytest.raises(ValueError, match="the page header at byte"):
        list(read_pages(data, 0, 100))


def test_a_list_of_too_many_boxes(tmp_path):
    path = parquet(tmp_path / "a.parquet", many_boxes(300_000), compression="zstd")
    assert path.stat().st_size < 10_000
    refused(path, "row 0: holds 1,500,003 values, expected at most 1,000,000 in a row")


@pytest.mark.parametrize("honest", [True, False])
def test_a_row_group_that_unpacks_to_too_much(tmp_path, monkeypatch, honest):
    monkeypatch.setattr(arrow_files, "MAX_PART", 10 << 20)
    count = 1_000_000
    path = parquet(tmp_path / "a.parquet", many_boxes(count), compression="zstd")
    if not honest:
        # The description at the end states two values; the pages still state all of them.
        data = path.read_bytes()
        begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        head, end = data[:begin], data[begin:]
        for number in (count, 4 * count):
            few = bytes([0x84, *[0x80] * (len(varint(number)) - 2), 0])
            end = end.replace(varint(number), few)
        path.write_bytes(head + end)
        columns = pq.ParquetFile(path).metadata.row_group(0)
        assert min(columns.column(k).num_values for k in range(4)) <= 2
    refused(path, "row group 0 unpacks to ")
    refused(path, "expected at most 10.5 MB; write it with smaller row groups")


def varint(value):
    """Return a number as Thrift's compact form writes it."""
    data, value = [], 2 * value
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def test_a_name_that_is_long_in_every_row(tmp_path):
    long = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(100, np.int32)), pa.array(["x" * 10**7])
    )
    classes = pa.ListArray.from_arrays(pa.array(range(101), pa.int32()), long)
    images = [{"bytes": picture(), "path": None}] * 100
    made = of_one_row(pa.array([[BOX]] * 100), classes, images)
    for path in (parquet(tmp_path / "a.parquet", made), arrow_file(tmp_path / "b.arrow", made)):
        refused(path, "row 0: holds 1,250,009 values")


def test_an_image_that_is_in_every_row(tmp_path, monkeypatch):
    made = table([[(BOX, 0)]] * 40, images=[{"bytes": picture() + bytes(10**6), "path": None}] * 40)
    path = parquet(tmp_path / "a.parquet", made, compression="zstd")
    assert open_dataset(path)[39].boxes_xyxy.tolist() == [BOX_XYXY]
    monkeypatch.setattr(arrow_files, "MAX_PART", 20 << 20)
    refused(path, "row group 0 unpacks to more than 21 MB")
    monkeypatch.setattr(arrow_files, "_MAX_PAGE", 1 << 19)
    refused(path, "column 'image.bytes': a page has 1 MB, expected at most 524 kB")


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_arrow_file(tmp_path, monkeypatch, codec):
    made = table(TWO * 9)
    path = arrow_file(tmp_path / "a.arrow", made, compression=codec)
    assert open_dataset(path)[0].boxes_xyxy.tolist() == [BOX_XYXY, [50, 30, 75, 50]]
    monkeypatch.setattr(arrow_files, "MAX_PART", 1000)
    refused(path, "its batches unpack to ")
    assert len(open_dataset(arrow_file(tmp_path / "b.arrow", made))) == 18


def test_an_arrow_file_with_a_footer(tmp_path):
    made = table(TWO)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), made.schema) as out:
        out.write_table(made)
    assert open_dataset(tmp_path / "a.arrow")[0].boxes_xyxy.tolist() == [BOX_XYXY, [50, 30, 75, 50]]


def test_values_without_bytes(tmp_path):
    nulls = pa.ListArray.from_arrays(pa.array([0, 2**31 - 1], pa.int32()), pa.nulls(2**31 - 1))
    path = arrow_file(tmp_path / "a.arrow", of_one_row(nulls, pa.array([["car"]])))
    refused(path, "row 0: holds 2,147,483,650 values")
    rows = pa.table({name: pa.nulls(3_000_000) for name in ("image", "bbox", "label")})
    path = arrow_file(tmp_path / "b.arrow", rows)
    refused(path, "has 3,000,000 rows, expected at most 2,000,000")
    refused(parquet(tmp_path / "c.parquet", rows), "has 3,000,000 rows, expected at most 2,000,000")


def test_views_and_runs(tmp_path):
    names = pa.array([["car", "a car with a long name"]], pa.list_(pa.string_view()))
    path = arrow_file(tmp_path / "a.arrow", of_one_row(pa.array([[BOX, WIDE]]), names))
    assert open_dataset(path).classes == ["a car with a long name", "car"]
    names = pa.array([["x" * 10**7] * 3], pa.list_(pa.string_view()))
    path = arrow_file(tmp_path / "b.arrow", of_one_row(pa.array([[BOX] * 3]), names))
    refused(path, "row 0: holds 3,750,021 values")
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["car"]))
    path = arrow_file(tmp_path / "c.arrow", of_one_row(ONE_BOX, in_a_list(runs)))
    refused(path, "a column holds 'run_end_encoded<run_ends: int32, values: string>', expected")


def test_too_many_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_files, "_MAX_SCHEMA", 50_000)
    made = pa.table({f"c{k}": [1] for k in range(1000)})
    paths = parquet(tmp_path / "a.parquet", made), arrow_file(tmp_path / "b.arrow", made)
    for path in paths:
        refused(path, "its description of the columns has ")


def test_damaged_offsets(tmp_path):
    images = [{"bytes": picture(), "path": None}] * 2
    boxes = pa.array([[BOX] * 5, [BOX] * 6])
    path = arrow_file(tmp_path / "a.arrow", of_one_row(boxes, pa.array([["car"] * 5] * 2), images))
    data = path.read_bytes()
    offsets = np.array([0, 5, 11], np.int32).tobytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, np.array([0, 5, -3], np.int32).tobytes()))
    refused(path, "cannot be read, is it complete?")


@pytest.mark.parametrize(
    ("boxes", "classes", "reason"),
    [
        (
            pa.array([[["a", "b", "c", "d"]]]),
            pa.array([["car"]]),
            "['a', 'b', 'c', 'd'], expected f",
        ),
        (
            pa.array([[1.0, 2.0, 3.0, 4.0]]),
            pa.array([["car"] * 4]),
            "bbox is 1.0, expected four numb",
        ),
        (pa.array([[[[1.0]] * 4]]), pa.array([["car"]]), "bbox is [[1.0], [1.0], [1.0], [1.0]]"),
        (
            pa.array([[None, BOX]]),
            pa.array([["car", None]]),
            "bbox is missing, expected four numbers",
        ),
        (pa.array([[BOX]]), pa.array([[["car"]]]), "category is ['car']"),
        (pa.array([[BOX]]), pa.array([["car", "bus"]]), "row 0: has 1 boxes and 2 classes"),
        (pa.array([BOX[0]]), pa.array([["car"]]), "row 0: bbox is 10.0, expected a list"),
        (pa.array([[BOX]]), pa.array([7]), "row 0: category is 7, expected a list"),
    ],
)
def test_wrong_types(tmp_path, boxes, classes, reason):
    for path in (
        parquet(tmp_path / "a.parquet", of_one_row(boxes, classes)),
        arrow_file(tmp_path / "b.arrow", of_one_row(boxes, classes)),
    ):
        faults = []
        try:
            faults += open_dataset(path, faults=faults).dropped
        except DataError as error:
            faults.append(str(error))
        assert reason in "\n".join(faults)


def test_pixels_in_the_place_of_an_image(tmp_path):
    path = parquet(
        tmp_path / "a.parquet", of_one_row(ONE_BOX, pa.array([["car"]]), [[[1, 2], [3]]])
    )
    refused(
        path, "the column 'image' holds 'list<element: list<element: int64>>', expected the bytes"
    )


def test_nulls_at_each_level(tmp_path):
    rows = [None, {"bbox": None, "category": None}, {"bbox": [BOX], "category": ["car"]}]
    images = [{"bytes": picture(), "path": None}] * 3
    path = parquet(tmp_path / "a.parquet", pa.table({"image": images, "objects": rows}))
    dataset = open_dataset(path)
    assert [len(dataset[k].labels) for k in range(3)] == [0, 0, 1]
    rows = [None, [None], [{"bbox": BOX, "category": "car"}]]
    path = parquet(tmp_path / "b.parquet", pa.table({"image": images, "objects": rows}))
    faults = []
    assert len(open_dataset(path, faults=faults)) == 2
    assert faults == [f"{path}: row 1: objects[0] is missing, expected an object"]
    images = [None, {"bytes": None, "path": None}, {"bytes": picture(), "path": None}]
    path = parquet(tmp_path / "c.parquet", pa.table({"image": images, "objects": [rows[2]] * 3}))
    faults = []
    assert len(open_dataset(path, faults=faults)) == 1
    assert [line.partition(": row ")[2] for line in faults] == [
        "0: image is missing, expected an image",
        "1: image is {'bytes': None, 'path': None}, expected an image",
    ]


def test_a_damaged_file_costs_its_own_rows_only(tmp_path):
    parquet(tmp_path / "train-0.parquet", table(TWO))
    path = parquet(tmp_path / "train-1.parquet", table(TWO, images=None))
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(len(data) - 1500) + data[len(data) - 1496 :])
    refused(path, "train-1.parquet: ")
    faults = []
    assert len(open_dataset(tmp_path, faults=faults)) == 2
    assert len(faults) == 1 and "train-1.parquet: cannot be read" in faults[0]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["car", ""], "the name of class 1 is '', expected a name that no other class has"),
        (["car", "car"], "the name of class 1 is 'car', expected a name that no other class has"),
        ([5, "car"], "the name of class 0 is 5, expected a name"),
    ],
)
def test_class_names_that_are_no_names(tmp_path, names, reason):
    refused(parquet(tmp_path / "a.parquet", table([[(BOX, 0)]], names=names)), reason)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../secret.png", "..\\secret.png", "a/../../b.png"]
)
def test_an_image_outside_the_folder(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(picture())
    folder = tmp_path / "x" / "y"
    made = table([[(BOX, 0)]], images=[{"bytes": None, "path": name}])
    path = parquet(folder / "a.parquet", made)
    refused(path, f"row 0: no image {name!r} in {folder}")


@pytest.mark.parametrize("name", ["../a.arrow", "/etc/passwd", "x/../../a.arrow"])
def test_a_table_outside_the_folder(tmp_path, name):
    saved(tmp_path / "b", table(TWO))
    arrow_file(tmp_path / "a.arrow", table(TWO))
    (tmp_path / "b" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="state.json"):
        open_dataset(tmp_path / "b")


def test_a_name_of_a_field_that_is_no_text(tmp_path):
    made = of_one_row(ONE_BOX, pa.array([["car"]]))
    path = arrow_file(tmp_path / "a.arrow", made)
    path.write_bytes(path.read_bytes().replace(b"category", b"categ\xffry"))
    refused(path, "a.arrow: cannot be read, is it complete? ('utf-8' codec can't decode")
