"""Running a detector over a data set and measuring its detections."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mdssd.data import DataError, DetectionDataset
from mdssd.detection.detector import Detector
from mdssd.detection.reading import ImageFile, Streamed
from mdssd.evaluation.about import describe_run
from mdssd.evaluation.report import write_report
from mdssd.evaluation.result import EvalData, EvalResult, measure
from mdssd.metrics import similar_labels
from mdssd.system import distributed
from mdssd.system.files import writable_folder
from mdssd.system.progress import progress_bar
from mdssd.system.text import plural, some


def evaluate(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    batch_size: int = 8,
    out_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    similar: Sequence[Sequence[str]] | None = None,
    score_threshold: float = 0.5,
    workers: int | None = None,
    allow_faults: bool = False,
) -> EvalResult:
    """Detect in every image of a data set and compute VOC's and COCO's average precision.

    Set the detector's `score_threshold` low (0.01), as AP needs the weak detections too. The images
    are read ahead by worker processes, as in `Detector.stream`.

    In a torch.distributed group all processes call this with the same arguments. Each detects in
    its share of the batches, and all return the result that one process would; the seconds of a
    stage are those of the slowest process. The first process writes the files.

    Args:
        detector: a detector whose classes, by name, include those of the data set's objects. The
            data set may name further classes, without objects.
        dataset: a data set whose images all have annotations.
        batch_size: how many images go through the network at once.
        out_dir: where to write evaluation.json and report.html; created if it is missing.
        progress: whether to show a progress bar.
        similar: groups of similar class names, for the breakdown of false positives. None uses
            VOC's groups if all classes are VOC's.
        score_threshold: the least score of a detection in the confusion matrix.
        workers: processes that read the images, as in `Detector.stream`; None: 0 for one batch.
        allow_faults: leave out, and count, objects of classes that the detector lacks and images
            that cannot be read.

    Returns:
        An `EvalResult`; `print(result.table())` shows it.

    Raises:
        ValueError: the data set is empty, has images without an annotation, or has objects of a
            class that the detector does not know; an argument is not as described.
        DataError: an image cannot be read. (The average over the others would be a different
            figure.)
        OSError: `out_dir` cannot be written.

    Example:
        >>> import mdssd
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.evaluation.evaluate import evaluate
        >>> scenes = SyntheticScenes(2)
        >>> model = mdssd.ssd300(len(scenes.classes) + 1, width=0.0625)
        >>> detector = mdssd.Detector(model, classes=scenes.classes)
        >>> result = evaluate(detector, scenes, progress=False)
        >>> result.images, result.voc07.mean_ap < 0.1
        (2, True)
    """
    _check_early(detector, dataset, similar, score_threshold)
    if out_dir is not None and distributed.is_main():
        writable_folder(out_dir)
    data = find_all(
        detector,
        dataset,
        batch_size=batch_size,
        progress=progress,
        workers=workers,
        allow_faults=allow_faults,
    )
    result = None
    if distributed.is_main():
        result = measure(
            data,
            dataset,
            detector.classes,
            similar=similar,
            score_threshold=score_threshold,
            about=describe_run(detector, dataset),
        )
        if out_dir is not None:
            write_result(result, data, dataset, out_dir)
    return cast(EvalResult, distributed.from_main(result))


def _check_early(
    detector: Detector,
    dataset: DetectionDataset,
    similar: Sequence[Sequence[str]] | None,
    score_threshold: float,
) -> None:
    """Raise the errors that can be known before the long part."""
    similar_labels(detector.classes, similar)
    if not math.isfinite(score_threshold):
        raise ValueError(f"evaluate: score_threshold: expected a number, got {score_threshold}")
    if not dataset.labelled:
        raise ValueError(f"evaluate: {dataset.name} has images without an annotation")


def find_all(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    batch_size: int = 8,
    progress: bool = True,
    workers: int | None = None,
    allow_faults: bool = False,
    stream: Callable[..., Generator[Streamed, None, None]] | None = None,
) -> EvalData:
    """Detect in every image of a data set; arguments and errors are those of `evaluate`.

    The images need not have annotations. In a torch.distributed group the first process returns
    the data of all, the others none.

    stream: does what `detector.stream` does in another place, such as a cluster.
    """
    stream = detector.stream if stream is None else stream
    if not len(dataset):
        raise ValueError(f"evaluate: dataset: expected at least one image, {dataset.name} has none")
    left_out = _unknown_objects(detector.classes, dataset)
    if left_out and not allow_faults:
        raise ValueError(_unknown_text(left_out, detector.classes, dataset))
    indices = _own_indices(len(dataset), batch_size)
    # A data set without files makes its images here: a worker would only send them back.
    alone = len(indices) <= batch_size or dataset.image_path(0) is None
    if workers is None and alone:
        workers = 0
    detections: list[dict[str, NDArray[Any]]] = []
    truth: list[dict[str, NDArray[Any]]] = []
    failed: list[str] = []
    known = {name: label for label, name in enumerate(detector.classes, 1)}
    label_of = np.array([0, *(known.get(name, 0) for name in dataset.classes)])
    images = _images(dataset, indices, label_of, truth)
    before = dict(detector.timings)
    with (
        detector.separate_stages(),
        closing(stream(images, batch_size=batch_size, workers=workers)) as results,
        progress_bar(
            total=len(indices),
            desc="evaluate",
            unit="image",
            visible=progress and distributed.is_main(),
        ) as bar,
    ):
        for result in results:
            if result.error is not None:
                if not allow_faults:
                    raise _with_remedy(result.error)
                # The image stays in its place, without detections and without objects.
                failed.append(str(result.error))
                truth[len(detections)] = {name: v[:0] for name, v in truth[0].items()}
            detections.append({name: value.numpy() for name, value in result.found.items()})
            bar.update()
    spent = {stage: seconds - before[stage] for stage, seconds in detector.timings.items()}
    seconds = {"read": spent.pop("decode"), **spent}
    share = EvalData(detections, truth, seconds, detector.score_threshold, left_out, failed)
    return _joined(distributed.gather(share))


def write_result(
    result: EvalResult, data: EvalData, dataset: DetectionDataset, out_dir: str | os.PathLike[str]
) -> None:
    """Write evaluation.json, then report.html, into a folder, which is created if missing."""
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    result.save(Path(out_dir) / "evaluation.json")
    write_report(Path(out_dir) / "report.html", result, data, dataset)


def _unknown_objects(classes: Sequence[str], dataset: DetectionDataset) -> dict[str, int]:
    """Return the number of objects of each class that the detector lacks, if there are any."""
    unknown = [k for k, name in enumerate(dataset.classes, 1) if name not in classes]
    if not unknown:
        return {}
    counts = np.zeros(len(dataset.classes) + 1, np.int64)
    for index in range(len(dataset)):
        counts += np.bincount(dataset.annotation(index).labels, minlength=len(counts))
    return {dataset.classes[k - 1]: int(counts[k]) for k in unknown if counts[k]}


def _unknown_text(
    unknown: Mapping[str, int], classes: Sequence[str], dataset: DetectionDataset
) -> str:
    counts = some([f"{name} ({plural(count, 'object')})" for name, count in unknown.items()])
    return (
        f"evaluate: {dataset.name} has objects of classes that the checkpoint lacks: {counts}; the "
        f"checkpoint's classes are {some(classes, 20)}. Rename the classes of one side, or leave "
        "these objects out with --allow-faults (in Python: allow_faults=True)"
    )


def _with_remedy(error: DataError) -> DataError:
    return DataError(
        f"{error}; repair or remove the image, or leave it out with --allow-faults "
        "(in Python: allow_faults=True)"
    )


def _own_indices(images: int, batch_size: int) -> list[int]:
    """Return the images of this process's share, which consists of whole batches.

    In the last bit, the output for an image may depend on how many go through the network at once.
    """
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size: expected 1 or more, got {batch_size}")
    starts = distributed.part(range(0, images, batch_size))
    return [i for start in starts for i in range(start, min(start + batch_size, images))]


def _images(
    dataset: DetectionDataset,
    indices: Sequence[int],
    label_of: NDArray[np.int64],
    truth: list[dict[str, NDArray[Any]]],
) -> Iterator[ImageFile | NDArray[np.uint8]]:
    """Yield each image, as its file if it has one, and append its ground truth to `truth`.

    The ground truth has the detector's labels, as `voc_ap` takes it, without the objects of classes
    that the detector lacks.
    """
    for index in indices:
        path = dataset.image_path(index)
        sample = dataset[index] if path is None else dataset.annotation(index)
        labels = label_of[sample.labels]
        objects = {
            "boxes": sample.boxes_xyxy,
            "labels": labels,
            "difficult": sample.difficult,
            "crowd": sample.crowd,
            "area": sample.area,
        }
        truth.append({name: values[labels > 0] for name, values in objects.items()})
        if path is None:
            yield sample.image
        else:
            yield ImageFile(path, dataset.upright(index), dataset.limits)


def _joined(shares: list[EvalData]) -> EvalData:
    """Join the shares of all processes; there is none in a process other than the first."""
    if not shares:
        return EvalData([], [], {})
    return replace(
        shares[0],
        detections=[image for share in shares for image in share.detections],
        truth=[image for share in shares for image in share.truth],
        seconds={
            stage: max(share.seconds[stage] for share in shares) for stage in shares[0].seconds
        },
        failed=[line for share in shares for line in share.failed],
    )
