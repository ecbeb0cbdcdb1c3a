"""Every keyword of every operator with values that no native type holds, or of the wrong kind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from mdssd import ops

BOXES = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.6, 0.2, 0.9, 0.5]])
SCORES, LABELS = torch.tensor([0.9, 0.8]), torch.tensor([1, 2])
LOC, LOGITS, MAP = torch.zeros(1, 2, 4), torch.zeros(1, 2, 3), torch.ones(1, 2, 3, 3)
IMAGE = torch.zeros(2, 2, 3, dtype=torch.uint8)

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "encode_boxes": (BOXES, BOXES),
    "decode_boxes": (BOXES, BOXES),
    "match_priors": ([BOXES], BOXES),
    "encode_targets": ([BOXES], [LABELS], BOXES),
    "nms": (BOXES, SCORES),
    "batched_nms": (BOXES, SCORES, LABELS),
    "nms_padded": (BOXES, SCORES),
    "soft_nms": (BOXES, SCORES),
    "soft_nms_padded": (BOXES, SCORES),
    "merge_boxes": (BOXES, SCORES, LABELS),
    "merge_boxes_padded": (BOXES, SCORES, LABELS),
    "detection_output": (LOC, LOGITS, BOXES),
    "multibox_loss": (LOC, LOGITS, LOC, LABELS[None]),
    "sigmoid_focal_loss": (LOGITS, LABELS[None]),
    "box_loss": (LOC, LOC, LABELS[None], BOXES),
    "l2norm": (MAP, SCORES),
    "l2norm_add_relu": (MAP, MAP, SCORES, SCORES),
    "resize": (IMAGE,),
    "just_above": (),
    "just_below": (),
}
RULES = ["low_threshold", "top_k", "nwd_constant", "ignore_threshold"]
NUMBERS: dict[str, list[str]] = {
    "match_priors": ["iou_threshold", "iou_eps", *RULES],
    "encode_targets": ["iou_threshold", "iou_eps", *RULES],
    "nms": ["iou_threshold", "iou_eps"],
    "batched_nms": ["iou_threshold", "iou_eps"],
    "nms_padded": ["iou_threshold", "iou_eps"],
    "soft_nms": ["iou_threshold", "sigma", "score_threshold", "max_detections"],
    "soft_nms_padded": ["iou_threshold", "sigma", "score_threshold", "max_detections"],
    "merge_boxes": ["threshold", "models"],
    "merge_boxes_padded": ["threshold", "models"],
    "detection_output": ["score_threshold", "nms_threshold", "top_k", "max_detections"]
    + ["iou_eps", "max_log_scale", "top_k_per_level", "soft_sigma"],
    "multibox_loss": ["neg_pos_ratio"],
    "sigmoid_focal_loss": ["alpha", "gamma"],
    "box_loss": ["nwd_constant", "eps"],
    "l2norm": ["eps"],
    "l2norm_add_relu": ["eps"],
    "just_above": ["threshold"],
    "just_below": ["threshold"],
}
PAIRS = {
    "encode_boxes": ["variances"],
    "decode_boxes": ["variances"],
    "encode_targets": ["variances"],
    "box_loss": ["variances"],
    "detection_output": ["variances", "clip"],
    "resize": ["size"],
}
CHOICES = {
    "match_priors": ["priors_form", "force", "metric"],
    "encode_targets": ["force", "metric"],
    "multibox_loss": ["reduction"],
    "sigmoid_focal_loss": ["reduction"],
    "box_loss": ["kind", "reduction"],
    "detection_output": ["softmax", "per_class", "keep_empty", "metric", "activation", "levels"]
    + ["background", "class_agnostic", "suppression"],
    "nms": ["metric"],
    "batched_nms": ["metric"],
    "nms_padded": ["metric"],
    "soft_nms": ["method"],
    "soft_nms_padded": ["method"],
    "merge_boxes": ["method", "metric", "per_class"],
    "merge_boxes_padded": ["method", "metric", "per_class"],
}
HUGE = (2**63, 2**64, 10**400, -(10**400), 10**5000)
ODD = (-1, math.nan, math.inf, -math.inf, 1e300, True, "x", None, [], (1,), np.float32(0.5))
VALUES = (*HUGE, *ODD, np.float64(0.5), np.int64(1), np.ones(2), torch.ones(2, 2), object())
# What these settings may be, besides the numbers in their range.
GOOD = {
    ("detection_output", "max_log_scale"): (None, math.inf, -math.inf, -1, 1e300, 2**63, 2**64),
    ("detection_output", "clip"): (None,),
    ("detection_output", "top_k"): (),
    ("detection_output", "top_k_per_level"): (),
    ("multibox_loss", "neg_pos_ratio"): (math.inf, 1e300, 2**63, 2**64),
    ("box_loss", "nwd_constant"): (1e300, 2**63, 2**64),
    ("sigmoid_focal_loss", "alpha"): (None,),
}


def call(op: str, **settings: Any) -> None:
    if op.endswith("nms") or op == "nms_padded":
        settings = {"iou_threshold": 0.5} | settings
    if op.startswith("merge_boxes"):
        settings = {"method": "wbf", "threshold": 0.5} | settings
    if op == "resize":
        settings = {"size": (1, 1)} | settings
    getattr(ops, op)(*ARGUMENTS[op], **settings)


def check(op: str, name: str, value: Any) -> None:
    """The call succeeds, or raises an error that names the setting, in one short line."""
    try:
        call(op, **{name: value})
    except (TypeError, ValueError) as error:
        text = str(error)
        assert type(error) in (TypeError, ValueError)
        assert text.startswith(f"{op}: {name}: expected ") and "got" in text, text
        assert "\n" not in text and len(text) < 250, text


@pytest.mark.parametrize("op", ARGUMENTS)
def test_hostile_settings_are_named(op: str) -> None:
    for name in NUMBERS.get(op, []) + CHOICES.get(op, []):
        for value in VALUES:
            check(op, name, value)
    for name in PAIRS.get(op, []):
        for value in VALUES:
            for pair in ((1, value), (value, 1), [value, value], (value, value, value), value):
                check(op, name, pair)


@pytest.mark.parametrize(("op", "names"), NUMBERS.items())
def test_huge_integers_are_refused(op: str, names: list[str]) -> None:
    for name in names:
        for value in HUGE:
            if any(value is good or value == good for good in GOOD.get((op, name), ())):
                call(op, **{name: value})
            elif (op, name) in (("just_above", "threshold"), ("just_below", "threshold")):
                if abs(value) > 1e38:
                    with pytest.raises(ValueError, match=f"{op}: {name}: expected"):
                        call(op, **{name: value})
            else:
                with pytest.raises(ValueError, match=f"{op}: {name}: expected"):
                    call(op, **{name: value})


@pytest.mark.parametrize("op", ["encode_boxes", "decode_boxes", "encode_targets"])
@pytest.mark.parametrize("value", [10**400, math.inf, math.nan, 0, -1.0, True, "x", None])
def test_variances_are_finite(op: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{op}: variances: expected two finite numbers above 0"):
        call(op, variances=(value, 1))


def test_the_largest_that_are_taken() -> None:
    call("detection_output", top_k=2**63 - 1)
    with pytest.raises(ValueError, match="expected 1 to 2147483647, got 2147483648"):
        call("detection_output", max_detections=2**31)
    with pytest.raises(ValueError, match="top_k: expected 1 to .*, got an integer of 1329 bits"):
        call("detection_output", top_k=10**400)
    with pytest.raises(ValueError, match=r"sides from 1 to 1048576, got \(1, 1048577\)"):
        call("resize", size=(1, (1 << 20) + 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, "float32", None])
def test_the_dtype_of_a_threshold(dtype: Any) -> None:
    with pytest.raises(ValueError, match="just_above: dtype: expected torch.float32 or torch.floa"):
        ops.just_above(0.5, dtype)
    with pytest.raises(ValueError, match="just_below: threshold: expected"):
        ops.just_below(1e300)
