"""Data sets in KITTI's layout: image_2/ and label_2/, a text file per image, a row per box."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from mdssd.data.file_index import FileIndex, inner_name, is_hidden
from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.data.listed import ListedDataset, ListedImage, NamedBox, ReadOptions
from mdssd.data.photos import CollectFaults, progress
from mdssd.data.reasons import Tally
from mdssd.data.sample import DataError
from mdssd.data.splits import ALL, chosen_splits
from mdssd.data.text_files import read_label_rows, read_text
from mdssd.data.values import decode_text, number, shown, text
from mdssd.system.files import open_regular
from mdssd.system.text import plural

_PAIRS = (("image_2", "label_2"), ("images", "labels"), ("images", "label_2"), ("image", "label"))
_COLUMNS = (15, 16)  # with the score of a detection
_BOX = slice(4, 8)
_IGNORED = "dontcare"
_MAX_LIST = 64 << 20
_TRIED = 20  # files that decide whether a folder is KITTI's


def is_kitti(path: Path) -> bool:
    """Return whether a folder, or training/ in it, has KITTI's labels. Never raises."""
    return path.is_dir() and _folders(path) is not None


def open_kitti(path: Path, split: str | None, train: bool, options: ReadOptions) -> ListedDataset:
    """Open a folder in KITTI's layout; see `open_dataset`.

    The splits are the lists in ImageSets/. The folder testing/ of KITTI has no labels and is not
    read. A DontCare region becomes a crowd of each class: training leaves it out, and evaluation
    does not count detections in it.

    Raises:
        DataError: something cannot be read. The message names the file and the reason.
    """
    folders = _folders(path)
    if folders is None:
        raise DataError(f"{path}: holds no labels of KITTI, expected image_2/ with label_2/")
    reader = _Reader(path, *folders, options)
    lists = reader.lists()
    if not lists and split not in (None, ALL):
        raise DataError(f"{path}: no such split {split} (there are none)")
    chosen = chosen_splits(path, lists, split, train) if lists else []
    whole = not lists or split == ALL
    one = chosen[0] if lists and len(chosen) == 1 and not whole else ALL
    reader.read_all()
    return ListedDataset(
        f"{path.resolve().name} {one}",
        progress(list(reader.images(lists, chosen, whole)), f"reading {path}"),
        sorted(reader.names),
        options,
        format=f"KITTI ({folders[0].name}/ and {folders[1].name}/)",
        root=path,
        split=one if lists else None,
        dropped=reader.dropped,
        notes=[*reader.notes, *reader.tally.lines()],
        upright=False,
    )


