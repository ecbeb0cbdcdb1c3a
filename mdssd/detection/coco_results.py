"""Detections as COCO results, which pycocotools' `loadRes` reads.

A result names its image and its class by numbers. They are those of a COCO file, if there is one;
otherwise images are numbered in the order in which they are written, a class has the number of
its label, and a second file has the list of both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from mdssd.data.json_lists import read_lists
from mdssd.data.values import key, shown, text
from mdssd.detection.tables import Layout
from mdssd.system.text import some

_MOST_CATEGORIES = 20_000
# The value of "info" in the list of images, by which it is recognised.
INFO = {"description": "images of mdssd detect"}


@dataclass
class CocoIds:
    """The numbers of the images and the classes in a COCO file.

    Attributes:
        path: the file.
        images: the number of each image that is wanted, by its "file_name".
        categories: the number of each class, by its name.
        repeated: the names that several images or classes have.
        first_image: the name of its first image.
    """

    path: str
    images: dict[str, int | str] = field(default_factory=dict)
    categories: dict[str, int | str] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    first_image: str = ""

    def image(self, file: str) -> int | str | None:
        """Return the number of an image file; None if the COCO file does not have it.

        The "file_name" may be the path of the file, or an end of it such as its name. The longest
        counts.
        """
        name = PurePath(os.path.abspath(file)).as_posix()
        while name and name not in self.images:
            name = name.partition("/")[2]
        return None if name in self.repeated else self.images.get(name)


def read_coco_ids(
    path: str | os.PathLike[str], files: Collection[str], classes: Iterable[str]
) -> CocoIds:
    """Read the numbers of images and classes from a COCO file.

    Args:
        path: the file, with "images" and "categories".
        files: the image files that need a number.
        classes: the classes that need one.

    Raises:
        ValueError: the file cannot be read, or an image or a class has no number in it.
    """
    ids = CocoIds(os.fspath(path))
    wanted = {os.path.basename(file) for file in files}  # the others need no memory

    def add_image(position: int, entry: Any) -> None:
        name = _add(ids.images, ids.repeated, entry, "file_name", wanted)
        ids.first_image = ids.first_image or name

    def add_category(position: int, entry: Any) -> None:
        _add(ids.categories, ids.repeated, entry, "name", None)
        if len(ids.categories) > _MOST_CATEGORIES:
            raise ValueError(f"it has more than {_MOST_CATEGORIES:,} categories")

    receivers = {"images": add_image, "categories": add_category}
    try:
        read_lists(path, receivers)
    except OSError as error:
        raise ValueError(f"detect: coco_images: {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"detect: coco_images: {path}: expected a COCO file; {error}") from None
    _check(ids, files, classes)
    return ids


def _add(
    ids: dict[str, int | str], repeated: set[str], entry: Any, named: str, wanted: set[str] | None
) -> str:
    """Keep the number of an entry by its name, which is returned; "" if it has none."""
    entry = entry if isinstance(entry, dict) else {}
    name = text(entry.get(named))
    if key(entry.get("id")) is None or not name:
        return ""
    name = name.replace("\\", "/").removeprefix("./") if named == "file_name" else name
    kept = wanted is None or name.rpartition("/")[2] in wanted
    if kept and ids.setdefault(name, entry["id"]) != entry["id"]:
        repeated.add(name)
    return name


def _check(ids: CocoIds, files: Iterable[str], classes: Iterable[str]) -> None:
    without: list[str] = []
    owners: dict[int | str, str] = {}
    for file in files:
        number = ids.image(file)
        if number is None:
            without.append(file)
        elif (other := owners.setdefault(number, file)) != file:
            raise ValueError(
                f"detect: coco_images: {ids.path} has one image for {other} and {file}, expected "
                "one for each"
            )
    if without:
        raise ValueError(
            f"detect: coco_images: {ids.path} has no image, or several, of the name "
            f"{some(without)}; its first image is {shown(ids.first_image)}"
        )
    without = [name for name in classes if name not in ids.categories or name in ids.repeated]
    if without:
        raise ValueError(
            f"detect: coco_images: {ids.path} has no category, or several, of the name "
            f"{some(without)}; it has {some(list(ids.categories), 10)}. --classes (classes=) "
            "chooses classes that it has"
        )


def results_layout(ids: CocoIds | None) -> Layout:
    """Return the layout of the results."""

    def rows(image: dict[str, Any], number: int) -> list[str]:
        image_id = number if ids is None else ids.image(image["file"])
        lines = []
        for found in image["detections"]:
            x1, y1, x2, y2 = found["box_xyxy"]
            category = found["label"] if ids is None else ids.categories[found["class"]]
            result = {
                "image_id": image_id,
                "category_id": category,
                "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                "score": found["score"],
            }
            lines.append("  " + json.dumps(result))
        return lines

    return Layout("[\n", rows, ",\n", "\n]\n")


def images_layout(classes: Sequence[str]) -> Layout:
    """Return the layout of the list of images and classes, a COCO file without annotations."""

    def rows(image: dict[str, Any], number: int) -> list[str]:
        size = {"width": image["width"], "height": image["height"]}
        return ["  " + json.dumps({"id": number, "file_name": image["file"], **size})]

    categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
    head = json.dumps({"info": INFO, "categories": categories})
    return Layout(f'{head[:-1]},\n"images": [\n', rows, ",\n", '\n],\n"annotations": []}\n')
