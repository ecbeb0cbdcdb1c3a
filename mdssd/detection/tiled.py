"""The tiles of images on their way through the network, and what is found in them put together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdssd import ops
from mdssd.data import DataError
from mdssd.data.rasters import Raster
from mdssd.data.tiles import Tiling, Window
from mdssd.detection.reading import NOTHING, ReadImage

Pixels = NDArray[np.uint8]
Found = dict[str, Tensor]  # boxes [K, 4] xyxy, scores [K], labels [K]

# A box that ends this close to an inner edge of its tile, as a part of the tile's side, is taken
# for the visible part of an object that the edge cuts.
_AT_EDGE = 0.02
# A cut box gives way to a whole one if their intersection is at least this part of the smaller, and
# if the whole one has at least this part of its score.
_GIVES_WAY, _LEAST_SCORE = 0.3, 0.25
# Two cut boxes are parts of one object if their intersection is more than this part of the smaller.
# One gives way to another if that has so many times its score: joined, it would spoil its box.
_JOINED, _SURER = 0.5, 4.0
_AT_A_TIME = 64  # cut boxes that are compared with all whole ones near them
_LEAST_SIZE = 256.0  # whole boxes up to this many pixels are looked for together
# So many times the images of a batch, or files that cannot be read, may wait until it is full.
_WAITING = 4


@dataclass
class Shown:
    """An image, and its tiles on their way through the network.

    Attributes:
        source: the image as it was passed.
        read: the image that was read, or why it cannot be read.
        waiting: how many of its windows have no result yet.
        found: for each of its windows, what was found in it, as fractions of the window.
    """

    source: Any
    read: ReadImage | DataError
    waiting: int = 0
    found: list[tuple[Window, Found]] = field(default_factory=list)


class Batches:
    """Puts windows of images into batches, and returns each image when all its windows are done.

    Windows of several images share a batch. Which windows an image has, and what is found in each,
    does not depend on the batches.

    Args:
        start: begins a batch of pixels [H, W, 3], and returns the ticket for `finish`.
        finish: returns what was found in each window of a batch.
        size: the number of windows in a batch; only the last one may have fewer.
        under_way: how many batches may be started before the first of them is finished.
    """

    def __init__(
        self,
        start: Callable[[Sequence[Pixels]], Any],
        finish: Callable[[Any], Sequence[Found]],
        size: int,
        under_way: int,
    ) -> None:
        self._start_batch = start
        self._finish_batch = finish
        self._size = size
        self._most = under_way
        self._images: deque[Shown] = deque()  # in order, the first not done
        self._next: list[tuple[Shown, Window, Pixels]] = []
        self._started: deque[tuple[list[tuple[Shown, Window]], Any]] = deque()

    def run(
        self,
        items: Iterable[tuple[Any, ReadImage | DataError]],
        windows: Callable[[ReadImage], Iterable[tuple[Window, Pixels]]],
    ) -> Iterator[Shown]:
        """Yield the images, in order.

        Args:
            items: images as they are read.
            windows: the windows of an image and their pixels. They are taken one by one.
        """
        for source, read in items:
            image = Shown(source, read, waiting=1)  # not done while windows are added
            self._images.append(image)
            if isinstance(read, ReadImage):
                try:
                    for window, pixels in windows(read):
                        image.waiting += 1
                        self._next.append((image, window, pixels))
                        if len(self._next) == self._size:
                            yield from self._start()
                    image.read = read._replace(pixels=NOTHING)
                except DataError as error:  # a window of the file is damaged
                    image.read = error
            image.waiting -= 1
            if len(self._images) > _WAITING * self._size and self._next:
                yield from self._start()
            yield from self._done()
        if self._next:
            yield from self._start()
        while self._started:
            self._finish()
            yield from self._done()

    def _start(self) -> Iterator[Shown]:
        batch, self._next = self._next, []
        ticket = self._start_batch([pixels for _, _, pixels in batch])
        self._started.append(([(image, window) for image, window, _ in batch], ticket))
        while len(self._started) >= self._most:
            self._finish()
            yield from self._done()

    def _finish(self) -> None:
        parts, ticket = self._started.popleft()
        for (image, window), found in zip(parts, self._finish_batch(ticket), strict=True):
            image.found.append((window, found))
            image.waiting -= 1

    def _done(self) -> Iterator[Shown]:
        while self._images and not self._images[0].waiting:
            yield self._images.popleft()


def tiles(
    image: Pixels | Raster, tiling: Tiling, fill: Sequence[float]
) -> Iterator[tuple[Window, Pixels]]:
    """Yield the windows of an image [H, W, 3] and their pixels.

    Args:
        image: the image. The whole of one that is read by windows is shown reduced.
        tiling: how it is divided.
        fill: the colour beyond the edges of the image.
    """
    height, width = image.shape[:2]
    colour = np.round(fill).astype(np.uint8)
    for window in tiling.windows(width, height):
        x, y = window.x, window.y
        if isinstance(image, Raster) and window[2:4] != (tiling.width, tiling.height):
            yield window, image.reduced()
            continue
        part = image[y : y + window.height, x : x + window.width]
        if part.shape[:2] != (window.height, window.width):
            whole = np.broadcast_to(colour, (window.height, window.width, 3)).copy()
            whole[: part.shape[0], : part.shape[1]] = part
            part = whole
        yield window, part


def put_together(
    found: Sequence[tuple[Window, Found]], size: tuple[int, int], nms_threshold: float
) -> Found:
    """Return the detections of an image from those of its windows.

    Two tiles that overlap both find the objects in the overlap. An object that reaches beyond the
    edge of a tile is found in part. A box that ends at an inner edge of its tile is therefore taken
    for a cut one, and

    1. of whole boxes of a class whose IoU is above `nms_threshold`, the better is kept;
    2. a cut box gives way to a whole one of its class, from another tile, if their intersection is
       at least 30% of the smaller of the two and the whole one has at least a quarter of its score;
    3. a cut box gives way to another cut one of its class with at least four times its score, if
       their intersection is at least half of the smaller;
    4. the other cut boxes, whose object no tile shows whole, are joined with one another if the
       intersection is more than half of the smaller (greedy non-maximum merging).

    Args:
        found: the windows of an image, and what was found in each, as fractions of the window.
        size: (height, width) of the image.
        nms_threshold: the IoU.

    Returns:
        Boxes in pixels of the image, clipped to it, without empty ones, by falling score.
    """
    every = [in_pixels(each, window, size) for window, each in found]
    if len(found) == 1:
        return with_area({**found[0][1], "boxes": every[0][0]})
    tile = torch.arange(len(found)).repeat_interleave(torch.tensor([len(b) for b, _ in every]))
    boxes = torch.cat([boxes for boxes, _ in every])
    cut = torch.cat([cut for _, cut in every])
    scores = torch.cat([each["scores"] for _, each in found])
    labels = torch.cat([each["labels"] for _, each in found])

    whole = (~cut).nonzero()[:, 0]
    whole = whole[ops.batched_nms(boxes[whole], scores[whole], labels[whole], nms_threshold)]
    parts = cut.nonzero()[:, 0]
    every_box = _Boxes(boxes, scores, labels, tile)
    parts = parts[~_gives_way(parts, whole, every_box, _GIVES_WAY, _LEAST_SCORE, same_tile=False)]
    parts = parts[~_gives_way(parts, parts, every_box, _JOINED, _SURER, same_tile=True)]
    joined = ops.merge_boxes(
        boxes[parts],
        scores[parts],
        labels[parts],
        method="greedy_nmm",
        metric="ios",
        threshold=_JOINED,
    )
    merged = {
        "boxes": torch.cat((boxes[whole], joined.boxes)),
        "scores": torch.cat((scores[whole], joined.scores)),
        "labels": torch.cat((labels[whole], joined.labels)),
    }
    order = merged["scores"].sort(descending=True, stable=True).indices
    return with_area({name: values[order] for name, values in merged.items()})


def in_pixels(found: Found, window: Window, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the boxes of a window in pixels of the image, and which end at an inner edge.

    Args:
        found: what was found in the window, as fractions of it.
        window: the window.
        size: (height, width) of the image, to which the boxes are clipped.
    """
    height, width = size
    edge = torch.tensor([width, height] * 2, dtype=torch.float32)
    extent = torch.tensor([window.width, window.height] * 2, dtype=torch.float32)
    start = torch.tensor([window.x, window.y] * 2, dtype=torch.float32)
    boxes = found["boxes"].clamp(0, 1)
    at_edge = torch.cat((boxes[:, :2] < _AT_EDGE, boxes[:, 2:] > 1 - _AT_EDGE), 1)
    cut = (at_edge & torch.tensor(window.inner)).any(1)
    return (boxes * extent + start).clamp(min=torch.zeros(4), max=edge), cut


