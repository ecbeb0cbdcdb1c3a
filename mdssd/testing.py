"""CASES: the inputs on which every operator is tested and measured, one row per operator.

conftest.py expands the rows over backends, devices and dtypes, for the tests and the benchmarks.
The inputs come from a seeded generator on the CPU, so they are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mdssd import ops

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Both sides compute in float32 (or float64) and round once. So half types may differ by an ulp, and
# float32 by the few ulps by which exp, log and the order of sums differ.
TOLERANCE = {
    torch.float32: (1e-5, 1e-6),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (8e-3, 1e-5),
    torch.float64: (1e-10, 1e-12),
}


@dataclass(frozen=True)
class Size:
    """One input of a case.

    Attributes:
        arguments: keyword arguments of the case's `make`.
        dtypes: dtypes to test; large inputs have only one.
        gradcheck: whether it is small and smooth enough for numerical differentiation.
        benchmark: whether it is also a row of the benchmarks.
        nightly: whether Triton's interpreter takes minutes for it, as for those of the benchmarks.
    """

    arguments: dict[str, Any]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    gradcheck: bool = False
    benchmark: bool = False
    nightly: bool = False


@dataclass(frozen=True)
class Case:
    """One operator.

    Attributes:
        op: name in `mdssd.ops`.
        make: (generator, dtype, **arguments) -> positional and keyword arguments of the operator.
        sizes: the inputs by name.
        exact: positions of the results that must agree bit for bit.
        rounded: those of them that need not with `metric="nwd"`, which ends in an exponential.
        gradients: positions of the differentiable arguments.
        tolerance: (rtol, atol) of the other results and the gradients, by dtype of the input.
    """

    op: str
    make: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
    sizes: dict[str, Size]
    exact: tuple[int, ...] = ()
    rounded: tuple[int, ...] = ()
    gradients: tuple[int, ...] = ()
    tolerance: dict[torch.dtype, tuple[float, float]] = field(default_factory=lambda: TOLERANCE)

    def inputs(
        self, size: str, dtype: torch.dtype, device: str = "cpu", seed: int = 0
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make the arguments of one call, on the device."""
        generator = torch.Generator().manual_seed(seed)
        args, kwargs = self.make(generator, dtype, **self.sizes[size].arguments)
        there = {name: to_device(value, device) for name, value in kwargs.items()}
        return tuple(to_device(arg, device) for arg in args), there

    def allowed(
        self, position: int, dtype: torch.dtype, kwargs: dict[str, Any]
    ) -> tuple[float, float]:
        """Return (rtol, atol) of a result of a call with these keywords."""
        rounded = position in self.rounded and kwargs.get("metric") == "nwd"
        return (0, 0) if position in self.exact and not rounded else self.tolerance[dtype]

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Call the operator; return its results as a tuple."""
        result = getattr(ops, self.op)(*args, **kwargs)
        return result if isinstance(result, tuple) else (result,)


def to_device(value: Any, device: str) -> Any:
    """Move a tensor, or a list of tensors, to the device; return other values as they are."""
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value


def random_boxes(generator: Generator, num_boxes: int, kind: str = "random") -> Tensor:
    """Make corners [num_boxes, 4] in 0-1, float64.

    `kind` is "random", "ties", "degenerate", "nan" or "inf".
    """
    centre = torch.rand(num_boxes, 2, generator=generator, dtype=torch.float64)
    half = 0.02 + 0.2 * torch.rand(num_boxes, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([centre - half, centre + half], 1)
    if kind == "ties":  # few distinct boxes, on a grid that every dtype holds exactly
        boxes = (boxes * 8).round() / 8
        boxes = boxes[torch.randint(max(1, num_boxes // 4), (num_boxes,), generator=generator)]
    elif kind == "degenerate":
        boxes[0::4, 2] = boxes[0::4, 0]  # zero width
        boxes[1::4] = boxes[1::4, [2, 3, 0, 1]]  # both sides negative
        boxes[2::4, 3] = boxes[2::4, 1] - 0.1  # one side negative
    elif kind == "nan":
        boxes[::3, 1] = math.nan
    elif kind == "inf":
        boxes[::3, 2] = math.inf
        boxes[1::3, 0] = -math.inf
    return boxes


def random_priors(generator: Generator, num_priors: int, kind: str = "random") -> Tensor:
    """Make priors [num_priors, 4] in 0-1, centre and size, float32, all sizes above 0.

    The kind "ties" repeats a quarter of them; "rows" makes them small and puts them in rows, like
    the priors of a detector.
    """
    centre = torch.rand(num_priors, 2, generator=generator)
    size = 0.05 + 0.4 * torch.rand(num_priors, 2, generator=generator)
    priors = torch.cat([centre, size], 1)
    if kind == "ties":
        priors = (priors * 8).round().clamp(min=1) / 8
        priors = priors[torch.randint(max(1, num_priors // 4), (num_priors,), generator=generator)]
    elif kind == "rows":
        side = math.ceil(math.sqrt(num_priors))
        cell = torch.arange(num_priors)
        priors[:, 0], priors[:, 1] = (cell % side + 0.5) / side, (cell // side + 0.5) / side
        priors[:, 2:] /= 4
    return priors


def _box_iou(generator: Generator, dtype: torch.dtype, n: int, m: int, kind: str = "random") -> Any:
    a, b = random_boxes(generator, n, kind), random_boxes(generator, m, kind)
    return (a.to(dtype), b.to(dtype)), {}


def _encode(generator: Generator, dtype: torch.dtype, n: int, batch: tuple[int, ...] = ()) -> Any:
    boxes = random_boxes(generator, math.prod(batch) * n).reshape(*batch, n, 4)
    return (boxes.to(dtype), random_priors(generator, n).to(dtype)), {}


def _decode(generator: Generator, dtype: torch.dtype, n: int, batch: tuple[int, ...] = ()) -> Any:
    loc = torch.randn(*batch, n, 4, generator=generator, dtype=torch.float64)
    return (loc.to(dtype), random_priors(generator, n)), {}


def _match(
    generator: Generator,
    dtype: torch.dtype,
    priors: int,
    boxes: tuple[int, ...],
    kind: str = "random",
    iou_threshold: float = 0.5,
    ignored: tuple[int, ...] | None = None,
    **options: Any,
) -> Any:
    gt = [random_boxes(generator, num_boxes, kind).to(dtype) for num_boxes in boxes]
    priors_given = random_priors(generator, priors, kind)
    if options.get("priors_form") == "xyxy":
        half = priors_given[:, 2:] / 2
        priors_given = torch.cat([priors_given[:, :2] - half, priors_given[:, :2] + half], 1)
    if ignored is not None:
        options["ignored_xyxy"] = [random_boxes(generator, n, kind).to(dtype) for n in ignored]
    return (gt, priors_given), {"iou_threshold": iou_threshold, **options}


def _targets(
    generator: Generator,
    dtype: torch.dtype,
    priors: int,
    boxes: tuple[int, ...],
    **options: Any,
) -> Any:
    (gt, priors_cxcywh), kwargs = _match(generator, dtype, priors, boxes, **options)
    labels = [torch.randint(1, 21, (num_boxes,), generator=generator) for num_boxes in boxes]
    return (gt, labels, priors_cxcywh), kwargs


def _nms(
    generator: Generator, dtype: torch.dtype, n: int, kind: str = "random", **options: Any
) -> Any:
    boxes = random_boxes(generator, n, kind)
    scores = torch.rand(n, generator=generator, dtype=torch.float64)
    if kind == "ties":
        scores = (scores * 8).round() / 8
    elif kind == "nan":
        scores[::5] = math.nan
    return (boxes.to(dtype), scores.to(dtype), 0.45), options


def _batched_nms(
    generator: Generator,
    dtype: torch.dtype,
    n: int,
    classes: int,
    kind: str = "random",
    **options: Any,
) -> Any:
    (boxes, scores, threshold), _ = _nms(generator, dtype, n, kind)
    idxs = torch.randint(-1, classes, (n,), generator=generator) * 10_000_000_000
    return (boxes, scores, idxs, threshold), options


def _nms_padded(
    generator: Generator,
    dtype: torch.dtype,
    n: int,
    kind: str = "random",
    classes: int | None = None,
    **options: Any,
) -> Any:
    if classes is None:
        return _nms(generator, dtype, n, kind, **options)
    (boxes, scores, idxs, threshold), _ = _batched_nms(generator, dtype, n, classes, kind)
    return (boxes, scores, threshold), {"idxs": idxs, **options}


def _soft_nms(
    generator: Generator,
    dtype: torch.dtype,
    n: int,
    kind: str = "random",
    classes: int | None = None,
    **options: Any,
) -> Any:
    (boxes, scores, _), _ = _nms(generator, dtype, n, kind)
    if classes is not None:
        options["labels"] = torch.randint(-1, classes, (n,), generator=generator) * 10_000_000_000
    return (boxes, scores), options


def _merge_boxes(
    generator: Generator,
    dtype: torch.dtype,
    n: int,
    kind: str = "random",
    classes: int = 3,
    images: int | None = None,
    method: str = "greedy_nmm",
    **options: Any,
) -> Any:
    (boxes, scores, threshold), _ = _nms(generator, dtype, n, kind)
    labels = torch.randint(classes, (n,), generator=generator)
    options = {"method": method, "threshold": threshold} | options
    if images is not None:
        options["images"] = torch.randint(-1, images, (n,), generator=generator) * 10_000_000_000
    return (boxes, scores, labels), options


# All backends rank scores alike that differ by this much, relative to the larger. Each computes a
# softmax in float32 with an error of a few units in the last place, of 1.2e-7 of a score at most.
APART = 1.5e-6
_ROUNDS = 40  # of moving scores apart, which some inputs do not allow: softmax of a single class


def _peaked(generator: Generator, images: int, priors: int, classes: int) -> Tensor:
    """Make logits whose scores lie near 1 / classes; any two are equal, or APART or more apart.

    Equal ones are those of equal rows: about four priors have the same row.
    """
    rows = -(-priors // 4)
    logits = torch.zeros(images, priors, classes, dtype=torch.float64)
    for image in logits:
        rank = torch.randperm(rows * (classes - 1), generator=generator).reshape(rows, classes - 1)
        foreground = 1 + 1.1 * APART * (rank - rank.numel() / 2).double()
        background = classes - foreground.sum(1, keepdim=True)
        row = torch.arange(priors) % max(1, rows)
        image.copy_(torch.cat([background, foreground], 1).log()[row])
    return logits


def _spread(logits: Tensor, top_k: int, sigmoid: bool, background: bool) -> None:
    """Change logits a little until the scores that `top_k` lets through are APART or more apart.

    They shrink, as the scores of large ones would all come close to 1.
    """
    for _ in range(_ROUNDS if logits.numel() else 0):
        scores = logits.sigmoid() if sigmoid else logits.softmax(-1)[..., int(background) :]
        best, prior = scores.topk(min(top_k + 1, logits.shape[1]), 1)
        best, order = best.flatten(1).sort(1, descending=True)
        near = (best[:, :-1] > 0.005) & (best[:, :-1] - best[:, 1:] < APART * best[:, :-1])
        image, place = near.nonzero().T
        if not len(image):
            break
        logits[image, prior.flatten(1)[image, order[image, place]]] *= 0.99


def detection_inputs(
    generator: Generator,
    dtype: torch.dtype,
    images: int,
    priors: int,
    classes: int,
    kind: str = "trained",
    **options: Any,
) -> Any:
    """Make the outputs of a network: "trained" (few priors pass), "untrained" (all do) or special.

    "focal" is "trained" for a sigmoid, as are the others then: few logits are above 0.
    "misleading" is "untrained", but the priors that the CUDA kernels sample score low in class 1.
    Scores that can become detections are equal or APART, as tests compare ranks on all backends.
    "alike" is "untrained" with equal scores, and "peaked" with scores so near one another that the
    first digits of all are the same, see `_peaked`. In "empty" many boxes have no area. Without
    `softmax` the logits are scores.
    """
    loc = torch.randn(images, priors, 4, generator=generator, dtype=torch.float64)
    logits = torch.randn(images, priors, classes, generator=generator, dtype=torch.float64)
    sigmoid = options.get("activation") == "sigmoid"
    background = options.get("background", True)
    if kind == "alike":
        logits *= 0
    elif kind == "peaked":
        logits = _peaked(generator, images, priors, classes)
    elif kind == "misleading":
        sample = torch.arange(-(-priors // 24) + 1)
        first = sample * priors // (len(sample) - 1)
        place = (sample[:-1] * 2654435761 % 2**32 >> 8) % first.diff()
        logits[:, first[:-1] + place, 1] -= 3
    elif kind != "untrained" and sigmoid:
        hit = torch.rand(images, priors, classes, generator=generator) < 0.05
        logits += 6.0 * hit.double() - 4.6
    elif kind != "untrained":
        logits[..., 0] += 9.0 * background
        hit = torch.rand(images, priors, generator=generator) < 0.05
        label = torch.randint(1, classes, (images, priors, 1), generator=generator)
        logits.scatter_add_(-1, label, 9.0 * hit[..., None].double())
    if kind not in ("alike", "peaked"):
        _spread(logits, priors if sigmoid else options.get("top_k", 400), sigmoid, background)
    if kind == "ties":  # whole rows are equal, so that scores are equal to the bit
        row = torch.randint(max(1, priors // 4), (priors,), generator=generator)
        loc, logits = loc[:, row], logits[:, row]
    elif kind == "nan":
        logits[:, ::3, 1] = math.nan
        loc[:, ::4, 0] = math.nan
    elif kind == "inf":
        logits[:, ::3, 1] = math.inf
        logits[:, 1::3, 1] = -math.inf
        loc[:, ::4, 2] = math.inf
    elif kind == "empty":
        loc[:, ::3, 3] = -math.inf
    if not options.get("softmax", True):
        logits = logits.softmax(-1)
        if kind == "inf":  # numbers that are not scores
            logits[:, ::5, 2] = 1.5
            logits[:, 1::5, 2] = math.inf
    priors_cxcywh = random_priors(generator, priors)
    return (loc.to(dtype), logits.to(dtype), priors_cxcywh), options


def _l2norm(
    generator: Generator,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channels_last: bool = False,
    zeros: bool = False,
) -> Any:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if zeros:
        x[..., 0] = 0
    scale = 1 + torch.rand(shape[1], generator=generator, dtype=torch.float64)
    return (x.to(dtype).contiguous(memory_format=layout), scale.to(dtype)), {}


def _l2norm_add_relu(generator: Generator, dtype: torch.dtype, **arguments: Any) -> Any:
    (a, scale_a), _ = _l2norm(generator, dtype, **arguments)
    (b, scale_b), _ = _l2norm(generator, dtype, **arguments)
    # The gradient jumps where the sum crosses 0. No sum may be so small that its sign depends on
    # rounding, and so on the order in which a backend adds the squares.
    term_a = F.normalize(a.double()) * scale_a.double()[:, None, None]
    term_b = F.normalize(b.double()) * scale_b.double()[:, None, None]
    b[(term_a + term_b).abs() < 1e-6] *= 2
    return (a, b, scale_a, scale_b), {}


def _multibox_loss(
    generator: Generator,
    dtype: torch.dtype,
    images: int,
    priors: int,
    classes: int,
    positives: float = 0.05,
    kind: str = "random",
    ignored: float = 0.0,
    **options: Any,
) -> Any:
    loc = 2 * torch.randn(images, priors, 4, generator=generator, dtype=torch.float64)
    logits = 2 * torch.randn(images, priors, classes, generator=generator, dtype=torch.float64)
    targets = torch.randn(images, priors, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, classes, (images, priors), generator=generator)
    labels[torch.rand(images, priors, generator=generator) >= positives] = 0
    labels[1::2] = 0  # every second image without an object
    if ignored:
        labels[torch.rand(images, priors, generator=generator) < ignored] = -1
    if kind == "ties":
        logits = torch.zeros_like(logits)
    elif kind == "nan":
        logits[:, ::7, 0] = math.nan
    elif kind == "inf":
        logits[:, ::7, 0] = -math.inf
        loc[:, 1::7] = math.inf
    return (loc.to(dtype), logits.to(dtype), targets.to(dtype), labels), options


def _focal(images: int, priors: int, classes: int, **options: Any) -> dict[str, Any]:
    """Return the arguments of `detection_inputs` for a network without a background."""
    sizes = {"images": images, "priors": priors, "classes": classes, "kind": "focal"}
    return sizes | {"activation": "sigmoid", "background": False} | options


def _labels_of(
    generator: Generator, images: int, priors: int, classes: int, positives: float
) -> Tensor:
    """Make labels [B, N]: an eighth is ignored; every second image has no object."""
    labels = torch.randint(1, classes + 1, (images, priors), generator=generator)
    chance = torch.rand(images, priors, generator=generator)
    labels[chance >= positives] = 0
    labels[1::2] = 0
    labels[torch.rand(images, priors, generator=generator) < 0.125] = -1
    return labels


def _sigmoid_focal_loss(
    generator: Generator,
    dtype: torch.dtype,
    images: int,
    priors: int,
    classes: int,
    positives: float = 0.1,
    kind: str = "random",
    **options: Any,
) -> Any:
    logits = 3 * torch.randn(images, priors, classes, generator=generator, dtype=torch.float64) - 2
    labels = _labels_of(generator, images, priors, classes, positives)
    if kind == "nan":
        logits[:, ::7, 0] = math.nan
    elif kind == "inf":
        logits[:, ::7, 0] = -math.inf
        logits[:, 3::7, 0] = math.inf
    elif kind == "large":  # in float32, only the logarithm of the probability is above 0
        logits *= 40
    return (logits.to(dtype), labels), options


def _box_loss(
    generator: Generator,
    dtype: torch.dtype,
    images: int,
    priors: int,
    positives: float = 0.2,
    kind: str = "giou",
    boxes: str = "random",
    **options: Any,
) -> Any:
    loc = 2 * torch.randn(images, priors, 4, generator=generator, dtype=torch.float64)
    targets = loc + torch.randn(images, priors, 4, generator=generator, dtype=torch.float64)
    labels = _labels_of(generator, images, priors, 20, positives)
    if boxes == "same":
        targets = loc.clone()
    elif boxes == "apart":
        targets[..., 0] += 100
    elif boxes == "flat":  # some have no width, some no height, some neither
        loc[:, ::3, 2] = targets[:, 1::3, 2] = -math.inf
        loc[:, ::2, 3] = targets[:, ::2, 3] = -math.inf
    elif boxes == "nan":
        loc[:, ::7, 1] = targets[:, 3::7, 2] = math.nan
    elif boxes == "inf":
        loc[:, ::7, 2] = targets[:, 3::7, 0] = math.inf
    if kind == "nwd":
        options.setdefault("nwd_constant", 0.2)
    priors_cxcywh = random_priors(generator, priors)
    return (loc.to(dtype), targets.to(dtype), labels, priors_cxcywh), {"kind": kind, **options}


_SINGLE = (torch.float32,)
_TWO = (torch.float32, torch.float64)
_HALVES = (torch.float32, torch.float16, torch.bfloat16)
_BAND: dict[str, Any] = {"iou_threshold": 0.5, "low_threshold": 0.4}
_LOW_QUALITY: dict[str, Any] = {"force": "low_quality"}
_NWD: dict[str, Any] = {"metric": "nwd", "nwd_constant": 0.25, "low_threshold": 0.4}
_TOUCHED: dict[str, Any] = {"ignore_threshold": 0.0}
_SUMS = TOLERANCE | {torch.float32: (2e-5, 2e-6)}


def _resize(
    generator: Generator, dtype: torch.dtype, shape: tuple[int, ...], size: tuple[int, int]
) -> Any:
    """Make bytes, for any dtype."""
    return (torch.randint(256, shape, generator=generator, dtype=torch.uint8), size), {}


CASES = [
    Case(
        "box_iou",
        _box_iou,
        {
            "both_empty": Size({"n": 0, "m": 0}),
            "empty": Size({"n": 0, "m": 3}),
            "one": Size({"n": 1, "m": 1}),
            "small": Size({"n": 5, "m": 7}, gradcheck=True),
            "odd": Size({"n": 257, "m": 33}),
            "ties": Size({"n": 65, "m": 33, "kind": "ties"}),
            "degenerate": Size({"n": 65, "m": 33, "kind": "degenerate"}),
            "nan": Size({"n": 65, "m": 33, "kind": "nan"}),
            "inf": Size({"n": 65, "m": 33, "kind": "inf"}),
            "large": Size({"n": 8732, "m": 50}, _SINGLE, benchmark=True),
        },
        exact=(0,),
        gradients=(0, 1),
    ),
    Case(
        "encode_boxes",
        _encode,
        {
            "empty": Size({"n": 0}),
            "no_image": Size({"n": 3, "batch": (0,)}),
            "one": Size({"n": 1}),
            "small": Size({"n": 5, "batch": (2,)}, gradcheck=True),
            "odd": Size({"n": 257, "batch": (3, 2)}),
            "large": Size({"n": 31232, "batch": (2,)}, _SINGLE, benchmark=True),
        },
        gradients=(0,),
    ),
    Case(
        "decode_boxes",
        _decode,
        {
            "empty": Size({"n": 0}),
            "no_image": Size({"n": 3, "batch": (0,)}),
            "one": Size({"n": 1}),
            "small": Size({"n": 5, "batch": (2,)}, gradcheck=True),
            "odd": Size({"n": 257, "batch": (3, 2)}),
            "large": Size({"n": 31232, "batch": (2,)}, _SINGLE, benchmark=True),
        },
        gradients=(0,),
    ),
    Case(
        "match_priors",
        _match,
        {
            "no_prior": Size({"priors": 0, "boxes": (2, 0)}),
            "no_image": Size({"priors": 9, "boxes": ()}),
            "no_box": Size({"priors": 9, "boxes": (0, 0)}),
            "one": Size({"priors": 1, "boxes": (1,)}),
            "more_boxes_than_priors": Size({"priors": 3, "boxes": (20, 0, 1)}),
            "ragged": Size({"priors": 257, "boxes": (3, 0, 1, 50)}),
            "threshold_0": Size({"priors": 257, "boxes": (3, 0), "iou_threshold": 0.0}),
            "ties": Size({"priors": 1025, "boxes": (40, 7), "kind": "ties"}),
            "degenerate": Size({"priors": 513, "boxes": (9, 40), "kind": "degenerate"}),
            "nan": Size({"priors": 513, "boxes": (9, 40), "kind": "nan"}),
            "inf": Size({"priors": 513, "boxes": (9, 40), "kind": "inf"}),
            "rows": Size({"priors": 1025, "boxes": (40, 7), "kind": "rows"}),
            "many_boxes": Size({"priors": 257, "boxes": (9, 300)}),
            "eps": Size(
                {"priors": 513, "boxes": (9, 40), "kind": "ties", "iou_eps": 0.01}, _HALVES
            ),
            "corners": Size({"priors": 257, "boxes": (3, 0, 50), "priors_form": "xyxy"}),
            "band": Size({"priors": 257, "boxes": (3, 0, 50), "low_threshold": 0.3}),
            "band_at_0": Size({"priors": 257, "boxes": (3, 0), "low_threshold": 0.0}, _SINGLE),
            "no_force": Size(
                {"priors": 513, "boxes": (9, 40), "kind": "ties", **_BAND, "force": "none"}, _SINGLE
            ),
            "low_quality": Size(
                {"priors": 257, "boxes": (40, 3, 0, 1), "kind": "ties", **_BAND, **_LOW_QUALITY}
            ),
            "low_quality_nan": Size(
                {"priors": 300, "boxes": (9, 40), "kind": "nan", **_LOW_QUALITY}, _SINGLE
            ),
            "low_quality_rows": Size(
                {"priors": 1025, "boxes": (40, 7), "kind": "rows", **_LOW_QUALITY}, _SINGLE
            ),
            "top_9": Size({"priors": 257, "boxes": (9, 0, 3), "top_k": 9}, _SINGLE),
            "top_3_of_ties": Size(
                {"priors": 257, "boxes": (20, 9), "kind": "ties", "top_k": 3}, _HALVES
            ),
            "top_k_of_few": Size({"priors": 3, "boxes": (20, 0, 1), "top_k": 5}, _SINGLE),
            "top_3_nan": Size({"priors": 257, "boxes": (9,), "kind": "nan", "top_k": 3}, _SINGLE),
            "nwd": Size({"priors": 257, "boxes": (3, 0, 50), **_NWD}),
            "nwd_rows": Size(
                {"priors": 1025, "boxes": (40, 7), "kind": "rows", "top_k": 3, **_NWD}, _SINGLE
            ),
            "nwd_ties": Size(
                {"priors": 257, "boxes": (20, 9), "kind": "ties", **_LOW_QUALITY, **_NWD}, _SINGLE
            ),
            "nwd_nan": Size({"priors": 257, "boxes": (9,), "kind": "nan", **_NWD}, _SINGLE),
            "nwd_inf": Size(
                {"priors": 257, "boxes": (9, 2), "kind": "inf", "top_k": 2, **_NWD}, _SINGLE
            ),
            "nwd_at_0": Size(
                {"priors": 257, "boxes": (9,), "kind": "nan", **_NWD, "low_threshold": 0.0},
                _SINGLE,
            ),
            "ignored": Size({"priors": 257, "boxes": (3, 0, 50), "ignored": (2, 1, 0)}),
            "ignored_degenerate": Size(
                {"priors": 513, "boxes": (3, 0), "ignored": (9, 40), "kind": "degenerate"}, _SINGLE
            ),
            "ignored_nan": Size(
                {"priors": 513, "boxes": (3, 0), "ignored": (9, 2), "kind": "nan", **_TOUCHED},
                _SINGLE,
            ),
            "ignored_inf": Size(
                {"priors": 513, "boxes": (3, 0), "ignored": (9, 40), "kind": "inf"}, _SINGLE
            ),
            "corners_nwd": Size(
                {"priors": 257, "boxes": (3, 50), "priors_form": "xyxy", "ignored": (1, 3), **_NWD}
            ),
            "many_images": Size(
                {"priors": 3, "boxes": (*[0] * 50, 1, 2) * 10}, _SINGLE, nightly=True
            ),
            "mdssd300": Size(
                {"priors": 31232, "boxes": (10, 0, 50, 1, 3, 9, 0, 12)}, _SINGLE, benchmark=True
            ),
            "mdssd512": Size({"priors": 90100, "boxes": (300, 50)}, _SINGLE, benchmark=True),
        },
        exact=(0, 1),
        rounded=(1,),
    ),
    Case(
        "encode_targets",
        _targets,
        {
            "no_prior": Size({"priors": 0, "boxes": (2, 0)}),
            "no_image": Size({"priors": 9, "boxes": ()}),
            "no_box": Size({"priors": 9, "boxes": (0, 0)}),
            "one": Size({"priors": 1, "boxes": (1,)}),
            "more_boxes_than_priors": Size({"priors": 3, "boxes": (20, 0, 1)}),
            "ragged": Size({"priors": 257, "boxes": (3, 0, 1, 50)}),
            "ties": Size({"priors": 1025, "boxes": (40, 7), "kind": "ties"}),
            "degenerate": Size({"priors": 513, "boxes": (9, 40), "kind": "degenerate"}),
            "nan": Size({"priors": 513, "boxes": (9, 40), "kind": "nan"}),
            "rows": Size({"priors": 1025, "boxes": (40, 7), "kind": "rows"}),
            "many_boxes": Size({"priors": 257, "boxes": (9, 300)}),
            "eps": Size(
                {"priors": 513, "boxes": (9, 40), "kind": "ties", "iou_eps": 0.01}, _HALVES
            ),
            "band": Size({"priors": 257, "boxes": (3, 0, 50), "low_threshold": 0.3}),
            "band_at_0": Size({"priors": 257, "boxes": (3, 0), "low_threshold": 0.0}, _SINGLE),
            "no_force": Size(
                {"priors": 513, "boxes": (9, 40), "kind": "ties", **_BAND, "force": "none"}, _SINGLE
            ),
            "low_quality": Size(
                {"priors": 257, "boxes": (40, 3, 0, 1), "kind": "ties", **_BAND, **_LOW_QUALITY}
            ),
            "low_quality_rows": Size(
                {"priors": 1025, "boxes": (40, 7), "kind": "rows", **_LOW_QUALITY}, _SINGLE
            ),
            "top_9": Size({"priors": 257, "boxes": (9, 0, 3), "top_k": 9}, _SINGLE),
            "nwd": Size({"priors": 257, "boxes": (3, 0, 50), **_NWD}),
            "nwd_low_quality": Size(
                {"priors": 257, "boxes": (20, 9), "kind": "ties", **_LOW_QUALITY, **_NWD}, _SINGLE
            ),
            "nwd_no_force": Size(
                {"priors": 1025, "boxes": (40, 7), "kind": "rows", "force": "none", **_NWD}, _SINGLE
            ),
            "ignored": Size({"priors": 257, "boxes": (3, 0, 50), "ignored": (2, 1, 0)}),
            "many_images": Size(
                {"priors": 3, "boxes": (*[0] * 50, 1, 2) * 10}, _SINGLE, nightly=True
            ),
            "mdssd300": Size(
                {"priors": 31232, "boxes": (10, 0, 50, 1, 3, 9, 0, 12)}, _SINGLE, benchmark=True
            ),
            "mdssd512": Size({"priors": 90100, "boxes": (300, 50)}, _SINGLE, benchmark=True),
        },
        exact=(1,),
    ),
    Case(
        "nms",
        _nms,
        {
            "empty": Size({"n": 0}),
            "one": Size({"n": 1}),
            "odd": Size({"n": 257}),
            "ties": Size({"n": 257, "kind": "ties"}),
            "degenerate": Size({"n": 129, "kind": "degenerate"}),
            "nan": Size({"n": 129, "kind": "nan"}),
            "inf": Size({"n": 129, "kind": "inf"}),
            "eps": Size({"n": 257, "iou_eps": 0.01}),
            "eps_in_space": Size({"n": 1100, "iou_eps": 0.01}, _SINGLE),
            "ios": Size({"n": 257, "metric": "ios"}),
            "ios_degenerate": Size({"n": 129, "kind": "degenerate", "metric": "ios"}, _SINGLE),
            "ios_nan": Size({"n": 129, "kind": "nan", "metric": "ios"}, _SINGLE),
            "ios_inf": Size({"n": 129, "kind": "inf", "metric": "ios", "iou_eps": 0.01}, _SINGLE),
            "ios_in_space": Size({"n": 1100, "metric": "ios"}, _SINGLE, nightly=True),
            "diou": Size({"n": 129, "metric": "diou"}),
            "diou_degenerate": Size({"n": 65, "kind": "degenerate", "metric": "diou"}, _SINGLE),
            "diou_inf": Size({"n": 65, "kind": "inf", "metric": "diou", "iou_eps": 0.01}, _SINGLE),
            "diou_in_space": Size({"n": 1100, "metric": "diou"}, _SINGLE, nightly=True),
            "two_chunks": Size({"n": 2049}, (torch.float32, torch.float64), nightly=True),
            "two_chunks_eps": Size(
                {"n": 2049, "iou_eps": 0.01}, (torch.float32, torch.float64), nightly=True
            ),
            "two_chunks_ios": Size(
                {"n": 2049, "metric": "ios"}, (torch.float32, torch.float64), nightly=True
            ),
            "large": Size({"n": 5000}, _SINGLE, benchmark=True),
        },
        exact=(0,),
    ),
    Case(
        "batched_nms",
        _batched_nms,
        {
            "empty": Size({"n": 0, "classes": 3}),
            "one": Size({"n": 1, "classes": 3}),
            "odd": Size({"n": 257, "classes": 5}),
            "ties": Size({"n": 257, "classes": 5, "kind": "ties"}),
            "nan": Size({"n": 129, "classes": 5, "kind": "nan"}),
            "eps": Size({"n": 129, "classes": 5, "iou_eps": 0.01}, _SINGLE),
            "ios": Size({"n": 129, "classes": 5, "metric": "ios"}, _SINGLE),
            "diou": Size({"n": 65, "classes": 3, "metric": "diou"}, _SINGLE),
            "two_chunks": Size({"n": 2049, "classes": 2}, _SINGLE, nightly=True),
            "large": Size({"n": 8000, "classes": 20}, _SINGLE, benchmark=True),
        },
        exact=(0,),
    ),
    Case(
        "nms_padded",
        _nms_padded,
        {
            "empty": Size({"n": 0}),
            "one": Size({"n": 1}),
            "odd": Size({"n": 257}),
            "ties": Size({"n": 257, "kind": "ties"}),
            "degenerate": Size({"n": 129, "kind": "degenerate"}),
            "nan": Size({"n": 129, "kind": "nan"}),
            "inf": Size({"n": 129, "kind": "inf"}),
            "categories": Size({"n": 257, "classes": 5}),
            "eps": Size({"n": 129, "classes": 5, "iou_eps": 0.01}, _SINGLE),
            "ios": Size({"n": 129, "classes": 5, "kind": "ties", "metric": "ios"}, _SINGLE),
            "diou": Size({"n": 65, "kind": "nan", "metric": "diou"}, _SINGLE),
            "large": Size({"n": 5000}, _SINGLE, benchmark=True),
        },
        exact=(0, 1),
    ),
    Case(
        "soft_nms",
        _soft_nms,
        {
            "empty": Size({"n": 0}),
            "odd": Size({"n": 9, "classes": 3}),
            "gaussian": Size({"n": 9, "method": "gaussian"}, _TWO),
            "large": Size({"n": 1000, "classes": 20}, _SINGLE, benchmark=True),
        },
        exact=(0, 1),
    ),
    Case(
        "soft_nms_padded",
        _soft_nms,
        {
            "empty": Size({"n": 0}),
            "one": Size({"n": 1}),
            "odd": Size({"n": 17, "classes": 3}),
            "gaussian": Size({"n": 17, "classes": 3, "method": "gaussian"}),
            "ties": Size({"n": 33, "kind": "ties", "classes": 2}, _SINGLE),
            "ties_gaussian": Size({"n": 17, "kind": "ties", "method": "gaussian"}, _SINGLE),
            "degenerate": Size({"n": 17, "kind": "degenerate"}, _SINGLE),
            "nan": Size({"n": 17, "kind": "nan", "method": "gaussian"}, _SINGLE),
            "inf": Size({"n": 17, "kind": "inf"}, _SINGLE),
            # Every box is kept. A sigma so small that factors become 0.
            "all": Size(
                {"n": 17, "method": "gaussian", "sigma": 1e-3, "score_threshold": 0.0}, _TWO
            ),
            "limit": Size({"n": 65, "kind": "ties", "classes": 2, "max_detections": 5}, _TWO),
            # A label has more boxes than a block of a kernel keeps in registers.
            "in_memory": Size({"n": 1100, "max_detections": 4}, _TWO),
            # Several boxes to a thread, and C++ code that sorts them along a curve.
            "in_space": Size({"n": 300, "method": "gaussian"}, _SINGLE, nightly=True),
            "large": Size(
                {"n": 1000, "classes": 20, "method": "gaussian"}, _SINGLE, benchmark=True
            ),
        },
        exact=(0, 1, 2),
    ),
    Case(
        "merge_boxes",
        _merge_boxes,
        {
            "empty": Size({"n": 0}),
            "odd": Size({"n": 65}),
            "wbf": Size({"n": 65, "method": "wbf", "images": 2}, _SINGLE),
            "large": Size({"n": 4000, "classes": 20}, _SINGLE, benchmark=True),
        },
        exact=(0, 1, 2, 3, 4),
    ),
    Case(
        "merge_boxes_padded",
        _merge_boxes,
        {
            "empty": Size({"n": 0}),
            "one": Size({"n": 1}),
            "one_wbf": Size({"n": 1, "method": "wbf"}),
            "nms": Size({"n": 65, "method": "nms", "images": 2}),
            "odd": Size({"n": 129, "images": 2}),
            "nmm": Size({"n": 129, "method": "nmm", "images": 2}),
            "wbf": Size({"n": 129, "method": "wbf", "images": 2}),
            "ties": Size({"n": 129, "kind": "ties"}, _SINGLE),
            "ties_nmm": Size({"n": 129, "kind": "ties", "method": "nmm"}, _SINGLE),
            "ties_wbf": Size({"n": 129, "kind": "ties", "method": "wbf"}, _SINGLE),
            "degenerate": Size({"n": 65, "kind": "degenerate"}, _SINGLE),
            "nan": Size({"n": 65, "kind": "nan", "method": "nmm"}, _SINGLE),
            "nan_wbf": Size({"n": 65, "kind": "nan", "method": "wbf"}, _SINGLE),
            "inf": Size({"n": 65, "kind": "inf", "metric": "ios"}, _SINGLE),
            "ios": Size(
                {"n": 129, "method": "nmm", "metric": "ios"}, (torch.float32, torch.float64)
            ),
            "ios_wbf": Size(
                {"n": 65, "method": "wbf", "metric": "ios", "models": 2},
                (torch.float32, torch.float64),
            ),
            "any_class": Size({"n": 129, "method": "nmm", "per_class": False}, _SINGLE),
            # One group, which the C++ code sorts along a curve, of more than a block of a kernel.
            "in_space": Size({"n": 1100, "per_class": False}, _SINGLE, nightly=True),
            "in_space_nmm": Size(
                {"n": 1100, "method": "nmm", "per_class": False}, _SINGLE, nightly=True
            ),
            "in_space_wbf": Size(
                {"n": 1100, "method": "wbf", "per_class": False}, _SINGLE, nightly=True
            ),
            "large": Size({"n": 4000, "classes": 20, "method": "nmm"}, _SINGLE, benchmark=True),
            "large_wbf": Size({"n": 4000, "classes": 20, "method": "wbf"}, _SINGLE, benchmark=True),
        },
        exact=(0, 1, 2, 3, 4, 5),
    ),
    Case(
        "detection_output",
        detection_inputs,
        {
            "no_prior": Size({"images": 2, "priors": 0, "classes": 3}),
            "no_image": Size({"images": 0, "priors": 5, "classes": 3}),
            "one": Size({"images": 1, "priors": 1, "classes": 2, "score_threshold": 0.0}),
            "odd": Size({"images": 2, "priors": 257, "classes": 21}),
            "two_classes": Size({"images": 3, "priors": 257, "classes": 2}),
            "limits": Size(
                {
                    "images": 2,
                    "priors": 513,
                    "classes": 5,
                    "kind": "untrained",
                    "top_k": 7,
                    "max_detections": 9,
                },
            ),
            "nothing": Size({"images": 2, "priors": 129, "classes": 5, "score_threshold": 1.0}),
            # A few lanes of a warp share a row, or all of them.
            "many_classes": Size({"images": 2, "priors": 129, "classes": 81}),
            "most_classes": Size({"images": 2, "priors": 65, "classes": 133}),
            # The last lanes of a warp have fewer classes of a row than the first.
            "more_classes": Size({"images": 1, "priors": 33, "classes": 1030}, _SINGLE),
            # More candidates than the list of a class has room for. One, two or all digits decide
            # which are the best, and many boxes are kept, of few or of many classes.
            "untrained": Size(
                {"images": 2, "priors": 2501, "classes": 5, "kind": "untrained"}, _HALVES
            ),
            "untrained_many_classes": Size(
                {"images": 1, "priors": 2501, "classes": 40, "kind": "untrained"},
                _HALVES,
                nightly=True,
            ),
            "untrained_most_classes": Size(
                {
                    "images": 1,
                    "priors": 2065,
                    "classes": 133,
                    "kind": "untrained",
                    "score_threshold": 1e-4,
                    "top_k": 50,
                },
                _HALVES,
                nightly=True,
            ),
            # The list of a class overflows in spite of the bound, for 1, 4 and 32 lanes to a row.
            "misleading": Size(
                {"images": 1, "priors": 2400, "classes": 2, "kind": "misleading"}, _SINGLE
            ),
            "misleading_many_classes": Size(
                {
                    "images": 1,
                    "priors": 2400,
                    "classes": 40,
                    "kind": "misleading",
                    "score_threshold": 1e-4,
                    "top_k": 50,
                },
                _SINGLE,
                nightly=True,
            ),
            "misleading_most_classes": Size(
                {
                    "images": 1,
                    "priors": 2400,
                    "classes": 130,
                    "kind": "misleading",
                    "score_threshold": 1e-5,
                    "top_k": 50,
                },
                _SINGLE,
                nightly=True,
            ),
            "peaked": Size({"images": 2, "priors": 4001, "classes": 3, "kind": "peaked"}, _SINGLE),
            "alike": Size({"images": 1, "priors": 9001, "classes": 3, "kind": "alike"}, _SINGLE),
            "threshold_0": Size(
                {
                    "images": 1,
                    "priors": 4001,
                    "classes": 3,
                    "kind": "alike",
                    "score_threshold": 0.0,
                },
                _SINGLE,
            ),
            "largest_limits": Size(
                {
                    "images": 1,
                    "priors": 2501,
                    "classes": 4,
                    "kind": "untrained",
                    "top_k": 1024,
                    "max_detections": 1024,
                    "nms_threshold": 0.9,
                },
                _SINGLE,
                nightly=True,
            ),
            "ties": Size({"images": 2, "priors": 1025, "classes": 5, "kind": "ties"}),
            "nan": Size({"images": 2, "priors": 257, "classes": 5, "kind": "nan"}),
            "inf": Size({"images": 2, "priors": 257, "classes": 5, "kind": "inf"}),
            "scores": Size({"images": 2, "priors": 257, "classes": 21, "softmax": False}),
            # Several lanes of a warp share a row; a list overflows; scores outside 0 to 1.
            "scores_many_classes": Size(
                {"images": 2, "priors": 129, "classes": 81, "softmax": False}, _SINGLE
            ),
            "scores_untrained": Size(
                {"images": 1, "priors": 4001, "classes": 3, "kind": "peaked", "softmax": False},
                _SINGLE,
            ),
            "scores_nan": Size(
                {"images": 2, "priors": 257, "classes": 5, "kind": "nan", "softmax": False}
            ),
            "scores_inf": Size(
                {"images": 2, "priors": 257, "classes": 21, "kind": "inf", "softmax": False}
            ),
            "per_class": Size(
                {
                    "images": 2,
                    "priors": 257,
                    "classes": 5,
                    "kind": "untrained",
                    "top_k": 33,
                    "max_detections": 9,
                    "per_class": True,
                },
            ),
            "per_class_nothing": Size(
                {"images": 2, "priors": 33, "classes": 5, "score_threshold": 1.0, "per_class": True}
            ),
            "eps": Size(
                {"images": 2, "priors": 257, "classes": 5, "kind": "untrained", "iou_eps": 0.01},
                _HALVES,
            ),
            "ios": Size(
                {"images": 2, "priors": 257, "classes": 5, "kind": "untrained", "metric": "ios"},
                _HALVES,
            ),
            "diou": Size(
                {"images": 2, "priors": 129, "classes": 3, "kind": "untrained", "metric": "diou"},
                _SINGLE,
            ),
            "eps_empty_once": Size(
                {
                    "images": 2,
                    "priors": 257,
                    "classes": 5,
                    "kind": "empty",
                    "keep_empty": False,
                    "iou_eps": 0.01,
                },
                _HALVES,
            ),
            "ios_empty_once": Size(
                {
                    "images": 2,
                    "priors": 257,
                    "classes": 5,
                    "kind": "empty",
                    "keep_empty": False,
                    "metric": "ios",
                },
                _HALVES,
            ),
            "clip": Size(
                {
                    "images": 2,
                    "priors": 257,
                    "classes": 5,
                    "kind": "untrained",
                    "clip": (0.75, 0.5),
                    "max_log_scale": 0.1,
                },
            ),
            "clip_inf": Size(
                {"images": 2, "priors": 257, "classes": 5, "kind": "inf", "clip": (1.0, 1.0)},
                _SINGLE,
            ),
            "empty_kept": Size({"images": 2, "priors": 257, "classes": 5, "kind": "empty"}),
            "empty_once": Size(
                {"images": 2, "priors": 257, "classes": 5, "kind": "empty", "keep_empty": False}
            ),
            "sigmoid": Size(_focal(2, 257, 21, score_threshold=0.05)),
            "sigmoid_per_class": Size(
                _focal(2, 129, 5, background=True, per_class=True, max_detections=9), _HALVES
            ),
            "sigmoid_one_class": Size(_focal(1, 33, 1, score_threshold=0.05), _SINGLE),
            "sigmoid_nan": Size(_focal(2, 257, 5, kind="nan"), _SINGLE),
            "softmax_no_background": Size(
                {"images": 2, "priors": 129, "classes": 5, "background": False}, _SINGLE
            ),
            "scores_no_background": Size(
                {
                    "images": 2,
                    "priors": 257,
                    "classes": 21,
                    "softmax": False,
                    "background": False,
                    "per_class": True,
                },
                _SINGLE,
            ),
            "levels": Size(_focal(2, 257, 21, levels=(200, 0, 50, 7), top_k_per_level=30)),
            # All pass; a list overflows; a level has fewer candidates than it may have.
            "levels_untrained": Size(
                _focal(1, 301, 5, kind="untrained", levels=(250, 50, 1), top_k_per_level=300)
                | {"top_k": 1100, "max_detections": 1100, "nms_threshold": 0.9},
                _SINGLE,
            ),
            # The first class keeps fewer boxes than the result has rows, and the third more.
            "levels_few": Size(
                _focal(2, 129, 5, kind="untrained", levels=(100, 29), top_k_per_level=60)
                | {"max_detections": 23},
                _SINGLE,
            ),
            "levels_fewer": Size(
                _focal(2, 129, 5, kind="untrained", levels=(100, 29), top_k_per_level=60)
                | {"max_detections": 5},
                _SINGLE,
            ),
            "levels_softmax": Size(
                {"images": 2, "priors": 257, "classes": 40}
                | {"levels": (200, 57), "top_k_per_level": 9, "kind": "ties"},
                _HALVES,
            ),
            "level_of_scores": Size(
                {"images": 2, "priors": 129, "classes": 140}
                | {"softmax": False, "top_k_per_level": 20, "top_k": 3},
                _HALVES,
            ),
            "agnostic": Size(_focal(2, 257, 5, class_agnostic=True)),
            "agnostic_nan": Size(_focal(2, 129, 5, class_agnostic=True) | {"kind": "nan"}, _SINGLE),
            "agnostic_diou": Size(
                _focal(2, 129, 3, kind="untrained", class_agnostic=True) | {"metric": "diou"},
                _SINGLE,
            ),
            "agnostic_levels": Size(
                _focal(2, 129, 9, levels=(100, 29), top_k_per_level=70, class_agnostic=True)
                | {"top_k": 90, "keep_empty": False, "kind": "empty"},
                _HALVES,
            ),
            **{
                f"agnostic_{name}{'' if keep else '_once'}": Size(
                    _focal(2, 65, 3, kind="empty", class_agnostic=True)
                    | {"keep_empty": keep, **overlap},
                    _HALVES,
                )
                for name, overlap in (("ios", {"metric": "ios"}), ("eps", {"iou_eps": 0.01}))
                for keep in (True, False)
            },
            "soft_linear": Size(
                {"images": 2, "priors": 129, "classes": 5, "suppression": "soft_linear"}
                | {"nms_threshold": 0.3}
            ),
            "soft_gaussian": Size(
                _focal(1, 65, 3, suppression="soft_gaussian", soft_sigma=0.2, per_class=True)
                | {"max_detections": 3, "metric": "ios"},
                _HALVES,
            ),
            "soft_ties": Size(
                {"images": 1, "priors": 65, "classes": 3, "kind": "ties", "softmax": False}
                | {"suppression": "soft_linear", "nms_threshold": 0.1, "max_detections": 6},
                _TWO,
            ),
            "soft_levels": Size(
                _focal(1, 65, 3, levels=(50, 15), top_k_per_level=9)
                | {"suppression": "soft_gaussian", "iou_eps": 0.01, "top_k": 7},
                _SINGLE,
            ),
            "soft_levels_per_class": Size(
                _focal(2, 65, 3, levels=(50, 15), top_k_per_level=9, per_class=True)
                | {"suppression": "soft_linear", "max_detections": 4},
                _SINGLE,
            ),
            "soft_agnostic": Size(
                _focal(2, 33, 3, kind="empty", class_agnostic=True)
                | {"suppression": "soft_linear", "keep_empty": False, "nms_threshold": 0.0},
                _SINGLE,
            ),
            "soft_nan": Size(
                {"images": 1, "priors": 129, "classes": 3, "kind": "nan"}
                | {"suppression": "soft_gaussian"},
                _SINGLE,
            ),
            "mdssd300": Size(
                {"images": 2, "priors": 31232, "classes": 21}, _SINGLE, benchmark=True
            ),
            "mdssd300_untrained": Size(
                {"images": 1, "priors": 31232, "classes": 21, "kind": "untrained"},
                _SINGLE,
                benchmark=True,
            ),
            "mdssd512": Size(
                {"images": 1, "priors": 90100, "classes": 81}, _SINGLE, benchmark=True
            ),
        },
        exact=(2, 3),
    ),
    Case(
        "l2norm",
        _l2norm,
        {
            "empty": Size({"shape": (0, 4, 3, 3)}),
            "no_pixel": Size({"shape": (2, 4, 0, 3)}),
            "one": Size({"shape": (1, 1, 1, 1)}),
            "small": Size({"shape": (2, 5, 3, 2)}, gradcheck=True),
            "small_nhwc": Size({"shape": (2, 5, 3, 2), "channels_last": True}, gradcheck=True),
            "zeros": Size({"shape": (2, 33, 7, 5), "zeros": True}),
            "odd": Size({"shape": (2, 257, 19, 7)}),
            "odd_nhwc": Size({"shape": (2, 257, 19, 7), "channels_last": True}),
            # More than one tile of pixels per row of the workspace.
            "many_pixels": Size({"shape": (1, 2, 131, 131)}, _SINGLE),
            "many_pixels_nhwc": Size({"shape": (1, 4, 131, 131), "channels_last": True}, _SINGLE),
            # Channels that can be loaded 16 bytes at a time.
            "vectors_nhwc": Size({"shape": (2, 64, 9, 5), "channels_last": True}),
            # More channels than fit a Triton tile, or than a block has threads.
            "wide": Size({"shape": (2, 1030, 3, 3)}, _SINGLE),
            "wide_nhwc": Size({"shape": (2, 1030, 3, 3), "channels_last": True}, _SINGLE),
            "conv4_3": Size({"shape": (1, 512, 38, 38)}, _SINGLE, benchmark=True),
        },
        gradients=(0, 1),
        tolerance=_SUMS,
    ),
    Case(
        "l2norm_add_relu",
        _l2norm_add_relu,
        {
            "empty": Size({"shape": (0, 4, 3, 3)}),
            "no_pixel": Size({"shape": (2, 4, 0, 3)}),
            "one": Size({"shape": (1, 1, 1, 1)}),
            "small": Size({"shape": (2, 5, 3, 2)}, gradcheck=True),
            "small_nhwc": Size({"shape": (2, 5, 3, 2), "channels_last": True}, gradcheck=True),
            "zeros": Size({"shape": (2, 33, 7, 5), "zeros": True}),
            "odd": Size({"shape": (2, 257, 19, 7)}),
            "odd_nhwc": Size({"shape": (2, 257, 19, 7), "channels_last": True}),
            # More than one tile of pixels per row of the workspace.
            "many_pixels": Size({"shape": (1, 2, 131, 131)}, _SINGLE),
            "many_pixels_nhwc": Size({"shape": (1, 4, 131, 131), "channels_last": True}, _SINGLE),
            # Channels that can be loaded 16 bytes at a time.
            "vectors_nhwc": Size({"shape": (2, 64, 9, 5), "channels_last": True}),
            # More channels than fit a Triton tile, or than a block has threads.
            "wide": Size({"shape": (2, 1030, 3, 3)}, _SINGLE),
            "wide_nhwc": Size({"shape": (2, 1030, 3, 3), "channels_last": True}, _SINGLE),
            "module1": Size({"shape": (1, 256, 75, 75)}, _SINGLE, benchmark=True),
            "module1_nhwc": Size(
                {"shape": (1, 256, 75, 75), "channels_last": True}, _SINGLE, benchmark=True
            ),
            "module3": Size({"shape": (1, 1024, 19, 19)}, _SINGLE, benchmark=True),
        },
        gradients=(0, 1, 2, 3),
        tolerance=_SUMS,
    ),
    Case(
        "multibox_loss",
        _multibox_loss,
        {
            "no_prior": Size({"images": 2, "priors": 0, "classes": 3}),
            "no_image": Size({"images": 0, "priors": 5, "classes": 3}),
            "one": Size({"images": 1, "priors": 1, "classes": 2, "positives": 1.0}),
            "no_positive": Size({"images": 3, "priors": 257, "classes": 21, "positives": 0.0}),
            "all_positive": Size({"images": 3, "priors": 257, "classes": 21, "positives": 1.0}),
            "few_negatives": Size({"images": 3, "priors": 257, "classes": 21, "positives": 0.5}),
            "small": Size(
                {"images": 2, "priors": 12, "classes": 3, "positives": 0.2}, gradcheck=True
            ),
            "odd": Size({"images": 4, "priors": 1025, "classes": 21}),
            "ignored": Size(
                {"images": 3, "priors": 257, "classes": 5, "positives": 0.2, "ignored": 0.6}
            ),
            "all_ignored": Size({"images": 1, "priors": 257, "classes": 5, "ignored": 1.0}),
            "ignored_each": Size(
                {"images": 3, "priors": 65, "classes": 5, "ignored": 0.6, "reduction": "image"},
                _SINGLE,
            ),
            "ties": Size({"images": 2, "priors": 1025, "classes": 5, "kind": "ties"}),
            "nan": Size({"images": 2, "priors": 257, "classes": 5, "kind": "nan"}),
            "inf": Size({"images": 2, "priors": 257, "classes": 5, "kind": "inf"}),
            # A row has 4 lanes, or 32.
            "many_classes": Size({"images": 2, "priors": 129, "classes": 81}),
            "most_classes": Size({"images": 2, "priors": 65, "classes": 133}),
            # A block processes several tiles of rows.
            "many_rows": Size(
                {"images": 2, "priors": 140_001, "classes": 2, "positives": 0.01},
                _SINGLE,
                nightly=True,
            ),
            "no_image_each": Size(
                {"images": 0, "priors": 5, "classes": 3, "reduction": "image"}, _SINGLE
            ),
            "no_prior_each": Size(
                {"images": 2, "priors": 0, "classes": 3, "reduction": "image"}, _SINGLE
            ),
            "small_each": Size(
                {"images": 3, "priors": 12, "classes": 3, "positives": 0.2, "reduction": "image"},
                gradcheck=True,
            ),
            "each": Size({"images": 5, "priors": 257, "classes": 21, "reduction": "image"}),
            # More classes, or more priors per image, than a Triton program keeps in registers.
            "more_classes": Size({"images": 2, "priors": 33, "classes": 300}, _HALVES),
            "many_priors": Size(
                {"images": 1, "priors": 33_001, "classes": 2, "positives": 0.01}, _SINGLE
            ),
            "mdssd300": Size(
                {"images": 4, "priors": 31232, "classes": 21, "positives": 0.002},
                _SINGLE,
                benchmark=True,
            ),
        },
        gradients=(0, 1),
        tolerance=_SUMS,
    ),
    Case(
        "sigmoid_focal_loss",
        _sigmoid_focal_loss,
        {
            "no_prior": Size({"images": 2, "priors": 0, "classes": 3}),
            "no_image": Size({"images": 0, "priors": 5, "classes": 3}),
            "one": Size({"images": 1, "priors": 1, "classes": 1, "positives": 1.0}),
            "small": Size({"images": 2, "priors": 12, "classes": 3}, gradcheck=True),
            "odd": Size({"images": 3, "priors": 257, "classes": 7}),
            "no_positive": Size({"images": 1, "priors": 65, "classes": 2, "positives": 0.0}),
            "one_class": Size({"images": 2, "priors": 513, "classes": 1}),
            "nan": Size({"images": 2, "priors": 65, "classes": 3, "kind": "nan"}),
            "inf": Size({"images": 2, "priors": 65, "classes": 3, "kind": "inf"}),
            "inf_each": Size(
                {"images": 2, "priors": 65, "classes": 3, "kind": "inf", "gamma": 1.5}
                | {"reduction": "image"}
            ),
            "large": Size({"images": 2, "priors": 65, "classes": 3, "kind": "large"}),
            "gamma_0": Size(
                {"images": 2, "priors": 12, "classes": 3, "gamma": 0.0}, gradcheck=True
            ),
            "gamma_1": Size(
                {"images": 2, "priors": 12, "classes": 3, "gamma": 1.0, "alpha": None},
                gradcheck=True,
            ),
            "gamma_half": Size(
                {"images": 3, "priors": 13, "classes": 5, "gamma": 0.5, "reduction": "image"},
                gradcheck=True,
            ),
            "gamma_inf_0": Size(
                {"images": 2, "priors": 65, "classes": 3, "kind": "inf", "gamma": 0.0}, _SINGLE
            ),
            "no_image_each": Size(
                {"images": 0, "priors": 5, "classes": 3, "reduction": "image"}, _SINGLE
            ),
            "no_prior_each": Size(
                {"images": 2, "priors": 0, "classes": 3, "reduction": "image"}, _SINGLE
            ),
            # The images' logits do not start at multiples of 16 bytes.
            "each": Size({"images": 5, "priors": 257, "classes": 3, "reduction": "image"}),
            "sum": Size({"images": 3, "priors": 65, "classes": 20, "reduction": "sum"}, _HALVES),
            # More classes than a thread, a program or a task handles at a time.
            "many_classes": Size({"images": 1, "priors": 5, "classes": 5001}, _HALVES),
            "many_rows": Size({"images": 2, "priors": 3001, "classes": 20}, _SINGLE),
            "retinanet": Size(
                {"images": 1, "priors": 120087, "classes": 90, "positives": 0.0005},
                _SINGLE,
                benchmark=True,
            ),
        },
        gradients=(0,),
        tolerance=_SUMS,
    ),
    Case(
        "box_loss",
        _box_loss,
        {
            "no_prior": Size({"images": 2, "priors": 0}),
            "no_image": Size({"images": 0, "priors": 5}),
            "one": Size({"images": 1, "priors": 1, "positives": 1.0}),
            "no_positive": Size({"images": 1, "priors": 65, "positives": 0.0}, _SINGLE),
            "small": Size({"images": 2, "priors": 12, "positives": 0.5}, gradcheck=True),
            "odd": Size({"images": 3, "priors": 257}),
            "diou": Size({"images": 3, "priors": 257, "kind": "diou"}),
            "ciou": Size({"images": 3, "priors": 257, "kind": "ciou", "reduction": "image"}),
            "nwd": Size({"images": 3, "priors": 257, "kind": "nwd", "reduction": "sum"}),
            "diou_small": Size(
                {"images": 2, "priors": 12, "positives": 0.5, "kind": "diou"},
                (torch.float64,),
                gradcheck=True,
            ),
            "nwd_small": Size(
                {"images": 2, "priors": 12, "positives": 0.5, "kind": "nwd"},
                (torch.float64,),
                gradcheck=True,
            ),
        }
        | {
            f"{kind}_{boxes}": Size({"images": 1, "priors": 65, "kind": kind, "boxes": boxes}, _TWO)
            for kind in ("giou", "diou", "ciou", "nwd")
            for boxes in ("same", "apart", "flat", "nan", "inf")
        }
        | {
            "no_image_each": Size({"images": 0, "priors": 5, "reduction": "image"}, _SINGLE),
            "no_prior_each": Size({"images": 2, "priors": 0, "reduction": "image"}, _SINGLE),
            "many_rows": Size({"images": 3, "priors": 5001, "reduction": "image"}, _SINGLE),
            "mdssd300": Size(
                {"images": 8, "priors": 31232, "positives": 0.002}, _SINGLE, benchmark=True
            ),
        },
        gradients=(0,),
        tolerance=_SUMS,
    ),
    Case(
        "resize",
        _resize,
        {
            "no_image": Size({"shape": (0, 3, 5, 3), "size": (2, 2)}, _SINGLE),
            "no_channel": Size({"shape": (2, 3, 5, 0), "size": (2, 2)}, _SINGLE),
            "one": Size({"shape": (1, 1, 3), "size": (1, 1)}, _SINGLE),
            "grown_from_one": Size({"shape": (1, 1, 1), "size": (3, 4)}, _SINGLE),
            "odd": Size({"shape": (2, 33, 47, 3), "size": (19, 31)}, _SINGLE),
            "grown": Size({"shape": (2, 1, 7, 9, 4), "size": (30, 23)}, _SINGLE),
            "as_it_is": Size({"shape": (21, 13, 3), "size": (21, 13)}, _SINGLE),
            "frame": Size(
                {"shape": (1, 1080, 1920, 3), "size": (300, 300)}, _SINGLE, benchmark=True
            ),
        },
        exact=(0,),
    ),
]
