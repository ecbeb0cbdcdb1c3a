"""Data sets of both formats, written to a folder and then damaged as tools damage them."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hypothesis import strategies as st
from strategies import damaged, damaged_bytes

SIZES = {"a": (40, 30), "b": (30, 40), "c": (32, 32)}  # (width, height) of each image

COCO: dict[str, Any] = {
    "info": {"year": 2020},
    "images": [
        {"id": number, "file_name": f"{name}.png", "width": width, "height": height}
        for number, (name, (width, height)) in enumerate(SIZES.items(), 1)
    ],
    "categories": [
        {"id": 3, "name": "car", "supercategory": "vehicle"},
        {"id": 7, "name": "bus", "supercategory": "vehicle"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [4.5, 3.5, 20, 9.25], "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 30, 40], "area": 1200.0},
        {"id": 4, "image_id": 3, "category_id": 3, "bbox": [5, 5, 6, 7], "segmentation": [[1, 2]]},
    ],
}

_TEXTS = st.one_of(
    st.sampled_from(
        [
            *("", " ", "0", "1", "-1", "true", "no", "Unspecified", "nan", "inf", "-inf", "1e400"),
            *("3,5", " 7 ", "0x10", "9" * 400, "\u0661", "12px", "1_000", "&amp;", "&#0;", "&x;"),
            *("<b/>", "]]>", "é", "車", "a.png", "../../x.png", "/etc/passwd", "x" * 300),
        ]
    ),
    st.integers(-50, 50).map(str),
    st.floats(-50, 50).map(str),
    st.text(max_size=5),
)

_ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "latin-1", "gbk", "utf8", "shift_jis", "rot13", "x"]


def write_images(folder: Path) -> None:
    """Write a small image of each name of SIZES."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height) in SIZES.items():
        pixels = np.full((height, width, 3), 90, np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), pixels)


def write_voc(folder: Path) -> None:
    """Write a VOC folder of three images, each with an annotation, and two splits."""
    write_images(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name in SIZES:
        (folder / "Annotations" / f"{name}.xml").write_text(annotation_text(name, voc_fields(name)))
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("c\n")


def voc_fields(name: str) -> dict[str, str]:
    """Return the text of each element of an annotation."""
    width, height = SIZES[name]
    size = {"width": str(width), "height": str(height), "depth": "3"}
    box = {"xmin": "2", "ymin": "3", "xmax": "12", "ymax": "13"}
    return {"filename": f"{name}.png", **size, "name": "car", "difficult": "0", **box}


def annotation_text(name: str, fields: dict[str, str | None]) -> str:
    """Return an annotation; a field that is None is left out."""

    def elements(*names: str) -> str:
        return "".join(f"<{n}>{fields[n]}</{n}>" for n in names if fields[n] is not None)

    return (
        f"<annotation>{elements('filename')}<size>{elements('width', 'height', 'depth')}</size>"
        f"<object>{elements('name', 'difficult')}"
        f"<bndbox>{elements('xmin', 'ymin', 'xmax', 'ymax')}</bndbox></object>"
        "<object><name>bus</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
        "</bndbox></object></annotation>"
    )


@st.composite
def coco_files(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a COCO file in which something is wrong or odd."""
    content = draw(damaged(COCO))
    data = json.dumps(content).encode(
        draw(st.sampled_from(["utf-8"] * 5 + ["utf-8-sig", "utf-16"]))
    )
    return draw(damaged_bytes(data)) if draw(st.integers(0, 5)) == 0 else data


@st.composite
def annotations(draw: st.DrawFn, name: str) -> bytes:
    """Draw the bytes of an annotation in which something is wrong or odd."""
    fields: dict[str, str | None] = dict(voc_fields(name))
    for field in draw(st.lists(st.sampled_from(list(fields)), max_size=3)):
        fields[field] = draw(st.none() | _TEXTS)
    text = annotation_text(name, fields)
    encoding = draw(st.sampled_from(_ENCODINGS))
    if draw(st.booleans()):
        text = f'<?xml version="1.0" encoding="{encoding}"?>\n{text}'
    written = encoding if encoding not in ("rot13", "x") and draw(st.booleans()) else "utf-8"
    data = text.encode(written, "replace")
    return draw(damaged_bytes(data)) if draw(st.integers(0, 4)) == 0 else data


_LINES = st.sampled_from(
    [
        *(
            "a",
            "b",
            "c",
            "a.png",
            "b.PNG",
            "JPEGImages/c.png",
            "a 1",
            "b -1",
            " c ",
            "",
            "#",
            "nix",
        ),
        *("../../etc/passwd", "/etc/passwd", "a\x00", "\ufeffa", "é", "x" * 300, ".", ".."),
    ]
)
split_lists = st.lists(_LINES, max_size=5).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n", "\r"]).map(lambda end: end.join(lines).encode())
) | st.binary(max_size=20)


def _change(folder: Path, action: str, target: str, name: str) -> None:
    """Do one thing to a folder that people, tools and file systems do."""
    path = folder / target
    if not os.path.lexists(path):
        return
    if action == "remove":
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    elif action == "rename":
        path.rename(path.with_name(name))
    elif action == "empty" and path.is_file():
        path.write_bytes(b"")
    elif action == "add" and path.is_dir():
        (path / name).write_bytes(b"x")
    elif action == "add folder" and path.is_dir():
        (path / name).mkdir(exist_ok=True)
    elif action == "nest" and path.is_dir():
        (path / "day1").mkdir(exist_ok=True)
        for item in [p for p in path.iterdir() if p.name != "day1"][:2]:
            item.rename(path / "day1" / item.name)
    elif action in ("link", "pipe", "dangle", "folder") and path.is_file():
        path.unlink()
        if action == "pipe":
            os.mkfifo(path)
        elif action == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero" if action == "link" else folder / "nowhere")


_TARGETS = [
    *("JPEGImages", "Annotations", "ImageSets", "ImageSets/Main", "ImageSets/Main/train.txt"),
    *("JPEGImages/a.png", "JPEGImages/b.png", "Annotations/a.xml", "Annotations/c.xml"),
]
_ACTIONS = [
    *("remove", "rename", "empty", "add", "add folder", "nest", "link", "pipe", "dangle", "folder"),
]
_NAMES = [
    *("._a.xml", ".hidden", "a.XML", "A.png", "a.jpg", "a.b.png", "e\u0301.png", "é.xml", " .png"),
    *("x.xml", "annotations.json", "data.yaml", "labels", "train", "VOC2007", "Thumbs.db"),
]
changes = st.lists(
    st.tuples(st.sampled_from(_ACTIONS), st.sampled_from(_TARGETS), st.sampled_from(_NAMES)),
    min_size=1,
    max_size=3,
)


def apply_changes(folder: Path, drawn: list[tuple[str, str, str]]) -> None:
    """Change the folder; what no longer applies after an earlier change is left out."""
    for action, target, name in drawn:
        with suppress(OSError):  # a folder is in the way, for instance
            _change(folder, action, target, name)
