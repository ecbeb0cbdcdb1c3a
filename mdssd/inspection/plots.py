"""Pictures of a data set: box sizes beside the priors', and samples as a network sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mdssd.data import Augmentation, DetectionDataset, TrainingSet
from mdssd.drawing import draw_detections
from mdssd.drawing.figures import save_png, shorten
from mdssd.inspection.result import IOU, DataCheck, share_reached
from mdssd.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY, _RED = "#1f5fa8", "#b4b8bd", "#c0392b"
_GAP = 8  # pixels between samples


def write_check(check: DataCheck, folder: str | os.PathLike[str]) -> list[Path]:
    """Write check.json, sizes.png and recall.png into a folder, creating it if it is missing.

    A file that cannot be written completely is not written at all. sizes.png and recall.png need
    matplotlib.

    Args:
        check: the result of `check_data`.
        folder: where to write.

    Returns:
        The paths of the three files.

    Raises:
        OSError: a file cannot be written.

    Example:
        >>> import tempfile
        >>> from mdssd.priors import make_priors, ssd_prior_layers
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.inspection.check import check_data
        >>> from mdssd.inspection.plots import write_check
        >>> priors_cxcywh = make_priors(ssd_prior_layers(300), 300)
        >>> check = check_data(SyntheticScenes(2), priors_cxcywh, 300, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in write_check(check, folder)]
        ['check.json', 'sizes.png', 'recall.png']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("check.json", "sizes.png", "recall.png")]
    with atomic_write(paths[0]) as file:
        json.dump(check.to_dict(), file, indent=1)
        file.write("\n")
    save_png(_sizes_figure(check), paths[1])
    save_png(_recall_figure(check), paths[2])
    return paths


def _empty_figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(11, height), dpi=100, layout="constrained")


def _sizes_figure(check: DataCheck) -> Figure:
    """Histograms of the sizes and shapes of boxes; lines mark those of the priors."""
    figure = _empty_figure(4.5)
    left, right = figure.subplots(1, 2)
    sides = np.array(check.prior_sides, float).reshape(-1, 2)
    unit = f"pixels of the {check.input_text} input"
    prior_sizes = np.unique(np.sqrt(sides.prod(1)).round(1))
    _histogram(left, check.size, check.iou >= IOU, prior_sizes, 8)
    left.set_xlabel(f"side of the square of a box's area, {unit}")
    _histogram(
        right, check.ratio, check.iou >= IOU, np.unique((sides[:, 0] / sides[:, 1]).round(2)), 8
    )
    right.set_xlabel("width / height in the input")
    left.legend(loc="upper right", fontsize="small")
    tiles = " in their tiles" if check.in_tiles else ""
    figure.suptitle(f"{len(check.iou):,} boxes{tiles} and the priors of {check.model}")
    return figure


def _histogram(
    axes: Axes,
    values: NDArray[np.float64],
    reached: NDArray[np.bool_],
    marks: NDArray[np.float64],
    per_octave: int,
) -> None:
    every = np.concatenate([values[values > 0], marks])
    low, high = np.floor(np.log2(every.min())), np.ceil(np.log2(every.max()))
    edges = 2.0 ** np.arange(low, high + 0.5 / per_octave, 1 / per_octave)
    axes.hist(
        [values[reached], values[~reached]],
        edges.tolist(),
        stacked=True,
        color=[_BLUE, _RED],
        label=[f"a prior of IoU {IOU} or more", "no such prior"],
    )
    for k, mark in enumerate(marks):
        axes.axvline(
            mark, color="black", linewidth=0.8, linestyle=":", label=None if k else "priors"
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylabel("boxes")
    axes.grid(alpha=0.3)


def _recall_figure(check: DataCheck) -> Figure:
    """The share of boxes that a prior reaches, by class and by size."""
    rows = max(len(check.classes), 6)
    figure = _empty_figure(1.5 + 0.32 * rows)
    left, right = figure.subplots(1, 2)
    _bars(left, list(check.by_class()), check, "class")
    _bars(right, list(check.by_size()), check, f"size in the {check.input_text} input")
    if check.fitted or check.in_tiles:
        handles, names = right.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=6, title=_marks(check))
    figure.suptitle(f"boxes that a prior of {check.model} overlaps by IoU {IOU} or more")
    return figure


