"""`merge_boxes` and `merge_boxes_padded`: results worked by hand, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops

METHODS = ("nms", "greedy_nmm", "nmm", "wbf")
nan, inf = math.nan, math.inf

# The backends whose tensors are on the CPU.
BACKENDS = [
    name
    for name in ops.backends()["merge_boxes_padded"]
    if name != "cuda" and not (name == "triton" and torch.cuda.is_available())
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with ops.backend(request.param):
        yield request.param


def merge(boxes: Any, scores: Any, labels: Any = None, **settings: Any) -> ops.MergedBoxes:
    """Merge boxes [N, 4], and check that the padded form has the same rows."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.as_tensor(scores, dtype=torch.float32)
    labels = torch.ones(len(boxes)) if labels is None else torch.as_tensor(labels)
    args, settings = (boxes, scores, labels.long()), {"threshold": 0.5} | settings
    merged, padded = ops.merge_boxes(*args, **settings), ops.merge_boxes_padded(*args, **settings)
    count = len(merged.boxes)
    assert padded.count.tolist() == count
    for rows, padded_rows in zip(merged, padded, strict=False):
        want = torch.cat([rows, rows.new_zeros(len(boxes) - count, *rows.shape[1:])])
        torch.testing.assert_close(padded_rows, want, rtol=0, atol=0, equal_nan=True)
    return merged


def row(left: float, right: float) -> list[float]:
    """A box of height 10 from `left` to `right`."""
    return [left, 0.0, right, 10.0]


# In a row: each overlaps the next by half of the smaller, and no other.
CHAIN = [row(0, 20), row(10, 30), row(20, 40), row(30, 50)]


def test_a_box_takes_what_it_overlaps(backend: str) -> None:
    boxes, scores = [row(0, 20), row(2, 20), row(40, 60)], [0.7, 0.9, 0.8]
    got = merge(boxes, scores, [3, 3, 3], method="nms")
    assert got.index.tolist() == [1, 2] and got.boxes.tolist() == [boxes[1], boxes[2]]
    assert got.labels.tolist() == [3, 3] and got.images.tolist() == [0, 0]
    for method in ("greedy_nmm", "nmm"):
        got = merge(boxes, scores, method=method)
        assert got.index.tolist() == [1, 2] and got.boxes.tolist() == [row(0, 20), boxes[2]]
        torch.testing.assert_close(got.scores, torch.tensor([0.9, 0.8]))
    got = merge(boxes, [0.5, 1.0, 0.25], method="wbf")
    # (0 * 0.5 + 2 * 1) / 1.5
    torch.testing.assert_close(got.boxes, torch.tensor([row(4 / 3, 20), boxes[2]]))
    torch.testing.assert_close(got.scores, torch.tensor([0.75, 0.25]))


def test_only_nmm_merges_chains(backend: str) -> None:
    settings = {"metric": "ios", "threshold": 0.4}
    scores = [0.9, 0.8, 0.7, 0.6]
    got = merge(CHAIN, scores, method="greedy_nmm", **settings)
    assert got.boxes.tolist() == [row(0, 30), row(20, 50)]
    got = merge(CHAIN, scores, method="nmm", **settings)
    assert got.boxes.tolist() == [row(0, 50)] and got.index.tolist() == [0]
    assert merge(CHAIN, scores, method="nms", **settings).index.tolist() == [0, 2]


def test_what_no_longer_overlaps_the_merged_box_is_dropped(backend: str) -> None:
    # Box 0 overlaps both of the others (IoU 2/3). The second makes it 30 wide, and then the IoU
    # with the third is 1/2.
    boxes, scores = [row(10, 30), row(6, 26), row(14, 34)], [0.9, 0.8, 0.7]
    for method in ("greedy_nmm", "nmm"):
        got = merge(boxes, scores, method=method, threshold=0.6)
        assert got.boxes.tolist() == [row(6, 30)]
        got = merge(boxes, scores, method=method, threshold=0.5)
        assert got.boxes.tolist() == [row(6, 34)]


