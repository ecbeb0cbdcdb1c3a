"""Use this project's operators in torchvision's detectors.

    from mdssd.integrations import torchvision as fast
    fast.patch(model)                       # or: with fast.patch(model): ...

What it replaces depends on the model:

- SSD and SSDlite: `postprocess_detections`, by one call for the whole batch; `compute_loss`;
  `proposal_matcher`, which leaves the matching to `compute_loss`; and `forward`, which in training
  does without the IoU matrix of float32 boxes.
- RetinaNet: `postprocess_detections`; `compute_loss`, which matches without the IoU matrix; and the
  `compute_loss` of `head.classification_head`, if it is torchvision's own.
- FCOS: `postprocess_detections`; `compute_loss`, which compares each point only with the boxes near
  it; and the `compute_loss` of `head`, if it is torchvision's own.
- Faster, Mask and Keypoint R-CNN, or their `rpn`: `filter_proposals` and
  `assign_targets_to_anchors` of the `rpn`.
- The package `torchvision`: `nms` and `batched_nms` in `torchvision.ops` and
  `torchvision.ops.boxes`, which all its detectors and many other projects call. A name that a
  module imported by value before the patch, as `from torchvision.ops import nms` does, stays the
  original there; patch before that import.

This stays the same:
- Training: an IoU of exactly a threshold counts as at least that. Boxes and anchors are in pixels.
  Losses are divided as torchvision divides them: by max(1, positives) of the batch in SSD and FCOS,
  of each image in RetinaNet. RetinaNet ignores anchors between its thresholds and restores the best
  ones of every box. FCOS gives a point to the smallest of the boxes around it, with areas that
  float32 rounds to multiples of 8, because it subtracts them from 1e8. A label of 0 is an object
  without a class to SSD, and a class to RetinaNet and FCOS.
- Detections: scores must exceed `score_thresh`, and the best `topk_candidates` of each class (SSD)
  or feature map (RetinaNet, FCOS) enter NMS. Boxes are clipped to the image before NMS, which keeps
  those with an IoU of at most `nms_thresh`. The best `detections_per_img` are returned by
  descending score. The box coder's limit on the growth of a box applies.
- Each call reads all settings from the model. torchvision's own code runs where the operators do
  not go: limits and thresholds outside of their range, integer and quantised boxes, wrong shapes,
  boxes of another type than the anchors, matchers of another class; in FCOS's matching, areas that
  are not finite.
- `torch.jit.script`, `torch.jit.trace` and `torch.onnx.export` get torchvision's own code, so a
  model exports as if it were not patched. A copy or a pickled model stays patched, with its own
  settings, and `undo` does not reach it. Keys of the state dict do not change.

This differs:
- NMS never compares boxes of different classes. torchvision may shift the classes apart, which
  rounds the coordinates; in `batched_nms` boxes with negative coordinates can then meet those of
  another class.
- If two boxes share their best anchor, the later box gets it on a GPU too (undefined). Equal scores
  are ranked by the lower anchor (undefined), and a confident network has many: a float32 softmax
  gives 1 to all that is close. Detections have no gradient.
- If more than a quarter of an image's anchors are positive, SSD's loss counts none of them twice.
- A candidate whose box has a NaN is not returned. (torchvision returns it, and one such box keeps
  its NMS from removing any.)
- In autocast to a narrow type on a CPU, boxes and scores are computed in float32 and then rounded
  to the type that torchvision computes in.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations import _torchvision as shared
from mdssd.integrations._patch import Patch, Replacement, patch_each
from mdssd.integrations._torchvision_levels import of_fcos, of_retinanet
from mdssd.integrations._torchvision_rpn import of_rpn
from mdssd.integrations._torchvision_ssd import of_ssd


def patch(*targets: Any) -> Patch:
    """Patch a detector of torchvision, the package `torchvision`, or both, in any order.

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
    expected = "an SSD, RetinaNet, FCOS or Faster R-CNN of torchvision or the package `torchvision`"
    return patch_each("torchvision", expected, targets, _of_package, _of_model)


def _of_package(torchvision: ModuleType) -> list[Replacement]:
    replacements = []
    for owner in (torchvision.ops, torchvision.ops.boxes):
        replacements += [
            Replacement(owner, "nms", shared.with_original(owner.nms, nms, shared.nms_fits)),
            Replacement(
                owner,
                "batched_nms",
                shared.with_original(owner.batched_nms, batched_nms, shared.batched_nms_fits),
            ),
        ]
    return replacements


def _of_model(model: Any) -> list[Replacement]:
    if hasattr(model, "rpn"):
        return of_rpn(model.rpn)
    if hasattr(model, "filter_proposals"):
        return of_rpn(model)
    if hasattr(model, "center_sampling_radius"):
        return of_fcos(model)
    if hasattr(model, "neg_to_pos_ratio"):
        return of_ssd(model)
    return of_retinanet(model)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """`ops.nms` with torchvision's argument names.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        iou_threshold: 0 to 1.

    Returns:
        [K] int64, indices of the kept boxes by falling score.

    Example:
        >>> import torch
        >>> from mdssd.integrations.torchvision import nms
        >>> boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0.9]])
        >>> nms(boxes, torch.tensor([0.8, 0.9]), 0.5)
        tensor([1])
    """
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    return ops.nms(boxes.to(dtype), scores.to(dtype), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`ops.batched_nms` with torchvision's argument names, and `idxs` of any dtype."""
    # In autocast boxes and scores can have different types.
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    return ops.batched_nms(boxes.to(dtype), scores.to(dtype), idxs.long(), iou_threshold)