def _marks(check: DataCheck) -> str:
    """What the marks in the bars are."""
    marks = ["with other priors"] if check.fitted else []
    return ", ".join([*marks, *(["whole in some tile"] if check.in_tiles else [])])


def _bars(
    axes: Axes, parts: list[tuple[str, NDArray[np.bool_]]], check: DataCheck, title: str
) -> None:
    shares = [check.recall(which) for _, which in parts]
    places = np.arange(len(parts))
    axes.barh(places, [1.0] * len(parts), color=_GREY, alpha=0.3)
    axes.barh(places, [share or 0.0 for share in shares], color=_BLUE)
    for place, share, (_, which) in zip(places, shares, parts, strict=True):
        text = "no box" if share is None else f"{share:.4f} of {which.sum():,}"
        inside = (share or 0.0) > 0.4
        left = 0.02 if inside else 0.02 + (share or 0.0)
        axes.text(left, float(place), text, va="center", color="white" if inside else "black")
    if check.fitted:
        for (name, iou), marker in zip(check.compared.items(), "v^sDo", strict=False):
            marks = [share_reached(iou[which]) if which.any() else np.nan for _, which in parts]
            axes.plot(marks, places, marker, color="black", mfc="white", clip_on=False, label=name)
    if check.in_tiles:
        marks = [
            check.in_tiles.whole[which].mean() if which.any() else np.nan for _, which in parts
        ]
        axes.plot(marks, places, "|", color=_RED, ms=16, mew=3, clip_on=False, label="whole")
    axes.set_yticks(places, [shorten(name, 24) for name, _ in parts], parse_math=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_title(title)


def contact_sheet(
    dataset: DetectionDataset,
    augmentation: Augmentation,
    count: int = 16,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Draw samples as training shows them to the network, with their boxes and class names.

    The images are chosen at random, without repetition while there are enough. Each is augmented
    as in the first epoch of a training run with this seed (an image that is repeated: as in the
    following epochs), and the mean is added back. The same arguments draw the same picture.

    Args:
        dataset: the data set.
        augmentation: the augmentation of training.
        count: the number of samples, at least 1.
        seed: the seed of both the choice and the augmentation.

    Returns:
        uint8 [H, W, 3], RGB: the samples in a grid that is about square.

    Raises:
        DataError: an image cannot be read.
        ValueError: `count` is less than 1.

    Example:
        >>> from mdssd.data import Augmentation, SyntheticScenes
        >>> from mdssd.inspection.plots import contact_sheet
        >>> contact_sheet(SyntheticScenes(2), Augmentation(300), count=4).shape
        (1208, 1208, 3)
    """
    if count < 1:
        raise ValueError(f"contact_sheet: count must be at least 1, got {count}")
    samples = TrainingSet(dataset, augmentation, seed)
    order = np.random.default_rng(seed).permutation(len(dataset))
    indices = np.resize(order, count)
    tiles = []
    for place, index in enumerate(indices.tolist()):
        samples.set_epoch(place // len(order))
        tiles.append(_tile(*samples[index], augmentation.mean, dataset.classes))
    return grid_of(tiles)


def _tile(
    image: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    mean: tuple[float, float, float],
    classes: Sequence[str],
) -> NDArray[np.uint8]:
    pixels = image.permute(1, 2, 0).numpy() + np.array(mean, np.float32)
    side = pixels.shape[0]
    shown = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return draw_detections(
        shown, boxes_xyxy * side, labels, None, classes, min_side=max(side, 600), legend=False
    )


def grid_of(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Arrange tiles of one size in a grid that is about square."""
    columns = int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    height, width = tiles[0].shape[:2]
    sheet = np.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8
    )
    for place, tile in enumerate(tiles):
        y, x = place // columns * (height + _GAP), place % columns * (width + _GAP)
        sheet[y : y + height, x : x + width] = tile
    return sheet
