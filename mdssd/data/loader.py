"""From a data set to batches for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from mdssd.data.augment import Augmentation
from mdssd.data.sample import Sample


class DetectionDataset(Protocol):
    """What the package asks of a data set; VOCDataset, CocoDataset and SyntheticScenes have it."""

    name: str
    classes: list[str]
    image_ids: list[str]
    dropped: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def annotation(self, index: int) -> Sample: ...

    def report(self) -> str: ...


class TrainingSet(torch.utils.data.Dataset):
    """Augmented samples of a data set, the same whatever the number of workers.

    Item i is (image float32 [3, S, S], boxes_xyxy float32 [M, 4] in 0-1, labels int64 [M]) and
    depends on (seed, epoch, i) alone. Call `set_epoch` before iterating over an epoch; the epoch
    lies in shared memory, so workers that live through several epochs see it too.
    """

    def __init__(self, dataset: DetectionDataset, augmentation: Augmentation, seed: int = 0):
        if seed < 0:
            raise ValueError(f"TrainingSet: seed must not be negative, got {seed}")
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0 or more) that the next samples belong to."""
        if epoch < 0:
            raise ValueError(f"TrainingSet.set_epoch: epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        return self.augmentation(self.dataset[index], rng)


def collate(
    batch: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Images [B, 3, S, S] (channels last in memory), a list of boxes and a list of labels."""
    images, boxes_xyxy, labels = zip(*batch, strict=True)
    stacked = torch.stack([image.permute(1, 2, 0) for image in images])
    return stacked.permute(0, 3, 1, 2), list(boxes_xyxy), list(labels)


def worker_init(worker_id: int) -> None:
    """Give to DataLoader as worker_init_fn: OpenCV's own threads would only fight the workers."""
    cv2.setNumThreads(0)
