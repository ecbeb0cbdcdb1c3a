"""Use this project's operators in lufficc/SSD.

    import ssd
    from mdssd.integrations import lufficc
    lufficc.patch(ssd, model)               # or: with lufficc.patch(ssd, model): ...

In the package `ssd`, this replaces `ssd.utils.box_utils.assign_priors`, with which the data loader
matches (in its worker processes too, if they start after the patch), and the `forward` of
`ssd.modeling.backbone.vgg.L2Norm`. In `model`, an `SSDDetector`, it replaces
`box_head.post_processor` and `box_head.loss_evaluator`. `hard_negative_mining` is not replaced,
because the new loss does not call it. (The codebase itself ends Python at its import beside
torchvision 0.10 or newer, because it compares versions as texts: remove that check from
`ssd/utils/nms.py` first.)

This stays the same:
- Matching: labels count from 1. The denominator of the IoU contains 1e-5, so that an IoU of exactly
  0.5 is background. If two boxes share their best prior, the later box gets it. Boxes of another
  type than the priors, float64 beside float32, are matched in the codebase's own arithmetic, which
  is slower.
- Detections: scores must exceed the configured threshold. There is no limit per class. Boxes with
  an IoU of at most the threshold and boxes without area are kept. The best `MAX_PER_IMAGE` of all
  classes are returned by descending score, in pixels, not clipped, as a `Container` for each image.
  `MAX_PER_CLASS` is not read, as in the last version of the codebase.

This differs:
- In an image without boxes every prior is background, and its box is the prior itself, which
  encodes to 0. (The codebase raises an IndexError.) Without positives the losses are 0 (NaN).
- NMS never compares boxes of different classes. The codebase shifts the classes apart, which rounds
  the coordinates, and boxes with negative coordinates can meet those of another class.
- Equal scores are ranked by the lower prior, then by class. (In the codebase it is undefined.)
- A box with a NaN suppresses no others. (In the codebase it keeps the NMS from removing any.)
- L2Norm has its eps, squared, under the root, which matters for vectors shorter than about 1e-4.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import (
    Patch,
    Replacement,
    match_index,
    matched_labels,
    patch_each,
    submodule,
    within,
)
from mdssd.integrations.ssd_pytorch import l2norm_forward

IOU_EPS = 1e-5
_FIRST = 4096  # first number of candidates for NMS, nearly always enough for an image


def patch(*targets: Any) -> Patch:
    """Patch the package `ssd`, an SSDDetector, or both, in any order.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: a target is neither. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.lufficc import assign_priors, patch
        >>> import ssd  # doctest: +SKIP
        >>> with patch(ssd):  # doctest: +SKIP
        ...     train()
        >>> import torch  # `ssd.utils.box_utils.assign_priors` is then:
        >>> priors = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
        >>> assign_priors(priors[:1], torch.tensor([7]), priors, 0.5)[1]
        tensor([7, 0])
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
    """Match boxes [M, 4] xyxy, with labels [M] from 1, to priors [N, 4] xyxy.

    Returns the box [N, 4] and the label [N] of each prior. A prior of the background has the box
    with the highest IoU.
    """
    if len(gt_boxes) == 0:
        return corner_form_priors.to(gt_boxes.dtype, copy=True), gt_labels.new_zeros(
            len(corner_form_priors)
        )
    nearest, index = (
        match_index(gt_boxes, corner_form_priors, threshold, form="xyxy", iou_eps=IOU_EPS)
        for threshold in (0.0, iou_threshold)
    )
    return gt_boxes[nearest], matched_labels(gt_labels, index)


class Loss:
    """Replaces `loss_evaluator`."""

    def __init__(self, original: Any) -> None:
        self.neg_pos_ratio: float = original.neg_pos_ratio

    def __call__(
        self, confidence: Tensor, predicted_locations: Tensor, labels: Tensor, gt_locations: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the localisation and confidence losses."""
        return multibox_loss_forward(self, confidence, predicted_locations, labels, gt_locations)


def multibox_loss_forward(
    self: Any, confidence: Tensor, predicted_locations: Tensor, labels: Tensor, gt_locations: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss, with the arguments in the order of this codebase."""
    return ops.multibox_loss(
        predicted_locations, confidence, gt_locations, labels, self.neg_pos_ratio
    )


class PostProcessor:
    """Replaces `post_processor`; each call reads the settings from `cfg`."""

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
        """Return a Container for each image of scores [B, N, C] and boxes [B, N, 4] xyxy in 0-1."""
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
            kept = ops.batched_nms(pixels[prior], score, column, within(test.NMS_THRESHOLD))
            if is_all or len(kept) >= most:  # all other candidates rank below these
                break
            limit *= 8
        kept = kept[:most]
        return {"boxes": pixels[prior[kept]], "labels": column[kept] + 1, "scores": score[kept]}


def _best(scores: Tensor, threshold: float, limit: int) -> tuple[Tensor, Tensor, bool]:
    """Rows and columns of the best `limit` scores above the threshold, and whether these are all.

    Scores equal to the last one are included.
    """
    passes = scores > threshold
    is_all = int(passes.sum()) <= limit
    if not is_all:
        passes = scores >= scores.flatten().topk(limit).values[-1]
    row, column = passes.nonzero(as_tuple=True)
    return row, column, is_all
