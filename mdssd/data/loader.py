"""Augmented samples of a data set, and batches of them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from mdssd.data.augment import Augmentation
from mdssd.data.dataset import DetectionDataset
from mdssd.data.image_headers import parse_header
from mdssd.data.images import decode_image, read_bytes


class TrainingSet(torch.utils.data.Dataset):
    """The augmented samples of a data set, for a PyTorch DataLoader.

    Sample i is a tuple of the image, float32 [3, S, S] (uint8 if the augmentation is raw), the
    boxes, float32 [M, 4] xyxy in 0-1, and the labels, int64 [M]. It depends on the seed, the
    epoch and i alone, not on the number of workers. Call `set_epoch` before each epoch.

    Args:
        dataset: the data set.
        augmentation: is applied to each sample.
        seed: the seed of the random draws.
        reduced: decode a JPEG at 1/2, 1/4 or 1/8 of its size if the crop then still has at least
            as many pixels as the input, in width and in height. Edges keep at least 7/8 of the
            contrast that averaging the full image would leave. This needs image files.

    Example:
        >>> from mdssd.data import Augmentation, SyntheticScenes, TrainingSet
        >>> samples = TrainingSet(SyntheticScenes(4), Augmentation(300))
        >>> samples.set_epoch(3)
        >>> image, boxes_xyxy, labels = samples[0]
        >>> image.shape, image.dtype
        (torch.Size([3, 300, 300]), torch.float32)
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
        # Shared memory, so that workers which live through several epochs see the current one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, 0 or more, that decides the random draws of the next samples."""
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
        sample, data = self.dataset.annotation(index), read_bytes(path, self.dataset.limits)
        header = parse_header(io.BytesIO(data), str(path))
        upright, limits = self.dataset.upright(index), self.dataset.limits
        if header.format != "JPEG":
            sample.image = decode_image(data, str(path), upright=upright, limits=limits)
            return self.augmentation(sample, rng)
        view = self.augmentation.draw(sample, header.size(upright), rng, reduced=True)
        image = decode_image(data, str(path), view.reduction, upright=upright, limits=limits)
        return self.augmentation.apply(view, image)


def collate(
    batch: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Join samples of a `TrainingSet` to a batch, as the `collate_fn` of a DataLoader.

    Args:
        batch: B tuples (image, boxes, labels).

    Returns:
        The images, [B, 3, S, S] with channels last in memory; a list of the boxes and a list of
        the labels, one tensor per image.

    Example:
        >>> from mdssd.data import Augmentation, SyntheticScenes, TrainingSet, collate
        >>> samples = TrainingSet(SyntheticScenes(4), Augmentation(300))
        >>> images, boxes_xyxy, labels = collate([samples[0], samples[1]])
        >>> images.shape, len(boxes_xyxy)
        (torch.Size([2, 3, 300, 300]), 2)
    """
    images, boxes_xyxy, labels = zip(*batch, strict=True)
    rows = [image.permute(1, 2, 0) for image in images]
    out = None
    if torch.utils.data.get_worker_info() is not None:
        # In shared memory, because sending the batch to the main process would copy it again.
        shape = (len(rows), *rows[0].shape)
        storage = rows[0]._typed_storage()._new_shared(math.prod(shape))
        out = rows[0].new(storage).view(shape)
    stacked = torch.stack(rows, out=out)
    return stacked.permute(0, 3, 1, 2), _together(boxes_xyxy), _together(labels)


def _together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Move tensors to one piece of memory, which a worker sends as one file instead of many."""
    return list(torch.cat(list(tensors)).split([len(each) for each in tensors]))


def worker_init(worker_id: int) -> None:
    """Turn off OpenCV's threads in a loader worker, as the `worker_init_fn` of a DataLoader.

    Its threads would compete with the other workers.

    Args:
        worker_id: the worker's number, which DataLoader passes. It is not used.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from mdssd.data import Augmentation, SyntheticScenes, TrainingSet, collate, worker_init
        >>> loader = DataLoader(
        ...     TrainingSet(SyntheticScenes(4), Augmentation(300)),
        ...     batch_size=2,
        ...     num_workers=2,
        ...     collate_fn=collate,
        ...     worker_init_fn=worker_init,
        ... )
    """
    cv2.setNumThreads(0)
