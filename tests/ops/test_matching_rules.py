"""The rules of match_priors and encode_targets besides SSD's own, worked by hand and by peers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.testing import random_boxes, random_priors

# Corners and the IoU of each with the box below: 1, 0.5, 0.25 and 0.
BOX = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
CORNERS = torch.tensor(
    [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.25], [0.0, 0.0, 0.25, 0.25], [0.5, 0.5, 1.0, 1.0]]
)
PRIORS = torch.cat([(CORNERS[:, :2] + CORNERS[:, 2:]) / 2, CORNERS[:, 2:] - CORNERS[:, :2]], 1)


def index(gt: list[Tensor], priors: Tensor = PRIORS, *args: Any, **rules: Any) -> list[Any]:
    """Match on the CPU or the GPU; check that encode_targets marks the same priors."""
    match = ops.match_priors(gt, priors, *args, **rules)
    names = [torch.arange(1, len(boxes) + 1) for boxes in gt]
    labels = ops.encode_targets(gt, names, priors, *args, **rules).labels
    assert torch.equal(labels, match.index + 1)
    return match.index.tolist()


def test_a_band_between_two_thresholds_is_ignored(backend: str) -> None:
    assert index([BOX], PRIORS, 0.6, low_threshold=0.25) == [[0, -2, -2, -1]]
    assert index([BOX], PRIORS, 0.6, low_threshold=ops.just_above(0.25)) == [[0, -2, -1, -1]]
    assert index([BOX], PRIORS, 0.5, low_threshold=0.5) == [[0, 0, -1, -1]]
    assert index([BOX, BOX[:0]], PRIORS, 0.6, low_threshold=0.0) == [[0, -2, -2, -2], [-1] * 4]


def test_ignored_priors_have_no_offsets(backend: str) -> None:
    targets = ops.encode_targets([BOX * 0.9], [torch.tensor([3])], PRIORS, 0.6, low_threshold=0.25)
    assert targets.labels.tolist() == [[3, -1, -1, 0]]
    assert targets.loc[0, 1:].eq(0).all() and targets.loc[0, 0].ne(0).any()


def test_without_force_a_box_may_stay_without_a_prior(backend: str) -> None:
    assert index([BOX], PRIORS[1:], 0.6) == [[0, -1, -1]]
    assert index([BOX], PRIORS[1:], 0.6, force="none") == [[-1, -1, -1]]
    assert index([BOX], PRIORS[1:], 0.6, force="none", low_threshold=0.5) == [[-2, -1, -1]]


def test_low_quality_gives_every_tied_prior_its_own_box(backend: str) -> None:
    # Both halves of box 0 have its highest IoU, 0.5. The second is also all of box 1.
    halves = torch.tensor([[0.25, 0.125, 0.5, 0.25], [0.25, 0.375, 0.5, 0.25]])
    boxes = torch.cat([BOX, torch.tensor([[0.0, 0.25, 0.5, 0.5]])])
    assert index([boxes], halves, 0.75, force="low_quality") == [[0, 1]]
    assert index([boxes], halves, 0.75, force="best_prior") == [[0, 1]]
    assert index([boxes.flip(0)], halves, 0.75, force="best_prior") == [[1, 0]]
    assert index([BOX], halves, 0.75, force="low_quality") == [[0, 0]]
    assert index([BOX], halves, 0.75, force="best_prior") == [[0, -1]]


def test_low_quality_of_a_box_without_overlap_takes_all_priors(backend: str) -> None:
    far = torch.cat([BOX, torch.tensor([[5.0, 5.0, 6.0, 6.0]])])
    assert index([far, BOX], PRIORS, 0.9, force="low_quality") == [[0, 0, 0, 0], [0, -1, -1, -1]]


def torchvision_matcher(quality: Tensor, high: float, low: float, allow_low: bool) -> Tensor:
    """Match as torchvision.models.detection._utils.Matcher and detectron2's do, [M, N] -> [N]."""
    values, matches = quality.max(dim=0)
    matches = (quality == values).to(torch.uint8).argmax(0)
    own = matches.clone()
    matches[values < low] = -1
    matches[(values >= low) & (values < high)] = -2
    if allow_low:
        highest = quality.max(dim=1).values
        _, priors = torch.where(quality == highest[:, None])
        matches[priors] = own[priors]
    return matches


@pytest.mark.parametrize("kind", ["random", "ties", "degenerate", "rows"])
@pytest.mark.parametrize("allow_low", [True, False])
def test_matches_are_those_of_torchvision(backend: str, kind: str, allow_low: bool) -> None:
    force = "low_quality" if allow_low else "none"
    generator = torch.Generator().manual_seed(7)
    priors = random_priors(generator, 300, kind).to(PRIORS.device)
    half = priors[:, 2:] * 0.5
    corners = torch.cat([priors[:, :2] - half, priors[:, :2] + half], 1)
    for boxes in (1, 2, 13, 40):
        gt = random_boxes(generator, boxes, kind).float().to(PRIORS.device)
        want = torchvision_matcher(ops.box_iou(gt, corners), 0.5, 0.4, allow_low)
        got = ops.match_priors([gt], priors, 0.5, low_threshold=0.4, force=force)
        assert torch.equal(got.index[0], want)


