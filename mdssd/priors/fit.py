"""Fitting the sizes of a model's priors to the boxes of a data set.

Matching gives a box every prior whose IoU with it is at least 0.5, and training learns little from
a box that no prior reaches. Which boxes a prior reaches depends on its width and height and on the
grid of its map. The fit therefore tries sizes on every map, and computes the IoU of each box with
the prior in the nearest cell, which is the best of this size and map. It starts from a set of
priors that the model has, and exchanges one size after another while the boxes gain by it. So a
size that the data do not need remains, and the number of priors stays the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdssd.priors.boxes import PriorLayer
from mdssd.priors.maps import Grid, InputSize, width_height
from mdssd.priors.sizes import Sizes

Array = NDArray[np.floating]

# A larger data set is represented by this many of its boxes.
_BOXES = 2000
# Boxes of many sizes beside those of the data, with this part of the weight of all. They keep
# priors for objects of sizes that the data do not have.
_ANY_SIZE, _ANY_WEIGHT = 400, 0.05
_ANY_SMALLEST, _ANY_RATIO = 8.0, 3.0
# A box is worth nothing at the first IoU with its best prior, and everything at the second: more
# than 0.5, so that the box is still reached if another picture shows it a little differently.
_WORTHLESS, _PERFECT = 0.4, 0.7
# This part of a box's worth is the number of priors that reach it, up to the number below, because
# training learns from each of them.
_MANY_WEIGHT, _MANY = 0.3, 4
_REACHED = 0.5
# The sides that are tried are a quarter octave apart, in shapes of up to 1 to 5. The square of the
# same area has a side within these multiples of the distance between the cells of the map, because
# what a cell sees, and how closely cells follow one another, goes with that distance.
_IN_OCTAVE, _MOST_RATIO = 4, 5.0
_LEAST_STEPS, _MOST_STEPS = 1.25, 8.0
_SMALLEST = 3.0  # pixels
# An exchange must gain at least this part of what all boxes can be worth.
_GAIN = 0.0005
_ROUNDS = 20
# Cells beside the nearest one in which priors are counted.
_BESIDE = (-1, 0, 1)
_NEAREST = _BESIDE.index(0)
# Sizes that are compared with all boxes at a time: what they need stays in the cache.
_AT_A_TIME = 8


def fit_priors(
    boxes_xyxy: NDArray[np.floating],
    layers: Sequence[PriorLayer],
    input_size: InputSize,
    *,
    labels: NDArray[np.integer] | None = None,
    enlarged: float = 1.0,
    turned: bool = False,
) -> Sizes:
    """Fit the sizes of priors to boxes.

    The sum over all boxes of what each is worth is maximised. A box is worth the more, the greater
    its best IoU with a prior is between 0.4 and 0.7 and, for a smaller part, the more priors reach
    an IoU of 0.5, up to four. A class of n boxes has a weight of sqrt(n): in between that of its
    boxes, which would leave rare classes out, and that of a class in the mean average precision.

    Args:
        boxes_xyxy: [M, 4], as fractions of the image, from 0 to 1.
        layers: the priors to start from, of which each map keeps its number. Their grids decide,
            and a size remains unless another is better for the boxes.
        input_size: side of the input, in pixels, or (width, height) of one that is no square.
        labels: [M], the class of each box; None means one class.
        enlarged: how much larger crops can show an object, in width and in height.
        turned: whether training turns images by quarters.

    Returns:
        For each map, (width, height) in input pixels of each prior of a cell, rounded to 0.01. The
        same boxes give the same sizes.

    Example:
        >>> import numpy as np
        >>> from mdssd.priors import best_iou, fit_priors, make_priors, ssd_prior_layers, with_sizes
        >>> layers = ssd_prior_layers(300, "coco")
        >>> boxes_xyxy = np.array([[0.1, 0.1, 0.13, 0.14], [0.5, 0.5, 0.54, 0.53]])
        >>> best_iou(boxes_xyxy, make_priors(layers, 300)).round(2)
        array([0.24, 0.24])
        >>> fitted = with_sizes("ssd300", layers, fit_priors(boxes_xyxy, layers, 300))
        >>> best_iou(boxes_xyxy, make_priors(fitted, 300)).round(2)
        array([0.71, 0.71])
    """
    if labels is None:
        labels = np.zeros(len(boxes_xyxy), np.int64)
    sides = np.array(width_height(input_size), np.float64)
    boxes = _weighted_boxes(boxes_xyxy, labels, sides, enlarged, turned)
    choice = _Choice(boxes, layers)
    tried = {layer: _sizes_to_try(layer, sides) for layer in layers}
    values = {layer: _values(boxes, layer, sizes) for layer, sizes in tried.items()}
    for _ in range(_ROUNDS):
        places = range(len(choice.sizes))
        layer = choice.layers
        if not any([choice.exchange(k, tried[layer[k]], values[layer[k]], _GAIN) for k in places]):
            break
    choice.refine()
    return choice.result(layers)


def best_of_sizes(
    boxes_xyxy: NDArray[np.floating], layer: PriorLayer, sizes: NDArray[np.floating]
) -> tuple[Array, Array]:
    """Return the best IoU of boxes with priors of these sizes, and how many priors reach them.

    The centres of a layer's priors are a grid, and the IoU of two boxes of given sizes falls with
    the distance of their centres in each axis. So the prior in the nearest cell is the best.

    Args:
        boxes_xyxy: [M, 4], in input pixels.
        layer: the layer, of which only the grid matters.
        sizes: [K, 2], widths and heights in input pixels.

    Returns:
        The greatest IoU [K, M] with a prior of each size, and the number [K, M] of priors whose IoU
        is at least 0.5, among those in the nearest 3 x 3 cells.
    """
    side = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    centre = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2
    areas = sizes.prod(1)[:, None] + side.prod(1)
    enough = areas * _REACHED / (1 + _REACHED)  # the intersection at which the IoU is 0.5
    most, count = np.empty(areas.shape), np.zeros(areas.shape)
    for start in range(0, len(sizes), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        across, down = (
            _common(sizes[part, axis, None], side[:, axis], centre[:, axis], grid)
            for axis, grid in enumerate(layer.grids)
        )
        most[part] = across[_NEAREST] * down[_NEAREST]
        for width, height in itertools.product(across, down):
            count[part] += width * height >= enough[part]
    return most / (areas - most), count


def _common(prior: Array, box: Array, centre: Array, grid: Grid) -> list[Array]:
    """Return the lengths along an axis that priors [K, 1] and boxes [M] have in common.

    Returns:
        [K, M] for the nearest cell and those beside it; 0 for a cell outside of the map.
    """
    first = grid.step / 2 if grid.first is None else grid.first
    nearest = np.rint((centre - first) / grid.step).clip(0, grid.size - 1)
    half, shorter = (prior + box) / 2, np.minimum(prior, box)
    lengths = []
    for beside in _BESIDE:
        cell = nearest + beside
        away = np.abs(first + cell * grid.step - centre)
        length = (half - away).clip(0, shorter)
        lengths.append(length * ((cell >= 0) & (cell < grid.size)))
    return lengths


@dataclass(frozen=True)
class _Boxes:
    """Boxes [M, 4] in input pixels, xyxy, and their weights [M], which add up to 1."""

    boxes_xyxy: Array
    weight: Array


class _Choice:
    """The sizes that are chosen for all places, and what boxes are worth with each of them.

    Attributes:
        layers: the layer of each place; a layer has `per_cell` places.
        sizes: (width, height) at each place.
    """

    def __init__(self, boxes: _Boxes, layers: Sequence[PriorLayer]) -> None:
        self.layers = [layer for layer in layers for _ in layer.shapes()]
        self.sizes = [size for layer in layers for size in layer.shapes()]
        self._boxes = boxes
        self._fitted: set[int] = set()
        own = [
            _values(boxes, layer, np.array([size]))
            for layer, size in zip(self.layers, self.sizes, strict=True)
        ]
        self._worth = np.concatenate([worth for worth, _ in own])  # [places, M]
        self._many = np.concatenate([many for _, many in own])

    def exchange(self, place: int, sizes: Array, values: tuple[Array, Array], gain: float) -> bool:
        """Put the best of these sizes at a place if that gains more; return whether it did."""
        if not len(sizes):
            return False
        worth, many = (
            np.delete(self._worth, place, 0).max(0),
            np.delete(self._many, place, 0).sum(0),
        )
        before = self._total(worth, many, self._worth[place], self._many[place])
        totals = self._total(worth, many, *values)
        best = int(totals.argmax())
        if totals[best] <= before + gain:
            return False
        self.sizes[place] = (float(sizes[best, 0]), float(sizes[best, 1]))
        self._worth[place], self._many[place] = values[0][best], values[1][best]
        self._fitted.add(place)
        return True

    def refine(self) -> None:
        """Improve the sizes that were exchanged in ever smaller steps of width and height."""
        step = 2 ** (0.5 / _IN_OCTAVE)
        factors = np.array([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)])
        while step > 1.02:
            for place in sorted(self._fitted):
                sizes = np.array(self.sizes[place]) * step**factors
                values = _values(self._boxes, self.layers[place], sizes)
                self.exchange(place, sizes, values, 0.0)
            step = math.sqrt(step)

    def result(self, layers: Sequence[PriorLayer]) -> Sizes:
        """Return the sizes of each layer."""
        left = [(round(float(width), 2), round(float(height), 2)) for width, height in self.sizes]
        return tuple(tuple(left.pop(0) for _ in layer.shapes()) for layer in layers)

    def _total(self, worth: Array, many: Array, more_worth: Array, more: Array) -> Array:
        """Return what all boxes are worth with the other places and each of some sizes."""
        best, count = np.maximum(worth, more_worth), np.minimum(many + more, _MANY)
        value = (1 - _MANY_WEIGHT) * best + _MANY_WEIGHT / _MANY * count
        total: Array = value @ self._boxes.weight
        return total


def _values(boxes: _Boxes, layer: PriorLayer, sizes: Array) -> tuple[Array, Array]:
    """Return what each box is worth by its IoU with each size, and how many priors reach it."""
    iou, count = best_of_sizes(boxes.boxes_xyxy, layer, sizes)
    worth = ((iou - _WORTHLESS) / (_PERFECT - _WORTHLESS)).clip(0, 1)
    return worth.astype(np.float32), count.clip(0, _MANY).astype(np.float32)


def _sizes_to_try(layer: PriorLayer, sides: Array) -> Array:
    """Return the sizes [K, 2] that are tried on a map, for an input of these sides."""
    counts = (np.log2((sides / _SMALLEST).clip(1)) * _IN_OCTAVE).astype(int) + 1
    each = [_SMALLEST * 2 ** (np.arange(count) / _IN_OCTAVE) for count in counts]
    sizes = np.stack(np.meshgrid(*each, indexing="ij"), -1).reshape(-1, 2)
    square = np.sqrt(sizes.prod(1)) / math.sqrt(math.prod(grid.step for grid in layer.grids))
    shape = sizes.max(1) / sizes.min(1)
    fits = (square >= _LEAST_STEPS) & (square <= _MOST_STEPS) & (shape <= _MOST_RATIO)
    return np.asarray(sizes[fits])


def _weighted_boxes(
    boxes_xyxy: Array,
    labels: NDArray[np.integer],
    sides: Array,
    enlarged: float,
    turned: bool,
) -> _Boxes:
    """Return boxes of the data, the same as crops can show them, and boxes of any size."""
    boxes_xyxy, weight = _sample(boxes_xyxy * np.tile(sides, 2), labels)
    side = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    spread = _spread(len(side))
    seen = side * enlarged ** spread[:, :2]
    if turned:  # what was a part of the width becomes the same part of the height
        seen[1::2] = seen[1::2, ::-1] * (sides / sides[::-1])
    anything = _spread(_ANY_SIZE)
    stretch = _ANY_RATIO ** ((anything[:, 1:2] - 0.5) * (1, -1))
    any_side = _ANY_SMALLEST * (sides / _ANY_SMALLEST) ** anything[:, :1] * stretch
    parts = [boxes_xyxy, _at(seen, spread, sides), _at(any_side, anything, sides)]
    every = np.full(_ANY_SIZE, 1 / _ANY_SIZE)
    if len(weight):
        data = np.concatenate([weight, weight]) * ((1 - _ANY_WEIGHT) / 2)
        every = np.concatenate([data, every * _ANY_WEIGHT])
    return _Boxes(np.concatenate(parts), every)


def _sample(boxes_xyxy: Array, labels: NDArray[np.integer]) -> tuple[Array, Array]:
    """Return boxes that represent all, a class of n boxes by sqrt(n), and weights of sum 1."""
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(0).prod(1)
    use = np.flatnonzero(area > 0)
    order = use[np.lexsort((area[use], labels[use]))]
    _, kind, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(counts[kind])
    if len(order) <= _BOXES:
        return boxes_xyxy[order], weight / weight.sum()
    upto = weight.cumsum()
    at = (np.arange(_BOXES) + 0.5) / _BOXES * upto[-1]
    return boxes_xyxy[order[np.searchsorted(upto, at)]], np.full(_BOXES, 1 / _BOXES)


def _at(side: Array, spread: Array, sides: Array) -> Array:
    """Return boxes of these sides somewhere in the image: the last two columns say where."""
    corner = spread[:, 2:] * (sides - side).clip(0)
    return np.hstack([corner, corner + side])


def _spread(count: int) -> Array:
    """Return points [count, 4] that fill the unit cube evenly, always the same.

    Source: the sequence R4 of Roberts, "The unreasonable effectiveness of quasirandom sequences".
    """
    root = 1.0
    for _ in range(50):  # the solution of root^5 = root + 1
        root = (1 + root) ** 0.2
    steps = root ** -np.arange(1.0, 5.0)
    return np.asarray((0.5 + np.arange(1, count + 1)[:, None] * steps) % 1)
