"""torchvision's SSD with this project's operators.

    from mdssd.integrations import torchvision as fast
    fast.patch(model)                       # or: with fast.patch(model): ...

Replaced, of a model such as `torchvision.models.detection.ssd300_vgg16(...)`:
`model.postprocess_detections`, then one call for the whole batch; `model.compute_loss`;
`model.proposal_matcher`, which leaves the matching to `compute_loss`. (The IoU matrix that
`forward` makes before is still made.) Of the package `torchvision`: `torchvision.ops.batched_nms`
and `torchvision.ops.boxes.batched_nms`, which all its detectors call.

Kept:
- An IoU of 0.5 is positive; boxes and anchors are in pixels; losses over max(1, positives).
- Detections: scores above `score_thresh`, the best `topk_candidates` of each class, boxes clipped
  to the image before NMS, an IoU of at most `nms_thresh` stays, the best `detections_per_img` by
  falling score; the growth of a box is limited as by the box coder.
- All settings are read from the model at each call.

What differs:
- Boxes of different classes never meet in NMS. torchvision may shift the classes apart, by which
  coordinates are rounded; in `batched_nms` boxes with negative coordinates may then meet those of
  another class.
- An anchor that is the best of two boxes goes to the later one on a GPU too (undefined). Equal
  scores rank by the lower anchor (undefined). Detections carry no gradient.
- With more than a quarter of an image's anchors positive, the loss counts none twice.
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
    method,
    patch_each,
    taken,
    taken_labels,
    to_cxcywh,
)


def patch(*targets: Any) -> Patch:
    """Patch an SSD of torchvision, the package `torchvision`, or both, in any order.

    Returns:
        Patch: `undo()` it, or use it in a `with`.

    Raises:
        TypeError: a target is neither. Nothing is replaced then.
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
    """`ops.batched_nms` by torchvision's names of the arguments, and categories of any dtype.

    In autocast boxes and scores may be of two types.
    """
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    return ops.batched_nms(boxes.to(dtype), scores.to(dtype), idxs.long(), iou_threshold)


class _Later:
    """In place of the matcher: `compute_loss` matches, from the boxes."""

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
    """matched_idxs: of each image [N], -1 is background, or None if it is still to be matched."""
    loc, logits = head_outputs["bbox_regression"], head_outputs["cls_logits"]
    loc_targets, labels = [], []
    for target, own, index in zip(targets, anchors, matched_idxs, strict=True):
        boxes = target["boxes"]
        if index is None:
            threshold = self.proposal_matcher.high_threshold
            index = ops.match_priors([boxes], own, threshold, priors_form="xyxy").index[0]
        matched = taken(boxes, index, own)
        loc_targets.append(ops.encode_boxes(matched, to_cxcywh(own), _variances(self.box_coder)))
        labels.append(taken_labels(target["labels"], index))
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
    """Of each image: boxes [K, 4] in pixels, scores [K], labels [K]. Shapes are (height, width)."""
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
        if not torch.is_autocast_enabled(loc.device.type):  # in it theirs are float32 on a GPU
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
    """Whether all images, one or more, have the same size and anchors."""
    return len(shapes) > 0 and all(
        tuple(shape) == tuple(shapes[0]) and torch.equal(own, anchors[0])
        for own, shape in zip(anchors, shapes, strict=True)
    )