def with_area(found: Found) -> Found:
    """Return the detections whose boxes are not empty."""
    boxes = found["boxes"]
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return {name: values[kept] for name, values in found.items()}


class _Boxes(NamedTuple):
    """The boxes of all tiles."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    tile: Tensor  # its number


def _gives_way(
    parts: Tensor, others: Tensor, every: _Boxes, share: float, score: float, *, same_tile: bool
) -> Tensor:
    """Return which of the cut boxes `parts` give way to one of the boxes `others` of their class.

    Both are indices, and `parts` are in the order of their tiles, so that those that are compared
    at a time are neighbours. They are compared with the boxes near them only: the time grows with
    the number of boxes, not with its square.

    Args:
        parts: the cut boxes.
        others: the boxes that they may give way to.
        every: the boxes of all tiles.
        share: the least intersection, as a part of the smaller of the two boxes.
        score: the least score of the other box, as a multiple of that of the cut one.
        same_tile: whether the other box may be from the same tile.
    """
    boxes, scores, labels, tile = every
    gives_way = torch.zeros(len(parts), dtype=torch.bool)
    if not (len(others) and len(parts)):
        return gives_way
    places = _Places(others, boxes)
    for verdict, chunk in zip(gives_way.split(_AT_A_TIME), parts.split(_AT_A_TIME), strict=True):
        near = places.near(*boxes[chunk, :2].amin(0).tolist(), *boxes[chunk, 2:].amax(0).tolist())
        (x1, y1, x2, y2), other = boxes[chunk].T[:, :, None], boxes[near].T
        across = torch.minimum(x2, other[2]) - torch.maximum(x1, other[0])
        down = torch.minimum(y2, other[3]) - torch.maximum(y1, other[1])
        common = across.clamp_(min=0) * down.clamp_(min=0)
        area, other_area = (x2 - x1) * (y2 - y1), (other[2] - other[0]) * (other[3] - other[1])
        same = common >= share * torch.minimum(area, other_area)
        same &= common > 0
        same &= labels[chunk, None] == labels[near]
        same &= scores[near] >= score * scores[chunk, None]
        if not same_tile:
            same &= tile[chunk, None] != tile[near]
        verdict.copy_(same.any(1))
    return gives_way


class _Places:
    """Finds the boxes that meet a rectangle without looking at all of them.

    They are sorted by size, by column of the image and by their top. In a group of boxes of one
    size, those that meet a rectangle begin less than this size to the left of it and above it.

    Args:
        chosen: the indices of the boxes.
        boxes: [N, 4] xyxy, none of which begins left of or above 0.
    """

    def __init__(self, chosen: Tensor, boxes: Tensor) -> None:
        self._boxes = boxes
        corners = boxes[chosen].double()
        self._span = float(corners[:, 3].max()) + 1
        sides = (corners[:, 2:] - corners[:, :2]).amax(1)
        sizes = (sides / _LEAST_SIZE).clamp(min=1).log2().ceil().long()
        self._groups = []
        for size in sizes.unique().tolist():
            group = (sizes == size).nonzero()[:, 0]
            side = _LEAST_SIZE * 2.0**size + 1  # 1 for what rounding may lose
            keys = (corners[group, 0] / side).floor() * self._span + corners[group, 1]
            keys, order = keys.sort()
            self._groups.append((side, keys, chosen[group[order]]))

    def near(self, left: float, top: float, right: float, bottom: float) -> Tensor:
        """Return the indices of the boxes that meet a rectangle.

        The rectangle lies in the image.
        """
        found = []
        for side, keys, indices in self._groups:
            first, last = max(0, int((left - side) // side)), int(right // side)
            columns = torch.arange(first, last + 1, dtype=torch.float64) * self._span
            begins = torch.searchsorted(keys, columns + max(0, top - side))
            ends = torch.searchsorted(keys, columns + min(bottom, self._span), right=True)
            found += [indices[i:j] for i, j in zip(begins.tolist(), ends.tolist(), strict=True)]
        near = torch.cat(found)
        x1, y1, x2, y2 = self._boxes[near].T
        return near[(x1 < right) & (x2 > left) & (y1 < bottom) & (y2 > top)]
