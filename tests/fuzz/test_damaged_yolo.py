"""Damaged YOLO labels, descriptions, lists and names: read right, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sound_data import open_and_check
from strategies import damaged, damaged_bytes
from strategies_data import SIZES, split_lists, write_images

LABELS = b"0 0.5 0.5 0.25 0.5\n1 0.3 0.3 0.1 0.2\n0 0.1 0.1 0.5 0.1 0.5 0.5\n"
DESCRIPTION: dict[str, Any] = {
    "path": ".",
    "train": ["images"],
    "val": "images/",
    "test": "list.txt",
    "names": {"0": "car", "1": "bus"},
    "nc": 2,
    "kpt_shape": [2, 3],
}
DARKNET = b"classes = 2\ntrain = list.txt\nvalid = list.txt\nnames = obj.names\n"

_WORDS = st.sampled_from(
    [
        *(
            "0",
            "1",
            "2",
            "-1",
            "0.0",
            "1.5",
            "nan",
            "inf",
            "1e400",
            "9" * 400,
            "0.5",
            "0,5",
            "1.01",
        ),
        *("320", "-0.2", "car", "#", "1_0", "\u0661", "\x00", "é", ",", ";", "x" * 300),
    ]
)
rows = st.lists(st.lists(_WORDS, max_size=11).map(" ".join), max_size=6).map("\n".join)
labels = (
    rows.flatmap(lambda text: st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]).map(text.encode))
    | damaged_bytes(LABELS)
    | st.binary(max_size=60)
)
# JSON is YAML, so a damaged dictionary is written as JSON.
descriptions = (
    damaged(DESCRIPTION).map(lambda content: json.dumps(content).replace(', "', ',\n"').encode())
    | damaged_bytes(b"train: images\nval: images\nnames: [car, bus]\n")
    | st.binary(max_size=60).map(lambda data: b"train: images\nnames: [car]\n" + data)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, labels and a list, without a description."""
    root = tmp_path_factory.mktemp("yolo") / "yolo"
    write_images(root / "images")
    (root / "labels").mkdir()
    for name in SIZES:
        (root / "labels" / f"{name}.txt").write_bytes(LABELS)
    (root / "list.txt").write_text("images/a.png\nimages/b.png\n")
    (root / "obj.names").write_text("car\nbus\n")
    return root


@given(content=labels)
@example(content=b"0 0.5 0.5 0.25 0.5 # \xff")
def test_a_damaged_label_file(folder: Path, content: bytes) -> None:
    path = folder / "labels" / "a.txt"
    path.write_bytes(content)
    try:
        open_and_check(folder, folder)
    finally:
        path.write_bytes(LABELS)


@given(content=descriptions, split=st.sampled_from([None, "all", "val", "test"]))
@example(content=b"train: images\nnames: [a, *a]\n", split=None)
@example(content=b"train: \xff\nnames: [a]\n", split=None)
@example(content=b"train: images\nnames: [a]\n? [a]\n: b\n", split=None)
def test_a_damaged_description(folder: Path, content: bytes, split: str | None) -> None:
    path = folder / "data.yaml"
    path.write_bytes(content)
    try:
        open_and_check(path, folder, split=split)
        open_and_check(folder, folder, split=split)
    finally:
        path.unlink()


@given(content=damaged_bytes(DARKNET) | st.binary(max_size=60))
def test_a_damaged_darknet_file(folder: Path, content: bytes) -> None:
    path = folder / "obj.data"
    path.write_bytes(content)
    try:
        open_and_check(path, folder)
        open_and_check(folder, folder)
    finally:
        path.unlink()


@given(content=split_lists)
def test_a_damaged_list(folder: Path, content: bytes) -> None:
    path = folder / "data.yaml"
    path.write_text("train: images\ntest: more.txt\nnames: [car, bus]\n")
    (folder / "more.txt").write_bytes(content)
    try:
        open_and_check(folder, folder, split="test")
    finally:
        path.unlink()
        (folder / "more.txt").unlink()


@given(content=st.binary(max_size=40) | rows.map(str.encode))
def test_damaged_names(folder: Path, content: bytes) -> None:
    path = folder / "classes.txt"
    path.write_bytes(content)
    try:
        open_and_check(folder, folder)
    finally:
        path.unlink()
