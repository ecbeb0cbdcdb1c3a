"""Random data sets, written in one format after another, hold the same boxes as before."""

import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from data.png_files import png
from hypothesis import given, settings
from hypothesis import strategies as st

from mdssd.data import open_dataset, write_coco, write_voc, write_yolo
from mdssd.data.listed import ListedDataset, ListedImage, NamedBox, ReadOptions
from mdssd.data.sample import box_fault

WRITERS = {"yolo": write_yolo, "coco": write_coco, "voc": write_voc}
# What YAML takes for something else than text, what it marks, and what other formats mark.
ODD = ("no", "Yes", "null", "~", "1", "0x1F", "1e3", "2026-11-28", "a: b", "# a", "- a", "[a]")
ODD += (
    "{a}",
    "&a",
    "*a",
    "!a",
    "%a",
    "@a",
    "`a`",
    "'a",
    '"a"',
    "a\\n",
    "<a&b>",
    "]]>",
    "a,b",
    "=1",
)
ODD += ("汽车", "é", "e\u0301", "🚗", "\u202eabc", "none", "all", "traffic  light", "a\tb", "a\nb")
letters = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
names = st.lists(
    st.one_of(st.sampled_from(ODD), letters), min_size=1, max_size=8, unique_by=str.strip
)
sides = st.one_of(st.integers(1, 10_000), st.sampled_from((1, 2, 3, 300, 9_999, 10_000)))


@st.composite
def boxes(draw, size):
    """A box of whole pixels or fractions, inside the image or up to its edge."""
    corners = []
    for side in size:
        place = st.one_of(st.integers(0, side), st.floats(0, side, width=32))
        corners.append(sorted((draw(place), draw(place))))
    (x1, x2), (y1, y2) = corners
    return x1, y1, x2, y2


@st.composite
def data_sets(draw):
    """The classes, and for each image its size, its split, and its boxes: box, label, flags."""
    classes = [name.strip() or "a" for name in draw(names)]
    images = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(sides), draw(sides)
        rows = {}
        for box in draw(st.lists(boxes(size), max_size=4)):
            if not box_fault(box, size) and min(np.array(box[2:]) - box[:2]) > 1e-3:
                flags = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
                rows[box] = (draw(st.integers(0, len(classes) - 1)), *flags)
        images.append((size, draw(st.sampled_from(("train", "val", "test"))), rows))
    return classes, images


def make(folder, classes, images):
    listed = []
    folder.mkdir()
    for k, (size, split, rows) in enumerate(images):
        path = folder / f"{k}.png"
        path.write_bytes(png(*size))
        named = [NamedBox(box, classes[label], *flags) for box, (label, *flags) in rows.items()]
        listed.append(ListedImage(str(k), path, named, "test", split=split))
    options = ReadOptions()
    return ListedDataset("made", listed, classes, options, format="made", root=folder, split="all")


def contents(dataset, crowds=True):
    """Return what a format holds, by the name of the image's file."""
    found = {}
    for index in range(len(dataset)):
        sample = dataset.annotation(index)
        keep = np.full(len(sample.labels), True) if crowds else ~sample.crowd
        label_names = [dataset.classes[label - 1] for label in sample.labels[keep]]
        found[dataset.image_path(index).stem] = list(
            zip(
                sample.boxes_xyxy[keep].tolist(),
                label_names,
                sample.difficult[keep].tolist(),
                sample.crowd[keep].tolist(),
                strict=True,
            )
        )
    return found


@pytest.mark.parametrize("there,back", [*product(WRITERS, repeat=2)])
@settings(max_examples=12, deadline=None)
@given(made=data_sets())
def test_boxes_and_classes_come_back(there, back, made):
    classes, images = made
    if not any(rows for _, _, rows in images):
        return  # VOC and YOLO recognise a data set by its boxes
    with tempfile.TemporaryDirectory() as folder:
        first = make(Path(folder, "made"), classes, images)
        lost = there == "yolo" or (there, back) == ("coco", "yolo")  # VOC makes crowds difficult
        want = contents(first, crowds=not lost)
        if not any(want.values()):
            return
        second = reopen(there, first, Path(folder, there))
        third = reopen(back, second, Path(folder, f"{back}-again"))
        got = contents(third)
        assert got.keys() == want.keys()
        for name, rows in want.items():
            assert len(got[name]) == len(rows)
            for (box, label, *flags), (known, known_label, *known_flags) in zip(
                got[name], rows, strict=True
            ):
                np.testing.assert_allclose(box, known, rtol=0, atol=1e-3)
                assert label == known_label
                assert flags == expected_flags(known_flags, (there, back))
        if "voc" not in (there, back):
            assert third.classes == classes


def reopen(form, dataset, folder):
    """Write a data set in a format and read it with the classes that VOC does not keep in order."""
    losses = []
    WRITERS[form](dataset, folder, None, losses=losses)
    classes = dataset.classes if form == "voc" else None
    return open_dataset(folder, "all", classes=classes)


def expected_flags(flags, formats):
    difficult, crowd = flags
    if "yolo" in formats:
        return [False, False]
    if "voc" in formats:
        return [difficult or crowd, False]
    return [difficult, crowd]
