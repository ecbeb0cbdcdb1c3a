"""Benchmark the functions of other codebases with and without this project's adapters.

Without an adapter, the functions are those of tests/codebases, in plain PyTorch; every patched
result is checked against them. Codebases that call torchvision's NMS also do so here. If
torchvision is not installed, they use this project's NMS, which favours them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from codebases import plain, torchvision_ssd
from codebases.detectron2.layers import nms as detectron2_nms
from codebases.detectron2.modeling.proposal_generator.rpn import RPN
from codebases.detectron2.structures.boxes import Boxes
from codebases.lufficc.ssd.modeling.box_head import box_head
from codebases.mmcv.ops import nms as mmcv_nms
from codebases.mmdet.models.task_modules.assigners.max_iou_assigner import MaxIoUAssigner
from codebases.nvidia.ssd import model as nvidia_model
from codebases.nvidia.ssd import utils as nvidia_utils
from codebases.qfgaohao.vision.nn.multibox_loss import MultiboxLoss
from codebases.qfgaohao.vision.ssd.predictor import Predictor
from codebases.qfgaohao.vision.utils import box_utils
from codebases.ssd_pytorch.layers.modules.multibox_loss import MultiBoxLoss
from codebases.ssd_pytorch.ssd import SSD
from torch import Tensor

from benchmarks import generators
from benchmarks.peers.detection import Found, differences
from benchmarks.rows import Sides
from benchmarks.turns import Side
from mdssd import ops
from mdssd.integrations import (
    detectron2,
    lufficc,
    mmdetection,
    nvidia,
    qfgaohao,
    ssd_pytorch,
    torchvision,
)

_CLASSES, _SIDE, _IMAGES = 21, 300, 8


class _Made(NamedTuple):
    adapter: Any
    targets: tuple[Any, ...]
    call: Callable[[], Any]
    found: Callable[[Any], Found] = Found._make  # converts a call's result


# Whether the codebase is patched
_SIDES = Sides("cpu", {"mdssd cpp": True, "its own way": False})


def _prepare(made: _Made, check: Callable[[], None], peer: str, patched: bool) -> Side:
    """Return a side that patches the codebase for each of its turns, or not at all."""
    around = partial(made.adapter.patch, *made.targets) if patched else nullcontext
    with around():
        check()
    return Side(made.call, around)


def _package(name: str) -> ModuleType:
    return importlib.import_module(f"codebases.{name}")


# --- post-processing ---------------------------------------------------------------------------


def _ssd_pytorch_found(output: Tensor) -> Found:
    rows = output[0][output[0, ..., 0] > 0]
    labels = (output[0, ..., 0] > 0).nonzero()[:, 0]
    return Found(rows[:, 1:], rows[:, 0], labels)


def _ssd_pytorch_detections(x: generators.NetworkOutput) -> _Made:
    net = SSD(_CLASSES, x.priors)
    scores = x.logits.softmax(-1)
    call = lambda: net.detect(x.loc, scores, x.priors)  # noqa: E731
    return _Made(ssd_pytorch, (net,), call, _ssd_pytorch_found)


def _torchvision_detections(x: generators.NetworkOutput) -> _Made:
    model = torchvision_ssd.SSD(_SIDE * plain.corners(x.priors))
    outputs = {"bbox_regression": x.loc, "cls_logits": x.logits}
    arguments = (outputs, [model.anchors], [(_SIDE, _SIDE)])
    call = lambda: model.postprocess_detections(*arguments)  # noqa: E731
    return _Made(torchvision, (model,), call, lambda found: Found(*found[0].values()))


def _lufficc_detections(x: generators.NetworkOutput) -> _Made:
    model = box_head.SSDDetector(x.priors)
    decoded = x.logits.softmax(-1), ops.decode_boxes(x.loc, x.priors)

    def found(results: list[Any]) -> Found:
        return Found(results[0].boxes, results[0].scores, results[0].labels)

    return _Made(lufficc, (model,), lambda: model.box_head.post_processor(decoded), found)


def _qfgaohao_detections(x: generators.NetworkOutput) -> _Made:
    scores, boxes = x.logits[0].softmax(-1), ops.decode_boxes(x.loc, x.priors)[0]
    predictor = Predictor()
    return _Made(
        qfgaohao,
        (_package("qfgaohao.vision"),),
        lambda: predictor.predict(scores, boxes),
        lambda found: Found(found[0], found[2], found[1]),
    )


def _nvidia_detections(x: generators.NetworkOutput) -> _Made:
    encoder = nvidia_utils.Encoder(nvidia_utils.DefaultBoxes(x.priors))
    loc, logits = (part.transpose(1, 2).contiguous() for part in (x.loc, x.logits))
    return _Made(
        nvidia,
        (_package("nvidia.ssd"),),
        lambda: encoder.decode_batch(loc, logits),
        lambda found: Found(*(found[0][i].flip(0) for i in (0, 2, 1))),
    )


_DETECTIONS = {
    "ssd.pytorch": _ssd_pytorch_detections,
    "torchvision": _torchvision_detections,
    "lufficc/SSD": _lufficc_detections,
    "pytorch-ssd": _qfgaohao_detections,
    "NVIDIA": _nvidia_detections,
}


@pytest.fixture
def native_nms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a fast NMS in the codebases that call torchvision's."""
    try:
        from torchvision.ops import batched_nms, nms
    except (ImportError, RuntimeError):
        batched_nms, nms = ops.batched_nms, ops.nms
    monkeypatch.setattr(plain, "suppress_by_class", batched_nms)
    monkeypatch.setattr(plain, "suppress_all", nms)
    monkeypatch.setattr(torchvision_ssd.torchvision.ops.boxes, "batched_nms", batched_nms)


