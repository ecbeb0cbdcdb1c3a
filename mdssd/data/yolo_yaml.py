"""The data.yaml of YOLO labels, as Ultralytics, Roboflow and CVAT write it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mdssd.data.sample import DataError
from mdssd.data.text_files import read_text
from mdssd.data.values import shown, text
from mdssd.data.yolo_description import (
    Places,
    YoloDescription,
    common_folder,
    unique_names,
)
from mdssd.system.files import open_regular

_MAX_FILE = 1 << 20  # bytes: 10,000 class names have 0.3 MB
_BEGINNING = 1 << 16
_MAX_CLASS = 10**6
_SPLIT_KEYS = ("train", "val", "test", "valid", "validation", "minival", "trainval", "unlisted")
_KEYS = re.compile(rb"^\W{0,3}(names|nc|path|train|val|test|valid)[\"']?[ \t]*:", re.MULTILINE)
_IMAGES = re.compile(r"(^|/)images(/|$)|\.txt$")
_NOTHING = ("", "~", "null", "none")


class _Text(str):
    """A text of a YAML file that knows the number of its line."""

    line = 0


class _Loader(yaml.BaseLoader):
    """Loads YAML of text, lists and mappings, in which nothing is repeated by an alias.

    All values stay text, so that a class called "no" keeps its name. Aliases can make a short file
    a huge structure, so they are refused.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"has the alias *{event.anchor}, expected the value itself",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        value = _Text(super().construct_scalar(node))
        value.line = node.start_mark.line + 1
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.MarkedYAMLError(
                problem="has a key that occurs twice", problem_mark=node.start_mark
            )
        return mapping


