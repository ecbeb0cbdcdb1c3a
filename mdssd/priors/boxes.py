"""The layers of priors that each model has, and the boxes that they make."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdssd import ops
from mdssd.names import PRIOR_SCALES, SSD_PRIOR_SCALES
from mdssd.ops.reference.boxes import to_xyxy
from mdssd.priors.maps import (
    RESNET_PAPER_SIZES,
    VGG_PAPER_SIZES,
    Grid,
    InputSize,
    check_input_size,
    grids,
    mean_side,
    resnet_grids,
    vgg_grids,
    width_height,
)

_CHUNK = 64  # boxes at a time: with mdssd512's 90,100 priors, their IoU takes 23 MB
_MOST_GRIDS = 512  # priors that form more are compared one by one

# Sides of the squares of the first and the second map, in percent of the input, at the smaller and
# at the larger of the two sizes of a paper; from SSD's code.
_PERCENT: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "voc": ((10, 20), (7, 15)),
    "coco": ((7, 15), (4, 10)),
}
# The largest square, in percent of the input, that the steps from map to map may reach.
_SSD_LAST, _DSSD_LAST = 90, 95
# The data set that the original code of DSSD has sizes for.
_DSSD_SCALES = {321: "voc", 513: "coco"}


@dataclass(frozen=True)
class PriorLayer:
    """The priors of one feature map.

    Attributes:
        size: number of cells in a row, and in a column unless `column` has another.
        step: distance between cells, in input pixels.
        min_size, max_size: sizes of the priors, in input pixels.
        aspect_ratios: width / height of the boxes other than squares; the inverse of each is added.
        first: centre of the first cell, in input pixels; None means half a step.
        sizes: (width, height) of each prior of a cell, in input pixels, in place of `min_size`,
            `max_size` and `aspect_ratios`; None means that these three decide.
        column: the cells of a column, if the input is not a square; None: they are as in a row.

    Example:
        >>> from mdssd.priors import PriorLayer
        >>> PriorLayer(size=38, step=8, min_size=30, max_size=60, aspect_ratios=(2,)).per_cell
        4
    """

    size: int
    step: float
    min_size: float
    max_size: float
    aspect_ratios: tuple[float, ...]
    first: float | None = None
    sizes: tuple[tuple[float, float], ...] | None = None
    column: Grid | None = None

    @property
    def grids(self) -> tuple[Grid, Grid]:
        """The cells of a row and of a column."""
        row = Grid(self.size, self.step, self.first)
        return row, self.column or row

    @property
    def per_cell(self) -> int:
        """Number of priors in a cell: two squares, and two boxes for each aspect ratio."""
        return 2 + 2 * len(self.aspect_ratios) if self.sizes is None else len(self.sizes)

    def shapes(self, *, truncate_sizes: bool = False) -> tuple[tuple[float, float], ...]:
        """Return (width, height) of each prior of a cell, in input pixels.

        Args:
            truncate_sizes: as `make_priors` takes it.

        Example:
            >>> from mdssd.priors import PriorLayer
            >>> PriorLayer(1, 100, min_size=50, max_size=72, aspect_ratios=()).shapes()
            ((50, 50), (60.0, 60.0))
        """
        if self.sizes is not None:
            return self.sizes
        min_size, max_size = self.min_size, self.max_size
        if truncate_sizes:
            min_size, max_size = math.trunc(min_size), math.trunc(max_size)
        middle = math.sqrt(min_size * max_size)
        shapes = [(min_size, min_size), (middle, middle)]
        for ratio in self.aspect_ratios:
            long, short = min_size * math.sqrt(ratio), min_size / math.sqrt(ratio)
            shapes += [(long, short), (short, long)]
        return tuple(shapes)


def ssd_prior_layers(image_size: InputSize, scales: str = "voc") -> tuple[PriorLayer, ...]:
    """Return the layers of SSD, conv4_3 first: 8732 priors for an input of 300, 24564 for 512.

    `mdssd.priors.maps` has the maps of the other sizes. The squares of the first two maps lie on
    the line through those of the papers, in pixels: of "coco" 21 and 45 for 300, 20.48 and 51.2 for
    512, 20.2 and 54.9 for 640. So the smallest priors have about as many pixels in every input, and
    a larger input reaches objects that are smaller in the photograph. From the second map on the
    squares grow by even steps of whole percents of the input, to at most 90%, as in SSD's code.
    Squares for an input that is no square are those of the square input of the same area.

    Args:
        image_size: 300, or a multiple of 32 from 256 to 1024; or two of these: (width, height).
        scales: "voc" or "coco", for the sizes of the original code for that data set.

    Raises:
        ValueError: an argument has another value.

    Example:
        >>> from mdssd.priors import ssd_prior_layers
        >>> [layer.size for layer in ssd_prior_layers(300)]
        [38, 19, 10, 5, 3, 1]
        >>> [round(layer.min_size, 1) for layer in ssd_prior_layers(640, "coco")]
        [20.2, 54.9, 157.3, 259.7, 362.1, 464.5, 566.9]
    """
    check_input_size("ssd_prior_layers: image_size must be", image_size, VGG_PAPER_SIZES)
    if scales not in SSD_PRIOR_SCALES:
        raise ValueError(
            f"ssd_prior_layers: prior_scales must be 'voc' or 'coco', got {scales!r}"
            + (f" ({scales!r} exists for MDSSD only)" if scales in PRIOR_SCALES else "")
        )
    cells = grids(vgg_grids, image_size)
    return _vgg_layers(cells, _squares(image_size, scales, len(cells), VGG_PAPER_SIZES, _SSD_LAST))


def mdssd_prior_layers(image_size: InputSize, scales: str = "voc") -> tuple[PriorLayer, ...]:
    """Return the layers of MDSSD, Module 1 first: 31232 priors for an input of 300, 90100 for 512.

    Modules 2 and 3 replace SSD's conv4_3 and conv7. Module 1 has Module 2's boxes on a map of twice
    the resolution, 4 pixels apart; with "small" it has boxes of half their size.

    The paper describes the sizes twice (section III-D). "Consistent with conv4_3 and conv7 in SSD"
    means "voc" or "coco". "The scale of Module 2 is set to 0.2, and the scale of the highest layer
    is 0.9" contradicts that, because SSD's conv4_3 has 0.1 (VOC) or 0.07 (COCO). "paper" follows
    the second sentence: even steps from 0.2 to 0.9 (equation 4 of the SSD paper), so that the
    smallest square is 60 pixels for an input of 300.

    Args:
        image_size: 300, or a multiple of 32 from 256 to 1024; or two of these: (width, height).
        scales: "voc" or "coco" for SSD's sizes, or "paper". For small objects use "coco", whose
            smallest square is 21 pixels (20 for an input of 512). For objects of 8 to 14 pixels,
            which no box of "coco" overlaps by half, use "small", which is not in the paper: "coco"
            with squares from 10 pixels in Module 1.

    Raises:
        ValueError: an argument has another value.

    Example:
        >>> from mdssd.priors import mdssd_prior_layers
        >>> [layer.size for layer in mdssd_prior_layers(300)]
        [75, 38, 19, 10, 5, 3, 1]
        >>> [mdssd_prior_layers(300, scales)[0].min_size for scales in ("voc", "coco", "small")]
        [30.0, 21.0, 10.5]
    """
    check_input_size("mdssd_prior_layers: image_size must be", image_size, VGG_PAPER_SIZES)
    if scales not in PRIOR_SCALES:
        raise ValueError(
            f"mdssd_prior_layers: prior_scales must be one of {PRIOR_SCALES}, got {scales!r}"
        )
    cells = grids(vgg_grids, image_size)
    if scales == "paper":
        side, last = mean_side(image_size), len(cells) - 1
        sizes = tuple(side * (0.2 + 0.7 * k / last) for k in range(last + 2))
    else:
        like = "coco" if scales == "small" else scales
        sizes = _squares(image_size, like, len(cells), VGG_PAPER_SIZES, _SSD_LAST)
    layers = _vgg_layers(cells, sizes)
    min_size, max_size = layers[0].min_size, layers[0].max_size
    if scales == "small":
        min_size, max_size = min_size / 2, min_size
    row, column = (Grid(side // 4, 4) for side in width_height(image_size))
    return (_layer(row, column, min_size, max_size, layers[0].aspect_ratios), *layers)


def dssd_prior_layers(image_size: InputSize, scales: str) -> tuple[PriorLayer, ...]:
    """Return the layers of SSD and DSSD on ResNet-101, res3b3 first.

    There are 17080 priors for an input of 321 and 43688 for 513, with eight boxes in every cell.
    The first centres are those of the original code, whose maps do not cover the image evenly: the
    first cell of res3b3 is centred at 2.5 pixels instead of 4. `mdssd.priors.maps` has the maps of
    the other sizes, and the squares follow the rule of `ssd_prior_layers`, to at most 95%.

    Args:
        image_size: 321, 513, or a multiple of 32 from 256 to 1024; or two of these multiples.
        scales: "voc" or "coco"; for 321 only "voc" and for 513 only "coco", because the original
            code has no other sizes.

    Raises:
        ValueError: an argument has another value.

    Example:
        >>> from mdssd.priors import dssd_prior_layers
        >>> [layer.size for layer in dssd_prior_layers(321, "voc")]
        [40, 20, 10, 5, 3, 1]
    """
    check_input_size("dssd_prior_layers: image_size must be", image_size, RESNET_PAPER_SIZES)
    name = _DSSD_SCALES.get(image_size) if isinstance(image_size, int) else None
    if scales not in SSD_PRIOR_SCALES if name is None else scales != name:
        expected = "'voc' or 'coco'" if name is None else repr(name)
        raise ValueError(
            f"dssd_prior_layers: prior_scales of an input of {image_size} must be {expected}, "
            f"got {scales!r}"
        )
    cells = grids(resnet_grids, image_size)
    sizes = _squares(image_size, scales, len(cells), RESNET_PAPER_SIZES, _DSSD_LAST)
    return tuple(
        _layer(row, column, min_size, max_size, (1.6, 2, 3))
        for (row, column), min_size, max_size in zip(cells, sizes[:-1], sizes[1:], strict=True)
    )


def make_priors(
    layers: Sequence[PriorLayer],
    image_size: InputSize,
    *,
    clip: bool | str = False,
    truncate_sizes: bool = False,
) -> Tensor:
    """Return the prior boxes of all layers, normalised to 0-1.

    The boxes are ordered by layer, row and column. Within a cell, they are the square of
    `min_size`; the square of sqrt(min_size * max_size); and for each aspect ratio r the box of
    `min_size` with w/h = r, then the one with w/h = 1/r. A layer with `sizes` has boxes of
    these sizes instead. A centre is at (index + 0.5) * step, or at first + index * step. Boxes are
    computed in float64 and rounded once.

    Args:
        layers: the layers, of the functions above or your own.
        image_size: side of the input, in pixels, or (width, height) of one that is no square.
        clip: False, as in the original code; True to clamp all four numbers to [0, 1], as PyTorch
            ports of SSD do; "size" to clamp only the width and height, as torchvision does.
        truncate_sizes: truncate `min_size` and `max_size` to whole pixels, as the original code
            does. This makes a difference for an input of 512 only. `sizes` stay as they are.

    Returns:
        [N, 4] float32 (cx, cy, w, h) on the CPU, whatever the default device; [0, 4] for no layers.

    Source: SSD section 2.2 and its code's PriorBox layer.

    Example:
        >>> from mdssd.priors import PriorLayer, make_priors, ssd_prior_layers
        >>> make_priors(ssd_prior_layers(300), 300).shape
        torch.Size([8732, 4])
        >>> layer = PriorLayer(size=1, step=100, min_size=50, max_size=50, aspect_ratios=())
        >>> make_priors([layer], 100)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000, 0.5000]])
    """
    boxes = [torch.empty(0, 4, dtype=torch.float64, device="cpu")]
    for layer in layers:
        sizes = layer.shapes(truncate_sizes=truncate_sizes)
        wh = torch.tensor(sizes, dtype=torch.float64, device="cpu")  # [P, 2]
        row, column = map(_centres, layer.grids)
        cy, cx = torch.meshgrid(column, row, indexing="ij")  # [H, W]
        cxcy = torch.stack((cx, cy), dim=-1)[:, :, None]  # [H, W, 1, 2]
        cells = (len(column), len(row), len(sizes), 2)
        cxcywh = torch.cat((cxcy.expand(cells), wh.expand(cells)), dim=-1)  # [H, W, P, 4]
        boxes.append(cxcywh.reshape(-1, 4))
    priors = torch.cat(boxes) / torch.tensor(width_height(image_size) * 2, device="cpu")
    if clip:
        priors[:, 2 if clip == "size" else 0 :].clamp_(0, 1)
    return priors.float()


def best_iou(boxes_xyxy: NDArray[np.floating], priors_cxcywh: Tensor) -> NDArray[np.float64]:
    """Return the greatest IoU of each box with any prior.

    The IoU of two boxes of given sizes falls with the distance of their centres in each axis. So of
    the priors of one size, whose centres are a grid, only the nearest is compared with a box.

    Args:
        boxes_xyxy: [M, 4], in the same units as the priors.
        priors_cxcywh: [N, 4], on the device to compute on.

    Returns:
        [M], computed in float32; 0 without priors.

    Example:
        >>> import numpy as np
        >>> from mdssd.priors import best_iou, make_priors, ssd_prior_layers
        >>> priors_cxcywh = make_priors(ssd_prior_layers(300), 300)
        >>> boxes_xyxy = np.array([[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.51, 0.51]])
        >>> best_iou(boxes_xyxy, priors_cxcywh).round(2)
        array([0.88, 0.01])
    """
    priors = priors_cxcywh.float()
    boxes = torch.from_numpy(np.asarray(boxes_xyxy, np.float32)).to(priors.device)
    if not len(priors):
        return np.zeros(len(boxes))
    grids = _grids(priors.cpu().numpy())
    if len(grids) > _MOST_GRIDS:  # not the priors of a network
        return _best_of_any(boxes, priors).double().cpu().numpy()
    best = priors.new_zeros(len(boxes))
    for xs, ys, size in grids:
        torch.maximum(best, _best_of_grid(boxes, xs, ys, size), out=best)
    return best.double().cpu().numpy()


def _grids(priors_cxcywh: NDArray[np.float32]) -> list[tuple[NDArray[np.float32], ...]]:
    """Return the centres, xs and ys, and the size [2] of the grids that priors [N, 4] form."""
    ordered = priors_cxcywh[np.lexsort(priors_cxcywh.T[[0, 1, 3, 2]])]
    starts = np.flatnonzero((ordered[1:, 1:] != ordered[:-1, 1:]).any(1)) + 1
    grids: dict[bytes, tuple[NDArray[np.float32], list[np.float32], NDArray[np.float32]]] = {}
    for row in np.split(ordered, starts):  # those of one size and one y
        xs, size = np.ascontiguousarray(row[:, 0]), row[0, 2:]
        grids.setdefault(size.tobytes() + xs.tobytes(), (xs, [], size))[1].append(row[0, 1])
    return [(xs, np.array(ys), size) for xs, ys, size in grids.values()]


def _best_of_any(boxes: Tensor, priors: Tensor) -> Tensor:
    """Return the greatest IoU [M] of boxes [M, 4] xyxy with priors [N, 4] cxcywh."""
    # One result that exists already: small ones between the large ones would keep the heap growing.
    best = priors.new_empty(len(boxes))
    corners = to_xyxy(priors)
    for part, chunk in zip(best.split(_CHUNK), boxes.split(_CHUNK), strict=True):
        torch.amax(ops.box_iou(chunk, corners), 1, out=part)
    return best


def _best_of_grid(
    boxes: Tensor, xs: NDArray[np.float32], ys: NDArray[np.float32], size: NDArray[np.float32]
) -> Tensor:
    """Return the greatest IoU [M] of boxes [M, 4] xyxy with priors of a size at xs and ys."""
    common = boxes.new_ones(len(boxes))
    for axis, values in enumerate((xs, ys)):
        centres = torch.from_numpy(values).to(boxes.device)
        low, high = boxes[:, axis].contiguous(), boxes[:, axis + 2].contiguous()
        middle = (low + high) / 2
        after = torch.searchsorted(centres, middle).clamp_(max=len(centres) - 1)
        before = (after - 1).clamp_(min=0)
        nearer = (middle - centres[before]).abs() <= (centres[after] - middle).abs()
        nearest = centres[torch.where(nearer, before, after)]
        half = float(size[axis]) / 2
        common *= (torch.minimum(high, nearest + half) - torch.maximum(low, nearest - half)).clamp_(
            0
        )
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + float(size.prod())
    return common / (areas - common)


def _centres(grid: Grid) -> Tensor:
    first = grid.step / 2 if grid.first is None else grid.first
    return torch.arange(grid.size, dtype=torch.float64, device="cpu") * grid.step + first


def _squares(
    image_size: InputSize, scales: str, maps: int, paper_sizes: tuple[int, int], last: int
) -> tuple[float, ...]:
    """Return min_size of each layer from conv4_3 or res3b3 on, then max_size of the last layer.

    The max_size of any other layer is the min_size of the next one.
    """
    side = mean_side(image_size)
    if image_size in paper_sizes:
        first, second = _PERCENT[scales][paper_sizes.index(image_size)]
    else:
        small, large = paper_sizes
        part = (side - small) / (large - small)
        first, second = (
            ((1 - part) * small * low + part * large * high) / side
            for low, high in zip(*_PERCENT[scales], strict=True)
        )
    step = (last - second) // (maps - 2)
    percents = (first, *(second + step * k for k in range(maps)))
    return tuple(percent * side / 100 for percent in percents)


def _vgg_layers(
    cells: Sequence[tuple[Grid, Grid]], sizes: Sequence[float]
) -> tuple[PriorLayer, ...]:
    # The lowest and the two highest maps lack the ratio 3.
    ratios = ((2,), *((2, 3),) * (len(cells) - 3), (2,), (2,))
    return tuple(
        _layer(row, column, min_size, max_size, ratio)
        for (row, column), min_size, max_size, ratio in zip(
            cells, sizes[:-1], sizes[1:], ratios, strict=True
        )
    )


def _layer(
    row: Grid, column: Grid, min_size: float, max_size: float, ratios: tuple[float, ...]
) -> PriorLayer:
    other = None if column == row else column
    return PriorLayer(row.size, row.step, min_size, max_size, ratios, row.first, column=other)
