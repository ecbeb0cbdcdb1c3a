"""Damaged COCO folders, annotations of LabelMe and of CVAT: read right, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sound_data import open_and_check
from strategies import damaged, damaged_bytes, junk
from strategies_data import COCO, coco_files, write_images

LABELME: dict[str, Any] = {
    "version": "5.4.1",
    "flags": {},
    "shapes": [
        {
            "label": "car",
            "points": [[2, 3], [12, 13]],
            "group_id": None,
            "shape_type": "rectangle",
            "flags": {"difficult": False},
        },
        {"label": "bus", "points": [[1, 1], [9, 1], [9.5, 9]], "shape_type": "polygon"},
        {"label": "bus", "points": [[10, 10], [12, 12]], "shape_type": "circle"},
        {"label": "bus", "points": [[1, 1], [9, 9]], "shape_type": "mask", "mask": "aGVsbG8="},
    ],
    "imagePath": "..\\images\\a.png",
    "imageData": None,
    "imageHeight": 30,
    "imageWidth": 40,
}
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>car</name><type>any</type></label><label><name>bus</name></label>
</labels><subset>train</subset></task></meta>
<image id="0" name="a.png" width="40" height="30">
<box label="car" xtl="2" ytl="3" xbr="12" ybr="13">
<attribute name="difficult">true</attribute></box>
<polygon label="bus" points="1,1;9,1;9.5,9"></polygon></image>
<image id="1" name="b.png" subset="val" width="30" height="40">
<mask label="bus" rle="1,2" left="3" top="4" width="5" height="6"></mask>
<ellipse label="car" cx="12" cy="13" rx="3" ry="4" rotation="30"></ellipse>
<box label="bus" xtl="5" ytl="5" xbr="9" ybr="9" rotation="45.5"></box></image>
<image id="2" name="c.png" width="32" height="32"></image>
</annotations>
"""
_VALUES = st.sampled_from(
    [
        "",
        " ",
        "-1",
        "nan",
        "inf",
        "1e400",
        "9" * 400,
        "a.png",
        "../x.png",
        "/etc/passwd",
        "é",
        "&lt;",
    ]
    + ["&x;", "<box/>", '"', "\x00", "x" * 300, "train", "test", "1,2;3,4", ";", ",", "0.5", "1e-3"]
)
_MARKS = [f'="{value}"' for value in ("2", "12", "a.png", "car", "train", "val", "1,1;9,1;9.5,9")]
_MARKS += ['rotation="30"', ">true<", ">car<", ">train<", "</box>", "<meta>", "<image ", "utf-8"]


@st.composite
def cvat_files(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a file of CVAT in which something is wrong or odd."""
    text = CVAT
    for mark in draw(st.lists(st.sampled_from(_MARKS), max_size=3)):
        value = draw(_VALUES)
        text = text.replace(mark, f'="{value}"' if mark[0] == "=" else value, 1)
    data = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"])))
    return draw(damaged_bytes(data)) if draw(st.integers(0, 2)) == 0 else data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("data")
    write_images(root / "images")
    return root


SPLITS = st.sampled_from([None, "all", "val"])


@given(train=coco_files(), val=coco_files() | st.just(json.dumps(COCO).encode()), split=SPLITS)
def test_a_folder_of_damaged_coco_files(
    folder: Path, train: bytes, val: bytes, split: str | None
) -> None:
    root = folder / "coco"
    if not root.exists():
        write_images(root / "images")
        (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_bytes(train)
    (root / "annotations" / "instances_val2017.json").write_bytes(val)
    open_and_check(root, root, split=split)


@given(
    content=damaged(LABELME).map(lambda value: json.dumps(value).encode())
    | damaged_bytes(json.dumps(LABELME, indent=2).encode()),
    other=st.just(LABELME) | junk | damaged(LABELME),
    place=st.sampled_from(["train/b.json", "val/b.json", "images/b.json", "b.json"]),
    split=SPLITS,
)
@example(
    content=json.dumps(LABELME | {"imagePath": "\0"}).encode(), other={}, place="b.json", split=None
)
def test_damaged_annotations_of_labelme(
    folder: Path, content: bytes, other: Any, place: str, split: str | None
) -> None:
    root = folder / "labelme"
    for name in ("images", "train", "val"):
        if not (root / name).exists():
            write_images(root / name)
    path = root / place
    (root / "train" / "a.json").write_bytes(content)
    path.write_text(json.dumps(other))
    try:
        open_and_check(root, root, split=split)
    finally:
        path.unlink()


@given(content=cvat_files(), split=SPLITS)
def test_a_damaged_file_of_cvat(folder: Path, content: bytes, split: str | None) -> None:
    path = folder / "annotations.xml"
    path.write_bytes(content)
    open_and_check(path, folder, split=split)
