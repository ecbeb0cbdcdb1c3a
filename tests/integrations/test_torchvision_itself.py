"""torchvision's own detectors, patched and not: `make compat` runs these.

They are skipped where torchvision is not installed, as on the machines of the other tests. There,
test_integrations.py and test_torchvision_levels.py compare with torchvision's behaviour in plain
PyTorch.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from codebases.compare import assert_same, both, with_gradients
from torch import Tensor, nn

from mdssd.integrations import torchvision as fast

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

from torchvision.models import detection  # noqa: E402
from torchvision.models.detection import anchor_utils  # noqa: E402
from torchvision.models.detection.ssd import SSD  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # those of torchvision's and torch's exporters

CLASSES = 5
SIZES = {"ssd": (64, 64), "levels": (96, 128)}  # height, width of an image


class Backbone(nn.Module):
    """Feature maps of an eighth and a sixteenth of the image."""

    def __init__(self, channels: Any = 32) -> None:
        super().__init__()
        self.out_channels = channels
        self.one = nn.Conv2d(3, 32, 3, stride=8, padding=1)
        self.two = nn.Conv2d(32, 32, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        one = self.one(x)
        return OrderedDict([("one", one), ("two", self.two(one.relu()))])


class OneMap(nn.Module):
    """A backbone that TorchScript can compile."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 32, 3, stride=16, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x)


def ssd(**options: Any) -> Any:
    anchors = anchor_utils.DefaultBoxGenerator([[2], [2, 3]])
    return SSD(Backbone([32, 32]), anchors, (64, 64), CLASSES, **options)


def _anchors(maps: int, ratios: tuple[float, ...]) -> Any:
    sizes = tuple((16 * 2**i,) for i in range(maps))
    return anchor_utils.AnchorGenerator(sizes, (ratios,) * maps)


def retinanet(backbone: Any = None, maps: int = 2, **options: Any) -> Any:
    anchors = _anchors(maps, (0.5, 1.0, 2.0))
    options = {"min_size": 96, "max_size": 128} | options
    backbone = backbone or Backbone()
    return detection.RetinaNet(backbone, CLASSES, anchor_generator=anchors, **options)


def fcos(backbone: Any = None, maps: int = 2, **options: Any) -> Any:
    options = {"min_size": 96, "max_size": 128} | options
    anchors = _anchors(maps, (1.0,))
    return detection.FCOS(backbone or Backbone(), CLASSES, anchor_generator=anchors, **options)


def faster_rcnn(backbone: Any = None, maps: int = 2, **options: Any) -> Any:
    names = ["one", "two"] if maps == 2 else ["0"]
    pool = torchvision.ops.MultiScaleRoIAlign(names, 7, 2)
    options = {"min_size": 96, "max_size": 128, "rpn_pre_nms_top_n_train": 100} | options
    return detection.FasterRCNN(
        backbone or Backbone(),
        CLASSES,
        rpn_anchor_generator=_anchors(maps, (0.5, 1.0, 2.0)),
        box_roi_pool=pool,
        **options,
    )


MODELS: dict[str, Callable[..., Any]] = {
    "ssd": ssd,
    "retinanet": retinanet,
    "fcos": fcos,
    "faster_rcnn": faster_rcnn,
}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def boxes_and_labels(
    count: int, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Boxes in an image of 120 x 90 pixels, and labels from 1."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * torch.tensor(
        [80.0, 60.0]
    )
    size = 8 + 22 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, CLASSES, (count,), generator=generator)
    return {"boxes": torch.cat([low, low + size], 1).to(dtype), "labels": labels}


def images(mixed: bool) -> list[Tensor]:
    shapes = [(90, 120), (80, 110), (90, 70)] if mixed else [(90, 120)] * 3
    return [torch.rand(3, *shape) for shape in shapes]


# --- the whole model ------------------------------------------------------------------------------


