"""torchvision's SSD and SSDlite."""

from __future__ import annotations

import copy
from itertools import accumulate
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations import _torchvision as shared
from mdssd.integrations._overlaps import Overlaps
from mdssd.integrations._patch import Replacement, method, to_cxcywh


def of_ssd(model: Any) -> list[Replacement]:
    """Return what replaces the slow parts of an SSD."""
    shared.variances(model.box_coder)
    return [
        method(model, "forward", _forward),
        method(model, "postprocess_detections", _postprocess_detections),
        method(model, "compute_loss", _compute_loss),
        Replacement(model, "proposal_matcher", Later(model.proposal_matcher)),
        method(model, "__prepare_scriptable__", _unpatched, new=True),
    ]


class Later:
    """Replaces the matcher and returns nothing, because `compute_loss` matches the boxes.

    An IoU is of type float64 if boxes or anchors are. If only one of them is, torchvision computes
    the areas of each in its own type, so the original then matches. So it does where the threshold
    is no IoU.
    """

    def __init__(self, original: Any) -> None:
        self.original: Any = original.original if isinstance(original, Later) else original
        self.high_threshold: float = original.high_threshold

    def __call__(self, match_quality_matrix: Tensor) -> Tensor | None:
        if match_quality_matrix.dtype == torch.float64 or not shared.share(self.high_threshold):
            matched: Tensor = self.original(match_quality_matrix)
            return matched
        return None


def _unpatched(model: Any) -> Any:
    """Return what `torch.jit.script` compiles in place of the model: torchvision's own code."""
    plain = copy.copy(model)
    for name in ("forward", "postprocess_detections", "compute_loss", "__prepare_scriptable__"):
        vars(plain).pop(name, None)
    plain.proposal_matcher = model.proposal_matcher.original
    return plain


class _BoxOps:
    """The module `torchvision.ops.boxes`, whose `box_iou` computes nothing until it is read."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def box_iou(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        original = self._module.box_iou
        if boxes.dtype != torch.float32 or anchors.dtype != torch.float32:
            matrix: Tensor = original(boxes, anchors)
            return matrix
        return Overlaps(lambda: original(boxes, anchors), boxes, anchors)


def _forward(self: Any, *arguments: Any, **named: Any) -> Any:
    """Run the forward of the model's class; in training, without the IoU of boxes and anchors."""
    forward = type(self).forward
    lazy = self.training and not shared.traced() and not torch.compiler.is_compiling()
    if lazy and isinstance(forward, FunctionType) and "box_ops" in forward.__globals__:
        names = forward.__globals__ | {"box_ops": _BoxOps(forward.__globals__["box_ops"])}
        copied = FunctionType(
            forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
        )
        copied.__kwdefaults__ = forward.__kwdefaults__
        forward = copied
    return forward(self, *arguments, **named)


def _compute_loss(
    self: Any,
    targets: list[dict[str, Tensor]],
    head_outputs: dict[str, Tensor],
    anchors: list[Tensor],
    matched_idxs: list[Tensor | None],
) -> dict[str, Tensor]:
    """Return both losses. matched_idxs are [N] for each image, -1 for background, or None."""
    boxes, labels = ([target[name] for target in targets] for name in ("boxes", "labels"))
    if any(index is None for index in matched_idxs):
        threshold = self.proposal_matcher.high_threshold
        matched = shared.match([each.reshape(-1, 4) for each in boxes], anchors, threshold)
        pairs = zip(matched_idxs, matched, strict=True)
        matched_idxs = [ours if given is None else given for given, ours in pairs]
    all_labels = torch.cat(labels).long()
    if all_labels.numel() and int(all_labels.min()) < 1:
        # To torchvision such a box has an offset but no class; only the matching is ours.
        losses: dict[str, Tensor] = shared.own(self, "compute_loss")(
            self, targets, head_outputs, anchors, matched_idxs
        )
        return losses
    loc, logits = head_outputs["bbox_regression"], head_outputs["cls_logits"]
    index = torch.stack([each for each in matched_idxs if each is not None])
    image, prior = (index >= 0).nonzero(as_tuple=True)
    starts = torch.tensor([0, *accumulate(map(len, boxes))], device=index.device)
    place = starts[image] + index[image, prior]
    all_boxes = torch.cat([each.reshape(-1, 4) for each in boxes])
    dtype = all_boxes.dtype if all_boxes.is_floating_point() else anchors[0].dtype
    own_anchors = anchors[0][prior] if len(anchors) == 1 else torch.stack(anchors)[image, prior]
    wanted = ops.encode_boxes(
        all_boxes[place].to(dtype), to_cxcywh(own_anchors), shared.variances(self.box_coder)
    )
    loc_targets = torch.zeros(*index.shape, 4, dtype=dtype, device=index.device)
    loc_targets[image, prior] = wanted
    classes = torch.zeros_like(index)
    classes[image, prior] = all_labels[place]
    localisation, confidence = ops.multibox_loss(
        loc, logits, loc_targets, classes, self.neg_to_pos_ratio
    )
    localisation = localisation.to(torch.promote_types(localisation.dtype, dtype))
    return {"bbox_regression": localisation, "classification": confidence}


def _postprocess_detections(
    self: Any,
    head_outputs: dict[str, Tensor],
    image_anchors: list[Tensor],
    image_shapes: list[shared.Shape],
) -> list[dict[str, Tensor]]:
    """Return boxes [K, 4] in pixels, scores [K] and labels [K] of each image."""
    detections: list[dict[str, Tensor]] = []
    if shared.traced() or not shared.in_range(self):
        detections = shared.own(self, "postprocess_detections")(
            self, head_outputs, image_anchors, image_shapes
        )
        return detections
    loc, logits = head_outputs["bbox_regression"], head_outputs["cls_logits"]
    for images in shared.groups(image_anchors, image_shapes):
        height, width = image_shapes[images.start]
        found = ops.detection_output(
            loc[images],
            logits[images],
            to_cxcywh(image_anchors[images.start]),
            score_threshold=self.score_thresh,
            nms_threshold=self.nms_thresh,
            top_k=self.topk_candidates,
            max_detections=self.detections_per_img,
            variances=shared.variances(self.box_coder),
            max_log_scale=self.box_coder.bbox_xform_clip,
            clip=(float(width), float(height)),
        )
        detections += shared.as_lists(found, 1, (loc.dtype, logits.dtype))
    return detections
