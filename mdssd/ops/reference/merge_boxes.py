"""Reference of merge_boxes and merge_boxes_padded."""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._results import new_merged
from mdssd.ops._settings import METHODS, MergeBoxesSettings
from mdssd.ops._tensors import accumulation_dtype
from mdssd.ops.reference.boxes import pairwise_iou

# The boxes and the scores of merged boxes, by the position of their first box.
Merged = dict[int, tuple[Tensor, Tensor]]


def suppress(
    boxes: Tensor, scores: Tensor, indices: Tensor, settings: MergeBoxesSettings
) -> Merged:
    """Merge boxes of one group, by falling score, by "nms", "greedy_nmm" or "nmm"."""
    method = METHODS[settings.method]
    free = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    first = list(range(len(boxes)))  # the first box of the merged box to which each box belongs
    merged: Merged = {}
    for i in range(len(boxes)):
        if free[i]:
            free[i] = False
            merged[i] = boxes[i], scores[i]
        elif method != "nmm":
            continue
        overlaps = pairwise_iou(boxes[i], boxes, 0.0, settings.ios) > settings.threshold
        taken = (free & overlaps).nonzero()[:, 0]
        free[taken] = False
        if method == "nms":
            continue
        if method == "nmm":
            taken = taken[indices[taken].argsort()]
        for j in taken.tolist():
            first[j] = first[i]
            box, score = merged[first[i]]
            if pairwise_iou(box, boxes[j], 0.0, settings.ios) > settings.threshold:
                low, high = torch.minimum(box, boxes[j]), torch.maximum(box, boxes[j])
                merged[first[i]] = torch.cat([low[:2], high[2:]]), score
    return merged


def fuse(boxes: Tensor, scores: Tensor, settings: MergeBoxesSettings) -> Merged:
    """Merge boxes of one group, by falling score, by "wbf"."""
    fused: dict[int, Tensor] = {}
    sums: dict[int, tuple[Tensor, Tensor, int]] = {}  # score * box, score, number of boxes
    for i in range(len(boxes)):
        first = i
        if fused:
            overlaps = pairwise_iou(boxes[i], torch.stack(list(fused.values())), 0.0, settings.ios)
            if overlaps.max() > settings.threshold:
                first = list(fused)[int((overlaps == overlaps.max()).nonzero()[0])]
        box_sum, score_sum, count = sums.get(first, (0, 0, 0))
        box_sum, score_sum = box_sum + scores[i] * boxes[i], score_sum + scores[i]
        sums[first] = box_sum, score_sum, count + 1
        if first == i:
            fused[i] = boxes[i]
        elif score_sum > 0:
            fused[first] = box_sum / score_sum
    merged: Merged = {}
    for first, (_, score_sum, count) in sums.items():
        # Tensors, since PyTorch multiplies by the reciprocal of a Python number on some devices.
        boxes_fused, found, models = scores.new_tensor(
            [count, min(count, settings.models), settings.models]
        )
        merged[first] = fused[first], score_sum / boxes_fused * found / models
    return merged


def merge_boxes_padded(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(boxes.dtype)
    out_boxes, out_scores, index, count = new_merged(boxes)
    order = scores.argsort(descending=True, stable=True)
    ordered_boxes, ordered_scores = boxes[order].to(dtype), scores[order].to(dtype)
    none = torch.zeros_like(order)
    groups = torch.stack([none if g is None else g[order] for g in (labels, images)], 1)
    merged: Merged = {}  # by position in `order`
    for group in groups.unique(dim=0):
        own = (groups == group).all(1).nonzero()[:, 0]
        if METHODS[settings.method] == "wbf":
            found = fuse(ordered_boxes[own], ordered_scores[own], settings)
        else:
            found = suppress(ordered_boxes[own], ordered_scores[own], order[own], settings)
        merged |= {int(own[i]): row for i, row in found.items()}
    if not merged:
        return out_boxes, out_scores, index, count
    first = torch.tensor(sorted(merged), device=boxes.device)
    new_boxes = torch.stack([merged[i][0] for i in first.tolist()])
    new_scores = torch.stack([merged[i][1] for i in first.tolist()])
    rows = new_scores.argsort(descending=True, stable=True)
    if images is not None:
        rows = rows[images[order[first[rows]]].argsort(stable=True)]
    count += len(rows)
    out_boxes[: len(rows)] = new_boxes[rows].to(boxes.dtype)
    out_scores[: len(rows)] = new_scores[rows].to(boxes.dtype)
    index[: len(rows)] = order[first[rows]]
    return out_boxes, out_scores, index, count


def merge_boxes(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> tuple[Tensor, ...]:
    *rows, count = merge_boxes_padded(boxes, scores, labels, images, settings)
    return tuple(row[: int(count)].clone() for row in rows)
