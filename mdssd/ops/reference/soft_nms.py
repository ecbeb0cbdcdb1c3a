"""Reference of soft_nms and soft_nms_padded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mdssd.ops._results import new_soft_keep
from mdssd.ops._settings import SoftNmsSettings
from mdssd.ops._tensors import accumulation_dtype
from mdssd.ops.reference.boxes import pairwise_iou

# The constants of exp_of_minus in csrc/soft_nms_math.h: the largest x, the two parts of ln 2, the
# terms of Taylor's series after the constant; and the format: exponent of 1, bits of the mantissa.
_CONSTANTS = {
    torch.float32: (87.0, 0.693359375, -2.12194440e-4, 7, 127, 23, torch.int32),
    torch.float64: (708.0, 0.693145751953125, 1.42860682030941723212e-6, 13, 1023, 52, torch.int64),
}


def exp_of_minus(x: Tensor) -> Tensor:
    """Return e^-x for x >= 0 by operations that every backend rounds alike."""
    largest, high, low, terms, one, bits, integer = _CONSTANTS[x.dtype]
    bounded = x.clamp(max=largest)
    n = (bounded * math.log2(math.e)).round()
    r = (n * high - bounded) + n * low
    total = torch.full_like(x, 1 / math.factorial(terms))
    for i in reversed(range(terms)):
        total = total * r + 1 / math.factorial(i)
    scale = ((one - n.to(integer)) << bits).view(x.dtype)  # 2^-n
    return torch.where(x <= largest, total * scale, 0)


def soften(
    boxes: Tensor,
    scores: Tensor,
    settings: SoftNmsSettings,
    most: int,
    iou_eps: float = 0.0,
    ios: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the positions of one label's boxes in the order in which they are chosen; scores.

    It ends early if `most` boxes have scores above all that are left.
    """
    scores = scores.clone()
    is_left = ~(scores < settings.score_threshold)
    chosen: list[int] = []
    found: list[Tensor] = []
    while is_left.any():
        left = is_left.nonzero()[:, 0]
        best = int(left[scores[left].argsort(descending=True, stable=True)[0]])
        if len(chosen) >= most and scores[best] < found[most - 1]:
            break
        chosen.append(best)
        found.append(scores[best].clone())
        overlap = pairwise_iou(boxes[best], boxes, iou_eps, ios)
        if settings.gaussian:
            decay = exp_of_minus(overlap * overlap * (1 / settings.sigma))
        else:
            decay = torch.where(overlap > settings.iou_threshold, 1 - overlap, 1)
        scores *= decay
        is_left &= ~(scores < settings.score_threshold)
        is_left[best] = False
    positions = torch.tensor(chosen, dtype=torch.int64, device=boxes.device)
    return positions, torch.stack(found) if found else scores[:0]


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, settings: SoftNmsSettings
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(boxes.dtype)
    rows = len(new_soft_keep(boxes, settings)[0])
    own_labels = torch.zeros_like(scores, dtype=torch.int64) if labels is None else labels
    softened = scores.to(dtype, copy=True)
    is_kept = torch.zeros_like(scores, dtype=torch.bool)
    for label in own_labels.unique():
        own = (own_labels == label).nonzero()[:, 0]
        positions, found = soften(boxes[own].to(dtype), softened[own], settings, rows)
        softened[own[positions]] = found
        is_kept[own[positions]] = True
    kept = is_kept.nonzero()[:, 0]
    kept = kept[softened[kept].argsort(descending=True, stable=True)[:rows]]
    return kept, softened[kept].to(scores.dtype)


def soft_nms_padded(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, settings: SoftNmsSettings
) -> tuple[Tensor, Tensor, Tensor]:
    keep, kept_scores, count = new_soft_keep(boxes, settings)
    kept, found = soft_nms(boxes, scores, labels, settings)
    keep[: len(kept)] = kept
    kept_scores[: len(kept)] = found
    return keep, kept_scores, count.fill_(len(kept))
