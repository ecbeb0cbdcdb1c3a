"""Inputs of CASES on which a ranking does not depend on the last bits of computed scores.

Every backend has its own exponential and its own order of a sum, so the scores that
`detection_output` computes, and the losses by which `multibox_loss` mines negatives, differ by a
unit or two in the last place. Equal rows of logits have equal scores on any of them. Where two
others are as close as that, backends may rank them differently, so no case may contain such a pair
in a place that matters: tests compare the results of backends exactly.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.testing import APART, CASES, Case, detection_inputs

ULPS = 4  # by which the scores of a backend may differ from exact ones
DETECTION, LOSS = (
    next(case for case in CASES if case.op == op) for op in ("detection_output", "multibox_loss")
)


def inputs_of(case: Case) -> list[Any]:
    """Return the inputs on which an operator computes scores; not those that are scores."""
    inputs = []
    for name, size in case.sizes.items():
        slow = [pytest.mark.nightly("7 million logits")] if name == "mdssd512" else []
        for dtype in size.dtypes if size.arguments.get("softmax", True) else ():
            title = f"{name}-{str(dtype).removeprefix('torch.')}"
            inputs.append(pytest.param(name, dtype, id=title, marks=slow))
    return inputs


def moved(logits: Tensor, scores: Tensor, seed: int) -> Tensor:
    """Add or subtract ULPS units in the last place, the same for scores of equal rows of logits."""
    generator = torch.Generator().manual_seed(seed)
    odd = 2 * torch.randint(2**61, (logits.shape[-1],), generator=generator) + 1
    row = (logits.double().view(torch.int64) * odd).sum(-1, keepdim=True)
    up = (row * odd) >> 40 & 1
    bits = torch.int64 if scores.dtype == torch.float64 else torch.int32
    result = (scores.view(bits) + ULPS * (2 * up - 1).to(bits)).view(scores.dtype)
    return torch.where(scores > 1e-37, result.clamp(max=1), scores)


@pytest.mark.parametrize("size, dtype", inputs_of(DETECTION))
def test_detections_do_not_depend_on_the_last_bits_of_scores(size: str, dtype: torch.dtype) -> None:
    (loc, logits, priors), options = DETECTION.inputs(size, dtype)
    wide = logits.to(torch.promote_types(dtype, torch.float32))
    scores = wide.sigmoid() if options.pop("activation", "") == "sigmoid" else wide.softmax(-1)
    want = ops.detection_output(loc, scores, priors, activation="none", **options)
    for seed in range(3):
        given = moved(logits, scores, seed)
        got = ops.detection_output(loc, given, priors, activation="none", **options)
        for name in ("labels", "count", "boxes"):
            torch.testing.assert_close(
                getattr(got, name), getattr(want, name), rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("size, dtype", inputs_of(LOSS))
def test_mined_negatives_do_not_depend_on_the_last_bits_of_losses(
    size: str, dtype: torch.dtype
) -> None:
    (_, logits, _, labels), _ = LOSS.inputs(size, dtype)
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    for rows, label in zip(logits.double(), labels, strict=True):
        background, wanted = rows[label == 0], 3 * int((label > 0).sum())
        if not 0 < wanted < len(background):
            continue
        loss, order = (-background.log_softmax(-1)[:, 0]).sort(descending=True, stable=True)
        last, next_one = background[order[wanted - 1]], background[order[wanted]]
        largest = torch.cat([last, next_one, loss[wanted : wanted + 1]]).abs().max()
        close = loss[wanted - 1] - loss[wanted] < 2 * ULPS * unit * largest
        assert torch.equal(last, next_one) or not close


@pytest.mark.parametrize("classes", [2, 3, 34])
def test_peaked_scores_are_equal_or_apart(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    (_, logits, _), _ = detection_inputs(generator, torch.float32, 2, 801, classes, "peaked")
    scores = logits.double().softmax(-1)
    assert (scores[..., 1:] * classes - 1).abs().max() < APART * 200 * classes
    for image in scores[..., 1:].flatten(1):
        step = image.sort().values.diff() / image.mean()
        assert ((step < 1e-12) | (step > APART)).all()
        assert image.unique().numel() > 200 * (classes - 1)
