"""Use this project's operators in NVIDIA's DeepLearningExamples, PyTorch/Detection/SSD.

    import ssd
    from mdssd.integrations import nvidia
    nvidia.patch(ssd)                       # or: with nvidia.patch(ssd): ...

This replaces `ssd.utils.Encoder.encode` and `decode_batch`, and `ssd.model.Loss.forward`. Encoders
and losses made before the patch use them too. The loss is only replaced if `ssd.model` is imported
before the patch, as the codebase's `main.py` does: that import downloads a ResNet-50, and who wants
only the encoder may be offline.

This stays the same:
- Matching: a prior is positive if its IoU exceeds `criteria`, or if it is the best prior of a box.
  If two boxes share their best prior, the later box gets it. Targets are not encoded; a prior of
  the background has its own box.
- Detections from [B, 4, N] and [B, C, N]: scores must exceed 0.05, and the best 200 of each class
  enter NMS. A box is kept only if its IoU is below `criteria`; of the boxes without area in a class
  only the best is kept. The best `max_output` of all classes are returned by ascending score, in
  0-1, not clipped.
- The loss of each image is divided by its positives, then averaged over the images. An image
  without positives adds 0.

This differs:
- In an image without boxes every prior is background. (The codebase raises an IndexError.)
- `decode_batch` does not change its arguments. (The codebase scales `bboxes_in` in place.) Its
  results are on the same device and have no gradient. Without detections they have the shapes
  [0, 4], [0], [0] (all [0]). Equal scores are ranked by the lower prior (undefined).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import (
    Patch,
    Replacement,
    imported,
    match_index,
    matched_boxes,
    matched_labels,
    patch_each,
    submodule,
    to_cxcywh,
    within,
)
from mdssd.ops._tensors import accumulation_dtype

SCORE_THRESHOLD, TOP_K = 0.05, 200


def patch(*targets: Any) -> Patch:
    """Patch the package `ssd`.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: the target is not that package. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.nvidia import encode, patch
        >>> import ssd  # doctest: +SKIP
        >>> with patch(ssd):  # doctest: +SKIP
        ...     train()
        >>> import torch  # `ssd.utils.Encoder.encode` is then:
        >>> from types import SimpleNamespace
        >>> encoder = SimpleNamespace(dboxes=torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]))
        >>> encode(encoder, encoder.dboxes[:1], torch.tensor([7]))
        (tensor([[0.2500, 0.2500, 0.5000, 0.5000],
                [0.7500, 0.7500, 0.5000, 0.5000]]), tensor([7, 0]))
    """
    return patch_each("nvidia", "the package `ssd`", targets, _of_package)


def _of_package(ssd: ModuleType) -> list[Replacement]:
    encoder = submodule(ssd, "utils").Encoder
    replacements = [
        Replacement(encoder, "encode", encode),
        Replacement(encoder, "decode_batch", decode_batch),
    ]
    model = imported(ssd, "model")
    if model is not None:
        replacements.append(Replacement(model.Loss, "forward", loss_forward))
    return replacements


def encode(
    self: Any, bboxes_in: Tensor, labels_in: Tensor, criteria: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return the box [N, 4] cxcywh and the label [N] of each prior; bboxes_in is [M, 4] xyxy."""
    dboxes = self.dboxes.to(bboxes_in.device)
    dtype = accumulation_dtype(torch.promote_types(bboxes_in.dtype, dboxes.dtype))
    index = match_index(bboxes_in, dboxes, ops.just_above(criteria, dtype), form="xyxy")
    return to_cxcywh(matched_boxes(bboxes_in, index, dboxes)), matched_labels(labels_in, index)


def decode_batch(
    self: Any,
    bboxes_in: Tensor,
    scores_in: Tensor,
    criteria: float = 0.45,
    max_output: int = 200,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return boxes [K, 4] xyxy, labels [K] and scores [K] of each image, by ascending score."""
    found = ops.detection_output(
        bboxes_in.permute(0, 2, 1),
        scores_in.permute(0, 2, 1),
        self.dboxes_xywh[0].to(bboxes_in.device),
        score_threshold=SCORE_THRESHOLD,
        nms_threshold=within(ops.just_below(criteria)),
        top_k=TOP_K,
        max_detections=max_output,
        variances=(self.scale_xy, self.scale_wh),
        keep_empty=False,
    )
    return [
        (boxes[:count].flip(0), labels[:count].flip(0), scores[:count].flip(0))
        for boxes, scores, labels, count in zip(*found[:3], found.count.tolist(), strict=True)
    ]


def loss_forward(self: Any, ploc: Tensor, plabel: Tensor, gloc: Tensor, glabel: Tensor) -> Tensor:
    """Return the loss of ploc [B, 4, N], plabel [B, C, N], gloc [B, 4, N] cxcywh, glabel [B, N]."""
    # Copied once here; the operator would copy what is not contiguous in both directions.
    localisation, confidence = ops.multibox_loss(
        ploc.permute(0, 2, 1).contiguous(),
        plabel.permute(0, 2, 1).contiguous(),
        self._loc_vec(gloc).permute(0, 2, 1),
        glabel,
        reduction="image",
    )
    return localisation + confidence
