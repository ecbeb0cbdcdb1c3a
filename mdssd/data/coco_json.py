"""Reading the entries of a COCO instances file, which nobody vouches for."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from mdssd.data.json_lists import read_lists
from mdssd.data.sample import DataError
from mdssd.data.values import flag, key, number, shown, stated_size, text
from mdssd.system.kinds import VAGUE, kind_of_file

Key = int | str

# COCO has 860,000 annotations, LVIS 1.3 million. More would not fit into memory as this keeps them.
MAX_ENTRIES = {"images": 2_000_000, "annotations": 5_000_000, "categories": 20_000}
_MAX_UNUSABLE = 100_000


class CocoImage(NamedTuple):
    """An entry of "images". size: (width, height) as stated; None if none is stated."""

    name: str
    size: tuple[float, float] | None


class CocoCategory(NamedTuple):
    """An entry of "categories"."""

    name: str
    group: str | None


class CocoRow(NamedTuple):
    """An entry of "annotations".

    own_id: None if it has none. area: None for that of the box. difficult: a key of `write_coco`,
    which COCO does not have.
    """

    position: int
    own_id: Key | None
    image: Key
    category: Key
    box_xyxy: tuple[float, float, float, float]
    crowd: bool
    area: float | None
    difficult: bool = False

    @property
    def place(self) -> str:
        """The place in the file, for messages."""
        return _place(self.position, self.own_id)


class CocoContent:
    """What a COCO file holds.

    Args:
        path: the file.
        keep_rows: False only counts the annotations.

    Attributes:
        lists: the names of the lists in it.
        images: by id.
        categories: by id, in ascending order of the ids.
        rows: the annotations that can be used, in the order of the file.
        boxes: the number of them in each category.
        faults: a line "file: reason" for each entry of "images" that cannot be used.
        unusable: a line for each annotation that cannot be used.
        notes: a line for each value that was guessed.
    """

    def __init__(self, path: Path, keep_rows: bool = True) -> None:
        self.path = path
        self._keep_rows = keep_rows
        self.boxes: Counter[Key] = Counter()
        self.images: dict[Key, CocoImage] = {}
        self.categories: dict[Key, CocoCategory] = {}
        self.rows: list[CocoRow] = []
        self.faults: list[str] = []
        self.unusable: list[str] = []
        self.notes: list[str] = []
        receivers = {
            "images": self._add_image,
            "categories": self._add_category,
            "annotations": self._add_row,
        }
        try:
            self.lists = read_lists(path, receivers)
        except DataError:
            raise
        except OSError as error:
            raise self.fault(f"cannot be read ({error.strerror})") from None
        except ValueError as error:
            kind = kind_of_file(path)
            if kind not in ("JSON", "text", *VAGUE):
                raise self.fault(f"is {kind}, expected a COCO JSON file") from None
            if "top level" in str(error):
                raise self.fault(f"not a COCO file, {error}") from None
            raise self.fault(f"broken JSON ({error})") from None
        self.categories = dict(sorted(self.categories.items(), key=lambda item: id_order(item[0])))

    def fault(self, reason: str) -> DataError:
        """Return the error about a reason."""
        return DataError(f"{self.path}: {reason}")

    def classes(self) -> tuple[dict[str, Key], list[str]]:
        """Return the id of each category that is a class, and notes about the others.

        Raises:
            DataError: two categories with boxes have the same name.
        """
        groups = {each.group for each in self.categories.values()}
        ids_of: defaultdict[str, list[Key]] = defaultdict(list)
        for own_id, category in self.categories.items():
            ids_of[category.name].append(own_id)
        chosen: dict[str, Key] = {}
        notes = []
        for name, ids in ids_of.items():
            used = [own_id for own_id in ids if self.boxes[own_id]]
            if len(used) > 1:
                listed = " and ".join(map(str, used))
                raise self.fault(f"two categories have the same name {shown(name)}: ids {listed}")
            if not used and name in groups and len(self.categories) > 1 and self.boxes:
                notes.append(
                    f"{self.path}: category {shown(name)} has no box and only groups others; "
                    "it is no class"
                )
                continue
            chosen[name] = used[0] if used else ids[0]
            if len(ids) > 1:
                notes.append(
                    f"{self.path}: {len(ids)} categories are named {shown(name)}; the one "
                    f"with boxes, id {chosen[name]}, is the class"
                )
        return dict(sorted(chosen.items(), key=lambda item: id_order(item[1]))), notes

    def _add_image(self, position: int, entry: Any) -> None:
        self._check_number("images", position)
        where = f"images[{position}]"
        if not isinstance(entry, dict) or (number := key(entry.get("id"))) is None:
            self.faults.append(f"{self.path}: {where}: {_stated(entry, 'id')}, expected an id")
            return
        name = text(entry.get("file_name"))
        if name is None:
            reason = f"{_stated(entry, 'file_name')}, expected the name of a file"
            self.faults.append(f"{self.path}: image {number}: {reason}")
            return
        if number in self.images:
            other = self.images[number].name
            if other != name:
                names = f"{shown(other)} and {shown(name)}"
                raise self.fault(f"{where}: id {number} occurs twice, for {names}")
            self.notes.append(f"{self.path}: {where}: repeats image {number}; used once")
            return
        size = stated_size(entry.get("width"), entry.get("height"))
        self.images[number] = CocoImage(name, size)

    def _add_category(self, position: int, entry: Any) -> None:
        self._check_number("categories", position)
        where = f"categories[{position}]"
        if not isinstance(entry, dict) or (number := key(entry.get("id"))) is None:
            raise self.fault(f"{where}: {_stated(entry, 'id')}, expected an id")
        name = text(entry.get("name"))
        if name is None:
            reason = f"{_stated(entry, 'name')}, expected 1 to 1000 characters"
            raise self.fault(f"category {number}: {reason}")
        if number in self.categories and self.categories[number].name != name:
            names = f"{shown(self.categories[number].name)} and {shown(name)}"
            raise self.fault(f"{where}: id {number} occurs twice, for {names}")
        self.categories[number] = CocoCategory(name, text(entry.get("supercategory")))

    def _add_row(self, position: int, entry: Any) -> None:
        self._check_number("annotations", position)
        try:
            row = self._row(position, entry)
            self.boxes[row.category] += 1
            if self._keep_rows:
                self.rows.append(row)
        except ValueError as error:
            own_id = key(entry.get("id")) if isinstance(entry, dict) else None
            self.unusable.append(f"{self.path}: {_place(position, own_id)}: {error}")
            if len(self.unusable) > _MAX_UNUSABLE:
                raise self.fault(
                    f"more than {_MAX_UNUSABLE:,} annotations cannot be used; {self.unusable[0]}"
                ) from None

    def _row(self, position: int, entry: Any) -> CocoRow:
        """Return an annotation. Raises ValueError with the reason, without the file."""
        if not isinstance(entry, dict):
            raise ValueError(f"is {shown(entry)}, expected an object")
        own_id = key(entry.get("id"))
        image, category = _id(entry, "image_id"), _id(entry, "category_id")
        box = entry.get("bbox")
        values = [number(v) for v in box] if isinstance(box, list) and len(box) == 4 else []
        known = [value for value in values if value is not None]
        if len(known) != 4:
            raise ValueError(f"{_stated(entry, 'bbox')}, expected four numbers")
        left, top, width, height = known
        area = number(entry.get("area"))
        if area is None or not 0 < area < math.inf:
            area = None
        crowd = flag(entry.get("iscrowd"))
        if crowd is None:
            self.notes.append(
                f"{self.path}: {_place(position, own_id)}: {_stated(entry, 'iscrowd')}, "
                "expected 0 or 1; taken as 0"
            )
        box_xyxy = left, top, left + width, top + height
        difficult = bool(flag(entry.get("difficult")))
        return CocoRow(position, own_id, image, category, box_xyxy, bool(crowd), area, difficult)

    def _check_number(self, name: str, position: int) -> None:
        if position >= MAX_ENTRIES[name]:
            raise self.fault(f"has more than {MAX_ENTRIES[name]:,} {name}")


def _id(entry: dict[str, Any], name: str) -> Key:
    number = key(entry.get(name))
    if number is None:
        raise ValueError(f"{_stated(entry, name)}, expected an id")
    return number


def _place(position: int, own_id: Key | None) -> str:
    """Return where an annotation is: people look for the id, and programs take the position."""
    return f"annotations[{position}]" + ("" if own_id is None else f" (id {shown(own_id)})")


def _stated(entry: Any, name: str) -> str:
    value = entry.get(name) if isinstance(entry, dict) else None
    return f"{name} is {shown(value)}" if value is not None else f"has no {name}"


def id_order(number: Key) -> tuple[bool, Key]:
    """Sort whole numbers before other ids."""
    return isinstance(number, str), number
