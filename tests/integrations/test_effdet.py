"""effdet, in plain PyTorch and, where it is installed, the package itself."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from codebases.compare import assert_same, both
from codebases.effdet import anchors as plain_anchors
from codebases.effdet import bench as plain_bench
from torch import Tensor

from mdssd.integrations import effdet as fast

PACKAGE = importlib.import_module("codebases.effdet")


def real() -> Any:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    return pytest.importorskip("effdet", reason="effdet is not installed")


def truth() -> tuple[list[Tensor], list[Tensor]]:
    """Boxes (y1, x1, y2, x2) and classes from 1 of four images; -1 is no box."""
    generator = torch.Generator().manual_seed(1)
    boxes, classes = [], []
    for count in (6, 0, 2, 1):
        low = 90 * torch.rand(count, 2, generator=generator)
        size = 8 + 40 * torch.rand(count, 2, generator=generator)
        boxes.append(torch.cat([low, low + size], 1))
        classes.append(torch.randint(1, 6, (count,), generator=generator).float())
    boxes[0][1] = boxes[0][0]  # share their best anchor
    classes[0][3] = -1
    return boxes, classes


@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("itself", [False, True], ids=["plain", "effdet"])
def test_labels(itself: bool, valid: bool) -> None:
    package, module = PACKAGE, plain_anchors
    anchors: Any = plain_anchors.Anchors(128, 160)
    if itself:
        package = real()
        module = importlib.import_module("effdet.anchors")
        ratios = [(1.0, 1.0), (1.4, 0.7)]
        anchors = module.Anchors(3, 5, 1, ratios, 4.0, (128, 160))
    labeler = module.AnchorLabeler(anchors, 5, 0.5)
    boxes, classes = truth()
    both((package,), fast, lambda: labeler.batch_label_anchors(boxes, classes, valid))
    for one in zip(boxes, classes, strict=True):
        both((package,), fast, lambda one=one: labeler.label_anchors(*one, valid))
    assert labeler.batch_label_anchors(boxes, classes, valid)[2].min() == 0


def selected(anchors: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    scores = 2 * torch.randn(2, 90, 1, generator=generator)
    offsets = 0.4 * torch.randn(2, 90, 4, generator=generator)
    index = torch.randint(0, len(anchors), (2, 90), generator=generator)
    return scores, offsets, anchors, index, torch.randint(0, 3, (2, 90), generator=generator)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("most", [100, 7])
@pytest.mark.parametrize("itself", [False, True], ids=["plain", "effdet"])
def test_detections(itself: bool, most: int, sized: bool, soft: bool) -> None:
    package, bench, module = PACKAGE, plain_bench, plain_anchors
    if itself:
        package = real()
        bench, module = (importlib.import_module(f"effdet.{n}") for n in ("bench", "anchors"))
    arguments = selected(plain_anchors.Anchors(128, 160).boxes)
    scale = torch.tensor([1.5, 2.0]) if sized else None
    size = torch.tensor([[200.0, 170.0], [310.0, 220.0]]) if sized else None
    both(
        (package,),
        fast,
        lambda: bench._batch_detection(2, *arguments, scale, size, most, soft),
    )
    one = [part if part is arguments[2] else part[0] for part in arguments]
    for call in (module.generate_detections, bench.generate_detections):
        both((package,), fast, lambda call=call: call(*one, None, None, most, soft))
    found = bench._batch_detection(2, *arguments, scale, size, most, soft)
    assert (found[..., 4] > 0).sum() > 10


def test_versions_that_return_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = plain_anchors.generate_detections

    def older(*arguments: Any) -> Tensor:
        found = own(*arguments)
        found[:, 2:4] -= found[:, :2]
        return found

    for module in (plain_anchors, plain_bench):
        monkeypatch.setattr(module, "generate_detections", older)
    arguments = selected(plain_anchors.Anchors(128, 160).boxes)
    want = plain_bench._batch_detection(2, *arguments)
    with fast.patch(PACKAGE):
        assert_same(plain_bench._batch_detection(2, *arguments), want)


def test_what_effdet_does_itself() -> None:
    labeler = plain_anchors.AnchorLabeler(plain_anchors.Anchors(128, 160), 5)
    labeler.target_assigner._box_coder._scale_factors = [10.0]
    with fast.patch(PACKAGE):
        assert labeler.label_anchors(torch.zeros(0, 4), torch.zeros(0)) == "the original"


def test_patch_and_undo() -> None:
    owners = (plain_anchors, plain_bench, plain_anchors.AnchorLabeler)
    before = [dict(vars(owner)) for owner in owners]
    with fast.patch(PACKAGE):
        changed = [
            {name for name, value in vars(owner).items() if value is not old.get(name)}
            for owner, old in zip(owners, before, strict=True)
        ]
        assert changed == [
            {"generate_detections"},
            {"generate_detections", "_batch_detection"},
            {"label_anchors", "batch_label_anchors"},
        ]
    assert [dict(vars(owner)) for owner in owners] == before
    with pytest.raises(TypeError, match=r"^effdet\.patch: targets: expected the package"):
        fast.patch(torch.nn.Identity())
