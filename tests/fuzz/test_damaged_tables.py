"""Damaged CSV files, labels of KITTI and tables of Hugging Face: read right, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sound_data import open_and_check
from strategies import damaged, damaged_bytes, junk
from strategies_data import SIZES, split_lists, write_images

pa = pytest.importorskip("pyarrow", reason="pyarrow reads the tables")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads the tables")

CSV = (
    b"filename,width,height,class,xmin,ymin,xmax,ymax,split,difficult\n"
    b'a.png,40,30,car,2,3,12,13,train,0\nb.png,30,40,"bus, red",1,1,9,9,val,1\n'
    b"c.png,32,32,,,,,,train,\na.png,40,30,bus,5.5,5,9,9,train,no\n"
)
KITTI = (
    b"Car 0.00 0 1.85 2 3 12 13 1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n"
    b"DontCare -1 -1 -10 5 5 20 20 -1 -1 -1 -1000 -1000 -1000 -10\n"
    b"Van 0.00 0 1.85 1.5 1 9 9 1.67 1.87 3.69 -16.53 2.39 58.49 1.57 0.9\n"
)
_WORDS = st.sampled_from(
    ["", " ", "0", "1", "-1", "2", "0.5", "0,5", "nan", "inf", "1e400", "9" * 400, "a.png", "b"]
    + ["../x.png", "/etc/passwd", "C:\\a.png", "car", "Car", "=1+1", '"', "'", "x" * 300, "é"]
    + ["\x00", "\u0661", "1_0", "sep=;", "train", "x1", "path", "class", "\u2028", "\r", "#"]
)
tables = st.tuples(
    st.lists(st.lists(_WORDS, max_size=11), max_size=6),
    st.sampled_from([",", ";", "\t", "|", " "]),
    st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]),
    st.booleans(),
).map(
    lambda drawn: (
        CSV.decode().replace(",", drawn[1]) * drawn[3]
        + "\n".join(drawn[1].join(cells) for cells in drawn[0])
    ).encode(drawn[2])
)
SPLITS = st.sampled_from([None, "all", "val"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("photos")
    write_images(root)
    return root


@given(content=tables | damaged_bytes(CSV) | st.binary(max_size=60), split=SPLITS)
def test_a_damaged_csv_file(photos: Path, content: bytes, split: str | None) -> None:
    path = photos / "boxes.csv"
    path.write_bytes(content)
    try:
        open_and_check(path, photos, split=split)
        open_and_check(photos, photos, split=split)
    finally:
        path.unlink()


@given(content=damaged_bytes(b"car,0\nbus,1\n") | tables, name=st.sampled_from(["classes", "val"]))
def test_a_damaged_csv_file_beside_a_good_one(photos: Path, content: bytes, name: str) -> None:
    (photos / "train.csv").write_bytes(CSV)
    path = photos / f"{name}.csv"
    path.write_bytes(content)
    try:
        open_and_check(photos, photos, split="all")
    finally:
        path.unlink()
        (photos / "train.csv").unlink()


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("kitti")
    write_images(root / "image_2")
    (root / "label_2").mkdir()
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("a\nb\n")
    for name in SIZES:
        (root / "label_2" / f"{name}.txt").write_bytes(KITTI)
    return root


rows = st.lists(st.lists(_WORDS, max_size=17).map(" ".join), max_size=4).map("\n".join)


@given(content=damaged_bytes(KITTI) | rows.map(str.encode), split=SPLITS)
def test_a_damaged_label_file_of_kitti(kitti: Path, content: bytes, split: str | None) -> None:
    path = kitti / "label_2" / "b.txt"
    path.write_bytes(content)
    open_and_check(kitti, kitti, split=split)


@given(content=split_lists)
def test_a_damaged_list_of_kitti(kitti: Path, content: bytes) -> None:
    path = kitti / "ImageSets" / "val.txt"
    path.write_bytes(content)
    try:
        open_and_check(kitti, kitti, split="val")
        open_and_check(kitti, kitti, split="all")
    finally:
        path.unlink()


def picture(name: str) -> bytes:
    """Return the PNG of a name of SIZES."""
    width, height = SIZES[name]
    return cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


LISTS: list[dict[str, Any]] = [
    {"bbox": [[2.0, 3.0, 10.0, 10.0], [1.0, 1.0, 8.0, 8.0]], "category": [0, 1], "area": [1.0, 2]},
    {"bbox": [], "category": [], "area": []},
    {"bbox": [[5.0, 5.0, 4.0, 4.0]], "category": [1], "area": [3.0]},
]
STRUCTS: list[list[dict[str, Any]]] = [
    [{"bbox": [2.0, 3.0, 10.0, 10.0], "category": "car"}],
    [{"bbox": [1.0, 1.0, 8.0, 8.0], "category": "bus", "iscrowd": True}],
    [],
]
IMAGES = [{"bytes": "a", "path": None}, {"bytes": None, "path": "b.png"}, {"bytes": "c"}]
FEATURES: dict[str, Any] = {
    "image": {"_type": "Image"},
    "objects": {
        "bbox": {"feature": {"feature": {"dtype": "float32"}, "_type": "List"}, "_type": "List"},
        "category": {"feature": {"names": ["car", "bus"], "_type": "ClassLabel"}, "_type": "List"},
    },
}


def made(objects: Any, images: Any, described: Any) -> Any:
    """Return a table of these columns; None if no Arrow type holds the values."""
    columns = {"objects": objects, "image": with_bytes(images)}
    try:
        table = pa.table(columns)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    if described is None:
        return table
    text = json.dumps({"info": {"features": described}})
    return table.replace_schema_metadata({"huggingface": text})


def with_bytes(value: Any) -> Any:
    """Return images with the bytes of a picture in the place of its name."""
    if isinstance(value, list):
        return [with_bytes(each) for each in value]
    if isinstance(value, dict):
        return {k: picture(v) if v in ("a", "b", "c") else v for k, v in value.items()}
    return value


def written(path: Path, table: Any) -> bytes:
    """Write a table as Parquet or as the stream of `save_to_disk`, by the ending."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    return path.read_bytes()


