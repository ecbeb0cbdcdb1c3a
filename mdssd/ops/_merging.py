"""What stands between the kernels of merge_boxes on a GPU: sorting and gathering, in PyTorch.

Nothing here waits for the device. The boxes are sorted by group (image and label) and, within a
group, by falling score; a position is an index into this order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mdssd.ops._results import new_merged
from mdssd.ops._settings import METHODS, MergeBoxesSettings, NmsSettings
from mdssd.ops._tensors import accumulation_dtype


class Kernels(NamedTuple):
    """The kernels of a backend. All arrays are by position."""

    # boxes, scores, groups, settings -> positions that NMS keeps, then zeros; their number
    nms: Callable[[Tensor, Tensor, Tensor, NmsSettings], tuple[Tensor, Tensor]]
    # boxes, candidates (None: all), begin, end -> the first of candidates[begin[i]:end[i]] that
    # overlaps box i, or i
    parents: Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]
    # boxes, members, end -> at the position of each first box, the box that its members make
    members: Callable[[Tensor, Tensor, Tensor], Tensor]
    # boxes, scores, starts -> fused boxes and scores, at the positions that are True in the third
    fused: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def merge(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
    kernels: Kernels,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run `mdssd.ops.merge_boxes_padded`."""
    result = new_merged(boxes)
    if boxes.shape[0] == 0:
        return result
    stored, dtype = boxes.dtype, accumulation_dtype(boxes.dtype)
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score
    for key in (labels, images):
        if key is not None:
            order = order[key[order].argsort(stable=True)]
    sorted_boxes, sorted_scores = boxes[order].to(dtype), scores[order].to(dtype)
    starts = starts_of_groups(order, labels, images)
    if METHODS[settings.method] == "wbf":
        merged_boxes, merged_scores, first = kernels.fused(sorted_boxes, sorted_scores, starts)
    else:
        merged_boxes, first = _suppressed(sorted_boxes, order, starts, settings, kernels)
        merged_scores = sorted_scores

    rows = order.argsort()[by_score]  # positions by falling score: that of the first box ...
    if METHODS[settings.method] == "wbf":  # ... and then that of the fused box
        rows = rows[merged_scores[rows].argsort(descending=True, stable=True)]
    if images is not None:
        rows = rows[images[order[rows]].argsort(stable=True)]
    rows = rows[(~first[rows]).to(torch.uint8).argsort(stable=True)]
    count = first.sum()
    used = torch.arange(len(rows), device=rows.device) < count
    return (
        torch.where(used[:, None], merged_boxes[rows].to(stored), result[0]),
        torch.where(used, merged_scores[rows].to(stored), result[1]),
        torch.where(used, order[rows], result[2]),
        count,
    )


def starts_of_groups(order: Tensor, *keys: Tensor | None) -> Tensor:
    """Return the position of the first box of each position's group."""
    position = torch.arange(len(order), device=order.device)
    begins = position == 0
    for key in keys:
        if key is not None:
            begins[1:] |= key[order[1:]] != key[order[:-1]]
    return torch.where(begins, position, 0).cummax(0).values


def _suppressed(
    boxes: Tensor,
    order: Tensor,
    starts: Tensor,
    settings: MergeBoxesSettings,
    kernels: Kernels,
) -> tuple[Tensor, Tensor]:
    """Merge by "nms", "greedy_nmm" or "nmm"; return the merged boxes, and which are the first.

    A box joins the first earlier box that overlaps it: with "greedy_nmm", of those that NMS keeps.
    """
    position = torch.arange(len(order), device=order.device)
    if METHODS[settings.method] == "nmm":
        parents = kernels.parents(boxes, None, starts, position)
        roots = parents
        for _ in range((len(order) - 1).bit_length()):  # each round doubles the length of a step
            roots = roots[roots]
        # By merged box, then by the box that takes them, the first box before all, then by index.
        key = roots * (len(order) + 1) + torch.where(roots == position, 0, parents + 1)
        by_index = order.argsort()
        members = by_index[key[by_index].argsort(stable=True)]
        first = roots == position
    else:
        nms_settings = NmsSettings(settings.threshold, 0.0, settings.ios)
        keep, count = kernels.nms(boxes, -position, starts, nms_settings)
        first = torch.zeros(len(order) + 1, dtype=torch.bool, device=order.device)
        first = first.index_fill_(0, torch.where(position < count, keep, len(order)), True)[:-1]
        if METHODS[settings.method] == "nms":
            return boxes, first
        before = first.cumsum(0) - first.long()  # first boxes at earlier positions
        roots = kernels.parents(boxes, keep, before[starts], before)
        members = roots.argsort(stable=True)
    ends = torch.searchsorted(roots[members], roots[members], right=True)
    return kernels.members(boxes, members, ends), first
