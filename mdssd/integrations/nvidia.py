"""NVIDIA's DeepLearningExamples, PyTorch/Detection/SSD, with this project's operators.

    import ssd
    from mdssd.integrations import nvidia
    nvidia.patch(ssd)                       # or: with nvidia.patch(ssd): ...

Replaced: `ssd.utils.Encoder.encode` and `decode_batch`, and `ssd.model.Loss.forward`. Encoders and
losses made before the patch have them too.

Kept:
- A prior needs an IoU above `criteria`, or is the best of a box, the later one where two share it.
  Targets are not encoded; a prior of the background has its own box.
- Detections, of [B, 4, N] and [B, C, N]: scores above 0.05, the best 200 of each class, only an IoU
  below `criteria` stays, of the boxes without area in a class only the best, the best `max_output`
  of all classes by rising score, in 0-1, not clipped.
- The loss is over the positives of each image, then the mean; an image without adds 0.

What differs:
- An image without boxes is all background (originally an IndexError).
- `decode_batch` leaves its arguments as they are (`bboxes_in` is scaled in place). Its results are
  on their device and carry no gradient. Without detections they are [0, 4], [0], [0] (all [0]).
  Equal scores rank by the lower prior (undefined).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import (
    Patch,
    Replacement,
    patch_each,
    submodule,
    taken,
    taken_labels,
    to_cxcywh,
)
from mdssd.ops._tensors import accumulation_dtype

SCORE_THRESHOLD, TOP_K = 0.05, 200


def patch(*targets: Any) -> Patch:
    """Patch the package `ssd`.

    Returns:
        Patch: `undo()` it, or use it in a `with`.

    Raises:
        TypeError: the target is not that package. Nothing is replaced then.
    """
    return patch_each("nvidia", "the package `ssd`", targets, _of_package)


def _of_package(ssd: ModuleType) -> list[Replacement]:
    encoder = submodule(ssd, "utils").Encoder
    return [
        Replacement(encoder, "encode", _encode),
        Replacement(encoder, "decode_batch", _decode_batch),
        Replacement(submodule(ssd, "model").Loss, "forward", _loss_forward),
    ]


def _encode(
    self: Any, bboxes_in: Tensor, labels_in: Tensor, criteria: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The box [N, 4] cxcywh and the label [N] of each prior; bboxes_in [M, 4] xyxy."""
    dboxes = self.dboxes.to(bboxes_in.device)
    threshold = ops.just_above(criteria, accumulation_dtype(bboxes_in.dtype))
    index = ops.match_priors([bboxes_in], dboxes, threshold, priors_form="xyxy").index[0]
    return to_cxcywh(taken(bboxes_in, index, dboxes)), taken_labels(labels_in, index)


def _decode_batch(
    self: Any,
    bboxes_in: Tensor,
    scores_in: Tensor,
    criteria: float = 0.45,
    max_output: int = 200,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each image: boxes [K, 4] xyxy, labels [K], scores [K], by rising score."""
    found = ops.detection_output(
        bboxes_in.permute(0, 2, 1),
        scores_in.permute(0, 2, 1),
        self.dboxes_xywh[0].to(bboxes_in.device),
        score_threshold=SCORE_THRESHOLD,
        nms_threshold=ops.just_below(criteria),
        top_k=TOP_K,
        max_detections=max_output,
        variances=(self.scale_xy, self.scale_wh),
        keep_empty=False,
    )
    return [
        (boxes[:count].flip(0), labels[:count].flip(0), scores[:count].flip(0))
        for boxes, scores, labels, count in zip(*found[:3], found.count.tolist(), strict=True)
    ]


def _loss_forward(self: Any, ploc: Tensor, plabel: Tensor, gloc: Tensor, glabel: Tensor) -> Tensor:
    """The loss of ploc [B, 4, N], plabel [B, C, N], gloc [B, 4, N] cxcywh, glabel [B, N]."""
    localisation, confidence = ops.multibox_loss(
        ploc.permute(0, 2, 1),
        plabel.permute(0, 2, 1),
        self._loc_vec(gloc).permute(0, 2, 1),
        glabel,
        reduction="image",
    )
    return localisation + confidence