objects = damaged(LISTS) | damaged(STRUCTS) | st.just(LISTS)
FORMS = st.sampled_from(["a.parquet", "a.arrow"])


@given(
    objects=objects,
    images=st.just(IMAGES) | damaged(IMAGES),
    described=st.none() | st.just(FEATURES) | damaged(FEATURES) | junk,
    name=FORMS,
)
@example(objects=LISTS, images=IMAGES, described={"image": {"feature": {}}}, name="a.arrow")
def test_a_table_of_other_values(
    photos: Path, objects: Any, images: Any, described: Any, name: str
) -> None:
    table = made(objects, images, described)
    assume(table is not None)
    try:
        written(photos / name, table)
    except pa.ArrowException:  # Parquet has no struct without fields
        assume(False)
    try:
        open_and_check(photos / name, photos)
    finally:
        (photos / name).unlink()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    table = made(LISTS, IMAGES, FEATURES)
    return {name: written(folder / name, table) for name in ("a.parquet", "a.arrow")}


@given(name=FORMS, data=st.data())
def test_a_table_with_damaged_bytes(
    photos: Path, good: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    path = photos / name
    path.write_bytes(data.draw(damaged_bytes(good[name])))
    try:
        open_and_check(path, photos)
    finally:
        path.unlink()


STATE = {"_data_files": [{"filename": "a.arrow"}], "_split": "train", "_indices_data_files": None}
DICT = {"splits": ["train", "validation"]}


@given(
    state=st.just(STATE) | damaged(STATE) | junk,
    info=st.just({"features": FEATURES}) | damaged({"features": FEATURES}) | junk,
    splits=st.just(DICT) | damaged(DICT) | junk,
    split=SPLITS,
)
def test_damaged_descriptions_of_a_saved_data_set(
    tmp_path_factory: pytest.TempPathFactory,
    state: Any,
    info: Any,
    splits: Any,
    split: str | None,
) -> None:
    root = tmp_path_factory.mktemp("saved")
    write_images(root)
    for name in ("train", "validation"):
        (root / name).mkdir()
        written(root / name / "a.arrow", made(LISTS, IMAGES, None))
        content = state if name == "train" else STATE
        (root / name / "state.json").write_text(json.dumps(content))
        (root / name / "dataset_info.json").write_text(json.dumps(info))
    (root / "dataset_dict.json").write_text(json.dumps(splits))
    open_and_check(root / "train", root)
    open_and_check(root, root, split=split)
