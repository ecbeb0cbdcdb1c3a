"""Use this project's operators in effdet (EfficientDet in PyTorch).

    import effdet
    from mdssd.integrations import effdet as fast
    fast.patch(effdet)                      # or: with fast.patch(effdet): ...

This replaces `generate_detections`, and in `effdet.bench` `_batch_detection`, which calls it for
each image; and `label_anchors` and `batch_label_anchors` of `AnchorLabeler`. Benches and labelers
made before the patch use them too; `DetBenchPredict` must not be compiled by `torch.jit.script`
while patched.

This stays the same:
- Detections: the pairs of anchor and class that the bench selected are decoded, clipped if the
  image's size is given, and suppressed class by class: NMS keeps an IoU of at most 0.5; soft-NMS is
  Gaussian, with sigma 0.5, down to a score of 0.001. The best `max_det_per_image` are returned as
  rows of box, score, class (from 1), scaled to the image, then rows of 0. The box is xyxy, or x, y,
  width, height, as the version of effdet has it.
- Labels: an IoU of the threshold is positive, and each box has its best anchor; if two boxes share
  it, the earlier one gets it. The targets of anchors without a box are 0, their class is -1.
- effdet's own code runs for labelers with another matcher or box coder.

This differs:
- NMS never compares boxes of different classes. (effdet shifts the classes apart, which rounds the
  coordinates.) Equal scores are ranked by the lower row. (In effdet it is undefined.)
- Soft-NMS returns nothing below a score of 0.001. (effdet returns the best box always.)
- The sizes that targets are divided by lack effdet's 1e-7 pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import (
    Patch,
    Replacement,
    everywhere,
    patch_each,
    submodule,
    to_cxcywh,
)

NMS_THRESHOLD, SOFT_SIGMA, SOFT_THRESHOLD = 0.5, 0.5, 0.001
_YX = [1, 0, 3, 2]  # x and y exchanged

Targets = tuple[list[Tensor], list[Tensor], Tensor]


def patch(*targets: Any) -> Patch:
    """Patch the package `effdet`.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: the target is not that package. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.effdet import patch
        >>> import effdet  # doctest: +SKIP
        >>> with patch(effdet):  # doctest: +SKIP
        ...     detections = bench(images)
    """
    return patch_each("effdet", "the package `effdet`", targets, _of_package)


def _of_package(effdet: ModuleType) -> list[Replacement]:
    anchors, bench = submodule(effdet, "anchors"), submodule(effdet, "bench")
    labeler = anchors.AnchorLabeler
    generate = functools.partial(generate_detections, sizes=_has_sizes(anchors))
    return [
        *everywhere(effdet, anchors, "generate_detections", generate),
        Replacement(bench, "_batch_detection", functools.partial(_batch_detection, generate)),
        Replacement(labeler, "label_anchors", _labelled(labeler.label_anchors, batch=False)),
        Replacement(
            labeler, "batch_label_anchors", _labelled(labeler.batch_label_anchors, batch=True)
        ),
    ]


def _has_sizes(anchors: ModuleType) -> bool:
    """Whether this version of effdet returns width and height of a box: of one from 2 to 10."""
    anchor = torch.tensor([[1.0, 2.0, 5.0, 10.0]])
    arguments = torch.zeros(1, 1), torch.zeros(1, 4), anchor, *torch.zeros(2, 1).long()
    return float(anchors.generate_detections(*arguments, None, None)[0, 2]) < 9


def generate_detections(
    cls_outputs: Tensor,
    box_outputs: Tensor,
    anchor_boxes: Tensor,
    indices: Tensor,
    classes: Tensor,
    img_scale: Tensor | None,
    img_size: Tensor | None,
    max_det_per_image: int = 100,
    soft_nms: bool = False,
    *,
    sizes: bool = False,
) -> Tensor:
    """Return the detections [max_det_per_image, 6] of one image; see effdet.

    Args:
        cls_outputs: [K, 1], a logit for each selected pair of anchor and class.
        box_outputs: [K, 4], its offsets (ty, tx, th, tw).
        anchor_boxes: [N, 4], all anchors (y1, x1, y2, x2) in pixels.
        indices: [K], the anchor of each pair.
        classes: [K], its class, from 0.
        img_scale: None, or what boxes are multiplied by in the end.
        img_size: None, or the width and height [2] of the original image.
        max_det_per_image: rows of the result.
        soft_nms: lower the scores of overlapping boxes, where NMS removes the boxes.
        sizes: return width and height in place of x2 and y2.

    Example:
        >>> import torch
        >>> from mdssd.integrations.effdet import generate_detections
        >>> anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
        >>> arguments = torch.zeros(1, 1), torch.zeros(1, 4), anchors
        >>> generate_detections(*arguments, *torch.zeros(2, 1).long(), None, None, 1)
        tensor([[ 0.0000,  0.0000, 20.0000, 10.0000,  0.5000,  1.0000]])
    """
    own = to_cxcywh(anchor_boxes[indices])
    boxes = ops.decode_boxes(box_outputs.float(), own, (1.0, 1.0))[:, _YX]
    if img_scale is not None and img_size is not None:
        limits = (img_size / img_scale).repeat(2)
        boxes = boxes.clamp(min=0).minimum(limits)
    scores = cls_outputs[:, 0].sigmoid().float()
    if soft_nms:
        kept, kept_scores = ops.soft_nms(
            boxes,
            scores,
            classes,
            method="gaussian",
            sigma=SOFT_SIGMA,
            score_threshold=SOFT_THRESHOLD,
        )
    else:
        kept = ops.batched_nms(boxes, scores, classes, NMS_THRESHOLD)
        kept_scores = scores[kept]
    kept, kept_scores = kept[:max_det_per_image], kept_scores[:max_det_per_image]
    rows = boxes[kept]
    if sizes:
        rows = torch.cat([rows[:, :2], rows[:, 2:] - rows[:, :2]], 1)
    if img_scale is not None:
        rows = rows * img_scale
    found = torch.cat([rows, kept_scores[:, None], classes[kept, None].float() + 1], 1)
    return torch.nn.functional.pad(found, (0, 0, 0, max_det_per_image - len(kept)))


def _batch_detection(
    generate: Callable[..., Tensor],
    batch_size: int,
    class_out: Tensor,
    box_out: Tensor,
    anchor_boxes: Tensor,
    indices: Tensor,
    classes: Tensor,
    img_scale: Tensor | None = None,
    img_size: Tensor | None = None,
    max_det_per_image: int = 100,
    soft_nms: bool = False,
) -> Tensor:
    """Return the detections [B, max_det_per_image, 6] of a batch."""
    return torch.stack(
        [
            generate(
                class_out[i],
                box_out[i],
                anchor_boxes,
                indices[i],
                classes[i],
                None if img_scale is None else img_scale[i],
                None if img_size is None else img_size[i],
                max_det_per_image,
                soft_nms,
            )
            for i in range(batch_size)
        ]
    )


def _labelled(original: Callable[..., Targets], batch: bool) -> Callable[..., Targets]:
    """Return what replaces `label_anchors` or `batch_label_anchors`."""

    @functools.wraps(original)
    def call(self: Any, gt_boxes: Any, gt_classes: Any, filter_valid: bool = True) -> Targets:
        assigner = self.target_assigner
        if (
            "ArgMaxMatcher" not in type(assigner._matcher).__name__
            or getattr(assigner._box_coder, "_scale_factors", 0) is not None
            or not 0 <= self.match_threshold <= 1
            or not hasattr(self.anchors, "feat_sizes")  # of an older version
        ):
            return original(self, gt_boxes, gt_classes, filter_valid)
        if batch:
            return _label(self, list(gt_boxes), list(gt_classes), filter_valid)
        classes, boxes, positives = _label(self, [gt_boxes], [gt_classes], filter_valid)
        return [level[0] for level in classes], [level[0] for level in boxes], positives[0]

    return call


def _label(
    labeler: Any, gt_boxes: Sequence[Tensor], gt_classes: Sequence[Tensor], filter_valid: bool
) -> Targets:
    """Return the classes [B, H, W, A] and offsets [B, H, W, 4 A] of each level, and positives [B].

    Boxes and anchors are (y1, x1, y2, x2), of which neither matching nor encoding takes note.
    """
    anchors = labeler.anchors.boxes
    valid = [c > -1 if filter_valid else torch.ones_like(c, dtype=torch.bool) for c in gt_classes]
    boxes = [b[own].to(anchors.dtype) for b, own in zip(gt_boxes, valid, strict=True)]
    classes = [c[own].reshape(-1) for c, own in zip(gt_classes, valid, strict=True)]
    index = _matched(boxes, anchors, labeler.match_threshold)
    image, place = (index >= 0).nonzero(as_tuple=True)
    starts = torch.tensor([0, *(len(b) for b in boxes)], device=index.device).cumsum(0)
    row = starts[image] + index[image, place]
    offsets = torch.zeros(*index.shape, 4, dtype=anchors.dtype, device=index.device)
    own_anchors = to_cxcywh(anchors)[place]
    offsets[image, place] = ops.encode_boxes(torch.cat(boxes)[row], own_anchors, (1.0, 1.0))
    labels = torch.full_like(index, -1)
    labels[image, place] = torch.cat(classes)[row].long() - 1
    per_place = labeler.anchors.get_anchors_per_location()
    class_levels, box_levels, start = [], [], 0
    for level in range(labeler.anchors.min_level, labeler.anchors.max_level + 1):
        height, width = _size(labeler, level)
        stop = start + height * width * per_place
        class_levels.append(labels[:, start:stop].reshape(len(index), height, width, -1))
        box_levels.append(offsets[:, start:stop].reshape(len(index), height, width, -1))
        start = stop
    return class_levels, box_levels, (index >= 0).sum(1).float()


def _size(labeler: Any, level: int) -> tuple[int, int]:
    """Return the height and width of a feature map."""
    height, width = labeler.anchors.feat_sizes[level]
    return int(height), int(width)


def _matched(boxes: list[Tensor], anchors: Tensor, threshold: float) -> Tensor:
    """Return the index [B, N] of each anchor's box, -1 for none.

    The operator gives a shared best anchor to the later box, so the boxes are reversed for it.
    """
    nearest = ops.match_priors(boxes, anchors, threshold, priors_form="xyxy", force="none").index
    flipped = [each.flip(0) for each in boxes]
    best = ops.match_priors(flipped, anchors, 1.0, priors_form="xyxy").index
    counts = torch.tensor([len(each) for each in boxes], device=anchors.device)[:, None]
    return torch.where(best >= 0, counts - 1 - best, nearest)
