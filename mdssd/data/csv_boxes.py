"""Data sets in CSV files: a row for each box."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mdssd.data.csv_table import (
    CsvLayout,
    CsvRow,
    find_layout,
    first_line,
    read_class_ids,
    read_rows,
)
from mdssd.data.dataset import SPLITS
from mdssd.data.file_index import FileIndex, inner_name, is_hidden
from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.data.listed import ListedDataset, ListedImage, NamedBox, ReadOptions
from mdssd.data.photos import CollectFaults, progress
from mdssd.data.reasons import Tally
from mdssd.data.sample import MAX_BOXES, DataError
from mdssd.data.splits import ALL, chosen_splits, split_in_name
from mdssd.data.values import shown
from mdssd.system.files import open_regular
from mdssd.system.kinds import kind_of_file
from mdssd.system.progress import progress_bar
from mdssd.system.text import plural, some

_ENDINGS = (".csv", ".tsv")
_MAX_ROWS = 20_000_000
_COUNTED = 4 << 30  # bytes of the largest file whose lines are counted before it is read
_LARGEST_FRACTION = 1.01  # of an image's side, with what rounding adds
_LOOK = 50  # files of a folder that are looked at to recognise it
_CLASS_LISTS = ("classes.csv", "class_list.csv", "class_mapping.csv", "labels.csv")


def is_csv(path: Path) -> bool:
    """Return whether a file has a table's ending, or a folder holds a table. Never raises."""
    return (path.suffix.lower() in _ENDINGS and path.is_file()) or bool(_tables(path, _LOOK)[0])


def open_csv(path: Path, split: str | None, train: bool, options: ReadOptions) -> ListedDataset:
    """Open a CSV file with a box in each row, or a folder of such files; see `open_dataset`.

    Raises:
        DataError: something cannot be read. The message names the file and the line.
    """
    root = path if path.is_dir() else path.parent
    tables, others = _tables(path)
    if not tables:
        first = shown(first_line(path).strip())
        raise DataError(
            f"{path}: is no table of boxes, expected a first row such as "
            f"path,x1,y1,x2,y2,class, got {first}"
        )
    reader = _Reader(root, tables, options)
    if not reader.classes:
        reader.dropped += [line for bad in reader.bad for line in bad]  # why there is none
    damaged = _damaged(root, others, reader.notes)
    reader.splits |= damaged.keys()
    splits = sorted(reader.splits - {""}, key=_rank)
    chosen = chosen_splits(path, splits, split, train) if splits else []
    if not splits and split not in (None, ALL):
        raise DataError(f"{path}: no such split {split} (there are none)")
    if splits and "" in reader.splits:
        reader.notes.append(f"{path}: rows without a split are in {ALL} only")
    whole = not splits or split == ALL
    one = chosen[0] if splits and len(chosen) == 1 and not whole else ALL
    for name in splits if whole else chosen:
        with CollectFaults(options.faults):
            if name in damaged:
                raise DataError(damaged[name])
    images = reader.images(None if whole else set(chosen))
    names = some([table.relative_to(root).as_posix() for table in tables], 3)
    return ListedDataset(
        f"{root.resolve().name} {one}" if splits else path.resolve().name,
        images,
        reader.classes,
        options,
        format=f"CSV ({names})",
        root=root,
        split=one if splits else None,
        dropped=reader.dropped,
        notes=reader.notes,
        upright=True,
    )


@dataclass
class _Rows:
    """The rows of all tables, in few bytes each.

    The names of images and classes are positions in lists; -1 is a row without a box.
    """

    tables: array = field(default_factory=lambda: array("H"))
    images: array = field(default_factory=lambda: array("L"))
    names: array = field(default_factory=lambda: array("l"))
    boxes: array = field(default_factory=lambda: array("d"))
    lines: array = field(default_factory=lambda: array("L"))
    flags: array = field(default_factory=lambda: array("b"))