def test_who_joins_first(backend: str) -> None:
    # As above, but the box of the lowest score comes before the other in memory.
    boxes, scores = [row(10, 30), row(14, 34), row(6, 26)], [0.9, 0.7, 0.8]
    got = merge(boxes, scores, method="greedy_nmm", threshold=0.6)
    assert got.boxes.tolist() == [row(6, 30)]  # by score
    got = merge(boxes, scores, method="nmm", threshold=0.6)
    assert got.boxes.tolist() == [row(10, 34)]  # by index


def test_wbf_joins_the_fused_box_of_the_largest_overlap(backend: str) -> None:
    boxes = [row(0, 20), row(8, 28), row(5, 25)]  # IoU of the last with them: 0.6 and 0.74
    got = merge(boxes, [0.8, 0.6, 0.2], method="wbf")
    torch.testing.assert_close(got.boxes, torch.tensor([row(0, 20), row(7.25, 27.25)]))
    # Of equal overlaps, the first.
    got = merge([row(0, 20), row(8, 28), row(4, 24)], [0.8, 0.6, 0.2], method="wbf")
    torch.testing.assert_close(got.boxes, torch.tensor([row(8, 28), row(0.8, 20.8)]))
    torch.testing.assert_close(got.scores, torch.tensor([0.6, 0.5]))
    assert got.index.tolist() == [1, 0]  # by the fused score


def test_wbf_of_several_models(backend: str) -> None:
    boxes, scores = [row(0, 20), row(0, 20), row(40, 60)], [0.9, 0.7, 0.6]
    got = merge(boxes, scores, method="wbf", models=3)
    torch.testing.assert_close(got.scores, torch.tensor([0.8 * 2 / 3, 0.6 / 3]))
    got = merge([row(0, 20)] * 4, [0.9, 0.7, 0.9, 0.7], method="wbf", models=3)
    torch.testing.assert_close(got.scores, torch.tensor([0.8]))  # of four boxes, not more


def test_wbf_without_scores_keeps_the_first_box(backend: str) -> None:
    got = merge([row(0, 20), row(2, 22)], [0.0, 0.0], method="wbf")
    assert got.boxes.tolist() == [row(0, 20)] and got.scores.tolist() == [0.0]
    got = merge([row(0, 20), row(2, 22)], [0.5, -0.5], method="wbf")
    assert got.boxes.tolist() == [row(0, 20)] and got.scores.tolist() == [0.0]


@pytest.mark.parametrize("method", METHODS)
def test_labels_and_images_stay_apart(backend: str, method: str) -> None:
    boxes, scores = [row(0, 20)] * 4, [0.6, 0.7, 0.8, 0.9]
    labels, images = [5, -5, 5, 2**40], torch.tensor([2**40, 2**40, -7, 2**40])
    got = merge(boxes, scores, labels, method=method)
    assert got.labels.tolist() == [2**40, 5, -5]  # by score
    got = merge(boxes, scores, labels, method=method, images=images)
    assert got.images.tolist() == [-7, 2**40, 2**40, 2**40]  # by image, then by score
    assert got.index.tolist() == [2, 3, 1, 0] and got.labels.tolist() == [5, 2**40, -5, 5]
    got = merge(boxes, scores, labels, method=method, images=images, per_class=False)
    assert got.index.tolist() == [2, 3] and got.labels.tolist() == [5, 2**40]


@pytest.mark.parametrize("method", METHODS)
def test_ties_are_in_the_order_of_the_boxes(backend: str, method: str) -> None:
    got = merge([row(0, 20), row(40, 60), row(1, 20), row(40, 60)], [0.5] * 4, method=method)
    assert got.index.tolist() == [0, 1]
    got = merge([row(0, 20), row(1, 20)], [0.9, nan], method=method)
    assert got.index.tolist() == [1] and math.isnan(got.scores[0])


