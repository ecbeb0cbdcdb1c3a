"""What the data sets of photographs on disk have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdssd.data.images import read_image
from mdssd.data.sample import NO_IMAGE, Annotation, Sample


class PhotoDataset:
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

    def __len__(self) -> int:
        return len(self.image_ids)

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

    def report(self) -> str:
        """Counts per class, images without boxes, and every box that was dropped and why."""
        labels = np.concatenate([np.zeros(0, np.int64), *(a.labels for a in self._annotations)])
        counts = np.bincount(labels, minlength=len(self.classes) + 1)
        difficult = sum(int(a.difficult.sum()) for a in self._annotations)
        crowds = sum(int(a.crowd.sum()) for a in self._annotations)
        empty = sum(len(a.labels) == 0 for a in self._annotations)
        lines = [f"{self.name}: {len(self)} images, {len(labels)} boxes"]
        lines += [f"  {name}: {counts[k]}" for k, name in enumerate(self.classes, 1)]
        lines += [f"  {difficult} boxes are marked difficult"] if difficult else []
        lines += [f"  {crowds} boxes are crowds"] if crowds else []
        lines += [f"  {empty} images have no box"] if empty else []
        if self.dropped:
            lines.append(f"  {len(self.dropped)} boxes dropped:")
            lines += [f"    {line}" for line in self.dropped]
        if self.size_faults:
            lines.append(
                f"  {len(self.size_faults)} annotations state another size than the image:"
            )
            lines += [f"    {line}" for line in self.size_faults]
        return "\n".join(lines)
