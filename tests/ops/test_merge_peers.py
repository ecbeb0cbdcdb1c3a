"""`merge_boxes` beside the packages whose rules it follows, where they are installed.

sahi compares by "at least", hence `just_below`. Its boxes here have whole numbers, so that areas
are exact, and distinct scores: of equal ones, sahi's nmm merges none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mdssd import ops

CLASSES = 3
POSTPROCESS = {
    "nms": "NMSPostprocess",
    "greedy_nmm": "GreedyNMMPostprocess",
    "nmm": "NMMPostprocess",
}


def inputs(seed: int, count: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes in pixels, distinct scores and labels."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, side, (count, 2), generator=generator)
    size = torch.randint(1, 40, (count, 2), generator=generator)
    scores = (torch.randperm(count, generator=generator) + 1) / (count + 1)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return torch.cat([corner, corner + size], 1).float(), scores, labels


def rows(boxes: Any, scores: Any, labels: Any) -> Tensor:
    """Return rows [K, 6] in one order, whatever the order of the results."""
    parts = (boxes, scores[:, None], labels[:, None])
    joined = torch.cat([torch.as_tensor(np.asarray(part)).double() for part in parts], 1)
    return joined[np.lexsort(joined.round(decimals=4).T.numpy())]


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("metric", ["iou", "ios"])
@pytest.mark.parametrize("method", POSTPROCESS)
@pytest.mark.parametrize(("count", "side"), [(300, 120), (300, 500), (2500, 900)])
def test_as_sahi(method: str, metric: str, threshold: float, count: int, side: int) -> None:
    combine = pytest.importorskip("sahi.postprocess.combine", reason="sahi is not installed")
    prediction = pytest.importorskip("sahi.prediction").ObjectPrediction
    boxes, scores, labels = inputs(count + side, count, side)
    for per_class in (True, False):
        merge = getattr(combine, POSTPROCESS[method])(
            match_threshold=threshold, match_metric=metric.upper(), class_agnostic=not per_class
        )
        found = merge(
            [
                prediction(bbox=box, score=score, category_id=label)
                for box, score, label in zip(
                    boxes.tolist(), scores.tolist(), labels.tolist(), strict=True
                )
            ]
        )
        want = rows(
            np.array([f.bbox.to_xyxy() for f in found]),
            np.array([f.score.value for f in found]),
            np.array([f.category.id for f in found]),
        )
        got = ops.merge_boxes(
            boxes,
            scores,
            labels,
            method=method,
            metric=metric,
            threshold=ops.just_below(threshold),
            per_class=per_class,
        )
        torch.testing.assert_close(rows(*got[:3]), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.55])
@pytest.mark.parametrize("models", [1, 2, 3])
def test_as_ensemble_boxes(models: int, threshold: float) -> None:
    ensemble = pytest.importorskip("ensemble_boxes", reason="ensemble-boxes is not installed")
    boxes, scores, labels = inputs(models, 600, 200)
    # No two overlaps, and none and the threshold, are so close that rounding decides.
    boxes = (boxes + torch.rand(600, 4, generator=torch.Generator().manual_seed(models))) / 250
    boxes = boxes.double()
    split = [part.chunk(models) for part in (boxes, scores.double(), labels)]
    want = ensemble.weighted_boxes_fusion(
        *([part.numpy() for part in parts] for parts in split), iou_thr=threshold
    )
    got = ops.merge_boxes(
        boxes, scores.double(), labels, method="wbf", threshold=threshold, models=models
    )
    # ensemble-boxes adds up in float32.
    torch.testing.assert_close(rows(*got[:3]), rows(*want), rtol=1e-5, atol=1e-6)
