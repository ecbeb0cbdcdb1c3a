"""Data sets of LabelMe: a JSON file for each image."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

from mdssd.data.dataset import SPLITS
from mdssd.data.file_index import FileIndex, is_hidden
from mdssd.data.image_headers import ImageHeader, parse_header
from mdssd.data.images import IMAGE_SUFFIXES, decode_image
from mdssd.data.labelme_json import LabelMeFile, embedded_image, read_labelme
from mdssd.data.listed import ListedDataset, ListedImage, ReadOptions
from mdssd.data.photos import CollectFaults, progress
from mdssd.data.reasons import Tally
from mdssd.data.sample import DataError, Sample
from mdssd.data.splits import ALL, chosen_splits
from mdssd.system.files import open_regular
from mdssd.system.text import plural

_HEAD = 1 << 16
_TRIED = 20  # files that decide whether a folder is LabelMe's
_DEPTH = 3  # of the folders in which they are looked for
_KEYS = re.compile(r'"shapes"\s*:\s*\[|"image(?:Path|Data)"\s*:')


class LabelMeDataset(ListedDataset):
    """The images of LabelMe's annotations, some of which may hold their image themselves."""

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` with its ground truth; see `DetectionDataset`."""
        path = self._paths[index]
        if not _is_json(path):
            return super().__getitem__(index)
        image = decode_image(
            embedded_image(path), str(path), upright=self._upright[index], limits=self.limits
        )
        return self._annotations[index].sample(image, self.image_ids[index])

    def image_path(self, index: int) -> Path | None:
        """Return the file of image `index`; None if the image is in its annotation."""
        path = self._paths[index]
        return None if _is_json(path) else path

    def image_bytes(self, index: int) -> bytes | None:
        """Return the bytes of image `index` if it is in its annotation."""
        path = self._paths[index]
        return embedded_image(path) if _is_json(path) else None

    def read_header(self, path: Path) -> ImageHeader:
        """Return the header of an image file, or of the image in an annotation."""
        if not _is_json(path):
            return super().read_header(path)
        header = parse_header(io.BytesIO(embedded_image(path)), f"{path}: imageData")
        self.limits.check(header, f"{path}: imageData")  # it is not read by windows
        return header


def is_labelme(path: Path) -> bool:
    """Return whether a folder holds annotations of LabelMe. Never raises."""
    return any(map(_begins_as_labelme, islice(_json_files(path), _TRIED)))


def open_labelme(
    path: Path, split: str | None, train: bool, options: ReadOptions
) -> LabelMeDataset:
    """Open a folder with annotations of LabelMe; see `open_dataset`.

    Folders named after a split are splits. Images without an annotation are left out, because
    they are usually not labelled yet.

    Raises:
        DataError: something cannot be read. The message names the file and the reason.
    """
    reader = _Reader(path, options)
    splits = sorted({reader.split_of(name) for name in reader.json.all_names} - {""}, key=_rank)
    chosen = chosen_splits(path, splits, split, train)
    whole = not splits or split == ALL
    images = reader.images(None if whole else set(chosen))
    listed, labelled = list(images), True
    if options.unlabelled:
        others = list(reader.unlabelled(None if whole else set(chosen)))
        listed, labelled = listed + others, not others
    else:
        reader.note_unlabelled()
    one = chosen[0] if splits and len(chosen) == 1 else ALL
    dataset = LabelMeDataset(
        f"{path.resolve().name} {one}" if splits else path.resolve().name,
        progress(listed, f"reading {path}"),
        sorted(reader.names),
        options,
        format="LabelMe JSON",
        root=path,
        split=one if splits else None,
        dropped=reader.dropped,
        notes=[*reader.notes, *reader.tally.lines()],
        upright=True,
    )
    dataset.labelled = labelled
    return dataset


class _Reader:
    """Reads the annotations and finds their images.

    Attributes:
        json: the JSON files of the folder.
        names: the classes of all annotations that were read.
        dropped: a line for each shape whose box cannot be used.
        notes: a line for each file that is not read.
        tally: what was guessed.
    """

    def __init__(self, root: Path, options: ReadOptions) -> None:
        self.root = root
        self.json = FileIndex(root, (".json",))
        self.names: set[str] = set()
        self.dropped: list[str] = []
        self.notes: list[str] = []
        self.tally = Tally()
        self._options = options
        self._images = FileIndex(root, IMAGE_SUFFIXES)
        self._used: set[Path] = set()
        self._by_name: dict[str, list[str]] = {}
        for name in self._images.all_names:
            self._by_name.setdefault(os.path.basename(name), []).append(name)

    def split_of(self, name: str) -> str:
        """Return the first folder of a path that is named after a split; "" if none is."""
        folders = (part.lower() for part in name.split("/")[:-1])
        return next((part for part in folders if part in SPLITS), "")

    def images(self, chosen: set[str] | None) -> Iterator[ListedImage]:
        """Yield the images of some splits, None for all; the classes are those of all of them."""
        for name in progress(sorted(self.json.all_names), f"reading {self.root}"):
            split = self.split_of(name)
            wanted = chosen is None or split in chosen
            # What is wrong in another split is not asked for.
            faults = self._options.faults if wanted else []
            image = None
            with CollectFaults(faults):
                image = self._read(name, split, wanted)
            if image is not None:
                yield image

    def unlabelled(self, chosen: set[str] | None) -> Iterator[ListedImage]:
        """Yield the images that no annotation is about."""
        for name in self._alone():
            split = self.split_of(name)
            if chosen is None or split in chosen:
                path = self.root / name
                yield ListedImage(os.path.splitext(name)[0], path, [], str(path), split=split)

    def note_unlabelled(self) -> None:
        """Note how many images have no annotation."""
        if alone := self._alone():
            self.notes.append(
                f"{self.root}: {plural(len(alone), 'image')} without an annotation left out, "
                f"such as {alone[0]}"
            )

    def _alone(self) -> list[str]:
        return sorted(n for n in self._images.all_names if self.root / n not in self._used)

    def _read(self, name: str, split: str, wanted: bool) -> ListedImage | None:
        path = self.root / name
        dropped, tally = (self.dropped, self.tally) if wanted else ([], Tally())
        read = read_labelme(path, dropped, tally)
        stem = os.path.splitext(name)[0]
        if read is None:
            own = self._images.find_stem(stem)
            reason = "is no annotation of LabelMe, it has no list 'shapes'"
            if own is not None and wanted:
                raise DataError(f"{path}: {reason}; {own.name} has this name")
            self.notes += [f"{path}: {reason}; not read"] if wanted else []
            return None
        self.names |= read.names
        image = self._find_image(path, stem, read, tally)
        self._used.add(image)
        if not wanted:
            return None
        return ListedImage(stem, image, read.boxes, str(path), read.size, split=split)

    def _find_image(self, path: Path, stem: str, read: LabelMeFile, tally: Tally) -> Path:
        """Return the image that an annotation names, else the one of its own name.

        Else the only one with the name in another folder, else the annotation itself, if the
        image is embedded in it.
        """
        told = read.image.replace("\\", "/")
        inner = os.path.normpath(f"{os.path.dirname(stem) or '.'}/{told}")
        absolute = told.startswith("/") or bool(PureWindowsPath(told).drive)
        outside = absolute or inner.startswith("../")
        named = self._images.find(inner) if told and not outside else None
        own = self._images.find_stem(stem)
        if named is not None and own is not None and named != own:
            other = os.path.splitext(named.relative_to(self.root).as_posix())[0]
            if self.json.find_stem(other) in (None, path):
                return named
            tally.add(str(path), f"names {told!r}, which has an annotation; {own.name} is used")
            return self._images.only(own, str(path))
        if named is not None:
            return named
        if own is not None:
            # Another ending is usual: the image was converted after it was labelled.
            if told and PurePosixPath(told).stem.casefold() != own.stem.casefold():
                tally.add(str(path), f"names {told!r}, which is not there; {own.name} is used")
            return self._images.only(own, str(path))
        same = self._by_name.get(os.path.basename(told), [])
        if len(same) == 1:
            tally.add(str(path), f"the image {told!r} was found as {same[0]!r}")
            return self.root / same[0]
        if read.embedded:
            tally.add(str(path), "has no image file; the image that is embedded in it is used")
            return path
        if told and outside and not absolute:
            raise DataError(
                f"{path}: imagePath {told!r} leaves the folder {self.root}; "
                "give the folder that holds the images as well"
            )
        raise DataError(
            f"{self.root / (inner if told and not outside else stem)}: no such image "
            f"({path} names {told!r}, and has no imageData)"
        )


def _json_files(path: Path) -> Iterator[Path]:
    """Yield the JSON files of a folder and of the folders in it, to some depth.

    Folders that cannot be read are passed over here; opening the data set names them.
    """
    for place, folders, files in os.walk(path):
        depth = len(Path(place).relative_to(path).parts)
        folders[:] = sorted(f for f in folders if not is_hidden(f)) if depth < _DEPTH else []
        for name in sorted(files):
            if _is_json(Path(name)) and not is_hidden(name):
                yield Path(place, name)


def _begins_as_labelme(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            data = file.read(_HEAD)
        return _KEYS.search(data.decode(json.detect_encoding(data[:4]), "ignore")) is not None
    except (OSError, ValueError):
        return False


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _rank(split: str) -> int:
    return SPLITS.index(split)
