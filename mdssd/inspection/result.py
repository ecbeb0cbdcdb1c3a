"""The result of checking a data set, as an object, as text and as JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdssd.data.reasons import grouped
from mdssd.inspection.tiles import BoxesInTiles
from mdssd.priors import PriorLayer
from mdssd.priors.maps import InputSize, width_height
from mdssd.system.text import plural, printable

IOU = 0.5
# Bounds of the ranges of sizes, in pixels of the input. Each is an octave, as are prior layers.
SIZE_EDGES = (0.0, 8.0, 16.0, 32.0, 64.0, 128.0, float("inf"))
_LISTED = 10  # lines of each list in the text; the JSON has all
_WORTH_IT = 0.01  # a gain in recall that is worth another set of priors
_PERCENTILES = (5, 50, 95)
_LISTS = ("faults", "leaks", "duplicates", "suspicious", "unreached")


@dataclass
class DataCheck:
    """The result of `check_data`. The arrays have one entry per box, M boxes without crowds.

    Attributes:
        report: what `DetectionDataset.report` returned.
        model: the model's name.
        input_size: side of the network's input, in pixels, or (width, height) if it is no square.
        classes: the class names.
        image_ids: the images that could be read.
        empty: the number of images without boxes.
        difficult: the number of difficult boxes.
        crowds: the number of crowds.
        prior_sides: (width, height) of each kind of prior, in pixels of the input.
        image: int64 [M], the box's image as a position in `image_ids`.
        label: int64 [M], from 1.
        sides: float64 [M, 2], width and height in pixels of the input.
        iou: float64 [M], the greatest IoU of what is shown of the box with any prior.
        dropped: a line per box that the data set left out.
        size_faults: a line per annotation that states a different size from its image's.
        faults: a line per file that cannot be used.
        leaks: a line per image that is in two splits.
        duplicates: a line per group of files with the same bytes.
        suspicious: a line per box that may be a mistake.
        unreached: a line per box without a prior of IoU 0.5 or more.
        other_recall: the recall of all boxes with other priors, by the priors' name.
        image_sizes: how many images have each (width, height).
        splits: the number of images and of boxes of each split, by its name.
        refused: why training would refuse the boxes; empty if it would not.
        fitted: priors fitted to the boxes, a layer for each map; empty without a fit.
        compared: float64 [M] by the name of other priors: the greatest IoU of each box with them.
        in_tiles: the boxes in tiles, if images are divided; None if the network sees them whole.
        advice: lines about a better way to show the images to the network.
    """

    report: str
    model: str
    input_size: InputSize
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
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    refused: str = ""
    fitted: Sequence[PriorLayer] = ()
    compared: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    in_tiles: BoxesInTiles | None = None
    advice: list[str] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether training would refuse the data, or an image is in two splits."""
        return bool(self.faults or self.leaks or self.refused)

    @property
    def size(self) -> NDArray[np.float64]:
        """[M]: side of the square that has the box's area, in pixels of the input."""
        return np.sqrt(self.sides.prod(1))

    @property
    def input_text(self) -> str:
        """The size of the input for people: "300 x 300"."""
        return " x ".join(map(str, width_height(self.input_size)))

    @property
    def ratio(self) -> NDArray[np.float64]:
        """[M]: width divided by height in the input."""
        return self.sides[:, 0] / self.sides[:, 1]

    def by_class(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield each class name and which boxes have that class, bool [M]."""
        for label, name in enumerate(self.classes, 1):
            yield name, self.label == label

    def by_size(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield the name of each range of sizes and which boxes are in it, bool [M]."""
        for low, high in zip(SIZE_EDGES[:-1], SIZE_EDGES[1:], strict=True):
            name = f"from {low:g}" if high == SIZE_EDGES[-1] else f"{low:g} to {high:g}"
            yield f"{name} px", (self.size >= low) & (self.size < high)

    def recall(self, which: NDArray[np.bool_]) -> float | None:
        """Return the share of these boxes that some prior reaches; None if there are none."""
        return share_reached(self.iou[which]) if which.any() else None

    def text(self, root: Path | None = None) -> str:
        """Return the result for a terminal, the verdict first. Long lists are grouped.

        Args:
            root: the folder from which paths are counted. None: paths are whole.
        """
        lines = [
            self.verdict(),
            "",
            *self.report.split("\n"),
            *self._images(),
            "",
            *self._table(),
            "",
        ]
        lines += self._priors()
        lines += self.in_tiles.cut() if self.in_tiles else []
        if len(self.ratio):
            low, middle, high = np.percentile(self.ratio, _PERCENTILES)
            lines.append(
                f"width / height in the input: {low:.2f}, {middle:.2f}, {high:.2f} "
                "(5%, median, 95%)"
            )
        for title, found in (
            (f"boxes that no prior of {self.model} reaches", self.unreached),
            ("boxes that may be mistakes", self.suspicious),
            ("files with the same bytes", self.duplicates),
            ("images in two splits", self.leaks),
            ("files that cannot be used", self.faults),
        ):
            shown = found if len(found) <= _LISTED else grouped(found)
            lines.append(f"{title}: {len(found) or 'none'}")
            lines += [f"  {line}" for line in shown[:_LISTED]]
            if len(shown) > _LISTED:
                lines.append(f"  and {len(shown) - _LISTED} more reasons")
        text = "\n".join(map(printable, lines))
        if root is not None:
            for folder in map(printable, (os.path.abspath(root), os.path.relpath(root))):
                text = text.replace(f"{folder}{os.sep}", "") if folder != "." else text
        return text

    def verdict(self) -> str:
        """Return one line that says whether the data can be trained on, and what is in the way."""
        reasons = [self.refused] if self.refused else []
        if self.faults:
            more = f", {len(self.faults)} in all" if len(self.faults) > 1 else ""
            reasons.append(f"files cannot be used{more}: {grouped(self.faults)[0]}")
        if self.leaks:
            reasons.append(f"{plural(len(self.leaks), 'image')} in two splits: {self.leaks[0]}")
        if reasons:
            return f"verdict: to be repaired first. {'; '.join(reasons)}"
        looks = [
            f"{plural(len(found), noun)} {what}"
            for found, noun, what in (
                (self.dropped, "box", "left out"),
                (self.size_faults, "annotation", "with another size than the image's"),
                (self.suspicious, "line", "about boxes that may be mistakes"),
                (self.duplicates, "group", "of files with the same bytes"),
            )
            if found
        ]
        return "verdict: can be used" + (f"; to look at: {', '.join(looks)}" if looks else "")

    def _images(self) -> list[str]:
        """Return the images of each split, the sizes of images, and what the input does to them."""
        lines = [
            f"  split {name}: {plural(images, 'image')}, {plural(boxes, 'box')}"
            for name, (images, boxes) in self.splits.items()
        ]
        if not self.image_sizes:
            return lines
        (width, height), count = self.image_sizes.most_common(1)[0]
        total = self.image_sizes.total()
        sizes = f"{width} x {height}"
        if len(self.image_sizes) > 1:
            sides = np.array(list(self.image_sizes))
            (low_x, low_y), (high_x, high_y) = sides.min(0), sides.max(0)
            sizes = (
                f"widths {low_x} to {high_x}, heights {low_y} to {high_y}; most often {sizes} "
                f"({count} of {total})"
            )
        lines.append(f"  image sizes: {sizes}")
        if self.in_tiles:
            return lines + self.in_tiles.images()
        wide, high = width_height(self.input_size)
        across, down = 100 * wide / width, 100 * high / height
        if list(self.image_sizes) == [(wide, high)]:
            return [*lines, "  every image has the size of the input", *self.advice]
        lines.append(
            f"  every image is squeezed to {self.input_text}, whatever its "
            f"shape: of a {width} x {height} image, 100 x 100 px become {across:.1f} x {down:.1f}"
        )
        return lines + self.advice

    def _table(self) -> list[str]:
        """Return the boxes, sizes and recall of each class and each range of sizes."""
        every = np.ones(len(self.iou), bool)
        rows = [(printable(name), which) for name, which in self.by_class()]
        rows += [("all", every), ("", every), *self.by_size()]
        title = f"boxes in {self.input_text}"
        title = title.ljust(max(12, *(len(name) for name, _ in rows)))
        lines = [f"{title}  {'boxes':>8}  {'5%':>7}  {'median':>7}  {'95%':>7}  {'recall':>7}"]
        if self.in_tiles:
            lines[0] += f"  {'whole':>7}"
        for name, which in rows:
            if not name:
                lines.append("")
                continue
            cells = ["-"] * (5 if self.in_tiles else 4)
            if (recall := self.recall(which)) is not None:
                cells = [f"{p:.1f}" for p in np.percentile(self.size[which], _PERCENTILES)]
                cells.append(f"{recall:.4f}")
                cells += [f"{self.in_tiles.whole[which].mean():.4f}"] if self.in_tiles else []
            texts = [f"{which.sum():,}".rjust(8), *(cell.rjust(7) for cell in cells)]
            lines.append("  ".join([name.ljust(len(title)), *texts]))
        return lines

    def _priors(self) -> list[str]:
        sizes = sorted({round(float(np.sqrt(w * h)), 1) for w, h in self.prior_sides})
        lines = [
            f"priors of {self.model}: {', '.join(f'{size:g}' for size in sizes)} px",
            "size: side of the square with the same area; "
            f"recall: share of the boxes with a prior of IoU {IOU} or more",
        ]
        if self.fitted:
            lines += ["", *self._fit(), ""]
        elif self.other_recall:
            others = ", ".join(f"{name} {value:.4f}" for name, value in self.other_recall.items())
            lines.append(f"recall of all boxes with other priors: {others}")
            name, best = max(self.other_recall.items(), key=lambda item: item[1])
            own = self.recall(np.ones(len(self.iou), bool)) or 0.0
            if best > own + _WORTH_IT:
                lines.append(
                    f"--prior-scales {name} of `mdssd train` sets the priors that reach {best:.1%} "
                    f"of the boxes instead of {own:.1%}; without the option it fits the priors to "
                    "the boxes"
                )
        return lines

    def _fit(self) -> list[str]:
        """Return the boxes of each range of sizes that other and the fitted priors reach."""
        names = list(self.compared)
        width = max(7, *map(len, names))
        title = "boxes that priors reach".ljust(24)
        lines = ["  ".join([title, "boxes".rjust(8), *(name.rjust(width) for name in names)])]
        for name, which in (*self.by_size(), ("all", np.ones(len(self.iou), bool))):
            cells = [f"{which.sum():,}".rjust(8)]
            for iou in self.compared.values():
                share = f"{share_reached(iou[which]):.4f}" if which.any() else "-"
                cells.append(share.rjust(width))
            lines.append("  ".join([name.ljust(len(title)), *cells]))
        lines.append("sizes of the fitted priors, width x height in pixels of the input:")
        for layer in self.fitted:
            sizes = ", ".join(
                f"{round(width, 1):g} x {round(height, 1):g}" for width, height in layer.shapes()
            )
            row, column = layer.grids
            apart = f"{row.step:g}" + (f" x {column.step:g}" if column.step != row.step else "")
            lines.append(f"  {row.size} x {column.size} cells, {apart} px apart: {sizes}")
        return lines

    def _fit_as_dict(self) -> dict[str, Any] | None:
        if not self.fitted:
            return None
        ranges = [("all", np.ones(len(self.iou), bool)), *self.by_size()]
        return {
            "prior_scales": [[list(size) for size in layer.shapes()] for layer in self.fitted],
            "cells": [_both(*(grid.size for grid in layer.grids)) for layer in self.fitted],
            "steps": [_both(*(grid.step for grid in layer.grids)) for layer in self.fitted],
            "recall": {
                priors: {
                    name: share_reached(iou[which]) if which.any() else None
                    for name, which in ranges
                }
                for priors, iou in self.compared.items()
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it. A value that does not exist is None."""

        def part(which: NDArray[np.bool_]) -> dict[str, Any]:
            sizes = self.size[which]
            percentiles = np.percentile(sizes, _PERCENTILES).tolist() if len(sizes) else None
            return {"boxes": len(sizes), "size": percentiles, "recall": self.recall(which)}

        ratio = np.percentile(self.ratio, _PERCENTILES).tolist() if len(self.ratio) else None
        return {
            "images": len(self.image_ids),
            "images_without_boxes": self.empty,
            "difficult": self.difficult,
            "crowds": self.crowds,
            "model": self.model,
            "input_size": self.input_size,
            "prior_sides": self.prior_sides,
            "percentiles": list(_PERCENTILES),
            "all": part(np.ones(len(self.iou), bool)),
            "ratio": ratio,
            "by_class": {name: part(which) for name, which in self.by_class()},
            "by_size": {name: part(which) for name, which in self.by_size()},
            "other_recall": self.other_recall,
            "fitted_priors": self._fit_as_dict(),
            **{name: getattr(self, name) for name in (*_LISTS, "dropped", "size_faults")},
            "image_sizes": [[*size, count] for size, count in self.image_sizes.most_common()],
            "splits": {name: list(counts) for name, counts in self.splits.items()},
            "tiles": self.in_tiles and self.in_tiles.to_dict([*self.by_size(), *self.by_class()]),
            "refused": self.refused,
            "broken": self.broken,
        }


def _both(of_row: float, of_column: float) -> float | list[float]:
    """One number for both sides if they agree."""
    return of_row if of_row == of_column else [of_row, of_column]


def share_reached(iou: NDArray[np.float64]) -> float:
    """Return the share of boxes whose best IoU with a prior is 0.5 or more."""
    return float((iou >= IOU).mean())
