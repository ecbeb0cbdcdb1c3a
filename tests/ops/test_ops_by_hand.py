"""The operators against values worked by hand, their errors, and the choice of the backend.

These guard the reference itself, which is the oracle of everything else.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from mdssd import ops
from mdssd.ops import _dispatch, _modules

PRIORS = torch.tensor(
    [[0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
)


def assert_values(got: Tensor, want: Any, tolerance: float = 1e-6) -> None:
    want = torch.as_tensor(want, dtype=got.dtype)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# --- boxes -------------------------------------------------------------------------------------


def test_iou_of_known_pairs(backend: str) -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor(
        [
            [0.0, 0.0, 2.0, 2.0],  # itself
            [1.0, 0.0, 3.0, 2.0],  # 2 of 6
            [1.0, 1.0, 3.0, 3.0],  # 1 of 7
            [2.0, 0.0, 4.0, 2.0],  # touches
            [5.0, 5.0, 6.0, 6.0],  # apart
            [1.0, 1.0, 1.0, 1.0],  # no area, inside
            [2.0, 2.0, 0.0, 0.0],  # corners swapped
            [0.0, math.nan, 2.0, 2.0],
        ]
    )
    assert_values(ops.box_iou(a, b), [[1, 1 / 3, 1 / 7, 0, 0, 0, 0, 0]])


def test_gradient_of_iou_of_a_known_pair(backend: str) -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
    b = torch.tensor([[1.0, 0.5, 3.0, 1.5]])
    ops.box_iou(a, b).backward()
    # I = 1, U = 4 + 2 - 1 = 5. If x2 of a moves by d, I grows by d and A by 2d, so
    # dI/U - I (dA - dI) / U^2 = 1/5 - 1/25 = 4/25; the other edges only change A, by 2d: -2/25.
    assert_values(a.grad, [[2 / 25, 2 / 25, 4 / 25, -2 / 25]])


def test_encode_and_decode_a_known_box(backend: str) -> None:
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    box = torch.tensor([[0.5, 0.4, 0.7, 0.8]])  # centre (0.6, 0.6), size (0.2, 0.4)
    offsets = torch.tensor([[0.1 / 0.2 / 0.1, 0.1 / 0.4 / 0.1, 0.0, 0.0]])
    assert_values(ops.encode_boxes(box, prior), offsets, 1e-5)
    assert_values(ops.decode_boxes(offsets, prior), box)
    doubled = torch.tensor([[0.0, 0.0, math.log(2) / 0.2, math.log(2) / 0.2]])
    assert_values(ops.decode_boxes(doubled, prior), [[0.3, 0.1, 0.7, 0.9]])
    assert_values(ops.encode_boxes(torch.tensor([[0.3, 0.1, 0.7, 0.9]]), prior), doubled, 1e-5)


def test_encode_with_other_variances(backend: str) -> None:
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    box = torch.tensor([[0.5, 0.4, 0.7, 0.8]])
    assert_values(ops.encode_boxes(box, prior, (1.0, 1.0)), [[0.5, 0.25, 0.0, 0.0]])


def test_decode_beyond_the_range_of_exp(backend: str) -> None:
    prior = torch.tensor([[0.5, 0.5, 1.0, 1.0]]).expand(3, 4)
    loc = torch.tensor([[0, 0, 1e4, 0], [0, 0, -1e4, 0], [0, 0, math.nan, 0]])
    got = ops.decode_boxes(loc, prior)
    assert got[0, 0] == -math.inf and got[0, 2] == math.inf
    assert got[1, 0] == got[1, 2] == 0.5
    assert got[2, 0].isnan() and got[2, 1] == 0


# --- matching ----------------------------------------------------------------------------------


def test_match_by_threshold(backend: str) -> None:
    gt = torch.tensor([[0.0, 0.0, 0.5, 0.4], [0.5, 0.0, 1.0, 0.5]])
    match = ops.match_priors([gt], PRIORS)
    assert_values(match.index, [[0, 1, -1, -1]])
    assert_values(match.iou, [[0.8, 1.0, 0.0, 0.25]])


def test_threshold_is_inclusive(backend: str) -> None:
    gt = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0]])
    # The second box has IoU 0.5 with priors 0, 2 and 3.
    match = ops.match_priors([gt], PRIORS, 0.5)
    assert_values(match.iou, [[1.0, 0.0, 0.5, 0.5]])
    # Its best prior is the first of the three. It takes it from the first box, as it comes later.
    assert_values(match.index, [[1, -1, 1, 1]])
    assert_values(ops.match_priors([gt], PRIORS, 0.51).index, [[1, -1, -1, -1]])


def test_every_box_gets_its_best_prior(backend: str) -> None:
    gt = torch.tensor([[0.9, 0.9, 0.95, 0.95]])  # IoU 0.0025 with the last prior, 0 with the rest
    assert_values(ops.match_priors([gt], PRIORS).index, [[-1, -1, -1, 0]])


def test_later_box_wins_a_shared_best_prior(backend: str) -> None:
    box = torch.tensor([0.0, 0.0, 0.5, 0.5])
    assert_values(ops.match_priors([torch.stack([box, box, box])], PRIORS).index, [[2, -1, -1, -1]])


def test_equal_ious_go_to_the_lower_index(backend: str) -> None:
    twins = torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(3, 1)
    boxes = torch.tensor([[0.3, 0.3, 0.7, 0.7]]).repeat(2, 1)
    # By the ties, the best box of each prior is box 0, and the best prior of each box is prior 0,
    # which goes to the later box.
    assert_values(ops.match_priors([boxes], twins).index, [[1, 0, 0]])


def test_a_box_without_area_takes_prior_0(backend: str) -> None:
    gt = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    match = ops.match_priors([gt], PRIORS)
    assert_values(match.index, [[0, -1, -1, -1]])
    assert_values(match.iou, [[0.0] * 4])


def test_ragged_batch_counts_from_each_image(backend: str) -> None:
    first = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    third = torch.tensor([[0.5, 0.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0]])
    match = ops.match_priors([first, first[:0], third], PRIORS)
    assert_values(match.index, [[0, -1, -1, -1], [-1] * 4, [-1, 0, 1, -1]])


def test_targets_of_a_known_match(backend: str) -> None:
    gt = torch.tensor([[0.0, 0.0, 0.5, 0.4]])
    targets = ops.encode_targets([gt, gt[:0]], [torch.tensor([7]), torch.tensor([]).long()], PRIORS)
    assert_values(targets.labels, [[7, 0, 0, 0], [0, 0, 0, 0]])
    want = torch.zeros(2, 4, 4)
    want[0, 0] = torch.tensor([0, (0.2 - 0.25) / 0.5 / 0.1, 0, math.log(0.4 / 0.5) / 0.2])
    assert_values(targets.loc, want, 1e-5)


# --- suppression and detections ----------------------------------------------------------------

BOXES = torch.tensor(
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.75], [0.0, 0.0, 1.0, 0.375], [2.0, 2.0, 3.0, 3.0]]
)


def test_nms_keeps_by_score(backend: str) -> None:
    scores = torch.tensor([0.5, 0.9, 0.8, 0.1])
    # Box 1 suppresses 0 (IoU 0.75) but not 2 (IoU 0.5). Box 0 is removed before it suppresses 2.
    assert_values(ops.nms(BOXES, scores, 0.5), [1, 2, 3])
    assert_values(ops.nms(BOXES, scores, 0.4), [1, 3])


def test_nms_ties_keep_the_lower_index(backend: str) -> None:
    assert_values(ops.nms(BOXES, torch.full((4,), 0.5), 0.7), [0, 2, 3])


def test_nms_treats_nan_as_the_highest_score(backend: str) -> None:
    assert_values(ops.nms(BOXES, torch.tensor([0.5, math.nan, 0.8, 0.9]), 0.7), [1, 3, 2])


def test_batched_nms_keeps_categories_apart(backend: str) -> None:
    scores = torch.tensor([0.5, 0.9, 0.8, 0.1])
    assert_values(ops.batched_nms(BOXES, scores, torch.tensor([7, -1, 7, 7]), 0.3), [1, 2, 3])
    assert_values(ops.batched_nms(BOXES, scores, torch.tensor([7, 7, -1, 7]), 0.3), [1, 2, 3])


def logit(*scores: float) -> Tensor:
    """Return a row of logits whose softmax is `scores`, background first."""
    return torch.tensor(scores).log()


def test_detections_of_known_scores(backend: str) -> None:
    logits = torch.stack(
        [
            logit(0.1, 0.6, 0.3),
            logit(0.2, 0.5, 0.3),
            logit(0.985, 0.0075, 0.0075),
            logit(0.05, 0.05, 0.9),
        ]
    )[None]
    loc = torch.zeros(1, 4, 4)
    priors = torch.tensor(
        [[0.5, 0.5, 0.2, 0.2], [0.51, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.51, 0.5, 0.2, 0.2]]
    )
    found = ops.detection_output(loc, logits, priors, max_detections=5)
    # Class 1: prior 0 (0.6) suppresses 1 and 3. Class 2: prior 3 (0.9) suppresses 0 and 1.
    # Prior 2 is below the threshold in both.
    assert_values(found.count, [2])
    assert_values(found.labels, [[2, 1, 0, 0, 0]])
    assert_values(found.scores, [[0.9, 0.6, 0, 0, 0]])
    assert_values(found.boxes[0, :2], [[0.41, 0.4, 0.61, 0.6], [0.4, 0.4, 0.6, 0.6]])
    assert not found.boxes[0, 2:].any()


def test_detections_reach_beyond_the_image(backend: str) -> None:
    found = ops.detection_output(
        torch.zeros(1, 1, 4), logit(0.1, 0.9)[None, None], torch.tensor([[0.0, 1.0, 0.4, 0.4]])
    )
    assert_values(found.boxes[0, 0], [-0.2, 0.8, 0.2, 1.2])


def test_limit_per_class_and_in_all(backend: str) -> None:
    count = 6
    priors = torch.tensor([[0.1 + 0.15 * i, 0.5, 0.1, 0.1] for i in range(count)])
    rows = [logit(0.1, 0.5 + 0.01 * i, 0.4 - 0.01 * i) for i in range(count)]
    arguments = (torch.zeros(1, count, 4), torch.stack(rows)[None], priors)
    found = ops.detection_output(*arguments, top_k=2, max_detections=10)
    assert_values(found.count, [4])
    assert_values(found.scores[0, :4], [0.55, 0.54, 0.4, 0.39])
    found = ops.detection_output(*arguments, max_detections=3)
    assert_values(found.count, [3])
    assert_values(found.scores, [[0.55, 0.54, 0.53]])


def test_equal_scores_go_by_prior_then_class(backend: str) -> None:
    priors = torch.tensor([[0.2, 0.5, 0.1, 0.1], [0.8, 0.5, 0.1, 0.1]])
    logits = torch.zeros(1, 2, 3)
    found = ops.detection_output(torch.zeros(1, 2, 4), logits, priors, max_detections=4)
    assert_values(found.labels, [[1, 2, 1, 2]])
    assert_values(found.boxes[0, :, 0], [0.15, 0.15, 0.75, 0.75])


# --- norm and loss -----------------------------------------------------------------------------


def test_l2norm_of_a_known_pixel(backend: str) -> None:
    x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    assert_values(ops.l2norm(x, torch.tensor([10.0, 20.0])).flatten(), [6.0, 16.0])
    zero = torch.zeros(1, 2, 1, 1)
    assert_values(ops.l2norm(zero, torch.tensor([10.0, 20.0])).flatten(), [0.0, 0.0])


def test_l2norm_add_relu_of_known_pixels(backend: str) -> None:
    a = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    b = torch.tensor([-1.0, 0.0]).reshape(1, 2, 1, 1)
    got = ops.l2norm_add_relu(a, b, torch.tensor([1.0, 1.0]), torch.tensor([2.0, 5.0]))
    assert_values(got.flatten(), [0.0, 0.8])  # 0.6 - 2 and 0.8 + 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept(backend: str, layout: torch.memory_format) -> None:
    a = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    b = torch.randn(2, 3, 4, 5)
    scale = torch.ones(3)
    assert ops.l2norm(a, scale).is_contiguous(memory_format=layout)
    assert ops.l2norm_add_relu(a, b, scale, scale).is_contiguous(memory_format=layout)


def test_loss_of_a_known_image(backend: str) -> None:
    # One positive (class 1), four background priors with p(background) 0.9, 0.2, 0.6, 0.5.
    logits = torch.stack(
        [
            logit(0.5, 0.25, 0.25),
            logit(0.9, 0.05, 0.05),
            logit(0.2, 0.4, 0.4),
            logit(0.6, 0.2, 0.2),
            logit(0.5, 0.3, 0.2),
        ]
    )[None]
    labels = torch.tensor([[1, 0, 0, 0, 0]])
    loc, targets = torch.zeros(1, 5, 4), torch.zeros(1, 5, 4)
    loc[0, 0] = torch.tensor([0.5, -2.0, 0.0, 1.0])
    loc[0, 1] = 100.0  # background does not count in the localisation loss
    loc_loss, conf_loss = ops.multibox_loss(loc, logits, targets, labels, neg_pos_ratio=2.0)
    assert_values(loc_loss, 0.5 * 0.25 + 1.5 + 0.5)
    assert_values(conf_loss, -math.log(0.25) - math.log(0.2) - math.log(0.5), 1e-5)
    # A ratio of 2.9 mines two priors, a ratio of 3 mines three.
    assert_values(ops.multibox_loss(loc, logits, targets, labels, 2.9)[1], conf_loss.item())
    third = ops.multibox_loss(loc, logits, targets, labels, 3.0)[1] - conf_loss
    assert_values(third, -math.log(0.6), 1e-5)


def test_loss_is_over_the_positives_of_the_batch(backend: str) -> None:
    logits = torch.zeros(3, 4, 2)
    labels = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    loc, targets = torch.ones(3, 4, 4), torch.zeros(3, 4, 4)
    loc_loss, conf_loss = ops.multibox_loss(loc, logits, targets, labels)
    assert_values(loc_loss, 3 * 4 * 0.5 / 3)
    # 3 positives; 2 + 3 negatives, which are all; none in the image without positives.
    assert_values(conf_loss, 8 * math.log(2) / 3)


def test_no_positive_gives_zero_loss_and_gradient(backend: str) -> None:
    loc = torch.randn(2, 3, 4, requires_grad=True)
    logits = torch.randn(2, 3, 5, requires_grad=True)
    losses = ops.multibox_loss(loc, logits, torch.zeros(2, 3, 4), torch.zeros(2, 3).long())
    sum(losses).backward()
    assert losses[0] == losses[1] == 0
    assert not loc.grad.any() and not logits.grad.any()


def test_priors_with_the_label_minus_one_do_not_exist(backend: str) -> None:
    torch.manual_seed(0)
    loc, logits, targets = torch.randn(2, 40, 4), torch.randn(2, 40, 5), torch.randn(2, 40, 4)
    labels = torch.zeros(2, 40, dtype=torch.int64)
    labels[:, :3], labels[:, 5::2] = 2, -1
    kept = labels[0] != -1
    alone = [tensor[:, kept] for tensor in (loc, logits, targets, labels)]
    for tensor in (loc, logits, targets):  # whatever they hold, also what is most likely mined
        tensor[:, ~kept] = math.nan
    leaves = [loc, logits, alone[0], alone[1]]
    for tensor in leaves:
        tensor.requires_grad_()
    for ratio in (1.0, 3.0, 100.0):
        got = ops.multibox_loss(loc, logits, targets, labels, ratio)
        want = ops.multibox_loss(*alone, ratio)
        assert_values(torch.stack(got), torch.stack(want))
        mine, theirs = torch.autograd.grad(sum(got), leaves[:2]), leaves[2:]
        for ours, other in zip(mine, torch.autograd.grad(sum(want), theirs), strict=True):
            assert_values(ours[:, kept], other)
            assert not ours[:, ~kept].any()


def test_mining_does_not_write_into_the_input(backend: str) -> None:
    logits = torch.randn(2, 30, 5)
    before = logits.clone()
    labels = torch.zeros(2, 30).long()
    labels[:, :3] = 1
    ops.multibox_loss(torch.randn(2, 30, 4), logits, torch.randn(2, 30, 4), labels)
    assert_values(logits, before, 0)


def test_one_loss_can_be_used_alone(backend: str) -> None:
    loc = torch.randn(1, 3, 4, requires_grad=True)
    logits = torch.randn(1, 3, 2, requires_grad=True)
    labels = torch.tensor([[1, 0, 0]])
    ops.multibox_loss(loc, logits, torch.zeros(1, 3, 4), labels)[0].backward()
    assert loc.grad.any() and not logits.grad.any()


# --- errors ------------------------------------------------------------------------------------

F4 = torch.zeros(3, 4)
META = torch.zeros(3, 4, device="meta")
MAPS = torch.zeros(2, 3, 4, 4)

WRONG = [
    ("box_iou", ([1], F4), TypeError, "box_iou: a_xyxy: expected a Tensor, got list"),
    (
        "box_iou",
        (torch.zeros(3, 5), F4),
        ValueError,
        r"a_xyxy: expected shape \[N, 4\]",
    ),
    ("box_iou", (F4, torch.zeros(4)), ValueError, r"b_xyxy: expected shape \[M, 4\], got \[4\]"),
    ("box_iou", (F4.long(), F4), TypeError, "a_xyxy: expected dtype float32"),
    ("box_iou", (F4, F4.double()), TypeError, "b_xyxy: expected dtype torch.float32"),
    ("box_iou", (F4, META), ValueError, "b_xyxy: expected device cpu"),
    ("encode_boxes", (F4, F4[:2]), ValueError, r"priors_cxcywh: expected shape \[3, 4\]"),
    ("encode_boxes", (F4, F4, (0.1,)), ValueError, "variances: expected a pair"),
    ("encode_boxes", (F4, F4, (0.1, 0.0)), ValueError, "variances: expected two finite numbers"),
    ("decode_boxes", (F4[0], F4), ValueError, r"loc: expected shape \[..., N, 4\]"),
    ("match_priors", (F4, F4), TypeError, "gt_xyxy: expected a list of Tensors"),
    ("match_priors", ([F4, F4.half()], F4), TypeError, r"gt_xyxy\[1\]: expected dtype"),
    ("match_priors", ([META], F4), ValueError, r"gt_xyxy\[0\]: expected device cpu"),
    ("match_priors", ([F4], F4, 1.5), ValueError, "iou_threshold: expected 0.0 to 1.0, got 1.5"),
    ("match_priors", ([F4], F4, "x"), TypeError, "iou_threshold: expected a number, got str"),
    ("match_priors", ([F4], F4, math.nan), ValueError, "iou_threshold: expected 0.0 to 1.0"),
    ("encode_targets", ([F4], [], F4), ValueError, "gt_labels: expected 1 tensors"),
    (
        "encode_targets",
        ([F4], [torch.zeros(2).long()], F4),
        ValueError,
        r"gt_labels\[0\]: expected",
    ),
    (
        "encode_targets",
        ([F4], [torch.zeros(3)], F4),
        TypeError,
        r"gt_labels\[0\]: expected dtype int",
    ),
    ("nms", (F4, torch.zeros(2), 0.5), ValueError, r"nms: scores: expected shape \[3\], got \[2\]"),
    ("nms", (F4, torch.zeros(3), -0.1), ValueError, "iou_threshold"),
    (
        "batched_nms",
        (F4, torch.zeros(3), torch.zeros(3), 0.5),
        TypeError,
        "idxs: expected dtype int64",
    ),
    (
        "detection_output",
        (torch.zeros(1, 3, 4), torch.zeros(1, 2, 5), F4),
        ValueError,
        r"logits: expected shape \[1, 3, C\], got \[1, 2, 5\]",
    ),
    (
        "detection_output",
        (torch.zeros(1, 3, 4), torch.zeros(1, 3, 1), F4),
        ValueError,
        "logits: expected 2 classes or more, got 1",
    ),
    ("l2norm", (MAPS, torch.zeros(4)), ValueError, r"scale: expected shape \[3\], got \[4\]"),
    ("l2norm", (MAPS[0], torch.zeros(3)), ValueError, r"x: expected shape \[B, C, H, W\]"),
    ("l2norm", (MAPS, torch.zeros(3), 0.0), ValueError, "eps: expected"),
    (
        "l2norm_add_relu",
        (MAPS, MAPS[:1], torch.zeros(3), torch.zeros(3)),
        ValueError,
        r"b: expected shape \[2, 3, 4, 4\], got \[1, 3, 4, 4\]",
    ),
    (
        "multibox_loss",
        (F4[None], torch.zeros(1, 3, 2), F4[None], torch.zeros(1, 3)),
        TypeError,
        "labels: expected dtype int64",
    ),
    (
        "multibox_loss",
        (F4[None], torch.zeros(1, 3, 2), F4[None], torch.zeros(1, 3).long(), -1.0),
        ValueError,
        "neg_pos_ratio: expected 0.0 to inf",
    ),
]


@pytest.mark.parametrize(("op", "args", "error", "message"), WRONG)
def test_wrong_input_is_named(op: str, args: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        getattr(ops, op)(*args)
    assert str(raised.value).startswith(f"{op}: ")


@pytest.mark.parametrize("name", ["top_k", "max_detections"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_wrong_counts_are_named(name: str, value: Any, error: Any) -> None:
    with pytest.raises(error, match=f"detection_output: {name}: expected"):
        ops.detection_output(torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), F4, **{name: value})


@pytest.mark.parametrize("label", [-2, 2])
def test_label_out_of_range(backend: str, label: int) -> None:
    args = (F4[None], torch.zeros(1, 3, 2), F4[None], torch.tensor([[0, label, 0]]))
    if backend in ("reference", "cpp"):
        with pytest.raises(ValueError, match=rf"labels\[0, 1\]: expected -1 to 1, got {label}"):
            ops.multibox_loss(*args)
    else:  # a kernel cannot raise
        assert ops.multibox_loss(*args)[1].isnan()


# --- choice of the backend ---------------------------------------------------------------------


def test_native_module_is_there() -> None:
    assert _modules.native is not None, _modules.native_error
    assert all("cpp" in row and "reference" in row for row in ops.backends().values())


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="cpp, cuda, triton, simt; got 'gpu'"):
        with ops.backend("gpu"):
            pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU")
def test_an_absent_backend_lists_the_available_ones() -> None:
    with pytest.raises(RuntimeError, match="'cuda' is not available here; available: cpp, refer"):
        with ops.backend("cuda"):
            pass


def test_backends_nest_and_return() -> None:
    with ops.backend("reference"):
        with ops.backend("cpp"):
            assert _dispatch._forced == "cpp"
        assert _dispatch._forced == "reference"
    assert _dispatch._forced is None
    with pytest.raises(KeyError):
        with ops.backend("cpp"):
            raise KeyError
    assert _dispatch._forced is None


def _calls_of_l2norm(found: list[str], x: Tensor) -> Tensor:
    """Call l2norm; list in `found` the torch ops that reach the dispatcher."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found.append(func.name())
            return func(*args, **(kwargs or {}))

    with Recorder():
        return ops.l2norm(x, torch.ones(2))


