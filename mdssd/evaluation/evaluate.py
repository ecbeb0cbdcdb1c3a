"""Running a detector over a data set and measuring what it finds."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mdssd.data import DetectionDataset, Sample
from mdssd.detection.detector import Detector
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
from mdssd.system import distributed
from mdssd.system.files import atomic_write


@dataclass(frozen=True)
class Found:
    """What a detector found in the images of a data set, and what is there, label by label.

    detections, truth: one dict per image, as `voc_ap` takes them, with the detector's labels.
    seconds: as in EvalResult.
    """

    detections: list[dict[str, NDArray[Any]]]
    truth: list[dict[str, NDArray[Any]]]
    seconds: dict[str, float]


@dataclass(frozen=True)
class EvalResult:
    """What a detector reached on a data set. `classes[k]` belongs to position k of every AP.

    `coco` is None where pycocotools is not installed. `confusion` counts detections with a score
    of `score_threshold` or more. `seconds` per stage: read (waiting for images, which are decoded
    ahead in another thread), preprocess, network, detection_output.
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

    @property
    def images_per_second(self) -> float:
        """Images divided by the time of all stages."""
        total = sum(self.seconds.values())
        return self.images / total if total else math.nan

    def table(self) -> str:
        """The result as text for a terminal."""
        voc = self.voc07
        lines = [
            f"{self.dataset}: {self.images:,} images, {voc.objects.sum():,} objects, "
            f"{voc.detections.sum():,} detections",
            "",
        ]
        heads = ["class", "objects", "detections", "VOC07 AP", "VOC12 AP"]
        columns = [self.voc07.ap, self.voc12.ap]
        means = [self.voc07.mean_ap, self.voc12.mean_ap]
        if self.coco:
            heads += ["COCO AP", "COCO AP50"]
            columns += [self.coco.ap, self.coco.ap50]
            means += [self.coco.figures["AP"], self.coco.figures["AP50"]]
        width = max(len(name) for name in ["class", "mean", *self.classes])
        lines.append("  ".join([heads[0].ljust(width), *(h.rjust(10) for h in heads[1:])]))
        for k, name in enumerate(self.classes):
            counts = [f"{voc.objects[k]:,}".rjust(10), f"{voc.detections[k]:,}".rjust(10)]
            figures = [_figure(column[k]).rjust(10) for column in columns]
            lines.append("  ".join([name.ljust(width), *counts, *figures]))
        lines.append(
            "  ".join(
                ["mean".ljust(width), " " * 10, " " * 10, *(_figure(m).rjust(10) for m in means)]
            )
        )
        absent = [name for name, n in zip(self.classes, voc.objects, strict=True) if not n]
        if absent:
            lines += ["", f"no object of: {', '.join(absent)} (left out of the mean)"]
        if voc.difficult.any():
            lines += ["", f"{voc.difficult.sum():,} difficult objects and crowds ignored"]
        lines.append("")
        if self.coco:
            f = {name: _figure(value) for name, value in self.coco.figures.items()}
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
            + ", ".join(f"{size} {_figure(value)}" for size, value in mean)
        )
        stages = ", ".join(
            f"{stage} {1000 * s / self.images:.1f} ms" for stage, s in self.seconds.items()
        )
        lines.append(f"{self.images_per_second:.1f} images/s (per image: {stages})")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The result as what JSON can hold; a figure that does not exist is None."""
        voc = self.voc07

        def by_class(values: NDArray[Any]) -> dict[str, Any]:
            return dict(zip(self.classes, map(_or_none, values.tolist()), strict=True))

        return {
            "dataset": self.dataset,
            "images": self.images,
            "classes": self.classes,
            "objects": by_class(voc.objects),
            "difficult": by_class(voc.difficult),
            "detections": by_class(voc.detections),
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
        """Write the result as JSON; `path` is replaced at once or not at all."""
        with atomic_write(path) as file:
            json.dump(self.to_dict(), file, indent=2, allow_nan=False)
            file.write("\n")


def evaluate(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    batch_size: int = 8,
    out_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    similar: Sequence[Sequence[str]] | None = None,
    score_threshold: float = 0.5,
) -> EvalResult:
    """Detect in every image of a data set and compute VOC and COCO average precision.

    Classes are matched by name: those of the data set must be among the detector's, which may
    have more. batch_size: images in the network at once. out_dir: where to write
    `evaluation.json` and `report.html`; made if missing. similar: groups of class names that are
    alike, for the breakdown of false positives (None: VOC's where all classes are VOC's).
    score_threshold: of the confusion matrix.
    Where torch.distributed has a group, all its processes call this with the same arguments. Each
    detects in its share of the batches, no image is in two, and all get the result that one
    process would; the stages' seconds are the slowest process's. The first one writes.
    Set the detector's score_threshold low (0.01): AP needs the weak detections too.
    Raises ValueError for an empty data set, one with images that have no annotation, or a class
    that the detector does not know; DataError for an image that cannot be read (an average over
    the rest would be another figure).
    """
    similar_labels(detector.classes, similar)  # an error in them should not come at the end
    found = find_all(detector, dataset, batch_size=batch_size, progress=progress)
    result = None
    if distributed.is_main():
        result = measure(
            found, dataset, detector.classes, similar=similar, score_threshold=score_threshold
        )
        if out_dir is not None:
            write_result(result, found, dataset, out_dir)
    return cast(EvalResult, distributed.from_main(result))


def find_all(
    detector: Detector, dataset: DetectionDataset, *, batch_size: int = 8, progress: bool = True
) -> Found:
    """Detect in every image of a data set; arguments and errors as for `evaluate`.

    In a group of processes the first one gets all that was found, the others nothing (no image).
    """
    if not len(dataset):
        raise ValueError(f"evaluate: dataset: expected at least one image, {dataset.name} has none")
    unknown = [name for name in dataset.classes if name not in detector.classes]
    if unknown:
        raise ValueError(
            f"evaluate: {dataset.name} has classes the detector does not know: "
            f"{', '.join(unknown)}; it knows {', '.join(detector.classes)}"
        )
    label_of = np.array([0, *(detector.classes.index(name) + 1 for name in dataset.classes)])

    before = dict(detector.timings)
    waited = 0.0
    found: list[dict[str, NDArray[Any]]] = []
    truth: list[dict[str, NDArray[Any]]] = []
    own = _own_batches(len(dataset), batch_size)
    bar = tqdm(
        total=sum(map(len, own)),
        desc="evaluate",
        unit="image",
        disable=not (progress and distributed.is_main()),
    )
    batches = _batches(dataset, own)
    with bar, closing(batches):
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - start
            if batch is None:
                break
            results = detector([sample.image for sample in batch], batch_size)
            found += [{name: value.numpy() for name, value in r.items()} for r in results]
            truth += [
                {
                    "boxes": sample.boxes_xyxy,
                    "labels": label_of[sample.labels],
                    "difficult": sample.difficult,
                    "crowd": sample.crowd,
                    "area": sample.area,
                }
                for sample in batch
            ]
            bar.update(len(batch))

    seconds = {"read": waited}
    for stage in ("preprocess", "network", "detection_output"):
        seconds[stage] = detector.timings[stage] - before[stage]
    shares = distributed.gather(Found(found, truth, seconds))
    if len(shares) == 1:
        return shares[0]
    return Found(
        [image for share in shares for image in share.detections],
        [image for share in shares for image in share.truth],
        {stage: max((share.seconds[stage] for share in shares), default=0.0) for stage in seconds},
    )


def measure(
    found: Found,
    dataset: DetectionDataset,
    classes: Sequence[str],
    *,
    similar: Sequence[Sequence[str]] | None = None,
    score_threshold: float = 0.5,
) -> EvalResult:
    """Compute every figure of what was found; classes are the detector's. See `evaluate`."""
    if not dataset.labelled:
        raise ValueError(f"evaluate: {dataset.name} has images without an annotation")
    data = found.detections, found.truth, len(classes) + 1
    try:
        coco = coco_ap(*data)
    except ImportError:
        coco = None
    return EvalResult(
        dataset.name,
        list(classes),
        len(found.truth),
        voc_ap(*data, metric="voc07"),
        voc_ap(*data, metric="voc12"),
        coco,
        size_ap(*data),
        false_positives(*data, similar=similar_labels(classes, similar)),
        confusion_matrix(*data, score_threshold=score_threshold),
        score_threshold,
        found.seconds,
    )


