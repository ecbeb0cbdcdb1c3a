"""Writing any data set out as a VOC folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import cv2
from tqdm import tqdm

from mdssd.data.dataset import DetectionDataset
from mdssd.data.sample import Sample


def write_voc(
    dataset: DetectionDataset, folder: str | os.PathLike[str], split: str = "trainval"
) -> Path:
    """Write images (PNG, so without loss), annotations and one split; gives the folder.

    What is written reads back through VOCDataset(folder, split, dataset.classes) as it was;
    crowds are written as difficult, VOC has no other word for them.
    The folder must be new or empty, else FileExistsError: it appears whole at the end, or not.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"write_voc: {folder} is there and not empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (work / name).mkdir(parents=True)
        names = []
        for index in tqdm(range(len(dataset)), desc=f"writing {folder}", delay=2):
            sample = dataset[index]
            name = sample.image_id.replace("/", "_")
            encoded = cv2.imencode(".png", cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR))[1]
            (work / "JPEGImages" / f"{name}.png").write_bytes(encoded.tobytes())
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
            # Nine digits bring back every float32 as it was.
            _add(bounds, key, f"{value:.9g}")
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text
