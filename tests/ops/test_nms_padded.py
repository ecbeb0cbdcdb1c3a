"""`nms_padded`: results worked by hand, and the chunks of its CUDA kernels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.ops import _modules
from mdssd.ops._settings import NmsSettings
from mdssd.testing import random_boxes

BOXES = torch.tensor(
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.75], [0.0, 0.0, 1.0, 0.375], [2.0, 2.0, 3.0, 3.0]]
)
SCORES = torch.tensor([0.5, 0.9, 0.8, 0.1])


@pytest.fixture
def simt() -> Any:
    if _modules.simt is None:
        pytest.skip("mdssd._simt is not built: only a development install has it")
    with ops.backend("simt"):
        yield _modules.simt


def assert_kept(got: Any, keep: list[int], count: int) -> None:
    assert got.keep.tolist() == keep
    assert got.count.tolist() == count
    assert got.keep.dtype == got.count.dtype == torch.int64


def test_indices_by_score_then_zeros(backend: str) -> None:
    # Box 1 suppresses 0 (IoU 0.75) but not 2 (IoU 0.5). Box 0 is removed before it suppresses 2.
    assert_kept(ops.nms_padded(BOXES, SCORES, 0.5), [1, 2, 3, 0], 3)
    assert_kept(ops.nms_padded(BOXES, SCORES, 0.4), [1, 3, 0, 0], 2)
    assert_kept(ops.nms_padded(BOXES, SCORES, 1.0), [1, 2, 0, 3], 4)


def test_box_0_is_not_padding(backend: str) -> None:
    scores = torch.tensor([0.5, 0.2, 0.1, 0.9])
    assert_kept(ops.nms_padded(BOXES, scores, 0.3), [3, 0, 0, 0], 2)
    assert_kept(ops.nms_padded(BOXES[:1], SCORES[:1], 0.5), [0], 1)


def test_no_box(backend: str) -> None:
    assert_kept(ops.nms_padded(BOXES[:0], SCORES[:0], 0.5), [], 0)


def test_ties_and_nan_as_in_nms(backend: str) -> None:
    assert_kept(ops.nms_padded(BOXES, torch.full((4,), 0.5), 0.7), [0, 2, 3, 0], 3)
    scores = torch.tensor([0.5, math.nan, 0.8, 0.9])
    assert_kept(ops.nms_padded(BOXES, scores, 0.7), [1, 3, 2, 0], 3)


def test_categories_of_any_value(backend: str) -> None:
    far = torch.iinfo(torch.int64)
    idxs = torch.tensor([far.max, far.min, far.max, far.max])
    assert_kept(ops.nms_padded(BOXES, SCORES, 0.3, idxs), [1, 2, 3, 0], 3)
    idxs = torch.tensor([1, 1 + 2**32, 1, 1])  # equal in their lower 32 bits
    assert_kept(ops.nms_padded(BOXES, SCORES, 0.3, idxs=idxs), [1, 2, 3, 0], 3)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"nms_padded: scores: expected shape \[4\], got \[3\]"):
        ops.nms_padded(BOXES, SCORES[:3], 0.5)
    with pytest.raises(TypeError, match="nms_padded: idxs: expected dtype int64"):
        ops.nms_padded(BOXES, SCORES, 0.5, SCORES)
    with pytest.raises(ValueError, match="nms_padded: iou_threshold: expected 0.0 to 1.0"):
        ops.nms_padded(BOXES, SCORES, math.nan)


def chain(count: int) -> tuple[Tensor, Tensor]:
    """Boxes by falling score, each of which suppresses only the next, so every second one stays.

    IoU 1/3 with the neighbour, 0 with the one after that.
    """
    left = torch.arange(count).float()
    boxes = torch.stack([left, torch.zeros(count), left + 2, torch.ones(count)], 1)
    return boxes, -left


# Numbers of boxes around a word, two words and a chunk of the kernels.
@pytest.mark.parametrize("count", [63, 64, 65, 127, 128, 2047, 2048, 2049, 2112, 4097])
def test_every_decision_depends_on_the_one_before(backend: str, count: int) -> None:
    if backend == "triton" and count > 200 and not torch.cuda.is_available():
        pytest.skip("takes Triton's interpreter minutes")
    got = ops.nms_padded(*chain(count), 0.3)
    kept = list(range(0, count, 2))
    assert_kept(got, kept + [0] * (count - len(kept)), len(kept))


@pytest.mark.parametrize("count", [0, 1, 2048, 2049, 4097])
def test_launches_follow_from_the_number_of_boxes(simt: Any, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    launches = []
    for boxes in (torch.zeros(count, 4), random_boxes(generator, count).float()):
        before = simt.launch_count()
        ops.nms_padded(boxes, torch.arange(count).float(), 0.45)
        launches.append(simt.launch_count() - before)
    # One launch gathers. Each chunk is compared, scanned and, except for the last, applied.
    chunks = -(-count // 2048)
    assert launches == [max(1, 3 * chunks)] * 2


def test_workspace_grows_with_the_boxes(simt: Any) -> None:
    sizes = [simt.nms_workspace(n, 0) for n in (10_000, 110_000, 1_110_000)]
    per_box = [(b - a) / n for a, b, n in zip(sizes, sizes[1:], (1e5, 1e6), strict=False)]
    assert all(24 < value < 26 for value in per_box)


def test_too_many_boxes_are_refused_by_name(simt: Any) -> None:
    with pytest.raises(ValueError, match=r"nms: more than 2\^31 - 1 boxes"):
        simt.nms_cuda(0, 0, 0, 2**31, NmsSettings(0.5, 0.0), 0, 0, 0, 0, 0)
