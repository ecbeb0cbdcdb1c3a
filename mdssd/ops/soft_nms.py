"""Soft-NMS: it lowers the scores of overlapping boxes, where NMS removes the boxes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import (
    check_choice,
    check_int,
    check_number,
    check_same_dtype,
    check_tensor,
)
from mdssd.ops._dispatch import define
from mdssd.ops._results import new_soft_keep
from mdssd.ops._settings import DECAYS, SIGMAS, SoftNmsSettings
from mdssd.ops.native import soft_nms as native
from mdssd.ops.reference import soft_nms as reference

_MOST = 2**31 - 1


class SoftKeep(NamedTuple):
    """Result of `soft_nms`: K boxes, by falling score.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 2.0, 1.0]])
        >>> ops.soft_nms(boxes, torch.tensor([0.5, 0.75])).scores
        tensor([0.7500, 0.2500])
    """

    keep: Tensor  # [K] int64, indices of the kept boxes
    scores: Tensor  # [K], their lowered scores


class PaddedSoftKeep(NamedTuple):
    """Result of `soft_nms_padded` for N boxes: M = min(N, max_detections) rows.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 4.0, 1.0]])
        >>> ops.soft_nms_padded(boxes, torch.tensor([0.5, 0.75])).count
        tensor(1)
    """

    keep: Tensor  # [M] int64, indices of the kept boxes by falling score, then zeros
    scores: Tensor  # [M], their lowered scores, then zeros
    count: Tensor  # type: ignore[assignment]  # int64 scalar, how many boxes are kept


def soft_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_detections: int | None = None,
) -> SoftKeep:
    """Lower the scores of boxes that overlap a better one, instead of removing them.

    Choose the box of the highest score, multiply the scores of all others of its label by a number
    that falls with the IoU, and repeat this with the boxes that are left, until all their scores
    are below `score_threshold`. The number is

    - "linear": 1 - IoU if the IoU is above `iou_threshold`, and 1 otherwise;
    - "gaussian": exp(-IoU^2 / sigma).

    On a GPU this waits for the device, since the size of the result depends on the data;
    `soft_nms_padded` does not. Memory is O(N). Indices and scores are the same, bit for bit, on
    every backend.

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16 or float64. N may be 0.
        scores: [N], same dtype and device. NaN counts as the highest score and stays NaN.
        labels: None, or [N] int64, any value. Boxes of different labels do not affect one another.
        method: "linear" or "gaussian".
        iou_threshold: 0 to 1; without effect with "gaussian".
        sigma: 1e-6 to 1e6, the smaller the stronger the decay; without effect with "linear".
        score_threshold: 0 to 1; a box whose score is, or falls, below this is not kept.
        max_detections: None, or how many of the best boxes are kept; from 1.

    Returns:
        SoftKeep with `keep` [K] int64, the indices of the kept boxes by falling lowered score, and
        `scores` [K], the lowered scores. Ties: of equal scores the lower index is chosen first, and
        comes first in the result. A box of zero or negative size, of infinite area, or with a NaN,
        has IoU 0 with every other. No gradient.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
            With `checks(True)` also: a box with a NaN, inf, x2 < x1 or y2 < y1; a score that is NaN
            or inf.

    Source: Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", 2017.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 2.0, 1.0], [4.0, 1.0, 5.0, 2.0]])
        >>> ops.soft_nms(boxes, torch.tensor([0.75, 0.5, 0.375]))
        SoftKeep(keep=tensor([0, 2, 1]), scores=tensor([0.7500, 0.3750, 0.2500]))
    """
    settings = _checked("soft_nms", method, iou_threshold, sigma, score_threshold, max_detections)
    _check_tensors("soft_nms", boxes_xyxy, scores, labels)
    return SoftKeep(*_soft_nms(boxes_xyxy, scores, labels, settings))


def soft_nms_padded(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_detections: int | None = None,
) -> PaddedSoftKeep:
    """Run `soft_nms` with a result of a fixed size.

    The size does not depend on the data, so nothing waits for a GPU and a CUDA graph can capture
    the call. Memory is O(N).

    Args:
        boxes_xyxy, scores, labels, method, iou_threshold, sigma, score_threshold, max_detections:
            as in `soft_nms`.

    Returns:
        PaddedSoftKeep with the rows that `soft_nms` returns and then zeros, M = min(N,
        max_detections) in all, and `count`, an int64 scalar on the device, the number of these
        rows.

    Raises:
        TypeError, ValueError: as in `soft_nms`.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 2.0, 1.0]])
        >>> kept = ops.soft_nms_padded(boxes, torch.tensor([0.75, 0.5]), score_threshold=0.3)
        >>> kept.scores, kept.count
        (tensor([0.7500, 0.0000]), tensor(1))
    """
    settings = _checked(
        "soft_nms_padded", method, iou_threshold, sigma, score_threshold, max_detections
    )
    _check_tensors("soft_nms_padded", boxes_xyxy, scores, labels)
    return PaddedSoftKeep(*_soft_nms_padded(boxes_xyxy, scores, labels, settings))


def _checked(
    op: str,
    method: object,
    iou_threshold: object,
    sigma: object,
    score_threshold: object,
    max_detections: object,
) -> SoftNmsSettings:
    """Check the settings, in the order in which the functions list them."""
    return SoftNmsSettings(
        gaussian=check_choice(op, "method", method, DECAYS) == "gaussian",
        iou_threshold=check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0),
        sigma=check_number(op, "sigma", sigma, *SIGMAS),
        score_threshold=check_number(op, "score_threshold", score_threshold, 0.0, 1.0),
        max_detections=max_detections
        if max_detections is None
        else check_int(op, "max_detections", max_detections, _MOST),
    )


def _check_tensors(op: str, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor | None) -> None:
    check_tensor(op, "boxes_xyxy", boxes_xyxy, ("N", 4))
    shape = (boxes_xyxy.shape[0],)
    check_tensor(op, "scores", scores, shape, like=boxes_xyxy)
    check_same_dtype(op, "scores", scores, boxes_xyxy)
    if labels is not None:
        check_tensor(op, "labels", labels, shape, dtypes=(torch.int64,), like=boxes_xyxy)


# --- definitions ---------------------------------------------------------------------------------


def _fake_soft_nms(boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(rows, dtype=torch.int64), boxes.new_empty(rows)


_soft_nms = define(
    "soft_nms(Tensor boxes_xyxy, Tensor scores, Tensor? labels, {settings})"
    " -> (Tensor keep, Tensor scores)",
    settings=SoftNmsSettings,
    reference=reference.soft_nms,
    cpp=native.soft_nms_cpp,
    cuda=native.soft_nms_cuda,
    triton="soft_nms",
    values=_values.soft_nms,
    no_vmap="rows differ in how many boxes they keep; use soft_nms_padded",
    fake=_fake_soft_nms,
)

_soft_nms_padded = define(
    "soft_nms_padded(Tensor boxes_xyxy, Tensor scores, Tensor? labels, {settings})"
    " -> (Tensor keep, Tensor scores, Tensor count)",
    settings=SoftNmsSettings,
    reference=reference.soft_nms_padded,
    cpp=native.soft_nms_padded_cpp,
    cuda=native.soft_nms_padded_cuda,
    triton="soft_nms",
    values=_values.soft_nms_padded,
    fake=lambda boxes, scores, labels, settings: new_soft_keep(boxes, settings),
)
