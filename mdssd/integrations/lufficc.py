"""lufficc/SSD with this project's operators.

    import ssd
    from mdssd.integrations import lufficc
    lufficc.patch(ssd, model)               # or: with lufficc.patch(ssd, model): ...

Replaced, of the package `ssd`: `ssd.utils.box_utils.assign_priors`, by which the data loader
matches (its worker processes, if they start after the patch), and the `forward` of
`ssd.modeling.backbone.vgg.L2Norm`. Of `model`, an `SSDDetector`: `box_head.post_processor` and
`box_head.loss_evaluator`. `hard_negative_mining` stays; that loss does not call it.

Kept:
- Labels count from 1. 1e-5 in the denominator of the matching's IoU, which makes an exact 0.5
  background; a best prior that two boxes share goes to the later one.
- Detections: scores above the configured threshold, no limit per class, an IoU of at most the
  threshold stays, boxes without area stay, the best `MAX_PER_IMAGE` of all classes by falling
  score, in pixels, not clipped; a `Container` for each image. As in its last version
  `MAX_PER_CLASS` is not read.

What differs:
- An image without boxes is all background, with the priors themselves as boxes, which encode to 0
  (originally an IndexError). Without positives the losses are 0 (NaN).
- Boxes of different classes never meet in NMS. Originally the classes are shifted apart, by which
  coordinates are rounded, and boxes with negative coordinates may meet those of another class.
- Equal scores rank by the lower prior, then class (undefined).
- L2Norm has its eps, squared, under the root: the same but for vectors shorter than about 1e-4.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import Patch, Replacement, patch_each, submodule, taken_labels
from mdssd.integrations.ssd_pytorch import l2norm_forward

IOU_EPS = 1e-5
_FIRST = 4096  # candidates that nearly always give the detections of an image


def patch(*targets: Any) -> Patch:
    """Patch the package `ssd`, an SSDDetector, or both, in any order.

    Returns:
        Patch: `undo()` it, or use it in a `with`.

    Raises:
        TypeError: a target is neither. Nothing is replaced then.
    """
    return patch_each(
        "lufficc", "the package `ssd` or an SSDDetector", targets, _of_package, _of_model
    )


def _of_package(ssd: ModuleType) -> list[Replacement]:
    return [
        Replacement(submodule(ssd, "utils.box_utils"), "assign_priors", assign_priors),
        Replacement(submodule(ssd, "modeling.backbone.vgg").L2Norm, "forward", l2norm_forward),
    ]


def _of_model(model: Any) -> list[Replacement]:
    head = model.box_head
    return [
        Replacement(head, "post_processor", PostProcessor(head.post_processor)),
        Replacement(head, "loss_evaluator", Loss(head.loss_evaluator)),
    ]


def assign_priors(
    gt_boxes: Tensor, gt_labels: Tensor, corner_form_priors: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """The box [N, 4] and the label [N] of each prior; a prior of the background has its best box.

    gt_boxes [M, 4] and corner_form_priors [N, 4] xyxy, gt_labels [M] from 1.
    """
    if len(gt_boxes) == 0:
        return corner_form_priors.to(gt_boxes.dtype, copy=True), gt_labels.new_zeros(
            len(corner_form_priors)
        )
    nearest, index = (
        ops.match_priors(
            [gt_boxes], corner_form_priors, threshold, iou_eps=IOU_EPS, priors_form="xyxy"
        ).index[0]
        for threshold in (0.0, iou_threshold)
    )
    return gt_boxes[nearest], taken_labels(gt_labels, index)


class Loss:
    """What `loss_evaluator` is."""

    def __init__(self, original: Any) -> None:
        self.neg_pos_ratio: float = original.neg_pos_ratio

    def __call__(
        self, confidence: Tensor, predicted_locations: Tensor, labels: Tensor, gt_locations: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(localisation, confidence) of [B, N, C], [B, N, 4], [B, N], [B, N, 4]."""
        return multibox_loss_forward(self, confidence, predicted_locations, labels, gt_locations)


def multibox_loss_forward(
    self: Any, confidence: Tensor, predicted_locations: Tensor, labels: Tensor, gt_locations: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss in the order of arguments of this code."""
    return ops.multibox_loss(
        predicted_locations, confidence, gt_locations, labels, self.neg_pos_ratio
    )


class PostProcessor:
    """What `post_processor` is; its settings are read from `cfg` at each call."""

    def __init__(self, original: Any) -> None:
        self.cfg = original.cfg
        self.width: int = original.width
        self.height: int = original.height
        self.container: Any
        if isinstance(original, PostProcessor):  # patched twice
            self.container = original.container
        else:
            self.container = sys.modules[type(original).__module__].Container

    def __call__(self, detections: tuple[Tensor, Tensor]) -> list[Any]:
        """A Container for each image; detections: scores [B, N, C], boxes [B, N, 4] xyxy in 0-1."""
        results = []
        for scores, boxes in zip(*detections, strict=True):
            found = self.container(**self._of_image(scores[:, 1:], boxes))
            found.img_width, found.img_height = self.width, self.height
            results.append(found)
        return results

    def _of_image(self, scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        test = self.cfg.TEST
        pixels = boxes * boxes.new_tensor([self.width, self.height] * 2)
        limit, most = _FIRST, test.MAX_PER_IMAGE
        while True:
            prior, column, is_all = _best(scores, test.CONFIDENCE_THRESHOLD, limit)
            score = scores[prior, column]
            kept = ops.batched_nms(pixels[prior], score, column, test.NMS_THRESHOLD)
            if is_all or len(kept) >= most:  # whatever else there is ranks below
                break
            limit *= 8
        kept = kept[:most]
        return {"boxes": pixels[prior[kept]], "labels": column[kept] + 1, "scores": score[kept]}


def _best(scores: Tensor, threshold: float, limit: int) -> tuple[Tensor, Tensor, bool]:
    """Row and column of scores above the threshold: the best `limit` with those as good, or all.

    Also whether they are all.
    """
    passes = scores > threshold
    is_all = int(passes.sum()) <= limit
    if not is_all:
        passes = scores >= scores.flatten().topk(limit).values[-1]
    row, column = passes.nonzero(as_tuple=True)
    return row, column, is_all
