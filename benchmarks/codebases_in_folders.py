"""Rows of codebases that are no packages, from folders that hold them.

Each function takes the folder that the codebase is imported from, and calls its own targets, loss
and post-processing as its training and its evaluation do. Every patched result is compared with the
original's before the row is measured. Outputs with 500 candidates are those of a trained network;
8,000 are still few early in training. Some codebases need an edit to be imported today:

- ssd.pytorch: in `MultiBoxLoss.forward`, `loss_c.view(num, -1)` must precede `loss_c[pos] = 0`, and
  `COCO_ROOT` in data/coco.py must be the folder of that file.
- lufficc/SSD: remove the check of torchvision's version from ssd/utils/nms.py. It needs yacs.
- detectron2: it needs yacs, fvcore and what they need, but not its compiled part.
- NVIDIA: `weights=None` in `ResNet.__init__` of ssd/model.py, which downloads weights otherwise.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import generators
from benchmarks.peers.detection import Found, differences
from benchmarks.real_rows import Row, random_boxes, random_numbers
from mdssd.integrations import detectron2, lufficc, nvidia, qfgaohao, ssd_pytorch

CLASSES, IMAGES, BOXES = 21, 8, 10
_SIDE = 300
_ROOTS = ("layers", "data", "ssd", "vision", "detectron2")  # their packages; two are named ssd


def _imported(folder: Path, *names: str) -> list[Any]:
    """Import modules from a folder, in place of those of another codebase."""
    for name in list(sys.modules):
        if name.partition(".")[0] in _ROOTS:
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))


# --- comparisons ---------------------------------------------------------------------------------


def _flat(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for item in value:
            yield from _flat(item)


def _same_numbers(got: Any, want: Any) -> None:
    for g, w in zip(_flat(got), _flat(want), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6)


def _same_detections(found: Callable[[Any], Found]) -> Callable[[Any, Any], None]:
    def check(got: Any, want: Any) -> None:
        expected = found(want)
        scale = torch.tensor(_SIDE if float(expected.boxes.max()) > 10 else 1)
        pair = (Found(each.boxes / scale, *each[1:]) for each in (found(got), expected))
        lines = differences(*pair)
        assert not lines, "\n".join(lines[:10])

    return check


# --- rows ----------------------------------------------------------------------------------------


def _outputs() -> Iterator[tuple[str, generators.NetworkOutput]]:
    for candidates in (500, 8000):
        yield f"{candidates:,} candidates", generators.network_output("ssd300", CLASSES, candidates)


def _training(
    package: str, losses: Callable[[Tensor, Tensor], Any], patch: Any, transposed: bool = False
) -> Row:
    """A row of targets, loss and gradients; `losses` gets loc [B, N, 4] and logits [B, N, C]."""
    x = generators.loss_input("ssd300", IMAGES, CLASSES)
    pair = [part.transpose(1, 2) if transposed else part for part in (x.loc, x.logits)]
    loc, logits = (part.detach().contiguous().requires_grad_() for part in pair)

    def call() -> list[Tensor]:
        found = losses(loc, logits)
        found = list(found) if isinstance(found, tuple) else [found]
        return [*(loss.detach() for loss in found), *torch.autograd.grad(sum(found), (loc, logits))]

    what = f"matching, loss and gradients, {IMAGES} images of {BOXES} boxes"
    return Row(package, what, call, patch, _same_numbers)


def ssd_pytorch_rows(folder: Path) -> Iterator[Row]:
    layers, data = _imported(folder, "layers", "data")
    priors = layers.PriorBox(data.voc).forward()
    package = "ssd.pytorch"
    for kind, x in _outputs():
        net = SimpleNamespace(detect=layers.Detect(CLASSES, 0, 200, 0.01, 0.45))
        scores = x.logits.softmax(-1)

        def found(output: Tensor) -> Found:
            rows = output[0][output[0, ..., 0] > 0]
            return Found(rows[:, 1:], rows[:, 0], (output[0, ..., 0] > 0).nonzero()[:, 0])

        yield Row(
            package,
            f"Detect, 1 image, {kind}",
            lambda n=net, o=x.loc, s=scores: n.detect.forward(o, s, priors),
            lambda n=net: ssd_pytorch.patch(n),
            _same_detections(found),
        )
    criterion = layers.MultiBoxLoss(CLASSES, 0.5, True, 0, True, 3, 0.5, False, False)
    truth = generators.truth(IMAGES, BOXES)
    rows = [torch.cat([b, c[:, None] - 1], 1) for b, c in zip(*truth, strict=True)]
    losses = lambda loc, logits: criterion((loc, logits, priors), rows)  # noqa: E731
    yield _training(package, losses, lambda: ssd_pytorch.patch(layers))


def lufficc_rows(folder: Path) -> Iterator[Row]:
    package = "lufficc/SSD"
    ssd, config, head, transform, anchors = _imported(
        folder,
        "ssd",
        "ssd.config",
        "ssd.modeling.box_head",
        "ssd.data.transforms.target_transform",
        "ssd.modeling.anchors.prior_box",
    )
    model = SimpleNamespace(box_head=head.SSDBoxHead(config.cfg).eval())
    patch = lambda: lufficc.patch(ssd, model)  # noqa: E731

    def found(output: Any) -> Found:
        detections = output[0][0]
        return Found(detections["boxes"], detections["scores"], detections["labels"])

    for kind, x in _outputs():
        yield Row(
            package,
            f"post-processing, 1 image, {kind}",
            lambda x=x: model.box_head._forward_test(x.logits, x.loc),
            patch,
            _same_detections(found),
        )
    settings = config.cfg.MODEL
    match = transform.SSDTargetTransform(
        anchors.PriorBox(config.cfg)(),
        settings.CENTER_VARIANCE,
        settings.SIZE_VARIANCE,
        settings.THRESHOLD,
    )
    yield _training(package, _by_images(match, lambda: model.box_head.loss_evaluator), patch)


def _by_images(match: Any, criterion: Callable[[], Any]) -> Callable[[Tensor, Tensor], Any]:
    """Match the images one by one, as the data loaders of two codebases do; then the loss."""
    truth = generators.truth(IMAGES, BOXES)

    def losses(loc: Tensor, logits: Tensor) -> Any:
        pairs = [match(*one) for one in zip(*truth, strict=True)]
        targets, labels = (torch.stack(part) for part in zip(*pairs, strict=True))
        return criterion()(logits, loc, labels, targets)

    return losses


def qfgaohao_rows(folder: Path) -> Iterator[Row]:
    package = "pytorch-ssd"
    vision, ssd, predictor, loss, config = _imported(
        folder,
        "vision",
        "vision.ssd.ssd",
        "vision.ssd.predictor",
        "vision.nn.multibox_loss",
        "vision.ssd.config.vgg_ssd_config",
    )
    patch = lambda: qfgaohao.patch(vision)  # noqa: E731

    class Network(nn.Module):
        """A network whose outputs are given."""

        def __init__(self, *outputs: Tensor) -> None:
            super().__init__()
            self.outputs = outputs

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return self.outputs

    utils = importlib.import_module("vision.utils.box_utils")
    for kind, x in _outputs():
        boxes = utils.center_form_to_corner_form(
            utils.convert_locations_to_boxes(x.loc, x.priors, 0.1, 0.2)
        )
        detector = predictor.Predictor(Network(x.logits.softmax(-1), boxes), _SIDE, device="cpu")
        image = torch.zeros(_SIDE, _SIDE, 3).numpy()

        def predict(d: Any = detector, i: Any = image) -> Any:
            with contextlib.redirect_stdout(io.StringIO()):
                return d.predict(i)

        check = _same_detections(lambda found: Found(found[0], found[2], found[1]))
        yield Row(package, f"Predictor.predict, 1 image, {kind}", predict, patch, check)
    match = ssd.MatchPrior(config.priors, config.center_variance, config.size_variance, 0.5)
    criterion = loss.MultiboxLoss(config.priors, 0.5, 3, 0.1, 0.2, "cpu")
    yield _training(package, _by_images(match, lambda: criterion), patch)


def nvidia_rows(folder: Path) -> Iterator[Row]:
    package = "NVIDIA SSD"
    ssd, utils, model = _imported(folder, "ssd", "ssd.utils", "ssd.model")
    patch = lambda: nvidia.patch(ssd)  # noqa: E731
    defaults = utils.dboxes300_coco()
    encoder, criterion = utils.Encoder(defaults), model.Loss(defaults)
    check = _same_detections(lambda found: Found(*(found[0][i].flip(0) for i in (0, 2, 1))))
    for kind, x in _outputs():
        loc, logits = (part.transpose(1, 2).contiguous() for part in (x.loc, x.logits))
        yield Row(
            package,
            f"decode_batch, 1 image, {kind}",
            lambda o=loc, s=logits: encoder.decode_batch(o.clone(), s),  # it overwrites the first
            patch,
            check,
        )
    truth = generators.truth(IMAGES, BOXES)

    def losses(loc: Tensor, logits: Tensor) -> Tensor:
        encoded = [encoder.encode(*one) for one in zip(*truth, strict=True)]
        boxes, labels = (torch.stack(part) for part in zip(*encoded, strict=True))
        found: Tensor = criterion(loc, logits, boxes.transpose(1, 2).contiguous(), labels)
        return found

    yield _training(package, losses, patch, transposed=True)


def detectron2_rows(folder: Path) -> Iterator[Row]:
    """The region proposal network, with two images of 512 x 512 and boxes as torchvision's rows."""
    package, rpn, proposals, structures, matcher, regression = _imported(
        folder,
        "detectron2",
        "detectron2.modeling.proposal_generator.rpn",
        "detectron2.modeling.proposal_generator.proposal_utils",
        "detectron2.structures",
        "detectron2.modeling.matcher",
        "detectron2.modeling.box_regression",
    )
    patch = lambda: detectron2.patch(package)  # noqa: E731
    network = rpn.RPN(
        in_features=[],
        head=nn.Identity(),
        anchor_generator=nn.Identity(),
        anchor_matcher=matcher.Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=regression.Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(2000, 1000),
        post_nms_topk=(1000, 1000),
    )
    generator = random_numbers()
    levels = [_anchors(side, 32.0 * 128 / side) for side in (128, 64, 32, 16, 8)]
    anchors = [structures.Boxes(level) for level in levels]
    images = [structures.Instances((512, 512)) for _ in range(2)]
    for image in images:
        image.gt_boxes = structures.Boxes(random_boxes(BOXES, 512.0, generator))

    def match() -> Any:
        torch.manual_seed(0)  # it samples
        return network.label_and_sample_anchors(anchors, images)

    what = f"RPN.label_and_sample_anchors, 2 images of {BOXES} boxes"
    yield Row("detectron2", what, match, patch, _same_numbers)
    shifted = [level + 10 * torch.randn(2, len(level), 4, generator=generator) for level in levels]
    logits = [torch.randn(2, len(level), generator=generator) for level in levels]

    def select() -> Any:
        limits = 2000, 1000, 0.0, True
        given = [level.clone() for level in shifted]  # it clips them in place
        found = proposals.find_top_rpn_proposals(given, logits, [(512, 512)] * 2, 0.7, *limits)
        return [(one.proposal_boxes.tensor, one.objectness_logits) for one in found]

    yield Row("detectron2", "find_top_rpn_proposals, 2 images", select, patch, _same_numbers)


def _anchors(side: int, size: float) -> Tensor:
    """Three anchors xyxy in each cell of a map of 512 x 512 pixels."""
    middle = (torch.arange(side) + 0.5) * 512 / side
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    half = size / 2 * torch.tensor([[0.7, 1.4], [1.0, 1.0], [1.4, 0.7]])
    centre = torch.stack([x, y], -1).reshape(-1, 1, 2)
    return torch.cat([centre - half, centre + half], 2).reshape(-1, 4)


CODEBASES = {
    "ssd-pytorch": ssd_pytorch_rows,
    "lufficc": lufficc_rows,
    "qfgaohao": qfgaohao_rows,
    "nvidia": nvidia_rows,
    "detectron2": detectron2_rows,
}
