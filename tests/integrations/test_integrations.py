"""The adapters for other SSD codebases, each compared with its codebase.

`codebases` reproduces each in plain PyTorch. It runs unpatched, patched, and unpatched again.
"""

from __future__ import annotations

import copy
import importlib
import math
import pickle
import sys
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from codebases import plain
from codebases.compare import assert_same, both, with_gradients
from codebases.lufficc.ssd.modeling.backbone import vgg
from codebases.lufficc.ssd.modeling.box_head.box_head import SSDDetector
from codebases.lufficc.ssd.utils import box_utils as lufficc_box_utils
from codebases.nvidia.ssd import model as nvidia_model
from codebases.nvidia.ssd import utils as nvidia_utils
from codebases.qfgaohao.vision.nn import multibox_loss as qfgaohao_loss
from codebases.qfgaohao.vision.ssd.predictor import Predictor
from codebases.qfgaohao.vision.utils import box_utils as qfgaohao_box_utils
from codebases.ssd_pytorch.layers import box_utils as layers_box_utils
from codebases.ssd_pytorch.layers.functions import detection
from codebases.ssd_pytorch.layers.modules import l2norm, multibox_loss
from codebases.ssd_pytorch.ssd import SSD
from codebases.torchvision_ssd import SSD as TorchvisionSSD
from codebases.torchvision_ssd import torchvision as fake_torchvision
from torch import Tensor

from mdssd.integrations import lufficc, nvidia, qfgaohao, ssd_pytorch
from mdssd.integrations import torchvision as fast_torchvision

LAYERS = importlib.import_module("codebases.ssd_pytorch.layers")
LUFFICC = importlib.import_module("codebases.lufficc.ssd")
VISION = importlib.import_module("codebases.qfgaohao.vision")
NVIDIA = importlib.import_module("codebases.nvidia.ssd")

CLASSES = 4
SIDE = 300  # side of an image in pixels


