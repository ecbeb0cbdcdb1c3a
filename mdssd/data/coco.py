"""Data sets in the JSON format of COCO."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath

from mdssd.data.coco_json import CocoContent, CocoImage, CocoRow, Key
from mdssd.data.file_index import FileIndex, inner_name
from mdssd.data.images import IMAGE_SUFFIXES, ImageLimits
from mdssd.data.photos import CollectFaults, PhotoDataset, class_notes, progress
from mdssd.data.sample import BoxRow, DataError
from mdssd.data.splits import split_in_name
from mdssd.data.values import shown

# Names of folders that hold COCO files and no images.
FOLDERS = ("annotations", "annotation", "labels")
_SAMPLE = 100  # images that decide which folder holds them


class CocoDataset(PhotoDataset):
    """The images and boxes of one COCO instances file.

    Category ids in ascending order become the labels 1 to K: `category_ids[k - 1]` is the id of
    label k. A category that only groups others is no class: it has no box, and others name it as
    their supercategory. Crowds are kept and marked. Images come in the order of the file,
    including those without boxes. Annotations that cannot be used, and boxes without area or
    outside the image, are left out and listed in `dropped`.

    Args:
        json_path: the file.
        image_dir: the folder that its file names refer to. None: the one of the usual places
            that holds most of the images. For instances_val2017.json these are the file's folder
            and, there or one level up, images/val2017, val2017 and images. For
            image_info_test-dev2017.json they are named test2017 as well.
        classes: names of categories in label order; boxes of others are left out, and counted in
            `notes`. A name that no category has is no class. None: all categories.
        unlabelled: also accept a file without a list of annotations, as
            image_info_test-dev2017.json is. `labelled` is False then.
        faults: a list that receives a line about each image that cannot be used; it is left out.
            None: the first one raises DataError.
        limits: what an image file may hold.
        orientation: "auto", "upright" or "stored"; see `open_dataset`.
        part: whether it is one of several that are read together: it need not have a box of the
            classes then, and does not note which have none; image_dir may have a folder for it.

    Attributes:
        known_classes: the id of each category of the file that is a class.
        has_boxes: whether an annotation of the file can be used.

    Raises:
        DataError: something cannot be read. The message names the file and the reason.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> import cv2, numpy as np
        >>> from mdssd.data import CocoDataset
        >>> content = {
        ...     "images": [{"id": 7, "file_name": "a.jpg", "width": 80, "height": 60}],
        ...     "categories": [{"id": 3, "name": "car"}],
        ...     "annotations": [{"image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 15]}],
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = cv2.imwrite(f"{folder}/a.jpg", np.zeros((60, 80, 3), np.uint8))
        ...     path = Path(folder, "instances.json")
        ...     _ = path.write_text(json.dumps(content))
        ...     dataset = CocoDataset(path)
        >>> dataset.classes, dataset.category_ids, dataset.annotation(0).boxes_xyxy.tolist()
        (['car'], [3], [[10.0, 20.0, 40.0, 35.0]])
    """

    format = "COCO JSON"
    metric = "COCO AP"
    submission = "coco"

    def __init__(
        self,
        json_path: str | os.PathLike[str],
        image_dir: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | None = None,
        *,
        unlabelled: bool = False,
        faults: list[str] | None = None,
        limits: ImageLimits | None = None,
        orientation: str = "auto",
        part: bool = False,
    ) -> None:
        self.json_path = Path(json_path)
        super().__init__(self.json_path.stem, limits, orientation)
        content = CocoContent(self.json_path)
        self.labelled = "annotations" in content.lists or not unlabelled
        for name in ("images", "annotations", "categories"):
            if name not in content.lists and not (name == "annotations" and not self.labelled):
                raise self._fault(f"not a COCO instances file, it has no list {name!r}")
        for name in ("images", "categories"):
            if not getattr(content, name) and not (name == "images" and content.faults):
                raise self._fault(f"the list {name!r} is empty")
        for line in content.faults:
            with CollectFaults(faults):
                raise DataError(line)
        self.dropped += content.unusable
        self.notes += content.notes
        self.category_ids = self._choose_classes(content, classes, part)
        self.classes = [content.categories[k].name for k in self.category_ids]
        self._label_of = {number: label for label, number in enumerate(self.category_ids, 1)}
        rows = self._rows(content)
        names = [image.name for image in content.images.values()]
        if not names:
            raise DataError(
                f"{self.name}: no image can be used; the first fault: {content.faults[0]}"
            )
        given = _given(image_dir)
        if given is None or part:
            given = find_folder(self.json_path, names, given)
        self.image_dir = given
        self._index: FileIndex | None = None
        loosely: dict[Path, str] = {}
        for number in progress(list(content.images), f"reading {self.name}"):
            with CollectFaults(faults):
                self._add(str(number), content.images[number], rows.get(number, []), loosely)
        self._index = None
        if self.labelled and not part:
            found = self.labelled_classes()
            self.notes += class_notes(self.classes, found, self.left_out, str(self.json_path))

    def _add(
        self, number: str, image: CocoImage, rows: list[CocoRow], loosely: dict[Path, str]
    ) -> None:
        path = _direct(self.image_dir, image.name, str(self.json_path))
        if path is None:
            if self._index is None:
                self._index = FileIndex(self.image_dir, IMAGE_SUFFIXES)
            path = self._index.find(image.name)
            if path is None:
                raise self._missing(image.name)
            if path in loosely:
                both = f"{shown(loosely[path])} and {shown(image.name)}"
                raise self._fault(f"{both} would be the same file, {path}; expected one of each")
            loosely[path] = image.name
        where = f"{self.json_path} ({image.name})"
        boxes = [
            BoxRow(
                row.box_xyxy,
                self._label_of[row.category],
                row.difficult,
                row.crowd,
                row.area,
                f"{where}: {row.place}",
            )
            for row in rows
        ]
        self.add_image(number, path, boxes, image.size, where)

    def _missing(self, name: str) -> DataError:
        if _is_absolute(name):
            return self._fault(
                f"{shown(name)} leaves the folder {self.image_dir}, and no file there has the last "
                "parts of this absolute path; pass image_dir (--image-dir)"
            )
        return DataError(f"{self.image_dir / name}: no such image ({self.json_path} lists it)")

    def _choose_classes(
        self, content: CocoContent, classes: Sequence[str] | None, part: bool
    ) -> list[Key]:
        """Return the ids of the categories that are classes, in label order."""
        chosen, notes = content.classes()
        self.known_classes, self.has_boxes = chosen, bool(content.boxes)
        self.notes += notes
        if classes is None:
            return list(chosen.values())
        known = [chosen[name] for name in classes if name in chosen]
        if not known and not part:
            raise self._fault(
                f"has none of the classes {', '.join(classes)}; "
                f"it has {', '.join(list(chosen)[:10])}"
            )
        return known

    def _rows(self, content: CocoContent) -> dict[Key, list[CocoRow]]:
        """Return the annotations of the classes by image, and count those of other classes."""
        rows: defaultdict[Key, list[CocoRow]] = defaultdict(list)
        lost = bool(content.faults)
        for row in content.rows:
            if row.image not in content.images:
                if not lost:
                    self._drop(row, f"there is no image {shown(row.image)}")
            elif row.category in self._label_of:
                rows[row.image].append(row)
            elif row.category in content.categories:
                self.left_out[content.categories[row.category].name] += 1
            else:
                self._drop(row, f"there is no category {shown(row.category)}")
        return rows

    def _drop(self, row: CocoRow, reason: str) -> None:
        self.dropped.append(f"{self.json_path}: {row.place}: {reason}")

    def _fault(self, reason: str) -> DataError:
        return DataError(f"{self.json_path}: {reason}")


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or bool(PureWindowsPath(name).drive)


def find_folder(json_path: Path, names: Sequence[str], image_dir: Path | None = None) -> Path:
    """Return the folder, of the usual ones, that holds most of the images of a COCO file.

    Args:
        json_path: the file.
        names: the names of its images.
        image_dir: the folder in which to look. None: that of the file, and one level up.

    Raises:
        DataError: none of them is found.
    """
    sample = names[:: max(1, len(names) // _SAMPLE)]
    usual = list(dict.fromkeys(_places(json_path, image_dir)))
    places = [folder for folder in usual if folder.is_dir()]
    where = str(json_path)
    counts = [_count(folder, sample, None, where) for folder in places]
    if not any(counts):
        counts = [_count(f, sample, FileIndex(f, IMAGE_SUFFIXES), where) for f in places]
    if any(counts):
        return places[counts.index(max(counts))]
    others = f" and {len(names) - 1} others" if len(names) > 1 else ""
    raise DataError(
        f"{json_path}: image {shown(names[0])}{others} not found in {', '.join(map(str, usual))}; "
        "pass image_dir (--image-dir) with the file"
    )


def _given(folder: str | os.PathLike[str] | None) -> Path | None:
    if folder is not None and not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder (given as image_dir)")
    return None if folder is None else Path(folder)


def _count(folder: Path, names: Sequence[str], index: FileIndex | None, where: str) -> int:
    """Return how many of the names are in a folder, as they are or as an index finds them."""
    count = 0
    for name in names:
        with CollectFaults([]):  # a name that leaves the folder is found in none
            found = index.find(name) if index else _direct(folder, name, where)
            count += found is not None
    return count


def _direct(folder: Path, name: str, where: str) -> Path | None:
    """Return the file that a relative name, with slashes or backslashes, is in a folder."""
    if _is_absolute(name):
        return None
    path = folder / name
    # A backslash may be part of a name, so that comes first.
    if ".." not in name and os.path.isfile(path):  # False for a name that is too long
        return path
    path = folder / inner_name(name, folder, where)
    return path if os.path.exists(path) else None


def _places(json_path: Path, image_dir: Path | None) -> Iterator[Path]:
    """Yield the folders in which the images of a COCO file usually are."""
    here = image_dir or json_path.parent
    above = here if image_dir else Path(os.path.normpath(here / ".."))
    stem = json_path.stem
    last = stem.rpartition("_")[2]
    # The images of test-dev2017 are in test2017, those of minival2014 in val2014.
    shared = re.sub(r".*(train|val|test)\D*(\d{4})$", r"\1\2", last)
    splits = (last, shared, *filter(None, [split_in_name(stem)]))
    yield here
    for top in (here, above):
        for name in splits:
            yield top / "images" / name
            yield top / name
        yield top / "images"
        yield top / "data"
    if here.name.lower() in FOLDERS:
        yield above
