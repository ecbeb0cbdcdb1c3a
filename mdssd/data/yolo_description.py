"""What a description of YOLO labels says, and the paths in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from mdssd.data.sample import DataError
from mdssd.data.values import shown


@dataclass
class YoloDescription:
    """The class names of a data set, and where the images of each split are.

    Attributes:
        format: the format, for people, such as "YOLO labels (data.yaml)".
        file: the description; the folder if there is none. For messages.
        folder: the folder of the data set, which holds all images and labels.
        splits: the folders and list files of each split. The only split is "" if there are none.
        same: the split that stands for another one which names the same images.
        missing: a line for each split of the description whose images are not there.
        names: the name of each class number; None if the numbers have no names.
        names_file: the file with the names, for messages.
        keypoints: the number of values after each box, for the key points of poses.
        bases: the folders that the lines of list files may begin from.
        notes: a line per thing that was guessed.
    """

    format: str
    file: Path
    folder: Path
    splits: dict[str, list[Path]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    names: dict[int, str] | None = None
    names_file: Path | None = None
    keypoints: int = 0
    bases: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Places:
    """Finds the folders and files that a description names, inside the folder of the data set.

    Args:
        file: the description.
        root: the folder that no path may leave.
        notes: receives a line for each path that is not taken literally.
    """

    def __init__(self, file: Path, root: Path, notes: list[str]) -> None:
        self.file = file
        self.root = root
        self._notes = notes

    def find(
        self, text: str, bases: Sequence[Path], what: str, *, by_end: bool = False
    ) -> Path | None:
        """Return the folder or file that is meant; None if there is none.

        Args:
            text: the path in the description. One that does not exist on this machine is found by
                its last parts if it is absolute, and without "../" in front if it is relative.
            bases: the folders that it may begin from, the right one first.
            what: the entry, for messages.
            by_end: also find a relative path by its last parts.

        Raises:
            DataError: the path leads out of the folder of the data set.
        """
        name = text.strip().replace("\\", "/")
        absolute = is_absolute(name)
        literal = Path(name) if absolute else bases[0] / name
        for path in (literal, *self._others(name, bases, absolute or by_end)):
            inner = self._inside(path)
            if inner is not None and exists(inner):
                if os.path.abspath(inner) != os.path.abspath(literal):
                    self._notes.append(f"{self.file}: {what}: {shown(text)} is taken as {inner}")
                return inner
        if self._inside(literal) is None and exists(literal):
            raise self._outside(text, literal, what)
        return None

    def _others(self, name: str, bases: Sequence[Path], by_end: bool) -> Iterator[Path]:
        if not by_end:
            yield from (base / name for base in bases[1:])
        parts = [part for part in PurePosixPath(name).parts if part not in ("..", "/", "~")]
        if PureWindowsPath(name).drive:
            parts = parts[1:]
        # Roboflow writes "../train/images" and means "train/images".
        shortest = len(parts) if by_end else min(1, len(parts))
        for k in range(shortest):
            yield from (base.joinpath(*parts[k:]) for base in bases)
        if not by_end and parts and parts[0] == bases[0].resolve().name:
            yield from (base.joinpath(*parts[1:]) for base in bases)

    def _inside(self, path: Path) -> Path | None:
        """Return the path from the root on; None if it leads out of it."""
        for resolve in (os.path.abspath, os.path.realpath):
            try:
                inner = Path(resolve(path)).relative_to(resolve(self.root))
            except ValueError:  # not inside, or there is a NUL in the name
                continue
            return self.root / inner
        return None

    def _outside(self, text: str, literal: Path, what: str) -> DataError:
        literal = Path(os.path.abspath(literal))
        above = os.path.commonpath([literal, os.path.abspath(self.root)])
        parent = Path(os.path.abspath(self.file.parent))
        # A description is looked for in a folder and in those directly in it.
        deep = len(parent.relative_to(above).parts) > 1
        also = "" if deep else f", or give the folder above, {above}, in place of {self.root}"
        return DataError(
            f"{self.file}: {what}: {shown(text)} leads to {literal}, which is outside {self.root}; "
            f"move {self.file.name} into the folder that holds the images{also}"
        )


def is_absolute(name: str) -> bool:
    """Return whether a path is absolute, on this system or on Windows, or in a home folder."""
    return name.startswith(("/", "~")) or bool(PureWindowsPath(name).drive)


def exists(path: Path) -> bool:
    """Return whether there is such a folder or file. Unlike Path.exists it never raises."""
    try:
        os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
    return True


def common_folder(places: Sequence[Path]) -> Path:
    """Return the deepest folder that holds all of these folders and files."""
    folders = [place if place.is_dir() else place.parent for place in places]
    common = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    depth = len(Path(os.path.abspath(folders[0])).relative_to(common).parts)
    return folders[0] if not depth else list(folders[0].parents)[depth - 1]


def unique_names(names: Mapping[int, str], file: Path, notes: list[str]) -> dict[int, str]:
    """Return the names in the order of their numbers; a name of two numbers is noted."""
    first: dict[str, int] = {}
    for label in sorted(names):
        name = names[label]
        if name in first:
            notes.append(
                f"{file}: classes {first[name]} and {label} are both called {shown(name)}; "
                "taken as one class"
            )
        first.setdefault(name, label)
    if gaps := sorted(set(range(max(names, default=-1) + 1)) - set(names))[:5]:
        listed = ", ".join(map(str, gaps))
        notes.append(f"{file}: no name is given for class {listed}{' ...' * (len(gaps) == 5)}")
    return {label: names[label] for label in sorted(names)}
