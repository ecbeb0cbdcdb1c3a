"""The checks of values: those made always, those of `ops.checks(True)`, and what a NaN gives."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.ops import _dispatch
from mdssd.testing import CASES, Case

NAN, INF = math.nan, math.inf
BOXES = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.6, 0.2, 0.9, 0.5]])
PRIORS = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
LABELS = torch.tensor([1, 2])
LOC, LOGITS = torch.zeros(1, 3, 4), torch.zeros(1, 3, 3)
TARGETS = torch.tensor([[0, 2, 0]])
MAP, SCALE = torch.ones(1, 2, 3, 3), torch.ones(2)


@pytest.fixture(params=ops.backends()["nms"])
def backend(request: pytest.FixtureRequest) -> Any:
    with ops.backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    yield
    ops.checks(False)


def with_value(tensor: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


# --- always, on the CPU --------------------------------------------------------------------------


@pytest.mark.parametrize("label", [0, -1])
def test_a_label_of_the_background_is_refused(backend: str, label: int) -> None:
    labels = [torch.tensor([3]), torch.tensor([]).long(), torch.tensor([1, label])]
    message = (
        rf"encode_targets: gt_labels\[2\]: expected 1-based labels \(0 is background\), got {label}"
    )
    with pytest.raises(ValueError, match=message):
        ops.encode_targets([BOXES[:1], BOXES[:0], BOXES], labels, PRIORS)


def test_a_label_of_the_background_is_refused_in_a_compiled_graph() -> None:
    compiled = torch.compile(
        lambda labels: ops.encode_targets([BOXES], [labels], PRIORS).labels,
        fullgraph=True,
        backend="eager",
    )
    assert compiled(LABELS).unique().tolist() == [0, 1, 2]
    with pytest.raises(Exception, match=r"gt_labels\[0\]: expected 1-based labels"):
        compiled(LABELS - 1)


def test_no_row_is_not_a_row_of_zeros() -> None:
    def targets(labels: Tensor) -> Tensor:
        return ops.encode_targets([BOXES], [labels], PRIORS).labels

    with ops.checks(True):
        assert torch.func.vmap(targets)(torch.ones(0, 2).long()).shape == (0, 1, 3)


@pytest.mark.parametrize("op", ["match_priors", "encode_targets"])
@pytest.mark.parametrize(("box_unit", "prior_unit"), [(1, 300), (300, 1)])
def test_two_units_are_said(backend: str, op: str, box_unit: int, prior_unit: int) -> None:
    boxes, priors = [BOXES[:0], BOXES * box_unit], PRIORS * prior_unit
    args = (boxes, priors) if op == "match_priors" else (boxes, [LABELS[:0], LABELS], priors)
    names = {1: "0 to 1", 300: "pixels"}
    message = (
        f"{op}: priors_cxcywh: expected the unit of gt_xyxy, got {names[prior_unit]} beside "
        f"boxes in {names[box_unit]}"
    )
    with pytest.warns(UserWarning, match=message) as warned:
        getattr(ops, op)(*args)
    files = [warning.filename for warning in warned if warning.category is UserWarning]
    assert files == [__file__]
    with ops.checks(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            getattr(ops, op)(*args)


@pytest.mark.parametrize("unit", [1, 300])
def test_one_unit_is_good(backend: str, unit: int) -> None:
    with warnings.catch_warnings(), ops.checks(True):
        warnings.simplefilter("error", UserWarning)
        ops.match_priors([BOXES * unit, BOXES[:0]], PRIORS * unit)
        ops.match_priors([BOXES[:0]], PRIORS * unit)
        ops.match_priors([BOXES * unit], PRIORS[:0])


# --- with checks(True) ---------------------------------------------------------------------------

# An operator, its arguments, the argument to change, where, to what, and the message.
WRONG = [
    ("box_iou", (BOXES, BOXES), 0, (1, 2), NAN, r"a_xyxy\[1\]: expected finite numbers, got \[0.6"),
    ("box_iou", (BOXES, BOXES), 1, (0, 0), INF, r"b_xyxy\[0\]: expected finite numbers"),
    ("box_iou", (BOXES, BOXES), 1, (0, 0), 0.5, r"b_xyxy\[0\]: expected x1 <= x2 and y1 <= y2"),
    ("encode_boxes", (BOXES, PRIORS[:2]), 0, (1, 3), 0.2, r"boxes_xyxy\[1\]: expected x1 < x2"),
    ("encode_boxes", (BOXES, PRIORS[:2]), 1, (0, 2), 0, r"priors_cxcywh\[0\]: expected sizes"),
    ("decode_boxes", (LOC, PRIORS), 0, (0, 2, 1), NAN, r"loc\[0, 2\]: expected finite numbers"),
    ("decode_boxes", (LOC, PRIORS), 1, (1, 3), -1, r"priors_cxcywh\[1\]: expected sizes above 0"),
    ("match_priors", ([BOXES], PRIORS), 1, (1, 0), NAN, r"priors_cxcywh\[1\]: expected finite"),
    ("nms", (BOXES, SCALE, 0.5), 0, (1, 0), INF, r"boxes_xyxy\[1\]: expected finite numbers"),
    ("nms", (BOXES, SCALE, 0.5), 1, (1,), NAN, r"scores\[1\]: expected finite numbers, got nan"),
    ("batched_nms", (BOXES, SCALE, LABELS, 0.5), 1, (0,), INF, r"scores\[0\]: expected finite"),
    ("nms_padded", (BOXES, SCALE, 0.5), 0, (0, 3), 0.0, r"boxes_xyxy\[0\]: expected x1 <= x2"),
    ("detection_output", (LOC, LOGITS, PRIORS), 0, (0, 1, 2), NAN, r"loc\[0, 1\]: expected finite"),
    ("detection_output", (LOC, LOGITS, PRIORS), 1, (0, 1, 2), NAN, r"logits\[0, 1, 2\]: expected"),
    (
        "detection_output",
        (LOC, LOGITS, PRIORS),
        1,
        (0, 1, 0),
        INF,
        r"logits\[0, 1, 0\]: expected",
    ),
    ("detection_output", (LOC, LOGITS, PRIORS), 2, (2, 0), NAN, r"priors_cxcywh\[2\]: expected"),
    ("sigmoid_focal_loss", (LOGITS, TARGETS), 0, (0, 2, 0), NAN, r"logits\[0, 2, 0\]: expected no"),
    ("sigmoid_focal_loss", (LOGITS, TARGETS), 1, (0, 2), 4, r"labels\[0, 2\]: expected -1 to 3"),
    ("box_loss", (LOC, LOC, TARGETS, PRIORS), 0, (0, 1, 0), INF, r"loc\[0, 1\]: expected"),
    ("box_loss", (LOC, LOC, TARGETS, PRIORS), 1, (0, 1, 0), NAN, r"loc_targets\[0, 1\]: expected"),
    ("box_loss", (LOC, LOC, TARGETS, PRIORS), 3, (1, 2), 0, r"priors_cxcywh\[1\]: expected sizes"),
    ("multibox_loss", (LOC, LOGITS, LOC, TARGETS), 0, (0, 1, 0), INF, r"loc\[0, 1\]: expected"),
    ("multibox_loss", (LOC, LOGITS, LOC, TARGETS), 1, (0, 2, 0), NAN, r"logits\[0, 2, 0\]: expec"),
    ("multibox_loss", (LOC, LOGITS, LOC, TARGETS), 2, (0, 1, 0), NAN, r"loc_targets\[0, 1\]: exp"),
    (
        "multibox_loss",
        (LOC, LOGITS, LOC, TARGETS),
        3,
        (0, 2),
        3,
        r"labels\[0, 2\]: expected -1 to 2",
    ),
    ("l2norm", (MAP, SCALE), 0, (0, 1, 2, 0), NAN, r"x\[0, 1, 2, 0\]: expected finite numbers"),
    ("l2norm", (MAP, SCALE), 1, (1,), INF, r"scale\[1\]: expected finite numbers, got inf"),
    ("l2norm_add_relu", (MAP, MAP, SCALE, SCALE), 3, (0,), NAN, r"scale_b\[0\]: expected finite"),
]


@pytest.mark.parametrize(("op", "args", "position", "place", "value", "message"), WRONG)
def test_a_wrong_value_is_named(
    backend: str,
    op: str,
    args: tuple[Any, ...],
    position: int,
    place: tuple[int, ...],
    value: float,
    message: str,
) -> None:
    changed = list(args)
    changed[position] = with_value(args[position], place, value)
    with ops.checks(True):
        getattr(ops, op)(*args)
        with pytest.raises(ValueError, match=f"{op}: {message}"):
            getattr(ops, op)(*changed)


def test_a_wrong_box_is_named_with_its_image(backend: str) -> None:
    images = [BOXES, with_value(BOXES, (1, 2), 0.6)]  # no width
    with ops.checks(True):
        ops.match_priors(images, PRIORS)
        with pytest.raises(
            ValueError, match=r"encode_targets: gt_xyxy\[1\]\[1\]: expected x1 < x2"
        ):
            ops.encode_targets(images, [LABELS, LABELS], PRIORS)


def test_corner_priors_are_boxes(backend: str) -> None:
    with ops.checks(True):
        ops.match_priors([BOXES], BOXES, priors_form="xyxy")
        with pytest.raises(ValueError, match=r"priors_cxcywh\[1\]: expected x1 <= x2"):
            ops.match_priors([BOXES], with_value(BOXES, (1, 2), 0.5), priors_form="xyxy")


def test_scores_and_the_unit_of_clip(backend: str) -> None:
    scores = LOGITS + 0.25
    with ops.checks(True):
        ops.detection_output(LOC, scores, PRIORS, softmax=False, clip=(1.0, 1.0))
        with pytest.raises(
            ValueError, match=r"logits\[0, 0, 1\]: expected scores from 0 to 1, got"
        ):
            ops.detection_output(LOC, with_value(scores, (0, 0, 1), 1.5), PRIORS, softmax=False)
        with pytest.raises(ValueError, match=r"priors_cxcywh\[0\]: expected the unit of clip, got"):
            ops.detection_output(LOC, scores, PRIORS * 300, softmax=False, clip=(1.0, 1.0))


def test_a_class_may_be_ruled_out(backend: str) -> None:
    logits = with_value(LOGITS, (0, 0, 2), -INF)
    with ops.checks(True):
        ops.detection_output(LOC, logits, PRIORS)
        ops.multibox_loss(LOC, logits, with_value(LOC, (0, 0, 0), NAN), TARGETS)


@pytest.mark.cases(case=lambda case: case.op != "resize")
def test_every_operator_has_checks(case: Case) -> None:
    """A NaN in any of the floating-point arguments of any operator is found."""
    size = next(name for name in case.sizes if name in ("odd", "ragged"))
    args, kwargs = case.inputs(size, torch.float32)
    for position, arg in enumerate(args):
        tensor = arg[0] if isinstance(arg, list) else arg
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        bad = torch.full_like(tensor, NAN)
        changed = list(args)
        changed[position] = [bad, *arg[1:]] if isinstance(arg, list) else bad
        with ops.checks(True), pytest.raises(ValueError, match=f"{case.op}: .*got .*nan"):
            case(*changed, **kwargs)


def test_the_cases_of_the_tests_pass() -> None:
    for case in CASES:
        for name in {"odd", "ragged", "small", "one", "empty", "no_image", "no_prior"} & {
            *case.sizes
        }:
            args, kwargs = case.inputs(name, torch.float32)
            with ops.checks(True):
                case(*args, **kwargs)


# --- the switch ----------------------------------------------------------------------------------


def finds() -> bool:
    try:
        ops.nms(with_value(BOXES, (0, 0), NAN), SCALE, 0.5)
    except ValueError:
        return True
    return False


def test_the_switch() -> None:
    assert not finds()
    ops.checks(True)
    assert finds()
    with ops.checks(False):
        assert not finds()
        with ops.checks(True):
            assert finds()
        assert not finds()
    assert finds()
    ops.checks(False)
    assert not finds()
    with pytest.raises(RuntimeError, match="mine"), ops.checks(True):
        raise RuntimeError("mine")
    assert not finds()


def test_the_switch_holds_in_other_threads() -> None:
    found: list[bool] = []
    with ops.checks(True):
        thread = threading.Thread(target=lambda: found.append(finds()))
        thread.start()
        thread.join()
    assert found == [True]


@pytest.mark.parametrize("value", [1, None, "on"])
def test_the_switch_takes_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match="checks: enabled: expected True or False, got"):
        ops.checks(value)
    assert not finds()


def test_values_are_seen_behind_every_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks lie behind the dispatcher, so compiled and transformed calls are checked too."""
    boxes = with_value(BOXES, (0, 0), NAN)
    compiled = torch.compile(
        lambda b: ops.nms_padded(b, SCALE, 0.5).keep, fullgraph=True, backend="eager"
    )
    roads = [
        lambda: compiled(boxes),
        lambda: torch.func.vmap(lambda b: ops.nms_padded(b, SCALE, 0.5))(boxes[None]),
        lambda: torch.ops.mdssd.nms(boxes, SCALE, None, 0.5, 0.0),
        lambda: ops.decode_boxes(boxes.requires_grad_(), PRIORS[:2]),
    ]
    for road in roads:
        road()
        with ops.checks(True), pytest.raises(ValueError, match=r"\[0\]: expected finite numbers"):
            road()


