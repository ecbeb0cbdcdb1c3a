"""What a data set holds, which of it a model's priors reach, and what is wrong with it."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mdssd import ops
from mdssd.data import DataError, DetectionDataset, Sample, decode_image
from mdssd.data.dataset import SPLITS, SplitLists
from mdssd.data.images import read_bytes
from mdssd.ops.matching import to_xyxy

IOU = 0.5
# Sides of squares of the same area, in input pixels; an octave each, as the priors' layers are.
SIZE_EDGES = (0.0, 8.0, 16.0, 32.0, 64.0, 128.0, float("inf"))
# Splits that must not share an image; trainval is train and val together.
_APART = {
    frozenset(pair)
    for pair in [
        *combinations(("train", "val", "test"), 2),
        *combinations(("train", "valid", "test"), 2),
        ("trainval", "test"),
    ]
}
_LISTED = 10  # lines of a kind in the text; to_dict has all
_CHUNK = 64  # boxes x 90,100 priors of mdssd512 are 23 MB
_REACH = 1.0  # pixels; VOC counts from 1, so that a box may end one beyond the image


@dataclass
class DataCheck:
    """The result of `check_data`; one entry per box in the arrays, crowds left out.

    image [M] int64: its place in `image_ids`. label [M] int64, from 1. sides [M, 2] float64: width
    and height in pixels of the network's input. iou [M] float64: the best of any prior.
    The lists hold a line each: `faults` files that cannot be used, `leaks` images in two splits,
    `duplicates` files with the same bytes, `suspicious` boxes, `unreached` boxes without a prior.
    other_recall: of all boxes, with other priors, by their name.
    """

    report: str
    model: str
    input_size: int
    classes: list[str]
    image_ids: list[str]
    empty: int
    difficult: int
    crowds: int
    prior_sides: list[tuple[float, float]]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    sides: NDArray[np.float64]
    iou: NDArray[np.float64]
    dropped: list[str]
    size_faults: list[str]
    faults: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    suspicious: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    other_recall: dict[str, float] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether a file cannot be used, or a test split holds what was trained on."""
        return bool(self.faults or self.leaks)

    @property
    def size(self) -> NDArray[np.float64]:
        """Side of the square of a box's area, in pixels of the input: [M]."""
        return np.sqrt(self.sides.prod(1))

    @property
    def ratio(self) -> NDArray[np.float64]:
        """Width over height in the input: [M]."""
        return self.sides[:, 0] / self.sides[:, 1]

    def by_class(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Each class and which boxes are of it."""
        for k, name in enumerate(self.classes, 1):
            yield name, self.label == k

    def by_size(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Each range of sizes and which boxes are of it."""
        for low, high in zip(SIZE_EDGES[:-1], SIZE_EDGES[1:], strict=True):
            name = f"from {low:g}" if high == SIZE_EDGES[-1] else f"{low:g} to {high:g}"
            yield f"{name} px", (self.size >= low) & (self.size < high)

    def recall(self, which: NDArray[np.bool_]) -> float | None:
        """Share of these boxes that some prior overlaps by 0.5; None of none."""
        return _recall(self.iou[which]) if which.any() else None

    def text(self) -> str:
        """All of it for a terminal, long lists cut short."""
        lines = [self.report, "", *self._tables(), ""]
        if len(self.ratio):
            low, middle, high = np.percentile(self.ratio, (5, 50, 95))
            lines.append(
                f"width / height in the input: {low:.2f}, {middle:.2f}, {high:.2f} "
                "(5%, median, 95%)"
            )
        for what, found in self._lists():
            lines.append(f"{what}: {len(found) or 'none'}")
            lines += [f"  {line}" for line in found[:_LISTED]]
            if len(found) > _LISTED:
                lines.append(f"  and {len(found) - _LISTED} more")
        return "\n".join(lines)

    def _tables(self) -> list[str]:
        everything = np.ones(len(self.iou), bool)
        rows = [*self.by_class(), ("all", everything), ("", everything), *self.by_size()]
        width = max(12, *(len(name) for name, _ in rows))
        head = f"boxes in {self.input_size} x {self.input_size}".ljust(width)
        lines = [f"{head}  {'boxes':>8}  {'5%':>7}  {'median':>7}  {'95%':>7}  {'recall':>7}"]
        for name, which in rows:
            if not name:
                lines.append("")
                continue
            cells = ["-"] * 4
            if (recall := self.recall(which)) is not None:
                cells = [f"{p:.1f}" for p in np.percentile(self.size[which], (5, 50, 95))]
                cells.append(f"{recall:.4f}")
            texts = [f"{which.sum():,}".rjust(8), *(cell.rjust(7) for cell in cells)]
            lines.append("  ".join([name.ljust(len(head)), *texts]))
        sizes = sorted({round(float(np.sqrt(w * h)), 1) for w, h in self.prior_sides})
        lines += ["", f"priors of {self.model}: {', '.join(f'{s:g}' for s in sizes)} px"]
        lines.append(
            f"sizes: side of the square of the same area; recall: best prior of IoU {IOU} or more"
        )
        if self.other_recall:
            others = ", ".join(f"{name} {value:.4f}" for name, value in self.other_recall.items())
            lines.append(f"recall of all boxes with other priors: {others}")
        return lines

    def _lists(self) -> list[tuple[str, list[str]]]:
        return [
            (f"boxes that no prior of {self.model} reaches", self.unreached),
            ("boxes to look at", self.suspicious),
            ("files with the same bytes", self.duplicates),
            ("images in two splits", self.leaks),
            ("files that cannot be used", self.faults),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The result as what JSON can hold; a figure that does not exist is None."""

        def part(which: NDArray[np.bool_]) -> dict[str, Any]:
            size = np.percentile(self.size[which], (5, 50, 95)).tolist() if which.any() else None
            return {"boxes": int(which.sum()), "size": size, "recall": self.recall(which)}

        everything = np.ones(len(self.iou), bool)
        ratio = np.percentile(self.ratio, (5, 50, 95)).tolist() if len(self.ratio) else None
        return {
            "images": len(self.image_ids),
            "images_without_boxes": self.empty,
            "difficult": self.difficult,
            "crowds": self.crowds,
            "model": self.model,
            "input_size": self.input_size,
            "prior_sides": self.prior_sides,
            "percentiles": [5, 50, 95],
            "all": part(everything),
            "ratio": ratio,
            "by_class": {name: part(which) for name, which in self.by_class()},
            "by_size": {name: part(which) for name, which in self.by_size()},
            "other_recall": self.other_recall,
            **{name: getattr(self, name) for name in (*_LISTS, "dropped", "size_faults")},
            "broken": self.broken,
        }


_LISTS = ("faults", "leaks", "duplicates", "suspicious", "unreached")


def check_data(
    dataset: DetectionDataset,
    priors_cxcywh: Tensor,
    input_size: int,
    *,
    model: str = "the model",
    others_cxcywh: Mapping[str, Tensor] | None = None,
    faults: Sequence[str] = (),
    tiny: float = 4.0,
    workers: int | None = None,
    progress: bool = True,
) -> DataCheck:
    """Read every image of a data set and compare its boxes with a model's priors.

    priors_cxcywh: [N, 4] in 0-1. others_cxcywh: other priors by name, for their recall.
    faults: what opening the data set found (see `open_dataset`). tiny: a box with a side of fewer
    input pixels is one to look at. workers: threads that read images; None for one per core.
    Sizes are those of the image warped to the square input, as without augmentation; boxes are
    clipped to it; crowds, which training leaves out, are only counted. An image that cannot be
    read counts among the faults, its boxes nowhere. Raises DataError where no image is left,
    ValueError where tiny is negative or NaN.
    """
    if not tiny >= 0:
        raise ValueError(f"check_data: tiny: expected a number of at least 0, got {tiny}")
    if not len(dataset):
        raise DataError(
            f"{dataset.name}: no image can be used; the first fault: {[*faults, '-'][0]}"
        )
    looks = _look_at_all(dataset, workers, progress)
    good = [i for i, look in enumerate(looks) if not isinstance(look, DataError)]
    samples = [dataset.annotation(i) for i in good]
    sizes = [look[1] for look in looks if not isinstance(look, DataError)]
    names = [_name(dataset, i) for i in good]
    boxes = [_clipped(s, size) for s, size in zip(samples, sizes, strict=True)]
    labels = [s.labels[~s.crowd] for s in samples]
    owner = np.repeat(np.arange(len(good)), [len(b) for b in boxes])
    clipped = np.concatenate([np.zeros((0, 4)), *boxes])
    scale = np.array(sizes, float)[owner]  # [M, 2]
    relative = clipped / np.hstack([scale, scale])
    result = DataCheck(
        report=dataset.report(),
        model=model,
        input_size=input_size,
        classes=dataset.classes,
        image_ids=[dataset.image_ids[i] for i in good],
        empty=sum(not len(s.labels) for s in samples),
        difficult=sum(int(s.difficult.sum()) for s in samples),
        crowds=sum(int(s.crowd.sum()) for s in samples),
        prior_sides=sorted({(w, h) for w, h in _rounded(priors_cxcywh[:, 2:] * input_size)}),
        image=owner,
        label=np.concatenate([np.zeros(0, np.int64), *labels]),
        sides=(clipped[:, 2:] - clipped[:, :2]) * input_size / scale,
        iou=best_iou(relative, priors_cxcywh),
        dropped=list(dataset.dropped),
        size_faults=list(dataset.size_faults),
    )
    if len(relative):
        for name, priors in (others_cxcywh or {}).items():
            result.other_recall[name] = _recall(best_iou(relative, priors))
    result.faults = [*faults, *(str(look) for look in looks if isinstance(look, DataError))]
    for name, sample, size in zip(names, samples, sizes, strict=True):
        result.suspicious += _suspicious(name, sample, size, dataset.classes, input_size, tiny)
    for k in np.flatnonzero(result.iou < IOU):
        width, height = result.sides[k]
        result.unreached.append(
            f"{names[owner[k]]}: {dataset.classes[result.label[k] - 1]} of {width:.1f} x "
            f"{height:.1f} px in the input, best IoU {result.iou[k]:.4f}"
        )
    digests = [look[0] for look in looks if not isinstance(look, DataError)]
    same = _groups(digests)
    result.duplicates = [", ".join(names[k] for k in group) for group in same]
    splits_of: list[set[str]] = []  # of each image
    for lists in dataset.split_lists(result.faults):
        held = {name: set(ids) for name, ids in lists.listed.items()}
        result.leaks += _compare_splits(lists, held)
        splits_of += [{name for name in held if i in held[name]} for i in lists.image_ids]
    if splits_of:
        of_good = [splits_of[i] for i in good]
        result.leaks += [line for group in same for line in _shared_files(group, of_good, names)]
    return result


def best_iou(boxes_xyxy: NDArray[np.float64], priors_cxcywh: Tensor) -> NDArray[np.float64]:
    """The IoU of each box [M, 4] with the prior that overlaps it best: [M]; 0 without priors."""
    boxes = torch.from_numpy(boxes_xyxy.astype(np.float32))
    priors = to_xyxy(priors_cxcywh.float())
    if not len(priors):
        return np.zeros(len(boxes))
    parts = [ops.box_iou(chunk, priors).amax(1) for chunk in boxes.split(_CHUNK)]
    return torch.cat([torch.zeros(0), *parts]).double().numpy()


def _recall(iou: NDArray[np.float64]) -> float:
    return float((iou >= IOU).mean())


def _look_at_all(
    dataset: DetectionDataset, workers: int | None, progress: bool
) -> list[tuple[bytes, tuple[int, int]] | DataError]:
    """Of each image a digest of its bytes and (width, height), or what is wrong with it."""

    def look(index: int) -> tuple[bytes, tuple[int, int]] | DataError:
        try:
            path = dataset.image_path(index)
            if path is None:
                image = dataset[index].image
                data = image.tobytes()
            else:
                data = read_bytes(path)
                image = decode_image(data, str(path))
        except DataError as error:
            return error
        return hashlib.blake2b(data, digest_size=16).digest(), (image.shape[1], image.shape[0])

    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        found = pool.map(look, range(len(dataset)))
        return list(tqdm(found, "images", len(dataset), disable=not progress, leave=False))
    finally:
        pool.shutdown(cancel_futures=True)


def _name(dataset: DetectionDataset, index: int) -> str:
    return str(dataset.image_path(index) or dataset.image_ids[index])


def _clipped(sample: Sample, size: tuple[int, int]) -> NDArray[np.float64]:
    boxes = sample.boxes_xyxy[~sample.crowd].astype(np.float64)
    return np.clip(boxes, 0, (*size, *size))


def _rounded(sides: Tensor) -> list[list[float]]:
    return torch.unique((sides.double() * 100).round() / 100, dim=0).tolist()


def _suspicious(
    name: str,
    sample: Sample,
    size: tuple[int, int],
    classes: Sequence[str],
    input_size: int,
    tiny: float,
) -> list[str]:
    """A line for each box that reaches beyond the image, is tiny, or is there twice."""
    lines = []
    seen: dict[tuple[float, ...], str] = {}
    for box, label, crowd in zip(sample.boxes_xyxy, sample.labels, sample.crowd, strict=True):
        x1, y1, x2, y2 = corners = tuple(box.tolist())
        what = f"{name}: {classes[label - 1]} ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
        if min(x1, y1) < -_REACH or x2 > size[0] + _REACH or y2 > size[1] + _REACH:
            lines.append(f"{what} reaches beyond the image of {size[0]} x {size[1]}")
        width, height = (x2 - x1) * input_size / size[0], (y2 - y1) * input_size / size[1]
        if min(width, height) < tiny and not crowd:
            lines.append(f"{what} is {width:.1f} x {height:.1f} px in the input")
        if corners in seen:
            lines.append(f"{what} is there twice, first as {seen[corners]}")
        seen.setdefault(corners, classes[label - 1])
    return lines


def _groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Places of what occurs more than once."""
    places = defaultdict(list)
    for place, digest in enumerate(digests):
        places[digest].append(place)
    return [group for group in places.values() if len(group) > 1]


def _compare_splits(lists: SplitLists, held: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield a line for each image that is listed in two splits that must not share one."""
    for a, b in combinations(lists.listed, 2):
        if frozenset((a, b)) in _APART:
            for image_id in lists.listed[a]:
                if image_id in held[b]:
                    yield f"{lists.folder}: {image_id} is in {a} and {b}"


def _shared_files(
    group: Sequence[int], held: Sequence[set[str]], names: Sequence[str]
) -> Iterator[str]:
    """Lines on images of the same bytes in two splits, where no single image is in both."""
    for a, b in combinations(SPLITS, 2):
        in_a, in_b = ([k for k in group if name in held[k]] for name in (a, b))
        if frozenset((a, b)) in _APART and in_a and in_b and not set(in_a) & set(in_b):
            yield f"{names[in_a[0]]} of {a} and {names[in_b[0]]} of {b} are the same file"
