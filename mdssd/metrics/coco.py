"""Average precision of the COCO challenge, computed by pycocotools."""

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
    """COCO's twelve figures by name, and AP and AP50 of each class (position k: label k + 1).

    AP is the mean over IoU 0.50, 0.55 ... 0.95; small is an area below 32^2 pixels, medium below
    96^2. NaN where there is no object to find.
    """

    figures: dict[str, float]
    ap: NDArray[np.float64]  # [num_classes - 1]
    ap50: NDArray[np.float64]  # [num_classes - 1]


def coco_ap(
    detections: Sequence[Mapping[str, Any]],
    ground_truth: Sequence[Mapping[str, Any]],
    num_classes: int,
) -> CocoResult:
    """COCO's box AP and AR, with at most 100 detections per image and class.

    detections: one dict per image, "boxes" [D, 4] xyxy in pixels, "scores" [D], "labels" [D].
    ground_truth: one dict per image, "boxes" [M, 4], "labels" [M], optionally "crowd" [M],
    "difficult" [M] and "area" [M]. Labels run from 1 to num_classes - 1.
    A crowd is COCO's: it is not looked for, and what lies inside it is not counted as false. A
    difficult object (VOC) is not looked for either, and its detection is not counted.
    area: what decides small, medium or large; default width * height. (COCO's own figures use
    the area of the mask, which is smaller: pass it to compare by size.)
    Ties in score: earlier image first, then earlier detection (pycocotools' stable sort).
    Raises ImportError where pycocotools is missing, ValueError on bad shapes, labels or scores.
    """
    images = check_images("coco_ap", detections, ground_truth, num_classes)
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(
            "coco_ap: needs pycocotools, which is not installed: pip install pycocotools"
        ) from error

    class Evaluation(COCOeval):
        def _prepare(self) -> None:
            # pycocotools overwrites "ignore" with "iscrowd" here, which would lose difficult ones.
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
        evaluation = Evaluation(index(_objects(images)), index(_found(images)), "bbox")
        if images:
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    if not images:
        nothing = np.full(num_classes - 1, np.nan)
        return CocoResult(dict.fromkeys(FIGURES, float("nan")), nothing, nothing.copy())

    # [IoU, recall, class, area, detections]: any area, 100 detections; -1 is "no object".
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = np.where(precision < 0, np.nan, precision)
    figures = {
        name: float("nan") if value < 0 else float(value)
        for name, value in zip(FIGURES, evaluation.stats, strict=True)
    }
    return CocoResult(figures, precision.mean(axis=(0, 1)), precision[0].mean(axis=0))


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
                    "id": len(annotations) + 1,  # pycocotools takes id 0 for "no match"
                    "image_id": i,
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                    "difficult": int(difficult),
                }
            )
    return annotations


def _found(images: Sequence[ImageBoxes]) -> list[dict[str, Any]]:
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
