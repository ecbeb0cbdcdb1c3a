"""RetinaNet, FCOS and the region proposal network of torchvision, in plain PyTorch, patched.

The backends are compared with each other where the operators are tested.
"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from codebases import plain
from codebases.compare import both, with_gradients
from codebases.torchvision_levels import (
    FCOS,
    FasterRCNN,
    RetinaNet,
    RetinaNetClassificationHead,
)
from codebases.torchvision_ssd import torchvision as fake_torchvision
from torch import Tensor

from mdssd.integrations import torchvision as fast

CLASSES, LEVELS = 4, (75, 27, 12)  # anchors of each feature map
SHAPES = [(96, 128), (90, 100), (96, 128)]  # height, width of each image


def anchors() -> list[Tensor]:
    """Anchors xyxy of each feature map, some of them equal."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for level, size in enumerate(LEVELS):
        middle = torch.rand(size, 2, generator=generator) * torch.tensor([128.0, 96.0])
        half = 2.0**level * (5 + 6 * torch.rand(size, 2, generator=generator))
        parts.append(torch.cat([middle - half, middle + half], 1))
    parts[0][10:14] = parts[0][20:24]
    return parts


def outputs(model: Any) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)

    def draw(width: int) -> list[Tensor]:
        return [torch.randn(3, size, width, generator=generator) for size in LEVELS]

    found = {"bbox_regression": draw(4), "cls_logits": [2 * part - 1 for part in draw(CLASSES)]}
    for part in found["cls_logits"]:
        part[2] -= 30  # nothing to detect in the last image
    if isinstance(model, FCOS):
        found["bbox_regression"] = [1.5 * part.relu() for part in found["bbox_regression"]]
        found["bbox_ctrness"] = draw(1)
    return found


def targets() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    first = torch.cat(anchors())[[3, 3, 50, 80]] + 1
    low = 90 * torch.rand(6, 2, generator=generator)
    second = torch.cat([low, low + 10 + 20 * torch.rand(6, 2, generator=generator)], 1)
    labels = torch.randint(0, CLASSES, (10,), generator=generator)
    return [
        {"boxes": first, "labels": labels[:4]},
        {"boxes": torch.zeros(0, 4), "labels": labels[:0]},
        {"boxes": second, "labels": labels[4:]},
    ]


@pytest.mark.parametrize("together", [True, False], ids=["views", "copies"])
@pytest.mark.parametrize("per_level", [1000, 25])
@pytest.mark.parametrize("model", [RetinaNet, FCOS])
def test_detections(model: Any, per_level: int, together: bool) -> None:
    model = model()
    model.topk_candidates, model.detections_per_img = per_level, 60
    model.box_coder.bbox_xform_clip = math.log(1.3)
    heads = outputs(model)
    if together:
        heads = {k: list(torch.cat(v, 1).split(LEVELS, 1)) for k, v in heads.items()}
    for shapes in (SHAPES, SHAPES[:1] * 3):
        call = lambda s=shapes: model.postprocess_detections(heads, [anchors()] * 3, s)  # noqa: E731
        counts = [len(found["scores"]) for found in call()]
        assert counts[2] == 0 and counts[0] > 25
        both((model,), fast, call)
    model.score_thresh = -1  # outside of the operators' range
    both((model,), fast, call)
    with fast.patch(model):
        assert model.postprocess_detections(heads, [], []) == []


def test_fcos_without_sizes() -> None:
    model = FCOS()
    model.box_coder.normalize_by_size = False
    heads = outputs(model)
    heads["bbox_regression"] = [12 * part for part in heads["bbox_regression"]]
    both((model,), fast, lambda: model.postprocess_detections(heads, [anchors()] * 3, SHAPES))


def other_anchors() -> list[Tensor]:
    """Anchors of each image, of which one image's differ."""
    each = [torch.cat(anchors()) for _ in range(3)]
    each[2] += 3
    return each


@pytest.mark.parametrize("low_quality", [True, False])
def test_retinanet_loss(low_quality: bool) -> None:
    model = RetinaNet()
    model.proposal_matcher.allow_low_quality_matches = low_quality
    heads = outputs(model)
    truth = targets()

    def call(loc: Tensor, logits: Tensor) -> Any:
        found = {"bbox_regression": loc, "cls_logits": logits}
        return [
            loss
            for own in ([torch.cat(anchors())] * 3, other_anchors())
            for loss in model.compute_loss(truth, found, own).values()
        ]

    loc, logits = (torch.cat(heads[name], 1) for name in ("bbox_regression", "cls_logits"))
    both((model,), fast, lambda: with_gradients(call, loc, logits))
    truth[2]["labels"][0] = -1  # counts from the last class
    both((model,), fast, lambda: with_gradients(call, loc, logits))
    truth[:] = truth[1:2] * 3
    both((model,), fast, lambda: with_gradients(call, loc, logits))