def test_each_box_takes_its_best_priors_in_order(backend: str) -> None:
    assert index([BOX], PRIORS, 0.9, top_k=2) == [[0, 0, -1, -1]]
    # The last prior does not overlap the box.
    assert index([BOX], PRIORS, 0.9, top_k=9) == [[0, 0, 0, -1]]
    assert index([BOX], PRIORS[3:], 0.9, top_k=9) == [[0]]
    # Of three equal priors the lower ones are taken.
    assert index([BOX], PRIORS[[3, 1, 1, 1]], 0.9, top_k=2) == [[-1, 0, 0, -1]]


def test_a_prior_goes_to_the_box_in_whose_order_it_comes_first(backend: str) -> None:
    # Box 0 is prior 1, the second of box 1. Box 1 is prior 0, the second of box 0.
    boxes = torch.stack([CORNERS[1], CORNERS[0]])
    assert index([boxes], PRIORS, 0.9, top_k=2) == [[1, 0, -1, -1]]
    # Both have prior 2 as their third: the later box takes it.
    assert index([boxes], PRIORS, 0.9, top_k=3) == [[1, 0, 1, -1]]
    assert index([boxes.flip(0)], PRIORS, 0.9, top_k=3) == [[0, 1, 1, -1]]


def test_one_of_top_k_is_the_usual_rule(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    gt = [random_boxes(generator, n, "ties").float().to(PRIORS.device) for n in (40, 0, 9)]
    priors = random_priors(generator, 300, "ties").to(PRIORS.device)
    one, two = ops.match_priors(gt, priors, top_k=1), ops.match_priors(gt, priors, top_k=2)
    assert torch.equal(one.index, ops.match_priors(gt, priors).index)
    assert torch.equal(one.iou, two.iou) and (two.index >= 0).sum() > (one.index >= 0).sum()


def wasserstein(box: Tensor, prior: Tensor, constant: float) -> float:
    """Compute the normalised Wasserstein distance of the paper from centres and sizes."""
    x1, y1, x2, y2 = box.double().tolist()
    cx, cy, w, h = prior.double().tolist()
    squares = ((x1 + x2) / 2 - cx) ** 2 + ((y1 + y2) / 2 - cy) ** 2
    squares += ((x2 - x1 - w) / 2) ** 2 + ((y2 - y1 - h) / 2) ** 2
    return math.exp(-math.sqrt(squares) / constant)


def test_the_wasserstein_distance_is_that_of_the_paper(backend: str) -> None:
    match = ops.match_priors([BOX + 0.1], PRIORS, metric="nwd", nwd_constant=0.3, force="none")
    want = torch.tensor([wasserstein(BOX[0] + 0.1, prior, 0.3) for prior in PRIORS])
    torch.testing.assert_close(match.iou[0].cpu(), want.cpu(), rtol=1e-5, atol=1e-6)
    assert match.index.tolist() == [[0 if value >= 0.5 else -1 for value in want.tolist()]]


def test_the_wasserstein_distance_sees_boxes_that_do_not_overlap(backend: str) -> None:
    near = torch.tensor([[0.51, 0.51, 0.52, 0.52], [0.4, 0.51, 0.41, 0.52]])
    rules: dict[str, Any] = {"metric": "nwd", "nwd_constant": 0.05, "force": "none"}
    prior = torch.tensor([[0.505, 0.505, 0.01, 0.01]])
    assert index([near], prior, 0.5, **rules) == [[0]]
    assert index([near.flip(0)], prior, 0.5, **rules) == [[1]]
    assert index([near], prior, 0.9, **rules, low_threshold=0.5) == [[-2]]
    # Thresholds of 1 and 0: the same box, and every box.
    assert index([BOX], PRIORS, 1.0, **rules) == [[0, -1, -1, -1]]
    assert index([BOX], PRIORS, 0.0, **rules) == [[0, 0, 0, 0]]


def test_a_box_with_a_nan_has_a_wasserstein_overlap_of_0(backend: str) -> None:
    rules: dict[str, Any] = {"metric": "nwd", "nwd_constant": 0.3}
    boxes = torch.stack([torch.full((4,), math.nan), torch.full((4,), math.inf)])
    match = ops.match_priors([boxes], PRIORS, 0.5, **rules)
    assert match.index.tolist() == [[1, -1, -1, -1]] and match.iou.eq(0).all()
    assert index([boxes], PRIORS, 0.5, **rules, force="none") == [[-1] * 4]
    assert index([boxes], PRIORS, 0.5, **rules, top_k=3) == [[1, -1, -1, -1]]
    assert index([boxes], PRIORS, 0.5, **rules, force="low_quality") == [[0] * 4]


def test_background_on_boxes_to_ignore_is_ignored(backend: str) -> None:
    # The first box covers the lower right quarter of prior 0 and the whole of prior 3.
    crowd = torch.tensor([[0.25, 0.25, 1.0, 1.0]])
    given: dict[str, Any] = {"ignored_xyxy": [crowd, crowd[:0]]}
    assert index([BOX[:0]] * 2, PRIORS, **given) == [[-1, -1, -1, -2], [-1] * 4]
    assert index([BOX[:0]] * 2, PRIORS, **given, ignore_threshold=0.25) == [
        [-2, -1, -1, -2],
        [-1] * 4,
    ]
    assert index([BOX[:0]] * 2, PRIORS, **given, ignore_threshold=0.0) == [
        [-2, -1, -1, -2],
        [-1] * 4,
    ]
    assert index([BOX] * 2, PRIORS, **given, ignore_threshold=0.25)[0] == [0, 0, -1, -2]
    assert index([BOX] * 2, PRIORS, 0.6, **given, low_threshold=0.5)[0] == [0, -2, -1, -2]


def test_what_is_ignored_does_not_depend_on_other_images(backend: str) -> None:
    generator = torch.Generator().manual_seed(5)
    gt = [random_boxes(generator, n).float().to(PRIORS.device) for n in (3, 0, 9)]
    ignored = [random_boxes(generator, n).float().to(PRIORS.device) for n in (0, 2, 40)]
    priors = random_priors(generator, 300).to(PRIORS.device)
    together = ops.match_priors(gt, priors, ignored_xyxy=ignored).index
    for image in range(3):
        alone = ops.match_priors([gt[image]], priors, ignored_xyxy=[ignored[image]])
        assert torch.equal(together[image], alone.index[0])
    assert together.eq(-2).any()


F4 = torch.rand(3, 4)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"low_threshold": 0.6}, ValueError, "low_threshold: expected 0.0 to 0.5, got 0.6"),
    ({"force": "all"}, ValueError, "force: expected 'best_prior' or 'low_quality' or 'none', got "),
    ({"top_k": 0}, ValueError, "top_k: expected 1 to 2147483647, got 0"),
    ({"top_k": 2, "force": "none"}, ValueError, "top_k: expected 1 with force='none', got 2"),
    ({"metric": "giou"}, ValueError, "metric: expected 'iou' or 'nwd', got 'giou'"),
    ({"metric": "nwd"}, ValueError, r"nwd_constant: expected a number with metric=\"nwd\", in the"),
    ({"metric": "nwd", "nwd_constant": 0}, ValueError, "nwd_constant: expected 1e-09 to "),
    (
        {"nwd_constant": 0.1},
        ValueError,
        r"nwd_constant: expected None with metric=\"iou\", got 0.1",
    ),
    (
        {"metric": "nwd", "nwd_constant": 0.1, "iou_eps": 0.1},
        ValueError,
        r"iou_eps: expected 0 with metric=\"nwd\", got 0.1",
    ),
    ({"ignored_xyxy": F4}, TypeError, "ignored_xyxy: expected a list of Tensors, one per image"),
    ({"ignored_xyxy": []}, ValueError, "ignored_xyxy: expected 1 tensors, one per image of gt"),
    ({"ignored_xyxy": [F4[:, :3]]}, ValueError, r"ignored_xyxy\[0\]: expected shape \[M, 4\]"),
    ({"ignored_xyxy": [F4.half()]}, TypeError, r"ignored_xyxy\[0\]: expected dtype torch.float32"),
    (
        {"ignored_xyxy": [F4], "ignore_threshold": 2},
        ValueError,
        "ignore_threshold: expected 0.0 to 1.0, got 2",
    ),
]