def test_backward_is_not_checked() -> None:
    loc = LOC.clone().requires_grad_()
    with ops.checks(True):
        boxes = ops.decode_boxes(loc, PRIORS)
        boxes.backward(torch.full_like(boxes, NAN))
    assert loc.grad is not None and loc.grad.isnan().all()


def test_an_unchecked_call_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the matching operators look at values if nobody asks for it."""
    called: list[str] = []
    monkeypatch.setattr(_dispatch, "_check", lambda args, *rest: called.append("check"))
    ops.nms(BOXES, SCALE, 0.5)
    ops.detection_output(LOC, LOGITS, PRIORS)
    assert called == []
    ops.match_priors([BOXES], PRIORS)
    assert called == ["check"]


# --- what a NaN and an inf give ------------------------------------------------------------------

APART = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.3, 0.3, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]])


def detect(loc: Tensor, scores: list[float], priors: Tensor = APART, **settings: Any) -> Any:
    given = torch.tensor(scores)
    logits = torch.stack([1 - given, given], 1)[None]
    found = ops.detection_output(loc, logits, priors, softmax=False, **settings)
    n = int(found.count)
    return found.boxes[0, :n], found.scores[0, :n].tolist()


@pytest.mark.parametrize("column", [0, 1, 2, 3])
@pytest.mark.parametrize("keep_empty", [True, False])
def test_a_nan_box_is_no_detection(backend: str, column: int, keep_empty: bool) -> None:
    loc = with_value(LOC, (0, 0, column), NAN)
    boxes, scores = detect(loc, [0.75, 0.5, 0.25], keep_empty=keep_empty)
    assert scores == [0.5, 0.25] and boxes.isfinite().all()
    boxes, scores = detect(LOC, [0.75, 0.5, 0.25], with_value(APART, (1, column), NAN))
    assert scores == [0.75, 0.25] and boxes.isfinite().all()
    assert detect(loc, [0.75, 0.5, 0.25], clip=(1.0, 1.0))[1] == [0.5, 0.25]


def test_a_nan_box_counts_for_top_k(backend: str) -> None:
    loc = with_value(LOC, (0, 0, 0), NAN)
    assert detect(loc, [0.75, 0.5, 0.25], top_k=2)[1] == [0.5]
    assert detect(loc, [0.75, 0.5, 0.25], max_detections=2)[1] == [0.5, 0.25]


def test_many_nan_boxes(backend: str) -> None:
    """More than a tile of candidates, and chunks of boxes without a single detection."""
    priors = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    priors = torch.cat([priors, torch.full((300, 2), 0.01)], 1)
    loc = torch.zeros(1, 300, 4)
    loc[0, :200] = NAN
    scores = torch.linspace(0.9, 0.1, 300).tolist()
    boxes, got = detect(loc, scores, priors, nms_threshold=1.0)
    assert got == pytest.approx(scores[200:]) and boxes.isfinite().all()


def test_an_inf_minus_inf_is_a_nan(backend: str) -> None:
    loc = with_value(with_value(LOC, (0, 0, 0), INF), (0, 0, 2), INF)  # x1 = inf - inf
    assert detect(loc, [0.75, 0.5, 0.25])[1] == [0.5, 0.25]


def test_an_unbounded_box_is_a_detection_that_overlaps_nothing(backend: str) -> None:
    loc = with_value(LOC, (0, 0, 2), INF)
    loc[0, 1, 2] = 1000.0  # e^200 is beyond float32
    boxes, scores = detect(loc, [0.75, 0.5, 0.25], nms_threshold=0.0)
    assert scores == [0.75, 0.5, 0.25]
    assert boxes[:2, 0].tolist() == [-INF, -INF] and boxes[:2, 2].tolist() == [INF, INF]
    # Finite by `clip`, they are the same column of the image at different heights.
    boxes, scores = detect(loc, [0.75, 0.5, 0.25], clip=(1.0, 1.0))
    assert boxes[:2, 0].tolist() == [0.0, 0.0] and boxes[:2, 2].tolist() == [1.0, 1.0]
    boxes, _ = detect(loc, [0.75, 0.5, 0.25], max_log_scale=0.0)
    torch.testing.assert_close(boxes[0], torch.tensor([0.05, 0.05, 0.15, 0.15]))


def test_nms_keeps_a_nan_box_and_an_unbounded_box(backend: str) -> None:
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, NAN, 1], [-INF, 0, INF, 1], [0, 0, 1, 0.9]])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.7])
    assert ops.nms(boxes, scores, 0.5).tolist() == [1, 2, 3]
    nan_first = torch.tensor([0.5, 0.9, NAN, 0.7])
    assert ops.nms(boxes, nan_first, 0.5).tolist() == [2, 1, 3]
    unbounded = torch.tensor([0.5, 0.9, 0.8, INF])
    assert ops.nms(boxes, unbounded, 0.5).tolist() == [3, 1, 2]
    assert ops.nms_padded(boxes, nan_first, 0.5).keep.tolist() == [2, 1, 3, 0]


def test_matching_gives_a_nan_box_the_first_prior(backend: str) -> None:
    match = ops.match_priors([with_value(BOXES, (0, 0), NAN)], PRIORS)
    assert match.index[0, 0] == 0 and match.iou.isfinite().all()
    match = ops.match_priors([BOXES], with_value(PRIORS, (1, 0), NAN))
    assert match.iou[0, 1] == 0
