"""Training on windows that are drawn from whole images, for small objects in large images."""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdssd.data.augment import Augmentation, cut_window
from mdssd.data.dataset import DetectionDataset
from mdssd.data.ignored import IGNORED, objects_of
from mdssd.data.image_headers import parse_header
from mdssd.data.images import decode_image, read_bytes, read_header
from mdssd.data.opened import raster_of
from mdssd.data.rasters import Raster
from mdssd.data.sample import Sample
from mdssd.data.tiles import Tiling

Pixels = NDArray[np.uint8]

# The images that a process keeps decoded, and those whose windows are mixed with one another. One
# that is read by windows counts as so many of them.
_BYTES = 256 * 2**20
_RASTER_BYTES = 16 * 2**20


@dataclass(frozen=True)
class WindowDraws:
    """How windows are drawn from images.

    Attributes:
        width, height: the size of a window, in pixels of the image.
        jitter: the window's sides are multiplied by a factor between 1/jitter and jitter, so that
            objects are seen smaller and larger. 1 draws windows of one size.
        background: the share of windows drawn anywhere; the others contain an object's centre.
        min_visible: a box of which the window shows a smaller share of its area is left out, or
            ignored if the augmentation says so.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> from mdssd.data.windows import WindowDraws
        >>> WindowDraws(300, 300, jitter=1)
        WindowDraws(width=300, height=300, jitter=1, background=0.25, min_visible=0.5)
    """

    width: int
    height: int
    jitter: float = 4 / 3
    background: float = 0.25
    min_visible: float = 0.5

    def __post_init__(self) -> None:
        Tiling(self.width, self.height)  # checks the sides
        if not 1 <= self.jitter <= 4:
            raise ValueError(f"jitter: expected a number from 1 to 4, got {self.jitter}")
        if not 0 <= self.background <= 1:
            raise ValueError(f"background: expected a number from 0 to 1, got {self.background}")
        if not 0 < self.min_visible <= 1:
            raise ValueError(
                f"min_visible: expected a number above 0 and at most 1, got {self.min_visible}"
            )


class Plan(NamedTuple):
    """What the windows of an epoch show, in the order of training.

    images: int64 [N], the image of each. objects: int64 [N], which of the image's boxes is in it,
    among those to learn; -1 for a window drawn anywhere.
    """

    images: NDArray[np.int64]
    objects: NDArray[np.int64]


