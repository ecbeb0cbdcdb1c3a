"""The protocol of a data set: what it must provide, and what it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from mdssd.data.images import ImageLimits
from mdssd.data.reasons import grouped
from mdssd.data.sample import NO_IMAGE, Annotation, Sample
from mdssd.system.text import plural, printable

# The names that splits usually have.
SPLITS = ("train", "val", "valid", "trainval", "test")


_LISTED = 20  # lines of a report; more are grouped by their reasons


@dataclass(frozen=True)
class SplitLists:
    """The split files of one folder, which may also list images outside the data set.

    Attributes:
        folder: where the files are, for messages.
        listed: the image ids of each split, by the split's name (one of `SPLITS`).
        image_ids: the ids of the data set's own images in this folder, in the data set's order.
    """

    folder: Path
    listed: dict[str, list[str]]
    image_ids: list[str]


class DetectionDataset:
    """Base class of data sets: images with labelled boxes, accessed by index.

    A subclass must set `name`, `classes` and `image_ids` and define `__getitem__`. All other
    members have defaults; override those for which your format can do more. Training, evaluation
    and `mdssd data check` use nothing but these members.

    Attributes:
        name: the data set's name in messages and reports.
        format: the format of its annotations, for people; "" if there are none.
        classes: class names. Label k, as in `Sample.labels`, is `classes[k - 1]`.
        image_ids: one string per image.
        dropped: one line "file: reason" per box that was left out because it is unusable.
        size_faults: one line per annotation that states a different size from its image's.
        notes: one line per thing that was guessed or repaired, and per group of boxes that was
            left out on request.
        limits: what an image file may hold; see `ImageLimits`.
        labelled: False if some images have no annotation, so that nothing can be measured.
        metric: the figure that training selects its best checkpoint by: "VOC07 mAP" or "COCO AP".
        submission: the evaluation server that takes detections of this data set: "voc", "coco" or
            None. "voc" needs `split`, "coco" needs `category_ids` and whole numbers as image ids.
        split: the name of the split, if the format has splits.
        category_ids: COCO's category id of each class.

    Example:
        >>> import numpy as np
        >>> from mdssd.data import DetectionDataset, Sample
        >>> class OneSquare(DetectionDataset):
        ...     name = "one square"
        ...     classes = ["square"]
        ...     image_ids = ["only"]
        ...
        ...     def __getitem__(self, index):
        ...         image = np.zeros((30, 30, 3), np.uint8)
        ...         image[10:20, 10:20] = 255
        ...         boxes_xyxy = np.array([[10, 10, 20, 20]], np.float32)
        ...         labels, difficult = np.array([1]), np.array([False])
        ...         return Sample(image, boxes_xyxy, labels, difficult, self.image_ids[index])
        >>> dataset = OneSquare()
        >>> len(dataset), dataset.labelled, dataset.metric
        (1, True, 'VOC07 mAP')
        >>> print(dataset.report())
        one square: 1 image, 1 box
          square: 1
    """

    name: str
    format: str = ""
    classes: list[str]
    image_ids: list[str]
    dropped: Sequence[str] = ()
    size_faults: Sequence[str] = ()
    notes: Sequence[str] = ()
    limits: ImageLimits = ImageLimits()
    labelled: bool = True
    metric: str = "VOC07 mAP"
    submission: str | None = None
    split: str | None = None
    category_ids: Sequence[int | str] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` with its ground truth.

        Raises:
            DataError: the image cannot be read. The message names the file and the reason.
        """
        raise NotImplementedError(f"{type(self).__name__}: a data set must define __getitem__")

    def annotation(self, index: int) -> Sample:
        """Return sample `index` without its pixels: its image is [0, 0, 3].

        The default reads the image too. Override it if the annotation alone is cheaper.
        """
        return replace(self[index], image=NO_IMAGE)

    def image_path(self, index: int) -> Path | None:
        """Return the file of image `index`, or None (the default) if there is no file.

        If there is one, training reads and decodes it by itself and takes only the annotation
        from the data set: the file must hold exactly the pixels of `self[index].image`, turned
        as `upright` says.
        """
        return None

    def image_bytes(self, index: int) -> bytes | None:
        """Return the bytes of an image that is stored in another file, such as a table.

        The default, None, is for images that have a file of their own, or that are computed.
        """
        return None

    def upright(self, index: int) -> bool:
        """Return whether the boxes of image `index` refer to it turned as its EXIF data say.

        If not, which is the default, they refer to the pixels as the file stores them.
        """
        return False

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """Read which images each split lists, to find images that are in two of them.

        One entry per folder that the data set joins: the `image_ids` of all entries, one after
        another, are those of the data set. The default, an empty list, means no splits are known.
        A split file that cannot be used adds a line to `faults`.
        """
        return []

    def report(self) -> str:
        """Return the number of boxes per class, of images without boxes, and the dropped boxes."""
        return describe(self, [self.annotation(index) for index in range(len(self))])


