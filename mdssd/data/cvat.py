"""Data sets that CVAT exports as "CVAT for images 1.1": one XML file for all images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdssd.data.cvat_xml import CvatFile, CvatImage, CvatShape, shape_box
from mdssd.data.dataset import SPLITS
from mdssd.data.file_index import FileIndex, inner_name, is_hidden
from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.data.listed import ListedDataset, ListedImage, NamedBox, ReadOptions
from mdssd.data.photos import CollectFaults
from mdssd.data.reasons import Tally
from mdssd.data.sample import DataError
from mdssd.data.splits import chosen_splits, split_in_name
from mdssd.data.values import flag, shown, stated_size, text
from mdssd.system.files import open_regular
from mdssd.system.progress import progress_bar
from mdssd.system.text import plural, some

_HEAD = 1 << 16
_TRIED = 20  # files of a folder that decide whether it is CVAT's
# CVAT gives this name to the images of a project that are in no subset.
_NO_SUBSET = "default"
# Shapes that mark something without a box around it.
_WITHOUT_BOX = ("points", "polyline", "tag", "skeleton")
_CROWD = ("is_crowd", "iscrowd", "crowd")


@dataclass
class _Survey:
    """What the files hold altogether: which splits, classes and how many images.

    used: the place of the first shape of each label.
    """

    splits: dict[str, None] = field(default_factory=dict)
    declared: dict[str, None] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    count: int = 0


def is_cvat(path: Path) -> bool:
    """Return whether a path is an XML file, or a folder with one of CVAT. Never raises."""
    try:
        if path.is_file():
            return path.suffix.lower() == ".xml"
        tried = (file for folder in _folders(path) for file in _xml_files(folder)[:_TRIED])
        return any(map(_begins_as_cvat, tried))
    except OSError:
        return False


def open_cvat(path: Path, split: str | None, train: bool, options: ReadOptions) -> ListedDataset:
    """Open an XML file of CVAT, or the ones in a folder; see `open_dataset`.

    The files are read twice: once for the splits and the classes, once for the images of the
    split. So only the images of the split are held in memory.

    Raises:
        DataError: something cannot be read. The message names the file and the reason.
    """
    root = path.parent if path.is_file() else path
    notes: list[str] = []
    files = [path] if path.is_file() else _find_files(path, notes)
    survey = _survey(files, root)
    splits = sorted(survey.splits, key=lambda name: (SPLITS + (name,)).index(name))
    if splits == [""]:
        splits = []
    chosen = chosen_splits(path, splits, split, train)
    one = chosen[0] if len(chosen) == 1 else "all"
    undeclared = sorted(survey.used.keys() - survey.declared.keys())
    if survey.declared and options.classes is None:
        notes += [
            f"{survey.used[name]}: the label {shown(name)} is not declared in <labels>; taken as a "
            "class"
            for name in undeclared
        ]
    shown_files = some([file.relative_to(root).as_posix() for file in files])
    reader = _Reader(root, chosen, options)
    dataset = ListedDataset(
        f"{root.resolve().name} {one}" if splits else root.resolve().name,
        progress_bar(
            reader.images(files), desc=f"reading {root}", total=survey.count, delay=2, leave=False
        ),
        [*survey.declared, *undeclared],
        options,
        format=f"CVAT for images ({shown_files})",
        root=root,
        split=one if splits else None,
        dropped=reader.dropped,
        notes=notes,
        upright=True,
    )
    dataset.notes += reader.tally.lines()
    more = reader.index_size - survey.count
    if more > 0:
        dataset.notes.append(
            f"{root}: {plural(more, 'image')} without an annotation left out: the folder has "
            f"{reader.index_size:,}, {shown_files} lists {survey.count:,}"
        )
    return dataset


def _survey(files: Sequence[Path], root: Path) -> _Survey:
    found = _Survey()
    for path in files:
        file = CvatFile(path)
        for image in file.images():
            found.count += 1
            found.splits[_split_of(image, file, root)] = None
            for shape in image.shapes:
                if shape.kind not in _WITHOUT_BOX and (name := text(shape.values.get("label"))):
                    found.used.setdefault(name, f"{path}:{shape.line}")
        found.declared.update(file.labels)
    if not found.count:
        raise DataError(f"{some(list(map(str, files)))}: lists no image")
    if "" in found.splits and len(found.splits) > 1:
        del found.splits[""]
        found.splits[_NO_SUBSET] = None
    return found


class _Reader:
    """Lists the images of the chosen splits.

    Attributes:
        dropped: a line for each shape whose box cannot be used.
        tally: shapes that have no box, or whose box was derived.
        index_size: the number of image files in the folder.
    """

    def __init__(self, root: Path, chosen: Sequence[str], options: ReadOptions) -> None:
        self.root = root
        self.dropped: list[str] = []
        self.tally = Tally()
        # What an image without a subset is in.
        self._otherwise = _NO_SUBSET if chosen else ""
        self._chosen = set(chosen) or {""}
        self._options = options
        self._index = FileIndex(root, IMAGE_SUFFIXES)
        self.index_size = len(self._index.all_names)

    def images(self, files: Sequence[Path]) -> Iterator[ListedImage]:
        """Yield the images of the chosen splits. One without a usable name is a fault."""
        for path in files:
            file = CvatFile(path)
            for image in file.images():
                split = _split_of(image, file, self.root) or self._otherwise
                if split in self._chosen:
                    listed = None
                    with CollectFaults(self._options.faults):
                        listed = self._image(image, split, path)
                    if listed is not None:
                        yield listed

    def _image(self, image: CvatImage, split: str, file: Path) -> ListedImage:
        name = text(image.values.get("name"))
        where = f"{file}:{image.line}: image {shown(image.values.get('name'))}"
        if name is None:
            number = shown(image.values.get("id"))
            raise DataError(
                f"{file}:{image.line}: image with id {number}: has no name, expected a file"
            )
        path = self._find(name, image.values.get("subset", ""), file, where)
        image_id = path.relative_to(self.root).as_posix()
        stem = os.path.splitext(image_id)[0]
        if self._index.names.get(stem) in (None, image_id):
            image_id = stem  # no other image has this name with another ending
        boxes = list(self._boxes(image.shapes, file))
        size = stated_size(image.values.get("width"), image.values.get("height"))
        return ListedImage(image_id, path, boxes, where, size, split=split)

    def _find(self, name: str, subset: str, file: Path, where: str) -> Path:
        """Return the image file. Frames of a video are named without their ending."""
        inner = inner_name(name, self.root, where)
        here = file.parent.relative_to(self.root).as_posix()
        places = [f"images/{subset}", "images", "", subset]
        forms = [os.path.normpath(f"{here}/{place}/{inner}") for place in places]
        for form in dict.fromkeys((*forms, f"/{inner}")):
            if (found := self._index.find(form)) is not None:
                return found
        for form in dict.fromkeys(forms):
            if (found := self._index.find_stem(form)) is not None:
                return found
        raise DataError(f"{self.root / forms[1]}: no such image ({where} names it)")

    def _boxes(self, shapes: Sequence[CvatShape], file: Path) -> Iterator[NamedBox]:
        for shape in shapes:
            place = f"{file}:{shape.line}"
            if shape.kind in _WITHOUT_BOX:
                self.tally.add(place, f"<{shape.kind}> has no box; left out")
                continue
            try:
                yield self._box(shape, place)
            except ValueError as error:
                self.dropped.append(f"{place}: {error}")

    def _box(self, shape: CvatShape, place: str) -> NamedBox:
        label = text(shape.values.get("label"))
        if label is None:
            raise ValueError(f"label is {shown(shape.values.get('label'))}, expected a name")
        box_xyxy = shape_box(shape)
        if box_xyxy is None:
            raise ValueError(
                f"<{shape.kind[:40]}> is unknown, expected box, polygon, mask, ellipse or cuboid"
            )
        if flag(shape.values.get("rotation")):
            self.tally.add(place, f"<{shape.kind}> is turned; the upright box around it is used")
        elif shape.kind != "box":
            self.tally.add(place, f"<{shape.kind}> is no box; the box around it is used")
        flags = {name.lower(): value for name, value in shape.attributes.items()}
        difficult = self._flag(flags, ("difficult",), place)
        return NamedBox(box_xyxy, label, difficult, self._flag(flags, _CROWD, place), where=place)

    def _flag(self, flags: dict[str, str], names: Sequence[str], place: str) -> bool:
        """Return whether one of some attributes of CVAT is set."""
        values = [flags[name] for name in names if name in flags]
        if any(flag(value) is None for value in values):
            self.tally.add(place, f"{names[0]} is {shown(values[0])}, expected true or false")
        return any(flag(value) for value in values)


def _split_of(image: CvatImage, file: CvatFile, root: Path) -> str:
    """Return the split of an image: its subset, its task's, its file's folder or name, or ""."""
    subset = text(image.values.get("subset")) or file.subset
    if subset and subset != _NO_SUBSET:
        return split_in_name(subset) or subset
    folder = file.path.parent
    if folder != root and folder.name.lower() in SPLITS:
        return folder.name.lower()
    return split_in_name(file.path.stem) or ""


def _folders(path: Path) -> list[Path]:
    """Return the folder and those in it that are named after a split."""
    inner = (child for child in path.iterdir() if child.name.lower() in SPLITS and child.is_dir())
    return [path, *sorted(inner)]


def _xml_files(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.suffix.lower() == ".xml" and not is_hidden(p.name))
    return sorted(files, key=lambda file: (file.name.lower() != "annotations.xml", file.name))


def _begins_as_cvat(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            data = file.read(_HEAD)
    except OSError:
        return False
    return "<annotations" in data.decode(json.detect_encoding(data[:4]), "ignore")


def _find_files(path: Path, notes: list[str]) -> list[Path]:
    """Return the files of CVAT in a folder; another XML file is named."""
    found = []
    for folder in _folders(path):
        for file in _xml_files(folder):
            if _begins_as_cvat(file):
                found.append(file)
            else:
                notes.append(f"{file}: is no file of CVAT; not read")
    return found
