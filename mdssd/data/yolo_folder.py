"""Folders of YOLO labels that nothing describes: images/ with labels/, or labels beside images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mdssd.data.file_index import is_hidden
from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.data.splits import split_of_folder
from mdssd.data.values import decode_text, number
from mdssd.data.yolo_darknet import NAME_FILES, find_names
from mdssd.data.yolo_description import YoloDescription
from mdssd.system.files import open_regular

_LOOK = 2000  # entries of a folder that are looked at to recognise it
_DEPTH = 3
_TRIED = 20  # label files
# Text files that lie beside label files and are none.
_OTHER_TEXTS = ("classes.txt", "predefined_classes.txt", "readme", "train.txt", "val.txt")


def describe_folder(folder: Path) -> YoloDescription | None:
    """Return where the images of a folder are; None if it does not hold images and YOLO labels."""
    splits = _parallel_folders(folder)
    what = "images/ and labels/"
    if not splits:
        splits = _folders_with_labels_beside(folder)
        what = "labels beside the images"
    if not splits:
        return None
    return YoloDescription(f"YOLO labels ({what})", folder, folder, splits, bases=[folder])


def add_names(description: YoloDescription) -> None:
    """Look for a file of class names beside the images and labels, and add its names.

    Raises:
        DataError: a file of names cannot be read, or two of them differ.
    """
    folder = description.folder
    entries = [entry for each in description.splits.values() for entry in each if entry.is_dir()]
    places = [folder, folder / "labels", folder / "images"]
    for entry in entries:
        places += [entry, entry.parent, entry.parent / "labels"]
    inside = [each for each in dict.fromkeys(places) if each.is_relative_to(folder)]
    found = find_names(inside, description.notes)
    if found is not None:
        description.names, description.names_file = found


def is_other_text(name: str) -> bool:
    """Return whether a text file is known to hold no labels, by its name in lower case."""
    return name.startswith(_OTHER_TEXTS)


def _parallel_folders(folder: Path) -> dict[str, list[Path]]:
    """Return images/ of a folder by split: images/train, or train/images."""
    if _is_pair(folder / "images", folder / "labels"):
        return _by_split(folder / "images")
    splits: dict[str, list[Path]] = {}
    for each in _folders(folder):
        split = split_of_folder(each.name)
        if split and _is_pair(each / "images", each / "labels"):
            splits.setdefault(split, []).append(each / "images")
    return splits


def _by_split(images: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for each in _folders(images):
        if (split := split_of_folder(each.name)) and _first(each, IMAGE_SUFFIXES):
            splits.setdefault(split, []).append(each)
    return splits or {"": [images]}


def _folders_with_labels_beside(folder: Path) -> dict[str, list[Path]]:
    """Return the folders whose images have labels beside them, if class names lie there too."""
    splits: dict[str, list[Path]] = {}
    for each in _folders(folder):
        split = split_of_folder(each.name)
        if split and _holds_both(each) and (_has_names(each) or _has_names(folder)):
            splits.setdefault(split, []).append(each)
    if splits:
        return splits
    return {"": [folder]} if _has_names(folder) and _holds_both(folder) else {}


def _is_pair(images: Path, labels: Path) -> bool:
    return _first(images, IMAGE_SUFFIXES) and _holds_rows(labels)


def _holds_both(folder: Path) -> bool:
    return _first(folder, IMAGE_SUFFIXES) and _holds_rows(folder)


def _has_names(folder: Path) -> bool:
    names = [pattern for pattern in NAME_FILES if pattern != "notes.json"]
    return any(next(folder.glob(pattern), None) is not None for pattern in names)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(Path(e.path) for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    except OSError:
        return []


def _first(folder: Path, suffixes: Sequence[str]) -> bool:
    return next(_files(folder, suffixes), None) is not None


def _holds_rows(folder: Path) -> bool:
    """Return whether one of the first text files of a folder holds rows of YOLO labels, or none."""
    empty = False
    for count, path in enumerate(_files(folder, (".txt",))):
        if count >= _TRIED:
            break
        if is_other_text(os.path.basename(path).lower()):
            continue
        try:
            with open_regular(path) as file:
                words = decode_text(file.read(1000)).replace(",", " ").split()
        except (OSError, ValueError):
            continue
        if len(words) >= 5 and all(number(word) is not None for word in words[:5]):
            return True
        empty = empty or not words
    return empty


def _files(folder: Path, suffixes: Sequence[str], depth: int = _DEPTH) -> Iterator[str]:
    """Yield files of a folder; only the first few thousand, and a few folders deep."""
    inner = []
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= _LOOK:
                    break
                if is_hidden(entry.name):
                    continue
                if os.path.splitext(entry.name)[1].lower() in suffixes:
                    yield entry.path
                elif entry.is_dir():
                    inner.append(entry.path)
    except OSError:  # there is no such folder
        return
    if depth > 1:
        for path in inner[:_TRIED]:
            yield from _files(Path(path), suffixes, depth - 1)
