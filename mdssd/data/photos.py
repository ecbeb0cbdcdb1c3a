"""What the data sets of photographs on disk have in common."""

from __future__ import annotations

from pathlib import Path

from mdssd.data.dataset import DetectionDataset
from mdssd.data.images import read_image
from mdssd.data.sample import NO_IMAGE, Annotation, Sample


class PhotoDataset(DetectionDataset):
    """Photographs and their boxes, read by a subclass's constructor.

    name: for messages. classes: names in label order (label k is classes[k - 1]).
    image_ids: one per image. dropped: one line "file: reason" per box that was left out.
    size_faults: one line per annotation that states another size than its image has.
    labelled: whether every image has an annotation; one without has no boxes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.classes: list[str] = []
        self.image_ids: list[str] = []
        self.dropped: list[str] = []
        self.size_faults: list[str] = []
        self.labelled = True
        self._paths: list[Path] = []
        self._annotations: list[Annotation] = []

    def __getitem__(self, index: int) -> Sample:
        """Image and boxes. Raises DataError, naming file and reason, for a damaged image."""
        image = read_image(self._paths[index])
        return self._annotations[index].sample(image, self.image_ids[index])

    def annotation(self, index: int) -> Sample:
        """The sample without its image, which is left [0, 0, 3]."""
        return self._annotations[index].sample(NO_IMAGE, self.image_ids[index])

    def image_path(self, index: int) -> Path:
        """Where the image lies."""
        return self._paths[index]
