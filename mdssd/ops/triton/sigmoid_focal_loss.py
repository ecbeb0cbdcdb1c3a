"""sigmoid_focal_loss and its gradient in Triton.

The forward pass has two launches: focal_kernel reads the logits once and stores the sums of its
programs, and finish_groups_kernel adds them in a fixed order. The backward pass is one launch. Both
go through the logits as through one long row, so that no lane is left over, whatever the number of
classes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mdssd.ops._results import new_mean_loss
from mdssd.ops._settings import SigmoidFocalLossSettings
from mdssd.ops._tensors import group_sizes
from mdssd.ops.triton.common import OPTIONS, blocks, finish_groups, narrow, programs_per_group

TILE = 2048  # logits of a program at a time: 16 of each of its 128 threads
TILES = 4  # least number of tiles of a program, which leaves fewer sums
MOST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def logistic(z):
    """Return the probability of what is true, 1 minus it, and minus the logarithms of both.

    With e = exp(-|z|) and w = e / (2 + e), log(1 + e) is 2 atanh(w): a polynomial, which is exact
    however small e is (csrc/loss_math.h).
    """
    negative = z < 0
    size = tl.where(negative, -z, z)
    e = tl.exp(-size)
    one, two = 1.0 + e, 2.0 + e
    inverse = 1.0 / (one * two)
    w = e * one * inverse
    square = w * w
    p = 0.1408732831 * square + 0.1398070902
    p = p * square + 0.2001242638
    p = p * square + 0.3333315849
    log_sum = 2.0 * (w + w * (p * square))
    likely = two * inverse
    unlikely = e * likely
    right, wrong = tl.where(negative, unlikely, likely), tl.where(negative, likely, unlikely)
    loss_right = tl.where(negative, size, 0.0) + log_sum
    loss_wrong = tl.where(negative, 0.0, size) + log_sum
    return right, wrong, loss_right, loss_wrong


@triton.jit
def modulation(wrong, minus_log_wrong, gamma, POWER: tl.constexpr):
    """Return wrong^gamma, where POWER is gamma if it is 0, 1 or 2, else -1."""
    if POWER == 0:
        factor = tl.full(wrong.shape, 1.0, tl.float32)
    elif POWER == 1:
        factor = wrong
    elif POWER == 2:
        factor = wrong * wrong
    else:
        factor = tl.exp(-gamma * minus_log_wrong)
    return factor


@triton.jit
def load_entries(logits, labels, begin, place, group_numbers, classes, TILE: tl.constexpr):
    """Load a tile of a group's logits, with the label and the column of each.

    `begin` is the group's first logit and a multiple of `classes`; the tile starts `place` logits
    later. Dividing the tile's start and the places within it apart takes numbers of 32 bits.
    """
    local = tl.arange(0, TILE)
    inside = place + local < group_numbers
    x = tl.load(logits + begin + place + local, mask=inside, other=0).to(tl.float32)
    first_row = place // classes
    column = (place - first_row * classes).to(tl.int32) + local
    row = column // classes
    label = tl.load(labels + begin // classes + first_row + row, mask=inside, other=-1)
    return x, label, column - row * classes, inside


@triton.jit
def focal_kernel(
    logits, labels, sums, counts, group_numbers, classes, per_group, positive_weight,
    negative_weight, gamma,
    TILE: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """Store the sum of a program's tiles, which are in one group, and its number of positives.

    A label that is neither -1, nor 0, nor a class makes its row NaN. Source: RetinaNet, equation 5.
    """
    program = tl.program_id(0)
    begin = (program // per_group).to(tl.int64) * group_numbers
    step = tl.cast(per_group, tl.int64) * TILE
    loss = tl.zeros((TILE,), tl.float32)
    positives = tl.zeros((TILE,), tl.int32)
    first = (program % per_group).to(tl.int64) * TILE
    for place in range(first, group_numbers, step):
        x, label, column, inside = load_entries(
            logits, labels, begin, place, group_numbers, classes, TILE
        )
        own = label - 1 == column
        right, wrong, loss_right, loss_wrong = logistic(tl.where(own, x, -x))
        term = modulation(wrong, loss_wrong, gamma, POWER) * loss_right
        term *= tl.where(own, positive_weight, negative_weight)
        term = tl.where((label >= -1) & (label <= classes), term, float("nan"))
        loss += tl.where(label == -1, 0.0, term)
        positives += own.to(tl.int32)
    tl.store(sums + program, tl.sum(loss, 0))
    tl.store(counts + program, tl.sum(positives.to(tl.int64), 0))


@triton.jit
def sigmoid_focal_loss_backward_kernel(
    grad_loss, logits, labels, normaliser, grad_logits, group_numbers, classes, per_group,
    positive_weight, negative_weight, gamma,
    TILE: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a tile of logits, all of one group."""
    group = tl.program_id(0) // per_group
    begin = group.to(tl.int64) * group_numbers
    place = (tl.program_id(0) % per_group).to(tl.int64) * TILE
    x, label, column, inside = load_entries(
        logits, labels, begin, place, group_numbers, classes, TILE
    )
    divisor = tl.load(normaliser + group).to(tl.float32)
    scale = tl.div_rn(tl.load(grad_loss + group).to(tl.float32), divisor)
    own = label - 1 == column
    right, wrong, loss_right, loss_wrong = logistic(tl.where(own, x, -x))
    bounded = tl.where(loss_right > MOST, MOST, loss_right)  # so that 0 times it is 0
    slope = modulation(wrong, loss_wrong, gamma, POWER) * (gamma * (right * bounded) + wrong)
    slope *= scale * tl.where(own, -positive_weight, negative_weight)
    slope = tl.where((label >= -1) & (label <= classes), slope, float("nan"))
    slope = tl.where(label == -1, 0.0, slope)
    value = narrow(slope, grad_logits.dtype.element_ty)
    tl.store(grad_logits + begin + place + tl.arange(0, TILE), value, mask=inside)


