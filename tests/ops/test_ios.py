"""`metric="ios"` of the operators that suppress: results by hand and by a plain definition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mdssd import ops

# The whole object, the part of it that a tile saw, and another object beside them.
BOXES = torch.tensor([[0.0, 0.0, 40.0, 10.0], [30.0, 0.0, 40.0, 10.0], [50.0, 0.0, 60.0, 10.0]])
SCORES = torch.tensor([0.9, 0.8, 0.7])

# The backends whose tensors are on the CPU.
BACKENDS = [
    name
    for name in ops.backends()["nms"]
    if name != "cuda" and not (name == "triton" and torch.cuda.is_available())
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.backend(request.param):
        yield request.param


def test_a_part_is_suppressed_by_the_whole(backend: str) -> None:
    assert ops.nms(BOXES, SCORES, 0.5).tolist() == [0, 1, 2]  # IoU 0.25
    assert ops.nms(BOXES, SCORES, 0.5, metric="ios").tolist() == [0, 2]
    # The whole is suppressed by a part of a higher score: the overlap is that of the pair.
    assert ops.nms(BOXES, SCORES[[1, 0, 2]], 0.5, metric="ios").tolist() == [1, 2]


def test_the_threshold_is_kept(backend: str) -> None:
    half = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])  # IoS 1/2
    assert ops.nms(half, SCORES[:2], 0.5, metric="ios").tolist() == [0, 1]
    assert ops.nms(half, SCORES[:2], ops.just_below(0.5), metric="ios").tolist() == [0]
    # 2 / (4 + 1) is 0.4
    assert ops.nms(half, SCORES[:2], 0.4, metric="ios", iou_eps=1.0).tolist() == [0, 1]
    assert ops.nms(half, SCORES[:2], 0.39, metric="ios", iou_eps=1.0).tolist() == [0]


@pytest.mark.parametrize(
    "other",
    [
        [1.0, 1.0, 1.0, 5.0],  # no width
        [5.0, 5.0, 1.0, 1.0],  # both sides negative
        [1.0, 5.0, 5.0, 1.0],  # one side negative
        [float("nan"), 0.0, 9.0, 9.0],
        [0.0, 0.0, float("inf"), 9.0],
        [-3e38, -3e38, 3e38, 3e38],  # the area overflows
    ],
)
def test_boxes_that_suppress_nothing(backend: str, other: list[float]) -> None:
    boxes = torch.tensor([other, [0.0, 0.0, 10.0, 10.0], other])
    for threshold in (0.0, 0.5):
        assert ops.nms(boxes, SCORES, threshold, metric="ios").tolist() == [0, 1, 2]


def test_every_operator_takes_it(backend: str) -> None:
    idxs = torch.tensor([1, 1, 1])
    assert ops.batched_nms(BOXES, SCORES, idxs, 0.5, metric="ios").tolist() == [0, 2]
    assert ops.batched_nms(BOXES, SCORES, torch.arange(3), 0.5, metric="ios").tolist() == [0, 1, 2]
    padded = ops.nms_padded(BOXES, SCORES, 0.5, metric="ios")
    assert (padded.keep.tolist(), int(padded.count)) == ([0, 2, 0], 2)
    priors = torch.cat([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], 1) / 64
    scores = torch.stack([1 - SCORES, SCORES], 1)[None]
    for metric, count in (("iou", 3), ("ios", 2)):
        found = ops.detection_output(
            torch.zeros(1, 3, 4), scores, priors, softmax=False, metric=metric
        )
        assert found.count.tolist() == [count]


@pytest.mark.parametrize("metric", ["IOS", "giou", None, 1])
def test_another_metric_is_refused(metric: Any) -> None:
    for op, args in (("nms", (BOXES, SCORES, 0.5)), ("nms_padded", (BOXES, SCORES, 0.5))):
        refused = f"{op}: metric: expected 'iou' or 'ios' or 'diou', got"
        with pytest.raises(ValueError, match=refused):
            getattr(ops, op)(*args, metric=metric)


# --- the definition, in numpy --------------------------------------------------------------------


def overlaps(box: np.ndarray, others: np.ndarray, metric: str) -> np.ndarray:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    intersection = np.prod(np.maximum(high - low, 0), 1)
    area = np.prod(box[2:] - box[:2])
    areas = np.prod(others[:, 2:] - others[:, :2], 1)
    whole = area + areas - intersection if metric == "iou" else np.minimum(area, areas)
    return np.divide(intersection, whole, out=np.zeros_like(whole), where=whole > 0)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float, metric: str) -> list[int]:
    left, kept = list(np.argsort(-scores, kind="stable")), []
    while left:
        kept.append(int(left.pop(0)))
        over = overlaps(boxes[kept[-1]], boxes[left], metric) > threshold
        left = [i for i, gone in zip(left, over, strict=True) if not gone]
    return kept


def lists_of_boxes(most: int) -> Any:
    """Boxes on a grid of whole numbers, some without area: their areas are exact."""
    side = st.integers(0, 12)
    box = st.tuples(st.integers(0, 20), st.integers(0, 20), side, side)
    return st.lists(st.tuples(box, st.integers(0, 9)), max_size=most)


def as_tensors(rows: list[Any]) -> tuple[Tensor, Tensor]:
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _ in rows]).reshape(-1, 4)
    return boxes.float(), torch.tensor([score / 9 for _, score in rows])


@given(lists_of_boxes(40), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_kept_by_the_definition(rows: list[Any], threshold: float) -> None:
    boxes, scores = as_tensors(rows)
    for metric in ("iou", "ios"):
        want = suppress(boxes.numpy(), scores.numpy(), np.float32(threshold), metric)
        for name in BACKENDS:
            if name != "triton":
                with ops.backend(name):
                    assert ops.nms(boxes, scores, threshold, metric=metric).tolist() == want
