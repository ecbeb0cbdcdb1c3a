"""Use this project's operators in torchvision's SSD.

    from mdssd.integrations import torchvision as fast
    fast.patch(model)                       # or: with fast.patch(model): ...

In a model such as `torchvision.models.detection.ssd300_vgg16(...)`, this replaces
`model.postprocess_detections` by one call for the whole batch; `model.compute_loss`; and
`model.proposal_matcher`, which leaves the matching to `compute_loss`. (`forward` still computes the
IoU matrix before.) In the package `torchvision`, it replaces `torchvision.ops.batched_nms` and
`torchvision.ops.boxes.batched_nms`, which all its detectors call.

This stays the same:
- Training: an IoU of 0.5 is positive. Boxes and anchors are in pixels. Losses are divided by
  max(1, positives).
- Detections: scores must exceed `score_thresh`, and the best `topk_candidates` of each class enter
  NMS. Boxes are clipped to the image before NMS, which keeps those with an IoU of at most
  `nms_thresh`. The best `detections_per_img` are returned by descending score. The box coder's
  limit on the growth of a box applies.
- Each call reads all settings from the model.

This differs:
- NMS never compares boxes of different classes. torchvision may shift the classes apart, which
  rounds the coordinates; in `batched_nms` boxes with negative coordinates can then meet those of
  another class.
- If two boxes share their best anchor, the later box gets it on a GPU too (undefined). Equal scores
  are ranked by the lower anchor (undefined). Detections have no gradient.
- If more than a quarter of an image's anchors are positive, the loss counts none of them twice.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import (
    Patch,
    Replacement,
    matched_boxes,
    matched_labels,
    method,
    patch_each,
    to_cxcywh,
)


def patch(*targets: Any) -> Patch:
    """Patch an SSD of torchvision, the package `torchvision`, or both, in any order.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: a target is neither. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.torchvision import batched_nms, patch
        >>> import torchvision  # doctest: +SKIP
        >>> model = torchvision.models.detection.ssd300_vgg16()  # doctest: +SKIP
        >>> with patch(model, torchvision):  # doctest: +SKIP
        ...     detections = model(images)
        >>> import torch  # `torchvision.ops.batched_nms` is then:
        >>> boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0.9], [2, 2, 3, 3]])
        >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.7]), torch.tensor([1, 1, 1]), 0.5)
        tensor([1, 2])
    """
    expected = "an SSD of torchvision or the package `torchvision`"
    return patch_each("torchvision", expected, targets, _of_package, _of_model)


def _of_package(torchvision: ModuleType) -> list[Replacement]:
    owners = (torchvision.ops, torchvision.ops.boxes)
    return [Replacement(owner, "batched_nms", batched_nms) for owner in owners]


def _of_model(model: Any) -> list[Replacement]:
    _variances(model.box_coder)
    return [
        method(model, "postprocess_detections", _postprocess_detections),
        method(model, "compute_loss", _compute_loss),
        Replacement(model, "proposal_matcher", _Later(model.proposal_matcher)),
    ]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`ops.batched_nms` with torchvision's argument names, and `idxs` of any dtype."""
    # In autocast boxes and scores can have different types.
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    return ops.batched_nms(boxes.to(dtype), scores.to(dtype), idxs.long(), iou_threshold)


class _Later:
    """Replaces the matcher and returns nothing, because `compute_loss` matches the boxes."""

    def __init__(self, original: Any) -> None:
        self.high_threshold: float = original.high_threshold

    def __call__(self, match_quality_matrix: Tensor) -> None:
        return None


def _variances(box_coder: Any) -> tuple[float, float]:
    wx, wy, ww, wh = box_coder.weights
    if wx != wy or ww != wh:
        raise AttributeError(f"box_coder.weights must be (c, c, s, s), are {box_coder.weights}")
    return 1 / wx, 1 / ww


def _compute_loss(
    self: Any,
    targets: list[dict[str, Tensor]],
    head_outputs: dict[str, Tensor],
    anchors: list[Tensor],
    matched_idxs: list[Tensor | None],
) -> dict[str, Tensor]:
    """Return both losses. matched_idxs are [N] for each image, -1 for background, or None."""
    loc, logits = head_outputs["bbox_regression"], head_outputs["cls_logits"]
    loc_targets, labels = [], []
    for target, own, index in zip(targets, anchors, matched_idxs, strict=True):
        boxes = target["boxes"]
        if index is None:
            threshold = self.proposal_matcher.high_threshold
            index = ops.match_priors([boxes], own, threshold, priors_form="xyxy").index[0]
        matched = matched_boxes(boxes, index, own)
        loc_targets.append(ops.encode_boxes(matched, to_cxcywh(own), _variances(self.box_coder)))
        labels.append(matched_labels(target["labels"], index))
    localisation, confidence = ops.multibox_loss(
        loc, logits, torch.stack(loc_targets), torch.stack(labels), self.neg_to_pos_ratio
    )
    return {"bbox_regression": localisation, "classification": confidence}


def _postprocess_detections(
    self: Any,
    head_outputs: dict[str, Tensor],
    image_anchors: list[Tensor],
    image_shapes: list[tuple[int, int]],
) -> list[dict[str, Tensor]]:
    """Return boxes [K, 4] in pixels, scores [K] and labels [K] of each image."""
    loc, logits = head_outputs["bbox_regression"], head_outputs["cls_logits"]
    if _alike(image_anchors, image_shapes):
        groups = [slice(0, len(loc))]
    else:
        groups = [slice(i, i + 1) for i in range(len(loc))]
    detections: list[dict[str, Tensor]] = []
    for images in groups:
        height, width = image_shapes[images.start]
        found = ops.detection_output(
            loc[images],
            logits[images],
            to_cxcywh(image_anchors[images.start]),
            score_threshold=self.score_thresh,
            nms_threshold=self.nms_thresh,
            top_k=self.topk_candidates,
            max_detections=self.detections_per_img,
            variances=_variances(self.box_coder),
            max_log_scale=self.box_coder.bbox_xform_clip,
            clip=(float(width), float(height)),
        )
        boxes, scores = found.boxes, found.scores
        # In autocast on a GPU, torchvision's are float32.
        if not torch.is_autocast_enabled(loc.device.type):
            boxes, scores = boxes.to(loc.dtype), scores.to(logits.dtype)
        for i, count in enumerate(found.count.tolist()):
            detections.append(
                {
                    "boxes": boxes[i, :count],
                    "scores": scores[i, :count],
                    "labels": found.labels[i, :count],
                }
            )
    return detections


def _alike(anchors: list[Tensor], shapes: list[tuple[int, int]]) -> bool:
    """Whether there are images and all have the same size and anchors."""
    return len(shapes) > 0 and all(
        tuple(shape) == tuple(shapes[0]) and torch.equal(own, anchors[0])
        for own, shape in zip(anchors, shapes, strict=True)
    )
