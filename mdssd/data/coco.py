"""Data sets in the JSON format of COCO."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mdssd.data.images import path_inside
from mdssd.data.photos import PhotoDataset
from mdssd.data.sample import Annotation, BoxRow, DataError


class CocoDataset(PhotoDataset):
    """The images and boxes of one COCO instances file.

    json_path: the file. image_dir: the folder its file names refer to; None: the first of the
    usual places that holds the first image (beside the file; images/ or the split's folder, as
    val2017 of instances_val2017.json or test2017 of image_info_test-dev2017.json, beside the file
    or beside its folder).
    Labels: category ids in ascending order become 1 to K; `category_ids[k - 1]` is the id of
    label k. Crowds are kept and marked. Images come in the order of the file, those without
    boxes included. Boxes without area or outside the image are left out and listed in `dropped`.
    unlabelled: take a file without a list of annotations too, as image_info_test-dev2017.json of
    COCO; `labelled` is then False.
    Raises DataError, naming file and reason, for whatever cannot be read. Where `faults` is a
    list, what is wrong with a single image or annotation goes there, and it is left out.
    """

    metric = "COCO AP"
    submission = "coco"

    def __init__(
        self,
        json_path: str | os.PathLike[str],
        image_dir: str | os.PathLike[str] | None = None,
        *,
        unlabelled: bool = False,
        faults: list[str] | None = None,
    ) -> None:
        self.json_path = Path(json_path)
        super().__init__(self.json_path.stem)
        content = self._read()
        if unlabelled and "annotations" not in content:
            content["annotations"] = []
            self.labelled = False
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise self._fault(f"not a COCO instances file, it has no list {key!r}")
        categories = self._table(content, "categories")
        self.category_ids = sorted(categories)
        self.classes = [
            self._get(categories[k], "name", str, f"category {k}") for k in self.category_ids
        ]
        if len(set(self.classes)) < len(self.classes):
            raise self._fault("two categories have the same name")
        images = self._table(content, "images")
        rows = self._rows(content, images, faults)
        names = {k: self._get(image, "file_name", str, f"image {k}") for k, image in images.items()}
        self.image_dir = self._find_images(image_dir, next(iter(names.values())))
        for key, image in tqdm(images.items(), desc=f"reading {self.name}", delay=2, leave=False):
            try:
                path = path_inside(self.image_dir, names[key], str(self.json_path))
                if not path.is_file():
                    raise DataError(f"{path}: no such image ({self.json_path} lists it)")
                size = None
                if "width" in image and "height" in image:
                    size = (
                        self._get(image, "width", int, f"image {key}"),
                        self._get(image, "height", int, f"image {key}"),
                    )
            except DataError as error:
                if faults is None:
                    raise
                faults.append(str(error))
                continue
            self.image_ids.append(str(key))
            self._paths.append(path)
            where = f"{self.json_path} ({names[key]})"
            self._annotations.append(Annotation(rows[key], size, where, self.dropped))

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.json_path.read_bytes())
        except OSError as error:
            raise self._fault(f"cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise self._fault(f"broken JSON ({error})") from None
        if not isinstance(content, dict):
            raise self._fault("not a COCO file, its top level is no object")
        return content

    def _table(self, content: dict[str, Any], key: str) -> dict[int, dict[str, Any]]:
        """The entries of a list by their id."""
        table: dict[int, dict[str, Any]] = {}
        for position, entry in enumerate(content[key]):
            where = f"{key}[{position}]"
            number = self._get(entry, "id", int, where)
            if number in table:
                raise self._fault(f"{where}: id {number} occurs twice")
            table[number] = entry
        if not table:
            raise self._fault(f"the list {key!r} is empty")
        return table

    def _rows(
        self,
        content: dict[str, Any],
        images: dict[int, dict[str, Any]],
        faults: list[str] | None,
    ) -> dict[int, list[BoxRow]]:
        label_of = {k: label for label, k in enumerate(self.category_ids, 1)}
        rows: dict[int, list[BoxRow]] = {key: [] for key in images}
        for position, entry in enumerate(content["annotations"]):
            try:
                image, row = self._row(entry, f"annotations[{position}]", rows, label_of)
            except DataError as error:
                if faults is None:
                    raise
                faults.append(str(error))
            else:
                rows[image].append(row)
        return rows

    def _row(
        self, entry: Any, where: str, images: Container[int], label_of: dict[int, int]
    ) -> tuple[int, BoxRow]:
        image = self._get(entry, "image_id", int, where)
        category = self._get(entry, "category_id", int, where)
        if image not in images:
            raise self._fault(f"{where}: there is no image {image}")
        if category not in label_of:
            raise self._fault(f"{where}: there is no category {category}")
        box = self._get(entry, "bbox", list, where)
        if len(box) != 4 or not all(_is_number(value) for value in box):
            raise self._fault(f"{where}: bbox is {box!r}, expected four numbers")
        left, top, width, height = (float(value) for value in box)
        area = entry.get("area")
        if area is not None and not _is_number(area):
            raise self._fault(f"{where}: area is {area!r}, expected a number")
        box_xyxy = (left, top, left + width, top + height)
        crowd = bool(entry.get("iscrowd", 0))
        return image, BoxRow(box_xyxy, label_of[category], crowd=crowd, area=area)

    def _get(self, entry: Any, key: str, kind: type, where: str) -> Any:
        value = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._fault(f"{where}: {key} is {value!r}, expected {kind.__name__}")
        return value

    def _find_images(self, given: str | os.PathLike[str] | None, first: str) -> Path:
        if given is not None:
            folder = Path(given)
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder (given as image_dir)")
            return folder
        here = self.json_path.parent
        split = self.json_path.stem.rpartition("_")[2]
        # Images of test-dev2017 lie in test2017, those of minival2014 in val2014.
        shared = re.sub(r".*(train|val|test)\D*(\d{4})$", r"\1\2", split)
        places = [here]
        for top in (here, here.parent):
            for name in dict.fromkeys((split, shared)):
                places += [top / "images" / name, top / name]
            places.append(top / "images")
        for folder in places:
            if folder.is_dir() and path_inside(folder, first, str(self.json_path)).is_file():
                return folder
        tried = ", ".join(str(folder) for folder in places)
        raise self._fault(f"image {first!r} not found in {tried}; give image_dir")

    def _fault(self, reason: str) -> DataError:
        return DataError(f"{self.json_path}: {reason}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
