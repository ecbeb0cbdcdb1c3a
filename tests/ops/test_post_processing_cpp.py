"""`nms` and `detection_output` of the C++ backend on inputs that take its shortcuts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mdssd import ops
from mdssd.testing import detection_inputs, random_boxes

if "cpp" not in ops.backends()["nms"]:
    pytest.skip("mdssd._C is not built", allow_module_level=True)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def both(call: Callable[[], Any]) -> tuple[Any, Any]:
    with ops.backend("cpp"):
        got = call()
    with ops.backend("reference"):
        return got, call()


# --- nms -----------------------------------------------------------------------------------------


def placed(generator: Generator, count: int, kind: str) -> Tensor:
    """[count, 4] corners, float64, of the kinds of `random_boxes` and of some more."""
    if kind == "spread":  # few overlap
        return random_boxes(generator, count) * 20 % 19
    if kind == "crowded":  # clustered around a few places
        place = torch.randint(30, (count, 1), generator=generator)
        return place + random_boxes(generator, count) / 20 + torch.tensor([0.0, 0, 1, 1])
    boxes = random_boxes(generator, count, "random" if kind in ("far", "huge", "line") else kind)
    if kind == "far":  # two are far away, so that all others share a cell of the curve
        boxes[0] += 1e12
    elif kind == "huge":  # areas overflow in float32
        boxes[::3] *= 1e25
    elif kind == "line":  # bounds of no height
        boxes[:, 1], boxes[:, 3] = 0.5, 0.5 + boxes[:, 2] % 0.25
    return boxes


KINDS = ("random", "ties", "degenerate", "nan", "inf", "spread", "crowded", "far", "huge", "line")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [511, 512, 2500])
def test_many_boxes(kind: str, dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    boxes = placed(generator, count, kind).to(dtype)
    scores = (64 * torch.rand(count, generator=generator)).round().to(dtype) / 64
    for threshold in (0.0, 0.45, 1.0):
        got, want = both(lambda t=threshold: ops.nms(boxes, scores, t))  # type: ignore[misc]
        assert torch.equal(got, want)


def test_more_boxes_than_one_bound_holds() -> None:
    # One bound covers 32 groups of 1,024 boxes.
    generator = torch.Generator().manual_seed(0)
    boxes = placed(generator, 40_000, "crowded").float()
    scores = torch.rand(len(boxes), generator=generator)
    got, want = both(lambda: ops.nms(boxes, scores, 0.3))
    assert torch.equal(got, want)
    assert 30 <= len(want) < 1000


def test_one_large_category_and_many_small(threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(generator, 3000).float()
    scores = (64 * torch.rand(3000, generator=generator)).round() / 64
    idxs = torch.randint(-(2**62), 2**62, (3000,), generator=generator)
    idxs[::2] = 7
    idxs[1::4] = idxs[1::4] % 5
    got, want = both(lambda: ops.batched_nms(boxes, scores, idxs, 0.45))
    assert torch.equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", ["crowded", "spread"])
@pytest.mark.parametrize("step", [1, 2**40])
def test_categories_of_both_kinds(kind: str, first: str, step: int, threads: int) -> None:
    """Few boxes of a crowded category are kept, which are looked up; others are sorted."""
    generator = torch.Generator().manual_seed(1)
    rows = [placed(generator, count, k) for count, k in ((40, first), (300, kind), (2000, kind))]
    rows.append(placed(generator, 333, "crowded"))
    boxes = torch.cat(rows).float()
    scores = (32 * torch.rand(len(boxes), generator=generator)).round() / 32
    scores[::50], scores[1::50], scores[2::50] = torch.nan, torch.inf, -torch.inf
    lengths = torch.tensor([len(row) for row in rows])
    idxs = torch.tensor([-3, 5, 6, 9]).mul(step).repeat_interleave(lengths)
    order = torch.cat(
        [torch.zeros(1).long(), 1 + torch.randperm(len(idxs) - 1, generator=generator)]
    )
    boxes, idxs = boxes[order], idxs[order]
    got, want = both(lambda: ops.batched_nms(boxes, scores, idxs, 0.3))
    assert torch.equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 32, 33, 100, 300])
def test_few_boxes(kind: str, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    boxes = placed(generator, count, kind).float()
    scores = (16 * torch.rand(count, generator=generator)).round() / 16
    for threshold in (0.0, 0.45, 1.0):
        got, want = both(lambda t=threshold: ops.nms(boxes, scores, t))  # type: ignore[misc]
        assert torch.equal(got, want)


# --- detection_output ----------------------------------------------------------------------------


def check_detections(inputs: Any, **options: Any) -> Any:
    """Compare with the reference in float64, where no two scores are so close that they swap.

    The scores of a float32 softmax differ by an ulp or two.
    """
    got, want = both(lambda: ops.detection_output(*inputs, **options))
    assert torch.equal(got.labels, want.labels)
    assert torch.equal(got.count, want.count)
    torch.testing.assert_close(got.boxes, want.boxes, rtol=1e-10, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(got.scores, want.scores, rtol=1e-10, atol=1e-12, equal_nan=True)
    return got


def inputs(priors: int, classes: int, kind: str, images: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(priors)
    args, _ = detection_inputs(generator, torch.float64, images, priors, classes, kind)
    return args


@pytest.mark.parametrize("kind", ["untrained", "peaked", "ties", "nan", "inf", "trained"])
@pytest.mark.parametrize("classes", [8, 9, 10, 34])  # a vector has 8 lanes, a mask 32 bits
def test_limits_from_a_sample(kind: str, classes: int) -> None:
    check_detections(inputs(2003, classes, kind), top_k=20, score_threshold=0.005)


def test_sample_that_misleads(threads: int) -> None:
    # Every sixteenth prior, which the sample takes, scores high. The others are needed too.
    loc, logits, priors = inputs(8000, 3, "untrained", images=2)
    logits[1, ::16, 1] += 5
    logits[:, :, 2] -= 1
    found = check_detections((loc, logits, priors), top_k=900, max_detections=1200)
    assert int((found.labels[1] == 1).sum()) > 120  # only 103 pass the limit of the sample


def test_candidates_beyond_the_first_chunk() -> None:
    # All boxes of a class are equal, so 60 detections need the candidates of all 60 classes.
    loc, logits, priors = inputs(3000, 61, "untrained")
    loc.zero_()
    priors[:] = priors[0]
    found = check_detections((loc, logits, priors), score_threshold=0.001, top_k=100)
    assert found.count.tolist() == [60]


def test_logits_of_any_size() -> None:
    # Near a million, float32 has steps of 1/16: more than the margin of the first test.
    generator = torch.Generator().manual_seed(0)
    (loc, logits, priors), _ = detection_inputs(generator, torch.float64, 1, 500, 21, "trained")
    check_detections((loc, logits + 1e6, priors))
    moved = logits.float() + 1e6
    got, want = both(lambda: ops.detection_output(loc.float(), moved, priors))
    assert torch.equal(got.count, want.count)