def _grid(side: int) -> Tensor:
    """Priors [side^2, 4] cxcywh of twice the cell's size, exact in binary."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    middle = (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) / side
    return torch.cat([middle, torch.full_like(middle, 2 / side)], 1)


PRIORS = torch.cat([_grid(8), _grid(4)])  # [80, 4]


def truth() -> list[tuple[Tensor, Tensor]]:
    """Boxes xyxy and labels from 1 of three images."""
    generator = torch.Generator().manual_seed(1)
    first = plain.corners(PRIORS[[9, 18, 70]])
    first[0, 2] -= 0.125  # half of prior 9: an IoU of exactly 0.5
    small = torch.tensor([[0.7, 0.7, 0.74, 0.74], [0.7, 0.7, 0.73, 0.73]])  # share their best prior
    middle = torch.rand(5, 2, generator=generator)
    half = 0.05 + 0.2 * torch.rand(5, 2, generator=generator)
    beyond = torch.cat([middle - half, middle + half], 1)
    beyond[0] += 2  # outside the image
    boxes = [torch.cat([first, small]), beyond, small[:1]]
    return [(b, torch.randint(1, CLASSES, (len(b),), generator=generator)) for b in boxes]


def with_empty_areas(boxes: Tensor) -> Tensor:
    line, point = boxes[:1].clone(), boxes[:1].clone()
    line[:, 2] = line[:, 0]
    point[:, 2:] = point[:, :2]
    return torch.cat([line, boxes, point])


def outputs() -> tuple[Tensor, Tensor]:
    """loc [3, 80, 4] and logits [3, 80, 4]; the last image has nothing to detect.

    The second half has the scores of the first. A quarter of it has equal boxes too, and some boxes
    have no area. Some boxes cross the border of the image.
    """
    generator = torch.Generator().manual_seed(2)
    loc = torch.randn(3, 80, 4, generator=generator)
    logits = 1.5 * torch.randn(3, 80, CLASSES, generator=generator)
    logits[2, :, 0] += 30
    logits[:, 40:] = logits[:, :40]
    loc[:, 5:20, 2:] = -400
    return loc, logits


def repeated_priors() -> Tensor:
    priors = PRIORS[torch.randperm(80, generator=torch.Generator().manual_seed(3))].clone()
    priors[40:60] = priors[:20]
    return priors


def detector_outputs() -> tuple[Tensor, Tensor, Tensor]:
    loc, logits = outputs()
    loc[:, 40:60] = loc[:, :20]
    return loc, logits, repeated_priors()


# --- ssd.pytorch -------------------------------------------------------------------------------


def rows_of_targets() -> list[Tensor]:
    """Targets [M, 5] of each image: box, label from 0."""
    return [torch.cat([boxes, labels[:, None] - 1], 1) for boxes, labels in truth()]


def test_ssd_pytorch_match(backend: str) -> None:
    def call() -> list[Tensor]:
        loc_t, conf_t = torch.full((3, 80, 4), -9.0), torch.full((3, 80), -9)
        for i, target in enumerate(rows_of_targets()):
            boxes = with_empty_areas(target[:, :4])
            labels = torch.cat([target[:1, 4], target[:, 4], target[:1, 4]])
            arguments = (0.5, boxes, PRIORS, [0.1, 0.2], labels, loc_t, conf_t, i)
            multibox_loss.match(*arguments)
        return [loc_t, conf_t]

    assert call()[1][0, 9] > 0  # an IoU of exactly 0.5
    both((LAYERS,), ssd_pytorch, call)


def test_ssd_pytorch_loss(backend: str) -> None:
    criterion = multibox_loss.MultiBoxLoss(CLASSES, 0.5, 3)
    more = torch.cat([PRIORS, PRIORS[:5]])  # surplus priors are ignored

    def call(loc: Tensor, conf: Tensor) -> Any:
        return criterion((loc, conf, more), rows_of_targets())

    both((LAYERS,), ssd_pytorch, lambda: with_gradients(call, *outputs()))


@pytest.mark.parametrize("what", ["layers", "net", "both"])
def test_ssd_pytorch_detections(backend: str, what: str) -> None:
    loc, logits, priors = detector_outputs()
    net = SSD(CLASSES, priors)
    targets = {"layers": (LAYERS,), "net": (net,), "both": (net, LAYERS)}[what]
    found = net(loc, logits)
    assert found.shape == (3, CLASSES, 200, 5)
    assert found[0, 1:, 0, 0].all() and not found[2].any() and not found[:, 0].any()
    both(targets, ssd_pytorch, lambda: net(loc, logits))


def test_ssd_pytorch_limits(backend: str) -> None:
    """More candidates than `top_k`, and other settings, of the object or of the call."""
    loc, logits, priors = detector_outputs()
    net, other = SSD(CLASSES, priors), SSD(CLASSES, priors)
    other.detect.top_k, other.detect.conf_thresh, other.detect.nms_thresh = 7, 0.2, 0.6
    want, want_other = net(loc, logits), other(loc, logits)
    both((other,), ssd_pytorch, lambda: other(loc, logits))
    scores = logits.softmax(-1)
    with ssd_pytorch.patch(net):
        assert_same(net.detect.forward(loc, scores.flatten(0, 1), priors), want)
        assert_same(net.detect.apply(CLASSES, 0, 7, 0.2, 0.6, loc, scores, priors), want_other)


def test_ssd_pytorch_keeps_an_iou_at_the_threshold(backend: str) -> None:
    boxes, scores = pair_at_half()
    for overlap, top_k, count in ((0.5, 200, 2), (0.499999, 200, 1), (0.5, 1, 1)):
        want = detection.nms(boxes, scores, overlap, top_k)
        with ssd_pytorch.patch(LAYERS):
            got = detection.nms(boxes, scores, overlap, top_k)
        assert_same(got, want)
        assert got[1] == count
        net = SSD(2, plain.centres(boxes))
        net.detect.nms_thresh, net.detect.top_k = overlap, top_k
        with ssd_pytorch.patch(net):
            found = net.detect(
                torch.zeros(1, 2, 4), torch.stack([1 - scores, scores], 1), net.priors
            )
        assert int((found > 0)[0, 1, :, 0].sum()) == count


def test_lufficc_and_torchvision_keep_an_iou_at_the_threshold(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, _ = pair_at_half()
    loc, logits = torch.zeros(1, 2, 4), torch.tensor([[[0.0, 4.0], [0.0, 3.0]]])
    model, detector = TorchvisionSSD(SIDE * boxes), SSDDetector(plain.centres(boxes))
    cfg = detector.box_head.post_processor.cfg
    outputs = {"bbox_regression": loc, "cls_logits": logits}
    for threshold, count in ((0.5, 2), (0.499999, 1)):
        monkeypatch.setattr(cfg.TEST, "NMS_THRESHOLD", threshold)
        model.nms_thresh = threshold
        both((detector,), lufficc, lambda: [vars(found) for found in detector(logits, loc)])
        both((model,), fast_torchvision, lambda: model(outputs, [(SIDE, SIDE)]))
        assert len(detector(logits, loc)[0].scores) == count
        assert len(model(outputs, [(SIDE, SIDE)])[0]["scores"]) == count


def test_ssd_pytorch_l2norm(backend: str) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 6, 3, 5, generator=generator)
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 1e-4
    for layer, adapter, package in (
        (l2norm.L2Norm(6, 20), ssd_pytorch, LAYERS),
        (vgg.L2Norm(6, 20), lufficc, LUFFICC),
    ):
        both((package,), adapter, lambda layer=layer: layer(x))


def test_ssd_pytorch_without_boxes(backend: str) -> None:
    criterion = multibox_loss.MultiBoxLoss(CLASSES, 0.5, 3)
    loc, conf = outputs()
    targets = rows_of_targets()
    empty = [torch.zeros(0, 5)] * 3
    mixed = [targets[0], empty[0], targets[2]]
    with pytest.raises(IndexError):
        criterion((loc, conf, PRIORS), mixed)
    some = torch.tensor([0, 2])
    want = criterion((loc[some], conf[some], PRIORS), [targets[0], targets[2]])
    with ssd_pytorch.patch(LAYERS):
        assert_same(criterion((loc, conf, PRIORS), mixed), want)
        losses = with_gradients(lambda a, b: criterion((a, b, PRIORS), empty), loc, conf)
        assert not any(part.any() for part in losses)
        loc_t, conf_t = torch.ones(2, 80, 4), torch.ones(2, 80, dtype=torch.int64)
        arguments = (PRIORS, [0.1, 0.2], torch.zeros(0), loc_t, conf_t, 1)
        multibox_loss.match(0.5, torch.zeros(0, 4), *arguments)
        assert loc_t[0].all() and not loc_t[1].any() and conf_t[0].all() and not conf_t[1].any()
        keep, count = detection.nms(torch.zeros(0, 4), torch.zeros(0))
        assert keep.tolist() == [] and count == 0


def pair_at_half() -> tuple[Tensor, Tensor]:
    """Two boxes with an IoU of exactly 0.5, and their scores."""
    return torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]]), torch.tensor([0.9, 0.8])


# --- lufficc/SSD, qfgaohao/pytorch-ssd -----------------------------------------------------------

ASSIGN = [(lufficc, LUFFICC, lufficc_box_utils), (qfgaohao, VISION, qfgaohao_box_utils)]


@pytest.mark.parametrize("adapter, package, box_utils", ASSIGN, ids=["lufficc", "qfgaohao"])
def test_assign_priors(adapter: Any, package: Any, box_utils: Any, backend: str) -> None:
    corners = plain.corners(PRIORS)

    def call() -> list[Any]:
        return [
            box_utils.assign_priors(
                with_empty_areas(boxes), torch.cat([labels[:1], labels, labels[:1]]), corners, 0.5
            )
            for boxes, labels in truth()
        ]

    half = box_utils.assign_priors(truth()[0][0][:1], torch.tensor([1]), corners[[20, 9]], 0.5)[1]
    assert half.tolist() == [0, 1]  # only because it is the best prior: the IoU is just below
    both((package,), adapter, call)
    with adapter.patch(package):
        boxes, labels = box_utils.assign_priors(
            torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), corners, 0.5
        )
    assert torch.equal(boxes, corners) and labels.shape == (80,) and not labels.any()


def encoded() -> tuple[Tensor, Tensor]:
    """Targets [3, 80, 4] and labels [3, 80] from the data loader of lufficc and qfgaohao."""
    corners = plain.corners(PRIORS)
    assigned = [lufficc_box_utils.assign_priors(*one, corners, 0.5) for one in truth()]
    boxes, labels = (torch.stack(part) for part in zip(*assigned, strict=True))
    return plain.encode(boxes, PRIORS), labels


def test_lufficc_loss(backend: str) -> None:
    model, targets = SSDDetector(PRIORS), encoded()

    def call(loc: Tensor, conf: Tensor) -> Any:
        return model(conf, loc, targets)

    both((model, LUFFICC), lufficc, lambda: with_gradients(call, *outputs()))
    with lufficc.patch(model):
        nothing = (targets[0], torch.zeros_like(targets[1]))
        losses = with_gradients(lambda loc, conf: model(conf, loc, nothing), *outputs())
    assert not any(part.any() for part in losses)


@pytest.mark.parametrize("most, first", [(100, 4096), (100, 110), (500, 4096), (500, 30)])
def test_lufficc_detections(
    backend: str, most: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loc, logits, priors = detector_outputs()
    loc[0, 20] = torch.tensor([-90.0, -90.0, 5.0, 5.0])  # far outside
    model = SSDDetector(priors)
    cfg = model.box_head.post_processor.cfg
    monkeypatch.setattr(cfg.TEST, "MAX_PER_IMAGE", most)
    monkeypatch.setattr(lufficc, "_FIRST", first)

    def call() -> list[Any]:
        return [vars(found) for found in model(logits, loc)]

    want = call()
    counts = [len(found["scores"]) for found in want]
    assert counts[2] == 0 and (counts[0] == 100 if most == 100 else 100 < counts[0] < 240)
    both((model,), lufficc, call)


def test_qfgaohao_loss(backend: str) -> None:
    criterion = qfgaohao_loss.MultiboxLoss(PRIORS, 0.5, 3)
    loc_targets, labels = encoded()

    def call(loc: Tensor, conf: Tensor) -> Any:
        return criterion(conf, loc, labels, loc_targets)

    both((VISION,), qfgaohao, lambda: with_gradients(call, *outputs()))
    with qfgaohao.patch(VISION):
        nothing = torch.zeros_like(labels)
        losses = with_gradients(
            lambda loc, conf: criterion(conf, loc, nothing, loc_targets), *outputs()
        )
    assert not any(part.any() for part in losses)


@pytest.mark.parametrize("top_k, candidates", [(-1, 200), (3, 200), (-1, 11)])
def test_qfgaohao_detections(backend: str, top_k: int, candidates: int) -> None:
    loc, logits, priors = detector_outputs()
    boxes = torch.stack([layers_box_utils.decode(one, priors, (0.1, 0.2)) for one in loc])
    predictor = Predictor(candidate_size=candidates)
    scores = logits.softmax(-1)
    both(
        (VISION,),
        qfgaohao,
        lambda: [predictor.predict(*one, top_k) for one in zip(scores, boxes, strict=True)],
    )


def test_qfgaohao_eps_is_in_the_suppression(backend: str) -> None:
    """The eps lowers an IoU of 0.5 by less than 1e-5, in NMS too."""
    boxes, scores = pair_at_half()
    rows = torch.cat([boxes, scores[:, None]], 1)
    for limit, count in ((0.5, 2), (0.499996, 2), (0.49999, 1)):
        want = qfgaohao_box_utils.hard_nms(rows, limit)
        with qfgaohao.patch(VISION):
            got = qfgaohao_box_utils.hard_nms(rows, limit)
        assert_same(got, want, exact=True)
        assert len(got) == count


# --- NVIDIA --------------------------------------------------------------------------------------


def test_nvidia_encode(backend: str) -> None:
    encoder = nvidia_utils.Encoder(nvidia_utils.DefaultBoxes(PRIORS))

    def call() -> list[Any]:
        return [
            encoder.encode(with_empty_areas(boxes), torch.cat([labels[:1], labels, labels[:1]]))
            for boxes, labels in truth()
        ]

    both((NVIDIA,), nvidia, call)
    boxes, labels = truth()[0]
    twice = boxes[[0, 0]]  # both share their best prior; the IoU of 0.5 is not above the limit
    with nvidia.patch(NVIDIA):
        assert (encoder.encode(twice, labels[:2])[1] > 0).sum() == 1
        empty = encoder.encode(torch.zeros(0, 4), labels[:0])
    assert_same(empty[0], PRIORS)
    assert empty[1].shape == (80,) and not empty[1].any()


def test_nvidia_loss(backend: str) -> None:
    default = nvidia_utils.DefaultBoxes(PRIORS)
    encoder, criterion = nvidia_utils.Encoder(default), nvidia_model.Loss(default)
    boxes, labels = (
        torch.stack(part) for part in zip(*[encoder.encode(*one) for one in truth()], strict=True)
    )
    labels[1] = 0  # this image adds 0 to the mean

    def call(loc: Tensor, conf: Tensor) -> Any:
        return [criterion(loc.transpose(1, 2), conf.transpose(1, 2), boxes.transpose(1, 2), labels)]

    both((NVIDIA,), nvidia, lambda: with_gradients(call, *outputs()))


@pytest.mark.parametrize("most", [200, 9])
def test_nvidia_detections(backend: str, most: int) -> None:
    loc, logits, priors = detector_outputs()
    encoder = nvidia_utils.Encoder(nvidia_utils.DefaultBoxes(priors))
    arguments = (loc.transpose(1, 2), logits.transpose(1, 2), 0.45, most)
    found = encoder.decode_batch(*arguments)
    assert len(found[0][2]) > 5 and len(found[2][2]) == 0
    both((NVIDIA,), nvidia, lambda: encoder.decode_batch(*arguments)[:2])
    with nvidia.patch(NVIDIA):
        nothing = encoder.decode_batch(*arguments)[2]
    assert [tuple(part.shape) for part in nothing] == [(0, 4), (0,), (0,)]


def test_nvidia_removes_an_iou_at_the_threshold(backend: str) -> None:
    boxes, _ = pair_at_half()
    encoder = nvidia_utils.Encoder(nvidia_utils.DefaultBoxes(plain.centres(boxes)))
    logits = torch.tensor([[[0.0, 0.0], [4.0, 3.0]]])  # [B, C, N]
    for criteria, count in ((0.5, 1), (0.50001, 2)):
        want = encoder.decode_batch(torch.zeros(1, 4, 2), logits, criteria)
        with nvidia.patch(NVIDIA):
            got = encoder.decode_batch(torch.zeros(1, 4, 2), logits, criteria)
        assert_same(got, want)
        assert len(got[0][2]) == count


# --- torchvision -------------------------------------------------------------------------------


def head_outputs() -> tuple[dict[str, Tensor], Tensor]:
    loc, logits, priors = detector_outputs()
    return {"bbox_regression": loc, "cls_logits": logits}, SIDE * plain.corners(priors)


@pytest.mark.parametrize("sizes", [[(300, 300)] * 3, [(300, 300), (300, 200), (150, 280)]])
@pytest.mark.parametrize("candidates", [20, 8])
def test_torchvision_detections(
    backend: str, candidates: int, sizes: list[tuple[int, int]]
) -> None:
    outputs, anchors = head_outputs()
    model = TorchvisionSSD(anchors)
    model.topk_candidates, model.detections_per_img = candidates, 30
    model.box_coder.bbox_xform_clip = math.log(1.1)  # limits the growth of many boxes
    counts = [len(one["scores"]) for one in model(outputs, sizes)]
    assert counts[2] == 0 and (counts[0] == 30 if candidates == 20 else 10 < counts[0] < 25)
    both((model,), fast_torchvision, lambda: model(outputs, sizes))


def test_torchvision_loss(backend: str) -> None:
    model = TorchvisionSSD(SIDE * plain.corners(PRIORS))
    targets = [{"boxes": SIDE * boxes, "labels": labels} for boxes, labels in truth()]
    targets.append({"boxes": torch.zeros(0, 4), "labels": targets[0]["labels"][:0]})
    loc, logits = (torch.cat([part, part[:1]]) for part in outputs())

    def call(loc: Tensor, logits: Tensor) -> Any:
        outputs = {"bbox_regression": loc, "cls_logits": logits}
        return model(outputs, [(SIDE, SIDE)] * 4, targets)

    both((model,), fast_torchvision, lambda: with_gradients(call, loc, logits))
    with fast_torchvision.patch(model):
        targets = targets[-1:] * 4
        assert not any(part.any() for part in with_gradients(call, loc, logits))


def test_torchvision_batched_nms(backend: str) -> None:
    loc, logits, priors = detector_outputs()
    boxes = SIDE * plain.corners(priors)
    arguments = (boxes, logits[0, :, 1].sigmoid(), logits[0].argmax(1).int())
    for owner in (fake_torchvision.ops, fake_torchvision.ops.boxes):
        both(
            (fake_torchvision,),
            fast_torchvision,
            lambda owner=owner: owner.batched_nms(*arguments, iou_threshold=0.45),
        )


class _Backbone(torch.nn.Module):
    out_channels = (8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.two = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.one(x)
        return OrderedDict(one=x, two=self.two(x.relu()))


def test_against_torchvision_itself(backend: str) -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD as RealSSD

    torch.manual_seed(0)
    model = RealSSD(_Backbone(), DefaultBoxGenerator([[2], [2, 3]]), (64, 64), CLASSES)
    images = [torch.rand(3, 64, 64), torch.rand(3, 50, 80)]
    targets = [{"boxes": 64 * boxes[1:3], "labels": labels[1:3]} for boxes, labels in truth()[:2]]
    targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    both((model, torchvision), fast_torchvision, lambda: model(images, targets))
    both((model,), fast_torchvision, lambda: model.eval()(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_float_types_as_in_autocast(dtype: torch.dtype) -> None:
    """Narrow tensors in autocast are widened by the codebases or by their kernels."""
    loc, logits, priors = detector_outputs()
    loc, scores = loc.to(dtype), logits.to(dtype).float().softmax(-1)
    net = SSD(CLASSES, priors)
    # Only the scores: the codebase multiplies by the variances in the narrow type.
    both((LAYERS,), ssd_pytorch, lambda: net.detect(loc, scores, priors)[..., 0])
    boxes = SIDE * plain.corners(priors)
    both((LAYERS,), ssd_pytorch, lambda: detection.nms(boxes.to(dtype), scores[0, :, 1], 0.45)[1])
    narrow, classes = scores[0, :, 1].to(dtype), logits[0].argmax(1)
    both(
        (fake_torchvision,),
        fast_torchvision,
        lambda: fake_torchvision.ops.batched_nms(boxes, narrow, classes, 0.45),
    )
    model = TorchvisionSSD(boxes)
    outputs = {"bbox_regression": loc, "cls_logits": logits.to(dtype)}
    with fast_torchvision.patch(model):
        alone = model(outputs, [(SIDE, SIDE)] * 3)[0]
        with torch.autocast("cpu", torch.bfloat16):
            within = model(outputs, [(SIDE, SIDE)] * 3)[0]
    assert {alone[name].dtype for name in ("boxes", "scores")} == {dtype}
    # On a CPU, torchvision's are as narrow as the head's output.
    assert {within[name].dtype for name in ("boxes", "scores")} == {dtype}


def test_patched_models_can_be_copied_and_pickled() -> None:
    outputs, anchors = head_outputs()
    model = TorchvisionSSD(anchors)
    with fast_torchvision.patch(model):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            want = model(outputs, [(SIDE, SIDE)] * 3)
            assert_same(other(outputs, [(SIDE, SIDE)] * 3), want, exact=True)
            other.score_thresh = 0.9  # its own setting, not the model's
            assert len(other(outputs, [(SIDE, SIDE)] * 3)[0]["scores"]) < len(want[0]["scores"])


# --- types, limits and imports -------------------------------------------------------------------


def similar_priors() -> Tensor:
    """Priors cxcywh, many of which have almost the same IoU with a box."""
    middles = _grid(8)[:, :2]
    shapes = [(0.25, 0.25), (0.35, 0.18), (0.18, 0.35), (0.31, 0.31), (0.43, 0.14), (0.14, 0.43)]
    sizes = [torch.tensor(shape).expand(64, 2) for shape in shapes]
    return torch.cat([torch.cat([middles, size], 1) for size in sizes])


def float64_boxes() -> list[Tensor]:
    """Boxes that lie over whole cells, so that rounding decides between priors."""
    generator = torch.Generator().manual_seed(5)
    low = torch.randint(0, 6, (40, 3, 2), generator=generator) / 8
    size = torch.randint(1, 3, (40, 3, 2), generator=generator) / 8
    jitter = 1e-9 * torch.rand(40, 3, 1, generator=generator, dtype=torch.float64)
    return list(torch.cat([low - jitter, low + size + jitter], -1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_boxes_of_another_type_match_as_in_the_codebase(dtype: torch.dtype) -> None:
    """The codebases compute the areas of float32 priors in float32, also beside float64 boxes."""
    priors = similar_priors()
    corners = plain.corners(priors)
    every = [boxes.to(dtype) for boxes in float64_boxes()]
    labels = torch.tensor([1, 2, 3])
    for adapter, package, box_utils in ASSIGN:
        both(
            (package,),
            adapter,
            lambda u=box_utils: [u.assign_priors(boxes, labels, corners, 0.5) for boxes in every],
        )

    def match() -> list[Tensor]:
        loc_t, conf_t = torch.zeros(len(every), 384, 4), torch.zeros(len(every), 384).long()
        for i, boxes in enumerate(every):
            multibox_loss.match(0.5, boxes, priors, [0.1, 0.2], labels - 1.0, loc_t, conf_t, i)
        return [loc_t, conf_t]

    both((LAYERS,), ssd_pytorch, match)
    criterion = multibox_loss.MultiBoxLoss(CLASSES, 0.5, 3)
    rows = [torch.cat([boxes, labels[:, None].to(dtype) - 1], 1) for boxes in every]
    generator = torch.Generator().manual_seed(6)
    shape = (len(every), 384, CLASSES)
    loc, conf = (torch.randn(shape, generator=generator) for _ in range(2))
    both(
        (LAYERS,),
        ssd_pytorch,
        lambda: with_gradients(lambda a, b: criterion((a, b, priors), rows), loc, conf),
    )


def test_thresholds_above_one_keep_every_box() -> None:
    boxes, scores = pair_at_half()
    boxes, scores = boxes[[0, 0, 1]], torch.tensor([0.9, 0.8, 0.7])
    both((LAYERS,), ssd_pytorch, lambda: detection.nms(boxes, scores, 1.5))
    rows = torch.cat([boxes, scores[:, None]], 1)
    both((VISION,), qfgaohao, lambda: qfgaohao_box_utils.hard_nms(rows, 1.5))
    encoder = nvidia_utils.Encoder(nvidia_utils.DefaultBoxes(plain.centres(boxes)))
    logits = torch.tensor([[[0.0, 0.0, 0.0], [4.0, 3.0, 2.0]]])
    loc = torch.zeros(1, 4, 3)
    both((NVIDIA,), nvidia, lambda: encoder.decode_batch(loc, logits, 1.5))
    found, _ = outputs()
    model = TorchvisionSSD(SIDE * plain.corners(PRIORS))
    heads = {"bbox_regression": found, "cls_logits": outputs()[1]}
    for name, value in [
        ("score_thresh", -1),
        ("nms_thresh", 1.5),
        ("detections_per_img", 0),
        ("topk_candidates", 0),
    ]:
        kept = getattr(model, name)
        setattr(model, name, value)
        both((model,), fast_torchvision, lambda: model(heads, [(SIDE, SIDE)] * 3))
        setattr(model, name, kept)


@pytest.mark.parametrize("function", ["nms", "batched_nms"])
def test_torchvisions_functions_get_what_the_operators_do_not_take(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def original(*arguments: Any, **named: Any) -> str:
        seen.append((arguments, named))
        return "the original"

    boxes, scores = pair_at_half()
    rest = () if function == "nms" else (torch.tensor([1, 1]),)
    for owner in (fake_torchvision.ops, fake_torchvision.ops.boxes):
        monkeypatch.setattr(owner, function, original)
    with fast_torchvision.patch(fake_torchvision):
        call = getattr(fake_torchvision.ops, function)
        assert call(boxes, scores, *rest, 0.4).tolist() == [0]
        assert call(boxes, scores, *rest, iou_threshold=0.4).tolist() == [0] and not seen
        for arguments in (
            (boxes, scores, *rest, 1.5),
            (boxes, scores, *rest, -0.5),
            (boxes.long(), scores, *rest, 0.5),
            (boxes[:, :3], scores, *rest, 0.5),
            (boxes, scores[:1], *rest, 0.5),
            (torch.empty(0), None, None, None),
        ):
            assert call(*arguments) == "the original"
        assert len(seen) == 6
        assert call.__prepare_scriptable__() is original


def test_torchvision_labels_of_zero_have_offsets_but_no_class() -> None:
    model = TorchvisionSSD(SIDE * plain.corners(PRIORS))
    targets = [{"boxes": SIDE * boxes, "labels": labels.clone()} for boxes, labels in truth()]
    targets[0]["labels"][:2] = 0

    def call(loc: Tensor, logits: Tensor) -> Any:
        outputs = {"bbox_regression": loc, "cls_logits": logits}
        return model(outputs, [(SIDE, SIDE)] * 3, targets)

    both((model,), fast_torchvision, lambda: with_gradients(call, *outputs()))


@pytest.mark.parametrize("threshold", [1.5, -0.5, 0])
def test_torchvision_matches_by_any_threshold(threshold: float) -> None:
    model = TorchvisionSSD(SIDE * plain.corners(PRIORS))
    matcher = model.proposal_matcher
    matcher.high_threshold = matcher.low_threshold = threshold
    targets = [{"boxes": SIDE * boxes, "labels": labels} for boxes, labels in truth()]

    def call(loc: Tensor, logits: Tensor) -> Any:
        outputs = {"bbox_regression": loc, "cls_logits": logits}
        return model(outputs, [(SIDE, SIDE)] * 3, targets)

    if threshold > 0:
        both((model,), fast_torchvision, lambda: with_gradients(call, *outputs()))
    else:  # every anchor is positive, which SSD's loss counts once and torchvision's twice
        with fast_torchvision.patch(model):
            assert call(*outputs())["classification"] > 0


def test_torchvision_trains_without_the_matrix_of_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TorchvisionSSD(SIDE * plain.corners(PRIORS))
    targets = [{"boxes": SIDE * boxes, "labels": labels} for boxes, labels in truth()]
    computed, box_ops = [], fake_torchvision.ops.boxes
    original = box_ops.box_iou
    monkeypatch.setattr(box_ops, "box_iou", lambda *a: computed.append(1) or original(*a))

    def call(loc: Tensor, logits: Tensor) -> Any:
        heads = {"bbox_regression": loc, "cls_logits": logits}
        return model(heads, image_sizes=[(SIDE, SIDE)] * 3, targets=targets)

    heads = outputs()
    want = with_gradients(call, *heads)
    images = len(computed)
    assert images == sum(len(target["boxes"]) > 0 for target in targets)
    with fast_torchvision.patch(model):
        assert_same(with_gradients(call, *heads), want)
        assert len(computed) == images
        model.eval()  # a loss in evaluation is torchvision's way
        assert_same(with_gradients(call, *heads), want)
        assert len(computed) == 2 * images
        model.train()
        model.proposal_matcher = model.proposal_matcher.original  # reads the matrix
        assert_same(with_gradients(call, *heads), want)
        assert len(computed) == 3 * images
        for target in targets:
            target["boxes"] = target["boxes"].double()
        call(*heads)
        assert len(computed) == 4 * images
    assert "forward" not in vars(model)


def test_a_patched_model_is_compiled_and_traced_as_its_class() -> None:
    heads, anchors = head_outputs()
    model = TorchvisionSSD(anchors)
    matcher = model.proposal_matcher
    with fast_torchvision.patch(model), fast_torchvision.patch(model):
        plain_model = model.__prepare_scriptable__()
        assert plain_model.proposal_matcher is matcher
        replaced = {"forward", "compute_loss", "postprocess_detections"}
        assert not replaced & vars(plain_model).keys() and replaced < vars(model).keys()
        assert plain_model.anchors is anchors
        calls: list[Any] = []
        own = TorchvisionSSD.postprocess_detections

        def traced(logits: Tensor) -> Tensor:
            found = model(heads | {"cls_logits": logits}, [(SIDE, SIDE)] * 3)
            return found[0]["scores"]

        with pytest.MonkeyPatch.context() as patcher:
            patcher.setattr(
                TorchvisionSSD,
                "postprocess_detections",
                lambda *arguments: calls.append(1) or own(*arguments),
            )
            torch.jit.trace(traced, heads["cls_logits"], check_trace=False)
            assert calls == [1]


def test_nvidia_does_not_import_the_module_that_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "codebases.nvidia.ssd.model")
    before = dict(vars(nvidia_model.Loss))
    with nvidia.patch(NVIDIA):
        assert nvidia_utils.Encoder.encode is nvidia.encode
        assert "codebases.nvidia.ssd.model" not in sys.modules
        assert dict(vars(nvidia_model.Loss)) == before


def test_an_import_that_fails_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of these codebases calls exit() at its import beside newer versions of torchvision."""
    for reason in (OSError("no network"), SystemExit(0), ImportError("no module")):

        def fail(*_: Any, reason: BaseException = reason) -> None:
            raise reason

        monkeypatch.setattr("mdssd.integrations._patch.import_module", fail)
        with pytest.raises(TypeError, match=r"^lufficc\.patch: targets: .* got <module"):
            lufficc.patch(LUFFICC)


