"""The region proposal network of torchvision's Faster R-CNN and its relatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations import _torchvision as shared
from mdssd.integrations._patch import Replacement, method


def of_rpn(rpn: Any) -> list[Replacement]:
    """Return what replaces the slow parts of a region proposal network."""
    rpn.proposal_matcher  # noqa: B018  # an AttributeError if this is another kind of network
    return [
        method(rpn, "filter_proposals", _filter_proposals),
        method(rpn, "assign_targets_to_anchors", _assign_targets_to_anchors),
    ]


def _assign_targets_to_anchors(
    self: Any, anchors: list[Tensor], targets: list[dict[str, Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the labels [N] (1, 0 and -1 for ignored) and the matched boxes [N, 4] of each image.

    Anchors of the background have the image's first box.
    """
    matched = None
    if getattr(self.box_similarity, "__name__", "") == "box_iou":
        matched = shared.match_by(self.proposal_matcher, targets, anchors)
    if matched is None:
        ours: tuple[list[Tensor], list[Tensor]] = shared.own(self, "assign_targets_to_anchors")(
            self, anchors, targets
        )
        return ours
    labels, boxes = [], []
    for index, own_anchors, target in zip(matched, anchors, targets, strict=True):
        labels.append(torch.where(index >= 0, 1.0, torch.where(index == -2, -1.0, 0.0)))
        if target["boxes"].numel():
            boxes.append(target["boxes"][index.clamp(min=0)])
        else:
            boxes.append(torch.zeros(own_anchors.shape, device=own_anchors.device))
    return labels, boxes


def _filter_proposals(
    self: Any,
    proposals: Tensor,
    objectness: Tensor,
    image_shapes: list[shared.Shape],
    num_anchors_per_level: list[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the best boxes [K, 4] and their scores [K] of each image, by falling score.

    proposals are [B, N, 4] xyxy in pixels, objectness are logits. One NMS serves all images and
    feature maps: each pair of them is a category.
    """
    if shared.traced() or not shared.share(self.nms_thresh):
        kept: tuple[list[Tensor], list[Tensor]] = shared.own(self, "filter_proposals")(
            self, proposals, objectness, image_shapes, num_anchors_per_level
        )
        return kept
    count = len(proposals)
    logits = objectness.detach().reshape(count, -1)
    best = self._get_top_n_idx(logits, num_anchors_per_level)
    boxes = proposals.gather(1, best[..., None].expand(-1, -1, 4))
    scores = logits.gather(1, best).sigmoid()
    sides = boxes.new_tensor([[[w, h, w, h]] for h, w in image_shapes])
    boxes = boxes.clamp(min=0).minimum(sides)
    large = (boxes[..., 2:] - boxes[..., :2] >= self.min_size).all(-1)
    image, place = (large & (scores >= self.score_thresh)).nonzero(as_tuple=True)
    ends = torch.tensor(num_anchors_per_level, device=best.device).cumsum(0)
    level = torch.bucketize(best[image, place], ends, right=True)
    boxes, scores = boxes[image, place], scores[image, place]
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    kept_all = ops.batched_nms(
        boxes.to(dtype), scores.to(dtype), image * len(ends) + level, self.nms_thresh
    )
    final_boxes, final_scores = [], []
    for i in range(count):
        mine = kept_all[image[kept_all] == i][: self.post_nms_top_n()]
        final_boxes.append(boxes[mine])
        final_scores.append(scores[mine])
    return final_boxes, final_scores
