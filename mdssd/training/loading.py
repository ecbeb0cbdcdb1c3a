"""Loading the batches of an epoch, from any batch on, in worker processes or in this one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mdssd.data import (
    Augmentation,
    DataError,
    DetectionDataset,
    TrainingSet,
    collate,
    worker_init,
)
from mdssd.data.windows import TrainingWindows
from mdssd.priors.maps import InputSize, width_height
from mdssd.system import distributed
from mdssd.training.settings import Recipe


class Batch(NamedTuple):
    """This process's share of a batch; it may be empty.

    images: [B, 3, S, S]. boxes_xyxy: B tensors [M, 4], normalised to 0-1. labels: B tensors [M],
    -1 for a box to be ignored.
    """

    images: Tensor
    boxes_xyxy: list[Tensor]
    labels: list[Tensor]


class EpochBatches(Sampler[list[int]]):
    """Batches of indices in an order that depends only on the seed and the epoch.

    Indices beyond the last full batch are left out, unless no batch is full. Without `shuffle` the
    order is that of the indices.
    """

    def __init__(self, count: int, batch_size: int, seed: int, *, shuffle: bool = True) -> None:
        self.count = count
        self.batch_size = min(batch_size, count)
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order: Sequence[int] = range(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=generator).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield list(order[start : start + self.batch_size])


class OwnShares(Sampler[list[int]]):
    """This process's share of each batch, which may be empty; the first `done` are skipped."""

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches
        self.done = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        remaining = islice(self.batches, self.done, None)
        return (list(distributed.part(batch)) for batch in remaining)


class EpochLoader:
    """Loads one epoch after another.

    Each process loads its share of every batch, in `workers` processes of its own; None stands for
    one fewer than the cores, at most 2.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        input_size: InputSize,
        settings: Recipe,
        workers: int | None,
        device: torch.device,
    ) -> None:
        augmentation = Augmentation(
            input_size,
            expand=settings.expand,
            crop=settings.crop,
            crop_min_scale=settings.crop_min_scale,
            photometric=settings.photometric,
            mirror=settings.mirror,
            turn=settings.turn,
            ignore=settings.ignore,
            raw=True,
        )
        if workers is None:
            cores = (os.cpu_count() or 1) // distributed.processes_here()
            workers = max(0, min(2, cores - 1))
        self._image_ids = dataset.image_ids
        draws, self._windows = settings.window_draws(input_size), None
        samples: TrainingSet | TrainingWindows = TrainingSet(dataset, augmentation, settings.seed)
        if draws is not None:
            samples = TrainingWindows(dataset, augmentation, draws, settings.seed)
            self._windows = samples
        self._batches = EpochBatches(
            len(samples), settings.batch_size, settings.seed, shuffle=draws is None
        )
        self._shares = OwnShares(self._batches)
        self._samples = _Samples(samples)
        self._loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=self._shares,
            num_workers=workers,
            collate_fn=partial(_collate, size=input_size),
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self._batches)

    def load(self, epoch: int, done: int) -> Iterator[Batch]:
        """Yield the batches of an epoch after its first `done`.

        Raises:
            DataError: an image cannot be read.
        """
        self._batches.epoch = epoch
        self._shares.done = done
        self._samples.set_epoch(epoch)
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            yield Batch(*batch)

    def own_image_ids(self, number: int) -> list[str]:
        """The images of this process's share of a batch, which counts from the epoch's first."""
        indices = next(islice(self._batches, number, None))
        if self._windows is not None:
            indices = self._windows.plan().images[indices].tolist()
        return [self._image_ids[index] for index in distributed.part(indices)]

    def close(self) -> None:
        """End the worker processes, and allow SIGTERM to end those that are still needed."""
        self._samples.closed.fill_(True)
        del self._loader


class _Samples(Dataset[Any]):
    """Augmented samples, with a DataError returned as a value.

    Raised in a worker it would reach the main process as a traceback in a RuntimeError.
    """

    def __init__(self, samples: TrainingSet | TrainingWindows) -> None:
        self._samples = samples
        self.set_epoch = samples.set_epoch
        self.closed = torch.zeros((), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        try:
            return self._samples[index]
        except DataError as error:
            return error


def _collate(batch: list[Any], size: InputSize) -> Any:
    if not batch:
        width, height = width_height(size)
        return torch.zeros(0, 3, height, width, dtype=torch.uint8), [], []
    return next((item for item in batch if isinstance(item, DataError)), None) or collate(batch)


def _start_worker(worker_id: int) -> None:
    # Ctrl-C reaches the whole process group, and SIGTERM often does. The main process needs its
    # workers until the iteration is complete; then it ends them, by SIGTERM if necessary.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    info: Any = torch.utils.data.get_worker_info()
    closed = info.dataset.closed
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closed else None)
    worker_init(worker_id)
