"""Greedy non-maximum suppression, with the signatures and results of torchvision's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import (
    check_eps,
    check_metric,
    check_number,
    check_same_dtype,
    check_tensor,
)
from mdssd.ops._dispatch import define
from mdssd.ops._settings import NMS_METRICS, NmsSettings
from mdssd.ops.native import nms as native
from mdssd.ops.reference import nms as reference


class PaddedKeep(NamedTuple):
    """Result of `nms_padded` for N boxes.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
        >>> ops.nms_padded(boxes, torch.tensor([0.5, 0.9]), 0.5).count
        tensor(1)
    """

    keep: Tensor  # [N] int64, indices of the kept boxes by falling score, then zeros
    count: Tensor  # type: ignore[assignment]  # int64 scalar, how many boxes are kept


def nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    iou_eps: float = 0.0,
    metric: str = "iou",
) -> Tensor:
    """Keep the best of overlapping boxes.

    In the order of falling score, a box is kept if its IoU with every kept box is at most
    `iou_threshold`. On a GPU this waits for the device, since the size of the result depends on the
    data; `nms_padded` does not.

    With `metric="ios"`, the IoS takes the place of the IoU: the area of the intersection over that
    of the smaller box. A part of an object, such as the edge of a tile leaves, has a low IoU with
    the whole object, but an IoS near 1.

    With `metric="diou"`, the DIoU takes its place: IoU - d^2 / c^2, where d is the distance of the
    centres and c the diagonal of the smallest box around both. It is at most the IoU, and lower the
    farther the centres are apart: such boxes are more likely to be of two objects, which occlude
    each other, than boxes of the same IoU with a common centre.

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16 or float64. N may be 0.
        scores: [N], same dtype and device. NaN counts as the highest score.
        iou_threshold: 0 to 1. Pass `just_below(t)` to keep an IoU below t instead of at most t. A
            DIoU can be negative, but a threshold cannot: boxes that do not overlap are all kept.
        iou_eps: added to what the area of the intersection is divided by; 0 to 1, in the boxes'
            unit squared. With "diou" it is added to the union's area, and not to c^2.
        metric: "iou", "ios" or "diou", the overlap that is compared with the threshold.

    Returns:
        [K] int64, indices of the kept boxes by falling score. Ties: the lower index comes first. A
        box of zero or negative size, of infinite area, or with a NaN, is kept and suppresses no
        other, by any metric.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
            With `checks(True)` also: a box with a NaN, inf, x2 < x1 or y2 < y1; a score that is NaN
            or inf.

    Source: SSD, section 2.2 (inference); DIoU: Zheng et al., 2020, section "Non-Maximum
    Suppression using DIoU".

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [2.0, 2.0, 3.0, 3.0]])
        >>> ops.nms(boxes, torch.tensor([0.5, 0.9, 0.3]), 0.5)
        tensor([1, 2])
    """
    settings = _checked("nms", boxes_xyxy, scores, iou_threshold, iou_eps, metric)
    return _nms(boxes_xyxy, scores, None, settings)


def batched_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    iou_eps: float = 0.0,
    metric: str = "iou",
) -> Tensor:
    """Run `nms` within each category: boxes of different categories never suppress one another.

    torchvision shifts the categories apart along one axis, so that boxes outside the image can meet
    those of another category. That cannot happen here.

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16 or float64. N may be 0.
        scores: [N], same dtype and device. NaN counts as the highest score.
        idxs: [N] int64, category of each box, any value.
        iou_threshold: as in `nms`.
        iou_eps: as in `nms`.
        metric: as in `nms`.

    Returns:
        [K] int64, indices of the kept boxes of all categories by falling score; ties as in `nms`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
            With `checks(True)` also: a box with a NaN, inf, x2 < x1 or y2 < y1; a score that is NaN
            or inf.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
        >>> ops.batched_nms(boxes, torch.tensor([0.5, 0.9]), torch.tensor([1, 2]), 0.5)
        tensor([1, 0])
    """
    settings = _checked("batched_nms", boxes_xyxy, scores, iou_threshold, iou_eps, metric)
    _check_idxs("batched_nms", idxs, boxes_xyxy)
    return _nms(boxes_xyxy, scores, idxs, settings)


def nms_padded(
    boxes_xyxy: Tensor,
    scores: Tensor,
    iou_threshold: float,
    idxs: Tensor | None = None,
    *,
    iou_eps: float = 0.0,
    metric: str = "iou",
) -> PaddedKeep:
    """Run `nms`, or `batched_nms` if `idxs` is given, with a result of a fixed size.

    The size does not depend on the data, so nothing waits for a GPU and a CUDA graph can capture
    the call. Memory is O(N).

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16 or float64. N may be 0.
        scores: [N], same dtype and device. NaN counts as the highest score.
        iou_threshold: as in `nms`.
        idxs: None, or [N] int64, category of each box, any value.
        iou_eps: as in `nms`.
        metric: as in `nms`.

    Returns:
        PaddedKeep with `keep` [N] int64, the indices that `nms` returns and then zeros, and
        `count`, an int64 scalar on the device, the number of these indices. Ties as in `nms`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
            With `checks(True)` also: a box with a NaN, inf, x2 < x1 or y2 < y1; a score that is NaN
            or inf.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
        >>> ops.nms_padded(boxes, torch.tensor([0.5, 0.9]), 0.5)
        PaddedKeep(keep=tensor([1, 0]), count=tensor(1))
    """
    settings = _checked("nms_padded", boxes_xyxy, scores, iou_threshold, iou_eps, metric)
    if idxs is not None:
        _check_idxs("nms_padded", idxs, boxes_xyxy)
    return PaddedKeep(*_nms_padded(boxes_xyxy, scores, idxs, settings))


def _checked(
    op: str,
    boxes_xyxy: Tensor,
    scores: Tensor,
    iou_threshold: float,
    iou_eps: float,
    metric: str,
) -> NmsSettings:
    """Check the arguments that the three operators share."""
    check_tensor(op, "boxes_xyxy", boxes_xyxy, ("N", 4))
    check_tensor(op, "scores", scores, (boxes_xyxy.shape[0],), like=boxes_xyxy)
    check_same_dtype(op, "scores", scores, boxes_xyxy)
    threshold = check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0)
    eps = check_eps(op, iou_eps)
    check_metric(op, metric, NMS_METRICS)
    return NmsSettings(threshold, eps, metric == "ios", metric == "diou")


def _check_idxs(op: str, idxs: Tensor, boxes_xyxy: Tensor) -> None:
    shape = (boxes_xyxy.shape[0],)
    check_tensor(op, "idxs", idxs, shape, dtypes=(torch.int64,), like=boxes_xyxy)


# --- definitions ---------------------------------------------------------------------------------


def _fake_nms(boxes: Tensor, *_: Any) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


_nms = define(
    "nms(Tensor boxes_xyxy, Tensor scores, Tensor? idxs, {settings}) -> Tensor",
    settings=NmsSettings,
    reference=reference.nms,
    cpp=native.nms_cpp,
    cuda=native.nms_cuda,
    triton="nms",
    values=_values.nms,
    no_vmap="rows differ in how many boxes they keep; use nms_padded",
    fake=_fake_nms,
)

_nms_padded = define(
    "nms_padded(Tensor boxes_xyxy, Tensor scores, Tensor? idxs, {settings})"
    " -> (Tensor keep, Tensor count)",
    settings=NmsSettings,
    reference=reference.nms_padded,
    cpp=native.nms_padded_cpp,
    cuda=native.nms_padded_cuda,
    triton="nms",
    values=_values.nms_padded,
    fake=lambda boxes, *_: (
        boxes.new_empty(boxes.shape[0], dtype=torch.int64),
        boxes.new_empty((), dtype=torch.int64),
    ),
)
