"""Checking a data set: reading every image, and comparing its boxes with a model's priors."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdssd.data import DataError, DetectionDataset, Sample, decode_image
from mdssd.data.faults import left_out, nothing_to_learn
from mdssd.data.images import read_bytes
from mdssd.data.opened import raster_of
from mdssd.data.reasons import grouped
from mdssd.data.sample import NO_IMAGE
from mdssd.data.tiled_boxes import best_windows, in_windows, shown_whole
from mdssd.data.tiles import Tiling
from mdssd.inspection.leaks import count_splits, find_leaks, same_files
from mdssd.inspection.result import IOU, DataCheck, share_reached
from mdssd.inspection.tiles import BoxesInTiles, advice
from mdssd.priors import PriorLayer, best_iou, make_priors
from mdssd.priors.maps import InputSize, width_height
from mdssd.system.files import open_regular
from mdssd.system.progress import progress_bar

_PART = 16  # images that a thread reads at a time
_BYTES = 1 << 20  # of a file too large to be read as a whole that are read at once
_MARGIN = 1.0  # pixels: VOC counts from 1, so a box may end one pixel beyond the image


@dataclass
class _Checked:
    """An image that could be read. size: (width, height)."""

    index: int
    name: str
    digest: bytes
    size: tuple[int, int]
    sample: Sample


def check_data(
    dataset: DetectionDataset,
    priors_cxcywh: Tensor,
    input_size: InputSize,
    *,
    model: str = "the model",
    others_cxcywh: Mapping[str, Tensor] | None = None,
    fitted: Sequence[PriorLayer] = (),
    tiling: Tiling | None = None,
    faults: Sequence[str] = (),
    tiny: float = 4.0,
    workers: int | None = None,
    progress: bool = True,
) -> DataCheck:
    """Read every image of a data set, and compare its boxes with a model's priors.

    Sizes are those in the image warped to the input, without augmentation. Boxes are clipped to the
    image. Crowds, which training leaves out, are only counted.

    With tiles, sizes are those in the tile that shows the most of the object, and what this tile
    shows of it is compared with the priors.

    Args:
        dataset: the data set.
        priors_cxcywh: [N, 4] in 0-1.
        input_size: side of the network's input, in pixels, or (width, height) if it is no square.
        model: the model's name in the result.
        others_cxcywh: other priors by their name, to compare their recall.
        fitted: priors fitted to the boxes, a layer for each map, to compare with the others for
            each range of sizes.
        tiling: how images are divided. None: the network sees the whole image.
        faults: the faults that opening the data set found; see `open_dataset`.
        tiny: a box with a shorter side, in pixels of the input, may be a mistake.
        workers: the number of threads that read images. None: one per core.
        progress: whether to show a progress bar.

    Returns:
        The result. An image that cannot be read is among its faults; its boxes are not counted.

    Raises:
        DataError: no image can be used.
        ValueError: `tiny` is negative or NaN.

    Example:
        >>> import torch
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.inspection.check import check_data
        >>> priors_cxcywh = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
        >>> result = check_data(SyntheticScenes(2), priors_cxcywh, 300, progress=False)
        >>> result.broken, len(result.image_ids), result.prior_sides
        (False, 2, [(30.0, 30.0)])
    """
    if not tiny >= 0:
        raise ValueError(f"check_data: tiny: expected a number of at least 0, got {tiny}")
    if not len(dataset):
        reasons = "; ".join(grouped(faults)) or "-"
        raise DataError(f"{dataset.name}: no image can be used; the first fault: {reasons}")
    images, unread = _read_all(dataset, workers, progress)
    others = dict(others_cxcywh or {})
    if fitted:
        others["fitted"] = make_priors(fitted, input_size)
    result = _measure(dataset, images, priors_cxcywh, input_size, model, others, tiling)
    result.fitted = fitted
    names = [image.name for image in images]
    result.faults = [*faults, *unread]
    result.suspicious = [
        line
        for image in images
        for line in _suspicious(image, dataset.classes, input_size, tiny, tiling)
    ]
    result.unreached = _unreached(result, names)
    groups = same_files([image.digest for image in images])
    result.duplicates = [", ".join(names[k] for k in group) for group in groups]
    indices = [image.index for image in images]
    lists = dataset.split_lists(result.faults)
    result.leaks = find_leaks(lists, indices, names, groups)
    result.splits = count_splits(lists, indices, [len(image.sample.labels) for image in images])
    result.refused = left_out(dataset) or nothing_to_learn(dataset)
    return result


def _read_all(
    dataset: DetectionDataset, workers: int | None, progress: bool
) -> tuple[list[_Checked], list[str]]:
    """Read all images. Return those that can be used, and a line about each of the others."""

    def read(index: int) -> _Checked | DataError:
        try:
            return _read(dataset, index)
        except DataError as error:
            return error

    def read_part(first: int) -> list[_Checked | DataError]:
        return [read(index) for index in range(first, min(first + _PART, len(dataset)))]

    everything: list[_Checked | DataError] = []
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    bar = progress_bar(desc="images", total=len(dataset), visible=progress, leave=False)
    try:
        with bar:
            for part in pool.map(read_part, range(0, len(dataset), _PART)):
                everything += part
                bar.update(len(part))
    finally:
        pool.shutdown(cancel_futures=True)
    images = [each for each in everything if isinstance(each, _Checked)]
    return images, [str(each) for each in everything if isinstance(each, DataError)]


def _read(dataset: DetectionDataset, index: int) -> _Checked:
    path, raster = dataset.image_path(index), raster_of(dataset, index)
    name, digest = str(path or dataset.image_ids[index]), hashlib.blake2b(digest_size=16)
    shape: tuple[int, ...]
    if path is None:
        sample = dataset[index]
        shape = sample.image.shape
        digest.update(sample.image.tobytes())
        sample = replace(sample, image=NO_IMAGE)
    elif raster is None:
        sample, data = dataset.annotation(index), read_bytes(path, dataset.limits)
        digest.update(data)
        upright, limits = dataset.upright(index), dataset.limits
        shape = decode_image(data, name, upright=upright, limits=limits).shape
    else:
        sample, shape = dataset.annotation(index), raster.shape
        with raster, open_regular(path) as file:
            raster.check()
            while data := file.read(_BYTES):
                digest.update(data)
    return _Checked(index, name, digest.digest(), (shape[1], shape[0]), sample)


def _measure(
    dataset: DetectionDataset,
    images: Sequence[_Checked],
    priors_cxcywh: Tensor,
    input_size: InputSize,
    model: str,
    others_cxcywh: Mapping[str, Tensor],
    tiling: Tiling | None,
) -> DataCheck:
    """Return the figures of the images' boxes, and empty lists."""
    samples = [image.sample for image in images]
    boxes = [_clipped(image) for image in images]
    owner = np.repeat(np.arange(len(images)), [len(each) for each in boxes])
    boxes_xyxy = np.concatenate([np.zeros((0, 4)), *boxes])
    windows = [best_windows(b, i.size, tiling) for b, i in zip(boxes, images, strict=True)]
    windows_xyxy = np.concatenate([np.zeros((0, 4)), *windows])
    relative_xyxy = in_windows(boxes_xyxy, windows_xyxy)
    own_sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    size = width_height(input_size)
    prior_sides = (priors_cxcywh[:, 2:] * priors_cxcywh.new_tensor(size)).double()
    rounded = torch.unique((prior_sides * 100).round() / 100, dim=0).tolist()
    others = others_cxcywh.items() if len(boxes_xyxy) else ()
    compared = {name: best_iou(relative_xyxy, priors) for name, priors in others}
    result = DataCheck(
        report=dataset.report(),
        model=model,
        input_size=input_size,
        classes=dataset.classes,
        image_ids=[dataset.image_ids[image.index] for image in images],
        empty=sum(not len(sample.labels) for sample in samples),
        difficult=sum(int(sample.difficult.sum()) for sample in samples),
        crowds=sum(int(sample.crowd.sum()) for sample in samples),
        prior_sides=sorted((width, height) for width, height in rounded),
        image=owner,
        label=np.concatenate([np.zeros(0, np.int64), *(s.labels[~s.crowd] for s in samples)]),
        sides=own_sides * size / (windows_xyxy[:, 2:] - windows_xyxy[:, :2]),
        iou=best_iou(relative_xyxy, priors_cxcywh),
        dropped=list(dataset.dropped),
        size_faults=list(dataset.size_faults),
        image_sizes=Counter(image.size for image in images),
        other_recall={name: share_reached(iou) for name, iou in compared.items()},
        compared=compared,
    )
    if tiling is None:
        result.advice = advice(result.size, own_sides)
    else:
        extent = np.array([image.size for image in images], float).reshape(-1, 2)[owner]
        whole = shown_whole(boxes_xyxy, windows_xyxy)
        result.in_tiles = BoxesInTiles(
            tiling, input_size, result.image_sizes, own_sides, extent, result.size, whole
        )
    return result