class _Reader:
    """Reads the tables of a data set.

    Attributes:
        classes: the names of the classes of all splits, in label order.
        splits: the names of the splits; "" for rows without one.
        dropped: a line for each row that cannot be used.
        notes: a line for each thing that was guessed.
        bad: for each table, a line for each row that cannot be used.
    """

    def __init__(self, root: Path, tables: dict[Path, CsvLayout], options: ReadOptions) -> None:
        self.root = root
        self.dropped: list[str] = []
        self.notes: list[str] = []
        self.splits: set[str] = set()
        self._tally = Tally()
        self._tables = list(tables.items())
        self._rows = _Rows()
        self._names: dict[str, int] = {}
        self._listed: dict[tuple[str, str, Path], int] = {}
        self._sizes: dict[int, tuple[float, float]] = {}
        self.bad: list[list[str]] = [[] for _ in tables]
        self._options = options
        self._index = FileIndex(root, IMAGE_SUFFIXES)
        self._by_name: dict[str, list[str]] = {}
        for name in self._index.all_names:
            self._by_name.setdefault(os.path.basename(name), []).append(name)
        for number in range(len(self._tables)):
            with CollectFaults(options.faults):
                self._take(number)
        declared = self._declared()
        found = sorted(self._names)
        self.classes = declared if declared is not None else found
        self._unknown = set() if declared is None else set(found) - set(declared)

    def images(self, chosen: set[str] | None) -> Iterator[ListedImage]:
        """Yield the images of some splits, None for all, with their boxes."""
        for number, (path, layout) in enumerate(self._tables):
            split = _table_split(path, self.root)
            if chosen is None or not split or split in chosen:
                self.dropped += self.bad[number]
            if layout.unused:
                self.notes.append(f"{path}: columns that are not used: {some(layout.unused)}")
        names = list(self._names)
        rows = self._rows
        for (found, split), group in self._groups(chosen):
            first = group[0]
            path, layout = self._tables[rows.tables[first]]
            yield ListedImage(
                os.path.splitext(found.relative_to(self.root).as_posix())[0],
                found,
                list(self._boxes(group, names)),
                f"{path}:{rows.lines[first]}",
                self._sizes.get(rows.images[first]),
                layout.relative,
                split,
            )
        self.notes += self._tally.lines()

    def _groups(self, chosen: set[str] | None) -> Iterator[tuple[tuple[Path, str], list[int]]]:
        """Yield each image file and split with the positions of its rows."""
        images = np.frombuffer(self._rows.images, f"u{self._rows.images.itemsize}")
        if not len(images):
            return
        # The first row of each name, for messages. Several names may be of one file.
        firsts = np.unique(images, return_index=True)[1].tolist()
        keys: dict[tuple[Path, str], int] = {}
        key_of = np.full(len(self._listed), -1)
        for position, (name, split, table) in enumerate(self._listed):
            wanted = chosen is None or split in chosen
            where = f"{table}:{self._rows.lines[firsts[position]]}"
            with CollectFaults(self._options.faults if wanted else []):
                file = self._find(name, table, where)
                key_of[position] = keys.setdefault((file, split), len(keys))
        self._note_alone({file for file, _ in keys})
        of_row = key_of[images]
        order = np.argsort(of_row, kind="stable")
        bounds = np.searchsorted(of_row[order], np.arange(len(keys) + 1))
        for key in progress(list(keys), f"reading {self.root}"):
            if chosen is None or key[1] in chosen:
                k = keys[key]
                yield key, order[bounds[k] : bounds[k + 1]].tolist()

    def _note_alone(self, used: set[Path]) -> None:
        alone = [name for name in self._index.all_names if self.root / name not in used]
        if alone:
            self.notes.append(
                f"{self.root}: {plural(len(alone), 'image')} that no row names left out, "
                f"such as {alone[0]}"
            )

    def _take(self, number: int) -> None:
        """Read the rows of a table into arrays."""
        path, layout = self._tables[number]
        of_file = _table_split(path, self.root)
        rows = read_rows(path, layout, self.bad[number], self._tally)
        total = _line_count(path)
        bar = progress_bar(
            rows, desc=f"reading {path}", unit="row", total=total, delay=2, leave=False
        )
        largest = 0.0
        for row in bar:
            if len(self._rows.lines) >= _MAX_ROWS:
                raise DataError(f"{path}: has more than {_MAX_ROWS:,} rows; divide it")
            split = (split_in_name(row.split) or row.split) if row.split else of_file
            self.splits.add(split)
            self._rows.tables.append(number)
            self._add(row, (row.image, split, path))
            largest = max((largest, *(row.box or ())))
        # In pixels they would be boxes of less than one, which cannot be used.
        if not layout.relative and 0 < largest <= _LARGEST_FRACTION:
            layout.relative = True
            self.notes.append(
                f"{path}: no coordinate is above 1; taken as fractions of the image's width and "
                "height"
            )

    def _add(self, row: CsvRow, image: tuple[str, str, Path]) -> None:
        rows = self._rows
        position = self._listed.setdefault(image, len(self._listed))
        if row.size is not None:
            self._sizes[position] = row.size
        rows.images.append(position)
        rows.lines.append(row.line)
        if row.box is None:
            rows.names.append(-1)
        else:
            rows.names.append(self._names.setdefault(row.name, len(self._names)))
        rows.boxes.extend(row.box or (0.0, 0.0, 0.0, 0.0))
        rows.flags.append(row.difficult + 2 * row.crowd)

    def _boxes(self, group: list[int], names: list[str]) -> Iterator[NamedBox]:
        rows = self._rows
        for k in group[: MAX_BOXES + 1]:  # more are refused
            if rows.names[k] < 0:
                continue
            name, where = names[rows.names[k]], f"{self._tables[rows.tables[k]][0]}:{rows.lines[k]}"
            if name in self._unknown:
                self.dropped.append(f"{where}: the class {name!r} is not in {self._class_file}")
                continue
            x1, y1, x2, y2 = rows.boxes[4 * k : 4 * k + 4]
            flags = rows.flags[k]
            yield NamedBox((x1, y1, x2, y2), name, bool(flags & 1), bool(flags & 2), where=where)

    def _find(self, name: str, table: Path, where: str) -> Path:
        """Return the image that a row names, which need not exist."""
        name = re.sub(r"^[a-z][a-z0-9]*://", "/", name)
        absolute = name.startswith("/") or re.match("[A-Za-z]:", name)
        place = table.parent.relative_to(self.root).as_posix()
        inner = name if absolute else inner_name(f"{place}/{name}", self.root, where)
        for form in (inner, name):
            if ".." in form.split("/"):
                continue
            found = self._index.find(form) or self._index.find_stem(form)
            if found is not None:
                return found
        same = self._by_name.get(os.path.basename(name.replace("\\", "/")), [])
        if len(same) == 1:
            self._tally.add(where, f"images were found in {os.path.dirname(same[0]) or '.'}/")
            return self.root / same[0]
        # A path of another machine that is not here either.
        return self.root / (os.path.basename(name) if absolute else inner)

    def _declared(self) -> list[str] | None:
        """Return the names of a class list such as keras-retinanet's classes.csv."""
        self._class_file = self.root / "classes.csv"
        for name in _CLASS_LISTS:
            path = self.root / name
            if path.is_file() and path not in dict(self._tables):
                names = read_class_ids(path)
                if names is not None:
                    self._class_file = path
                    return names
        return None