@pytest.mark.parametrize("metric", ["iou", "ios"])
@pytest.mark.parametrize("method", METHODS)
def test_boxes_that_overlap_nothing(backend: str, method: str, metric: str) -> None:
    odd = [
        [5.0, 0.0, 5.0, 10.0],  # no width
        [15.0, 10.0, 5.0, 0.0],  # both sides negative
        [5.0, 10.0, 15.0, 0.0],  # one side negative
        [nan, 0.0, 20.0, 10.0],
        [0.0, 0.0, inf, 10.0],
    ]
    boxes = torch.tensor([row(0, 20), *odd, row(0, 20), *odd])
    got = merge(boxes, torch.arange(12, 0, -1), method=method, metric=metric, threshold=0.0)
    assert got.index.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11] or (
        method == "wbf" and sorted(got.index.tolist()) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    )
    want = boxes[got.index]
    torch.testing.assert_close(got.boxes, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one(backend: str, method: str, count: int) -> None:
    got = merge(CHAIN[:count], [0.5] * count, method=method, images=torch.full((count,), 9))
    assert got.boxes.tolist() == CHAIN[:count] and got.images.tolist() == [9] * count
    assert got.index.dtype == got.labels.dtype == got.images.dtype == torch.int64


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_have_the_dtype_of_the_boxes(backend: str, method: str, dtype: torch.dtype) -> None:
    boxes, scores = torch.tensor(CHAIN, dtype=dtype), torch.rand(4).to(dtype)
    got = ops.merge_boxes(boxes, scores, torch.ones(4).long(), method=method, threshold=0.2)
    assert got.boxes.dtype == got.scores.dtype == dtype


def test_nms_is_batched_nms() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(500, 2, generator=generator)
    boxes = torch.cat([corner, corner + 0.1], 1)
    scores, labels = torch.rand(500, generator=generator), torch.arange(500) % 3
    for metric in ("iou", "ios"):
        got = ops.merge_boxes(boxes, scores, labels, method="nms", metric=metric, threshold=0.4)
        want = ops.batched_nms(boxes, scores, labels, 0.4, metric=metric)
        assert got.index.tolist() == want.tolist()
        assert torch.equal(got.boxes, boxes[want]) and torch.equal(got.scores, scores[want])


# --- arguments -----------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "boxes_xyxy": torch.tensor(CHAIN),
    "scores": torch.rand(4),
    "labels": torch.ones(4).long(),
    "method": "nms",
    "threshold": 0.5,
}


@pytest.mark.parametrize("op", ["merge_boxes", "merge_boxes_padded"])
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("boxes_xyxy", torch.zeros(4, 3), ValueError, r"expected shape \[N, 4\], got \[4, 3\]"),
        ("boxes_xyxy", torch.zeros(4, 4).int(), TypeError, "expected dtype float32"),
        ("scores", torch.zeros(3), ValueError, r"expected shape \[4\], got \[3\]"),
        ("scores", torch.zeros(4).half(), TypeError, "expected dtype torch.float32"),
        ("labels", torch.zeros(4), TypeError, "expected dtype int64; got torch.float32"),
        ("images", torch.zeros(3).long(), ValueError, r"expected shape \[4\], got \[3\]"),
        ("images", [0, 0, 1, 1], TypeError, "expected a Tensor, got list"),
        ("method", "soft_nms", ValueError, "expected 'nms' or .* or 'wbf', got 'soft_nms'"),
        ("metric", "giou", ValueError, "expected 'iou' or 'ios', got 'giou'"),
        ("threshold", 1.5, ValueError, "expected 0.0 to 1.0, got 1.5"),
        ("threshold", nan, ValueError, "expected 0.0 to 1.0, got nan"),
        ("per_class", 1, TypeError, "expected True or False, got int"),
        ("models", 0, ValueError, "expected 1 to 2147483647, got 0"),
        ("models", 2.0, TypeError, "expected an int, got float"),
    ],
)
def test_wrong_input_is_named(op: str, name: str, value: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^{op}: {name}: {message}"):
        getattr(ops, op)(**GOOD | {name: value})


@pytest.mark.parametrize("op", ["merge_boxes", "merge_boxes_padded"])
def test_values_are_checked_on_request(op: str) -> None:
    for name, place in (("boxes_xyxy", (2, 1)), ("scores", (2,))):
        value: Tensor = GOOD[name].clone()
        value[place] = inf
        with ops.checks(True), pytest.raises(ValueError, match=rf"^{op}: {name}\[2\]: expected"):
            getattr(ops, op)(**GOOD | {name: value})
        getattr(ops, op)(**GOOD | {name: value})


def test_there_is_no_gradient() -> None:
    boxes = torch.tensor(CHAIN, requires_grad=True)
    merged = ops.merge_boxes(**GOOD | {"boxes_xyxy": boxes})
    with pytest.raises(NotImplementedError, match="merge_boxes: no gradient"):
        merged.boxes.sum().backward()
