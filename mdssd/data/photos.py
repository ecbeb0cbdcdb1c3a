"""The common part of data sets whose images are files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mdssd.data.dataset import DetectionDataset, describe
from mdssd.data.image_headers import ImageHeader
from mdssd.data.images import ImageLimits, read_header, read_image
from mdssd.data.opened import check_rasterio
from mdssd.data.sample import NO_IMAGE, Annotation, BoxRow, DataError, Sample
from mdssd.data.sizes import place
from mdssd.names import ORIENTATIONS
from mdssd.system.progress import progress_bar
from mdssd.system.text import plural

T = TypeVar("T")
_SHOWN = 10  # classes in a message


class PhotoDataset(DetectionDataset):
    """Image files whose boxes are held in memory.

    The constructor of a subclass reads the annotations: it sets `classes` and calls `add_image`
    for each image.

    Attributes:
        left_out: the number of boxes of each class that was not chosen.

    Args:
        name: the data set's name in messages and reports.
        limits: what an image file may hold. None: the default of `ImageLimits`.
        orientation: "auto", "upright" or "stored"; see `place`.
        shown_upright: what the tools of the format show; see `place`.

    Raises:
        ValueError: `orientation` is none of these.
    """

    def __init__(
        self,
        name: str,
        limits: ImageLimits | None = None,
        orientation: str = "auto",
        shown_upright: bool = True,
    ) -> None:
        if orientation not in ORIENTATIONS:
            raise ValueError(
                f"orientation: expected one of {', '.join(ORIENTATIONS)}, got {orientation!r}"
            )
        self.name = name
        self.classes: list[str] = []
        self.image_ids: list[str] = []
        self.dropped: list[str] = []
        self.size_faults: list[str] = []
        self.notes: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.limits = limits or ImageLimits()
        self._orientation = orientation
        self._shown_upright = shown_upright
        self._paths: list[Path] = []
        self._upright: list[bool] = []
        self._annotations: list[Annotation] = []

    def add_image(
        self,
        image_id: str,
        path: Path,
        rows: list[BoxRow],
        stated: tuple[float, float] | None,
        where: str,
        relative: bool = False,
    ) -> None:
        """Add an image file and its boxes. Unusable boxes go to `dropped`; see `Annotation`.

        The size and the orientation come from the file; see `place`.

        Args:
            image_id: the image's name in the data set.
            path: the file.
            rows: the boxes as the annotation states them.
            stated: (width, height) as the annotation states it; None if it states none.
            where: the annotation, for messages.
            relative: whether the boxes are in fractions of the image's width and height.

        Raises:
            DataError: the file is missing or no image.
        """
        header = self.read_header(path)
        if self.limits.by_windows and self.limits.is_raster(header):
            check_rasterio(header, self.limits, str(path))
        else:
            self.limits.check(header, str(path))
        placement = place(header, stated, path.name, where, self._orientation, self._shown_upright)
        if relative:
            rows = [row._replace(box_xyxy=_scaled(row.box_xyxy, placement.size)) for row in rows]
        annotation = Annotation(rows, placement.size, where, self.dropped, relative)
        self.size_faults += [placement.fault] if placement.fault else []
        self.notes += [placement.note] if placement.note else []
        self.notes += [f"{path}: {header.guess}"] if header.guess else []
        self.image_ids.append(image_id)
        self._paths.append(path)
        self._upright.append(placement.upright)
        self._annotations.append(annotation)

    def read_header(self, path: Path) -> ImageHeader:
        """Return the header of an image. A subclass overrides it if images are not files."""
        return read_header(path)

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` with its ground truth; see `DetectionDataset`."""
        image = read_image(self._paths[index], upright=self._upright[index], limits=self.limits)
        return self._annotations[index].sample(image, self.image_ids[index])

    def upright(self, index: int) -> bool:
        """Return whether the boxes of image `index` refer to it turned as its EXIF data say."""
        return self._upright[index]

    def annotation(self, index: int) -> Sample:
        """Return sample `index` without its pixels; no file is read."""
        return self._annotations[index].sample(NO_IMAGE, self.image_ids[index])

    def image_path(self, index: int) -> Path | None:
        """Return the file of image `index`."""
        return self._paths[index]

    def labelled_classes(self) -> set[str]:
        """Return the classes that have a box."""
        labels = np.concatenate([np.zeros(0, np.int64), *(a.labels for a in self._annotations)])
        return {self.classes[label - 1] for label in set(labels.tolist())}

    def report(self) -> str:
        """Return the number of boxes per class, of images without boxes, and the dropped boxes."""
        return describe(self, self._annotations)


def _scaled(
    box_xyxy: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box_xyxy
    width, height = size
    return x1 * width, y1 * height, x2 * width, y2 * height


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def class_notes(
    classes: Sequence[str], found: set[str], left_out: Counter[str], where: str
) -> list[str]:
    """Say how many boxes the choice of classes leaves out, and which classes have no box.

    Args:
        classes: the classes.
        found: those that have a box.
        left_out: the number of boxes of each class that was not chosen.
        where: the file or folder, for messages.

    Raises:
        DataError: there are boxes, but none of the chosen classes.

    Example:
        >>> from collections import Counter
        >>> from mdssd.data.photos import class_notes
        >>> print(*class_notes(["car", "bus"], {"car"}, Counter(bike=2), "roads"), sep="\\n")
        roads: 2 boxes of classes that were not asked for left out: bike 2
        roads: no box has the class bus
    """
    if left_out and not found:
        raise DataError(
            f"{where}: no box has one of the classes {_some(classes)}; "
            f"the annotations hold {_some(sorted(left_out))}"
        )
    notes = []
    if left_out:
        counts = _some([f"{name} {count}" for name, count in left_out.most_common()])
        notes.append(
            f"{where}: {plural(left_out.total(), 'box')} of classes that were not asked for "
            f"left out: {counts}"
        )
    if absent := sorted(set(classes) - found):
        notes.append(f"{where}: no box has the class {_some(absent)}")
    return notes


class CollectFaults:
    """A context that adds the message of a DataError to a list instead of raising it.

    With None in place of the list it raises it.
    """

    def __init__(self, faults: list[str] | None) -> None:
        self.faults = faults

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if self.faults is None or not isinstance(error, DataError):
            return False
        self.faults.append(str(error))
        return True


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    """Iterate with a progress bar, which appears if it takes more than two seconds."""
    return progress_bar(items, desc=what, delay=2, leave=False)