def _tables(path: Path, most: int | None = None) -> tuple[dict[Path, CsvLayout], dict[Path, str]]:
    """Find the tables of boxes of a folder, or take the file itself.

    Of several, only those that are named after a split are taken, if there are some.

    Args:
        path: the folder or file.
        most: the number of files of a folder that are looked at; None for all.

    Returns:
        The layout of each table, and for each other CSV file the reason why it is not read.
    """
    found: dict[Path, CsvLayout] = {}
    others: dict[Path, str] = {}
    for files in _csv_files(path):
        for file in files[:most]:
            try:
                layout = find_layout(file)
            except DataError as error:
                others[file] = str(error)
                continue
            if layout is None:
                others[file] = f"{file}: is no table of boxes"
            else:
                found[file] = layout
        if found:
            break
    named = {file: layout for file, layout in found.items() if _table_split(file, path)}
    if named and len(found) > 1:
        for file in found.keys() - named.keys():
            others[file] = f"{file}: is not named after a split, as other tables are"
        found = named
    return found, others


def _csv_files(path: Path) -> Iterator[list[Path]]:
    """Yield the CSV files of a folder, and then those in the folders in it."""
    if path.is_file():
        yield [path] if path.suffix.lower() in (*_ENDINGS, ".txt") else []
        return
    for pattern in ("*", "*/*"):
        files = sorted(path.glob(pattern))
        yield [f for f in files if f.suffix.lower() in _ENDINGS and not is_hidden(f.name)]


def _damaged(root: Path, others: dict[Path, str], notes: list[str]) -> dict[str, str]:
    """Return the fault of each split whose file is damaged; add a note for other files."""
    damaged = {}
    for file, reason in sorted(others.items()):
        kind = kind_of_file(file)
        split = _table_split(file, root)
        if split and kind != "text":
            damaged[split] = f"{file}: is {kind}, expected a table of boxes"
        elif file.name not in _CLASS_LISTS:
            notes.append(f"{reason}; not read")
    return damaged


def _line_count(path: Path) -> int | None:
    """Return the number of lines for a progress bar; None if counting them is not worth while."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _COUNTED:
                return None
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return None


def _table_split(file: Path, root: Path) -> str:
    """Return the split that a table's name or folder states; "" if none."""
    folder = file.parent.name.lower()
    if file.parent != root and folder in SPLITS:
        return folder
    return split_in_name(file.stem) or ""


def _rank(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS)), split