def _power(gamma: float) -> int:
    return int(gamma) if gamma in (0.0, 1.0, 2.0) else -1


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, settings: SigmoidFocalLossSettings
) -> tuple[Tensor, Tensor]:
    """Run `mdssd.ops.sigmoid_focal_loss`; also return what the sums are divided by."""
    logits, labels = logits.contiguous(), labels.contiguous()
    loss, normaliser = new_mean_loss(logits, labels, settings.per_image)
    groups, group_rows = group_sizes(labels, settings.per_image)
    if not groups:
        return loss, normaliser
    numbers, classes = group_rows * logits.shape[2], logits.shape[2]
    per_group = programs_per_group(groups, blocks(numbers, TILES * TILE))
    sums = logits.new_empty(groups * per_group, dtype=torch.float32)
    counts = logits.new_empty(groups * per_group, dtype=torch.int64)
    focal_kernel[(groups * per_group,)](
        logits, labels, sums, counts, numbers, classes, per_group, settings.positive_weight,
        settings.negative_weight, settings.gamma,
        TILE=TILE, POWER=_power(settings.gamma), **OPTIONS,
    )  # fmt: skip
    finish_groups(sums, counts, groups, per_group, settings.normalise, loss, normaliser)
    return loss, normaliser


def sigmoid_focal_loss_backward(
    grad_loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    normaliser: Tensor,
    settings: SigmoidFocalLossSettings,
) -> Tensor:
    """Return the gradient of `sigmoid_focal_loss` with respect to `logits`."""
    logits, labels, grad_loss = logits.contiguous(), labels.contiguous(), grad_loss.contiguous()
    grad = torch.empty_like(logits)
    groups, group_rows = group_sizes(labels, settings.per_image)
    numbers, classes = group_rows * logits.shape[2], logits.shape[2]
    per_group = blocks(numbers, TILE)
    if groups * per_group:
        sigmoid_focal_loss_backward_kernel[(groups * per_group,)](
            grad_loss, logits, labels, normaliser, grad, numbers, classes, per_group,
            settings.positive_weight, settings.negative_weight, settings.gamma,
            TILE=TILE, POWER=_power(settings.gamma), **OPTIONS,
        )  # fmt: skip
    return grad
