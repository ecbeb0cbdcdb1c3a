"""Data sets whose annotations a reader lists image by image.

A reader of a format turns its files into `ListedImage`s; `ListedDataset` does the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mdssd.data.dataset import SplitLists
from mdssd.data.images import ImageLimits
from mdssd.data.photos import CollectFaults, PhotoDataset, class_notes
from mdssd.data.sample import BoxRow, DataError
from mdssd.data.splits import ALL
from mdssd.system.text import plural

_TURNED = {True: "turned upright", False: "stored"}  # what the boxes refer to


class NamedBox(NamedTuple):
    """A box as an annotation states it.

    Attributes:
        box_xyxy: in pixels; in fractions of the image's width and height if the image's `relative`
            is set.
        name: the class.
        difficult: whether evaluation ignores it.
        crowd: whether it is around a group of objects.
        area: of the object in square pixels; None: of the box.
        where: the file and line, for messages; "": that of the image.
    """

    box_xyxy: tuple[float, float, float, float]
    name: str
    difficult: bool = False
    crowd: bool = False
    area: float | None = None
    where: str = ""


@dataclass
class ListedImage:
    """An image file and its boxes.

    Attributes:
        image_id: its name in the data set: the path in the folder, without the ending.
        path: the file.
        boxes: the boxes.
        where: the annotation, for messages.
        stated: (width, height) as the annotation states it; None if it states none.
        relative: whether the boxes are in fractions of the width and height.
        split: the split it belongs to; "" if there are none.
    """

    image_id: str
    path: Path
    boxes: list[NamedBox]
    where: str
    stated: tuple[float, float] | None = None
    relative: bool = False
    split: str = ""


@dataclass(frozen=True)
class ReadOptions:
    """How to read a data set; `open_dataset` describes the options."""

    classes: Sequence[str] | None = None
    unlabelled: bool = False
    faults: list[str] | None = None
    limits: ImageLimits | None = None
    orientation: str = "auto"


class ListedDataset(PhotoDataset):
    """The images that a reader lists, with the classes that it found or that the user chose.

    Args:
        name: the data set's name in messages and reports.
        images: the images. One that occurs again, with the same id and file, is taken once, with
            the boxes of both entries and each box once, and belongs to both splits.
        classes: the class names of the data, in label order. They must not depend on the split.
        options: the choice of the user.
        format: the format, for people, such as "YOLO labels (data.yaml)".
        root: the folder of the data set.
        split: the name of the split that was opened; None or "all" for all of them.
        dropped: a line per box that the reader could not use.
        notes: a line per thing that the reader guessed or repaired.
        upright: whether the tools of the format label the image turned as its EXIF data say.

    Raises:
        DataError: something cannot be read. The message names the file and the reason.
    """

    def __init__(
        self,
        name: str,
        images: Iterable[ListedImage],
        classes: Sequence[str],
        options: ReadOptions,
        *,
        format: str,
        root: Path,
        split: str | None,
        dropped: Sequence[str] = (),
        notes: Sequence[str] = (),
        upright: bool = True,
    ) -> None:
        super().__init__(name, options.limits, options.orientation, upright)
        self.format = format
        self.split = split
        self._root = root
        self._splits: dict[str, dict[str, None]] = {}
        reasons = [*(options.faults or []), *dropped]
        if not classes and options.classes is None:
            raise DataError(
                f"{root}: no object can be read; the first fault: {reasons[0]}"
                if reasons
                else f"{root}: no annotation holds an object"
            )
        self.classes = self._choose_classes(list(classes), options.classes)
        label_of = {name: label for label, name in enumerate(self.classes, 1)}
        known: dict[str, tuple[int, list[str]]] = {}  # the position and annotations of each id
        for image in images:
            with CollectFaults(options.faults):
                self._add(image, label_of, known)
        if options.faults:  # an image of two splits has its fault once
            options.faults[:] = dict.fromkeys(options.faults)
        # Now, because a reader may find them while it lists the images.
        self.dropped += dropped
        self.notes += notes
        if not self.image_ids:
            first = f"; the first fault: {options.faults[0]}" if options.faults else ""
            of_split = "" if split in (None, ALL) else f" of the split {split}"
            raise DataError(f"{root}: no image{of_split} can be used{first}")
        self.notes += class_notes(self.classes, self.labelled_classes(), self.left_out, str(root))

    def has_image(self, path: Path) -> bool:
        """Return whether an image is there. A subclass overrides it if images are not files."""
        return os.path.lexists(path)

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """Return which images the reader found in each split."""
        if not self._splits:
            return []
        listed = {name: list(ids) for name, ids in self._splits.items()}
        return [SplitLists(self._root, listed, self.image_ids)]

    def _choose_classes(self, known: list[str], chosen: Sequence[str] | None) -> list[str]:
        if chosen is None:
            return known
        found = [name for name in chosen if name in known]
        if not found:
            listed = ", ".join(known[:10]) or "none"
            raise DataError(
                f"{self._root}: {self.name} has none of the classes {', '.join(chosen)}; "
                f"it has {listed}"
            )
        return list(chosen)

    def _add(
        self,
        image: ListedImage,
        label_of: dict[str, int],
        known: dict[str, tuple[int, list[str]]],
    ) -> None:
        position, places = known.get(image.image_id, (len(self.image_ids), []))
        if places and self._paths[position] != image.path:
            raise DataError(
                f"{image.where}: {self._paths[position]} and {image.path} have the same name "
                "without the ending; expected one image of each name"
            )
        if image.where not in places:  # else it is the same entry, of another split
            self._add_new(image, label_of)
            if places:
                self._merge_last(position, image, places[0])
            known[image.image_id] = position, [*places, image.where]
        if image.split:
            self._splits.setdefault(image.split, {})[image.image_id] = None

    def _merge_last(self, position: int, image: ListedImage, where: str) -> None:
        """Give the boxes of the image that was added last to an earlier entry of the same file."""
        annotation, upright = self._annotations.pop(), self._upright.pop()
        del self.image_ids[-1], self._paths[-1]
        if upright != self._upright[position]:
            raise DataError(
                f"{image.where}: takes {image.path.name} as {_TURNED[upright]}, {where} takes it "
                f"as {_TURNED[not upright]}; expected the same, or choose one (--orientation)"
            )
        if added := self._annotations[position].merge(annotation):
            self.notes.append(
                f"{image.where}: {plural(added, 'box')} added to those of {where}, which is the "
                "same image"
            )

    def _add_new(self, image: ListedImage, label_of: dict[str, int]) -> None:
        rows = []
        for box in image.boxes:
            if box.name in label_of:
                label = label_of[box.name]
                rows.append(BoxRow(box.box_xyxy, label, *box[2:]))
            else:
                self.left_out[box.name] += 1
        try:
            self.add_image(
                image.image_id, image.path, rows, image.stated, image.where, image.relative
            )
        except DataError:
            if self.has_image(image.path):
                raise
            raise DataError(f"{image.path}: no such image ({image.where} names it)") from None
