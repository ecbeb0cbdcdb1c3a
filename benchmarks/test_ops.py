"""Benchmark the operators on every backend, and other implementations on the same inputs.

Run with `make bench` or `pytest benchmarks/ --benchmark-only`. Each row first checks its result
against the reference. The rows of an input run directly after one another, so that their ratios are
fair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch

from benchmarks import generators
from benchmarks.machine import pretended
from benchmarks.peers import detection, fusion, loss, matching, merging, retinanet, suppression
from benchmarks.rows import contenders, forced, params
from mdssd import ops
from mdssd.testing import Case

_READS_BACK = ("nms", "batched_nms", "merge_boxes")  # the host waits for the number of boxes


@pytest.mark.cases(size=lambda size: size.benchmark, reference=True, emulated=())
def test_latency(
    case: Case,
    size: str,
    dtype: torch.dtype,
    backend: str,
    device: str,
    measure: Callable[..., None],
) -> None:
    """Run the benchmark sizes of CASES on every backend that can run here."""
    if pretended():
        size = next(name for name in ("odd", "ragged", *case.sizes) if name in case.sizes)
    args, kwargs = case.inputs(size, dtype, device)
    with ops.backend("reference"):
        want = case(*args, **kwargs)
    with ops.backend(backend):
        got = case(*args, **kwargs)
        for position, (g, w) in enumerate(zip(got, want, strict=True)):
            rtol, atol = case.allowed(position, dtype, kwargs)
            torch.testing.assert_close(g, w, rtol=rtol, atol=atol, equal_nan=True)
        measure(
            lambda: case(*args, **kwargs),
            op=case.op,
            row=f"test size {size}",
            peer=f"mdssd {backend}",
            device=device,
            dtype=dtype,
            shape=str(case.sizes[size].arguments),
            rounds=3 if backend == "reference" else None,
            capture=backend != "reference" and case.op not in _READS_BACK,
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


@pytest.mark.parametrize(
    "peer, make, device", contenders(detection.mdssd, detection.PEERS, detection.ON_GPU)
)
@pytest.mark.parametrize("model, classes, candidates", _DETECTION)
def test_detection_output(
    model: str,
    classes: int,
    candidates: int | None,
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    call = _check_detection(peer, make, device, model, classes, candidates)
    logits = generators.network_output(model, classes, candidates).logits
    measure(
        call,
        op="detection_output",
        row=f"{logits.shape[1]:,} x {classes}, {'trained' if candidates else 'untrained'}",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=str(list(logits.shape)),
        moved=logits.nbytes,
        flops=3.0 * logits.numel(),  # a difference, an exponential, a sum
        capture=peer.startswith("mdssd"),
    )


# width, height, classes, kind
_RETINANET = [
    (320, 320, 91, "trained"),
    (1333, 800, 91, "trained"),
    (1333, 800, 91, "early"),
]


@pytest.mark.parametrize(
    "peer, make, device", contenders(retinanet.mdssd, retinanet.PEERS, retinanet.ON_GPU)
)
@pytest.mark.parametrize("width, height, classes, kind", _RETINANET)
def test_retinanet(
    width: int,
    height: int,
    classes: int,
    kind: str,
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    x = generators.retina_output(width, height, classes, kind)
    with ops.backend("reference"):
        want = retinanet.mdssd(x)()
    call = make(generators.to(device, x))
    found = detection.Found(*(part[: len(want.scores)].cpu() for part in call()))
    want = detection.Found(*(part[: len(found.scores)] for part in want))
    lines = detection.differences(found, want, 1e-3)
    assert not lines, "\n".join(lines[:10])
    measure(
        call,
        op="RetinaNet post-processing",
        row=f"{x.logits.shape[1]:,} x {classes}, {kind}",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
        moved=x.logits.nbytes,
        flops=1.0 * x.logits.numel(),  # a comparison
        capture=peer.startswith("mdssd"),
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


@pytest.mark.parametrize(
    "peer, make, device", contenders(suppression.mdssd, suppression.PEERS, suppression.ON_GPU)
)
@pytest.mark.parametrize("count, kind, classes", _NMS)
def test_nms(
    count: int,
    kind: str,
    classes: int | None,
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    x = generators.scored_boxes(count, kind, classes)
    call = make(generators.to(device, x))
    assert torch.equal(call().cpu().sort().values, _kept(count, kind, classes).sort().values)
    row = f"{classes} classes x {count // classes}" if classes else f"{count:,} boxes, {kind}"
    measure(
        call,
        op="batched_nms" if classes else "nms",
        row=row,
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=str(list(x.boxes.shape)),
        moved=x.boxes.nbytes + x.scores.nbytes,
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
    """Return parameters (count, kind, classes, method, metric, peer, make, device)."""
    rows = []
    for setting in _MERGING:
        peers = merging.PEERS[setting[3]]
        rows += [(*setting, "mdssd cpp", merging.mdssd, "cpu")]
        rows += [(*setting, name, make, "cpu") for name, make in peers.items()]
        for name in ("cuda", "triton"):
            rows += [(*setting, f"mdssd {name}", forced(merging.mdssd, name), "cuda")]
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


@pytest.mark.parametrize(
    "count, kind, classes, method, metric, peer, make, device", _merging_rows()
)
def test_merge_boxes(
    count: int,
    kind: str,
    classes: int,
    method: str,
    metric: str,
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    # The result is compared with the reference on 2,000 boxes, and with ours on all of them.
    for boxes, backend in ((2000, "reference"), (count, "cpp")):
        x = generators.tiled_boxes(boxes, kind, classes)
        call = make(generators.to(device, x), method, metric)
        want, got = _merged(backend, boxes, kind, classes, method, metric), _in_order(call())
        if peer == "sahi, groups only":
            assert torch.equal(got[:, 4:], want[:, 4:])
        else:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    measure(
        call,
        op="merge_boxes",
        row=f"{method}, {metric}, {count:,} boxes, {kind}, of {classes} classes",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=str(list(x.boxes.shape)),
        moved=2 * (x.boxes.nbytes + x.scores.nbytes),
    )


# --- match_priors, encode_targets --------------------------------------------------------------

_MATCHING = [("mdssd300", m) for m in (1, 10, 50, 200)] + [("mdssd512", m) for m in (10, 50, 200)]
_IMAGES = 32


@lru_cache(maxsize=4)
def _expected_matches(model: str, m: int) -> tuple[ops.Match, ops.Targets]:
    """Return the reference's results for two images."""
    x, priors = generators.truth(2, m), generators.priors(model)
    with ops.backend("reference"):
        return matching.mdssd(x, priors)(), matching.mdssd_targets(x, priors)()