def test_another_head_keeps_its_loss() -> None:
    class Other(RetinaNetClassificationHead):
        def compute_loss(self, *given: Any) -> Tensor:
            return given[2][0].sum()

    model = RetinaNet()
    model.head.classification_head = Other()
    found = {name: torch.cat(parts, 1) for name, parts in outputs(model).items()}
    own = [torch.cat(anchors())] * 3
    with fast.patch(model):
        assert "compute_loss" not in vars(model.head.classification_head)
    both((model,), fast, lambda: model.compute_loss(targets(), found, own))


def test_boxes_of_another_type_and_other_matchers_are_left_to_the_original() -> None:
    model = RetinaNet()
    heads = outputs(model)
    found = {name: torch.cat(parts, 1) for name, parts in heads.items()}
    calls = []

    class Other(type(model.proposal_matcher)):  # type: ignore[misc]
        def __call__(self, match_quality_matrix: Tensor) -> Tensor:
            calls.append(match_quality_matrix.dtype)
            return super().__call__(match_quality_matrix)

    own = [torch.cat(anchors())] * 3
    with fast.patch(model):
        model.compute_loss(targets(), found, own)
        assert calls == []
        model.proposal_matcher = Other(0.5, 0.4)
        model.compute_loss(targets(), found, own)
        assert calls == [torch.float32] * 2
        Other.__name__ = "Matcher"
        wide = [{**target, "boxes": target["boxes"].double()} for target in targets()]
        model.compute_loss(wide, found, own)
        assert calls[2:] == [torch.float64] * 2


@pytest.mark.parametrize("training", [True, False])
def test_filter_proposals(training: bool) -> None:
    model = FasterRCNN().train(training)
    generator = torch.Generator().manual_seed(4)
    low = 100 * torch.rand(3, sum(LEVELS), 2, generator=generator) - 10
    size = 30 * torch.rand(3, sum(LEVELS), 2, generator=generator)
    size[:, ::10] = 0
    logits = torch.randn(3 * sum(LEVELS), 1, generator=generator)
    arguments = (torch.cat([low, low + size], 2), logits, SHAPES, list(LEVELS))
    for threshold, score in ((0.5, 0.0), (0.5, 0.6), (1.5, 0.6), (-0.5, 0.6)):
        model.rpn.nms_thresh, model.rpn.score_thresh = threshold, score
        both((model,), fast, lambda: model.rpn.filter_proposals(*arguments))
        both((model.rpn, fake_torchvision), fast, lambda: model.rpn.filter_proposals(*arguments))


def test_rpn_matching() -> None:
    model = FasterRCNN()
    for own in ([torch.cat(anchors())] * 3, other_anchors()):
        arguments = (own, targets())
        labels, _ = model.rpn.assign_targets_to_anchors(*arguments)
        assert set(torch.cat(labels).tolist()) == {0.0, 1.0, -1.0}
        both((model,), fast, lambda a=arguments: model.rpn.assign_targets_to_anchors(*a))
    model.rpn.box_similarity = lambda boxes, own: plain.overlaps(boxes[:, None], own[None]) / 2
    both((model,), fast, lambda: model.rpn.assign_targets_to_anchors(*arguments))


@pytest.mark.parametrize("make", [RetinaNet, FCOS, FasterRCNN])
def test_patch_and_undo(make: Any) -> None:
    model = make()
    owners = [module for module in model.modules()]
    before = [dict(vars(owner)) for owner in owners]
    patched = fast.patch(model)
    changed = {
        name
        for owner, old in zip(owners, before, strict=True)
        for name in vars(owner).keys() - old.keys()
    }
    assert (
        changed
        == {
            RetinaNet: {"compute_loss", "postprocess_detections"},
            FCOS: {"compute_loss", "postprocess_detections"},
            FasterRCNN: {"filter_proposals", "assign_targets_to_anchors"},
        }[make]
    )
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for mine, its in zip(model.modules(), other.modules(), strict=True):
            assert vars(mine).keys() == vars(its).keys()
            for name in changed & vars(its).keys():
                assert vars(its)[name].args[0] is its  # reads its own settings
    patched.undo()
    assert [dict(vars(owner)) for owner in owners] == before
