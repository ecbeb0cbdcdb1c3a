"""Benchmark the operators on every backend, and other implementations on the same inputs.

Run with `make bench` or `pytest benchmarks/ --benchmark-only`. Each test is a row: it checks the
result of each side against the reference, and times the sides in turns (turns.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch

from benchmarks import generators
from benchmarks.machine import pretended
from benchmarks.peers import (
    detection,
    detection_rules,
    fusion,
    loss,
    matching,
    merging,
    retinanet,
    softening,
    suppression,
)
from benchmarks.rows import Sides, backends, by_device, contenders, on_cuda, ours, params
from benchmarks.turns import Side
from mdssd import ops
from mdssd.testing import CASES, Case

_DEVICES = ["cpu", *(name for name in ("cuda", "xpu") if getattr(torch, name).is_available())]
# The host waits for the number of boxes.
_READS_BACK = ("nms", "batched_nms", "soft_nms", "merge_boxes")


_ON_DEVICES = by_device(*(Sides(name, {}) for name in _DEVICES))


@pytest.mark.cases(size=lambda size: size.benchmark)
@pytest.mark.parametrize("sides", _ON_DEVICES)
def test_latency(
    case: Case, size: str, dtype: torch.dtype, sides: Sides, measure: Callable[..., None]
) -> None:
    """Run the benchmark sizes of CASES on every backend that can run here."""
    if pretended():
        size = next(name for name in ("odd", "ragged", *case.sizes) if name in case.sizes)
    _measure_case(case, size, dtype, sides, measure)


@pytest.mark.parametrize("sides", _ON_DEVICES)
@pytest.mark.parametrize(
    "smallest", [case for case in CASES if "one" in case.sizes], ids=lambda case: case.op
)
def test_cost_of_a_call(smallest: Case, sides: Sides, measure: Callable[..., None]) -> None:
    """Run the operators on a single box, prior or pixel, where most of a call is Python."""
    _measure_case(smallest, "one", torch.float32, sides, measure)


def _measure_case(
    case: Case, size: str, dtype: torch.dtype, sides: Sides, measure: Callable[..., None]
) -> None:
    args, kwargs = case.inputs(size, dtype, sides.device)
    with ops.backend("reference"):
        want = case(*args, **kwargs)

    def prepare(peer: str, backend: str) -> Side:
        with ops.backend(backend):
            got = case(*args, **kwargs)
        for position, (g, w) in enumerate(zip(got, want, strict=True)):
            rtol, atol = case.allowed(position, dtype, kwargs)
            torch.testing.assert_close(g, w, rtol=rtol, atol=atol, equal_nan=True)
        return Side(lambda: case(*args, **kwargs), partial(ops.backend, backend))

    measure(
        sides._replace(makes=backends(case.op, sides.device)),
        prepare,
        op=case.op,
        row=f"test size {size}",
        dtype=dtype,
        shape=str(case.sizes[size].arguments),
        capture=lambda peer: peer != "mdssd reference" and case.op not in _READS_BACK,
    )


# --- detection_output --------------------------------------------------------------------------

# model, classes, candidates (None: all scores are candidates, as in an untrained network)
_DETECTION = [
    ("ssd300", 21, 500),
    ("mdssd300", 21, 1500),
    ("mdssd300", 21, None),
    ("mdssd512", 81, 4000),
    ("mdssd512", 81, None),
]
_UNLIMITED = 1_000_000  # top_k for peers without such a limit


@lru_cache(maxsize=4)
def _expected(backend: str, top_k: int, *arguments: Any) -> detection.Found:
    with ops.backend(backend):
        found = ops.detection_output(*generators.network_output(*arguments), top_k=top_k)
    count = int(found.count)
    return detection.Found(found.boxes[0, :count], found.scores[0, :count], found.labels[0, :count])


def _check_detection(peer: str, make: Callable[..., Any], device: str, *arguments: Any) -> Any:
    """Return a peer's call; compare it with the reference on 1,000 priors and with ours on all."""
    top_k = _UNLIMITED if peer in detection.NO_TOP_K else detection.TOP_K
    for count, backend in ((1000, "reference"), (None, "cpp")):
        call = make(generators.to(device, generators.network_output(*arguments, count)))
        want = _expected(backend, top_k, *arguments, count)
        found = detection.Found(*(part[: len(want.scores)].cpu() for part in call()))
        assert not (lines := detection.differences(found, want)), "\n".join(lines[:10])
    return call