@pytest.fixture(autouse=True)
def mmcv_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mmdetection's adapter find what it imports by name."""
    for name, module in (("mmcv", _package("mmcv")), ("mmcv.ops.nms", mmcv_nms)):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("candidates", [500, None], ids=["trained", "untrained"])
@pytest.mark.parametrize("codebase", _DETECTIONS)
def test_post_processing(
    codebase: str,
    candidates: int | None,
    native_nms: None,
    measure: Callable[..., None],
) -> None:
    """Post-process one image."""
    x = generators.network_output("ssd300", _CLASSES, candidates)
    made = _DETECTIONS[codebase](x)
    want = made.found(made.call())
    scale = torch.tensor(_SIDE if float(want.boxes.max()) > 10 else 1)

    def check() -> None:
        pair = made.found(made.call()), want
        got, expected = (Found(f.boxes / scale, *f[1:]) for f in pair)
        assert not (lines := differences(got, expected)), "\n".join(lines[:10])

    measure(
        _SIDES,
        partial(_prepare, made, check),
        op="post-processing of other codebases",
        row=f"{codebase}, {'trained' if candidates else 'untrained'}",
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
    )


def test_ssd_pytorch_nms(measure: Callable[..., None]) -> None:
    """Run only NMS, on all priors for one class."""
    x = generators.network_output("ssd300", _CLASSES, None)
    boxes, scores = ops.decode_boxes(x.loc, x.priors)[0], x.logits[0].softmax(-1)[:, 1].contiguous()
    detection = importlib.import_module("codebases.ssd_pytorch.layers.functions.detection")

    def call() -> tuple[Tensor, int]:
        result: tuple[Tensor, int] = detection.nms(boxes, scores, 0.45, 200)
        return result

    want, count = call()

    def check() -> None:
        got, kept = call()
        assert kept == count and torch.equal(got[:count], want[:count])

    measure(
        _SIDES,
        partial(_prepare, _Made(ssd_pytorch, (_package("ssd_pytorch.layers"),), call), check),
        op="post-processing of other codebases",
        row="ssd.pytorch, NMS alone, untrained",
        dtype=torch.float32,
        shape=str(list(boxes.shape)),
    )


