"""Writing any data set as a VOC folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from mdssd.data.dataset import DetectionDataset
from mdssd.data.sample import Sample
from mdssd.drawing import encode_image
from mdssd.system.progress import progress_bar


def write_voc(
    dataset: DetectionDataset, folder: str | os.PathLike[str], split: str = "trainval"
) -> Path:
    """Write a data set as a VOC folder: images as PNG, annotations and one split.

    `VOCDataset(folder, split, dataset.classes)` reads the same images and boxes back. Crowds
    become difficult boxes, because VOC has no crowds. The folder appears when it is complete.

    Args:
        dataset: the data set.
        folder: where to write. It must not exist, or be empty.
        split: the name of the split file.

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
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"write_voc: {folder} exists and is not an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (work / name).mkdir(parents=True)
        names = []
        for index in progress_bar(range(len(dataset)), desc=f"writing {folder}", delay=2):
            sample = dataset[index]
            name = sample.image_id.replace("/", "_")
            (work / "JPEGImages" / f"{name}.png").write_bytes(encode_image(sample.image))
            tree = _annotation(sample, f"{name}.png", dataset.classes)
            tree.write(work / "Annotations" / f"{name}.xml", encoding="utf-8")
            names.append(name)
        (work / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        work.chmod(0o755)
        os.replace(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return folder


def _annotation(sample: Sample, file_name: str, classes: list[str]) -> ElementTree.ElementTree:
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", file_name)
    size = ElementTree.SubElement(root, "size")
    for key, value in zip(("height", "width", "depth"), sample.image.shape, strict=True):
        _add(size, key, str(value))
    hard = sample.difficult | sample.crowd
    for box, label, difficult in zip(sample.boxes_xyxy, sample.labels, hard, strict=True):
        obj = ElementTree.SubElement(root, "object")
        _add(obj, "name", classes[label - 1])
        _add(obj, "difficult", str(int(difficult)))
        bounds = ElementTree.SubElement(obj, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            # Nine digits restore every float32 exactly.
            _add(bounds, key, f"{value:.9g}")
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text
