"""The CUDA kernels of multibox_loss, run on the CPU, beyond what CASES cover."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.ops._settings import MultiboxLossSettings
from mdssd.testing import CASES

simt = pytest.importorskip("mdssd._simt", reason="an editable install has it")
CASE = next(case for case in CASES if case.op == "multibox_loss")


def make(
    images: int, priors: int, classes: int, kind: str = "random", ignored: float = 0.0
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return CASE.make(generator, torch.float64, images, priors, classes, kind=kind, ignored=ignored)[
        0
    ]


def launches(images: int) -> tuple[int, int]:
    """Count the launches of a forward and of a backward pass."""
    loc, logits, targets, labels = make(images, 300, 5)
    loc.requires_grad_(), logits.requires_grad_()
    with ops.backend("simt"):
        before = simt.launch_count()
        losses = ops.multibox_loss(loc, logits, targets, labels)
        between = simt.launch_count()
        sum(losses).backward()
        return between - before, simt.launch_count() - between


def test_launches_do_not_depend_on_the_batch() -> None:
    assert launches(1) == launches(5) == (3, 1)


# A row of up to 32 classes has one lane, of up to 128 classes four lanes, of more a warp.
@pytest.mark.parametrize("classes", [3, 40, 130])
@pytest.mark.parametrize("label", [-2, None, 2**40])
def test_a_label_that_is_no_class_shows_as_nan(classes: int, label: int | None) -> None:
    loc, logits, targets, labels = make(2, 70, classes)
    labels[1, 69] = classes if label is None else label
    loc.requires_grad_(), logits.requires_grad_()
    with ops.backend("simt"):
        loc_loss, conf_loss = ops.multibox_loss(loc, logits, targets, labels)
        (loc_loss + conf_loss).backward()
    assert conf_loss.isnan() and not loc_loss.isnan()
    nan = logits.grad.isnan()
    assert nan[1, 69].all() and nan.sum() == classes


# The selection ends after the first digits of the losses, after all of them, or in the index. It
# mines no, some and all background priors.
@pytest.mark.parametrize("kind", ["random", "ties", "nan", "inf"])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 3.0, 1e9, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mines_the_priors_of_the_reference(kind: str, ratio: float, dtype: torch.dtype) -> None:
    loc, logits, targets, labels = make(2, 9001, 4, kind, ignored=0.1)
    arguments = loc.to(dtype), logits.to(dtype), targets, labels, ratio, False
    with ops.backend("reference"):
        want = torch.ops.mdssd.multibox_loss(*arguments)
    with ops.backend("simt"):
        got = torch.ops.mdssd.multibox_loss(*arguments)
    assert torch.equal(got[2], want[2]) and got[3] == want[3]


# A block copies its rows to shared memory in units of 16 bytes: a last block with more than a unit
# for each thread and a few bytes beside them, and blocks that take a second round of rows.
@pytest.mark.parametrize(
    "priors, classes",
    [
        (33, 21),
        pytest.param(2048 * 32 + 32, 33, marks=pytest.mark.nightly("two million logits")),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_copied_in_parts(priors: int, classes: int, dtype: torch.dtype) -> None:
    loc, logits, targets, labels = make(1, priors, classes)
    arguments = loc.to(dtype), logits.to(dtype), targets, labels, 3.0, False
    with ops.backend("reference"):
        want = torch.ops.mdssd.multibox_loss(*arguments)
    with ops.backend("simt"):
        got = torch.ops.mdssd.multibox_loss(*arguments)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=0)


def test_sizes_beyond_a_32_bit_index_are_refused_by_name() -> None:
    for size in ((1, 2**31, 2), (1, 1, 2**31)):
        with pytest.raises(ValueError, match="multibox_loss: more than 2.31 - 1 priors or classes"):
            simt.multibox_loss_workspace(*size, MultiboxLossSettings(3.0, False), 0)
