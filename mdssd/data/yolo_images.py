"""The images of a YOLO data set, the splits they are in, and their label files."""

from __future__ import annotations

import os
import posixpath
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

from mdssd.data.file_index import FileIndex, inner_name
from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.data.photos import CollectFaults
from mdssd.data.sample import DataError
from mdssd.data.text_files import read_text
from mdssd.data.values import shown
from mdssd.data.yolo_description import YoloDescription, is_absolute
from mdssd.data.yolo_folder import is_other_text
from mdssd.system.text import plural

_MAX_LIST = 64 << 20  # bytes: a million paths


class YoloImages:
    """The images of each split, and their label files, as names in the folder of the data set.

    Args:
        description: where the images are.
        faults: receives a line per image of a list that is not there; see `ReadOptions`.

    Attributes:
        splits: the names of the images of each split.
        notes: a line per thing that was guessed, or per file that is not used.

    Raises:
        DataError: a list cannot be read.
    """

    def __init__(self, description: YoloDescription, faults: list[str] | None) -> None:
        self.folder = description.folder
        self.notes: list[str] = []
        self._faults = faults
        self._bases = [os.path.relpath(base, self.folder) for base in description.bases]
        self._images = FileIndex(self.folder, IMAGE_SUFFIXES)
        self._labels = FileIndex(self.folder, (".txt",))
        self._sorted = sorted(self._images.all_names)
        self._label_of: dict[str, str] = {}
        self._lists: set[str] = set()
        self.splits = {
            split: list(dict.fromkeys(name for entry in entries for name in self._of(entry)))
            for split, entries in description.splits.items()
        }

    def label(self, image: str) -> str | None:
        """Return the label file of an image; None if it has none.

        It lies in the folder `labels` that is parallel to the last folder `images` of the image's
        path, or beside the image.
        """
        if image not in self._label_of:
            self._label_of[image] = self._find_label(image)
        return self._label_of[image] or None

    def note_unused(self) -> None:
        """Note the label files without an image, and the images that no split holds."""
        images = dict.fromkeys(name for names in self.splits.values() for name in names)
        rest = [name for name in self._sorted if name not in images]
        used = set(map(self.label, images))
        labels = set(map(self.label, rest)) - used - {None}
        parents = {posixpath.dirname(name) for name in images}
        stems = [each for parent in parents for each in _label_stems(posixpath.join(parent, "a"))]
        folders = {posixpath.dirname(stem) for stem in stems}
        for name in sorted({*self._labels.all_names} - used - labels - self._lists):
            folder, _, file = name.rpartition("/")
            if folder in folders and not is_other_text(file.lower()):
                self.notes.append(f"{self.folder / name}: a label file without an image; not used")
        if rest:
            unused = f"; not used, with {plural(len(labels), 'label file')}" if labels else ""
            self.notes.append(
                f"{self.folder}: {plural(len(rest), 'image')} in no split, such as {rest[0]}"
                + unused
            )

    def _find_label(self, image: str) -> str:
        for stem in _label_stems(image):
            found = self._labels.names.get(stem)
            if found is not None:
                return found
            path = self._labels.find_stem(stem)
            if path is not None:
                return path.relative_to(self.folder).as_posix()
        return ""

    def _of(self, entry: Path) -> list[str]:
        """Return the images of a folder or list file."""
        name = Path(os.path.relpath(entry, self.folder)).as_posix()
        if not entry.is_dir():
            if entry.suffix.lower() in IMAGE_SUFFIXES:
                raise DataError(f"{entry}: is an image, expected a folder or a list of images")
            self._lists.add(name)
            return list(self._listed(entry, posixpath.dirname(name)))
        if name == ".":
            return self._sorted
        first = bisect_left(self._sorted, f"{name}/")
        last = bisect_left(self._sorted, f"{name}0")  # "0" follows "/"
        return self._sorted[first:last]

    def _listed(self, path: Path, parent: str) -> Iterator[str]:
        by_end = 0
        example = ""
        for count, line in enumerate(read_text(path, _MAX_LIST).splitlines(), 1):
            line = line.strip()
            if not line:
                continue
            with CollectFaults(self._faults):
                name, exact = self._find(line, parent, f"{path}:{count}")
                if not exact:
                    by_end += 1
                    example = example or f"{shown(line)} is {name}"
                yield name
        if by_end:
            paths = "path" if by_end == 1 else "paths"
            self.notes.append(
                f"{path}: {by_end} {paths} found by the last parts, such as {example}"
            )

    def _find(self, line: str, parent: str, where: str) -> tuple[str, bool]:
        """Return the image that a line of a list names, and whether its path is right."""
        name = line.replace("\\", "/")
        if not is_absolute(name):
            for base in dict.fromkeys((*self._bases, parent)):
                joined = posixpath.normpath(posixpath.join(base.replace(os.sep, "/"), name))
                found = self._images.find(joined)
                if found is not None:
                    relative = found.relative_to(self.folder).as_posix()
                    return relative, True
        # Also the paths of another machine, and those that begin above the folder.
        found = self._images.find(name if is_absolute(name) else f"/{name}")
        if found is not None:
            return found.relative_to(self.folder).as_posix(), False
        if not is_absolute(name):
            inner_name(posixpath.join(parent, name), self.folder, where)
        if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{where}: {shown(line)} is not the name of an image")
        raise DataError(f"{where}: no such image, {shown(line)}, in {self.folder}")


def _label_stems(image: str) -> Iterator[str]:
    """Yield the names without ending that the label file of an image may have."""
    stem = posixpath.splitext(image)[0]
    before, folder, after = f"/{stem}".rpartition("/images/")
    if folder:
        yield f"{before}/labels/{after}"[1:]
    yield stem