class DataPart(DetectionDataset):
    """Some of the images of another data set, with all of its classes.

    Args:
        dataset: the data set.
        indices: the images, in this order.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.dataset import DataPart
        >>> scenes = SyntheticScenes(3)
        >>> part = DataPart(scenes, [2])
        >>> len(part), part.image_ids == scenes.image_ids[2:]
        (1, True)
    """

    def __init__(self, dataset: DetectionDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.image_ids = [dataset.image_ids[index] for index in self.indices]
        self.name, self.format, self.classes = dataset.name, dataset.format, dataset.classes
        self.dropped, self.size_faults = dataset.dropped, dataset.size_faults
        self.notes, self.limits = dataset.notes, dataset.limits
        self.labelled, self.metric = dataset.labelled, dataset.metric
        self.submission, self.split = dataset.submission, dataset.split
        self.category_ids = dataset.category_ids

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` of the part with its ground truth; see `DetectionDataset`."""
        return self.dataset[self.indices[index]]

    def annotation(self, index: int) -> Sample:
        """Return sample `index` of the part without its pixels."""
        return self.dataset.annotation(self.indices[index])

    def image_path(self, index: int) -> Path | None:
        """Return the file of image `index` of the part, if it has one."""
        return self.dataset.image_path(self.indices[index])

    def image_bytes(self, index: int) -> bytes | None:
        """Return the bytes of image `index` of the part, if another file holds it."""
        return self.dataset.image_bytes(self.indices[index])

    def upright(self, index: int) -> bool:
        """Return whether the boxes of image `index` of the part refer to it turned upright."""
        return self.dataset.upright(self.indices[index])

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """Return the lists of the whole data set, an entry for each run of images of a folder."""
        whole = self.dataset.split_lists(faults)
        places = [(k, image_id) for k, lists in enumerate(whole) for image_id in lists.image_ids]
        own = [places[index] for index in self.indices] if places else []
        return [
            replace(whole[k], image_ids=[image_id for _, image_id in run])
            for k, run in groupby(own, lambda place: place[0])
        ]


def describe(dataset: DetectionDataset, annotations: Sequence[Sample | Annotation]) -> str:
    """Return the text of `DetectionDataset.report`, given the annotation of each image."""
    labels = np.concatenate([np.zeros(0, np.int64), *(s.labels for s in annotations)])
    counts = np.bincount(labels, minlength=len(dataset.classes) + 1)
    difficult = sum(int(s.difficult.sum()) for s in annotations)
    crowds = sum(int(s.crowd.sum()) for s in annotations)
    empty = sum(len(s.labels) == 0 for s in annotations)
    lines = [f"{dataset.name}: {plural(len(dataset), 'image')}, {plural(len(labels), 'box')}"]
    lines += [f"  {name}: {counts[k]}" for k, name in enumerate(dataset.classes, 1)]
    lines += [f"  {plural(difficult, 'box')} marked difficult"] if difficult else []
    lines += [f"  {plural(crowds, 'box')} marked as a crowd"] if crowds else []
    lines += [f"  {plural(empty, 'image')} without a box"] if empty else []
    for found, what, title in (
        (dataset.dropped, "box", "dropped"),
        (dataset.size_faults, "annotation", "with a different size from the image's"),
        (dataset.notes, "note", "on what was read"),
    ):
        if found:
            shown = found if len(found) <= _LISTED else grouped(found)
            lines.append(f"  {plural(len(found), what)} {title}:")
            lines += [f"    {line}" for line in shown]
    return "\n".join(map(printable, lines))
