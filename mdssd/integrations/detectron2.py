"""Use this project's operators in detectron2.

    import detectron2
    from mdssd.integrations import detectron2 as fast
    fast.patch(detectron2)                  # or: with fast.patch(detectron2): ...

This replaces, for all models and wherever detectron2 has imported them:

- `pairwise_iou` in the region proposal network, RetinaNet, the ROI heads and the cascade, and
  `Matcher.__call__`, which gets its result. The matrix of boxes x anchors is not built: what
  `pairwise_iou` returns there is a tensor that computes its values when something other than the
  matcher reads them.
- `batched_nms`. The region proposal network, RetinaNet, FCOS and the ROI heads suppress with it.

This stays the same:
- Matching: any thresholds and labels, the ignored anchors between two thresholds, and
  `allow_low_quality_matches`, with which every anchor that has the highest IoU of some box is
  positive. An IoU of exactly a threshold is above it. Each anchor has the box with which it has its
  highest IoU, the background included. An image without boxes is all background.
- NMS: boxes of different classes or feature maps do not meet; those with an IoU of at most the
  threshold stay, and the best come first.
- detectron2's own code runs for rotated boxes, other matchers, TorchScript and tracing, and for
  thresholds and tensors that the operators do not take.

This differs:
- NMS does not shift the classes apart, which rounds the coordinates.
- NMS ranks equal scores by the lower row. In detectron2 their order is undefined. An untrained
  RetinaNet has thousands of scores of exactly 1. Its NMS keeps the same boxes, but the best 100 of
  them are others: three images had 21, 7 and 13 detections, and 44, 43 and 40 patched. With equal
  scores ranked by the lower row, detectron2 returned the patched ones.
- A box with a NaN has an IoU of 0 with every anchor. (detectron2 fails an assertion.)

Code of your own that imported these names from detectron2 before the patch keeps the originals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations import _torchvision as shared
from mdssd.integrations._overlaps import Overlaps
from mdssd.integrations._patch import Patch, Replacement, everywhere, patch_each, submodule
from mdssd.integrations.torchvision import batched_nms as suppressed

# The modules that give the result of `pairwise_iou` to a matcher.
_MATCHING = (
    "modeling.proposal_generator.rpn",
    "modeling.meta_arch.retinanet",
    "modeling.roi_heads.roi_heads",
    "modeling.roi_heads.cascade_rcnn",
)


def patch(*targets: Any) -> Patch:
    """Patch the package `detectron2`.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: the target is not that package. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.detectron2 import patch
        >>> import detectron2  # doctest: +SKIP
        >>> with patch(detectron2):  # doctest: +SKIP
        ...     trainer.train()
    """
    return patch_each("detectron2", "the package `detectron2`", targets, _of_package)


def _of_package(detectron2: ModuleType) -> list[Replacement]:
    original = submodule(detectron2, "structures.boxes").pairwise_iou
    users = [submodule(detectron2, path) for path in _MATCHING]
    replacements = [Replacement(user, "pairwise_iou", _lazily(original)) for user in users]
    matcher = submodule(detectron2, "modeling.matcher").Matcher
    replacements.append(Replacement(matcher, "__call__", _matching(matcher.__call__)))
    home = submodule(detectron2, "layers.nms")
    value = shared.with_original(home.batched_nms, _batched_nms, shared.batched_nms_fits)
    return replacements + everywhere(detectron2, home, "batched_nms", value)


def _lazily(original: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Return what replaces `pairwise_iou`, of two `Boxes`."""

    @functools.wraps(original)
    def call(boxes: Any, others: Any) -> Tensor:
        return Overlaps(lambda: original(boxes, others), boxes.tensor, others.tensor)

    return call


def _matching(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what replaces the call of a matcher."""

    @functools.wraps(original)
    def call(self: Any, match_quality_matrix: Tensor) -> Any:
        overlaps = match_quality_matrix
        if (
            not isinstance(overlaps, Overlaps)
            or overlaps.is_computed()
            or 0 in overlaps.shape
            or overlaps.others.dtype != overlaps.dtype
            or overlaps.dtype not in (torch.float32, torch.float64)
        ):
            return original(self, match_quality_matrix)
        return match(self, overlaps.boxes, overlaps.others)

    return call


def match(matcher: Any, boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index [N] of each anchor's box and its label [N], as the matcher of detectron2.

    Args:
        matcher: it has `thresholds`, from -inf to inf, a label for each interval in `labels`, and
            `allow_low_quality_matches`.
        boxes: [M, 4] xyxy.
        anchors: [N, 4] xyxy in the same unit.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from mdssd.integrations.detectron2 import match
        >>> inf = float("inf")
        >>> thresholds, labels = [-inf, 0.3, 0.7, inf], [0, -1, 1]
        >>> matcher = SimpleNamespace(
        ...     thresholds=thresholds, labels=labels, allow_low_quality_matches=False
        ... )
        >>> anchors = torch.tensor([[0.0, 0, 4, 4], [0.0, 0, 4, 8], [9.0, 9, 10, 10]])
        >>> match(matcher, anchors[:1], anchors)[1]
        tensor([ 1, -1,  0], dtype=torch.int8)
    """
    nearest = ops.match_priors([boxes], anchors, 0.0, priors_form="xyxy", force="none")
    index, best = nearest.index[0], nearest.iou[0]
    labels = torch.ones_like(index, dtype=torch.int8)
    ends = matcher.thresholds
    for label, low, high in zip(matcher.labels, ends[:-1], ends[1:], strict=True):
        labels[(best >= low) & (best < high)] = label
    if matcher.allow_low_quality_matches:
        highest = ops.match_priors([boxes], anchors, 1.0, priors_form="xyxy", force="low_quality")
        labels[highest.index[0] >= 0] = 1
    return index, labels


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return suppressed(boxes.float(), scores, idxs, iou_threshold)
