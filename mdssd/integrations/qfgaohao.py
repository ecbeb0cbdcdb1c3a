"""Use this project's operators in qfgaohao/pytorch-ssd.

    import vision
    from mdssd.integrations import qfgaohao
    qfgaohao.patch(vision)                  # or: with qfgaohao.patch(vision): ...

This replaces `vision.utils.box_utils.assign_priors` and `hard_nms`, and the `forward` of
`vision.nn.multibox_loss.MultiboxLoss`. Objects made before the patch use them too, except for
worker processes of data loaders. `hard_negative_mining` is not replaced, because the new loss does
not call it.

This stays the same:
- Matching: labels count from 1. The denominator of every IoU contains 1e-5, so that an IoU of
  exactly 0.5 is background. If two boxes share their best prior, the later box gets it.
- Detections: the best `candidate_size` of a class enter NMS. Boxes with an IoU of at most the
  threshold and boxes without area are kept, at most `top_k` of a class if that is above 0.

This differs:
- In an image without boxes every prior is background, and its box is the prior itself, which
  encodes to 0. (The codebase raises an IndexError.) Without positives the losses are 0 (NaN).
- Equal scores are ranked by the lower prior. (In the codebase it is undefined.)
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import Patch, Replacement, patch_each, submodule, within
from mdssd.integrations.lufficc import IOU_EPS, assign_priors, multibox_loss_forward


def patch(*targets: Any) -> Patch:
    """Patch the package `vision`.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: the target is not that package. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.qfgaohao import hard_nms, patch
        >>> import vision  # doctest: +SKIP
        >>> with patch(vision):  # doctest: +SKIP
        ...     train()
        >>> import torch  # `vision.utils.box_utils.hard_nms` is then:
        >>> hard_nms(torch.tensor([[0, 0, 1, 1, 0.8], [0, 0, 1, 0.9, 0.9]]), iou_threshold=0.5)
        tensor([[0.0000, 0.0000, 1.0000, 0.9000, 0.9000]])
    """
    return patch_each("qfgaohao", "the package `vision`", targets, _of_package)


def _of_package(vision: ModuleType) -> list[Replacement]:
    box_utils = submodule(vision, "utils.box_utils")
    loss = submodule(vision, "nn.multibox_loss")
    return [
        Replacement(box_utils, "assign_priors", assign_priors),
        Replacement(box_utils, "hard_nms", hard_nms),
        Replacement(loss.MultiboxLoss, "forward", multibox_loss_forward),
    ]


def hard_nms(
    box_scores: Tensor, iou_threshold: float, top_k: int = -1, candidate_size: int = 200
) -> Tensor:
    """Return the kept rows [K, 5] of box_scores [N, 5], xyxy and score, by descending score."""
    scores = box_scores[:, -1]
    best = scores.argsort(descending=True, stable=True)[:candidate_size]
    limit = within(iou_threshold)
    kept = best[ops.nms(box_scores[best, :4], scores[best], limit, iou_eps=IOU_EPS)]
    return box_scores[kept[:top_k] if top_k > 0 else kept]
