"""`soft_nms` against its paper's loop in plain numpy, by hand, and at the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdssd import ops
from mdssd.ops.reference.soft_nms import exp_of_minus
from mdssd.testing import random_boxes

BACKENDS = [b for b in ops.backends()["soft_nms_padded"] if b not in ("cuda", "triton")]


def papers_loop(
    boxes: np.ndarray, scores: np.ndarray, method: str, limit: float, sigma: float, least: float
) -> tuple[list[int], list[float]]:
    """Bodla et al., figure 2: choose the best box, lower the scores of all others, repeat."""
    left, scores = list(range(len(boxes))), scores.copy()
    chosen, found = [], []
    while left:
        best = max(left, key=lambda i: (scores[i], -i))
        if scores[best] < least:
            break
        left.remove(best)
        chosen.append(best)
        found.append(scores[best])
        for i in left:
            low = np.maximum(boxes[best, :2], boxes[i, :2])
            high = np.minimum(boxes[best, 2:], boxes[i, 2:])
            inside = np.prod(np.maximum(high - low, 0), dtype=boxes.dtype)
            size = [np.prod(b[2:] - b[:2], dtype=boxes.dtype) for b in (boxes[best], boxes[i])]
            iou = inside / (size[0] + size[1] - inside)
            if method == "gaussian":
                scores[i] *= np.exp(-iou * iou / sigma)
            elif iou > limit:
                scores[i] *= 1 - iou
    return chosen, found


def softened(backend: str, *args: Any, **settings: Any) -> ops.SoftKeep:
    with ops.backend(backend):
        return ops.soft_nms(*args, **settings)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 16),
    limit=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    sigma=st.sampled_from([0.05, 0.5, 2.0]),
    least=st.sampled_from([0.0, 0.001, 0.2]),
)
def test_against_the_loop_of_the_paper(
    backend: str, method: str, seed: int, count: int, limit: float, sigma: float, least: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, count)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    settings = {"iou_threshold": limit, "sigma": sigma, "score_threshold": least}
    got = softened(backend, boxes, scores, method=method, **settings)
    keep, found = papers_loop(boxes.numpy(), scores.numpy(), method, limit, sigma, least)
    assert got.keep.tolist() == keep
    np.testing.assert_allclose(got.scores.numpy(), found, rtol=0 if method == "linear" else 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    """The IoUs with the first box are 1/2, 1/4 and 0; that of the second and third is 0."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 3, 4, 4], [9, 9, 10, 10]])
    scores = torch.tensor([0.75, 0.5, 0.5, 0.375])
    keep, found = softened(backend, boxes, scores)
    assert keep.tolist() == [0, 2, 3, 1]
    assert found.tolist() == [0.75, 0.5, 0.375, 0.25]
    keep, found = softened(backend, boxes, scores, iou_threshold=0.125)
    assert keep.tolist() == [0, 2, 3, 1]  # equal scores: the lower index first
    assert found.tolist() == [0.75, 0.375, 0.375, 0.25]
    keep, found = softened(backend, boxes, scores, iou_threshold=0.5)
    assert found.tolist() == scores.tolist()  # a decay only above the threshold
    keep, found = softened(backend, boxes, scores, method="gaussian")
    assert keep.tolist() == [0, 2, 3, 1]
    want = [0.75, 0.5 * math.exp(-1 / 8), 0.375, 0.5 * math.exp(-1 / 2)]
    assert found.tolist() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_score_at_the_threshold_is_kept(backend: str) -> None:
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]]), torch.tensor([0.5, 0.5])
    for least, kept in ((0.25, 2), (0.2500001, 1), (0.5, 1), (0.6, 0)):
        assert len(softened(backend, boxes, scores, score_threshold=least).keep) == kept


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_do_not_meet(backend: str) -> None:
    boxes, scores = torch.ones(4, 4).cumsum(1), torch.tensor([0.5, 0.25, 0.75, 0.25])
    labels = torch.tensor([-(2**63), 2**63 - 1, 2**63 - 1, 0])
    keep, found = softened(backend, boxes, scores, labels, score_threshold=0.0)
    assert keep.tolist() == [2, 0, 3, 1] and found.tolist() == [0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_max_detections_keeps_the_first_rows(backend: str, method: str) -> None:
    generator = torch.Generator().manual_seed(1)
    boxes = random_boxes(generator, 60, "ties").float()
    scores = (torch.rand(60, generator=generator) * 8).round() / 8
    labels = torch.randint(2, (60,), generator=generator)
    every = softened(backend, boxes, scores, labels, method=method)
    for most in (1, 2, 7, 30, 59, 60, 61, 2**31 - 1):
        some = softened(backend, boxes, scores, labels, method=method, max_detections=most)
        assert torch.equal(some.keep, every.keep[:most])
        assert torch.equal(some.scores, every.scores[:most])
        with ops.backend(backend):
            padded = ops.soft_nms_padded(boxes, scores, labels, method=method, max_detections=most)
        assert int(padded.count) == len(some.keep) and len(padded.keep) == min(60, most)
        assert torch.equal(padded.keep[: padded.count], some.keep)
        assert not padded.keep[padded.count :].any() and not padded.scores[padded.count :].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_what_is_not_a_number(backend: str, method: str) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]] * 4 + [[0, math.nan, 4, 4], [0, 0, math.inf, 4]])
    scores = torch.tensor([0.5, math.nan, 0.25, math.nan, 0.75, 0.125])
    keep, found = softened(backend, boxes, scores, method=method, score_threshold=0.0)
    assert keep[:3].tolist() == [1, 3, 4]  # NaN first, by index
    assert found[:2].isnan().all() and not found[2:].isnan().any()
    assert found[keep == 4] == 0.75 and found[keep == 5] == 0.125  # IoU 0
    assert found[keep == 0] < 0.5


