"""mmdetection and mmcv: re-implementations of their interfaces."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from codebases.compare import both
from codebases.mmcv.ops import nms
from codebases.mmdet.models.dense_heads import base_dense_head
from codebases.mmdet.models.task_modules.assigners.max_iou_assigner import MaxIoUAssigner
from torch import Tensor

from mdssd.integrations import mmdetection as fast

MMDET, MMCV = (importlib.import_module(f"codebases.{name}") for name in ("mmdet", "mmcv"))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("mmcv", MMCV), ("mmcv.ops.nms", nms)):
        monkeypatch.setitem(sys.modules, name, module)


def drawn(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = 90 * torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 8 + 30 * torch.rand(count, 2, generator=generator)], 1)


def truth(count: int) -> SimpleNamespace:
    return SimpleNamespace(bboxes=drawn(count, count), labels=torch.arange(count) % 4)


def scene() -> tuple[SimpleNamespace, list[SimpleNamespace]]:
    """Priors, some of them equal, and the boxes of images."""
    priors = drawn(150, 1)
    priors[5:9] = priors[30:34]
    images = [truth(count) for count in (8, 1, 0, 3)]
    images[0].bboxes[2] = priors[30]  # the best of two priors
    images[0].bboxes[4:6] = images[0].bboxes[3]  # share their best prior
    images[3].bboxes[1] = torch.tensor([500.0, 500, 510, 510])  # overlaps no prior
    return SimpleNamespace(priors=priors), images


RULES: list[dict[str, Any]] = [
    {},  # RetinaNet
    {"min_pos_iou": 0.3},  # the region proposal network
    {"gt_max_assign_all": False},  # SSD
    {"gt_max_assign_all": False, "min_pos_iou": 0.4},
    {"match_low_quality": False},  # the second stage
    {"ignore_iof_thr": 0.5},
    {"ignore_iof_thr": 0.5, "ignore_wrt_candidates": False},
    {"ignore_iof_thr": 0.01, "min_pos_iou": 0.2},
]


def fields(result: Any) -> list[Any]:
    return [result.num_gts, result.gt_inds, result.max_overlaps, result.labels]


@pytest.mark.parametrize("thresholds", [(0.5, 0.4), (0.7, 0.3), (0.5, 0.5), (0.5, (0.1, 0.4))])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_assigner(rules: dict[str, Any], thresholds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assigner = MaxIoUAssigner(*thresholds, **rules)
    priors, images = scene()
    ignored = truth(2)
    for pairs in (2**21, 40):  # few at a time
        monkeypatch.setattr(fast, "_PAIRS", pairs)
        for image in images:
            for others in (None, ignored, truth(0)):
                given = priors, image, others
                both((MMDET,), fast, lambda g=given: fields(assigner.assign(*g)))
    none = SimpleNamespace(priors=priors.priors[:0])
    both((MMDET,), fast, lambda: fields(assigner.assign(none, images[0])))
    covered = SimpleNamespace(bboxes=torch.tensor([[-9.0, -9, 200, 200]]))
    both((MMDET,), fast, lambda: fields(assigner.assign(priors, images[0], covered)))


def test_the_matrix_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    priors, images = scene()
    assigner = MaxIoUAssigner(0.5, 0.4)
    want = assigner.assign(priors, images[0]).gt_inds
    called = []
    assigner.iou_calculator = type(
        "BboxOverlaps2D", (), {"dtype": None, "__call__": lambda *a: called.append(a)}
    )()
    compared = []
    original = fast.ops.box_iou
    monkeypatch.setattr(fast.ops, "box_iou", lambda a, b: compared.append(len(b)) or original(a, b))
    with fast.patch(MMDET):
        assert torch.equal(assigner.assign(priors, images[0]).gt_inds, want)
    assert called == [] and 0 < max(compared) < len(want) / 3


def test_boxes_in_a_class_of_their_own() -> None:
    priors, images = scene()
    wrapped = [SimpleNamespace(tensor=each) for each in (priors.priors, images[0].bboxes)]
    image = SimpleNamespace(bboxes=wrapped[1], labels=images[0].labels)
    assigner = MaxIoUAssigner(0.5, 0.4, min_pos_iou=0.3)
    pred = SimpleNamespace(priors=wrapped[0])
    both((MMDET,), fast, lambda: fields(assigner.assign(pred, image, None, a_keyword=1)))


@pytest.mark.parametrize(
    "change",
    [
        {"pos_iou_thr": 1.5},
        {"neg_iou_thr": 1},
        {"perm_repeat_gt_cfg": {}},
        {"min_pos_iou": -0.1},
        {"iou_calculator": SimpleNamespace()},
    ],
    ids=str,
)
def test_what_mmdetection_does_itself(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    priors, images = scene()
    assigner = MaxIoUAssigner(**{"pos_iou_thr": 0.5, "neg_iou_thr": 0.4} | change)
    monkeypatch.setattr(MaxIoUAssigner, "assign", lambda *arguments, **named: "the original")
    with fast.patch(MMDET):
        assert assigner.assign(priors, images[0]) == "the original"
        double = SimpleNamespace(priors=priors.priors.double())
        assert MaxIoUAssigner(0.5, 0.4).assign(double, images[0]) == "the original"


def candidates(count: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.rand(count, generator=torch.Generator().manual_seed(4))
    scores[10:20] = scores[30:40]
    return drawn(count, 9), scores, torch.arange(count) % 3


CONFIGS: list[dict[str, Any] | None] = [
    {"iou_threshold": 0.5},
    {"type": "nms", "iou_threshold": 0.3, "max_num": 20},
    {"iou_threshold": 0.4, "score_threshold": 0.5},
    {"iou_threshold": 0.4, "score_threshold": 0.2, "max_num": 9, "split_thr": 100},
    {"iou_threshold": 0.5, "class_agnostic": True},
    {"iou_threshold": 0.5, "class_agnostic": True, "split_thr": 200},
    {"iou_threshold": 1.5},
    {"iou_threshold": 0.5, "offset": 1, "type": "soft_nms"},
    None,
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("target", [MMDET, MMCV], ids=["mmdet", "mmcv"])
def test_suppression_by_class(target: Any, config: dict[str, Any] | None) -> None:
    given = candidates()
    both((target,), fast, lambda: base_dense_head._bbox_post_process(*given, config))
    both((target,), fast, lambda: nms.batched_nms(*given, config, class_agnostic=True))
    with fast.patch(target):
        none = [part[:0] for part in given]
        if config and "type" not in config and config["iou_threshold"] < 1:
            boxes, index = nms.batched_nms(*none, config)
            assert boxes.shape == (0, 5) and index.shape == (0,)


def test_suppression() -> None:
    boxes, scores, _ = candidates()
    for settings in (
        {"iou_threshold": 0.5},
        {"iou_threshold": 0.3, "score_threshold": 0.4, "max_num": 7},
        {"iou_threshold": -0.5},
        {"iou_threshold": 0.5, "offset": 1},
    ):
        both((MMCV,), fast, lambda s=settings: nms.nms(boxes, scores, **s))
    both((MMCV,), fast, lambda: nms.nms(boxes, scores, 0.5, 0, 0.4, 5))
    both((MMCV,), fast, lambda: nms.nms(boxes[:0], scores[:0], 0.5))


def test_patch_and_undo() -> None:
    owners = (MaxIoUAssigner, nms, base_dense_head)
    before = [dict(vars(owner)) for owner in owners]
    for targets in ((MMDET,), (MMCV,), (MMDET, MMCV)):
        with fast.patch(*targets):
            changed = [
                {name for name, value in vars(owner).items() if value is not old.get(name)}
                for owner, old in zip(owners, before, strict=True)
            ]
            assign = {"assign"} if MMDET in targets else set()
            assert changed == [assign, {"nms", "batched_nms"}, {"batched_nms"}]
        assert [dict(vars(owner)) for owner in owners] == before
    for wrong in (torch.nn.Identity(), importlib.import_module("codebases.effdet")):
        with pytest.raises(TypeError, match=r"^mmdetection\.patch: targets: expected the package"):
            fast.patch(wrong)