def _check_matching(
    peer: str, make: Callable[..., Any], device: str, model: str, m: int, targets: bool
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


@pytest.mark.parametrize(
    "peer, make, device", contenders(matching.mdssd, matching.PEERS, matching.ON_GPU)
)
@pytest.mark.parametrize("model, boxes", _MATCHING)
def test_matching(
    model: str,
    boxes: int,
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    _check_matching(peer, make, device, model, boxes, targets=False)
    _measure_matching("match_priors", 12, model, boxes, peer, make, device, measure)


@pytest.mark.parametrize(
    "peer, make, device",
    contenders(matching.mdssd_targets, matching.TARGET_PEERS, matching.TARGETS_ON_GPU),
)
@pytest.mark.parametrize("model, boxes", _MATCHING)
def test_targets(
    model: str,
    boxes: int,
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    _check_matching(peer, make, device, model, boxes, targets=True)
    _measure_matching("encode_targets", 24, model, boxes, peer, make, device, measure)


def _measure_rule(
    rule: str,
    make_ours: Callable[..., Any],
    boxes: int,
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    """Measure another rule than SSD's, after comparing two images with the reference."""
    x = generators.to(device, (generators.truth(2, boxes), generators.priors("mdssd300")))
    with ops.backend("reference"):
        want = make_ours(*x)()
    for got, expected in zip(make(*x)(), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    _measure_matching("match_priors", 12, "mdssd300", boxes, peer, make, device, measure, rule)


@pytest.mark.parametrize(
    "peer, make, device", contenders(matching.mdssd_band, matching.BAND_PEERS, matching.BAND_PEERS)
)
@pytest.mark.parametrize("boxes", [10, 50])
def test_matching_with_a_band(
    boxes: int, peer: str, make: Callable[..., Any], device: str, measure: Callable[..., None]
) -> None:
    rule = ", ignored from 0.4"
    _measure_rule(rule, matching.mdssd_band, boxes, peer, make, device, measure)


@pytest.mark.parametrize(
    "peer, make, device",
    contenders(matching.mdssd_retinanet, matching.RETINANET_PEERS, matching.RETINANET_PEERS),
)
@pytest.mark.parametrize("boxes", [10, 50])
def test_matching_of_retinanet(
    boxes: int, peer: str, make: Callable[..., Any], device: str, measure: Callable[..., None]
) -> None:
    rule = ", ignored from 0.4, low-quality matches"
    _measure_rule(rule, matching.mdssd_retinanet, boxes, peer, make, device, measure)


def _measure_matching(
    op: str,
    bytes_a_prior: int,
    model: str,
    boxes: int,
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
    rule: str = "",
) -> None:
    x, priors = generators.to(device, (generators.truth(_IMAGES, boxes), generators.priors(model)))
    measure(
        make(x, priors),
        op=op,
        row=f"{_IMAGES} images, {len(priors):,} x {boxes}{rule}",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=f"[{_IMAGES}, {len(priors)}] x {boxes}",
        moved=_IMAGES * len(priors) * bytes_a_prior,
        capture=peer.startswith("mdssd"),
    )


# --- l2norm_add_relu ---------------------------------------------------------------------------

_MAPS = [
    (1, 256, 75, 75),
    (1, 512, 38, 38),
    (1, 1024, 19, 19),
    (8, 256, 75, 75),
    (8, 512, 38, 38),
]


@pytest.mark.parametrize(
    "peer, make, device", contenders(fusion.mdssd, fusion.PEERS, fusion.ON_GPU)
)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", _MAPS, ids=lambda shape: "x".join(map(str, shape)))
def test_fusion(
    shape: tuple[int, int, int, int],
    channels_last: bool,
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    if channels_last and peer == "openvino":
        pytest.skip("openvino's inputs are NCHW")
    x = generators.maps(shape, channels_last)
    call = make(generators.to(device, x))
    if peer not in fusion.OTHER_RESULT:
        with ops.backend("reference"):
            want = fusion.mdssd(x)()
        torch.testing.assert_close(call().cpu(), want, rtol=2e-5, atol=2e-6)
    layout = "channels-last" if channels_last else "NCHW"
    measure(
        call,
        op="l2norm_add_relu",
        row=f"{' x '.join(map(str, shape))}, {layout}",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=str(list(shape)),
        moved=3 * x.a.nbytes,
        # Per map a square, a sum and two products; then a sum and a maximum.
        flops=9.0 * x.a.numel(),
        capture=True,
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
    "peer, make, device",
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
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    """Run forward and backward, with the result as the incoming gradient."""
    x = generators.to(device, generators.maps(shape, channels_last))
    call = make(x)
    for got, want in zip(call(), _expected_gradients(shape, channels_last), strict=True):
        # A map's gradient is a difference of two terms, whose size bounds the rounding error.
        torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-5 * float(want.abs().max()))
    layout = "channels-last" if channels_last else "NCHW"
    measure(
        call,
        op="l2norm_add_relu forward and backward",
        row=f"{' x '.join(map(str, shape))}, {layout}",
        peer=peer,
        device=device,
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
    "peer, make, device",
    contenders(
        partial(_loss_call, loss.mdssd),
        {name: partial(_loss_call, peer) for name, peer in loss.PEERS.items()},
        loss.ON_GPU,
    ),
)
def test_loss(
    peer: str, make: Callable[..., Any], device: str, measure: Callable[..., None]
) -> None:
    """Run forward and backward."""
    model, images, classes = "mdssd300", 32, 21
    x = generators.loss_input(model, images, classes)
    call = make(generators.to(device, x))
    for got, want in zip(call(), _expected_losses(model, images, classes), strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-7)
    measure(
        call,
        op="multibox_loss forward and backward",
        row=f"{images} x {x.logits.shape[1]:,} x {classes}",
        peer=peer,
        device=device,
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


def _check_loss(call: Callable[[], Any], mdssd: Callable[..., Any], *arguments: Any) -> None:
    with ops.backend("reference"):
        expected = _scalar_call(mdssd, *arguments)()
    for got, want in zip(call(), expected, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "peer, make, device", contenders(loss.mdssd_focal, loss.FOCAL_PEERS, loss.FOCAL_ON_GPU)
)
def test_focal_loss(
    peer: str, make: Callable[..., Any], device: str, measure: Callable[..., None]
) -> None:
    """Run forward and backward, with an eighth of the priors ignored."""
    images, classes = 4, 20
    x = generators.loss_input("mdssd300", images, classes)
    labels = x.labels.clone()
    labels[:, ::8] = -1
    call = _scalar_call(make, *generators.to(device, (x.logits, labels)))
    _check_loss(call, loss.mdssd_focal, x.logits, labels)
    measure(
        call,
        op="sigmoid_focal_loss forward and backward",
        row=f"{images} x {x.logits.shape[1]:,} x {classes}",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
        # Forward reads the logits; backward reads them and writes their gradient.
        moved=3 * x.logits.nbytes + 2 * labels.nbytes,
        flops=90.0 * x.logits.numel(),
    )


@pytest.mark.parametrize(
    "peer, make, device", contenders(loss.mdssd_giou, loss.BOX_PEERS, loss.BOX_ON_GPU)
)
def test_box_loss(
    peer: str, make: Callable[..., Any], device: str, measure: Callable[..., None]
) -> None:
    """Run GIoU forward and backward."""
    x = generators.loss_input("mdssd300", 32, 21)
    arguments = x.loc, x.loc_targets, x.labels, generators.priors("mdssd300")
    call = _scalar_call(make, *generators.to(device, arguments))
    _check_loss(call, loss.mdssd_giou, *arguments)
    measure(
        call,
        op="box_loss forward and backward",
        row=f"32 x {x.loc.shape[1]:,}",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=str(list(x.loc.shape)),
        # Reads the labels twice and writes the gradient.
        moved=x.loc.nbytes + 2 * x.labels.nbytes,
        flops=0.0,
    )


# --- half precision on a GPU: one image, and a batch of shifted copies of it ---------------------

_ON_GPU = params([("cuda", "cuda"), ("triton", "cuda")])


def _batch(x: torch.Tensor, images: int) -> torch.Tensor:
    """Return [images, ...] float16, shifted copies of x [1, ...]."""
    return torch.cat([x.half().roll(97 * k, 1) for k in range(images)])


@pytest.mark.parametrize("backend, device", _ON_GPU)
@pytest.mark.parametrize("images", [1, 32])
@pytest.mark.parametrize("model, classes, candidates", _DETECTION[1:])
def test_detection_output_in_half_precision(
    model: str,
    classes: int,
    candidates: int | None,
    images: int,
    backend: str,
    device: str,
    measure: Callable[..., None],
) -> None:
    x = generators.network_output(model, classes, candidates)
    images = generators.at_most(images, 2)
    x = generators.NetworkOutput(_batch(x.loc, images), _batch(x.logits, images), x.priors)
    call = forced(detection.mdssd, backend)(generators.to(device, x))
    if candidates:  # untrained scores are too close in half precision to rank in the same order
        with ops.backend("reference"):
            one = generators.NetworkOutput(x.loc[:1], x.logits[:1], x.priors)
            want = detection.mdssd(one)()
        kept = int((want.scores > 0).sum())
        found, want = (detection.Found(*(p[:kept].cpu() for p in f)) for f in (call(), want))
        assert not (lines := detection.differences(found, want)), "\n".join(lines[:10])
    kind = "trained" if candidates else "untrained"
    measure(
        call,
        op="detection_output",
        row=f"{images} x {x.logits.shape[1]:,} x {classes}, {kind}, float16",
        peer=f"mdssd {backend}",
        device=device,
        dtype=torch.float16,
        shape=str(list(x.logits.shape)),
        moved=x.logits.nbytes,
        flops=3.0 * x.logits.numel(),
        capture=True,
    )


@pytest.mark.parametrize("backend, device", _ON_GPU)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_fusion_in_half_precision(
    channels_last: bool, backend: str, device: str, measure: Callable[..., None]
) -> None:
    x = generators.maps((1, 256, 75, 75), channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    a, b = (_batch(part, 32).contiguous(memory_format=layout) for part in (x.a, x.b))
    x = generators.Maps(a, b, x.scale_a.half(), x.scale_b.half())
    call = forced(fusion.mdssd, backend)(generators.to(device, x))
    with ops.backend("reference"):
        want = fusion.mdssd(generators.Maps(x.a[:1], x.b[:1], x.scale_a, x.scale_b))()
    torch.testing.assert_close(call()[:1].cpu(), want, rtol=2e-3, atol=1e-3)
    measure(
        call,
        op="l2norm_add_relu",
        row=f"{' x '.join(map(str, x.a.shape))}, {'channels-last' if channels_last else 'NCHW'}, "
        "float16",
        peer=f"mdssd {backend}",
        device=device,
        dtype=torch.float16,
        shape=str(list(x.a.shape)),
        moved=3 * x.a.nbytes,
        capture=True,
    )


# --- sweeps ------------------------------------------------------------------------------------


def _some(peers: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: peers[name] for name in names}


@pytest.mark.parametrize(
    "peer, make, device",
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
    peer: str,
    make: Callable[..., Any],
    device: str,
    measure: Callable[..., None],
) -> None:
    x = generators.network_output("mdssd512", classes, priors // 20, priors)
    call = make(generators.to(device, x))
    want = detection.mdssd(x)()
    count = int((want.scores > 0).sum())
    want = detection.Found(*(part[:count] for part in want))
    got = detection.Found(*(part[:count].cpu() for part in call()))
    assert not (lines := detection.differences(got, want)), "\n".join(lines[:10])
    measure(
        call,
        op="detection_output",
        row=f"{priors:,} x {classes}, by {axis}",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=str(list(x.logits.shape)),
        moved=x.logits.nbytes,
        capture=peer.startswith("mdssd"),
        axis=axis,
        x=priors if axis == "priors" else classes,
    )


@pytest.mark.parametrize(
    "peer, make, device",
    contenders(
        suppression.mdssd,
        _some(suppression.PEERS, "onnxruntime", "openvino NonMaxSuppression", "lsnms"),
    ),
)
@pytest.mark.parametrize("count", [100, 300, 1000, 3000, 10000, 20000])
def test_nms_grows(
    count: int, peer: str, make: Callable[..., Any], device: str, measure: Callable[..., None]
) -> None:
    x = generators.scored_boxes(count)
    call = make(generators.to(device, x))
    assert torch.equal(call().cpu().sort().values, _kept(count).sort().values)
    measure(
        call,
        op="nms",
        row=f"{count:,} boxes, by boxes",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=str(list(x.boxes.shape)),
        axis="boxes",
        x=count,
    )


@pytest.mark.parametrize(
    "peer, make, device",
    contenders(matching.mdssd, _some(matching.PEERS, "torch, usual", "torch, coordinates split")),
)
@pytest.mark.parametrize("boxes", [1, 3, 10, 30, 100, 300])
def test_matching_grows(
    boxes: int, peer: str, make: Callable[..., Any], device: str, measure: Callable[..., None]
) -> None:
    """Match one image."""
    _check_matching(peer, make, device, "mdssd300", boxes, targets=False)
    x = generators.to(device, (generators.truth(1, boxes), generators.priors("mdssd300")))
    measure(
        make(*x),
        op="match_priors",
        row=f"1 image, {len(x[1]):,} x {boxes}, by boxes",
        peer=peer,
        device=device,
        dtype=torch.float32,
        shape=f"[1, {len(x[1])}] x {boxes}",
        capture=peer.startswith("mdssd"),
        axis="boxes",
        x=boxes,
    )