def write_result(
    result: EvalResult, found: Found, dataset: DetectionDataset, out_dir: str | os.PathLike[str]
) -> None:
    """Write `evaluation.json`, then `report.html`, into a folder, which is made if missing."""
    from mdssd.evaluation.report import write_report

    Path(out_dir).mkdir(parents=True, exist_ok=True)
    result.save(Path(out_dir) / "evaluation.json")
    write_report(Path(out_dir) / "report.html", result, found, dataset)


def _own_batches(images: int, batch_size: int) -> Sequence[range]:
    """This process's share of the batches of indices. They are whole: what a network gives for an
    image may depend, in the last bit, on how many go through it at once."""
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size: expected 1 or more, got {batch_size}")
    starts = range(0, images, batch_size)
    return distributed.part([range(start, min(start + batch_size, images)) for start in starts])


def _batches(
    dataset: DetectionDataset, batches: Sequence[range]
) -> Generator[list[Sample], None, None]:
    """Lists of samples in order; the next two lists are decoded while one is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future[Sample]] = deque()
        try:
            following = chain(*batches)
            for batch in batches:
                while len(waiting) < 3 * len(batches[0]):
                    index = next(following, None)
                    if index is None:
                        break
                    waiting.append(pool.submit(dataset.__getitem__, index))
                yield [waiting.popleft().result() for _ in batch]
        finally:
            for future in waiting:
                future.cancel()


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