# --- patching ----------------------------------------------------------------------------------


def everything() -> dict[str, tuple[Any, tuple[Any, ...], list[tuple[Any, tuple[str, ...]]]]]:
    """The adapter, its targets, and the replaced attributes of each owner."""
    net, detector = SSD(CLASSES, PRIORS), SSDDetector(PRIORS)
    model = TorchvisionSSD(PRIORS)
    nms = ("batched_nms", "nms")
    boxes = fake_torchvision.ops.boxes
    methods = ("forward", "postprocess_detections", "compute_loss", "proposal_matcher")
    methods = (*methods, "__prepare_scriptable__")
    return {
        "ssd_pytorch": (
            ssd_pytorch,
            (LAYERS, net),
            [
                (net, ("detect",)),
                (multibox_loss, ("match",)),
                (multibox_loss.MultiBoxLoss, ("forward",)),
                (detection, ("nms", "decode")),
                (l2norm.L2Norm, ("forward",)),
            ],
        ),
        "lufficc": (
            lufficc,
            (detector, LUFFICC),
            [
                (detector.box_head, ("post_processor", "loss_evaluator")),
                (lufficc_box_utils, ("assign_priors",)),
                (vgg.L2Norm, ("forward",)),
            ],
        ),
        "qfgaohao": (
            qfgaohao,
            (VISION,),
            [
                (qfgaohao_box_utils, ("assign_priors", "hard_nms")),
                (qfgaohao_loss.MultiboxLoss, ("forward",)),
            ],
        ),
        "nvidia": (
            nvidia,
            (NVIDIA,),
            [
                (nvidia_utils.Encoder, ("encode", "decode_batch")),
                (nvidia_model.Loss, ("forward",)),
            ],
        ),
        "torchvision": (
            fast_torchvision,
            (model, fake_torchvision),
            [(model, methods), (fake_torchvision.ops, nms), (boxes, nms)],
        ),
    }


