"""How torchvision's FCOS matches points to boxes, and its losses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mdssd import ops
from mdssd.integrations import _torchvision as shared

_PAIRS = 2**20  # of a point and a box, in memory at a time


def loss(
    self: Any,
    targets: list[dict[str, Tensor]],
    head_outputs: dict[str, Tensor],
    anchors: list[Tensor],
    num_anchors_per_level: list[int],
) -> dict[str, Tensor]:
    """Match the middles of the anchors [N, 4] of each image, and return the head's losses."""
    boxes = [target["boxes"] for target in targets]
    matched: list[Tensor | None] = []
    if shared.alike(anchors):
        matched = _match(boxes, anchors[0], num_anchors_per_level, self.center_sampling_radius)
    else:
        for each, own in zip(boxes, anchors, strict=True):
            matched += _match([each], own, num_anchors_per_level, self.center_sampling_radius)
    losses: dict[str, Tensor]
    if any(index is None for index in matched):
        losses = shared.own(self, "compute_loss")(
            self, targets, head_outputs, anchors, num_anchors_per_level
        )
    else:
        losses = self.head.compute_loss(targets, head_outputs, anchors, matched)
    return losses


def _match(
    boxes: list[Tensor], anchors: Tensor, levels: list[int], radius: float
) -> list[Tensor | None]:
    """Match the middles of anchors [N, 4] to the boxes [M, 4] of each image, all xyxy.

    Returns the index [N] of each image, -1 for background. A point belongs to the smallest of the
    boxes that have it near their middle and are of its level's size; to the first of equal ones.
    Only points whose height is near a box's are compared with it. All arithmetic is torchvision's,
    which subtracts areas from 1e8, so that float32 rounds areas to multiples of 8.
    There is None for each image where an area or an anchor is not finite, which that arithmetic
    does not expect, and where the images' boxes have different types.
    """
    count = len(anchors)
    counts = [each.numel() // 4 for each in boxes]
    filled = [each for each, own in zip(boxes, counts, strict=True) if own]
    index = torch.full((len(boxes) * count,), -1, dtype=torch.int64, device=anchors.device)
    if not filled or not count:
        return list(index.view(len(boxes), count))
    truths = torch.cat(filled)
    worth = 1e8 - (truths[:, 2] - truths[:, 0]) * (truths[:, 3] - truths[:, 1])
    worth = worth.to(torch.promote_types(worth.dtype, torch.float32))
    points = _Points(anchors, levels, radius)
    if (
        any(each.dtype != truths.dtype for each in filled)
        or not bool(torch.isfinite(worth).all())
        or not bool(torch.isfinite(points.reach).all())
    ):
        return [None] * len(boxes)
    order = worth.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    sizes = torch.tensor(counts, device=order.device)
    image = torch.arange(len(boxes), device=order.device).repeat_interleave(sizes)
    best = torch.full_like(index, len(order))
    for point, box in points.near(truths):
        mine = points.within(point, truths[box]) & (worth[box] >= 1e-5)
        point, box = point[mine], box[mine]
        best.scatter_reduce_(0, image[box] * count + point, rank[box], "amin")
    first = (sizes.cumsum(0) - sizes).repeat_interleave(count)  # box of each point's image
    found = order[best.clamp(max=len(order) - 1)] - first
    return list(torch.where(best < len(order), found, -1).view(len(boxes), count))


class _Points:
    """The middles of anchors [N, 4], level by level, and which boxes they may belong to."""

    def __init__(self, anchors: Tensor, levels: list[int], radius: float) -> None:
        self.levels = levels
        self.middle = (anchors[:, :2] + anchors[:, 2:]) / 2
        size = anchors[:, 2] - anchors[:, 0]
        self.reach = radius * size  # from a box's middle
        # The distance to the furthest side of a box must lie between these.
        self.least, self.most = size * 4, size * 8
        self.least[: levels[0]] = 0
        self.most[-levels[-1] :] = float("inf")

    def near(self, boxes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs, the index [K] of a point and that of a box [M, 4], in bounded memory.

        Each box is paired with all points of a level whose height allows that they are in reach.
        """
        heights = ((boxes[:, 1] + boxes[:, 3]) / 2).double()
        orders, starts, lengths, base = [], [], [], 0
        for count in self.levels:
            own = self.middle[base : base + count, 1].double()
            order = own.argsort(stable=True)
            reach = self.reach[base : base + count].double().amax() if count else 0 * heights
            reach = reach + 1e-6 * (reach.abs() + heights.abs())  # for what the types round
            first = torch.searchsorted(own[order], heights - reach)
            last = torch.searchsorted(own[order], heights + reach, right=True)
            orders.append(order + base)
            starts.append(first + base)
            lengths.append((last - first).clamp(min=0))
            base += count
        order, start, length = torch.cat(orders), torch.cat(starts), torch.cat(lengths)
        box = torch.arange(len(boxes), device=boxes.device).repeat(len(self.levels))
        for runs in _parts(length.tolist()):
            own = length[runs]
            before = (own.cumsum(0) - own).repeat_interleave(own)
            place = torch.arange(len(before), device=own.device) - before
            point = order[start[runs].repeat_interleave(own) + place]
            yield point, box[runs].repeat_interleave(own)

    def within(self, point: Tensor, boxes: Tensor) -> Tensor:
        """Whether each point [K], given by its index, may belong to the box [K, 4] beside it."""
        middle = self.middle[point]
        apart = (middle - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().max(1).values
        sides = torch.cat([middle - boxes[:, :2], boxes[:, 2:] - middle], 1)
        furthest = sides.max(1).values
        return (
            (apart < self.reach[point])
            & (sides.min(1).values > 0)
            & (furthest > self.least[point])
            & (furthest < self.most[point])
        )


def _parts(lengths: list[int]) -> Iterator[slice]:
    """Divide runs of these lengths into parts of about `_PAIRS`, at least one run each."""
    start = total = 0
    for i, length in enumerate(lengths):
        if total and total + length > _PAIRS:
            yield slice(start, i)
            start, total = i, 0
        total += length
    yield slice(start, len(lengths))


# --- losses --------------------------------------------------------------------------------------


def head_loss(
    self: Any,
    targets: list[dict[str, Tensor]],
    head_outputs: dict[str, Tensor],
    anchors: list[Tensor],
    matched_idxs: list[Tensor],
) -> dict[str, Tensor]:
    """Return the three losses; matched_idxs are [N] for each image, -1 for background."""
    if not targets:
        losses: dict[str, Tensor] = shared.own(self, "compute_loss")(
            self, targets, head_outputs, anchors, matched_idxs
        )
        return losses
    boxes = [target["boxes"].reshape(-1, 4) for target in targets]
    pairs = zip(targets, matched_idxs, strict=True)
    # A label below 0 is the background to torchvision.
    labels = torch.stack([shared.labels_of(target, index, 0) for target, index in pairs])
    labels = labels.clamp(min=0)
    image, point = (labels > 0).nonzero(as_tuple=True)
    starts = torch.tensor([0, *accumulate(map(len, boxes))], device=labels.device)
    wanted = torch.cat(boxes)[starts[image] + torch.stack(matched_idxs)[image, point]]
    own = torch.stack(anchors)[image, point]
    found = self.box_coder.decode(head_outputs["bbox_regression"][image, point], own)
    sides = self.box_coder.encode(own, wanted)
    width, height = sides[:, [0, 2]], sides[:, [1, 3]]
    centred = torch.sqrt((width.amin(1) / width.amax(1)) * (height.amin(1) / height.amax(1)))
    centreness = head_outputs["bbox_ctrness"].squeeze(2)[image, point]
    count = max(1, len(point))
    return {
        "classification": ops.sigmoid_focal_loss(head_outputs["cls_logits"], labels),
        "bbox_regression": _giou_losses(found, wanted).sum() / count,
        "bbox_ctrness": F.binary_cross_entropy_with_logits(centreness, centred, reduction="sum")
        / count,
    }


def _giou_losses(boxes: Tensor, others: Tensor) -> Tensor:
    """The GIoU losses [K] of xyxy boxes [K, 4]; `ops.box_loss` takes no box without width."""
    boxes, others = (
        each if each.dtype == torch.float64 else each.float() for each in (boxes, others)
    )
    x1, y1, x2, y2 = boxes.unbind(1)
    left, top, right, bottom = others.unbind(1)
    width = torch.min(x2, right) - torch.max(x1, left)
    height = torch.min(y2, bottom) - torch.max(y1, top)
    inside = torch.where((width > 0) & (height > 0), width * height, 0)
    both = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - inside
    around = torch.max(x2, right) - torch.min(x1, left)
    around = around * (torch.max(y2, bottom) - torch.min(y1, top))
    return 1 - (inside / (both + 1e-7) - (around - both) / (around + 1e-7))
