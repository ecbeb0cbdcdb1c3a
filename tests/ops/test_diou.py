"""`metric="diou"` of the operators that suppress: results by hand and by a plain definition."""

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

# Both others have IoU 1/2 with the first. The centre of the second is 1 away from that of the
# first, and the diagonal is sqrt(32): the DIoU is 1/2 - 1/32. The third has the same centre.
BOXES = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0], [0.0, 1.0, 4.0, 3.0]])
SCORES = torch.tensor([0.9, 0.8, 0.7])
BESIDE = 0.46875

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


def kept(boxes: Tensor, threshold: float, **options: Any) -> list[int]:
    return ops.nms(boxes, SCORES[: len(boxes)], threshold, metric="diou", **options).tolist()


def test_a_box_beside_the_centre_is_kept(backend: str) -> None:
    assert ops.nms(BOXES, SCORES, 0.48).tolist() == [0]
    assert kept(BOXES, 0.48) == [0, 1]
    assert kept(BOXES[[0, 2]], 0.48) == [0]


def test_the_threshold_is_kept(backend: str) -> None:
    pair = BOXES[:2]
    assert kept(pair, BESIDE) == kept(pair.flip(0), BESIDE) == [0, 1]
    below = ops.just_below(BESIDE)
    assert kept(pair, below) == kept(pair.flip(0), below) == [0]


def test_the_epsilon_belongs_to_the_union(backend: str) -> None:
    pair = torch.tensor([[0.0, 0.0, 4.0, 1.0], [2.0, 0.0, 4.0, 1.0]])  # 2 / 4 - 1 / 17
    with_eps = float(np.float32(2) / np.float32(5) - np.float32(1) / np.float32(17))
    assert kept(pair, 0.45) == [0, 1]
    assert kept(pair, 0.44) == [0]
    assert kept(pair, with_eps, iou_eps=1.0) == [0, 1]
    assert kept(pair, ops.just_below(with_eps), iou_eps=1.0) == [0]


def test_a_shift_of_all_boxes_changes_nothing(backend: str) -> None:
    """Centres of such coordinates are rounded; the differences of the corners are not."""
    moved = BOXES + 2.0**21
    assert kept(moved[:2], BESIDE) == [0, 1]
    assert kept(moved[:2], ops.just_below(BESIDE)) == [0]


@pytest.mark.parametrize(
    "other",
    [
        [1.0, 1.0, 1.0, 5.0],  # no width
        [1.0, 1.0, 1.0, 1.0],  # a point: two of them have a diagonal of 0
        [5.0, 5.0, 1.0, 1.0],  # both sides negative
        [1.0, 5.0, 5.0, 1.0],  # one side negative
        [float("nan"), 0.0, 9.0, 9.0],
        [0.0, 0.0, float("inf"), 9.0],
        [float("-inf"), float("-inf"), float("inf"), float("inf")],
        [-3e38, -3e38, 3e38, 3e38],  # the area overflows
    ],
)
def test_boxes_that_suppress_nothing(backend: str, other: list[float]) -> None:
    boxes = torch.tensor([other, [0.0, 0.0, 10.0, 10.0], other])
    for eps in (0.0, 0.5):
        assert kept(boxes, 0.0, iou_eps=eps) == [0, 1, 2]


def test_squares_that_overflow(backend: str) -> None:
    long = torch.tensor([[0.0, 0.0, 8e19, 1e-3], [0.0, 0.0, 8e19, 9e-4], [4e19, 0.0, 12e19, 1e-3]])
    assert ops.nms(long, SCORES, 0.3).tolist() == [0]
    assert kept(long, 0.3) == [0, 2]  # the penalty of the last is inf / inf


def test_every_operator_takes_it(backend: str) -> None:
    boxes, scores = BOXES[:2], SCORES[:2]
    idxs = torch.tensor([1, 1])
    padded = ops.nms_padded(boxes, scores, 0.48, metric="diou")
    assert (padded.keep.tolist(), int(padded.count)) == ([0, 1], 2)
    assert ops.batched_nms(boxes, scores, idxs, 0.48, metric="diou").tolist() == [0, 1]
    assert ops.batched_nms(boxes, scores, idxs, 0.46, metric="diou").tolist() == [0]
    priors = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    # All candidates of an image together, more rows than the kernels of a GPU keep in a block,
    # and candidates by level.
    forms: list[dict[str, Any]] = [
        {},
        {"class_agnostic": True},
        {"max_detections": 1030},
        {"levels": (1, 1), "top_k_per_level": 5},
        {"per_class": True, "keep_empty": False},
    ]
    for form in forms:
        for metric, threshold, count in (("iou", 0.48, 1), ("diou", 0.48, 2), ("diou", 0.46, 1)):
            found = ops.detection_output(
                torch.zeros(1, 2, 4), scores.reshape(1, 2, 1), priors, activation="none",
                background=False, metric=metric, nms_threshold=threshold, **form,
            )  # fmt: skip
            assert found.count.flatten().tolist() == [count], (form, metric)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="nms: iou_threshold: expected 0.0 to 1.0, got -0.1"):
        ops.nms(BOXES, SCORES, -0.1, metric="diou")
    refused = "merge_boxes: metric: expected 'iou' or 'ios', got 'diou'"
    with pytest.raises(ValueError, match=refused):
        ops.merge_boxes(
            BOXES, SCORES, torch.zeros(3).long(), method="nmm", threshold=0.5, metric="diou"
        )
    refused = "metric: expected 'iou' or 'ios' beside suppression='soft_linear', got 'diou'"
    outputs = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), torch.ones(3, 4)
    with pytest.raises(ValueError, match=refused):
        ops.detection_output(*outputs, suppression="soft_linear", metric="diou")


# --- the definition, in numpy --------------------------------------------------------------------


def dious(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    intersection = np.prod(np.maximum(high - low, 0), 1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], 1) - intersection
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)
    centre, centres = (box[:2] + box[2:]) / 2, (others[:, :2] + others[:, 2:]) / 2
    sides = np.maximum(box[2:], others[:, 2:]) - np.minimum(box[:2], others[:, :2])
    diagonal = np.square(sides).sum(1)
    distance = np.square(centre - centres).sum(1)
    return iou - np.divide(distance, diagonal, out=np.zeros_like(union), where=diagonal > 0)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    left, best = list(np.argsort(-scores, kind="stable")), []
    while left:
        best.append(int(left.pop(0)))
        over = dious(boxes[best[-1]], boxes[left]) > threshold
        left = [i for i, gone in zip(left, over, strict=True) if not gone]
    return best


@st.composite
def grid_boxes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Boxes on a grid of whole numbers, some without area: all numbers but quotients are exact."""
    side, at = st.integers(0, 12), st.integers(0, 20)
    rows = draw(st.lists(st.tuples(at, at, side, side, st.integers(0, 9)), max_size=40))
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in rows]).reshape(-1, 4)
    return boxes.float(), torch.tensor([row[-1] / 9 for row in rows])


@given(grid_boxes(), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_kept_by_the_definition(given_boxes: tuple[Tensor, Tensor], threshold: float) -> None:
    boxes, scores = given_boxes
    want = suppress(boxes.numpy(), scores.numpy(), float(np.float32(threshold)))
    for name in BACKENDS:
        if name != "triton":
            with ops.backend(name):
                assert ops.nms(boxes, scores, threshold, metric="diou").tolist() == want