def is_yolo_yaml(path: Path) -> bool:
    """Return whether a YAML file looks as if it described YOLO labels."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return False
    try:
        with open_regular(path) as file:
            data = file.read(_BEGINNING).replace(b"\0", b"")
    except OSError:
        return False
    return len(set(_KEYS.findall(data))) >= 2


def read_yaml(file: Path, root: Path) -> YoloDescription:
    """Read a data.yaml.

    Args:
        file: the file.
        root: the folder that no path may leave.

    Returns:
        The description; without splits if the file names none.

    Raises:
        DataError: the file cannot be read, or a path leads out of the folder.
    """
    content = _load(file)
    notes: list[str] = []
    places = Places(file, root, notes)
    base = _base(content, places, notes)
    result = YoloDescription(f"YOLO labels ({file.name})", file, base, notes=notes)
    result.names = _names(content, file, notes)
    result.names_file = file
    result.keypoints = _keypoints(content, file)
    result.bases = [base, file.parent]
    for key in _SPLIT_KEYS:
        split = {"validation": "val"}.get(key, key)
        entries = _entries(content, key, file)
        if not entries:
            continue
        found = [places.find(entry, [base, file.parent], key) for entry in entries]
        for entry, place in zip(entries, found, strict=True):
            if place is None:
                where = _where(file, entry)
                result.missing[split] = f"{where}: {key}: no such folder or list, {shown(entry)}"
        kept = [place for place in found if place is not None]
        if kept:
            result.splits.setdefault(split, []).extend(kept)
    for key in sorted(key for key in content if isinstance(key, str)):
        # What else names images is a split as well; other keys are of other tools.
        value = content[key]
        known = key in _SPLIT_KEYS or key == "path" or text(key) != key
        if not known and isinstance(value, str) and _IMAGES.search(value):
            with suppress(DataError):
                if (place := places.find(value, [base, file.parent], key)) is not None:
                    result.splits[key] = [place]
    if "test" in result.splits and result.splits.get("val") == result.splits["test"]:
        # Ultralytics requires a val, so `write_yolo` and others name the images of test twice.
        del result.splits["val"]
        result.same["val"] = "test"
        notes.append(f"{file}: val and test name the same images; taken as test")
    result.folder = common_folder([base, *(p for kept in result.splits.values() for p in kept)])
    return result


def read_names(file: Path) -> dict[int, str] | None:
    """Return only the class names of a data.yaml, by their numbers; None if it has none.

    Raises:
        DataError: the file cannot be read.
    """
    return _names(_load(file), file, [])


def _load(file: Path) -> dict[str, Any]:
    try:
        content = _Loader(read_text(file, _MAX_FILE)).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(f"{file}{line}: {error.problem or 'is not YAML'}") from None
    except yaml.YAMLError as error:
        raise DataError(f"{file}: is not YAML ({' '.join(str(error).split())[:200]})") from None
    except RecursionError:
        raise DataError(f"{file}: is nested too deeply") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected keys such as train, val and names, found none")
    return content


def _where(file: Path, *values: Any) -> str:
    """Return "file:line" of the first text in these values; the file if they hold no text."""
    for value in values:
        if isinstance(value, _Text):
            return f"{file}:{value.line}"
        if isinstance(value, list | dict):
            inner = value if isinstance(value, list) else [*value, *value.values()]
            if (found := _where(file, *inner)) != str(file):
                return found
    return str(file)


def _base(content: dict[str, Any], places: Places, notes: list[str]) -> Path:
    """Return the folder that the paths of the splits begin from."""
    value = content.get("path")
    parent = places.file.parent
    if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return parent
    if not isinstance(value, str):
        raise DataError(f"{places.file}: path: expected a folder, found {shown(value)}")
    # Ultralytics also looks in its folder of data sets.
    bases = [parent, parent / "datasets", parent.parent, parent.parent / "datasets"]
    found = places.find(value, bases, "path")
    if found is not None and found.is_dir():
        return found
    notes.append(
        f"{places.file}: path: {shown(value)} is not on this machine; taken as the folder of "
        f"{places.file.name}"
    )
    return parent


def _entries(content: dict[str, Any], key: str, file: Path) -> list[str]:
    value = content.get(key)
    values = value if isinstance(value, list) else [value]
    entries = []
    for each in values:
        if each is None or (isinstance(each, str) and each.strip().lower() in _NOTHING):
            continue
        if not isinstance(each, str):
            raise DataError(
                f"{_where(file, each)}: {key}: expected a folder, a list of folders or a text "
                f"file, found {shown(each)}"
            )
        entries.append(each)
    return entries


def _names(content: dict[str, Any], file: Path, notes: list[str]) -> dict[int, str] | None:
    given = content.get("names")
    count = content.get("nc")
    stated = int(count) if isinstance(count, str) and re.fullmatch(r"\d{1,6}", count) else None
    if given is None or given in _NOTHING:
        return None
    if isinstance(given, list):
        pairs: list[tuple[Any, Any]] = list(enumerate(given))
    elif isinstance(given, dict):
        pairs = list(given.items())
    else:
        raise DataError(
            f"{_where(file, given)}: names: expected a list or a mapping, found {shown(given)}"
        )
    names: dict[int, str] = {}
    for key, value in pairs:
        if isinstance(key, str) and not re.fullmatch(r"\d{1,6}", key.strip()):
            where = _where(file, key)
            raise DataError(f"{where}: names: {shown(key)} is not the number of a class")
        name = text(value)
        if name is None:
            where = _where(file, value, key)
            raise DataError(f"{where}: names: class {key}: {shown(value)} is not a name")
        names[int(key)] = name
    if not names:
        return None
    if stated is not None and stated != len(names):
        notes.append(f"{file}: nc is {stated}, but names has {len(names)}; the names count")
    return unique_names(names, file, notes)


def _keypoints(content: dict[str, Any], file: Path) -> int:
    shape = content.get("kpt_shape")
    if shape is None or shape in _NOTHING:
        return 0
    sides = shape if isinstance(shape, list) else []
    if len(sides) != 2 or not all(
        isinstance(side, str) and re.fullmatch(r"\d{1,4}", side.strip()) for side in sides
    ):
        raise DataError(
            f"{_where(file, shape)}: kpt_shape: expected two numbers, found {shown(shape)}"
        )
    return int(sides[0]) * int(sides[1])
