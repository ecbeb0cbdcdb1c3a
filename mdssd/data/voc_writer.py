"""Writing any data set as a VOC folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from mdssd.data.dataset import DetectionDataset
from mdssd.data.output_names import distinct, ordered_splits, output_classes, output_images
from mdssd.data.reasons import Losses
from mdssd.data.values import shown
from mdssd.data.writing import Written, masks, new_folder, write_image
from mdssd.system.progress import progress_bar

# Characters that XML 1.0 cannot hold, and the one that its readers change.
_NO_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_voc(
    dataset: DetectionDataset,
    folder: str | os.PathLike[str],
    split: str | None = "trainval",
    *,
    link: bool = False,
    losses: list[str] | None = None,
) -> Path:
    """Write a data set as a VOC folder: JPEGImages/, Annotations/ and ImageSets/Main/.

    `VOCDataset(folder, split, dataset.classes)` reads the same images and boxes back. Image files
    are copied as they are; images that have no file are encoded as PNG. Boxes refer to the picture
    turned as its EXIF data say, and so do the stated sizes. Coordinates are written as the data set
    has them, also with fractions of a pixel. Crowds become difficult boxes, because VOC has no
    crowds.

    Args:
        dataset: the data set.
        folder: where to write. It must not exist, or be empty. Its contents appear when they are
            complete.
        split: the split to put all images into. None: those of the data set, or trainval. An image
            that is in none of them is in no list.
        link: whether to make symbolic links to the image files instead of copies.
        losses: receives a line for each kind of thing that the format cannot hold.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is not empty, or is a file.
        DataError: an image cannot be read.

    Example:
        >>> import tempfile
        >>> from mdssd.data import SyntheticScenes, write_voc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_voc(SyntheticScenes(2, image_size=96), f"{folder}/scenes")
        ...     sorted(path.name for path in root.iterdir())
        ['Annotations', 'ImageSets', 'JPEGImages']
    """
    found = Losses()
    classes = _xml_classes(dataset, found)
    images = output_images(dataset, split, found, spaces=False)
    if not any(image.splits for image in images):
        for image in images:
            found.add("image", "without splits", image.name, "written as trainval")
        images = [image._replace(splits=("trainval",)) for image in images]
    used: set[int] = set()
    with new_folder(folder, ("ImageSets",)) as work:
        for image in progress_bar(images, desc=f"writing {folder}", delay=2):
            place = work / "JPEGImages"
            written = write_image(dataset, image, [place], found, link=link, jpg=True)
            if written.format != "JPEG":
                outcome = f"{written.done}, but some tools for VOC look only for .jpg"
                found.add("image", f"in the format {written.format}", image.name, outcome)
            path = work / "Annotations" / f"{image.name}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            tree = _annotation(written, f"{image.name}{written.suffix}", classes)
            tree.write(path, encoding="utf-8")
            _count(written, image.name, found)
            used |= set(written.sample.labels.tolist())
        lists = work / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        for name in ordered_splits(images):
            names = [image.name for image in images if name in image.splits]
            (lists / f"{name}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    _count_classes(classes, used, found)
    if losses is not None:
        losses += found.lines()
    return Path(folder)


def _xml_classes(dataset: DetectionDataset, losses: Losses) -> list[str]:
    """Return the names of the classes as XML can hold them."""
    names = output_classes(dataset)
    safe = [_NO_XML.sub(" ", name).strip() for name in names]
    for name, new in zip(names, safe, strict=True):
        if name != new:
            what, example = (
                "with a character that XML cannot hold",
                f"{shown(name)} to {shown(new)}",
            )
            losses.add("class name", what, example, "renamed")
    return distinct(dataset, safe)


def _count(written: Written, name: str, losses: Losses) -> None:
    """Count what VOC cannot hold of the boxes of an image."""
    sample, boxes_xyxy = written.sample, written.boxes_xyxy
    crowds = int(sample.crowd.sum())
    outcome = "VOC cannot hold that, written as difficult boxes"
    losses.add("box", "marked as a crowd", f"in {name}", outcome, crowds)
    fractions = int((boxes_xyxy != np.round(boxes_xyxy)).any(axis=1).sum())
    outcome = "written so, but some tools for VOC read whole numbers only"
    losses.add("box", "with fractions of a pixel", f"in {name}", outcome, fractions)
    outcome = "VOC cannot hold that, left out"
    losses.add("box", "with the area of a mask", f"in {name}", outcome, masks(sample))


def _count_classes(classes: Sequence[str], used: set[int], losses: Losses) -> None:
    kept = [name for label, name in enumerate(classes, 1) if label in used]
    unused = [name for name in classes if name not in kept]
    outcome = "VOC cannot hold that, left out"
    losses.add("class", "without a box", shown(unused[0] if unused else ""), outcome, len(unused))
    if kept != sorted(kept):
        outcome = "VOC has no order, so label 1 is the first by alphabet unless --classes says more"
        losses.add("class", "in another order than by alphabet", shown(kept[0]), outcome, len(kept))


def _annotation(
    written: Written, file_name: str, classes: Sequence[str]
) -> ElementTree.ElementTree[ElementTree.Element]:
    root = ElementTree.Element("annotation")
    path = PurePosixPath("JPEGImages", file_name)
    _add(root, "folder", str(path.parent))
    _add(root, "filename", path.name)
    size = ElementTree.SubElement(root, "size")
    for key, value in zip(("width", "height", "depth"), (*written.size, 3), strict=True):
        _add(size, key, str(value))
    sample = written.sample
    hard = sample.difficult | sample.crowd
    for box, label, difficult in zip(written.boxes_xyxy, sample.labels, hard, strict=True):
        obj = ElementTree.SubElement(root, "object")
        _add(obj, "name", classes[label - 1])
        _add(obj, "pose", "Unspecified")
        _add(obj, "truncated", "0")
        _add(obj, "difficult", str(int(difficult)))
        bounds = ElementTree.SubElement(obj, "bndbox")
        for key, value in zip(
            ("xmin", "ymin", "xmax", "ymax"), box.astype(np.float32), strict=True
        ):
            # The fewest digits that restore the float32.
            _add(bounds, key, np.format_float_positional(value, trim="-"))
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text
