"""The result of an evaluation: its figures, as text and as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdssd.data import DetectionDataset
from mdssd.metrics import (
    CocoResult,
    FalsePositives,
    SizeResult,
    VocResult,
    coco_ap,
    confusion_matrix,
    false_positives,
    similar_labels,
    size_ap,
    voc_ap,
)
from mdssd.metrics.errors import KINDS
from mdssd.metrics.sizes import SIZES
from mdssd.system.files import atomic_write
from mdssd.system.text import plural, printable, some


@dataclass(frozen=True)
class EvalData:
    """The detections in the images of a data set, and their ground truth.

    Attributes:
        detections, truth: one dict per image, as `voc_ap` takes them, with the detector's labels.
        seconds: as in `EvalResult`.
        lowest_score: the least score that the detector returns.
        left_out: the number of objects that are left out because the detector lacks their class,
            by class.
        failed: one line per image that cannot be read. It has neither detections nor objects.
    """

    detections: list[dict[str, NDArray[Any]]]
    truth: list[dict[str, NDArray[Any]]]
    seconds: dict[str, float]
    lowest_score: float = 0.0
    left_out: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvalResult:
    """The figures of a detector on a data set.

    Attributes:
        dataset: the name of the data set.
        classes: the detector's; `classes[k]` belongs to position k of every array by class.
        images: the number of images.
        voc07, voc12, coco, sizes, errors: see `mdssd.metrics`. `coco` is None if pycocotools is
            not installed.
        confusion: the confusion matrix of the detections with a score of `score_threshold` or more.
        score_threshold: see `confusion`.
        seconds: time per stage: read (waiting for the images, which worker processes read ahead),
            preprocess, network, detection_output.
        shown: the number of detections with a score of `score_threshold` or more.
        lowest_score, left_out, failed: see `EvalData`.
        about: what was measured with what; see `describe_run`.

    Example:
        >>> import numpy as np
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.evaluation.result import EvalData, measure
        >>> scenes = SyntheticScenes(1)
        >>> truth = scenes.annotation(0)
        >>> objects = {"boxes": truth.boxes_xyxy, "labels": truth.labels}
        >>> found = objects | {"scores": np.ones(len(truth.labels))}
        >>> data = EvalData(detections=[found], truth=[objects], seconds={})
        >>> result = measure(data, scenes, scenes.classes)
        >>> result.headline("VOC07 mAP")
        1.0
        >>> result.to_dict()["images"]
        1
    """

    dataset: str
    classes: list[str]
    images: int
    voc07: VocResult
    voc12: VocResult
    coco: CocoResult | None
    sizes: SizeResult
    errors: FalsePositives
    confusion: NDArray[np.int64]
    score_threshold: float = 0.5
    seconds: dict[str, float] = field(default_factory=dict)
    shown: int = 0
    lowest_score: float = 0.0
    left_out: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """The number of images divided by the time of all stages; NaN if no time was measured."""
        total = sum(self.seconds.values())
        return self.images / total if total else math.nan

    def headline(self, metric: str) -> float:
        """Return the figure by which training chooses its best checkpoint.

        Args:
            metric: "VOC07 mAP" or "COCO AP".

        Returns:
            The figure, from 0 to 1; 0.0 if it is undefined because there are no objects.

        Raises:
            ImportError: the figure is COCO's, and pycocotools is not installed.
        """
        if metric == "VOC07 mAP":
            value = float(self.voc07.mean_ap)
        elif self.coco is not None:
            value = float(self.coco.figures["AP"])
        else:
            raise ImportError(f"train: {metric} of {self.dataset} needs pycocotools")
        return value if math.isfinite(value) else 0.0

    def summary(self) -> list[str]:
        """Return sentences about what was counted and what was left out."""
        voc = self.voc07
        lines = [
            f"{plural(self.images, 'image')}, {plural(voc.objects.sum(), 'object')}",
            f"{plural(voc.detections.sum(), 'detection')} with a score of {self.lowest_score:g} or "
            f"more, which AP takes into account; {self.shown:,} with {self.score_threshold:g} or "
            "more",
        ]
        if voc.difficult.any():
            lines.append(f"{voc.difficult.sum():,} difficult objects and crowds are not counted")
        if self.left_out:
            names = [f"{name} ({count:,})" for name, count in self.left_out.items()]
            lines.append(
                f"{plural(sum(self.left_out.values()), 'object')} left out, because the checkpoint "
                f"lacks their classes: {some(names)}"
            )
        if self.failed:
            lines.append(f"{plural(len(self.failed), 'unreadable image')} left out")
        without = [name for name, n in zip(self.classes, voc.objects, strict=True) if not n]
        if without:
            found = voc.detections[voc.objects == 0].sum()
            lines.append(
                f"no object of {some(without)}; not measured, and left out of the means "
                f"({plural(found, 'detection')})"
            )
        return lines

    def table(self) -> str:
        """Return the result as text for a terminal, with the classes that have objects."""
        voc = self.voc07
        first, *others = self.summary()
        lines = [f"{self.dataset}: {first}", *others, ""]
        heads = ["class", "objects", "detections", "VOC07 AP", "VOC12 AP"]
        columns = [self.voc07.ap, self.voc12.ap]
        means = [self.voc07.mean_ap, self.voc12.mean_ap]
        if self.coco:
            heads += ["COCO AP", "COCO AP50"]
            columns += [self.coco.ap, self.coco.ap50]
            means += [self.coco.figures["AP"], self.coco.figures["AP50"]]
        rows = [(k, printable(name)) for k, name in enumerate(self.classes) if voc.objects[k]]
        width = max(len(name) for name in ["class", "mean", *(name for _, name in rows)])
        lines.append("  ".join([heads[0].ljust(width), *(h.rjust(10) for h in heads[1:])]))
        for k, name in rows:
            counts = [f"{voc.objects[k]:,}".rjust(10), f"{voc.detections[k]:,}".rjust(10)]
            figures = [figure_text(column[k]).rjust(10) for column in columns]
            lines.append("  ".join([name.ljust(width), *counts, *figures]))
        lines.append(
            "  ".join(
                [
                    "mean".ljust(width),
                    " " * 10,
                    " " * 10,
                    *(figure_text(m).rjust(10) for m in means),
                ]
            )
        )
        lines.append("")
        if self.coco:
            f = {name: figure_text(value) for name, value in self.coco.figures.items()}
            lines += [
                f"COCO AP {f['AP']}, AP50 {f['AP50']}, AP75 {f['AP75']}; by size: "
                f"small {f['AP_small']}, medium {f['AP_medium']}, large {f['AP_large']}",
                f"COCO AR with 1 detection {f['AR1']}, 10 {f['AR10']}, 100 {f['AR100']}; by size: "
                f"small {f['AR_small']}, medium {f['AR_medium']}, large {f['AR_large']}",
            ]
        else:
            lines.append("COCO figures left out: pycocotools is not installed")
        mean = zip(SIZES, self.sizes.mean_normalized_ap.tolist(), strict=True)
        lines.append(
            "normalised AP by size within the class: "
            + ", ".join(f"{size} {figure_text(value)}" for size, value in mean)
        )
        stages = ", ".join(
            f"{stage} {1000 * s / max(self.images, 1):.1f} ms" for stage, s in self.seconds.items()
        )
        lines.append(f"{self.images_per_second:.1f} images/s (per image: {stages})")
        return "\n".join(map(printable, lines))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it; a figure that does not exist is None."""
        voc = self.voc07

        def by_class(values: NDArray[Any]) -> dict[str, Any]:
            return dict(zip(self.classes, map(_or_none, values.tolist()), strict=True))

        return {
            "dataset": self.dataset,
            "about": self.about,
            "images": self.images,
            "left_out": {"objects": self.left_out, "images": self.failed},
            "classes": self.classes,
            "objects": by_class(voc.objects),
            "difficult": by_class(voc.difficult),
            "detections": by_class(voc.detections),
            "lowest_score": self.lowest_score,
            "detections_shown": self.shown,
            "voc07": {"mAP": _or_none(voc.mean_ap), "AP": by_class(voc.ap)},
            "voc12": {"mAP": _or_none(self.voc12.mean_ap), "AP": by_class(self.voc12.ap)},
            "coco": self.coco
            and {
                **{name: _or_none(value) for name, value in self.coco.figures.items()},
                "AP_by_class": by_class(self.coco.ap),
                "AP50_by_class": by_class(self.coco.ap50),
            },
            "sizes": self._sizes_to_dict(),
            "false_positives": {
                name: dict(zip(("true", *KINDS), row, strict=True))
                for name, row in zip(self.classes, self.errors.counts().tolist(), strict=True)
            },
            "confusion": {
                "score_threshold": self.score_threshold,
                "labels": ["background", *self.classes],
                "matrix": self.confusion.tolist(),
            },
            "seconds": self.seconds,
            "images_per_second": _or_none(self.images_per_second),
        }

    def _sizes_to_dict(self) -> dict[str, Any]:
        sizes = self.sizes

        def by_size(values: NDArray[Any]) -> dict[str, Any]:
            return dict(zip(SIZES, map(_or_none, values.tolist()), strict=True))

        def by_class(values: NDArray[Any]) -> dict[str, Any]:
            return dict(zip(self.classes, map(by_size, values), strict=True))

        return {
            "mAP": by_size(sizes.mean_ap),
            "normalized_mAP": by_size(sizes.mean_normalized_ap),
            "AP": by_class(sizes.ap),
            "normalized_AP": by_class(sizes.normalized_ap),
            "objects": by_class(sizes.objects),
            "greatest_area": {
                name: dict(zip(SIZES[:-1], map(_or_none, row), strict=True))
                for name, row in zip(self.classes, sizes.limits.tolist(), strict=True)
            },
            "normal_objects": sizes.normal_objects,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON. `path` is replaced at once or not at all."""
        with atomic_write(path) as file:
            json.dump(self.to_dict(), file, indent=2, allow_nan=False)
            file.write("\n")


def measure(
    data: EvalData,
    dataset: DetectionDataset,
    classes: Sequence[str],
    *,
    similar: Sequence[Sequence[str]] | None = None,
    score_threshold: float = 0.5,
    about: dict[str, Any] | None = None,
) -> EvalResult:
    """Compute every figure of an evaluation.

    Args:
        data: the detections and the ground truth, from `find_all`.
        dataset: the data set that they belong to.
        classes: the detector's class names.
        similar, score_threshold: as in `evaluate`.
        about: what was measured with what, from `describe_run`.

    Raises:
        ValueError: the data set has images without an annotation.
    """
    if not dataset.labelled:
        raise ValueError(f"evaluate: {dataset.name} has images without an annotation")
    arrays = data.detections, data.truth, len(classes) + 1
    try:
        coco = coco_ap(*arrays)
    except ImportError:
        coco = None
    return EvalResult(
        dataset.name,
        list(classes),
        len(data.truth) - len(data.failed),
        voc_ap(*arrays, metric="voc07"),
        voc_ap(*arrays, metric="voc12"),
        coco,
        size_ap(*arrays),
        false_positives(*arrays, similar=similar_labels(classes, similar)),
        confusion_matrix(*arrays, score_threshold=score_threshold),
        score_threshold,
        data.seconds,
        sum(int((np.asarray(one["scores"]) >= score_threshold).sum()) for one in data.detections),
        data.lowest_score,
        data.left_out,
        data.failed,
        about or {},
    )


def figure_text(value: float) -> str:
    """Return a figure with four digits, or "-" if it does not exist."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
