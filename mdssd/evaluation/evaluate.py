"""Running a detector over a data set and measuring its detections."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mdssd.data import DetectionDataset
from mdssd.detection.detector import Detector
from mdssd.evaluation.report import write_report
from mdssd.evaluation.result import EvalData, EvalResult, measure
from mdssd.metrics import similar_labels
from mdssd.system import distributed
from mdssd.system.progress import progress_bar


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
    """Detect in every image of a data set and compute VOC's and COCO's average precision.

    Set the detector's `score_threshold` low (0.01), as AP needs the weak detections too. The images
    are read ahead by worker processes, as in `Detector.stream`.

    In a torch.distributed group all processes call this with the same arguments. Each detects in
    its share of the batches, and all return the result that one process would; the seconds of a
    stage are those of the slowest process. The first process writes the files.

    Args:
        detector: a detector whose classes include those of the data set, by name.
        dataset: a data set whose images all have annotations.
        batch_size: how many images go through the network at once.
        out_dir: where to write evaluation.json and report.html; created if it is missing.
        progress: whether to show a progress bar.
        similar: groups of similar class names, for the breakdown of false positives. None uses
            VOC's groups if all classes are VOC's.
        score_threshold: the least score of a detection in the confusion matrix.

    Returns:
        An `EvalResult`; `print(result.table())` shows it.

    Raises:
        ValueError: the data set is empty, has images without an annotation, or has a class that
            the detector does not know.
        DataError: an image cannot be read. (The average over the others would be a different
            figure.)

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
    similar_labels(detector.classes, similar)  # its errors should not come after the long part
    data = find_all(detector, dataset, batch_size=batch_size, progress=progress)
    result = None
    if distributed.is_main():
        result = measure(
            data, dataset, detector.classes, similar=similar, score_threshold=score_threshold
        )
        if out_dir is not None:
            write_result(result, data, dataset, out_dir)
    return cast(EvalResult, distributed.from_main(result))


def find_all(
    detector: Detector, dataset: DetectionDataset, *, batch_size: int = 8, progress: bool = True
) -> EvalData:
    """Detect in every image of a data set; arguments and errors are those of `evaluate`.

    In a torch.distributed group the first process returns the data of all, the others none.
    """
    if not len(dataset):
        raise ValueError(f"evaluate: dataset: expected at least one image, {dataset.name} has none")
    unknown = [name for name in dataset.classes if name not in detector.classes]
    if unknown:
        raise ValueError(
            f"evaluate: {dataset.name} has classes the detector does not know: "
            f"{', '.join(unknown)}; it knows {', '.join(detector.classes)}"
        )
    indices = _own_indices(len(dataset), batch_size)
    # A data set without files makes its images here: a worker would only send them back.
    alone = len(indices) <= batch_size or dataset.image_path(0) is None
    workers = 0 if alone else None
    detections: list[dict[str, NDArray[Any]]] = []
    truth: list[dict[str, NDArray[Any]]] = []
    label_of = np.array([0, *(detector.classes.index(name) + 1 for name in dataset.classes)])
    images = _images(dataset, indices, label_of, truth)
    before = dict(detector.timings)
    with (
        detector.separate_stages(),
        closing(detector.stream(images, batch_size=batch_size, workers=workers)) as results,
        progress_bar(
            total=len(indices),
            desc="evaluate",
            unit="image",
            visible=progress and distributed.is_main(),
        ) as bar,
    ):
        for result in results:
            if result.error is not None:
                raise result.error
            detections.append({name: value.numpy() for name, value in result.found.items()})
            bar.update()
    spent = {stage: seconds - before[stage] for stage, seconds in detector.timings.items()}
    seconds = {"read": spent.pop("decode"), **spent}
    return _joined(distributed.gather(EvalData(detections, truth, seconds)))


def write_result(
    result: EvalResult, data: EvalData, dataset: DetectionDataset, out_dir: str | os.PathLike[str]
) -> None:
    """Write evaluation.json, then report.html, into a folder, which is created if missing."""
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    result.save(Path(out_dir) / "evaluation.json")
    write_report(Path(out_dir) / "report.html", result, data, dataset)


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
) -> Iterator[Path | NDArray[np.uint8]]:
    """Yield each image, as its path if it has one, and append its ground truth to `truth`.

    The ground truth has the detector's labels, as `voc_ap` takes it.
    """
    for index in indices:
        path = dataset.image_path(index)
        sample = dataset[index] if path is None else dataset.annotation(index)
        truth.append(
            {
                "boxes": sample.boxes_xyxy,
                "labels": label_of[sample.labels],
                "difficult": sample.difficult,
                "crowd": sample.crowd,
                "area": sample.area,
            }
        )
        yield sample.image if path is None else path


def _joined(shares: list[EvalData]) -> EvalData:
    """Join the shares of all processes."""
    return EvalData(
        [image for share in shares for image in share.detections],
        [image for share in shares for image in share.truth],
        {
            stage: max(share.seconds[stage] for share in shares)
            for stage in (shares[0].seconds if shares else ())
        },
    )
