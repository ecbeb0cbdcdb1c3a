"""The files that `detect` writes: their names, and what may be replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mdssd.data.rasters import map_coordinates
from mdssd.data.sample import DataError
from mdssd.data.yolo_yaml import is_yolo_yaml, read_names
from mdssd.detection import coco_results, tables
from mdssd.detection.image_files import ImageFiles, geojson_text, yolo_description, yolo_text
from mdssd.detection.sources import STDIN, Sources
from mdssd.detection.tables import Table, open_table
from mdssd.system.files import AtomicFiles, open_regular, read_regular, remove_all_leftovers
from mdssd.system.text import plural, printable, some

# The longest name of a file, in bytes, on the usual file systems.
_LONGEST_NAME = 255
# A comment in the pictures that `detect` writes, by which it recognises them.
MARK = b"\xff\xfe\x00\x17drawn by mdssd detect"
_PICTURE = rb"(?s).{0,256}?" + re.escape(MARK)
# The tables of each format, and how such a file begins, by which it is recognised.
_FILE = rb'"file": "(?:[^"\\]|\\.)*", "width": \d+, "height": \d+'
_COCO_IMAGES = "coco_images.json"
_TABLES = {
    "json": {"detections.json": rb'\[\n  \{"file": '},
    "csv": {"detections.csv": rb"file,width,height,class,label,score,x1,y1,x2,y2\n"},
    "jsonl": {"detections.jsonl": rb"\{" + _FILE + rb', "detections": \['},
    "coco": {
        "coco_results.json": rb'\[\n(?:  \{"image_id": |\n\]\n\Z)',
        _COCO_IMAGES: rb'\{"info": \{"description": "images of mdssd detect"\}, ',
    },
}
# The folders of the formats that have a file for each image, and the ends of the files' names.
# YOLO labels have no beginning of their own, so none is recognised.
_FOLDERS = {"yolo": ("labels", ".txt"), "geojson": ("geojson", ".geojson")}
_GEOJSON = rb'\{"type": "FeatureCollection", "image": \{' + _FILE + rb'\}, "features": \['
# Beside YOLO labels: the names of their classes, one per line. In the folder of both the labels and
# the images, which tools expect in a folder of this name: a file that names the classes and images.
CLASSES = "classes.txt"
_DESCRIPTION, _IMAGES = "data.yaml", "images"
# The most bytes of a file's beginning, in which the path of an image has room.
_BEGINNING = 1 << 16


@dataclass
class Outputs:
    """Where `detect` writes what.

    Attributes:
        folder: the folder.
        formats: the formats, each once.
        classes: the names of labels 1, 2 ...
        stems: for each image, the name of the files that it alone receives, without their end.
            It has the folder below `folder` in front.
        draw: whether there are pictures.
        coco_ids: the numbers of images and classes in COCO results; None for own ones.
        yolo_scores: whether YOLO labels have a score.
        upright: whether boxes are in images turned as their orientation says.
        files: writes the files of single images, between `open` and the end of its stack.
    """

    folder: Path
    formats: list[str]
    classes: Sequence[str]
    stems: Mapping[str, str]
    draw: bool = True
    coco_ids: coco_results.CocoIds | None = None
    yolo_scores: bool = False
    upright: bool = True
    files: AtomicFiles = field(default_factory=AtomicFiles)

    def picture(self, file: str) -> Path:
        """Return the picture of an image file."""
        return self.folder / (self.stems[file] + ".jpg")

    def open(
        self, stack: ExitStack, written: list[Path], beside: list[Path]
    ) -> list[Table | ImageFiles]:
        """Open everything but the pictures for the time of a stack; those of one file come first.

        Args:
            stack: closes them.
            written: receives the paths of the files with boxes, or of their folders.
            beside: receives the path of the file that lists the images for COCO, if there is one.
        """
        layouts = {
            "detections.json": tables.JSON,
            "detections.csv": tables.CSV,
            "detections.jsonl": tables.JSONL,
            "coco_results.json": coco_results.results_layout(self.coco_ids),
            _COCO_IMAGES: coco_results.images_layout(self.classes),
        }
        stack.callback(self.files.flush)
        opened: list[Table | ImageFiles] = []
        for name in self._table_files(self.formats):
            paths = beside if name == _COCO_IMAGES else written
            table = open_table(self.folder / name, layouts[name], paths)
            opened.append(stack.enter_context(table))
        yolo = partial(yolo_text, scores=self.yolo_scores)
        before = {"yolo": self._beside_labels()} if "yolo" in self.formats else {}
        for form in (form for form in self.formats if form in _FOLDERS):
            folder, suffix = _FOLDERS[form]
            compose = yolo if form == "yolo" else self._geojson
            what = self.folder / folder, suffix, self.stems, compose
            opened.append(ImageFiles(*what, before.get(form, {}), self.files, written))
        return opened

    def _geojson(self, image: dict[str, Any]) -> str:
        """Return the GeoJSON of an image, in map coordinates if it is a GeoTIFF."""
        file = image["file"]
        place = None if file == STDIN else map_coordinates(file, upright=self.upright)
        return geojson_text(image, place)

    def remove_leftovers(self) -> None:
        """Remove the temporary files that a killed run has left."""
        folders = [self.folder, *(self.folder / _FOLDERS[f][0] for f in _FOLDERS)]
        below = {os.path.dirname(stem) for stem in self.stems.values()}
        for folder in (top / name for top in folders for name in {"", *below}):
            remove_all_leftovers(folder)

    def renamed(self) -> list[str]:
        """Return a line for each label file that is not named as its image, which tools expect."""
        if "yolo" not in self.formats:
            return []
        folder, suffix = _FOLDERS["yolo"]
        lines = [
            f"{file} ({os.path.join(folder, stem)}{suffix})"
            for file, stem in self.stems.items()
            if os.path.basename(stem) != Path(file).stem and file != STDIN
        ]
        if not lines:
            return []
        return [
            f"{self.folder}: label files that are not named as their images, because another has "
            f"the name: {some(lines)}"
        ]

    def check(self, sources: Sources, overwrite: bool) -> str:
        """Check that nothing but earlier results of `detect` will be replaced.

        Args:
            sources: the images that will be read.
            overwrite: whether other files of these names may be replaced too, except images that
                are read.

        Returns:
            Lines that say what will be replaced, and what stays from an earlier run, or "".

        Raises:
            ValueError: the folder is a file, holds an image that is read, holds a file that would
                be replaced and that `detect` has not written, or has labels of other classes.
        """
        out = self.folder
        if out.exists() and not out.is_dir():
            raise ValueError(f"detect: out_dir: expected a folder, {out} is a file")
        pictured = {os.path.dirname(stem) for stem in self.stems.values()} if self.draw else set()
        for folder in (out / below for below in {"", *pictured}):
            if (name := sources.folders.get(os.path.realpath(folder))) is not None:
                raise ValueError(
                    f"detect: out_dir: {folder} holds the image {name}, which a picture could "
                    "replace; choose another folder"
                )
        if "yolo" in self.formats:
            self._check_classes()
        foreign, replaced = [], []
        for what, paths, pattern in self._existing():
            foreign += [path for path in paths if not (pattern and _begins(path, pattern))]
            replaced += [plural(len(paths), what) if what else paths[0].name] if paths else []
        if foreign and not overwrite:
            fault = "not a result of `mdssd detect`"
            if foreign[0].suffix == ".txt":
                fault = "a label file, which may have been corrected by hand"
            raise ValueError(
                f"detect: out_dir: {foreign[0]} exists and is {fault}; choose another folder, or "
                "replace it by --overwrite (overwrite=True)"
            )
        lines = [f"{out}: replacing {', '.join(replaced)} of an earlier run"] if replaced else []
        return "\n".join(map(printable, [*lines, *self._staying()]))

    def _existing(self) -> Iterator[tuple[str, list[Path], bytes]]:
        """Yield what there is of the files that will be written: a name, files, their beginning."""
        if self.draw:
            yield "picture", self._of_images(self.folder, ".jpg"), _PICTURE
        for name, pattern in self._table_files(self.formats).items():
            path = self.folder / name
            yield "", [path] if os.path.lexists(path) else [], pattern
        for form in (form for form in self.formats if form in _FOLDERS):
            folder, suffix = _FOLDERS[form]
            what = "label file" if form == "yolo" else "GeoJSON file"
            pattern = b"" if form == "yolo" else _GEOJSON
            yield what, self._of_images(self.folder / folder, suffix), pattern

    def _table_files(self, formats: Iterable[str]) -> dict[str, bytes]:
        """Return the tables of formats, with the beginning of each."""
        files = {n: b for f in formats if f in _TABLES for n, b in _TABLES[f].items()}
        if self.coco_ids is not None and "coco" in formats:
            del files[_COCO_IMAGES]
        return files

    def _of_images(self, folder: Path, suffix: str) -> list[Path]:
        if not folder.exists():
            return []
        paths = (f"{folder}{os.sep}{stem}{suffix}" for stem in self.stems.values())
        return [Path(path) for path in paths if os.path.lexists(path)]

    def _staying(self) -> list[str]:
        """Return a line for each table of an earlier run, and for its other files, that stay."""
        written = self._table_files(self.formats)
        every = {name: pattern for files in _TABLES.values() for name, pattern in files.items()}
        lines = [
            f"{self.folder / name} of an earlier run stays as it is"
            for name, pattern in every.items()
            if name not in written and _begins(self.folder / name, pattern)
        ]
        for form in (form for form in self.formats if form in _FOLDERS):
            folder, suffix = self.folder / _FOLDERS[form][0], _FOLDERS[form][1]
            if not folder.exists():
                continue
            own = {os.path.join(folder, stem + suffix) for stem in self.stems.values()}
            own.add(os.path.join(folder, CLASSES))
            found = (os.path.join(top, n) for top, _, names in os.walk(folder) for n in names)
            if count := sum(path not in own and path.endswith(suffix) for path in found):
                stay = "stays as it is" if count == 1 else "stay as they are"
                lines.append(f"{folder}: {plural(count, 'file')} of other images {stay}")
        return lines

    def _class_list(self) -> str:
        return "".join(f"{name}\n" for name in self.classes)

    def _beside_labels(self) -> dict[Path, str]:
        """Return the text of the files that belong to YOLO labels."""
        files = {self.folder / _FOLDERS["yolo"][0] / CLASSES: self._class_list()}
        path = self.folder / _DESCRIPTION
        if self._in_images() and not self._descriptions() and not os.path.lexists(path):
            files[path] = yolo_description(self.classes)
        return files

    def _in_images(self) -> bool:
        """Return whether each image lies where tools look for that of its label file."""
        top = os.path.realpath(self.folder / _IMAGES)
        real: dict[str, str] = {}
        for file, stem in self.stems.items():
            folder, name = os.path.split(file)
            if folder not in real:
                real[folder] = os.path.realpath(folder)
            own = os.path.join(real[folder], Path(name).stem)
            if file == STDIN or own != os.path.join(top, stem):
                return False
        return True

    def _descriptions(self) -> list[Path]:
        """Return the files in the folder that describe YOLO labels."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if is_yolo_yaml(path))

    def _check_descriptions(self) -> bool:
        """Check that a data.yaml has the numbers of the same classes. Return whether one has."""
        found = False
        for path in self._descriptions():
            try:
                names = read_names(path)
            except DataError as error:
                raise ValueError(f"detect: out_dir: {error}; labels would belong to it") from None
            if names is not None and names != dict(enumerate(self.classes)):
                raise ValueError(
                    f"detect: out_dir: {path} has the classes {some(list(names.values()))}, and "
                    f"the detector {some(self.classes)}, so the numbers in labels would mean other "
                    "classes; choose another folder"
                )
            found = found or names is not None
        return found

    def _check_classes(self) -> None:
        """Check that labels that are there already have the numbers of the same classes."""
        folder = self.folder / _FOLDERS["yolo"][0]
        broken = [name for name in self.classes if len(name.splitlines()) != 1]
        if broken:
            raise ValueError(
                f"detect: formats: a line of {CLASSES} holds one class, and {broken[0]!r} is the "
                "name of a class; choose another format than yolo"
            )
        if self._check_descriptions() or not os.path.isdir(folder):
            return
        if all(name[0] == "." for name in os.listdir(folder)):
            return
        try:
            data = read_regular(folder / CLASSES, 1 << 20)
        except OSError:
            data = b""
        if data != self._class_list().encode():
            raise ValueError(
                f"detect: out_dir: {folder} holds files, and no {CLASSES} with the classes of the "
                "detector, so the numbers in its labels may mean other classes; choose another "
                "folder"
            )


