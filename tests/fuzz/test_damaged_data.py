"""Damaged COCO files, VOC annotations, split lists and folders: read right, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sound_data import open_and_check
from strategies_data import (
    COCO,
    annotations,
    apply_changes,
    changes,
    coco_files,
    split_lists,
    write_images,
    write_voc,
)


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    write_images(folder / "images")
    return folder


NO_USABLE_IMAGE = COCO | {"images": [{"id": 10**400, "file_name": "a.png"}]}
LONG_NAME = COCO | {"images": [{"id": 1, "file_name": "x" * 300 + ".png"}]}


@given(content=coco_files())
@example(content=json.dumps(NO_USABLE_IMAGE).encode())
@example(content=json.dumps(LONG_NAME).encode())
def test_a_damaged_coco_file(coco_folder: Path, content: bytes) -> None:
    path = coco_folder / "instances_train.json"
    path.write_bytes(content)
    open_and_check(path, coco_folder)


@pytest.fixture(scope="module")
def voc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc") / "voc"
    write_voc(folder)
    return folder


@given(content=annotations("a"))
def test_a_damaged_annotation(voc_folder: Path, content: bytes) -> None:
    (voc_folder / "Annotations" / "a.xml").write_bytes(content)
    open_and_check(voc_folder, voc_folder, split="all")


@given(content=split_lists)
def test_a_damaged_split_list(voc_folder: Path, content: bytes) -> None:
    path = voc_folder / "ImageSets" / "Main" / "val.txt"
    path.write_bytes(content)
    try:
        open_and_check(voc_folder, voc_folder, split="val")
    finally:
        path.unlink()


@example(
    drawn=[("rename", "JPEGImages", "._a.xml"), ("rename", "Annotations", "._a.xml")], split=None
)
@given(drawn=changes, split=st.sampled_from([None, "all", "train", "test"]))
def test_a_changed_folder(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, str, str]],
    split: str | None,
) -> None:
    folder = tmp_path_factory.mktemp("changed") / "voc"
    write_voc(folder)
    apply_changes(folder, drawn)
    open_and_check(folder, folder, split=split)
    shutil.rmtree(folder)
