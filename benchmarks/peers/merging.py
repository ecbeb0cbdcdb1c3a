"""Peers of `merge_boxes` with threshold 0.5.

What each returns becomes rows [K, 6], box, score and class, by `rows`, which is not timed. Their
order differs, so it is not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.generators import Scored
from benchmarks.peers import need
from mdssd import ops

THRESHOLD = 0.5
Call = Callable[[], Any]


def rows(result: Any) -> Tensor:
    """Return [K, 6] from boxes, scores and classes, or from sahi's objects."""
    if isinstance(result, list):
        boxes = np.array([found.bbox.to_xyxy() for found in result]).reshape(-1, 4)
        scores = np.array([found.score.value for found in result])
        result = boxes, scores, np.array([found.category.id for found in result])
    boxes, scores, labels = (torch.as_tensor(part).double().cpu() for part in result)
    return torch.cat([boxes, scores[:, None], labels[:, None]], 1)


def mdssd(x: Scored, method: str, metric: str) -> Call:
    assert x.classes is not None
    # sahi merges from the threshold on, and weighted boxes fusion above it.
    threshold = THRESHOLD if method == "wbf" else ops.just_below(THRESHOLD)

    args, settings = (*x,), {"method": method, "metric": metric, "threshold": threshold}
    return lambda: ops.merge_boxes(*args, **settings)[:3]


def _sahi_name(method: str) -> str:
    return {"nms": "NMS", "greedy_nmm": "GreedyNMM", "nmm": "NMM"}[method]


def sahi(x: Scored, method: str, metric: str) -> Call:
    """Use a postprocess class, as sahi's predictions do: a list of objects in, and one out."""
    combine = need("sahi.postprocess.combine")
    prediction = need("sahi.prediction").ObjectPrediction
    assert x.classes is not None
    found = [
        prediction(bbox=box, score=score, category_id=label)
        for box, score, label in zip(
            x.boxes.tolist(), x.scores.tolist(), x.classes.tolist(), strict=True
        )
    ]
    merge = getattr(combine, f"{_sahi_name(method)}Postprocess")(
        match_threshold=THRESHOLD, match_metric=metric.upper(), class_agnostic=False
    )

    return lambda: merge(list(found))  # a copy, since merging changes the list


def sahi_groups(x: Scored, method: str, metric: str) -> Call:
    """Use the function below the class: an array in, and out which boxes belong together.

    That is less than the task, since no boxes are merged. The kept boxes are returned.
    """
    combine = need("sahi.postprocess.combine")
    assert x.classes is not None
    array = rows(x).float().numpy()
    group = getattr(combine, f"batched_{method}")

    def call() -> tuple[Tensor, ...]:
        kept = list(group(array, metric.upper(), THRESHOLD))
        return x.boxes[kept], x.scores[kept], x.classes[kept]

    return call


def ensemble_boxes(x: Scored, method: str, metric: str) -> Call:
    """Use weighted_boxes_fusion. It wants boxes from 0 to 1."""
    module = need("ensemble_boxes")
    assert x.classes is not None and method == "wbf" and metric == "iou"
    side = float(x.boxes.max())
    lists = ([(x.boxes / side).numpy()], [x.scores.numpy()], [x.classes.numpy()])

    def call() -> Tensor:
        boxes, scores, labels = module.weighted_boxes_fusion(*lists, iou_thr=THRESHOLD)
        return boxes * side, scores, labels

    return call


def torchvision(x: Scored, method: str, metric: str) -> Call:
    """Use batched_nms, and index the boxes with the indices that it returns."""
    batched_nms = need("torchvision").ops.batched_nms
    assert x.classes is not None and method == "nms" and metric == "iou"
    threshold = ops.just_below(THRESHOLD)

    def call() -> tuple[Tensor, ...]:
        kept = batched_nms(x.boxes, x.scores, x.classes, threshold)
        return x.boxes[kept], x.scores[kept], x.classes[kept]

    return call


SAHI = {"sahi": sahi, "sahi, groups only": sahi_groups}
FUSION = {"ensemble-boxes": ensemble_boxes}
PEERS = {  # by method
    "nms": {"torchvision": torchvision, **SAHI},
    "greedy_nmm": SAHI,
    "nmm": SAHI,
    "wbf": FUSION,
}