def _detectron2_nms(boxes: Tensor, scores: Tensor, classes: Tensor) -> _Made:
    call = lambda: detectron2_nms.batched_nms(boxes, scores, classes, 0.5)  # noqa: E731
    return _Made(detectron2, (_package("detectron2"),), call)


def _mmdetection_nms(boxes: Tensor, scores: Tensor, classes: Tensor) -> _Made:
    settings = {"type": "nms", "iou_threshold": 0.5}
    call = lambda: mmcv_nms.batched_nms(boxes, scores, classes, settings)[1]  # noqa: E731
    return _Made(mmdetection, (_package("mmdet"),), call)


_SUPPRESSIONS = {"detectron2": _detectron2_nms, "mmdetection": _mmdetection_nms}


@pytest.mark.parametrize("codebase", _SUPPRESSIONS)
def test_batched_nms(codebase: str, native_nms: None, measure: Callable[..., None]) -> None:
    """Suppress 10,000 boxes of 80 classes, from which on mmcv does so class by class."""
    generator = torch.Generator().manual_seed(0)
    boxes = 640 * generators.small_boxes(generator, 10000)
    scores = torch.rand(10000, generator=generator)
    classes = torch.randint(80, (10000,), generator=generator)
    made = _SUPPRESSIONS[codebase](boxes, scores, classes)
    want = made.call()

    def check() -> None:
        got = made.call()
        assert torch.equal(got.sort().values, want.sort().values)
        assert torch.equal(scores[got], scores[want])

    measure(
        _SIDES,
        partial(_prepare, made, check),
        op="post-processing of other codebases",
        row=f"{codebase}, batched_nms, 80 classes",
        dtype=torch.float32,
        shape=str(list(boxes.shape)),
    )


# --- targets and loss ----------------------------------------------------------------------------


def _losses(
    call: Callable[[Tensor, Tensor], Any], x: generators.LossInput
) -> Callable[[], list[Tensor]]:
    """Return a call that computes the losses and their gradients."""
    loc, logits = x.loc.requires_grad_(), x.logits.requires_grad_()

    def run() -> list[Tensor]:
        losses = call(loc, logits)
        losses = list(losses.values()) if isinstance(losses, dict) else list(losses)
        return [part.detach() for part in losses] + list(
            torch.autograd.grad(sum(losses), (loc, logits))
        )

    return run


def _ssd_pytorch_loss(x: generators.LossInput, truth: generators.Truth) -> _Made:
    criterion, priors = MultiBoxLoss(_CLASSES, 0.5, 3), generators.priors("ssd300")
    rows = [torch.cat([b, c[:, None] - 1], 1) for b, c in zip(*truth, strict=True)]
    call = _losses(lambda loc, logits: criterion((loc, logits, priors), rows), x)
    return _Made(ssd_pytorch, (_package("ssd_pytorch.layers"),), call)


def _torchvision_loss(x: generators.LossInput, truth: generators.Truth) -> _Made:
    model = torchvision_ssd.SSD(_SIDE * plain.corners(generators.priors("ssd300")))
    targets = [{"boxes": _SIDE * b, "labels": c} for b, c in zip(*truth, strict=True)]

    def call(loc: Tensor, logits: Tensor) -> Any:
        outputs = {"bbox_regression": loc, "cls_logits": logits}
        return model(outputs, [(_SIDE, _SIDE)] * len(targets), targets)

    return _Made(torchvision, (model,), _losses(call, x))


def _lufficc_loss(x: generators.LossInput, truth: generators.Truth) -> _Made:
    model = box_head.SSDDetector(generators.priors("ssd300"))
    targets = (x.loc_targets, x.labels)
    return _Made(lufficc, (model,), _losses(lambda loc, logits: model(logits, loc, targets), x))


def _qfgaohao_loss(x: generators.LossInput, truth: generators.Truth) -> _Made:
    criterion = MultiboxLoss(generators.priors("ssd300"), 0.5, 3)
    call = _losses(lambda loc, logits: criterion(logits, loc, x.labels, x.loc_targets), x)
    return _Made(qfgaohao, (_package("qfgaohao.vision"),), call)


