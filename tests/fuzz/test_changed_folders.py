"""Folders of each format, in which files are moved, emptied or replaced: read, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sound_data import open_and_check
from strategies_data import SIZES, apply_changes, write_images

ROW = "car 0.00 0 1.85 2 3 12 13 1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n"
BOX = '<box label="car" xtl="2" ytl="3" xbr="12" ybr="13"></box>'
SHAPE = {"label": "car", "points": [[2, 3], [12, 13]], "shape_type": "rectangle"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make(root: Path, form: str) -> None:
    """Write a data set of three images in a format."""
    write_images(root / ("image_2" if form == "kitti" else "images"))
    if form == "yolo":
        write(root / "data.yaml", "train: images\nval: list.txt\nnames: [car, bus]\n")
        write(root / "list.txt", "images/a.png\n")
    elif form == "kitti":
        write(root / "ImageSets" / "train.txt", "a\nb\n")
    elif form == "cvat":
        images = [f'<image id="0" name="{name}.png">{BOX}</image>' for name in SIZES]
        write(root / "annotations.xml", f"<annotations>{''.join(images)}</annotations>")
    elif form == "csv":
        for split, names in (("train", "ab"), ("test", "c")):
            rows = "".join(f"images/{name}.png,2,3,12,13,car\n" for name in names)
            write(root / f"{split}.csv", rows)
    for name in SIZES:
        if form == "yolo":
            write(root / "labels" / f"{name}.txt", "0 0.5 0.5 0.25 0.5\n")
        elif form == "kitti":
            write(root / "label_2" / f"{name}.txt", ROW)
        elif form == "labelme":
            content = {"shapes": [SHAPE], "imagePath": f"{name}.png", "imageData": None}
            write(root / "images" / f"{name}.json", json.dumps(content))


def files_of(form: str) -> list[str]:
    """Return the files and folders that are changed."""
    return {
        "yolo": ["data.yaml", "list.txt", "labels", "labels/a.txt", "images", "images/a.png"],
        "kitti": ["ImageSets", "ImageSets/train.txt", "label_2", "label_2/a.txt", "image_2/a.png"],
        "cvat": ["annotations.xml", "images", "images/a.png"],
        "csv": ["train.csv", "test.csv", "images", "images/a.png"],
        "labelme": ["images", "images/a.json", "images/b.json", "images/a.png"],
    }[form]


ACTIONS = ["remove", "rename", "empty", "add", "add folder", "nest", "link", "pipe", "dangle"]
NAMES = ["._a.txt", ".hidden", "a.TXT", "A.png", "a.jpg", "a.b.png", "é.png", "x.csv", "x.json"]
NAMES += ["x.xml", "a.txt", "val.txt", "val.csv", "data.yml", "classes.txt", "train", "labels"]


@pytest.mark.parametrize("form", ["yolo", "kitti", "cvat", "csv", "labelme"])
@given(data=st.data(), split=st.sampled_from([None, "all", "train", "test"]))
def test_a_changed_folder(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject, split: str | None
) -> None:
    change = st.tuples(
        st.sampled_from([*ACTIONS, "folder"]),
        st.sampled_from(files_of(form)),
        st.sampled_from(NAMES),
    )
    drawn = data.draw(st.lists(change, min_size=1, max_size=3))
    folder = tmp_path_factory.mktemp("changed") / form
    make(folder, form)
    apply_changes(folder, drawn)
    open_and_check(folder, folder, split=split)
    shutil.rmtree(folder)