@pytest.mark.parametrize("name", everything())
def test_patch_replaces_what_it_says_and_undo_restores_it(name: str) -> None:
    adapter, targets, owners = everything()[name]

    def held() -> list[dict[str, Any]]:
        return [dict(vars(owner)) for owner, _ in owners]

    def changed(before: list[dict[str, Any]]) -> list[set[str]]:
        missing = object()
        return [
            {k for k in (*old, *new) if old.get(k, missing) is not new.get(k, missing)}
            for old, new in zip(before, held(), strict=True)
        ]

    before = held()
    wanted = [set(names) for _, names in owners]
    patched = adapter.patch(*targets)
    assert changed(before) == wanted
    states = [list(t.state_dict()) for t in targets if isinstance(t, torch.nn.Module)]
    with adapter.patch(*targets):  # nested
        pass
    assert changed(before) == wanted
    patched.undo()
    patched.undo()
    assert changed(before) == [set() for _ in owners]
    assert states == [list(t.state_dict()) for t in targets if isinstance(t, torch.nn.Module)]
    with pytest.raises(ZeroDivisionError), adapter.patch(*targets) as patched:
        assert changed(before) == wanted
        raise ZeroDivisionError
    assert changed(before) == [set() for _ in owners]


@pytest.mark.parametrize("name", everything())
@pytest.mark.parametrize("wrong", [None, SimpleNamespace(), torch.nn.Identity(), math])
def test_patch_refuses_what_it_does_not_know(name: str, wrong: Any) -> None:
    adapter, targets, owners = everything()[name]
    before = [dict(vars(owner)) for owner, _ in owners]
    wrong_targets = (*targets, wrong)
    with pytest.raises(TypeError, match=rf"^{name}\.patch: targets: expected .*, got "):
        adapter.patch(*wrong_targets)
    with pytest.raises(TypeError, match="got NoneType"):
        adapter.patch()
    assert before == [dict(vars(owner)) for owner, _ in owners]