@pytest.mark.parametrize("mixed", [False, True], ids=["alike", "mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_training(name: str, mixed: bool) -> None:
    model, batch = MODELS[name](), images(mixed)
    targets = [boxes_and_labels(count, i) for i, count in enumerate((3, 0, 6))]
    weights = list(model.backbone.parameters())

    def call() -> list[Tensor]:
        torch.manual_seed(7)  # Faster R-CNN samples
        losses = model(batch, copy.deepcopy(targets))
        gradients = torch.autograd.grad(sum(losses.values()), weights)
        return [*(loss.detach() for loss in losses.values()), *gradients]

    both((model,), fast, call)
    both((model, torchvision), fast, call)


@pytest.mark.parametrize("mixed", [False, True], ids=["alike", "mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_detections(name: str, mixed: bool) -> None:
    # In float64 hardly any two scores are equal, so that the order is defined.
    model, batch = MODELS[name]().eval().double(), [image.double() for image in images(mixed)]
    if name != "faster_rcnn":
        model.score_thresh = 0.001
        _peak(model, 30.0)

    def call() -> Any:
        with torch.no_grad():
            return model(batch)

    counts = [len(one["scores"]) for one in call()]
    assert min(counts) > 20 or name == "faster_rcnn"
    both((model,), fast, call)
    both((model, torchvision), fast, call)


def _peak(model: Any, factor: float) -> None:
    """Scale the last layer of the classes, so that scores differ."""
    for module in model.head.classification_head.modules():
        if isinstance(module, nn.Conv2d):
            last = module
    last.weight.data *= factor


@pytest.mark.parametrize("name", ["ssd", "retinanet", "fcos"])
def test_no_images(name: str) -> None:
    model = MODELS[name]().eval()
    outputs, anchors, _ = head_outputs(model, "random", 1)
    outputs = {k: [level[:0] for level in v] for k, v in outputs.items()}
    if name == "ssd":
        outputs, anchors = {k: v[0] for k, v in outputs.items()}, []
    with fast.patch(model):
        assert model.postprocess_detections(outputs, anchors[:0], []) == []


# --- post-processing of given outputs ------------------------------------------------------------


def head_outputs(model: Any, kind: str, count: int, seed: int = 3) -> tuple[Any, Any, list[int]]:
    """Random or confident outputs for `count` images: the outputs and anchors of each map."""
    generator = torch.Generator().manual_seed(seed)
    classes = CLASSES
    image_list = detection.image_list.ImageList(torch.rand(count, 3, 96, 128), [(96, 128)] * count)
    maps = [torch.rand(count, 8, 12, 16), torch.rand(count, 8, 6, 8)]
    anchors = model.anchor_generator(image_list, maps)
    sizes = [192 * 3, 48 * 3] if isinstance(model, detection.RetinaNet) else [192, 48]
    if isinstance(model, SSD):
        sizes = [len(anchors[0])]
    shift, scale = {"random": (-2.0, 1.0), "peaked": (-6.0, 8.0)}[kind]

    def draw(width: int) -> list[Tensor]:
        return [torch.randn(count, size, width, generator=generator) for size in sizes]

    outputs = {"bbox_regression": [0.5 * part for part in draw(4)]}
    outputs["cls_logits"] = [scale * part + shift for part in draw(classes)]
    if isinstance(model, detection.FCOS):
        outputs["bbox_regression"] = [1.5 * part.abs() for part in outputs["bbox_regression"]]
        outputs["bbox_ctrness"] = draw(1)
    return outputs, [list(own.split(sizes)) for own in anchors], sizes


@pytest.mark.parametrize("joined", [True, False], ids=["views", "copies"])
@pytest.mark.parametrize("kind", ["random", "peaked"])
@pytest.mark.parametrize("name", ["ssd", "retinanet", "fcos"])
def test_post_processing(name: str, kind: str, joined: bool) -> None:
    model = MODELS[name]().eval()
    model.topk_candidates, model.detections_per_img = 70, 90
    outputs, anchors, sizes = head_outputs(model, kind, 3)
    shapes = [(96, 128), (90, 100), (96, 128)]
    if joined:  # as in the model: the maps are parts of one tensor
        together = {k: torch.cat(v, 1) for k, v in outputs.items()}
        outputs = {k: list(v.split(sizes, 1)) for k, v in together.items()}
    if name == "ssd":
        outputs, anchors = {k: v[0] for k, v in outputs.items()}, [own[0] for own in anchors]
    for own_shapes in (shapes, shapes[:1] * 3):

        def call(own_shapes: Any = own_shapes) -> Any:
            return model.postprocess_detections(outputs, anchors, own_shapes)

        if kind == "random":
            both((model,), fast, call)
        else:  # many scores are equal in float32, so that only their multiset is defined
            want = [one["scores"] for one in call()]
            with fast.patch(model):
                assert_same([one["scores"] for one in call()], want)
    assert len(call()[0]["scores"]) > 30
    if kind == "peaked":
        outputs = _doubled(outputs)
        both((model,), fast, call)


def _doubled(outputs: Any) -> Any:
    """Other outputs in float64, with which hardly any two scores are equal."""
    generator = torch.Generator().manual_seed(9)

    def changed(part: Tensor) -> Tensor:
        part = part.double()
        return part + 0.01 * torch.rand(part.shape, generator=generator, dtype=part.dtype)

    return {
        name: [changed(part) for part in parts] if isinstance(parts, list) else changed(parts)
        for name, parts in outputs.items()
    }


@pytest.mark.parametrize("name", ["ssd", "retinanet", "fcos"])
@pytest.mark.parametrize(
    "setting",
    [
        {"score_thresh": -1},
        {"nms_thresh": 1.5},
        {"nms_thresh": -0.5},
        {"detections_per_img": 0},
        {"topk_candidates": 0},
        {"score_thresh": 2},
    ],
    ids=str,
)
def test_limits_out_of_the_operators_range(name: str, setting: dict[str, float]) -> None:
    model = MODELS[name]().eval()
    for key, value in setting.items():
        setattr(model, key, value)
    outputs, anchors, _ = head_outputs(model, "peaked", 1)
    if name == "ssd":
        outputs, anchors = {k: v[0] for k, v in outputs.items()}, [own[0] for own in anchors]
    both((model,), fast, lambda: model.postprocess_detections(outputs, anchors, [(96, 128)]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("threshold", [0.7, 1.5, -0.5])
def test_filter_proposals(training: bool, threshold: float) -> None:
    model = faster_rcnn(rpn_score_thresh=0.3, rpn_post_nms_top_n_train=40)
    model.rpn.nms_thresh = threshold
    model.train(training)
    generator = torch.Generator().manual_seed(1)
    low = 100 * torch.rand(3, 240, 2, generator=generator) - 10
    size = 30 * torch.rand(3, 240, 2, generator=generator)
    size[:, ::10] = 0  # too small
    proposals = torch.cat([low, low + size], 2)
    objectness = torch.randn(720, 1, generator=generator)
    shapes = [(96, 128), (90, 100), (50, 128)]
    arguments = (proposals, objectness, shapes, [192, 48])
    both((model,), fast, lambda: model.rpn.filter_proposals(*arguments))
    both((model.rpn,), fast, lambda: model.rpn.filter_proposals(*arguments))


# --- matching and losses -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low_quality", [True, False])
def test_retinanet_and_rpn_match(low_quality: bool, dtype: torch.dtype) -> None:
    for make in (retinanet, faster_rcnn):
        model = make()
        owner = model.rpn if make is faster_rcnn else model
        owner.proposal_matcher.allow_low_quality_matches = low_quality
        _, anchors, _ = head_outputs(retinanet(), "random", 4)
        anchors = [torch.cat(own) for own in anchors]
        targets = [boxes_and_labels(n, n, dtype) for n in (4, 0, 9, 40)]
        targets[0]["boxes"][:2] = anchors[0][[5, 5]] + 1  # share their best anchor
        if make is faster_rcnn:
            both((model,), fast, lambda: owner.assign_targets_to_anchors(anchors, targets))  # noqa: B023
        else:
            seen = []
            owner.head.compute_loss = lambda *arguments: seen.append(arguments[3]) or {}  # noqa: B023
            owner.compute_loss(targets, {}, anchors)
            with fast.patch(owner):
                owner.compute_loss(targets, {}, anchors)
            assert_same(*seen, exact=True)
            assert sum(int((index == -2).sum()) for index in seen[0]) > 10


@pytest.mark.parametrize("kind", ["random", "peaked"])
@pytest.mark.parametrize("loss_type", ["l1", "smooth_l1", "giou", "ciou"])
def test_retinanet_loss(kind: str, loss_type: str) -> None:
    model = retinanet()
    model.head.regression_head._loss_type = loss_type
    outputs, anchors, _ = head_outputs(model, kind, 3)
    anchors = [torch.cat(own) for own in anchors]
    targets = [boxes_and_labels(n, n) for n in (4, 0, 9)]
    targets[0]["labels"][0] = 0  # a class like the others

    def call(loc: Tensor, logits: Tensor) -> Any:
        return model.compute_loss(targets, {"bbox_regression": loc, "cls_logits": logits}, anchors)

    loc, logits = (torch.cat(outputs[name], 1) for name in ("bbox_regression", "cls_logits"))
    both((model,), fast, lambda: with_gradients(call, loc, logits))
    targets[2]["labels"][1] = -2  # counts from the last class
    both((model,), fast, lambda: with_gradients(call, loc, logits))
    targets[:] = [boxes_and_labels(0, 0)] * 3
    both((model,), fast, lambda: with_gradients(call, loc, logits))


class Seen(nn.Module):
    """A head that returns what it gets."""

    def compute_loss(self, *given: Any) -> Any:
        return given[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_fcos_match(dtype: torch.dtype) -> None:
    model = fcos()
    _, anchors, sizes = head_outputs(model, "random", 4)
    anchors = [torch.cat(own) for own in anchors]
    model.head = Seen()
    targets = [boxes_and_labels(n, n, dtype) for n in (4, 0, 9, 200)]
    targets[2]["boxes"][0] = torch.tensor([-7000, -7000, 7000, 7000])  # an area above 1e8
    own = [*anchors[:3], anchors[3] + 3]
    for given in (anchors, own):
        want = model.compute_loss(targets, {}, given, sizes)
        with fast.patch(model):
            got = model.compute_loss(targets, {}, given, sizes)
        assert_same(got, want, exact=True)
    assert sum(int((index >= 0).sum()) for index in want) > 50
    if dtype != torch.int64:
        targets[0]["boxes"][1, 2] = float("nan")
        want = model.compute_loss(targets, {}, given, sizes)
        with fast.patch(model):
            assert_same(model.compute_loss(targets, {}, given, sizes), want, exact=True)


@pytest.mark.parametrize("kind", ["random", "peaked"])
def test_fcos_loss(kind: str) -> None:
    model = fcos()
    outputs, anchors, sizes = head_outputs(model, kind, 3)
    anchors = [torch.cat(own) for own in anchors]
    targets = [boxes_and_labels(n, n) for n in (4, 0, 9)]
    targets[0]["labels"][0] = 0  # a class like the others
    names = ("bbox_regression", "cls_logits", "bbox_ctrness")

    def call(*parts: Tensor) -> Any:
        return model.compute_loss(targets, dict(zip(names, parts, strict=True)), anchors, sizes)

    given = [torch.cat(outputs[name], 1) for name in names]
    given[0][:, ::3] = 0  # boxes without area
    both((model,), fast, lambda: with_gradients(call, *given))
    targets[2]["labels"][1] = -2  # the background
    both((model,), fast, lambda: with_gradients(call, *given))
    targets[2]["labels"][1] = CLASSES
    for context in (nullcontext(), fast.patch(model)):
        with context, pytest.raises((IndexError, ValueError), match=r"out of bounds|expected -1"):
            call(*given)
    targets[:] = [boxes_and_labels(0, 0)] * 3
    both((model,), fast, lambda: with_gradients(call, *given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["random", "peaked"])
def test_ssd_loss(kind: str, dtype: torch.dtype) -> None:
    model = ssd()
    outputs, anchors, _ = head_outputs(model, kind, 3)
    anchors = [own[0] for own in anchors]
    loc, logits = outputs["bbox_regression"][0], outputs["cls_logits"][0]
    targets = [boxes_and_labels(n, n, dtype) for n in (4, 0, 9)]

    def call(loc: Tensor, logits: Tensor) -> Any:
        matched = []
        for own, target in zip(anchors, targets, strict=True):
            if len(target["boxes"]) == 0:
                matched.append(torch.full((len(own),), -1))
            else:
                iou = torchvision.ops.box_iou(target["boxes"], own)
                matched.append(model.proposal_matcher(iou))
        outputs = {"bbox_regression": loc, "cls_logits": logits}
        return model.compute_loss(targets, outputs, anchors, matched)

    both((model,), fast, lambda: with_gradients(call, loc, logits))
    targets[0]["labels"][:2] = 0  # offsets, but no class
    both((model,), fast, lambda: with_gradients(call, loc, logits))
    targets[2]["labels"][0] = CLASSES
    for context in (nullcontext(), fast.patch(model)):
        with context, pytest.raises((IndexError, ValueError), match=r"out of bounds|expected -1"):
            call(loc, logits)


def test_float64_boxes_match_as_in_torchvision() -> None:
    """torchvision computes the areas of float32 anchors in float32, also beside float64 boxes."""
    model = ssd()
    box = torch.tensor(
        [[2.3261794384451877, 2.5164066969831023, 6.797900893945368, 5.568009984204643]],
        dtype=torch.float64,
    )
    targets = [{"boxes": box, "labels": torch.tensor([2])}]
    batch = [torch.rand(3, 64, 64)]
    both((model,), fast, lambda: model(batch, copy.deepcopy(targets)))


# --- suppression of the package ----------------------------------------------------------------


def cases() -> dict[str, tuple[Any, ...]]:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [5, 5, 5, 9]])
    scores, classes = torch.tensor([0.5, 0.9, 0.3, 0.7]), torch.tensor([1, 1, 2, 1])
    return {
        "plain": (boxes, scores, classes, 0.5),
        "float64": (boxes.double(), scores.double(), classes, 0.5),
        "int classes": (boxes, scores, classes.int(), 0.5),
        "above 1": (boxes, scores, classes, 1.5),
        "below 0": (boxes, scores, classes, -0.5),
        "empty": (boxes[:0], scores[:0], classes[:0], 0.5),
        "flat and empty": (torch.empty(0), torch.empty(0), classes[:0], 0.5),
        "integers": (boxes.long(), scores, classes, 0.5),
        "shape": (boxes[:, :3], scores, classes, 0.5),
        "lengths": (boxes, scores[:2], classes, 0.5),
        "two types": (boxes, scores.double(), classes, 0.5),
        "a string": (boxes, scores, classes, "0.5"),
    }


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("function", ["nms", "batched_nms"])
def test_suppression(function: str, name: str) -> None:
    boxes, scores, classes, threshold = cases()[name]
    arguments = (boxes, scores, threshold) if function == "nms" else cases()[name]
    for owner in (torchvision.ops, torchvision.ops.boxes):
        results = []
        for context in (nullcontext(), fast.patch(torchvision)):
            with context:
                try:
                    results.append(getattr(owner, function)(*arguments))
                except (TypeError, RuntimeError) as error:
                    results.append(type(error))
        if name == "two types" and not isinstance(results[1], type):
            continue  # allowed, as in autocast
        assert_same(results[1], results[0], exact=True)


def test_suppression_of_nothing_and_quantised() -> None:
    with fast.patch(torchvision):
        nothing = torchvision.ops.batched_nms(torch.empty((0,)), None, None, None)
        assert nothing.shape == (0,) and nothing.dtype == torch.int64
    boxes, scores, *_ = cases()["plain"]
    quantised = [
        torch.quantize_per_tensor(part, 1.0, 0, torch.quint8) for part in (boxes, 10 * scores)
    ]
    both((torchvision,), fast, lambda: torchvision.ops.nms(*quantised, 0.5))


# --- scripting, exporting, copying ---------------------------------------------------------------

SCRIPTED: dict[str, Callable[..., Any]] = {
    "ssd": lambda: detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None),
    "retinanet": lambda: retinanet(OneMap(), 1),
    "fcos": lambda: fcos(OneMap(), 1),
    "faster_rcnn": lambda: faster_rcnn(OneMap(), 1),
}


@pytest.mark.parametrize("name", SCRIPTED)
def test_torchscript_compiles_torchvisions_own_code(name: str) -> None:
    model = SCRIPTED[name]().eval()
    batch = [torch.rand(3, 96, 128)]
    with fast.patch(model, torchvision):
        rpn = getattr(model, "rpn", None)
        owners = [model] if rpn is None else [model, rpn]
        before = [dict(vars(owner)) for owner in owners]
        scripted = torch.jit.script(model)
        for owner, old in zip(owners, before, strict=True):  # nothing is replaced by scripting
            assert all(vars(owner)[name] is value for name, value in old.items())
        assert getattr(model, "rpn", None) is rpn
        torch.jit.script(torchvision.ops.nms)
    saved = io.BytesIO()
    torch.jit.save(scripted, saved)
    with torch.no_grad():
        assert_same(scripted(batch)[1], model(batch))


@pytest.mark.parametrize("name", ["ssd", "retinanet", "fcos", "faster_rcnn"])
def test_onnx_gets_torchvisions_own_code(name: str) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    model = MODELS[name]().eval()
    batch = [torch.rand(3, 64, 64) if name == "ssd" else torch.rand(3, 96, 128)]
    files = []
    for context in (nullcontext(), fast.patch(model, torchvision)):
        with context:
            files.append(io.BytesIO())
            torch.onnx.export(model, (batch,), files[-1], dynamo=False, opset_version=17)
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.parametrize("name", MODELS)
def test_copies_pickles_and_state(name: str) -> None:
    model, batch = MODELS[name]().eval(), images(True)
    keys = list(model.state_dict())
    with torch.no_grad(), fast.patch(model):
        want = model(batch)
        assert list(model.state_dict()) == keys
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        others = (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(file, weights_only=False),
        )
        for other in others:
            assert_same(other(batch), want, exact=True)
        state = io.BytesIO()
        torch.save(model.state_dict(), state)
    state.seek(0)
    fresh = MODELS[name]().eval()
    fresh.load_state_dict(torch.load(state, weights_only=True))
    with torch.no_grad():
        assert_same(fresh(batch), want)
    patched = {"ssd": "compute_loss", "fcos": "postprocess_detections"}.get(name)
    if patched:  # a copy stays patched, and the model is not
        assert patched in vars(others[0]) and patched not in vars(model)


@pytest.mark.parametrize("name", ["ssd", "retinanet", "fcos"])
def test_autocast_on_a_cpu_keeps_the_types(name: str) -> None:
    model, batch = MODELS[name]().eval(), images(False)
    model.score_thresh = 0.001

    def types() -> list[torch.dtype]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = model(batch)
        return [found[0][part].dtype for part in ("boxes", "scores", "labels")]

    want = types()
    with fast.patch(model):
        assert types() == want
    model.train()
    targets = [boxes_and_labels(count, i) for i, count in enumerate((3, 0, 6))]

    def losses() -> dict[str, float]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return {k: float(v) for k, v in model(batch, copy.deepcopy(targets)).items()}

    want_losses = losses()
    with fast.patch(model):
        assert losses() == pytest.approx(want_losses, rel=2e-2)