def _begins(path: Path, pattern: bytes) -> bool:
    """Return whether a file begins as a pattern says."""
    try:
        with open_regular(path) as file:
            return re.match(pattern, file.read(_BEGINNING)) is not None
    except OSError:
        return False


def unique_stems(sources: Sources, reserved: Iterable[str] = ()) -> dict[str, str]:
    """Return the name, without its end, of the files that each image receives.

    Args:
        sources: the images.
        reserved: names that none may have.

    Returns:
        The name of each image without its suffix, behind its folder below the output folder. Equal
        names get a number, also those that differ in case only.
    """
    stems: dict[str, str] = {}
    used = set(reserved)
    for file, below in sources.files.items():
        own = "stdin" if file == STDIN else Path(file).stem
        stem, number = os.path.join(below, _shortened(own, "")), 1
        while stem.lower() in used:
            number += 1
            stem = os.path.join(below, _shortened(own, f"-{number}"))
        used.add(stem.lower())
        stems[file] = stem
    return stems


def _shortened(stem: str, end: str) -> str:
    """Join a name, whose stem is shortened if a file system would refuse it with a suffix."""
    longest = _LONGEST_NAME - len(".geojson")
    while len(os.fsencode(stem + end)) > longest:
        stem = stem[:-1]
    return stem + end
