"""Data sets in the JSON format of COCO."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from mdssd.data.images import path_inside
from mdssd.data.photos import CollectFaults, PhotoDataset, progress
from mdssd.data.sample import BoxRow, DataError


class CocoDataset(PhotoDataset):
    """The images and boxes of one COCO instances file.

    Category ids in ascending order become the labels 1 to K: `category_ids[k - 1]` is the id of
    label k. Crowds are kept and marked. Images come in the order of the file, including those
    without boxes. Boxes without area or outside the image are left out and listed in `dropped`.

    Args:
        json_path: the file.
        image_dir: the folder that its file names refer to. None: the first of the usual places
            that holds the first image. For instances_val2017.json these are the file's folder
            and, there or one level up, images/val2017, val2017 and images. For
            image_info_test-dev2017.json they are named test2017 as well.
        unlabelled: also accept a file without a list of annotations, as
            image_info_test-dev2017.json is. `labelled` is False then.
        faults: a list that receives a line about each image or annotation that cannot be used; it
            is left out. None: the first one raises DataError.

    Raises:
        DataError: something cannot be read. The message names the file and the reason.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from mdssd.data import CocoDataset
        >>> content = {
        ...     "images": [{"id": 7, "file_name": "a.jpg", "width": 80, "height": 60}],
        ...     "categories": [{"id": 3, "name": "car"}],
        ...     "annotations": [{"image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 15]}],
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "a.jpg").touch()
        ...     path = Path(folder, "instances.json")
        ...     _ = path.write_text(json.dumps(content))
        ...     dataset = CocoDataset(path)
        >>> dataset.classes, dataset.category_ids, dataset.annotation(0).boxes_xyxy.tolist()
        (['car'], [3], [[10.0, 20.0, 40.0, 35.0]])
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
        collecting = CollectFaults(faults)
        for number in progress(list(images), f"reading {self.name}"):
            with collecting:
                self._add(number, images[number], names[number], rows[number])

    def _add(self, number: int, image: dict[str, Any], name: str, rows: list[BoxRow]) -> None:
        path = path_inside(self.image_dir, name, str(self.json_path))
        if not path.is_file():
            raise DataError(f"{path}: no such image ({self.json_path} lists it)")
        size = None
        if "width" in image and "height" in image:
            size = (
                self._get(image, "width", int, f"image {number}"),
                self._get(image, "height", int, f"image {number}"),
            )
        self.add_image(str(number), path, rows, size, f"{self.json_path} ({name})")

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.json_path.read_bytes())
        except OSError as error:
            raise self._fault(f"cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise self._fault(f"broken JSON ({error})") from None
        if not isinstance(content, dict):
            raise self._fault("not a COCO file, its top level is not an object")
        return content

    def _table(self, content: dict[str, Any], key: str) -> dict[int, dict[str, Any]]:
        """Return the entries of a list by their id."""
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
        collecting = CollectFaults(faults)
        for position, entry in enumerate(content["annotations"]):
            with collecting:
                image, row = self._row(entry, f"annotations[{position}]", rows, label_of)
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
        # The images of test-dev2017 are in test2017, those of minival2014 in val2014.
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
        raise self._fault(f"image {first!r} not found in {tried}; pass image_dir")

    def _fault(self, reason: str) -> DataError:
        return DataError(f"{self.json_path}: {reason}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