@pytest.mark.parametrize("sides", contenders(detection.mdssd, detection.PEERS, detection.ON_GPU))
@pytest.mark.parametrize("model, classes, candidates", _DETECTION)
def test_detection_output(
    model: str,
    classes: int,
    candidates: int | None,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    logits = generators.network_output(model, classes, candidates).logits
    measure(
        sides,
        lambda peer, make: _check_detection(peer, make, sides.device, model, classes, candidates),
        op="detection_output",
        row=f"{logits.shape[1]:,} x {classes}, {'trained' if candidates else 'untrained'}",
        dtype=torch.float32,
        shape=str(list(logits.shape)),
        moved=logits.nbytes,
        flops=3.0 * logits.numel(),  # a difference, an exponential, a sum
        capture=ours,
    )


@pytest.mark.parametrize(
    "sides", contenders(detection_rules.mdssd, detection_rules.PEERS, detection_rules.ON_GPU)
)
@pytest.mark.parametrize("model, classes, candidates", _DETECTION[:2])
@pytest.mark.parametrize("rule", detection_rules.RULES)
def test_detection_output_with_other_suppression(
    rule: str,
    model: str,
    classes: int,
    candidates: int,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    x = generators.network_output(model, classes, candidates)
    with ops.backend("reference"):
        want = detection_rules.mdssd(x, rule)()

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        call: Callable[[], Any] = make(generators.to(sides.device, x), rule)
        found = detection.Found(*(part[: len(want.scores)].cpu() for part in call()))
        assert not (lines := detection.differences(found, want)), "\n".join(lines[:10])
        return call

    measure(
        sides,
        prepare,
        op="detection_output, other suppression",
        row=f"{x.logits.shape[1]:,} x {classes}, {rule}",
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
        moved=x.logits.nbytes,
        flops=3.0 * x.logits.numel(),  # a difference, an exponential, a sum
        capture=ours,
    )


# width, height, classes, kind
_RETINANET = [
    (320, 320, 91, "trained"),
    (1333, 800, 91, "trained"),
    (1333, 800, 91, "early"),
]


@pytest.mark.parametrize("sides", contenders(retinanet.mdssd, retinanet.PEERS, retinanet.ON_GPU))
@pytest.mark.parametrize("width, height, classes, kind", _RETINANET)
def test_retinanet(
    width: int,
    height: int,
    classes: int,
    kind: str,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    x = generators.retina_output(width, height, classes, kind)
    with ops.backend("reference"):
        want = retinanet.mdssd(x)()
    there = generators.to(sides.device, x)

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        call = make(there)
        found = detection.Found(*(part[: len(want.scores)].cpu() for part in call()))
        lines = detection.differences(found, want, 1e-3)
        assert not lines, "\n".join(lines[:10])
        return call

    measure(
        sides,
        prepare,
        op="RetinaNet post-processing",
        row=f"{x.logits.shape[1]:,} x {classes}, {kind}",
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
        moved=x.logits.nbytes,
        flops=1.0 * x.logits.numel(),  # a comparison
        capture=ours,
    )


# --- nms, batched_nms --------------------------------------------------------------------------

# boxes, kind, classes
_NMS = [
    (8000, "crowded", 20),
    (32000, "crowded", 80),
    (1000, "crowded", None),
    (5000, "crowded", None),
    (20000, "crowded", None),
    (20000, "spread", None),
]


@lru_cache(maxsize=2)
def _kept(*arguments: Any) -> torch.Tensor:
    with ops.backend("reference"):
        return suppression.mdssd(generators.scored_boxes(*arguments))()


def _check_nms(
    x: generators.Scored, want: torch.Tensor, peer: str, make: Callable[..., Any]
) -> Callable[[], Any]:
    call: Callable[[], Any] = make(x)
    assert torch.equal(call().cpu().sort().values, want.sort().values)
    return call


@pytest.mark.parametrize(
    "sides", contenders(suppression.mdssd, suppression.PEERS, suppression.ON_GPU)
)
@pytest.mark.parametrize("count, kind, classes", _NMS)
def test_nms(
    count: int,
    kind: str,
    classes: int | None,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    x = generators.scored_boxes(count, kind, classes)
    row = f"{classes} classes x {count // classes}" if classes else f"{count:,} boxes, {kind}"
    measure(
        sides,
        partial(_check_nms, generators.to(sides.device, x), _kept(count, kind, classes)),
        op="batched_nms" if classes else "nms",
        row=row,
        dtype=torch.float32,
        shape=str(list(x.boxes.shape)),
        moved=x.boxes.nbytes + x.scores.nbytes,
    )


# --- soft_nms ------------------------------------------------------------------------------------

# boxes, classes, method
_SOFTENING = [(1000, 20, "linear"), (1000, 20, "gaussian"), (4000, 1, "gaussian")]


def _kept_boxes(result: tuple[Any, Any]) -> list[list[float]]:
    """Return rows of class and box, in order."""
    boxes, classes = (torch.as_tensor(part).double().cpu() for part in result)
    return sorted(torch.cat([classes[:, None], boxes], 1).tolist())


@pytest.mark.parametrize("sides", contenders(softening.mdssd, softening.PEERS))
@pytest.mark.parametrize("count, classes, method", _SOFTENING)
def test_soft_nms(
    count: int,
    classes: int,
    method: str,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    x = generators.scored_boxes(count, "crowded", classes)
    with ops.backend("reference"):
        want = _kept_boxes(softening.mdssd(x, method)())

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        call: Callable[[], Any] = make(generators.to(sides.device, x), method)
        assert _kept_boxes(call()) == want
        return call

    measure(
        sides,
        prepare,
        op="soft_nms",
        row=f"{method}, {count:,} boxes of {classes} classes",
        dtype=torch.float32,
        shape=str(list(x.boxes.shape)),
        moved=x.boxes.nbytes + 2 * x.scores.nbytes,
    )


# --- merge_boxes ---------------------------------------------------------------------------------

# boxes, kind, classes, method, metric
_MERGING = [
    (20000, "objects", 20, "nms", "iou"),
    (20000, "objects", 20, "greedy_nmm", "ios"),
    (20000, "objects", 20, "nmm", "ios"),
    (20000, "objects", 20, "wbf", "iou"),
    (33337, "piled", 1, "greedy_nmm", "ios"),
    (33337, "piled", 1, "nmm", "ios"),
]


def _merging_rows() -> list[Any]:
    """Return parameters (count, kind, classes, method, metric, sides)."""
    rows = []
    for setting in _MERGING:
        on_cpu = Sides("cpu", {"mdssd cpp": merging.mdssd, **merging.PEERS[setting[3]]})
        rows += [(*setting, sides) for sides in (on_cpu, on_cuda(merging.mdssd, {}))]
    return params(rows)


def _in_order(result: Any) -> torch.Tensor:
    """Return rows [K, 6] by class and score."""
    rows = merging.rows(result)
    rows = rows[rows[:, 4].argsort(stable=True)]
    return rows[rows[:, 5].argsort(stable=True)]


@lru_cache(maxsize=4)
def _merged(backend: str, *arguments: Any) -> torch.Tensor:
    *generated, method, metric = arguments
    with ops.backend(backend):
        return _in_order(merging.mdssd(generators.tiled_boxes(*generated), method, metric)())


@pytest.mark.parametrize("count, kind, classes, method, metric, sides", _merging_rows())
def test_merge_boxes(
    count: int,
    kind: str,
    classes: int,
    method: str,
    metric: str,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    x = generators.tiled_boxes(count, kind, classes)

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        # Compare with the reference on 2,000 boxes, and with ours on all of them.
        for boxes, backend in ((2000, "reference"), (count, "cpp")):
            some = generators.tiled_boxes(boxes, kind, classes)
            call: Callable[[], Any] = make(generators.to(sides.device, some), method, metric)
            want, got = _merged(backend, boxes, kind, classes, method, metric), _in_order(call())
            if peer == "sahi, groups only":
                assert torch.equal(got[:, 4:], want[:, 4:])
            else:
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        return call

    measure(
        sides,
        prepare,
        op="merge_boxes",
        row=f"{method}, {metric}, {count:,} boxes, {kind}, of {classes} classes",
        dtype=torch.float32,
        shape=str(list(x.boxes.shape)),
        moved=2 * (x.boxes.nbytes + x.scores.nbytes),
    )


# --- match_priors, encode_targets --------------------------------------------------------------

_MATCHING = [("mdssd300", m) for m in (1, 10, 50, 200)] + [("mdssd512", m) for m in (10, 50, 200)]
_IMAGES = 32
_SSD_RULE = "mdssd, SSD's rule"


@lru_cache(maxsize=4)
def _expected_matches(model: str, m: int) -> tuple[ops.Match, ops.Targets]:
    """Return the reference's results for two images."""
    x, priors = generators.truth(2, m), generators.priors(model)
    with ops.backend("reference"):
        return matching.mdssd(x, priors)(), matching.mdssd_targets(x, priors)()


def _check_matching(
    device: str, model: str, m: int, targets: bool, peer: str, make: Callable[..., Any]
) -> None:
    """Compare two images with the reference.

    Compiled code rounds differently. A prior whose IoUs with two boxes differ in the last bit only
    may be assigned to the other box; one in ten thousand may be.
    """
    x = generators.to(device, (generators.truth(2, m), generators.priors(model)))
    got = [part.cpu() for part in make(*x)()]
    want = _expected_matches(model, m)[targets]
    # The choice is the index or the label; the value is the IoU or the offsets.
    (choice, value), (want_choice, want_value) = (r[::-1] if targets else r for r in (got, want))
    assert (choice != want_choice).double().mean() <= (1e-4 if peer == "torch.compile" else 0)
    alike = choice == want_choice
    if targets:
        alike &= choice > 0
    near = torch.isclose(value, want_value, rtol=1e-4, atol=1e-4)
    far = alike & ~(near.all(2) if targets else near)  # the other box may have the same label
    assert far.double().mean() <= (1e-4 if targets and peer == "torch.compile" else 0)


@pytest.mark.parametrize("sides", contenders(matching.mdssd, matching.PEERS, matching.ON_GPU))
@pytest.mark.parametrize("model, boxes", _MATCHING)
def test_matching(
    model: str,
    boxes: int,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    check = partial(_check_matching, sides.device, model, boxes, False)
    _measure_matching("match_priors", 12, model, boxes, sides, check, measure)


@pytest.mark.parametrize(
    "sides",
    contenders(matching.mdssd_targets, matching.TARGET_PEERS, matching.TARGETS_ON_GPU),
)
@pytest.mark.parametrize("model, boxes", _MATCHING)
def test_targets(
    model: str,
    boxes: int,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    check = partial(_check_matching, sides.device, model, boxes, True)
    _measure_matching("encode_targets", 24, model, boxes, sides, check, measure)


def _measure_rule(
    rule: str,
    make_ours: Callable[..., Any],
    boxes: int,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    """Measure another rule than SSD's, after comparing two images with the reference.

    SSD's rule is a side as well.
    """
    x = generators.to(sides.device, (generators.truth(2, boxes), generators.priors("mdssd300")))
    with ops.backend("reference"):
        want = make_ours(*x)()

    def check(peer: str, make: Callable[..., Any]) -> None:
        if peer != _SSD_RULE:
            for got, expected in zip(make(*x)(), want, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)

    sides = sides._replace(makes={**sides.makes, _SSD_RULE: matching.mdssd})
    _measure_matching("match_priors", 12, "mdssd300", boxes, sides, check, measure, rule)


@pytest.mark.parametrize(
    "sides", contenders(matching.mdssd_band, matching.BAND_PEERS, matching.BAND_PEERS)
)
@pytest.mark.parametrize("boxes", [10, 50])
def test_matching_with_a_band(boxes: int, sides: Sides, measure: Callable[..., None]) -> None:
    rule = ", ignored from 0.4"
    _measure_rule(rule, matching.mdssd_band, boxes, sides, measure)


@pytest.mark.parametrize(
    "sides",
    contenders(matching.mdssd_retinanet, matching.RETINANET_PEERS, matching.RETINANET_PEERS),
)
@pytest.mark.parametrize("boxes", [10, 50])
def test_matching_of_retinanet(boxes: int, sides: Sides, measure: Callable[..., None]) -> None:
    rule = ", ignored from 0.4, low-quality matches"
    _measure_rule(rule, matching.mdssd_retinanet, boxes, sides, measure)


def _measure_matching(
    op: str,
    bytes_a_prior: int,
    model: str,
    boxes: int,
    sides: Sides,
    check: Callable[[str, Callable[..., Any]], None],
    measure: Callable[..., None],
    rule: str = "",
) -> None:
    inputs = generators.truth(_IMAGES, boxes), generators.priors(model)
    x, priors = generators.to(sides.device, inputs)

    def prepare(peer: str, make: Callable[..., Any]) -> Any:
        check(peer, make)
        return make(x, priors)

    measure(
        sides,
        prepare,
        op=op,
        row=f"{_IMAGES} images, {len(priors):,} x {boxes}{rule}",
        dtype=torch.float32,
        shape=f"[{_IMAGES}, {len(priors)}] x {boxes}",
        moved=_IMAGES * len(priors) * bytes_a_prior,
        capture=ours,
    )


# --- l2norm_add_relu ---------------------------------------------------------------------------

_MAPS = [
    (1, 256, 75, 75),
    (1, 512, 38, 38),
    (1, 1024, 19, 19),
    (8, 256, 75, 75),
    (8, 512, 38, 38),
]


@pytest.mark.parametrize("sides", contenders(fusion.mdssd, fusion.PEERS, fusion.ON_GPU))
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", _MAPS, ids=lambda shape: "x".join(map(str, shape)))
def test_fusion(
    shape: tuple[int, int, int, int],
    channels_last: bool,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    x = generators.maps(shape, channels_last)
    there = generators.to(sides.device, x)
    with ops.backend("reference"):
        want = fusion.mdssd(x)()

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        if channels_last and peer == "openvino":
            pytest.skip("openvino's inputs are NCHW")
        call: Callable[[], Any] = make(there)
        if peer not in fusion.OTHER_RESULT:
            torch.testing.assert_close(call().cpu(), want, rtol=2e-5, atol=2e-6)
        return call

    layout = "channels-last" if channels_last else "NCHW"
    measure(
        sides,
        prepare,
        op="l2norm_add_relu",
        row=f"{' x '.join(map(str, shape))}, {layout}",
        dtype=torch.float32,
        shape=str(list(shape)),
        moved=3 * x.a.nbytes,
        # Per map a square, a sum and two products; then a sum and a maximum.
        flops=9.0 * x.a.numel(),
        capture=lambda peer: True,
    )


def _fusion_gradients(make: Callable[..., Any], x: generators.Maps) -> Callable[[], Any]:
    x = generators.Maps(*(part.detach().requires_grad_() for part in x))
    call = make(x)

    def gradients() -> Any:
        y = call()
        return torch.autograd.grad(y, tuple(x), y.detach())

    return gradients


@lru_cache(maxsize=2)
def _expected_gradients(shape: tuple[int, int, int, int], channels_last: bool) -> Any:
    with ops.backend("reference"):
        return _fusion_gradients(fusion.mdssd, generators.maps(shape, channels_last))()


@pytest.mark.parametrize(
    "sides",
    contenders(
        partial(_fusion_gradients, fusion.mdssd),
        {name: partial(_fusion_gradients, fusion.PEERS[name]) for name in fusion.DIFFERENTIABLE},
        fusion.DIFFERENTIABLE,
    ),
)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [_MAPS[0], _MAPS[3]], ids=lambda shape: "x".join(map(str, shape)))
def test_fusion_gradients(
    shape: tuple[int, int, int, int],
    channels_last: bool,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    """Run forward and backward, with the result as the incoming gradient."""
    x = generators.to(sides.device, generators.maps(shape, channels_last))

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        call: Callable[[], Any] = make(x)
        for got, want in zip(call(), _expected_gradients(shape, channels_last), strict=True):
            # A map's gradient is a difference of two terms, whose size bounds the rounding error.
            atol = 1e-5 * float(want.abs().max())
            torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=atol)
        return call

    layout = "channels-last" if channels_last else "NCHW"
    measure(
        sides,
        prepare,
        op="l2norm_add_relu forward and backward",
        row=f"{' x '.join(map(str, shape))}, {layout}",
        dtype=torch.float32,
        shape=str(list(shape)),
        # Forward reads two maps and writes one. Backward reads those three and a gradient, and
        # writes two gradients.
        moved=9 * x.a.nbytes,
        flops=25.0 * x.a.numel(),  # forward 9; backward, per map, two sums of products and a result
    )


# --- multibox_loss -----------------------------------------------------------------------------


def _loss_call(loss: Callable[..., Any], x: generators.LossInput) -> Callable[[], Any]:
    loc, logits = x.loc.requires_grad_(), x.logits.requires_grad_()

    def call() -> Any:
        localisation, confidence = loss(loc, logits, x.loc_targets, x.labels)
        gradients = torch.autograd.grad(localisation + confidence, (loc, logits))
        return localisation.detach(), confidence.detach(), *gradients

    return call


@lru_cache(maxsize=1)
def _expected_losses(*arguments: Any) -> Any:
    with ops.backend("reference"):
        return _loss_call(loss.mdssd, generators.loss_input(*arguments))()


@pytest.mark.parametrize(
    "sides",
    contenders(
        partial(_loss_call, loss.mdssd),
        {name: partial(_loss_call, peer) for name, peer in loss.PEERS.items()},
        loss.ON_GPU,
    ),
)
def test_loss(sides: Sides, measure: Callable[..., None]) -> None:
    """Run forward and backward."""
    model, images, classes = "mdssd300", 32, 21
    x = generators.loss_input(model, images, classes)
    there = generators.to(sides.device, x)

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        call: Callable[[], Any] = make(there)
        for got, want in zip(call(), _expected_losses(model, images, classes), strict=True):
            torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-7)
        return call

    measure(
        sides,
        prepare,
        op="multibox_loss forward and backward",
        row=f"{images} x {x.logits.shape[1]:,} x {classes}",
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
        # Reads logits, offsets, targets and labels, and writes two gradients.
        moved=2 * x.logits.nbytes + 3 * x.loc.nbytes + x.labels.nbytes,
        flops=5.0 * x.logits.numel(),  # three for a softmax, a difference and a product
    )


# --- sigmoid_focal_loss and box_loss -------------------------------------------------------------


def _scalar_call(loss: Callable[..., Any], x: torch.Tensor, *rest: Any) -> Callable[[], Any]:
    """Return a call of a loss of x, forward and backward."""
    x.requires_grad_()

    def call() -> Any:
        value = loss(x, *rest)
        return value.detach(), *torch.autograd.grad(value, x)

    return call


def _losses(mdssd: Callable[..., Any], peers: dict[str, Callable[..., Any]]) -> list[Any]:
    calls = {name: partial(_scalar_call, peer) for name, peer in peers.items()}
    return contenders(partial(_scalar_call, mdssd), calls, calls)


def _prepare_loss(
    mdssd: Callable[..., Any], device: str, *arguments: torch.Tensor
) -> Callable[[str, Any], Callable[[], Any]]:
    """Return a function that makes the call of a peer and compares it with the reference."""
    with ops.backend("reference"):
        expected = _scalar_call(mdssd, *arguments)()
    there = [generators.to(device, argument) for argument in arguments]

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        call: Callable[[], Any] = make(*there)
        for got, want in zip(call(), expected, strict=True):
            torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-7)
        return call

    return prepare


@pytest.mark.parametrize("sides", _losses(loss.mdssd_focal, loss.FOCAL_PEERS))
def test_focal_loss(sides: Sides, measure: Callable[..., None]) -> None:
    """Run forward and backward, with an eighth of the priors ignored."""
    images, classes = 4, 20
    x = generators.loss_input("mdssd300", images, classes)
    labels = x.labels.clone()
    labels[:, ::8] = -1
    measure(
        sides,
        _prepare_loss(loss.mdssd_focal, sides.device, x.logits, labels),
        op="sigmoid_focal_loss forward and backward",
        row=f"{images} x {x.logits.shape[1]:,} x {classes}",
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
        # Forward reads the logits; backward reads them and writes their gradient.
        moved=3 * x.logits.nbytes + 2 * labels.nbytes,
        flops=90.0 * x.logits.numel(),
    )


@pytest.mark.parametrize("sides", _losses(loss.mdssd_giou, loss.BOX_PEERS))
def test_box_loss(sides: Sides, measure: Callable[..., None]) -> None:
    """Run GIoU forward and backward."""
    x = generators.loss_input("mdssd300", 32, 21)
    arguments = x.loc, x.loc_targets, x.labels, generators.priors("mdssd300")
    measure(
        sides,
        _prepare_loss(loss.mdssd_giou, sides.device, *arguments),
        op="box_loss forward and backward",
        row=f"32 x {x.loc.shape[1]:,}",
        dtype=torch.float32,
        shape=str(list(x.loc.shape)),
        # Reads the labels twice and writes the gradient.
        moved=x.loc.nbytes + 2 * x.labels.nbytes,
        flops=0.0,
    )


# --- half precision on a GPU: one image, and a batch of shifted copies of it ---------------------


def _batch(x: torch.Tensor, images: int) -> torch.Tensor:
    """Return [images, ...] float16, shifted copies of x [1, ...]."""
    return torch.cat([x.half().roll(97 * k, 1) for k in range(images)])


@pytest.mark.parametrize("sides", by_device(on_cuda(detection.mdssd, {})))
@pytest.mark.parametrize("images", [1, 32])
@pytest.mark.parametrize("model, classes, candidates", _DETECTION[1:])
def test_detection_output_in_half_precision(
    model: str,
    classes: int,
    candidates: int | None,
    images: int,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    x = generators.network_output(model, classes, candidates)
    images = generators.at_most(images, 2)
    x = generators.NetworkOutput(_batch(x.loc, images), _batch(x.logits, images), x.priors)
    there = generators.to(sides.device, x)

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        call: Callable[[], Any] = make(there)
        if candidates:  # untrained scores are too close in half precision to rank in this order
            with ops.backend("reference"):
                one = generators.NetworkOutput(x.loc[:1], x.logits[:1], x.priors)
                want = detection.mdssd(one)()
            kept = int((want.scores > 0).sum())
            found, want = (detection.Found(*(p[:kept].cpu() for p in f)) for f in (call(), want))
            assert not (lines := detection.differences(found, want)), "\n".join(lines[:10])
        return call

    kind = "trained" if candidates else "untrained"
    measure(
        sides,
        prepare,
        op="detection_output",
        row=f"{images} x {x.logits.shape[1]:,} x {classes}, {kind}, float16",
        dtype=torch.float16,
        shape=str(list(x.logits.shape)),
        moved=x.logits.nbytes,
        flops=3.0 * x.logits.numel(),
        capture=lambda peer: True,
    )


@pytest.mark.parametrize("sides", by_device(on_cuda(fusion.mdssd, {})))
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_fusion_in_half_precision(
    channels_last: bool, sides: Sides, measure: Callable[..., None]
) -> None:
    x = generators.maps((1, 256, 75, 75), channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    a, b = (_batch(part, 32).contiguous(memory_format=layout) for part in (x.a, x.b))
    x = generators.Maps(a, b, x.scale_a.half(), x.scale_b.half())
    there = generators.to(sides.device, x)
    with ops.backend("reference"):
        want = fusion.mdssd(generators.Maps(x.a[:1], x.b[:1], x.scale_a, x.scale_b))()

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        call: Callable[[], Any] = make(there)
        torch.testing.assert_close(call()[:1].cpu(), want, rtol=2e-3, atol=1e-3)
        return call

    measure(
        sides,
        prepare,
        op="l2norm_add_relu",
        row=f"{' x '.join(map(str, x.a.shape))}, {'channels-last' if channels_last else 'NCHW'}, "
        "float16",
        dtype=torch.float16,
        shape=str(list(x.a.shape)),
        moved=3 * x.a.nbytes,
        capture=lambda peer: True,
    )


# --- sweeps ------------------------------------------------------------------------------------


def _some(peers: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: peers[name] for name in names}


@pytest.mark.parametrize(
    "sides",
    contenders(detection.mdssd, _some(detection.PEERS, "onnxruntime", "openvino DetectionOutput")),
)
@pytest.mark.parametrize(
    "axis, priors, classes",
    [("priors", n, 21) for n in (1000, 3000, 10000, 30000, 90100)]
    + [("classes", 30000, c) for c in (2, 6, 21, 81, 201)],
)
def test_detection_output_grows(
    axis: str,
    priors: int,
    classes: int,
    sides: Sides,
    measure: Callable[..., None],
) -> None:
    x = generators.network_output("mdssd512", classes, priors // 20, priors)
    there = generators.to(sides.device, x)
    want = detection.mdssd(x)()
    count = int((want.scores > 0).sum())
    want = detection.Found(*(part[:count] for part in want))

    def prepare(peer: str, make: Callable[..., Any]) -> Callable[[], Any]:
        call: Callable[[], Any] = make(there)
        got = detection.Found(*(part[:count].cpu() for part in call()))
        assert not (lines := detection.differences(got, want)), "\n".join(lines[:10])
        return call

    measure(
        sides,
        prepare,
        op="detection_output",
        row=f"{priors:,} x {classes}, by {axis}",
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
        moved=x.logits.nbytes,
        capture=ours,
        axis=axis,
        x=priors if axis == "priors" else classes,
    )


@pytest.mark.parametrize(
    "sides",
    contenders(
        suppression.mdssd,
        _some(suppression.PEERS, "onnxruntime", "openvino NonMaxSuppression", "lsnms"),
    ),
)
@pytest.mark.parametrize("count", [100, 300, 1000, 3000, 10000, 20000])
def test_nms_grows(count: int, sides: Sides, measure: Callable[..., None]) -> None:
    x = generators.scored_boxes(count)
    measure(
        sides,
        partial(_check_nms, generators.to(sides.device, x), _kept(count)),
        op="nms",
        row=f"{count:,} boxes, by boxes",
        dtype=torch.float32,
        shape=str(list(x.boxes.shape)),
        axis="boxes",
        x=count,
    )


@pytest.mark.parametrize(
    "sides",
    contenders(matching.mdssd, _some(matching.PEERS, "torch, usual", "torch, coordinates split")),
)
@pytest.mark.parametrize("boxes", [1, 3, 10, 30, 100, 300])
def test_matching_grows(boxes: int, sides: Sides, measure: Callable[..., None]) -> None:
    """Match one image."""
    inputs = generators.truth(1, boxes), generators.priors("mdssd300")
    x = generators.to(sides.device, inputs)

    def prepare(peer: str, make: Callable[..., Any]) -> Any:
        _check_matching(sides.device, "mdssd300", boxes, False, peer, make)
        return make(*x)

    measure(
        sides,
        prepare,
        op="match_priors",
        row=f"1 image, {len(x[1]):,} x {boxes}, by boxes",
        dtype=torch.float32,
        shape=f"[1, {len(x[1])}] x {boxes}",
        capture=ours,
        axis="boxes",
        x=boxes,
    )
