"""Folders with COCO files, one for each split."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdssd.data.coco import FOLDERS, CocoDataset, find_folder
from mdssd.data.coco_json import CocoContent, Key, id_order
from mdssd.data.dataset import SPLITS, SplitLists
from mdssd.data.file_index import inner_name, is_hidden
from mdssd.data.joined import JoinedDataset
from mdssd.data.listed import ReadOptions
from mdssd.data.photos import CollectFaults
from mdssd.data.sample import DataError
from mdssd.data.splits import chosen_splits, split_in_name
from mdssd.system.files import open_regular
from mdssd.system.text import some

# Files of COCO that hold no boxes, or the same boxes of people again.
_OTHERS = ("person_keypoints_", "captions_", "stuff_", "panoptic_", "image_info_")
_USUAL = re.compile(r"instances_.*|_annotations\.coco", re.IGNORECASE)
_LISTS = re.compile(r'"(?:images|annotations)"\s*:\s*\[')
_CATEGORIES = re.compile(r'"categories"\s*:\s*\[')
_HEAD = 1 << 16
_TRIED = 20  # files of a folder that decide whether it has COCO files


@dataclass
class _Files:
    """The COCO file of each split, and a line about each file that is not read."""

    splits: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class CocoFolder(JoinedDataset):
    """One or all of the splits that a folder has as COCO files.

    The classes are the categories of all files, by their names, in the order of their ids; so they
    do not depend on the split. `category_ids` and `submission` are set if every class has one id
    in the files that are opened.

    Args:
        root: the folder.
        files: the file of each split.
        chosen: the splits to open.
        options: how to read them.
        image_dir: the folder of the images, or of a folder for each split. None: the usual places.
        train: whether it is a fault if the classes of another split cannot be read. Otherwise, or
            if the classes are chosen, it is a note.
    """

    def __init__(
        self,
        root: Path,
        files: dict[str, Path],
        chosen: Sequence[str],
        options: ReadOptions,
        image_dir: Path | None = None,
        train: bool = False,
    ) -> None:
        self.root = root
        self._files = files
        self._chosen = list(chosen)
        self._image_dir = image_dir
        self._names: dict[str, list[str]] = {}  # of the images of the splits that are not opened
        notes: list[str] = []
        contents = self._read_others(options, notes, train and options.classes is None)
        opened: dict[str, CocoDataset] = {}
        for name in chosen:
            # Of several files, a damaged one must not hide the others.
            with CollectFaults(options.faults if len(chosen) > 1 else None):
                opened[name] = CocoDataset(
                    files[name],
                    image_dir,
                    options.classes,
                    unlabelled=options.unlabelled,
                    faults=options.faults,
                    limits=options.limits,
                    orientation=options.orientation,
                    part=True,
                )
                contents[name] = opened[name].known_classes, opened[name].has_boxes
        if not opened:
            first = "".join((options.faults or [])[:1])
            raise DataError(f"{root}: no file can be used; the first fault: {first}")
        self._chosen, parts = list(opened), list(opened.values())
        ids = _ids_of_classes([contents[name] for name in files if name in contents])
        if any(len(numbers) > 1 for numbers in ids.values()):
            name = next(name for name, numbers in ids.items() if len(numbers) > 1)
            notes.append(
                f"{root}: the files have different ids for the category {name!r}: "
                f"{some(list(map(str, ids[name])))}; categories are joined by their names"
            )
        classes = list(ids)
        if options.classes is not None:
            classes = [name for name in options.classes if name in ids]
        shown = [files[name].relative_to(root).as_posix() for name in opened]
        where = str(files[chosen[0]] if len(chosen) == 1 else root)
        if not classes:
            raise DataError(
                f"{where}: has none of the classes {some(options.classes or [])}; "
                f"it has {some(list(ids))}"
            )
        super().__init__(parts, classes)
        self.notes = [*self.notes, *notes]
        self.note_classes(where)
        self.split = chosen[0] if len(chosen) == 1 else "all"
        self.name = f"{root.resolve().name} {self.split}"
        self.format = f"COCO JSON ({some(shown)})"
        self._set_category_ids(parts, ids)
        if max(Counter(self.image_ids).values(), default=0) > 1:
            self.image_ids = [
                f"{name}/{image_id}" for name, part in opened.items() for image_id in part.image_ids
            ]
            self.submission = None

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """Return which images each file lists; two files list the same one by the same path."""
        listed: dict[str, list[str]] = {}
        own: list[str] = []
        for name, path in self._files.items():
            if name in self._chosen:
                part = self.parts[self._chosen.index(name)]
                paths = [part.image_path(index) for index in range(len(part))]
                listed[name] = [self._shown(path) for path in paths if path is not None]
                own += listed[name]
            elif names := self._names.get(name):
                with CollectFaults([]):  # the images of a split that is not opened may be missing
                    listed[name] = list(self._places(path, names))
        return [SplitLists(self.root, listed, own)]

    def _read_others(
        self, options: ReadOptions, notes: list[str], needed: bool
    ) -> dict[str, tuple[dict[str, Key], bool]]:
        """Read the categories and the names of the images of the splits that are not opened."""
        found = {}
        for name, path in self._files.items():
            if name in self._chosen:
                continue
            try:
                content = CocoContent(path, keep_rows=False)
                found[name] = content.classes()[0], bool(content.boxes)
            except DataError as error:
                if needed:  # a network or a data set of other classes would be made without notice
                    with CollectFaults(options.faults):
                        raise DataError(
                            f"{error}; the classes are those of all splits, so repair this file, "
                            "take it out of the folder, or name the classes (--classes)"
                        ) from None
                else:
                    notes.append(f"{error}; its categories are not known")
                continue
            self._names[name] = [image.name for image in content.images.values()]
        return found

    def _places(self, path: Path, names: list[str]) -> Iterator[str]:
        folder = find_folder(path, names, self._image_dir)
        for name in names:
            with CollectFaults([]):
                yield self._shown(folder / inner_name(name, folder, str(path)))

    def _shown(self, path: Path) -> str:
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return str(path)

    def _set_category_ids(self, parts: Sequence[CocoDataset], ids: dict[str, list[Key]]) -> None:
        own: defaultdict[str, set[Key]] = defaultdict(set)
        for part in parts:
            for name, number in part.known_classes.items():
                own[name].add(number)
        numbers = [number for name in self.classes for number in own[name] or ids[name]]
        if len(numbers) == len(set(numbers)) == len(self.classes):
            self.category_ids = numbers
            self.submission = "coco"


def is_coco_folder(path: Path) -> bool:
    """Return whether a folder has a COCO file where such files usually are. Never raises."""
    try:
        return any(
            _is_coco(file) for folder in _folders(path) for file in _json_files(folder)[:_TRIED]
        )
    except OSError:
        return False


def open_coco_folder(
    path: Path,
    split: str | None,
    train: bool,
    options: ReadOptions,
    image_dir: str | os.PathLike[str] | None = None,
) -> CocoFolder:
    """Open the COCO files of a folder, one for each split; see `open_dataset`.

    A single file that is not named after a split is opened for training and testing.
    """
    found = _find_files(path, options)
    chosen = chosen_splits(path, found.splits, split, train)
    images = None if image_dir is None else Path(image_dir)
    dataset = CocoFolder(path, found.splits, chosen, options, images, train)
    dataset.notes = [*dataset.notes, *found.notes]
    return dataset


def _folders(path: Path) -> list[Path]:
    names = (*FOLDERS, *SPLITS)
    inner = (child for child in path.iterdir() if child.name.lower() in names and child.is_dir())
    return [path, *sorted(inner)]


def _json_files(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.suffix.lower() == ".json")
    return sorted(path for path in files if not is_hidden(path.name))


def _is_coco(path: Path) -> bool:
    """Return whether a file is named as a COCO file, or begins as one."""
    if _USUAL.fullmatch(path.stem):
        return True
    text = _beginning(path)
    # Categories alone are also in files of other tools; in a long file the images may follow.
    whole = path.stat().st_size <= _HEAD if text else True
    lists = _LISTS if whole or _LISTS.search(text) else _CATEGORIES
    return text.startswith("{") and lists.search(text) is not None


def _is_damaged(path: Path) -> bool:
    """Return whether a file is named after a split, as a COCO file may be, but is not JSON."""
    return split_in_name(path.stem) is not None and not _beginning(path).startswith(("{", "["))


def _beginning(path: Path) -> str:
    """Return the beginning of a text file; "" if it cannot be read."""
    try:
        with open_regular(path) as file:
            data = file.read(_HEAD)
        return data.decode(json.detect_encoding(data[:4]), "ignore").lstrip("\ufeff \t\r\n")
    except (OSError, ValueError):
        return ""


def _find_files(path: Path, options: ReadOptions) -> _Files:
    """Find the COCO files of a folder and the split that each one is."""
    found = _Files()
    files = []
    for folder in _folders(path):
        for file in _json_files(folder):
            if _is_coco(file) or _is_damaged(file):
                files.append(file)
            else:
                found.notes.append(f"{file}: is no COCO file; not read")
    others = [file for file in files if file.name.lower().startswith(_OTHERS)]
    if len(others) < len(files):
        for file in others:
            if options.unlabelled and file.name.lower().startswith("image_info_"):
                continue
            found.notes.append(f"{file}: is not about the boxes of all categories; not read")
            files.remove(file)
    names = defaultdict(list)
    for file in files:
        names[_split_of(file, path)].append(file)
    for name, same in sorted(names.items(), key=lambda item: (_rank(item[0]), item[0])):
        if len(same) == 1:
            found.splits[name] = same[0]
            continue
        stems = [_plain_stem(file) for file in same]
        for file, stem in zip(same, stems, strict=True):
            inner = file.relative_to(path).with_suffix("").as_posix()
            found.splits[stem if stems.count(stem) == 1 else inner] = file
    return found


def _split_of(file: Path, root: Path) -> str:
    """Return the split that a file is: by its own name, else by its folder's, else its stem."""
    if file.name.lower().startswith("image_info_"):
        return _plain_stem(file)  # it has no boxes, so it is never what is usually tested on
    folder = file.parent.name.lower()
    in_split = folder if file.parent != root and folder in SPLITS else None
    return split_in_name(file.stem) or in_split or _plain_stem(file)


def _plain_stem(file: Path) -> str:
    return re.sub("^(instances|image_info)_", "", file.stem, flags=re.IGNORECASE)


def _rank(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _ids_of_classes(
    files: Sequence[tuple[dict[str, Key], bool]],
) -> dict[str, list[Key]]:
    """Return the ids that the files give to each class, in the order of the labels.

    A file without a box cannot tell a category that only groups others from a class, so it counts
    only if no file has boxes.
    """
    with_boxes = [ids for ids, has_boxes in files if has_boxes] or [ids for ids, _ in files]
    found: dict[str, list[Key]] = {}
    for ids in with_boxes:
        for name, number in ids.items():
            numbers = found.setdefault(name, [])
            if number not in numbers:
                numbers.append(number)
    if all(len(numbers) == 1 for numbers in found.values()):
        return dict(sorted(found.items(), key=lambda item: id_order(item[1][0])))
    return found