class _Reader:
    """Reads the labels and finds their images.

    Attributes:
        names: the classes of all labels.
        dropped: a line for each row that cannot be used.
        notes: a line for each thing that was left out.
        tally: what was guessed.
    """

    def __init__(self, root: Path, images: Path, labels: Path, options: ReadOptions) -> None:
        self.root = root
        self.names: set[str] = set()
        self.dropped: list[str] = []
        self.notes: list[str] = []
        self.tally = Tally()
        places = (images.name, labels.name)  # which lines of a list may begin with
        self._images = FileIndex(images, IMAGE_SUFFIXES, places)
        self._labels = FileIndex(labels, (".txt",), places)
        self._options = options
        self._boxes: dict[str, list[NamedBox] | str] = {}
        self._dropped: dict[str, list[str]] = {}

    def lists(self) -> dict[str, Path]:
        """Return the lists of splits."""
        places = (self.root, self._labels.folder.parent)
        return {
            path.stem: path
            for folder in places
            for path in sorted((folder / "ImageSets").glob("*.txt"))
            if not is_hidden(path.name)
        }

    def read_all(self) -> None:
        """Read the labels of all splits: the classes must not depend on the split."""
        for stem, file in progress(sorted(self._labels.names.items()), f"reading {self.root}"):
            dropped = self._dropped[stem] = []
            try:
                self._boxes[stem] = list(self._rows(self._labels.folder / file, dropped))
            except DataError as error:
                self._boxes[stem] = str(error)
        self.names = {
            box.name
            for boxes in self._boxes.values()
            if not isinstance(boxes, str)
            for box in boxes
            if not box.crowd
        }

    def images(
        self, lists: dict[str, Path], chosen: list[str], whole: bool
    ) -> Iterator[ListedImage]:
        """Yield the images of some splits, or of all with those that no list names."""
        taken: dict[str, ListedImage | None] = {}
        for split in lists if whole else chosen:
            with CollectFaults(self._options.faults):
                for count, line in _list_lines(lists[split]):
                    where = f"{lists[split]}:{count}"
                    with CollectFaults(self._options.faults):
                        stem = self._stem(inner_name(line, self._images.folder, where))
                        if stem not in taken:
                            taken[stem] = None  # so a fault is named once, by the first list
                            taken[stem] = self._image(stem, where)
                        if (image := taken[stem]) is not None:
                            yield replace(image, split=split)
        if whole:
            for stem in sorted(self._labels.names.keys() - taken.keys()):
                with CollectFaults(self._options.faults):
                    yield self._image(stem, str(self._labels.folder / f"{stem}.txt"))
            if not self._options.unlabelled:
                alone = sorted({*self._images.names} - {*self._labels.names})
                if alone:
                    self.notes.append(
                        f"{self._images.folder}: {plural(len(alone), 'image')} without labels left "
                        f"out, such as {alone[0]}"
                    )

    def _stem(self, name: str) -> str:
        """Return the name of an image in a list without its ending, if it has one."""
        stem, ending = os.path.splitext(name)
        known = ending.lower() in (*IMAGE_SUFFIXES, ".txt")
        return stem if known and self._labels.find_stem(name) is None else name

    def _image(self, stem: str, where: str) -> ListedImage:
        label = self._labels.find_stem(stem)
        path = self._images.find_stem(stem)
        if label is None and not (self._options.unlabelled and path is not None):
            raise DataError(f"{self._labels.folder / stem}.txt: no such labels ({where} names it)")
        if path is None:
            raise DataError(f"{self._images.folder / stem}: no such image ({where} names it)")
        boxes: list[NamedBox] = []
        if label is not None:
            key = label.relative_to(self._labels.folder).with_suffix("").as_posix()
            read = self._boxes.get(key, [])
            if isinstance(read, str):
                raise DataError(read)
            boxes = read
            self.dropped += self._dropped[key]
        image_id = os.path.splitext(path.relative_to(self._images.folder).as_posix())[0]
        return ListedImage(image_id, path, self._spread(boxes), str(label or path))

    def _spread(self, boxes: list[NamedBox]) -> list[NamedBox]:
        """Return the boxes with each region without a class as a crowd of each class."""
        spread = []
        for box in boxes:
            if not box.crowd:
                spread.append(box)
                continue
            names = self._options.classes or sorted(self.names)
            spread += [box._replace(name=name) for name in names]
            self.tally.add(box.where, "a DontCare region; taken as a crowd of each class")
        return spread

    def _rows(self, path: Path, dropped: list[str]) -> Iterator[NamedBox]:
        for count, line in enumerate(read_label_rows(path), 1):
            if not line.strip():
                continue
            where = f"{path}:{count}"
            try:
                yield _row(line.split(), where)
            except ValueError as error:
                dropped.append(f"{where}: {error}")


def _row(fields: list[str], where: str) -> NamedBox:
    """Read a row. Raises ValueError with the reason."""
    if len(fields) not in _COLUMNS:
        raise ValueError(f"has {len(fields)} columns, expected 15, or 16 with a score")
    name = text(fields[0])
    if name is None or number(fields[0]) is not None:
        raise ValueError(f"the class is {shown(fields[0])}, expected a name")
    values = [number(value) for value in fields[_BOX]]
    known = [value for value in values if value is not None]
    if len(known) < 4:
        raise ValueError(f"the box is {shown(' '.join(fields[_BOX]))}, expected four numbers")
    x1, y1, x2, y2 = known
    crowd = name.lower() == _IGNORED
    return NamedBox((x1, y1, x2, y2), name, crowd=crowd, where=where)


def _list_lines(path: Path) -> list[tuple[int, str]]:
    lines = read_text(path, _MAX_LIST).splitlines()
    return [(count, line.strip()) for count, line in enumerate(lines, 1) if line.strip()]


def _folders(path: Path) -> tuple[Path, Path] | None:
    """Return the folders of the images and of the labels; None if there are no KITTI labels."""
    for root in (path, path / "training"):
        for images, labels in _PAIRS:
            if (root / images).is_dir() and (root / labels).is_dir() and _is_rows(root / labels):
                return root / images, root / labels
    return None


def _is_rows(folder: Path) -> bool:
    """Return whether one of the first labels that are not empty has a row of KITTI."""
    try:
        files = sorted(islice(folder.rglob("*.txt"), 1000))[: 5 * _TRIED]
    except OSError:
        return False
    tried = 0
    for path in files:
        try:
            with open_regular(path) as file:
                lines = decode_text(file.read(4000)).splitlines()
        except (OSError, ValueError):
            continue
        fields = lines[0].split() if lines else []
        if len(fields) in _COLUMNS and number(fields[0]) is None:
            return all(number(value) is not None for value in fields[1:])
        tried += bool(fields)
        if tried >= _TRIED:
            break
    return False
