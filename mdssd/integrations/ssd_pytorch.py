"""Use this project's operators in amdegroot/ssd.pytorch.

    import layers
    from mdssd.integrations import ssd_pytorch
    ssd_pytorch.patch(layers, net)          # or: with ssd_pytorch.patch(layers, net): ...

In the package `layers`, this replaces `layers.modules.multibox_loss.match` and
`MultiBoxLoss.forward`, `layers.functions.detection.nms` and `decode`, and
`layers.modules.l2norm.L2Norm.forward`. In `net`, an SSD built with phase "test", it replaces
`net.detect` by one call for the whole batch, which also has `forward` and `apply` for copies of the
code that use those.

This stays the same:
- Matching: labels of the targets count from 0. An IoU of 0.5 is positive. If two boxes share their
  best prior, the later box gets it. `match` encodes all priors. Boxes of another type than the
  priors, float64 beside float32, are matched in the codebase's own arithmetic, which is slower.
- Detections: scores must exceed 0.01, and the best 200 of each class enter NMS. Boxes with an IoU
  of at most the threshold are kept; of the boxes without area in a class only the best is kept.
  The result is [B, C, 200, 5] padded with 0, with an empty row 0, no limit over all classes and no
  clipping. The limits are read from the patched objects.

This differs:
- In an image without boxes every prior is background (the codebase raises an IndexError). Without
  positives the losses are 0 (0 / 0). `nms` of no boxes returns (keep, 0), as it does for others
  (only keep).
- Equal scores are ranked by the lower prior (undefined). Detections stay on the device of the
  inputs and have no gradient. Boxes differ by rounding: x2 is cx + w / 2 (x1 + w).
- L2Norm has its eps, squared, under the root, which matters for vectors shorter than about 1e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import (
    Patch,
    Replacement,
    match_index,
    patch_each,
    submodule,
    within,
)
from mdssd.ops.reference.boxes import area


def patch(*targets: Any) -> Patch:
    """Patch the package `layers`, an SSD built for testing, or both, in any order.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: a target is neither. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.ssd_pytorch import nms, patch
        >>> import layers  # doctest: +SKIP
        >>> with patch(layers):  # doctest: +SKIP
        ...     train()
        >>> import torch  # `layers.functions.detection.nms` is then:
        >>> boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0.9], [2, 2, 3, 3]])
        >>> nms(boxes, torch.tensor([0.8, 0.9, 0.7]))
        (tensor([1, 2, 0]), 2)
    """
    expected = 'the package `layers` or an SSD of phase "test"'
    return patch_each("ssd_pytorch", expected, targets, _of_layers, _of_net)


def _of_layers(layers: ModuleType) -> list[Replacement]:
    loss = submodule(layers, "modules.multibox_loss")
    detection = submodule(layers, "functions.detection")
    return [
        Replacement(loss, "match", match),
        Replacement(loss.MultiBoxLoss, "forward", _loss_forward),
        Replacement(detection, "nms", nms),
        Replacement(detection, "decode", decode),
        Replacement(submodule(layers, "modules.l2norm").L2Norm, "forward", l2norm_forward),
    ]


def _of_net(net: Any) -> list[Replacement]:
    return [Replacement(net, "detect", Detect(net.detect))]


def match(
    threshold: float,
    truths: Tensor,
    priors: Tensor,
    variances: Sequence[float],
    labels: Tensor,
    loc_t: Tensor,
    conf_t: Tensor,
    idx: int,
) -> None:
    """Write the targets of image `idx` to loc_t [B, N, 4] and conf_t [B, N].

    truths are [M, 4] xyxy, labels [M] from 0, priors [N, 4] cxcywh.
    """
    if len(truths) == 0:
        loc_t[idx], conf_t[idx] = 0, 0
        return
    # Priors of the background get offsets too, to the box with the highest IoU.
    nearest = match_index(truths, priors, 0.0, form="cxcywh")
    index = match_index(truths, priors, threshold, form="cxcywh")
    nearest_boxes = truths[nearest].to(torch.promote_types(truths.dtype, priors.dtype))
    loc_t[idx] = ops.encode_boxes(nearest_boxes, priors, (variances[0], variances[1]))
    conf_t[idx] = torch.where(index >= 0, labels[nearest] + 1, 0)


def _loss_forward(
    self: Any, predictions: tuple[Tensor, Tensor, Tensor], targets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the losses of loc [B, N, 4], conf [B, N, C], priors [>= N, 4], targets B x [M, 5]."""
    loc, conf, priors = predictions
    truths = [target[:, :-1].detach() for target in targets]
    labels = [target[:, -1].detach().long() + 1 for target in targets]
    priors = priors[: loc.shape[1]].detach()
    variances = (self.variance[0], self.variance[1])
    if all(boxes.dtype == priors.dtype for boxes in truths):
        wanted = ops.encode_targets(truths, labels, priors, self.threshold, variances)
    else:
        wanted = ops.Targets(loc.new_zeros(loc.shape), labels[0].new_zeros(loc.shape[:2]))
        for i, boxes in enumerate(truths):
            match(self.threshold, boxes, priors, variances, labels[i] - 1, *wanted, i)
    return ops.multibox_loss(loc, conf, wanted.loc, wanted.labels, self.negpos_ratio)


