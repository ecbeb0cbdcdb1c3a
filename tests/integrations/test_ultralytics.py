"""ultralytics' NMS, in plain PyTorch and, where it is installed, the package itself."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from codebases.compare import assert_same, both
from codebases.ultralytics import predictor
from codebases.ultralytics.utils import nms
from torch import Tensor

from mdssd.integrations import ultralytics as fast

PACKAGE = importlib.import_module("codebases.ultralytics")


def predictions(extra: int = 0, classes: int = 3) -> Tensor:
    """Predictions [3, 4 + classes + extra, 60] in pixels; nothing is found in the last image."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(3, 4, 60, generator=generator) * torch.tensor([[90.0], [90], [40], [40]])
    scores = torch.rand(3, classes, 60, generator=generator) ** 2
    scores[2] /= 10
    return torch.cat([boxes, scores, torch.rand(3, extra, 60, generator=generator)], 1)


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "agnostic": {"agnostic": True},
    "multi_label": {"multi_label": True, "conf_thres": 0.1},
    "classes": {"classes": [0, 2], "conf_thres": 0.1},
    "max_det": {"max_det": 5, "iou_thres": 0.9},
    "max_nms": {"max_nms": 9, "iou_thres": 0.9, "conf_thres": 0.05},
    "indices": {"return_idxs": True},
    "max_wh": {"max_wh": 10},
}


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_non_max_suppression(name: str, extra: int) -> None:
    settings, given = SETTINGS[name], predictions(extra)
    before = given.clone()
    settings = settings | ({"nc": 3} if extra else {})
    counts = [len(found) for found in predictor.predict(given, **settings | {"return_idxs": False})]
    assert counts[0] > 3 and counts[2] == 0 or name == "max_nms"
    for call in (nms.non_max_suppression, predictor.predict):
        both((PACKAGE,), fast, lambda call=call: call(given, **settings))
    both((PACKAGE,), fast, lambda: nms.non_max_suppression([given, None], 0.25, **{}))
    with fast.patch(PACKAGE):
        nms.non_max_suppression(given)
    assert torch.equal(given, before)


def test_what_the_codebase_does_itself() -> None:
    with fast.patch(PACKAGE):
        for settings in (
            {"rotated": True},
            {"end2end": True},
            {"labels": [torch.zeros(1, 5)]},
        ):
            assert nms.non_max_suppression(predictions(), **settings) == "the original"
        assert nms.non_max_suppression(torch.zeros(1, 9, 6)) == "the original"
        with pytest.raises(AssertionError):
            nms.non_max_suppression(predictions(), 1.5)
        with pytest.raises(TypeError):
            nms.non_max_suppression(predictions(), unknown=1)
        assert nms.TorchNMS.nms(torch.zeros(0), torch.zeros(0), 0.5).numel() == 0


def test_torch_nms() -> None:
    found = predictions()[0].T
    boxes = torch.cat([found[:, :2], found[:, :2] + found[:, 2:4]], 1)
    both((PACKAGE,), fast, lambda: nms.TorchNMS.nms(boxes, found[:, 4], 0.4))


def test_patch_and_undo() -> None:
    owners = (nms, predictor, nms.TorchNMS)
    before = [dict(vars(owner)) for owner in owners]
    with fast.patch(PACKAGE):
        assert vars(nms.TorchNMS)["nms"] is not before[2]["nms"]
        assert nms.non_max_suppression is predictor.non_max_suppression
        assert nms.non_max_suppression is not before[0]["non_max_suppression"]
    assert [dict(vars(owner)) for owner in owners] == before
    for wrong in (None, torch.nn.Identity(), importlib.import_module("math")):
        with pytest.raises(TypeError, match=r"^ultralytics\.patch: targets: expected the package"):
            fast.patch(wrong)


@pytest.mark.parametrize("name", SETTINGS)
def test_against_ultralytics_itself(name: str) -> None:
    """The real function, which may or may not use torchvision."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    real = importlib.import_module("ultralytics.utils.nms")
    for given in (predictions(), predictions(0, 1), predictions(0, 80)):
        settings = {**SETTINGS[name], "conf_thres": 0.05}
        if given.shape[1] == 5:
            settings.pop("classes", None)
        want = real.non_max_suppression(given.clone(), **settings)
        with fast.patch(ultralytics):
            got = real.non_max_suppression(given.clone(), **settings)
        assert_same(got, want)