def _nvidia_loss(x: generators.LossInput, truth: generators.Truth) -> _Made:
    default = nvidia_utils.DefaultBoxes(generators.priors("ssd300"))
    encoder, criterion = nvidia_utils.Encoder(default), nvidia_model.Loss(default)
    encoded = [encoder.encode(*one) for one in zip(*truth, strict=True)]
    boxes = torch.stack([one[0] for one in encoded]).transpose(1, 2).contiguous()
    labels = torch.stack([one[1] for one in encoded])
    x = x._replace(loc=x.loc.transpose(1, 2), logits=x.logits.transpose(1, 2))
    x = x._replace(loc=x.loc.detach().contiguous(), logits=x.logits.detach().contiguous())
    call = _losses(lambda loc, logits: [criterion(loc, logits, boxes, labels)], x)
    return _Made(nvidia, (_package("nvidia.ssd"),), call)


def _lufficc_matching(x: generators.LossInput, truth: generators.Truth) -> _Made:
    corners = plain.corners(generators.priors("ssd300"))

    def call() -> list[Any]:
        return [box_utils.assign_priors(*one, corners, 0.5) for one in zip(*truth, strict=True)]

    return _Made(qfgaohao, (_package("qfgaohao.vision"),), call)


def _nvidia_matching(x: generators.LossInput, truth: generators.Truth) -> _Made:
    encoder = nvidia_utils.Encoder(nvidia_utils.DefaultBoxes(generators.priors("ssd300")))
    targets = (_package("nvidia.ssd"),)
    return _Made(nvidia, targets, lambda: [encoder.encode(*o) for o in zip(*truth, strict=True)])


def _detectron2_matching(x: generators.LossInput, truth: generators.Truth) -> _Made:
    anchors = [Boxes(_SIDE * plain.corners(generators.priors("ssd300")))]
    boxes = [Boxes(_SIDE * each) for each in truth.boxes]
    call = lambda: RPN().label_and_sample_anchors(anchors, boxes)  # noqa: E731
    return _Made(detectron2, (_package("detectron2"),), call)


def _mmdetection_matching(x: generators.LossInput, truth: generators.Truth) -> _Made:
    priors = SimpleNamespace(priors=_SIDE * plain.corners(generators.priors("ssd300")))
    images = [
        SimpleNamespace(bboxes=_SIDE * boxes, labels=labels)
        for boxes, labels in zip(*truth, strict=True)
    ]
    assigner = MaxIoUAssigner(0.5, 0.4)

    def call() -> list[tuple[Tensor, ...]]:
        found = [assigner.assign(priors, image) for image in images]
        return [(one.gt_inds, one.max_overlaps, one.labels) for one in found]

    return _Made(mmdetection, (_package("mmdet"),), call)


_TRAINING = {
    "ssd.pytorch, targets and loss": _ssd_pytorch_loss,
    "torchvision, targets and loss": _torchvision_loss,
    "lufficc/SSD, loss": _lufficc_loss,
    "pytorch-ssd, loss": _qfgaohao_loss,
    "NVIDIA, loss": _nvidia_loss,
    "lufficc/SSD and pytorch-ssd, matching": _lufficc_matching,
    "NVIDIA, matching": _nvidia_matching,
    "detectron2, matching": _detectron2_matching,
    "mmdetection, matching": _mmdetection_matching,
}


def _flat(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for item in value:
            yield from _flat(item)


@pytest.mark.parametrize("what", _TRAINING)
def test_training(what: str, measure: Callable[..., None]) -> None:
    """Run the losses, forward and backward, and the matching."""
    x, truth = generators.loss_input("ssd300", _IMAGES, _CLASSES), generators.truth(_IMAGES, 10)
    made = _TRAINING[what](x, truth)
    want = made.call()

    def check() -> None:
        for g, w in zip(_flat(made.call()), _flat(want), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6)

    measure(
        _SIDES,
        partial(_prepare, made, check),
        op="training of other codebases",
        row=f"{what}, {_IMAGES} images",
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
    )