def test_the_input_stays_as_it_is() -> None:
    boxes, scores = torch.ones(3, 4).cumsum(1), torch.tensor([0.5, 0.25, 0.75])
    for backend in BACKENDS:
        softened(backend, boxes, scores)
        assert scores.tolist() == [0.5, 0.25, 0.75]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential(dtype: torch.dtype) -> None:
    largest = 87 if dtype == torch.float32 else 708
    x = torch.cat([torch.linspace(0, largest, 20001), torch.linspace(0, 2, 20001)]).to(dtype)
    got, want = exp_of_minus(x), torch.exp(-x.double())
    assert ((got.double() - want).abs() <= 2 * torch.finfo(dtype).eps * want).all()
    assert got.max() == 1
    assert exp_of_minus(torch.tensor([0.0, largest + 1, math.inf], dtype=dtype)).tolist() == [
        1,
        0,
        0,
    ]


def test_no_gradient() -> None:
    boxes, scores = torch.ones(3, 4).cumsum(1), torch.rand(3, requires_grad=True)
    with pytest.raises(NotImplementedError, match="soft_nms: no gradient"):
        ops.soft_nms(boxes, scores).scores.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "hard"}, "soft_nms: method: expected 'linear' or 'gaussian', got 'hard'"),
        ({"sigma": 0}, r"soft_nms: sigma: expected 1e-06 to 1000000.0, got 0"),
        ({"iou_threshold": 1.5}, "soft_nms: iou_threshold: expected 0.0 to 1.0, got 1.5"),
        ({"score_threshold": -0.1}, "soft_nms: score_threshold: expected 0.0 to 1.0, got -0.1"),
        ({"max_detections": 0}, "soft_nms: max_detections: expected 1 to 2147483647, got 0"),
        ({"labels": torch.zeros(2)}, "soft_nms: labels: expected dtype int64"),
        ({"labels": torch.zeros(3).long()}, r"soft_nms: labels: expected shape \[2\], got \[3\]"),
        ({"scores": torch.zeros(2).half()}, "soft_nms: scores: expected dtype torch.float32"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"boxes_xyxy": torch.zeros(2, 4), "scores": torch.zeros(2)} | change
    with pytest.raises((TypeError, ValueError), match=message):
        ops.soft_nms(**arguments)


def test_checked_values_are_named() -> None:
    with ops.checks(True):
        with pytest.raises(ValueError, match=r"soft_nms: scores\[1\]: expected finite numbers"):
            ops.soft_nms(torch.zeros(2, 4), torch.tensor([0.5, math.inf]))
        with pytest.raises(ValueError, match=r"soft_nms_padded: boxes_xyxy\[0\]: expected x1 <= "):
            ops.soft_nms_padded(torch.tensor([[2.0, 0, 1, 1]]), torch.tensor([0.5]))
