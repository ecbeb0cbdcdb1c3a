"""The common part of data sets whose images are files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from mdssd.data.dataset import DetectionDataset, describe
from mdssd.data.images import read_image
from mdssd.data.sample import NO_IMAGE, Annotation, BoxRow, DataError, Sample
from mdssd.system.progress import progress_bar

T = TypeVar("T")


class PhotoDataset(DetectionDataset):
    """Image files whose boxes are held in memory.

    The constructor of a subclass reads the annotations: it sets `classes` and calls `add_image`
    for each image.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.classes: list[str] = []
        self.image_ids: list[str] = []
        self.dropped: list[str] = []
        self.size_faults: list[str] = []
        self._paths: list[Path] = []
        self._annotations: list[Annotation] = []

    def add_image(
        self,
        image_id: str,
        path: Path,
        rows: list[BoxRow],
        size: tuple[int, int] | None,
        where: str,
    ) -> None:
        """Add an image file and its boxes. Unusable boxes go to `dropped`; see `Annotation`."""
        self.image_ids.append(image_id)
        self._paths.append(path)
        self._annotations.append(Annotation(rows, size, where, self.dropped))

    def __getitem__(self, index: int) -> Sample:
        """Return image `index` with its ground truth; see `DetectionDataset`."""
        image = read_image(self._paths[index])
        return self._annotations[index].sample(image, self.image_ids[index])

    def annotation(self, index: int) -> Sample:
        """Return sample `index` without its pixels; no file is read."""
        return self._annotations[index].sample(NO_IMAGE, self.image_ids[index])

    def image_path(self, index: int) -> Path:
        """Return the file of image `index`."""
        return self._paths[index]

    def report(self) -> str:
        """Return the number of boxes per class, of images without boxes, and every dropped box."""
        return describe(self, self._annotations)


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
