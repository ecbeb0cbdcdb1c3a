"""The CUDA kernels of matching, run on the CPU: launches, limits, and cases worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.ops import _modules
from mdssd.ops._settings import EncodeTargetsSettings, MatchPriorsSettings
from mdssd.testing import random_boxes, random_priors

MOST_IMAGES = 512  # images of one launch: kImages of matching.cu


@pytest.fixture
def simt() -> Any:
    if _modules.simt is None:
        pytest.skip("mdssd._simt is not built: only a development install has it")
    with ops.backend("simt"):
        yield _modules.simt


def batch(images: int, boxes: int, kind: str = "random") -> list[Tensor]:
    generator = torch.Generator().manual_seed(images)
    return [random_boxes(generator, boxes, kind).float() for _ in range(images)]


PRIORS = random_priors(torch.Generator().manual_seed(0), 300)


def launches(simt: Any, op: str, gt: list[Tensor]) -> int:
    before = simt.launch_count()
    if op == "match_priors":
        ops.match_priors(gt, PRIORS)
    else:
        ops.encode_targets(gt, [torch.ones(len(boxes)).long() for boxes in gt], PRIORS)
    return simt.launch_count() - before


@pytest.mark.parametrize("op", ["match_priors", "encode_targets"])
def test_launches_do_not_grow_with_the_batch(simt: Any, op: str) -> None:
    assert launches(simt, op, batch(1, 3)) == launches(simt, op, batch(32, 140)) == 3
    assert launches(simt, op, batch(MOST_IMAGES, 1)) == 3
    assert launches(simt, op, batch(MOST_IMAGES + 1, 1)) == 5


def test_images_of_several_launches(simt: Any) -> None:
    gt = batch(MOST_IMAGES + 2, 2)
    got = ops.match_priors(gt, PRIORS)
    for image in (0, MOST_IMAGES - 1, MOST_IMAGES, MOST_IMAGES + 1):
        alone = ops.match_priors(gt[image : image + 1], PRIORS)
        assert torch.equal(got.index[image], alone.index[0])
        assert torch.equal(got.iou[image], alone.iou[0])


def test_last_of_many_boxes_with_one_best_prior(simt: Any) -> None:
    # More boxes than a tile (128) or a round (256) holds. All want prior 1; the last one gets it.
    priors = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.6, 0.6, 0.4, 0.4], [0.1, 0.9, 0.1, 0.1]])
    boxes = torch.tensor([0.5, 0.5, 0.7, 0.7]).repeat(700, 1)
    assert ops.match_priors([boxes], priors).index.tolist() == [[-1, 699, -1]]
    labels = torch.arange(1, 701)
    assert ops.encode_targets([boxes], [labels], priors).labels.tolist() == [[0, 700, 0]]


def test_a_prior_that_is_the_best_of_two_boxes(simt: Any) -> None:
    # Box 0 fits better and reaches the threshold; box 1 has no other prior and comes later.
    priors = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])
    boxes = torch.tensor([[0.3, 0.3, 0.7, 0.7], [0.6, 0.6, 0.7, 0.7]])
    assert ops.match_priors([boxes], priors).index.tolist() == [[1, -1]]
    assert ops.match_priors([boxes.flip(0)], priors).index.tolist() == [[1, -1]]


def test_a_box_beyond_all_priors_takes_prior_0(simt: Any) -> None:
    # In the first image no box overlaps prior 0. In the second it is the best prior of box 0, and
    # the later box takes it.
    beyond = torch.tensor([5.0, 5.0, 6.0, 6.0])
    first = torch.tensor([PRIORS[0, 0], PRIORS[0, 1], PRIORS[0, 0], PRIORS[0, 1]])
    first += torch.tensor([-0.5, -0.5, 0.5, 0.5]) * PRIORS[0, 2:].repeat(2)
    match = ops.match_priors([beyond[None], torch.stack([first, beyond])], PRIORS)
    assert match.index[0].tolist() == [0] + [-1] * 299
    assert not match.iou[0].any()
    assert match.index[1, 0] == 1 and match.iou[1, 0] > 0.99


def test_priors_that_are_nan_or_have_no_area(simt: Any) -> None:
    # They must not hide a box from the other priors of their warp.
    priors = PRIORS.clone()
    priors[::3, 0] = torch.nan
    priors[1::9, 2] = torch.inf
    priors[4::9, 3] = -0.1
    priors[7::9, 2:] = 0
    gt = batch(2, 40)
    got = ops.match_priors(gt, priors)
    with ops.backend("reference"):
        want = ops.match_priors(gt, priors)
    assert torch.equal(got.index, want.index) and torch.equal(got.iou, want.iou)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_order_of_blocks_and_threads_shows(simt: Any, seed: int) -> None:
    gt = batch(3, 140, "ties")
    want = ops.match_priors(gt, PRIORS)
    simt.set_shuffle(seed)
    try:
        got = ops.match_priors(gt, PRIORS)
    finally:
        simt.set_shuffle(0)
    assert torch.equal(got.index, want.index) and torch.equal(got.iou, want.iou)


def test_too_many_boxes_or_priors_are_refused_by_name(simt: Any) -> None:
    offsets = torch.tensor([0, 2**31])
    match, targets = MatchPriorsSettings(0.5, 0.0, False), EncodeTargetsSettings(0.5, 0.1, 0.2, 0.0)
    with pytest.raises(ValueError, match=r"match_priors: more than 2\^31 - 257 boxes or priors"):
        simt.match_priors_cuda(0, offsets, 1, 0, 1, match, 0, 0, 0, 0, 0)
    offsets[1] = 0
    with pytest.raises(ValueError, match=r"encode_targets: more than 2\^31 - 257 boxes"):
        simt.encode_targets_cuda(0, 0, offsets, 1, 0, 2**31, targets, 0, 0, 0, 0, 0)
