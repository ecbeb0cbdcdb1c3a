"""What must hold of a data set, whatever its files hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mdssd.data import DataError, open_dataset
from mdssd.data.dataset import DetectionDataset
from mdssd.data.images import read_header


@contextmanager
def refusal_names(folder: Path) -> Iterator[None]:
    """Accept a DataError that names a path in the folder; raise any other exception."""
    try:
        yield
    except DataError as error:
        assert str(folder) in str(error), f"names no file: {error}"
        assert "\n" not in str(error), f"is not one line: {error}"


def assert_sound(dataset: DetectionDataset) -> None:
    """Check what training relies on: names, labels, and finite boxes that touch their image."""
    assert dataset.classes and all(isinstance(n, str) and n.strip() for n in dataset.classes)
    assert len(set(dataset.classes)) == len(dataset.classes)
    assert len(dataset) == len(dataset.image_ids)
    assert dataset.report().startswith(dataset.name)
    for index in range(len(dataset)):
        found = dataset.annotation(index)
        path = dataset.image_path(index)
        if path is None:  # the image is in a table
            height, width = dataset[index].image.shape[:2]
        else:
            assert path.is_file()
            width, height = upright_size(dataset, index, path)
        count = len(found.labels)
        assert found.boxes_xyxy.shape == (count, 4) and found.boxes_xyxy.dtype == np.float32
        assert found.difficult.shape == found.crowd.shape == (count,)
        assert ((found.labels >= 1) & (found.labels <= len(dataset.classes))).all()
        x1, y1, x2, y2 = found.boxes_xyxy.T
        assert np.isfinite(found.boxes_xyxy).all() and (x1 < x2).all() and (y1 < y2).all()
        assert (x2 > 0).all() and (y2 > 0).all()  # a box may extend beyond its image
        assert (x1 < width).all() and (y1 < height).all()


def upright_size(dataset: DetectionDataset, index: int, path: Path) -> tuple[int, int]:
    header = read_header(path)
    turned = dataset.upright(index) and header.orientation >= 5
    return (header.height, header.width) if turned else (header.width, header.height)


def open_and_check(path: Path, folder: Path, **options: Any) -> None:
    """Open a data set both ways: with faults as errors, and with faults collected."""
    with refusal_names(folder):
        assert_sound(open_dataset(path, **options))
    with refusal_names(folder):
        faults: list[str] = []
        assert_sound(open_dataset(path, faults=faults, **options))
        assert all(isinstance(line, str) for line in faults)
