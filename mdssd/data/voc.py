"""Data sets in the folder layout of PASCAL VOC."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeXml
from tqdm import tqdm

from mdssd.data.dataset import SPLITS, SplitLists
from mdssd.data.images import IMAGE_SUFFIXES, path_inside, read_size
from mdssd.data.photos import PhotoDataset
from mdssd.data.sample import Annotation, BoxRow, DataError

# (width, height) as stated, and (class, xyxy, difficult) of each object
_Parsed = tuple[tuple[int, int], list[tuple[str, tuple[float, float, float, float], bool]]]
_FOLDERS = ("Annotations", "JPEGImages")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
T = TypeVar("T")


class VOCDataset(PhotoDataset):
    """A folder with JPEGImages, Annotations and (optionally) ImageSets/Main.

    root: the folder. split: the name of a file in ImageSets/Main; "all", or a folder without
    ImageSets/Main, takes every annotation. For the lines of the file see `read_split`.
    classes: the names in label order (label k is classes[k - 1]); None: every name found in
    Annotations, sorted, the same for every split.
    unlabelled: take images of the split without an annotation too, as a server's test set has them;
    `labelled` is then False, and no folder Annotations is needed where `classes` are given.
    Coordinates are kept as written. Boxes without area or outside the image are left out and
    listed in `dropped`; an annotation without boxes is an image of background.
    Raises DataError, naming file and reason, for whatever cannot be read. Where `faults` is a
    list, what is wrong with a single image goes there instead, and the image is left out.
    """

    submission = "voc"

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "trainval",
        classes: Sequence[str] | None = None,
        *,
        unlabelled: bool = False,
        faults: list[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.split: str = split
        super().__init__(f"{self.root.resolve().name} {split}")
        needed = ["JPEGImages"] if unlabelled and classes is not None else _FOLDERS
        for folder in needed:
            if not (self.root / folder).is_dir():
                raise DataError(f"{self.root}: not in VOC layout, it has no folder {folder}")
        listed = self._read_split()
        parsed = self._read_all(faults) if classes is None else {}
        found = sorted({name for _, objects in parsed.values() for name, _, _ in objects})
        self.classes = list(found if classes is None else classes)
        if not self.classes:
            raise DataError(f"{self.root / 'Annotations'}: no annotation holds an object")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"VOCDataset: classes names one twice: {', '.join(self.classes)}")
        label_of = {name: k for k, name in enumerate(self.classes, 1)}
        for image_id in _progress(listed, f"reading {self.name}"):
            try:
                self._add(image_id, parsed, label_of, unlabelled)
            except DataError as error:
                if faults is None:
                    raise
                if str(error) not in faults:
                    faults.append(str(error))

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """Read the lists of ImageSets/Main, and add those images that have no annotation."""
        folder = self.root / "ImageSets" / "Main"
        listed: dict[str, list[str]] = {}
        for name in SPLITS:
            path = folder / f"{name}.txt"
            if not path.is_file():
                continue
            try:
                listed[name] = read_split(path)
            except DataError as error:
                faults.append(str(error))
                continue
            faults += [
                f"{path}: lists {image_id}, which has no annotation"
                for image_id in listed[name]
                if self.split != name
                and not (self.root / "Annotations" / f"{image_id}.xml").is_file()
            ]
        return [SplitLists(folder, listed, self.image_ids)]

    def _add(
        self,
        image_id: str,
        parsed: dict[Path, _Parsed],
        label_of: dict[str, int],
        unlabelled: bool,
    ) -> None:
        path = self._annotation_path(image_id)
        if path.is_file():
            stated, objects = parsed.get(path) or _read_annotation(path)
        elif unlabelled:
            stated, objects, self.labelled = (0, 0), [], False
        else:
            raise DataError(f"{path}: no such annotation (the split {self.split} lists it)")
        image_path = self._image_path(image_id)
        size = read_size(image_path)
        fault = None
        if size is None:
            size = stated if min(stated) > 0 else None
        elif size != stated and path.is_file():
            fault = (
                f"{path}: states {stated[0]} x {stated[1]}, "
                f"{image_path.name} is {size[0]} x {size[1]}"
            )
        rows = []
        for name, box_xyxy, difficult in objects:
            if name not in label_of:
                raise DataError(
                    f"{path}: class {name!r} is not among the classes {', '.join(self.classes)}"
                )
            rows.append(BoxRow(box_xyxy, label_of[name], difficult))
        self.size_faults += [fault] if fault else []
        self.image_ids.append(image_id)
        self._paths.append(image_path)
        self._annotations.append(Annotation(rows, size, str(path), self.dropped))

    def _read_split(self) -> list[str]:
        folder = self.root / "ImageSets" / "Main"
        if self.split == "all" or not folder.is_dir():
            ids = sorted(path.stem for path in (self.root / "Annotations").glob("*.xml"))
            if not ids:
                raise DataError(f"{self.root / 'Annotations'}: holds no annotation (*.xml)")
            return ids
        path = path_inside(folder, f"{self.split}.txt", str(folder))
        if not path.is_file():
            there = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
            raise DataError(f"{path}: no such split (there are: {there}; or all)")
        return read_split(path)

    def _read_all(self, faults: list[str] | None) -> dict[Path, _Parsed]:
        """Every annotation, whatever the split: the classes must not depend on the split."""
        folder = self.root / "Annotations"
        paths = [path_inside(folder, path.name, str(path)) for path in sorted(folder.glob("*.xml"))]
        if not paths:
            raise DataError(f"{folder}: holds no annotation (*.xml)")
        parsed = {}
        for path in _progress(paths, f"reading {folder}"):
            try:
                parsed[path] = _read_annotation(path)
            except DataError as error:
                if faults is None:
                    raise
                faults.append(str(error))
        return parsed

    def _annotation_path(self, image_id: str) -> Path:
        return path_inside(self.root / "Annotations", f"{image_id}.xml", f"split {self.split}")

    def _image_path(self, image_id: str) -> Path:
        folder = self.root / "JPEGImages"
        for suffix in (*IMAGE_SUFFIXES, *(s.upper() for s in IMAGE_SUFFIXES)):
            path = path_inside(folder, image_id + suffix, f"split {self.split}")
            if path.is_file():
                return path
        raise DataError(
            f"{folder / image_id}: no such image (looked for {', '.join(IMAGE_SUFFIXES)})"
        )


class VOCYears(PhotoDataset):
    """The same split of several VOC folders, one after another: 07+12 is VOC2007 and VOC2012.

    years: the folders, one or more. classes: theirs where they are the same, else all, sorted.
    """

    def __init__(self, years: Sequence[VOCDataset]) -> None:
        super().__init__(" + ".join(year.name for year in years))
        self.years = list(years)
        same = all(year.classes == years[0].classes for year in years)
        names = {name for year in years for name in year.classes}
        self.classes = list(years[0].classes) if same else sorted(names)
        self.labelled = all(year.labelled for year in years)
        for year in years:
            label_of = np.array([0, *(self.classes.index(name) + 1 for name in year.classes)])
            self.image_ids += year.image_ids
            self.dropped += year.dropped
            self.size_faults += year.size_faults
            self._paths += year._paths
            for annotation in year._annotations:
                own = copy.copy(annotation)
                own.labels = label_of[annotation.labels]
                self._annotations.append(own)

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """The lists of each folder."""
        return [lists for year in self.years for lists in year.split_lists(faults)]


def read_split(path: Path) -> list[str]:
    """The images that a file of ImageSets/Main lists, each once. Raises DataError.

    The first word of a line counts, or all of it where an annotation has that name.
    """
    annotations = path.parents[2] / "Annotations"

    def image_id(line: str) -> str:
        whole = line.strip()
        first = whole.split()[0]
        return whole if whole != first and (annotations / f"{whole}.xml").is_file() else first

    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    ids = list(dict.fromkeys(image_id(line) for line in lines if line.strip()))
    if not ids:
        raise DataError(f"{path}: the split lists no image")
    return ids


def _progress(items: Sequence[T], what: str) -> Iterable[T]:
    return tqdm(items, desc=what, delay=2, leave=False)


def _parse(path: Path) -> Element:
    try:
        return SafeXml.fromstring(path.read_bytes(), forbid_dtd=True)
    except DefusedXmlException as error:
        raise DataError(f"{path}: refused, it declares a DTD or entities ({error})") from None
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: broken XML ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _read_annotation(path: Path) -> _Parsed:
    root = _parse(path)
    width = _number(root, "size/width", path)
    height = _number(root, "size/height", path)
    objects = []
    for obj in root.iter("object"):
        x1, y1, x2, y2 = (_number(obj, f"bndbox/{side}", path) for side in _SIDES)
        difficult = obj.find("difficult") is not None and _number(obj, "difficult", path) != 0
        objects.append((_class_name(obj, path), (x1, y1, x2, y2), difficult))
    if not (np.isfinite(width) and np.isfinite(height)):
        raise DataError(f"{path}: size is {width} x {height}, expected two numbers")
    return (int(width), int(height)), objects


def _class_name(obj: Element, path: Path) -> str:
    name = (obj.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: an object has no name")
    return name


def _number(parent: Element, name: str, path: Path) -> float:
    text = parent.findtext(name)
    if text is None:
        raise DataError(f"{path}: {parent.tag} has no {name}")
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{path}: {name} is {text!r}, expected a number") from None
