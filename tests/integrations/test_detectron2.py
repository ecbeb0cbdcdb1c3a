"""detectron2: re-implementations of its interfaces, as the package index does not have it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from codebases.compare import assert_same, both
from codebases.detectron2.layers import nms
from codebases.detectron2.modeling import matcher
from codebases.detectron2.modeling.meta_arch import retinanet
from codebases.detectron2.modeling.proposal_generator import proposal_utils, rpn
from codebases.detectron2.modeling.roi_heads import cascade_rcnn, roi_heads
from codebases.detectron2.structures import boxes as structures
from codebases.detectron2.structures.boxes import Boxes
from torch import Tensor

from mdssd.integrations import detectron2 as fast

PACKAGE = importlib.import_module("codebases.detectron2")
USERS = (rpn, retinanet, roi_heads, cascade_rcnn)


def drawn(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = 90 * torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 8 + 30 * torch.rand(count, 2, generator=generator)], 1)


def scene() -> tuple[list[Boxes], list[Boxes]]:
    """Anchors of three feature maps, some of them equal; the boxes of four images."""
    levels = [drawn(count, count) for count in (120, 40, 9)]
    levels[0][5:9] = levels[0][30:34]
    images = [drawn(count, 50 + count) for count in (7, 0, 1)]
    images[0][2] = levels[0][30]  # an IoU of 1 with two anchors
    images[0][4] = images[0][5]
    images[0][6] = torch.tensor([500.0, 500, 510, 510])  # overlaps no anchor
    return [Boxes(each) for each in levels], [Boxes(each) for each in images]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Count the matrices of overlaps that are computed from here on."""
    computed, original = [], structures.pairwise_iou

    def pairwise_iou(*arguments: Any) -> Tensor:
        computed.append(arguments)
        return original(*arguments)

    for module in (structures, *USERS):
        monkeypatch.setattr(module, "pairwise_iou", pairwise_iou)
    return computed


def test_matching_needs_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, images = scene()
    joined = [Boxes.cat(levels)] * 3
    classes = [torch.arange(len(boxes)) % 5 for boxes in images]
    network, cascade = retinanet.RetinaNet(), cascade_rcnn.CascadeROIHeads()
    calls = [
        lambda: rpn.RPN().label_and_sample_anchors(levels, images),
        lambda: network.label_anchors(levels, list(zip(images, classes, strict=True))),
        lambda: roi_heads.ROIHeads().label_and_sample_proposals(joined, images),
        *(
            lambda stage=stage: cascade._match_and_label_boxes(joined, stage, images)
            for stage in range(3)
        ),
    ]
    computed = counted(monkeypatch)
    for call in calls:
        want = call()
        assert len(computed) == 3
        with fast.patch(PACKAGE):
            assert_same(call(), want, exact=True)
            assert len(computed) == 3
        assert_same(call(), want, exact=True)
        computed.clear()


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize(
    ("thresholds", "labels"),
    [([0.5], [0, 1]), ([0.3, 0.3, 0.6], [-1, 0, -1, 1]), ([0.2, 0.4, 0.8], [1, 0, 1, -1])],
)
def test_any_intervals(thresholds: list[float], labels: list[int], low_quality: bool) -> None:
    levels, images = scene()
    match = matcher.Matcher(thresholds, labels, low_quality)
    both((PACKAGE,), fast, lambda: match(rpn.pairwise_iou(images[0], levels[0])))
    exactly = Boxes(torch.tensor([[0.0, 0, 4, 4]])), Boxes(torch.tensor([[0.0, 0, 4, 8]]))
    both((PACKAGE,), fast, lambda: match(rpn.pairwise_iou(*exactly)))  # 0.5