class TrainingWindows(torch.utils.data.Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Augmented windows of the images of a data set, for a PyTorch DataLoader.

    An epoch has as many windows as its images have tiles of that size that do not overlap, at least
    one per image. `draws.background` of them lie anywhere, in images chosen in proportion to their
    tiles. Each of the others contains the centre of an object, chosen evenly from all objects of
    the data set. The augmentation is then applied to the window as if it were an image. An image
    that is smaller than the window is not enlarged; the rest is filled with the mean.

    The windows of an epoch come in an order in which a few images, of 256 MiB in all, are mixed
    with one another before the next few follow, so that each is decoded once per epoch and process.
    Take them in that order, from 0. Of a TIFF file above the limit, if the data set accepts those,
    only the windows are read; 16 such files are mixed with one another. Window i depends on the
    seed, the epoch and i alone. Samples are those of `TrainingSet`.

    Args:
        dataset: the data set. The headers of all its images are read.
        augmentation: is applied to each window.
        draws: how windows are drawn.
        seed: the seed of the random draws.

    Raises:
        DataError: an image cannot be read.

    Example:
        >>> from mdssd.data import Augmentation, SyntheticScenes
        >>> from mdssd.data.windows import TrainingWindows, WindowDraws
        >>> windows = TrainingWindows(
        ...     SyntheticScenes(2, 300), Augmentation(300), WindowDraws(100, 100)
        ... )
        >>> len(windows), windows[0][0].shape
        (18, torch.Size([3, 300, 300]))
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        augmentation: Augmentation,
        draws: WindowDraws,
        seed: int = 0,
    ) -> None:
        if seed < 0:
            raise ValueError(f"TrainingWindows: seed must not be negative, got {seed}")
        self.dataset = dataset
        self.augmentation = augmentation
        self.draws = draws
        self.seed = seed
        # Shared memory, so that workers which live through several epochs see the current one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        indices = range(len(dataset))
        self._sizes = np.array([image_size(dataset, i) for i in indices]).reshape(-1, 2)
        tiling = Tiling(draws.width, draws.height, overlap=0)
        self._tiles = np.array([tiling.count(*map(int, size)) for size in self._sizes])
        self._objects = np.array(
            [int(objects_of(dataset.annotation(i), augmentation.ignore).sum()) for i in indices]
        )
        self._costs = 3 * self._sizes.prod(1)
        if dataset.limits.by_windows:
            self._costs[self._sizes.prod(1) > dataset.limits.max_pixels] = _RASTER_BYTES
        self._plan: tuple[int, Plan] | None = None
        self._kept: OrderedDict[int, tuple[Sample, Pixels | Raster]] = OrderedDict()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, 0 or more, that decides the random draws of the next samples."""
        if epoch < 0:
            raise ValueError(f"TrainingWindows.set_epoch: epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return int(self._tiles.sum())

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        plan = self.plan()
        sample, image = self._opened(int(plan.images[index]))
        rng = np.random.default_rng([self.seed, int(self._epoch), index, 1])
        objects = objects_of(sample, self.augmentation.ignore)
        boxes = sample.boxes_xyxy[objects].astype(np.float64)
        chosen = int(plan.objects[index])
        box = boxes[chosen] if chosen >= 0 else None
        height, width = image.shape[:2]
        window = draw_window((width, height), box, self.draws, rng)
        part = cut_sample(sample, image, window, self.draws, self.augmentation)
        return self.augmentation(part, rng)

    def plan(self) -> Plan:
        """Return what the windows of this epoch show."""
        epoch = int(self._epoch)
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, self._draw_plan(np.random.default_rng([self.seed, epoch]))
        return self._plan[1]

    def _draw_plan(self, rng: np.random.Generator) -> Plan:
        count, total = len(self), int(self._objects.sum())
        # Of one epoch after another, and of every number of windows, the share is exact on average.
        anywhere = int(count * self.draws.background + rng.random()) if total else count
        ends = self._objects.cumsum()
        chosen = rng.integers(max(1, total), size=count - anywhere)
        images = np.searchsorted(ends, chosen, side="right")
        objects = chosen - (ends - self._objects)[images]
        ends = self._tiles.cumsum()
        others = np.searchsorted(ends, rng.integers(ends[-1], size=anywhere), side="right")
        images = np.concatenate([images, others])
        objects = np.concatenate([objects, np.full(anywhere, -1)])
        # Images in random order, in groups that are kept decoded, with their windows mixed.
        shuffled = rng.permutation(len(self._sizes))
        group = np.empty(len(shuffled), np.int64)
        group[shuffled] = _groups(self._costs[shuffled], _BYTES)
        order = np.lexsort((rng.random(count), group[images]))
        return Plan(images[order], objects[order])

    def _opened(self, index: int) -> tuple[Sample, Pixels | Raster]:
        """Return a sample and its image, from the last of them if it is among those."""
        entry = self._kept.pop(index, None)
        if entry is None:
            kept = self._costs[[*self._kept, index]].sum()
            while self._kept and kept > _BYTES:
                oldest, (_, image) = self._kept.popitem(last=False)
                kept -= self._costs[oldest]
                if isinstance(image, Raster):
                    image.close()
            entry = _open(self.dataset, index)
        self._kept[index] = entry
        return entry


def count_windows(dataset: DetectionDataset, draws: WindowDraws) -> int:
    """Return how many windows an epoch has; see `TrainingWindows`."""
    tiling = Tiling(draws.width, draws.height, overlap=0)
    return sum(tiling.count(*image_size(dataset, index)) for index in range(len(dataset)))


def draw_window(
    size: tuple[int, int],
    box: NDArray[np.float64] | None,
    draws: WindowDraws,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw a window [4] xyxy of an image, in whole pixels.

    It lies inside the image if that is as large, and otherwise contains the image.

    Args:
        size: (width, height) of the image.
        box: [4] xyxy; its centre is to be in the window. None for a window anywhere.
        draws: how windows are drawn.
        rng: the random generator.
    """
    factor = math.exp(rng.uniform(-1, 1) * math.log(draws.jitter))
    sides = np.maximum(1, np.rint(np.array([draws.width, draws.height]) * factor))
    start = place(np.array(size), sides, box, rng.random(2)).astype(np.int64)
    return np.concatenate([start, start + sides.astype(np.int64)])


