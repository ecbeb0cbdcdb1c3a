"""Average precision as in the COCO challenge, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdssd.metrics.boxes import ImageBoxes, check_images

FIGURES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


@dataclass(frozen=True)
class CocoResult:
    """COCO's twelve figures, and the AP of each class. Position k is the class with label k + 1.

    Attributes:
        figures: AP (the mean over IoU 0.50, 0.55 ... 0.95), AP50, AP75, AP_small, AP_medium,
            AP_large, AR1, AR10, AR100, AR_small, AR_medium and AR_large. Small objects have an
            area below 32^2 pixels, medium ones below 96^2. NaN if there are no such objects.
        ap: [num_classes - 1]. NaN for a class without objects.
        ap50: [num_classes - 1], at an IoU of 0.5.

    Example:
        >>> from mdssd.metrics import coco_ap
        >>> result = coco_ap([{"boxes": [[0, 0, 20, 18]], "scores": [0.9], "labels": [1]}],
        ...                  [{"boxes": [[0, 0, 20, 20]], "labels": [1]}], 2)
        >>> round(result.figures["AP50"], 4), round(result.figures["AP_small"], 4)
        (1.0, 0.9)
    """

    figures: dict[str, float]
    ap: NDArray[np.float64]
    ap50: NDArray[np.float64]


def coco_ap(
    detections: Sequence[Mapping[str, Any]],
    ground_truth: Sequence[Mapping[str, Any]],
    num_classes: int,
) -> CocoResult:
    """Compute COCO's box AP and AR with pycocotools.

    At most 100 detections per image and class are used. Ties in score: earlier image, then
    earlier detection. A crowd need not be found, and detections inside it are ignored. The same
    holds for a difficult object (of VOC) and its one detection.

    Args:
        detections: boxes, scores and labels of each image; see `mdssd.metrics`.
        ground_truth: boxes and labels of each image, and optional flags. "area" decides whether
            an object is small, medium or large. COCO's own figures use the area of the mask,
            which is smaller than that of the box.
        num_classes: the number of classes including the background.

    Returns:
        The figures: 0 without detections, NaN without objects.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: an argument is not as described.

    Example:
        >>> from mdssd.metrics import coco_ap
        >>> detections = [{"boxes": [[0, 0, 20, 20]], "scores": [0.9], "labels": [1]}]
        >>> ground_truth = [{"boxes": [[0, 0, 20, 20]], "labels": [1]}]
        >>> round(coco_ap(detections, ground_truth, 2).figures["AP"], 4)
        1.0
    """
    images = check_images("coco_ap", detections, ground_truth, num_classes)
    evaluation = _evaluate(images, num_classes)
    if not images:
        nothing = np.full(num_classes - 1, np.nan)
        return CocoResult(dict.fromkeys(FIGURES, float("nan")), nothing, nothing.copy())

    # [IoU, recall, class, area, detections]: any area, 100 detections. -1 means "no objects".
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = np.where(precision < 0, np.nan, precision)
    figures = {
        name: float("nan") if value < 0 else float(value)
        for name, value in zip(FIGURES, evaluation.stats, strict=True)
    }
    return CocoResult(figures, precision.mean(axis=(0, 1)), precision[0].mean(axis=0))


def _evaluate(images: Sequence[ImageBoxes], num_classes: int) -> Any:
    """Run pycocotools silently and return its COCOeval."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(
            "coco_ap: needs pycocotools, which is not installed: pip install pycocotools"
        ) from error

    class Evaluation(COCOeval):
        def _prepare(self) -> None:
            # pycocotools sets "ignore" to "iscrowd" here, which would count difficult objects.
            super()._prepare()
            for objects in self._gts.values():
                for one in objects:
                    one["ignore"] = one["iscrowd"] or one["difficult"]

    def index(annotations: list[dict[str, Any]]) -> Any:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(1, len(images) + 1)],
            "categories": [{"id": k, "name": str(k)} for k in range(1, num_classes)],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = Evaluation(index(_objects(images)), index(_detections(images)), "bbox")
        if images:
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    return evaluation


def _objects(images: Sequence[ImageBoxes]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(images, start=1):
        for box, label, difficult, crowd, area in zip(
            _xywh(image.gt_xyxy),
            image.gt_labels.tolist(),
            image.gt_difficult.tolist(),
            image.gt_crowd.tolist(),
            image.gt_area.tolist(),
            strict=True,
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # id 0 means "no match" to pycocotools
                    "image_id": i,
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                    "difficult": int(difficult),
                }
            )
    return annotations


def _detections(images: Sequence[ImageBoxes]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(images, start=1):
        for box, label, score in zip(
            _xywh(image.boxes_xyxy), image.labels.tolist(), image.scores.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": score,
                }
            )
    return annotations


def _xywh(boxes_xyxy: NDArray[np.float64]) -> list[list[float]]:
    boxes: list[list[float]] = np.hstack(
        [boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]]
    ).tolist()
    return boxes
