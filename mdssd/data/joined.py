"""Several data sets of one format as one."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from mdssd.data.dataset import DetectionDataset, SplitLists
from mdssd.data.photos import PhotoDataset, class_notes
from mdssd.data.sample import Sample


class JoinedDataset(DetectionDataset):
    """The images of several data sets, one after another, with one list of classes.

    Args:
        parts: the data sets, one or more, in this order. Their metric and limits are those of the
            first.
        classes: the class names. They include those of all parts that have a box.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.joined import JoinedDataset
        >>> scenes = SyntheticScenes(2)
        >>> joined = JoinedDataset([scenes, SyntheticScenes(3, seed=1)], scenes.classes)
        >>> len(joined), joined.name
        (5, 'synthetic scenes (seed 0) + synthetic scenes (seed 1)')
    """

    def __init__(self, parts: Sequence[DetectionDataset], classes: Sequence[str]) -> None:
        first = parts[0]
        self.parts = list(parts)
        self.name = " + ".join(part.name for part in parts)
        self.classes = list(classes)
        label_of = {name: label for label, name in enumerate(self.classes, 1)}
        self.format, self.metric, self.limits = first.format, first.metric, first.limits
        self.labelled = all(part.labelled for part in parts)
        self.image_ids = [image_id for part in parts for image_id in part.image_ids]
        self.dropped = [line for part in parts for line in part.dropped]
        self.size_faults = [line for part in parts for line in part.size_faults]
        self.notes = [line for part in parts for line in part.notes]
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self._labels = [
            np.array([0, *(label_of.get(name, 0) for name in part.classes)]) for part in parts
        ]

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` with its ground truth; see `DetectionDataset`."""
        part, inner = self._find(index)
        return self._named(self.parts[part][inner], part, index)

    def annotation(self, index: int) -> Sample:
        """Return sample `index` without its pixels."""
        part, inner = self._find(index)
        return self._named(self.parts[part].annotation(inner), part, index)

    def image_path(self, index: int) -> Path | None:
        """Return the file of image `index`, if it has one."""
        part, inner = self._find(index)
        return self.parts[part].image_path(inner)

    def upright(self, index: int) -> bool:
        """Return whether the boxes of image `index` refer to it turned as its EXIF data say."""
        part, inner = self._find(index)
        return self.parts[part].upright(inner)

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """Return the lists of each part, in order."""
        return [lists for part in self.parts for lists in part.split_lists(faults)]

    def note_classes(self, where: str) -> None:
        """Do what the parts have left to this: note which classes have no box; see `class_notes`.

        Args:
            where: the file or folder, for messages.

        Raises:
            DataError: there are boxes, but none of the chosen classes.
        """
        parts = [part for part in self.parts if isinstance(part, PhotoDataset)]
        found = {name for part in parts for name in part.labelled_classes()}
        left_out = sum((part.left_out for part in parts), Counter[str]())
        if self.labelled:
            new = class_notes(self.classes, found, left_out, where)
            self.notes = [*self.notes, *new]

    def _find(self, index: int) -> tuple[int, int]:
        """Return the number of the part that holds an image, and the image's index in it."""
        count = len(self.image_ids)
        if not -count <= index < count:
            raise IndexError(f"{self.name}: has {count} images, got the index {index}")
        index %= count
        part = bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]

    def _named(self, sample: Sample, part: int, index: int) -> Sample:
        """Give a sample of a part its labels and its id among all."""
        sample.labels = self._labels[part][sample.labels]
        sample.image_id = self.image_ids[index]
        return sample
