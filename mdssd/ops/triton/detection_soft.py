"""The last part of detection_output in Triton with soft-NMS, for the candidates of each image.

The kernel is that of soft_nms, with a program for each class of an image. Sorting comes before and
after it, in PyTorch, and nothing waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mdssd.ops._settings import DetectionOutputSettings
from mdssd.ops.reference.boxes import area
from mdssd.ops.reference.detection_output import soft_settings
from mdssd.ops.triton.detection_scan import ONE, WORST
from mdssd.ops.triton.soft_nms import run_soft_nms


class Candidates(NamedTuple):
    """Candidates of each image, with keys of which the smaller are better."""

    boxes: Tensor  # [images, N, 4] corners
    keys: Tensor  # [images, N] int64; WORST if there is no candidate
    index_bits: int  # the low bits of a key, in which candidates of equal scores differ
    labels: Tensor  # [images, N] int64, from 1


def detect_softly(
    candidates: Candidates,
    foreground: int,
    settings: DetectionOutputSettings,
    result: tuple[Tensor, ...],
) -> None:
    """Fill the results of `detection_output`, which hold zeros."""
    boxes, keys, labels = candidates.boxes.flatten(0, 1), *map(torch.flatten, candidates[1::2])
    index = keys & ((1 << candidates.index_bits) - 1)
    images = torch.arange(len(keys), device=keys.device) // candidates.keys.shape[1]
    classes = images * foreground + labels - 1
    groups = images if settings.class_agnostic else classes
    usable = (keys != WORST.value) & ~boxes.isnan().any(1)
    num_groups = len(candidates.keys) * (1 if settings.class_agnostic else foreground)
    if not settings.keep_empty:
        usable &= _first_of_empty(boxes, keys, groups, usable, num_groups)
    bits = ONE.value - (keys >> candidates.index_bits)
    scores = torch.where(usable, bits.int().view(torch.float32), -1)
    groups = torch.where(usable, groups, num_groups)  # the others come last, and in no group

    order = index.argsort(stable=True)  # of equal scores, the lower index is chosen first
    by_group = order[groups[order].argsort(stable=True)]
    bounds = torch.searchsorted(
        groups[by_group], torch.arange(num_groups + 1, device=groups.device)
    )
    lowered = run_soft_nms(
        boxes[by_group],
        scores[by_group],
        (bounds[:-1], bounds[1:]),
        soft_settings(settings, torch.float32),
        settings.iou_eps,
        settings.ios,
    )
    softened = torch.empty_like(scores).index_copy_(0, by_group, lowered)
    order = order[softened[order].argsort(descending=True, stable=True)]
    _write(boxes, softened, labels, order, classes if settings.per_class else images, result)


def _first_of_empty(
    boxes: Tensor, keys: Tensor, groups: Tensor, usable: Tensor, num_groups: int
) -> Tensor:
    """Return [N]: whether a box has an area other than 0, or is the best of its group without."""
    empty = (area(boxes) == 0) & usable
    empty_keys = torch.where(empty, keys, WORST.value)
    first = keys.new_full((num_groups + 1,), WORST.value)
    first.scatter_reduce_(0, torch.where(usable, groups, num_groups), empty_keys, "amin")
    return ~empty | (keys == first[groups])


def _write(
    boxes: Tensor,
    softened: Tensor,
    labels: Tensor,
    order: Tensor,
    lists: Tensor,
    result: tuple[Tensor, ...],
) -> None:
    """Write the first boxes in `order` of each list whose score is not -inf."""
    out_boxes, out_scores, out_labels, count = result
    most, rows = out_scores.shape[-1], out_scores.numel()
    chosen = softened != -torch.inf
    lists = torch.where(chosen, lists, count.numel())  # those that are not chosen come last
    order = order[lists[order].argsort(stable=True)]
    list_of = lists[order]
    place = torch.arange(len(order), device=order.device)
    place -= torch.searchsorted(list_of, list_of)
    row = torch.where((place < most) & chosen[order], list_of * most + place, rows)
    for out, values in ((out_boxes, boxes), (out_scores, softened), (out_labels, labels)):
        flat = out.view(rows, *values.shape[1:])
        padded = torch.cat([flat, flat.new_zeros(1, *values.shape[1:])])
        flat.copy_(padded.index_copy_(0, row, values[order].to(out.dtype))[:-1])
    found = torch.zeros(count.numel() + 1, dtype=torch.int64, device=count.device)
    found.index_add_(0, lists, torch.ones_like(lists))
    count.copy_(found[:-1].clamp(max=most).view(count.shape))