@pytest.mark.parametrize(("rules", "error", "message"), WRONG)
def test_wrong_rules_are_named(rules: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"match_priors: {message}"):
        ops.match_priors([F4], F4, **rules)
    with pytest.raises(error, match=f"encode_targets: {message}"):
        ops.encode_targets([F4], [torch.tensor([1, 1, 1])], F4, **rules)


def test_boxes_to_ignore_are_checked_when_asked() -> None:
    bad = torch.tensor([[0.5, 0.5, 0.2, 0.6]])
    with ops.checks(True):
        with pytest.raises(
            ValueError, match=r"match_priors: ignored_xyxy\[1\]\[0\]: expected x1 <"
        ):
            ops.match_priors([BOX, BOX], PRIORS, ignored_xyxy=[BOX, bad])
        with pytest.raises(ValueError, match=r"encode_targets: ignored_xyxy\[0\]\[0\]: expected x"):
            ops.encode_targets([BOX], [torch.tensor([1])], PRIORS, ignored_xyxy=[bad])


def test_a_program_exported_with_the_rules_gives_the_same() -> None:
    class Rules(torch.nn.Module):
        def forward(self, boxes: Tensor, crowd: Tensor) -> tuple[Tensor, Tensor]:
            rules: dict[str, Any] = {"low_threshold": 0.3, "metric": "nwd", "nwd_constant": 0.2}
            return ops.match_priors([boxes], PRIORS, ignored_xyxy=[crowd], top_k=2, **rules)

    args = BOX, torch.tensor([[0.4, 0.4, 1.0, 1.0]])
    got = torch.export.export(Rules(), args).module()(*args)
    want = Rules()(*args)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
