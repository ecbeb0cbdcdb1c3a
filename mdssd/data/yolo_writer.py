"""Writing any data set as YOLO labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from mdssd.data.dataset import DetectionDataset
from mdssd.data.output_names import (
    OutputImage,
    disjoint_splits,
    ordered_splits,
    output_classes,
    output_images,
)
from mdssd.data.reasons import Losses
from mdssd.data.writing import Written, masks, new_folder, write_image
from mdssd.system.progress import progress_bar

# The formats that all tools for YOLO read.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF")
# Of an edge. 1e-11 of a width of 10,000 pixels is 1e-7 pixel, and a box comes back as the same
# float32 if its corners are 1 or more. The centre of two such numbers needs one digit more.
_DIGITS = 11


def write_yolo(
    dataset: DetectionDataset,
    folder: str | os.PathLike[str],
    split: str | None = None,
    *,
    link: bool = False,
    losses: list[str] | None = None,
) -> Path:
    """Write a data set as YOLO labels: images/, labels/ and data.yaml, as Ultralytics reads them.

    Image files are copied as they are. Boxes refer to the picture turned as its EXIF data say.

    data.yaml names the splits train, val and test. The images of a split "trainval" go to train,
    unless they are in val; "valid" is called val. Without a val, which Ultralytics requires, val
    names the same images as test. An image in several splits is written to each of them.

    YOLO labels hold no flags: difficult boxes become ordinary ones, and crowds are left out, since
    a box around a group would be learnt as an object.

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
        >>> from mdssd.data import SyntheticScenes, write_yolo
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_yolo(SyntheticScenes(2, image_size=96), f"{folder}/scenes")
        ...     sorted(path.name for path in root.iterdir())
        ['data.yaml', 'images', 'labels']
    """
    found, classes = Losses(), output_classes(dataset)
    images = _in_folders(output_images(dataset, split, found), found)
    with new_folder(folder, ("data.yaml",)) as work:
        for image in progress_bar(images, desc=f"writing {folder}", delay=2):
            folders = [work / "images" / name for name in image.splits]
            written = write_image(dataset, image, folders, found, link=link)
            if written.format not in _FORMATS:
                what = f"in the format {written.format}"
                found.add(
                    "image", what, image.name, f"{written.done}, but not all tools for YOLO read it"
                )
            lines = "".join(_lines(written, image.name, found))
            for name in image.splits:
                path = work / "labels" / name / f"{image.name}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(lines)
        content = _data_yaml(ordered_splits(images), classes, found)
        (work / "data.yaml").write_text(content, encoding="utf-8")
    if losses is not None:
        losses += found.lines()
    return Path(folder)


def _in_folders(images: Sequence[OutputImage], losses: Losses) -> list[OutputImage]:
    """Return the images with the names of the folders that they go to in place of their splits."""
    result = []
    for image in disjoint_splits(images, losses, "train"):
        splits = tuple(dict.fromkeys("val" if s == "valid" else s for s in image.splits))
        if "valid" in image.splits:
            losses.add("image", "of the split valid", image.name, "written as val")
        if len(splits) > 1:
            example = f"{image.name} in {' and '.join(splits)}"
            losses.add("image", "in several splits", example, "written to each")
        result.append(image._replace(splits=splits))
    return result


def _lines(written: Written, name: str, losses: Losses) -> list[str]:
    """Return the lines of a label file."""
    sample = written.sample
    size = np.array(written.size * 2, float)
    hard = int((sample.difficult & ~sample.crowd).sum())
    outcome = "YOLO labels cannot hold that, written as ordinary boxes"
    losses.add("box", "marked difficult", f"in {name}", outcome, hard)
    outcome = "YOLO labels cannot hold that, left out"
    losses.add("box", "marked as a crowd", f"in {name}", outcome, int(sample.crowd.sum()))
    losses.add("box", "with the area of a mask", f"in {name}", outcome, masks(sample))
    lines: list[str] = []
    boxes, labels = written.boxes_xyxy[~sample.crowd], sample.labels[~sample.crowd]
    for box, label in zip(boxes, labels, strict=True):
        values = _centre_and_size(box / size)
        if min(values) < 0 or max(values) > 1:
            outcome = "YOLO's tools refuse the image, so cut to the image"
            losses.add("box", "that reaches far beyond its image", f"in {name}", outcome)
            values = _centre_and_size(np.clip(box / size, 0, 1))
        numbers = [f"{value:.{_DIGITS + 1}f}".rstrip("0").rstrip(".") for value in values]
        lines.append(" ".join([str(label - 1), *numbers]) + "\n")
    twice = len(lines) - len(set(lines))
    losses.add("box", "that repeats another", f"in {name}", "YOLO's tools take it once", twice)
    return lines


def _centre_and_size(box_xyxy: NDArray[np.float64]) -> list[float]:
    x1, y1, x2, y2 = (round(edge, _DIGITS) for edge in box_xyxy.tolist())
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def _data_yaml(splits: Sequence[str], classes: Sequence[str], losses: Losses) -> str:
    """Return the text of data.yaml.

    It has no `path`: Ultralytics then takes the folder of the file, wherever it is.
    """
    content: dict[str, object] = {name: f"images/{name}" for name in splits}
    if "val" not in splits:
        if "test" in splits:
            content["val"] = content["test"]
            losses.say("no split val, which Ultralytics requires: data.yaml names test as val, too")
        else:
            losses.say("no split val, which Ultralytics requires: name one in data.yaml")
    content["names"] = dict(enumerate(classes))
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=10**6)