def _unreached(result: DataCheck, names: Sequence[str]) -> list[str]:
    return [
        f"{names[result.image[k]]}: {result.classes[result.label[k] - 1]} of "
        f"{result.sides[k, 0]:.1f} x {result.sides[k, 1]:.1f} px in the input, "
        f"best IoU {result.iou[k]:.4f}"
        for k in np.flatnonzero(result.iou < IOU)
    ]


def _clipped(image: _Checked) -> NDArray[np.float64]:
    boxes_xyxy = image.sample.boxes_xyxy[~image.sample.crowd].astype(np.float64)
    return np.clip(boxes_xyxy, 0, (*image.size, *image.size))


def _suspicious(
    image: _Checked,
    classes: Sequence[str],
    input_size: InputSize,
    tiny: float,
    tiling: Tiling | None,
) -> list[str]:
    """Return a line for each box that reaches beyond the image, is tiny, or occurs twice."""
    lines = []
    across, down = width_height(input_size)
    first_class: dict[tuple[float, ...], str] = {}
    sample, size = image.sample, image.size
    seen = (tiling.width, tiling.height) if tiling else size
    arrays = (sample.boxes_xyxy, sample.labels, sample.crowd)
    for box, label, crowd in zip(*(array.tolist() for array in arrays), strict=True):
        x1, y1, x2, y2 = corners = tuple(box)
        reasons = []
        if min(x1, y1) < -_MARGIN or x2 > size[0] + _MARGIN or y2 > size[1] + _MARGIN:
            reasons.append(f"reaches beyond the image of {size[0]} x {size[1]}")
        width, height = (x2 - x1) * across / seen[0], (y2 - y1) * down / seen[1]
        if min(width, height) < tiny and not crowd:
            reasons.append(f"is {width:.1f} x {height:.1f} px in the input")
        if not crowd:  # a region without a class is a crowd of each class
            if corners in first_class:
                reasons.append(f"occurs twice, first as {first_class[corners]}")
            first_class.setdefault(corners, classes[label - 1])
        if reasons:
            where = f"{image.name}: {classes[label - 1]} ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
            lines += [f"{where} {reason}" for reason in reasons]
    return lines
