"""From a data set to batches for training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from mdssd.data.augment import Augmentation
from mdssd.data.dataset import DetectionDataset
from mdssd.data.images import decode_image, jpeg_size, read_bytes


class TrainingSet(torch.utils.data.Dataset):
    """Augmented samples of a data set, the same whatever the number of workers.

    Item i is (image float32 [3, S, S], uint8 of a raw augmentation; boxes_xyxy float32 [M, 4] in
    0-1; labels int64 [M]) and depends on (seed, epoch, i) alone. Call `set_epoch` before iterating
    over an epoch; it lies in shared memory, so workers that live through several epochs see it too.

    reduced: decode a JPEG (of a data set of image files) at 1/2, 1/4 or 1/8 where what is cut
    from it keeps at least as many pixels as the input has, in width and height. Edges then keep at
    least 7/8 of the strength that averaging the whole image would leave them.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        augmentation: Augmentation,
        seed: int = 0,
        *,
        reduced: bool = True,
    ):
        if seed < 0:
            raise ValueError(f"TrainingSet: seed must not be negative, got {seed}")
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self.reduced = reduced
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
        path = self.dataset.image_path(index) if self.reduced else None
        if path is None:
            return self.augmentation(self.dataset[index], rng)
        sample, data = self.dataset.annotation(index), read_bytes(path)
        size = jpeg_size(data)
        if size is None:
            sample.image = decode_image(data, str(path))
            return self.augmentation(sample, rng)
        view = self.augmentation.draw(sample, size, rng, reduced=True)
        return self.augmentation.apply(view, decode_image(data, str(path), view.reduction))


def collate(
    batch: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Images [B, 3, S, S] (channels last in memory), a list of boxes and a list of labels."""
    images, boxes_xyxy, labels = zip(*batch, strict=True)
    rows = [image.permute(1, 2, 0) for image in images]
    out = None
    if torch.utils.data.get_worker_info() is not None:
        # Where the main process can read it, or sending it would copy the batch once more.
        shape = (len(rows), *rows[0].shape)
        storage = rows[0]._typed_storage()._new_shared(math.prod(shape))
        out = rows[0].new(storage).view(shape)
    stacked = torch.stack(rows, out=out)
    return stacked.permute(0, 3, 1, 2), _together(boxes_xyxy), _together(labels)


def _together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors in one piece of memory, which is sent as one file instead of many."""
    return list(torch.cat(list(tensors)).split([len(each) for each in tensors]))


def worker_init(worker_id: int) -> None:
    """Give to DataLoader as worker_init_fn: OpenCV's own threads would only fight the workers."""
    cv2.setNumThreads(0)