def test_an_ordinary_call_bypasses_the_dispatcher() -> None:
    x = torch.randn(1, 2, 3, 3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert not _dispatch._plain((x, 1e-10))
    assert _dispatch._plain((x, None, Parameter(x, requires_grad=False), 1e-10))
    with torch.no_grad():
        assert _dispatch._plain((x.clone().requires_grad_(),))
    with torch.inference_mode():
        assert _dispatch._plain((x, torch.ones(2)))
    with torch.autocast("cpu", torch.bfloat16):
        assert _dispatch._plain((x,))


class _Labelled(Tensor):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.requires_grad_(),
        lambda x: x.as_subclass(_Labelled),
        lambda x: x.to("meta"),
        lambda x: x.to_sparse(),
        lambda x: torch._neg_view(x),
        lambda x: torch._efficientzerotensor(x.shape),
        lambda x: torch._to_functional_tensor(x),
    ],
    ids=["gradient", "subclass", "meta", "sparse", "negative", "zero", "functional"],
)
def test_other_tensors_go_through_the_dispatcher(make: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(1, 2, 3, 3)
    assert _dispatch._plain((x, x)) and not _dispatch._plain((x, make(x.clone())))


def test_modes_and_tracers_find_the_op() -> None:
    x = torch.randn(1, 2, 3, 3)
    want = ops.l2norm(x, torch.ones(2))
    found: list[str] = []
    assert torch.equal(_calls_of_l2norm(found, x), want)
    assert found.count("mdssd::l2norm") == 1
    graph = make_fx(lambda x: ops.l2norm(x, torch.ones(2)))(x)
    assert torch.ops.mdssd.l2norm.default in [node.target for node in graph.graph.nodes]
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(ops.l2norm(x, torch.ones(2))) is not Tensor
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.l2norm(x, torch.ones(2))
    assert "mdssd::l2norm" in [event.name for event in profile.events()]
    assert torch.equal(ops.l2norm(torch._neg_view(x), torch.ones(2)), -want)


def test_forced_backend_holds_on_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    table = _dispatch._implementations["l2norm_backward"]
    callers = []
    reference = table["reference"]

    def spy(*args: Any) -> Any:
        callers.append(threading.current_thread())
        return reference(*args)

    monkeypatch.setitem(table, "reference", spy)
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    with ops.backend("reference"):
        y = ops.l2norm(x, torch.ones(2)).sum()
        thread = threading.Thread(target=y.backward)
        thread.start()
        thread.join()
    assert callers == [thread]


def test_cpp_in_a_forked_child() -> None:
    boxes, priors = torch.rand(50, 4), torch.rand(20000, 4)
    want = ops.match_priors([boxes] * 4, priors)  # starts the threads of the pool
    child = os.fork()
    if child == 0:
        got = ops.match_priors([boxes] * 4, priors)
        # Compare with numpy: torch.equal would wait for OpenMP threads, which a fork does not copy.
        os._exit(0 if np.array_equal(got.index.numpy(), want.index.numpy()) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_cpp_from_several_threads_at_once() -> None:
    boxes, priors = torch.rand(50, 4), torch.rand(20000, 4)
    want = ops.match_priors([boxes] * 4, priors)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(ops.match_priors([boxes] * 4, priors)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(torch.equal(match.index, want.index) for match in results)


def test_autocast_keeps_float32_results() -> None:
    x, scale = torch.randn(1, 4, 3, 3), torch.ones(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.l2norm(x, scale).dtype == torch.float32
        assert ops.l2norm(x.bfloat16(), scale).dtype == torch.bfloat16


# --- resize ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [(300, 300), (512, 512), (960, 400), (37, 1001)])
def test_resize_is_opencvs_to_within_a_level(target: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    got = ops.resize(torch.from_numpy(image), target)
    want = cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)
    assert got.shape == want.shape
    assert np.abs(got.numpy().astype(int) - want).max() <= 1


def test_resize_by_hand() -> None:
    row = torch.tensor([0, 100], dtype=torch.uint8)[None, :, None]
    assert ops.resize(row, (1, 4))[0, :, 0].tolist() == [0, 25, 75, 100]
    assert ops.resize(row, (2, 1))[:, 0, 0].tolist() == [50, 50]
    step = torch.tensor([0, 1], dtype=torch.uint8)[None, :, None]
    assert ops.resize(step, (1, 1)).item() == 1  # a half rounds up


@pytest.mark.parametrize(
    ("shape", "size", "error", "message"),
    [
        ((4, 4), (2, 2), ValueError, r"images: expected shape \[..., H, W, C\], got \[4, 4\]"),
        ((0, 4, 3), (2, 2), ValueError, r"images: expected H and W above 0, got \[0, 4, 3\]"),
        ((4, 4, 3), (2, 0), ValueError, r"size: expected sides from 1 to 1048576, got \(2, 0\)"),
        ((4, 4, 3), 2, ValueError, r"size: expected \(height, width\), got 2"),
        ((4, 4, 3), (2.0, 2), TypeError, r"size: expected two ints, got \(2.0, 2\)"),
    ],
)
def test_resize_names_what_is_wrong(shape: Any, size: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match="resize: " + message):
        ops.resize(torch.zeros(shape, dtype=torch.uint8), size)


def test_resize_takes_only_bytes() -> None:
    with pytest.raises(TypeError, match="resize: images: expected dtype uint8; got torch.float32"):
        ops.resize(torch.zeros(4, 4, 3), (2, 2))
