"""From the two outputs of a network to detections: softmax, threshold, decode, NMS, best 200."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import (
    check_eps,
    check_flag,
    check_int,
    check_metric,
    check_number,
    check_tensor,
    check_variances,
    shown,
)
from mdssd.ops._dispatch import define
from mdssd.ops._results import new_detections
from mdssd.ops._settings import VARIANCES, DetectionOutputSettings
from mdssd.ops.native import detection_output as native
from mdssd.ops.reference import detection_output as reference

# Below 1.2e-38, the smallest normal float32, some exponentials give 0 and others subnormal numbers.
_LEAST_SCORE = 1e-37


class Detections(NamedTuple):
    """Result of `detection_output` for B images and K = `max_detections`.

    With `per_class`, [B, ...] is [B, C - 1, ...] throughout: row c - 1 is that of class c.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> logits = torch.tensor([[[0.0, 0.0, 9.0]]])
        >>> found = ops.detection_output(torch.zeros(1, 1, 4), logits, torch.ones(1, 4))
        >>> found.labels[0, : found.count[0]]
        tensor([2])
    """

    boxes: Tensor  # [B, K, 4] corners
    scores: Tensor  # [B, K], falling
    labels: Tensor  # [B, K] int64, from 1
    count: Tensor  # type: ignore[assignment]  # [B] int64; the rows from `count` on are 0


def detection_output(
    loc: Tensor,
    logits: Tensor,
    priors_cxcywh: Tensor,
    *,
    score_threshold: float = 0.01,
    nms_threshold: float = 0.45,
    top_k: int = 400,
    max_detections: int = 200,
    variances: tuple[float, float] = VARIANCES,
    softmax: bool = True,
    per_class: bool = False,
    keep_empty: bool = True,
    iou_eps: float = 0.0,
    max_log_scale: float | None = None,
    clip: tuple[float, float] | None = None,
    metric: str = "iou",
) -> Detections:
    """Turn the outputs of a network into detections, in tensors of a fixed size.

    Take the softmax over the classes. For every class except background, select the scores above
    `score_threshold` and of these the best `top_k`, decode their boxes, and run greedy NMS. Then
    keep the best `max_detections` of all classes together. On a GPU nothing waits for the device,
    except for float64, which runs as "reference".

    Args:
        loc: [B, N, 4] offsets as in `encode_boxes`; float32, float16, bfloat16 or float64.
        logits: [B, N, C] in any of these dtypes, C at least 2; class 0 is background.
        priors_cxcywh: [N, 4] centre and size, any float dtype.
        score_threshold: 0 to 1; a score must be above it, and above 1e-37.
        nms_threshold: 0 to 1; NMS keeps an IoU of at most this (`just_below(t)`: below t).
        top_k, max_detections: candidates per class that enter NMS, and rows of the result; from 1.
        variances: of the centre and the size, as in `decode_boxes`.
        softmax: False if `logits` holds scores; one that is NaN or outside 0 to 1 counts as 0.
        per_class: give every class except background `max_detections` rows of its own.
        keep_empty: False to keep only the best of a class's boxes of zero area, of IoU 0 / 0.
        iou_eps, metric: the overlap that NMS compares with its threshold, as in `nms`.

    Returns:
        Detections in float32 (float64 if an input is), without gradient; boxes in the priors' unit.
        Ties: higher score, then lower prior, then lower class. The softmax of two backends may
        differ in its last bits, so scores closer than 1e-6 (relative) may rank otherwise on another
        one; given scores never do. A prior with a NaN among its logits yields nothing, nor does a
        candidate whose box has a NaN, although it counts for `top_k`. A box with an infinite
        coordinate has IoU and IoS 0 with every other. B and N may be 0.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range; on a
            GPU, `max_detections`, or the lesser of `top_k` and N, is above 1,024. With
            `checks(True)` also: a NaN or inf in `loc`; a NaN or +inf in `logits`, or a score out of
            0 to 1; a prior with a NaN, inf, a size that is not above 0, or in another unit than
            `clip`.

    Source: SSD, sections 2.2 and 3.7, with the numbers of its DetectionOutput layer.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> priors = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
        >>> logits = torch.tensor([[[0.0, 5.0], [9.0, 0.0]]])
        >>> ops.detection_output(torch.zeros(1, 2, 4), logits, priors).count
        tensor([1])
    """
    op = "detection_output"
    _check_tensors(op, loc, logits, priors_cxcywh)
    settings = DetectionOutputSettings(
        max(check_number(op, "score_threshold", score_threshold, 0.0, 1.0), _LEAST_SCORE),
        check_number(op, "nms_threshold", nms_threshold, 0.0, 1.0),
        check_int(op, "top_k", top_k, 2**63 - 1),
        check_int(op, "max_detections", max_detections, 2**31 - 1),
        *check_variances(op, variances),
        check_flag(op, "softmax", softmax),
        check_flag(op, "per_class", per_class),
        check_flag(op, "keep_empty", keep_empty),
        check_eps(op, iou_eps),
        _check_log_scale(op, max_log_scale),
        *_check_clip(op, clip),
        check_metric(op, metric),
    )
    return Detections(*_detection_output(loc.detach(), logits.detach(), priors_cxcywh, settings))


def _check_tensors(op: str, loc: Tensor, logits: Tensor, priors_cxcywh: Tensor) -> None:
    check_tensor(op, "loc", loc, ("B", "N", 4))
    check_tensor(op, "logits", logits, (loc.shape[0], loc.shape[1], "C"), like=loc)
    check_tensor(op, "priors_cxcywh", priors_cxcywh, (loc.shape[1], 4), like=loc)
    if logits.shape[2] < 2:
        raise ValueError(f"{op}: logits: expected 2 classes or more, got {logits.shape[2]}")


def _check_log_scale(op: str, value: object) -> float | None:
    if value is None:
        return None
    number = check_number(op, "max_log_scale", value, -math.inf, math.inf)
    largest = torch.finfo(torch.float32).max  # whose exponential is infinite as well
    return max(-largest, min(largest, number))


def _check_clip(op: str, clip: object) -> tuple[float | None, float | None]:
    if clip is None:
        return None, None
    if not isinstance(clip, tuple | list) or len(clip) != 2:
        raise ValueError(f"{op}: clip: expected (width, height) or None, got {shown(clip)}")
    largest = torch.finfo(torch.float32).max
    width, height = (check_number(op, "clip", side, 0.0, largest) for side in clip)
    return width, height


_detection_output = define(
    "detection_output(Tensor loc, Tensor logits, Tensor priors_cxcywh, {settings})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    settings=DetectionOutputSettings,
    reference=reference.detection_output,
    cpp=native.detection_output_cpp,
    cuda=native.detection_output_cuda,
    triton="detection_output",
    values=_values.detection_output,
    batched=(0, 1),
    fake=lambda loc, logits, priors, settings: new_detections(loc, logits, settings),
)