def test_what_other_code_reads_of_the_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, images = scene()
    want = structures.pairwise_iou(images[0], levels[0])
    computed = counted(monkeypatch)
    with fast.patch(PACKAGE):
        overlaps = rpn.pairwise_iou(images[0], levels[0])
        assert overlaps.shape == want.shape and overlaps.dtype == want.dtype
        assert overlaps.dim() == 2 and overlaps.numel() == want.numel() and computed == []
        assert torch.equal(overlaps.max(0).values, want.max(0).values)
        assert torch.equal(overlaps[1] * 2, want[1] * 2) and (overlaps >= 0).all()
        assert len(computed) == 1
        overlaps[:, 3] = 0.9  # the matcher then sees the changed values
        want[:, 3] = 0.9
        assert_same(matcher.Matcher([0.5], [0, 1])(overlaps), matcher.Matcher([0.5], [0, 1])(want))


def test_boxes_with_a_nan_have_no_anchor() -> None:
    levels, images = scene()
    images[0].tensor[0, 0] = torch.nan
    match = matcher.Matcher([0.5], [0, 1])
    with fast.patch(PACKAGE):
        index, labels = match(rpn.pairwise_iou(images[0], levels[0]))
    others = Boxes(images[0].tensor[1:])
    want, want_labels = match(structures.pairwise_iou(others, levels[0]))
    own = labels == 1
    assert torch.equal(labels, want_labels) and torch.equal(index[own], want[own] + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_suppression(dtype: torch.dtype) -> None:
    levels, _ = scene()
    proposals = [boxes.tensor.to(dtype) for boxes in levels]
    logits = [torch.linspace(-1, 2, len(boxes)).roll(7) for boxes in levels]
    both(
        (PACKAGE,), fast, lambda: proposal_utils.find_top_rpn_proposals(proposals, logits, 0.4, 60)
    )
    arguments = proposals[0], logits[0], torch.arange(120) % 3
    both((PACKAGE,), fast, lambda: nms.batched_nms(*arguments, 0.5))
    both((PACKAGE,), fast, lambda: nms.batched_nms(*arguments, iou_threshold=0.0))
    both((PACKAGE,), fast, lambda: nms.batched_nms(*arguments, 1.5))  # its own code
    none = proposals[0][:0], logits[0][:0], arguments[2][:0]
    both((PACKAGE,), fast, lambda: nms.batched_nms(*none, 0.5))


def test_equal_scores_keep_the_same_boxes_ranked_by_the_lower_row() -> None:
    generator = torch.Generator().manual_seed(0)
    corner, size = torch.rand(2, 2000, 2, generator=generator)
    boxes = torch.cat([corner, corner + 0.3 * size], 1)
    classes = torch.randint(4, (2000,), generator=generator)
    scores = torch.rand(2000, generator=generator).mul(2).clamp(max=1)
    ranks = torch.empty(2000)
    ranks[scores.argsort(descending=True, stable=True)] = torch.arange(2000, 0, -1).float()
    want = nms.batched_nms(boxes, ranks, classes, 0.5)
    with fast.patch(PACKAGE):
        kept = nms.batched_nms(boxes, scores, classes, 0.5)
    assert (scores[kept] == 1).sum() > 100 and len(kept) < 2000
    assert torch.equal(kept, want)
    unpatched = nms.batched_nms(boxes, scores, classes, 0.5)
    assert torch.equal(unpatched.sort().values, kept.sort().values)


def test_patch_and_undo() -> None:
    owners = (*USERS, matcher.Matcher, nms, proposal_utils, structures)
    before = [dict(vars(owner)) for owner in owners]
    with fast.patch(PACKAGE):
        changed = [
            {name for name, value in vars(owner).items() if value is not old.get(name)}
            for owner, old in zip(owners, before, strict=True)
        ]
        assert changed == [
            *[{"pairwise_iou"}] * 4,
            {"__call__"},
            *[{"batched_nms"}] * 2,
            set(),
        ]
    assert [dict(vars(owner)) for owner in owners] == before
    for wrong in (torch.nn.Identity(), importlib.import_module("codebases.effdet")):
        with pytest.raises(TypeError, match=r"^detectron2\.patch: targets: expected the package"):
            fast.patch(wrong)
