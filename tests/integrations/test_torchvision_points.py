"""Matching and losses of torchvision's FCOS, in plain PyTorch, patched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from codebases.compare import assert_same, both, with_gradients
from codebases.torchvision_levels import FCOS, FCOSHead
from torch import Tensor, nn

from mdssd.integrations import _torchvision_points
from mdssd.integrations import torchvision as fast

CLASSES, STRIDES = 4, (4, 8, 16)
Truth = list[dict[str, Tensor]]


def levels() -> list[Tensor]:
    """The squares around the points of each map, xyxy, for an image of 128 x 96 pixels."""
    maps = []
    for stride in STRIDES:
        y, x = torch.meshgrid(
            torch.arange(0, 96, stride), torch.arange(0, 128, stride), indexing="ij"
        )
        middle = torch.stack([x, y], -1).reshape(-1, 2).float()
        maps.append(torch.cat([middle - stride / 2, middle + stride / 2], 1))
    return maps


SIZES = [len(level) for level in levels()]


def crowd(count: int, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Boxes of all sizes, many inside of others; some are equal, without area or outside."""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.rand(count, 2, generator=generator) * torch.tensor([128.0, 96.0])
    half = 2 ** (6 * torch.rand(count, 2, generator=generator))
    boxes = torch.cat([middle - half, middle + half], 1)
    boxes[count // 2] = boxes[0]
    boxes[1] = boxes[0] + torch.tensor([0, 0, 0, 1e-3])  # as large to torchvision in float32
    boxes[2, 2:] = boxes[2, :2]
    boxes[3, [1, 3]] += 200
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return {"boxes": boxes.to(dtype), "labels": labels}


def nothing() -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


class Seen(nn.Module):
    """A head that returns what it gets."""

    def compute_loss(self, *given: Any) -> Any:
        return given[3]


def matched(model: Any, truth: Truth, own: list[Tensor], sizes: list[int] = SIZES) -> list[Tensor]:
    """Return the index of each image that the model's `compute_loss` gives to its head."""
    model.head = Seen()
    return model.compute_loss(truth, {}, own, sizes)


def check_matching(truth: Truth, own: list[Tensor], **options: Any) -> list[Tensor]:
    model = FCOS()
    want = matched(model, truth, own, **options)
    with fast.patch(model):
        assert_same(matched(model, truth, own, **options), want, exact=True)
    return want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("order", ["rows", "shuffled"])
def test_matching(order: str, dtype: torch.dtype) -> None:
    maps = levels()
    if order == "shuffled":
        generator = torch.Generator().manual_seed(0)
        maps = [level[torch.randperm(len(level), generator=generator)] for level in maps]
    own = torch.cat(maps)
    truth = [crowd(60, 1, dtype), nothing(), crowd(9, 2, dtype)]
    index = check_matching(truth, [own] * 3)
    boxes, each = truth[0]["boxes"], index[0]
    parts = [part >= 0 for part in each.split(SIZES)]
    assert all(part.any() and not part.all() for part in parts)
    middle = (own[:, :2] + own[:, 2:]) / 2
    inside = ((middle[:, None] > boxes[:, :2]) & (middle[:, None] < boxes[:, 2:])).all(2)
    assert (inside[each >= 0].sum(1) > 1).any()  # a choice
    assert (index[1] == -1).all()
    check_matching(truth, [own, own + 3, own])
    check_matching(truth, [own.double()] * 3)


def test_matching_of_one_level_and_of_none() -> None:
    own = torch.cat(levels())
    check_matching([crowd(30, 3)], [own], sizes=[len(own)])
    check_matching([crowd(30, 3)], [own], sizes=[0, *SIZES, 0])
    check_matching([nothing()] * 2, [own] * 2)


def test_matching_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    original = _torchvision_points._Points.within

    def within(self: Any, point: Tensor, boxes: Tensor) -> Tensor:
        largest.append(len(point))
        return original(self, point, boxes)

    monkeypatch.setattr(_torchvision_points._Points, "within", within)
    monkeypatch.setattr(_torchvision_points, "_PAIRS", 500)
    check_matching([crowd(60, 1), crowd(9, 2)], [torch.cat(levels())] * 2)
    assert max(largest) <= 500 and len(largest) > 10


@pytest.mark.parametrize(
    "box", [[float("nan"), 0, 9, 9], [0, 0, float("inf"), 9], [0, 0, 1e30, 1e30]], ids=str
)
def test_boxes_that_are_not_finite_or_too_large(box: list[float]) -> None:
    truth = [crowd(20, 1), crowd(9, 2)]
    truth[0]["boxes"][5] = torch.tensor(box)
    check_matching(truth, [torch.cat(levels())] * 2)


def test_boxes_of_several_types_and_huge_ones() -> None:
    own = [torch.cat(levels())] * 3
    check_matching([crowd(20, 1), crowd(9, 2, torch.float64), nothing()], own)
    check_matching([crowd(20, 1, torch.float16), crowd(9, 2, torch.float16)], own[:2])
    truth = [crowd(20, 1)]
    truth[0]["boxes"][4] = torch.tensor([-6000.0, -6000, 6000, 6000])  # an area above 1e8
    check_matching(truth, own[:1], sizes=[len(own[0])])


def test_losses() -> None:
    model, own = FCOS(), torch.cat(levels())
    generator = torch.Generator().manual_seed(4)
    draw = lambda width: torch.randn(3, len(own), width, generator=generator)  # noqa: E731
    loc, logits, centreness = 2 * draw(4).relu(), 2 * draw(CLASSES) - 1, draw(1)
    loc[:, ::7] = 0  # boxes without area
    truth = [crowd(20, 1), nothing(), crowd(9, 2)]

    def call(loc: Tensor, logits: Tensor, centreness: Tensor) -> list[Tensor]:
        heads = {"bbox_regression": loc, "cls_logits": logits, "bbox_ctrness": centreness}
        return [
            loss
            for anchors in ([own] * 3, [own, own + 3, own])
            for loss in model.compute_loss(truth, heads, anchors, SIZES).values()
        ]

    def compare() -> list[Tensor]:
        both((model,), fast, lambda: with_gradients(call, loc, logits, centreness))
        return call(loc, logits, centreness)

    assert all(loss > 0.1 for loss in compare())
    for coder in (model.box_coder, model.head.box_coder):
        coder.normalize_by_size = False
    compare()
    truth[0]["labels"][:5] = -1  # a background to torchvision
    compare()
    truth[:] = [nothing()] * 3
    assert [bool(loss > 0) for loss in compare()] == [True, False, False] * 2


def test_another_head_keeps_its_loss() -> None:
    class Other(FCOSHead):
        def compute_loss(self, *given: Any) -> dict[str, Tensor]:
            return {"sum": sum(index.sum() for index in given[3])}

    model = FCOS()
    model.head = Other()
    own = [torch.cat(levels())]
    with fast.patch(model):
        assert "compute_loss" in vars(model) and "compute_loss" not in vars(model.head)
        model.compute_loss([crowd(9, 2)], {}, own, SIZES)
    both((model,), fast, lambda: model.compute_loss([crowd(9, 2)], {}, own, SIZES))
