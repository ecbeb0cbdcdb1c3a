"""qfgaohao/pytorch-ssd with this project's operators.

    import vision
    from mdssd.integrations import qfgaohao
    qfgaohao.patch(vision)                  # or: with qfgaohao.patch(vision): ...

Replaced: `vision.utils.box_utils.assign_priors` and `hard_nms`, and the `forward` of
`vision.nn.multibox_loss.MultiboxLoss`. What was made before the patch has them too, but for worker
processes of data loaders. `hard_negative_mining` stays; that loss does not call it.

Kept:
- Labels count from 1. 1e-5 in the denominator of every IoU, which makes an exact 0.5 background; a
  best prior that two boxes share goes to the later one.
- Detections: the best `candidate_size` of a class before NMS, an IoU of at most the threshold
  stays, boxes without area stay, at most `top_k` of a class if that is above 0.

What differs:
- An image without boxes is all background, with the priors themselves as boxes, which encode to 0
  (originally an IndexError). Without positives the losses are 0 (NaN).
- Equal scores rank by the lower prior (undefined).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import Patch, Replacement, patch_each, submodule
from mdssd.integrations.lufficc import IOU_EPS, assign_priors, multibox_loss_forward


def patch(*targets: Any) -> Patch:
    """Patch the package `vision`.

    Returns:
        Patch: `undo()` it, or use it in a `with`.

    Raises:
        TypeError: the target is not that package. Nothing is replaced then.
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
    """The kept rows [K, 5] of box_scores [N, 5], xyxy and score, by falling score."""
    scores = box_scores[:, -1]
    best = scores.argsort(descending=True, stable=True)[:candidate_size]
    kept = best[ops.nms(box_scores[best, :4], scores[best], iou_threshold, iou_eps=IOU_EPS)]
    return box_scores[kept[:top_k] if top_k > 0 else kept]
