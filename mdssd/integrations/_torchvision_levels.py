"""torchvision's RetinaNet and FCOS, whose post-processing treats each feature map on its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations import _torchvision as shared
from mdssd.integrations import _torchvision_points as points
from mdssd.integrations._patch import Replacement, method, to_cxcywh

Levels = dict[str, list[Tensor]]  # outputs [B, N, ...] of each feature map


def of_retinanet(model: Any) -> list[Replacement]:
    """Return what replaces the slow parts of a RetinaNet."""
    shared.variances(model.box_coder)
    model.proposal_matcher  # noqa: B018  # an AttributeError if this is no RetinaNet
    replacements = [
        method(model, "postprocess_detections", _retinanet_detections),
        method(model, "compute_loss", _retinanet_loss),
    ]
    classifier = model.head.classification_head
    if shared.defining_class(classifier, "compute_loss") == "RetinaNetClassificationHead":
        replacements.append(method(classifier, "compute_loss", _focal_loss))
    return replacements


def of_fcos(model: Any) -> list[Replacement]:
    """Return what replaces the slow parts of an FCOS."""
    model.box_coder.normalize_by_size  # noqa: B018  # an AttributeError if this is no FCOS
    replacements = [
        method(model, "postprocess_detections", _fcos_detections),
        method(model, "compute_loss", points.loss),
    ]
    if shared.defining_class(model.head, "compute_loss") == "FCOSHead":
        replacements.append(method(model.head, "compute_loss", points.head_loss))
    return replacements


def _retinanet_loss(
    self: Any,
    targets: list[dict[str, Tensor]],
    head_outputs: dict[str, Tensor],
    anchors: list[Tensor],
) -> dict[str, Tensor]:
    """Match the anchors [N, 4] of each image, and return the head's losses."""
    matched = shared.match_by(self.proposal_matcher, targets, anchors)
    losses: dict[str, Tensor]
    if matched is None:
        losses = shared.own(self, "compute_loss")(self, targets, head_outputs, anchors)
    else:
        losses = self.head.compute_loss(targets, head_outputs, anchors, matched)
    return losses


def _focal_loss(
    self: Any,
    targets: list[dict[str, Tensor]],
    head_outputs: dict[str, Tensor],
    matched_idxs: list[Tensor],
) -> Tensor:
    """Return the loss of the classes; matched_idxs are [N], -1 for background and -2 for ignored.

    A negative label counts from the last class to torchvision, whose own loss then runs.
    """
    labels = torch.cat([target["labels"] for target in targets])
    loss: Tensor
    if labels.numel() and int(labels.min()) < 0:
        loss = shared.own(self, "compute_loss")(self, targets, head_outputs, matched_idxs)
        return loss
    pairs = zip(targets, matched_idxs, strict=True)
    wanted = torch.stack([shared.labels_of(target, index, 0) for target, index in pairs])
    loss = ops.sigmoid_focal_loss(head_outputs["cls_logits"], wanted, reduction="image")
    return loss


def _joined(levels: list[Tensor]) -> Tensor:
    """Join tensors [B, N, ...] along N, without a copy if they are the parts of one tensor."""
    first, start = levels[0], levels[0].storage_offset()
    for level in levels:
        if (
            level.stride() != first.stride()
            or level.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or level.storage_offset() != start
        ):
            return torch.cat(levels, 1)
        start += level.shape[1] * level.stride(1)
    size = (first.shape[0], sum(level.shape[1] for level in levels), *first.shape[2:])
    return first.as_strided(size, first.stride(), first.storage_offset())


def _detections(
    model: Any,
    loc: Tensor,
    scores: Tensor,
    anchors: list[list[Tensor]],
    shapes: list[shared.Shape],
    dtypes: tuple[torch.dtype, torch.dtype],
    **options: Any,
) -> list[dict[str, Tensor]]:
    """Post-process loc [B, N, 4] and scores, or logits, [B, N, C] of all feature maps."""
    levels = [len(level) for level in anchors[0]]
    joined = [_joined([level[None] for level in image])[0] for image in anchors]
    detections: list[dict[str, Tensor]] = []
    for images in shared.groups(joined, shapes):
        height, width = shapes[images.start]
        found = ops.detection_output(
            loc[images],
            scores[images],
            options["priors"](joined[images.start]),
            score_threshold=model.score_thresh,
            nms_threshold=model.nms_thresh,
            top_k=max(1, min(model.topk_candidates * len(levels), loc.shape[1])),
            max_detections=model.detections_per_img,
            variances=options["variances"],
            max_log_scale=options.get("max_log_scale"),
            clip=(float(width), float(height)),
            activation=options["activation"],
            background=False,
            levels=levels,
            top_k_per_level=model.topk_candidates,
        )
        detections += shared.as_lists(found, 0, dtypes)
    return detections


def _retinanet_detections(
    self: Any,
    head_outputs: Levels,
    anchors: list[list[Tensor]],
    image_shapes: list[shared.Shape],
) -> list[dict[str, Tensor]]:
    """Return boxes [K, 4] in pixels, scores [K] and labels [K] of each image."""
    detections: list[dict[str, Tensor]]
    if shared.traced() or not shared.in_range(self) or not image_shapes:
        detections = shared.own(self, "postprocess_detections")(
            self, head_outputs, anchors, image_shapes
        )
        return detections
    loc, logits = (_joined(head_outputs[name]) for name in ("bbox_regression", "cls_logits"))
    return _detections(
        self,
        loc,
        logits,
        anchors,
        image_shapes,
        (loc.dtype, logits.dtype),
        priors=to_cxcywh,
        variances=shared.variances(self.box_coder),
        max_log_scale=self.box_coder.bbox_xform_clip,
        activation="sigmoid",
    )


def _fcos_detections(
    self: Any,
    head_outputs: Levels,
    anchors: list[list[Tensor]],
    image_shapes: list[shared.Shape],
) -> list[dict[str, Tensor]]:
    """Return boxes [K, 4] in pixels, scores [K] and labels [K] of each image.

    The distances l, t, r, b from an anchor's middle to the box's sides become SSD's offsets.
    """
    detections: list[dict[str, Tensor]]
    if shared.traced() or not shared.in_range(self) or not image_shapes:
        detections = shared.own(self, "postprocess_detections")(
            self, head_outputs, anchors, image_shapes
        )
        return detections
    ltrb, logits = (_joined(head_outputs[name]) for name in ("bbox_regression", "cls_logits"))
    centreness = _joined(head_outputs["bbox_ctrness"])
    low, high = ltrb.to(torch.promote_types(ltrb.dtype, torch.float32)).split(2, -1)
    scores = (logits.sigmoid() * centreness.sigmoid()).sqrt()

    def priors(corners: Tensor) -> Tensor:
        middle_and_size = to_cxcywh(corners)
        if not self.box_coder.normalize_by_size:
            middle_and_size[:, 2:] = 1
        return middle_and_size

    return _detections(
        self,
        torch.cat([(high - low) / 2, (low + high).log()], -1),
        scores,
        anchors,
        image_shapes,
        (ltrb.dtype, scores.dtype),
        priors=priors,
        variances=(1.0, 1.0),
        activation="none",
    )
