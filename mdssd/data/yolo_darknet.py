"""The .data file of darknet, and lists of class names: .names, classes.txt, notes.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mdssd.data.file_index import is_hidden
from mdssd.data.sample import DataError
from mdssd.data.text_files import read_text
from mdssd.data.values import key, shown, text
from mdssd.data.yolo_description import (
    Places,
    YoloDescription,
    common_folder,
    unique_names,
)
from mdssd.system.files import open_regular

_MAX_FILE = 1 << 20  # bytes
_KEYS = re.compile(rb"^\W{0,3}(classes|train|valid|names|backup)[ \t]*=", re.MULTILINE)
_SPLIT_KEYS = {"train": "train", "valid": "valid", "val": "val", "test": "test"}
# The files that hold class names, the most usual first. Label Studio writes notes.json, Roboflow
# _darknet.labels.
NAME_FILES = (
    *("classes.txt", "obj.names", "_darknet.labels", "*.names", "predefined_classes.txt"),
    "notes.json",
)


def is_darknet_data(path: Path) -> bool:
    """Return whether a file looks like darknet's description of a data set."""
    if path.suffix.lower() != ".data":
        return False
    try:
        with open_regular(path) as file:
            return len(set(_KEYS.findall(file.read(_MAX_FILE).replace(b"\0", b"")))) >= 2
    except OSError:
        return False


def read_darknet(file: Path, root: Path) -> YoloDescription:
    """Read a .data file: lines `key = value` that name a file of class names and lists of images.

    Args:
        file: the file.
        root: the folder that no path may leave.

    Raises:
        DataError: the file cannot be read, or a path leads out of the folder.
    """
    notes: list[str] = []
    places = Places(file, root, notes)
    parent = file.parent
    result = YoloDescription(f"YOLO labels (darknet, {file.name})", file, parent, notes=notes)
    result.bases = [parent]
    for number, line in enumerate(read_text(file, _MAX_FILE).splitlines(), 1):
        name, _, value = (part.strip() for part in line.partition("="))
        if not value or name.startswith("#"):
            continue
        if name == "names":
            # Darknet's paths begin from the folder it is started in, which nobody knows.
            found = places.find(value, [parent], name, by_end=True)
            if found is None:
                raise DataError(f"{file}:{number}: names: no such file, {shown(value)}")
            result.names_file = found
            result.names = read_names(found, notes)
        elif name in _SPLIT_KEYS:
            found = places.find(value, [parent], name, by_end=True)
            if found is None:
                line = f"{file}:{number}: {name}: no such list, {shown(value)}"
                result.missing[_SPLIT_KEYS[name]] = line
            else:
                result.splits[_SPLIT_KEYS[name]] = [found]
    result.folder = common_folder([parent, *(p for kept in result.splits.values() for p in kept)])
    return result


def find_names(folders: Iterable[Path], notes: list[str]) -> tuple[dict[int, str], Path] | None:
    """Return the class names that lie in one of these folders, and their file; None without one.

    Raises:
        DataError: two folders have different names, so that a class number means two things.
    """
    found: tuple[dict[int, str], Path] | None = None
    for folder in folders:
        file = _name_file(folder)
        if file is None:
            continue
        names = read_names(file, notes)
        if found is None:
            found = names, file
        elif found[0].items() <= names.items():
            found = names, file
        elif not names.items() <= found[0].items():
            raise DataError(
                f"{file}: gives the class numbers other names than {found[1]}; expected the same "
                "names in the same order, so that a number means one class"
            )
    return found


def _name_file(folder: Path) -> Path | None:
    for pattern in NAME_FILES:
        files = sorted(p for p in folder.glob(pattern) if not is_hidden(p.name) and p.is_file())
        if files:
            return files[0]
    return None


def read_names(file: Path, notes: list[str]) -> dict[int, str]:
    """Return the names in a file with one name per line, or in Label Studio's notes.json.

    A blank line leaves its number without a name.

    Raises:
        DataError: the file cannot be read.
    """
    content = read_text(file, _MAX_FILE)
    if file.suffix.lower() == ".json":
        names = _notes_json(content, file)
    else:
        names = {}
        for label, line in enumerate(content.splitlines()):
            if line.strip():
                name = text(line)
                if name is None:
                    raise DataError(f"{file}:{label + 1}: {shown(line)} is not the name of a class")
                names[label] = name
    if not names:
        raise DataError(f"{file}: holds no class name")
    return unique_names(names, file, notes)


def _notes_json(content: str, file: Path) -> dict[int, str]:
    try:
        categories: Any = list(json.loads(content)["categories"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{file}: expected categories, each with an id and a name") from None
    names = {}
    for position, each in enumerate(categories):
        entry = each if isinstance(each, dict) else {}
        label, name = key(entry.get("id")), text(entry.get("name"))
        if name is None or not isinstance(label, int) or not 0 <= label < 10**6:
            raise DataError(
                f"{file}: categories[{position}]: expected an id from 0 and a name, found "
                f"{shown(each)}"
            )
        names[label] = name
    return names
