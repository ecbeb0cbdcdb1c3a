"""Writing any data set as COCO JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mdssd.data.dataset import DetectionDataset
from mdssd.data.output_names import (
    disjoint_splits,
    ordered_splits,
    output_classes,
    output_images,
)
from mdssd.data.reasons import Losses
from mdssd.data.sample import Sample
from mdssd.data.writing import new_folder, write_image
from mdssd.system.progress import progress_bar


def write_coco(
    dataset: DetectionDataset,
    folder: str | os.PathLike[str],
    split: str | None = None,
    *,
    link: bool = False,
    losses: list[str] | None = None,
) -> Path:
    """Write a data set as COCO JSON: images/ and annotations/instances_<split>.json.

    Image files are copied as they are. Boxes refer to the picture turned as its EXIF data say, and
    so do the stated sizes. Ids of images, annotations and categories count from 1 in the order of
    the data set; an image or annotation has the same id in each split that holds it.

    Each split is a file. The images of a split "trainval" beside "train" or "val" are only in
    those. COCO has no difficult boxes. Such a box has the additional key "difficult", which mdssd
    reads.

    Args:
        dataset: the data set.
        folder: where to write. It must not exist, or be empty. Its contents appear when they are
            complete.
        split: the split to put all images into. None: those of the data set, or train.
        link: whether to make symbolic links to the image files instead of copies.
        losses: receives a line for each kind of thing that the format cannot hold.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is not empty, or is a file.
        DataError: an image cannot be read.

    Example:
        >>> import tempfile
        >>> from mdssd.data import SyntheticScenes, open_dataset, write_coco
        >>> scenes = SyntheticScenes(2, image_size=96)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_coco(scenes, f"{folder}/scenes", "test")
        ...     dataset = open_dataset(root / "annotations/instances_test.json")
        >>> len(dataset), dataset.classes == scenes.classes
        (2, True)
    """
    found, classes = Losses(), output_classes(dataset)
    images = disjoint_splits(output_images(dataset, split, found), found, "trainval")
    files: list[tuple[str, tuple[int, int]]] = []
    boxes: list[NDArray[np.float64] | None] = []
    with new_folder(folder, ("annotations",)) as work:
        for image in progress_bar(images, desc=f"writing {folder}", delay=2):
            written = write_image(dataset, image, [work / "images"], found, link=link)
            files.append((f"{image.name}{written.suffix}", written.size))
            turned = not np.array_equal(written.boxes_xyxy, written.sample.boxes_xyxy)
            boxes.append(written.boxes_xyxy if turned else None)
            _count(written.sample, image.name, found)
        (work / "annotations").mkdir()
        categories = [
            {"id": number, "name": name, "supercategory": ""}
            for number, name in enumerate(classes, 1)
        ]
        for name in ordered_splits(images):
            chosen = [image.number for image in images if name in image.splits]
            path = work / "annotations" / f"instances_{name}.json"
            with open(path, "w") as file:
                file.write('{"info": ' + json.dumps({"description": dataset.name}))
                file.write(', "licenses": [], "categories": ' + json.dumps(categories))
                _write_list(file, "images", (_image(k, *files[k]) for k in chosen))
                _write_list(file, "annotations", _annotations(dataset, boxes, set(chosen)))
                file.write("}\n")
    if losses is not None:
        losses += found.lines()
    return Path(folder)


def short_xywh(box_xyxy: Sequence[float]) -> list[float]:
    """Return (left, top, width, height) with the fewest digits that restore each float32.

    Example:
        >>> import numpy as np
        >>> from mdssd.data.coco_writer import short_xywh
        >>> short_xywh(np.float32([10.1, 20, 30.3, 40]).tolist())
        [10.1, 20, 20.2, 20]
    """
    x1, y1, x2, y2 = box_xyxy
    exact = (x1, y1, x2 - x1, y2 - y1)
    want = np.array(box_xyxy, np.float32)
    for digits in (1, 2, 3, 4, 6, 8):
        x, y, width, height = (round(value, digits) for value in exact)
        if np.array_equal(np.array((x, y, x + width, y + height), np.float32), want):
            return [int(v) if v == int(v) else v for v in (x, y, width, height)]
    return list(exact)


def _count(sample: Sample, name: str, losses: Losses) -> None:
    outcome = 'kept as "difficult": 1, which COCO\'s tools ignore: they take ordinary boxes'
    losses.add("box", "marked difficult", f"in {name}", outcome, int(sample.difficult.sum()))


def _image(index: int, file_name: str, size: tuple[int, int]) -> dict[str, Any]:
    return {"id": index + 1, "file_name": file_name, "width": size[0], "height": size[1]}


def _annotations(
    dataset: DetectionDataset, boxes: Sequence[NDArray[np.float64] | None], chosen: set[int]
) -> Iterator[dict[str, Any]]:
    """Yield the annotations of the chosen images.

    boxes: the boxes of each image where they differ from those of the data set.
    """
    number = 0
    for index, other in enumerate(boxes):
        sample = dataset.annotation(index)
        first = number + 1
        number += len(sample.labels)
        if index not in chosen:
            continue
        boxes_xyxy = sample.boxes_xyxy if other is None else other
        for k, box in enumerate(boxes_xyxy.tolist()):
            entry = {
                "id": first + k,
                "image_id": index + 1,
                "category_id": int(sample.labels[k]),
                "bbox": short_xywh(box),
                "area": float(str(np.float32(sample.area[k]))),
                "iscrowd": int(sample.crowd[k]),
                "segmentation": [],
            }
            if sample.difficult[k]:
                entry["difficult"] = 1
            yield entry


def _write_list(file: TextIO, name: str, entries: Iterable[dict[str, Any]]) -> None:
    """Write a list one entry at a time, so that memory does not grow with it."""
    file.write(f', "{name}": [')
    between = "\n"
    for entry in entries:
        file.write(between + json.dumps(entry))
        between = ",\n"
    file.write("]")