def place(
    size: NDArray[np.int64],
    sides: NDArray[np.float64],
    boxes_xyxy: NDArray[np.float64] | None,
    position: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the left upper corners [..., 2] of windows of `sides` in an image of `size`.

    Corners are whole pixels if sides and size are.

    position: from 0 up to but not 1, where each is between the first and the last that contains the
    centre of its box; without boxes, between the first and the last of the image.
    """
    first, last = np.minimum(0, size - sides), np.maximum(0, size - sides)
    if boxes_xyxy is not None:
        centre = ((boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2).clip(0, size)
        first = np.maximum(first, np.ceil(centre - sides))
        last = np.minimum(last, np.floor(centre))
        last = np.maximum(first, last)  # a centre on the edge of the image
    placed: NDArray[np.float64] = np.floor(first + position * (last - first + 1))
    return placed


def visible_share(
    boxes_xyxy: NDArray[np.float64], windows: NDArray[np.float64] | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return which share of the area of each box [M, 4] its window [M, 4] or [4] shows."""
    starts = np.maximum(boxes_xyxy[:, :2], windows[..., :2])
    ends = np.minimum(boxes_xyxy[:, 2:], windows[..., 2:])
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)
    shown: NDArray[np.float64] = (ends - starts).clip(0).prod(1) / np.maximum(area, 1e-12)
    return shown


def cut_sample(
    sample: Sample,
    image: Pixels | Raster,
    window: NDArray[np.int64],
    draws: WindowDraws,
    augmentation: Augmentation,
) -> Sample:
    """Return a window of a sample as a sample of its own.

    Boxes are clipped to the window. One of which it shows less than `draws.min_visible` is left
    out, or gets the label -1 if the augmentation ignores cut boxes. Crowds are left out unless it
    ignores those. What lies beyond the image is filled with the mean of the augmentation.

    Args:
        sample: the sample, whose own pixels are not used.
        image: its image.
        window: [4] xyxy, in whole pixels of the image.
        draws: says which boxes are left out.
        augmentation: says which boxes are ignored, and what the mean is.
    """
    boxes_xyxy = sample.boxes_xyxy.astype(np.float64)
    shown = visible_share(boxes_xyxy, window)
    is_cut = ~sample.crowd & (shown < draws.min_visible)
    kept = ~sample.crowd & ~is_cut
    if "cut" in augmentation.ignore:
        kept |= is_cut & (shown > 0)
    if "crowd" in augmentation.ignore:
        kept |= sample.crowd & (shown > 0)
    corner, end = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    return Sample(
        cut_window(image, window, [], augmentation.mean),
        (boxes_xyxy[kept] - corner).clip(0, end).astype(np.float32),
        np.where(is_cut, IGNORED, sample.labels)[kept],
        sample.difficult[kept],
        sample.image_id,
        sample.crowd[kept],
    )


def image_size(dataset: DetectionDataset, index: int) -> tuple[int, int]:
    """Return (width, height) of an image as its boxes refer to it, from its header if it has one.

    Raises:
        DataError: the image cannot be read.
    """
    path, upright = dataset.image_path(index), dataset.upright(index)
    if path is not None:
        return read_header(path).size(upright)
    data = dataset.image_bytes(index)
    if data is not None:
        return parse_header(io.BytesIO(data), dataset.image_ids[index]).size(upright)
    height, width = dataset[index].image.shape[:2]
    return width, height


def _open(dataset: DetectionDataset, index: int) -> tuple[Sample, Pixels | Raster]:
    path, raster = dataset.image_path(index), raster_of(dataset, index)
    if raster is not None:
        return dataset.annotation(index), raster
    if path is None:
        sample = dataset[index]
        return sample, sample.image
    data, limits = read_bytes(path, dataset.limits), dataset.limits
    image = decode_image(data, str(path), upright=dataset.upright(index), limits=limits)
    return dataset.annotation(index), image


def _groups(sizes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return a number per item: consecutive ones have the same if all these are at most `most`."""
    numbers, number, together = np.zeros(len(sizes), np.int64), 0, 0
    for k, size in enumerate(sizes.tolist()):
        together += size
        if together > most and k:
            number, together = number + 1, size
        numbers[k] = number
    return numbers