def decode(loc: Tensor, priors: Tensor, variances: Sequence[float]) -> Tensor:
    """Decode loc [N, 4] to boxes [N, 4] xyxy, in the wider of both types (autocast narrows loc)."""
    dtype = torch.promote_types(loc.dtype, priors.dtype)
    return ops.decode_boxes(loc.to(dtype), priors.to(dtype), (variances[0], variances[1]))


def nms(
    boxes: Tensor, scores: Tensor, overlap: float = 0.5, top_k: int = 200
) -> tuple[Tensor, int]:
    """Return the kept indices [N], padded with 0, and their number."""
    best = scores.argsort(descending=True, stable=True)[:top_k]
    kept = best[ops.nms(boxes[best], scores[best].to(boxes.dtype), within(overlap))]
    empty = area(boxes[kept]) == 0  # these suppress no others, so they can be removed last
    kept = kept[~empty | (empty.cumsum(0) == 1)]
    keep = kept.new_zeros(len(scores))
    keep[: len(kept)] = kept
    return keep, len(kept)


def l2norm_forward(self: Any, x: Tensor) -> Tensor:
    """Normalise x [B, C, H, W] over its channels and scale it by `self.weight` [C]."""
    # |x| + eps and sqrt(x^2 + eps^2) both equal |x| unless it is as small as eps.
    return ops.l2norm(x, self.weight, max(self.eps**2, 1e-38))


class Detect:
    """Replaces `net.detect`, with the same attributes."""

    def __init__(self, original: Any) -> None:
        self.num_classes: int = original.num_classes
        self.top_k: int = original.top_k
        self.conf_thresh: float = original.conf_thresh
        self.nms_thresh: float = original.nms_thresh
        self.variance: Sequence[float] = original.variance

    def forward(self, loc_data: Tensor, conf_data: Tensor, prior_data: Tensor) -> Tensor:
        """Return [B, C, top_k, 5], score and xyxy; conf_data is softmax [B, N, C] or [B * N, C]."""
        settings = (self.num_classes, self.top_k, self.conf_thresh, self.nms_thresh)
        return _detect(*settings, self.variance, loc_data, conf_data, prior_data)

    __call__ = forward

    def apply(
        self,
        num_classes: int,
        bkg_label: int,
        top_k: int,
        conf_thresh: float,
        nms_thresh: float,
        loc_data: Tensor,
        conf_data: Tensor,
        prior_data: Tensor,
    ) -> Tensor:
        """Do the same with the settings of the call; `bkg_label` is ignored, as in the codebase."""
        settings = (num_classes, top_k, conf_thresh, nms_thresh)
        return _detect(*settings, self.variance, loc_data, conf_data, prior_data)


def _detect(
    classes: int,
    top_k: int,
    conf_thresh: float,
    nms_thresh: float,
    variance: Sequence[float],
    loc: Tensor,
    conf: Tensor,
    priors: Tensor,
) -> Tensor:
    found = ops.detection_output(
        loc,
        conf.reshape(loc.shape[0], -1, classes),
        priors,
        score_threshold=max(0.0, within(conf_thresh)),
        nms_threshold=within(nms_thresh),
        top_k=top_k,
        max_detections=top_k,
        variances=(variance[0], variance[1]),
        softmax=False,
        per_class=True,
        keep_empty=False,
    )
    rows = torch.cat([found.scores[..., None], found.boxes], -1)  # [B, C - 1, top_k, 5]
    return torch.cat([torch.zeros_like(rows[:, :1]), rows], 1)
