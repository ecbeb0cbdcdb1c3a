"""Where the files of a VOC folder are, and which images its splits list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mdssd.data.dataset import SPLITS
from mdssd.data.file_index import FileIndex, inner_name, is_hidden
from mdssd.data.images import IMAGE_SUFFIXES
from mdssd.data.sample import DataError
from mdssd.data.text_files import read_text

_IMAGE_FOLDERS = ("JPEGImages", "images")
_ANNOTATION_FOLDERS = ("Annotations", "annotations")
_MAX_LIST = 64 << 20  # bytes: a million names


class VocFiles(NamedTuple):
    """The annotations and the images of a data set."""

    xml: FileIndex
    images: FileIndex


@dataclass(frozen=True)
class VocLayout:
    """The folders of a data set with XML annotations; both are one if the files lie together."""

    root: Path
    annotations: Path
    images: Path

    @property
    def lists(self) -> Path:
        """The folder of the split lists, which may be missing."""
        return self.root / "ImageSets" / "Main"

    def list_path(self, split: str) -> Path:
        """Return the file that lists a split. Raises DataError for a name with a path in it."""
        return self.lists / inner_name(f"{split}.txt", self.lists, "split")

    def list_names(self) -> list[str]:
        """Return the names of the splits that have a list."""
        return sorted(p.stem for p in self.lists.glob("*.txt") if not is_hidden(p.name))

    def files(self) -> VocFiles:
        """Return the annotations and the images that are there."""
        return VocFiles(
            FileIndex(self.annotations, (".xml",), (self.images.name,)),
            FileIndex(self.images, IMAGE_SUFFIXES),
        )


def find_layout(root: Path) -> VocLayout | None:
    """Return the layout of a folder; None if it holds no annotation in XML and is not VOC's."""
    if (root / "JPEGImages").is_dir() or (root / "Annotations").is_dir():
        return VocLayout(
            root,
            _first_folder(root, _ANNOTATION_FOLDERS),
            _first_folder(root, _IMAGE_FOLDERS),
        )
    annotations = _first_folder(root, _ANNOTATION_FOLDERS)
    if annotations.is_dir() and _holds_xml(annotations):
        return VocLayout(root, annotations, _first_folder(root, _IMAGE_FOLDERS))
    return VocLayout(root, root, root) if _holds_xml(root) else None


def _first_folder(root: Path, names: Sequence[str]) -> Path:
    found = [root / name for name in names if (root / name).is_dir()]
    return found[0] if found else root / names[0]


def _holds_xml(folder: Path) -> bool:
    return any(not is_hidden(path.name) for path in folder.glob("*.xml"))


def voc_folders(path: Path) -> list[Path]:
    """Return the folder itself, or the folders in it that are named after their year."""
    if find_layout(path) is not None:
        return [path]
    return sorted(f for f in path.glob("VOC[12][0-9][0-9][0-9]") if (f / "JPEGImages").is_dir())


def split_folders(path: Path) -> dict[str, Path]:
    """Return the folders that are named after a split and hold images beside their annotations."""
    folders = {name: path / name for name in SPLITS}
    return {name: folder for name, folder in folders.items() if find_layout(folder) is not None}


def not_voc(path: Path) -> DataError:
    """Return the error about a folder without images and annotations, with what to give instead."""
    files = sorted([*path.glob("*.json"), *path.glob("*/*.json")])
    if files:
        given = ", ".join(map(str, files[:4])) + (" ..." if len(files) > 4 else "")
        return DataError(
            f"{path}: not in VOC layout, it has no folder JPEGImages; "
            f"if this is COCO data, give the file: {given}"
        )
    held = sorted(p.name + "/" * p.is_dir() for p in path.iterdir() if not is_hidden(p.name))
    return DataError(
        f"{path}: not in VOC layout, it has no folder JPEGImages; expected the images in "
        "JPEGImages and their annotations in Annotations, or each .xml file beside its image, "
        f"or a COCO JSON file instead of the folder; found {', '.join(held[:6]) or 'nothing'}"
    )


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a split list that are not blank, with their numbers.

    Raises:
        DataError: it has none, or cannot be read.
    """
    numbered = enumerate(read_text(path, _MAX_LIST).splitlines(), 1)
    lines = [(number, line.strip()) for number, line in numbered if line.strip()]
    if not lines:
        raise DataError(f"{path}: the split lists no image")
    return lines


def listed_id(line: str, where: str, files: VocFiles) -> str:
    """Return the id of the image that a line of a split list names.

    The name is the whole line, or its first word, with or without folders and an ending.

    Args:
        line: the line.
        where: the list and the number of the line, for messages.
        files: the annotations and images.

    Raises:
        DataError: the name leads out of the folder.
    """
    for index in files:
        for name in _names(line, where, index.folder):
            if (found := index.find_stem(name)) is not None:
                return image_id(found, index)
    return line.split()[0]


def _names(line: str, where: str, folder: Path) -> Iterator[str]:
    for name in dict.fromkeys((line, line.split()[0])):
        name = inner_name(name, folder, where)
        yield name
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in (".xml", *IMAGE_SUFFIXES):
            yield stem


def image_id(file: Path, index: FileIndex) -> str:
    """Return the id of an annotation or image: its path in its folder, without the ending."""
    return file.relative_to(index.folder).with_suffix("").as_posix()
