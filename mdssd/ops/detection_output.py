"""From the two outputs of a network to detections: scores, threshold, decode, NMS, best 200."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import (
    check_choice,
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
from mdssd.ops._settings import (
    NMS_METRICS,
    SIGMAS,
    SUPPRESSIONS,
    VARIANCES,
    DetectionOutputSettings,
)
from mdssd.ops.native import detection_output as native
from mdssd.ops.reference import detection_output as reference

# Below 1.2e-38, the smallest normal float32, some exponentials give 0 and others subnormal numbers.
_LEAST_SCORE = 1e-37
_LARGEST = 2**63 - 1
_MOST_LEVELS = 32  # kMostLevels of csrc/cuda/detection_output.cu
_OP = "detection_output"


class Detections(NamedTuple):
    """Result of `detection_output` for B images and K = `max_detections`.

    The numbers are float32, or float64 if an input is. Boxes are in the priors' unit, and nothing
    has a gradient. With `per_class`, [B, ...] is [B, F, ...] throughout, for the F classes except
    background: row c - 1 is that of class c.

    Ties: higher score, then lower prior, then lower class. The softmax, or sigmoid, of two backends
    may differ in its last bits, so scores closer than 1e-6 (relative) may rank otherwise on another
    one; given scores never do. A score of NaN yields nothing, and a softmax spreads a NaN over its
    prior's classes. Nor does a candidate whose box has a NaN yield anything, although it counts for
    `top_k` and `top_k_per_level`. A box with an infinite coordinate overlaps no other by any
    metric. B and N may be 0.

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
    activation: str | None = None,
    background: bool = True,
    levels: Sequence[int] | None = None,
    top_k_per_level: int | None = None,
    class_agnostic: bool = False,
    suppression: str = "nms",
    soft_sigma: float = 0.5,
) -> Detections:
    """Turn the outputs of a network into detections, in tensors of a fixed size.

    Take the softmax, or the sigmoid, of the logits. For every class except background, select the
    scores above `score_threshold` and of these the best `top_k`, decode their boxes, and run greedy
    NMS. Then keep the best `max_detections` of all classes together. On a GPU nothing waits for the
    device, except for float64, which runs as "reference". `Detections` tells the order and NaNs.

    Args:
        loc: [B, N, 4] offsets as in `encode_boxes`; float32, float16, bfloat16 or float64.
        logits: [B, N, C] in any of these dtypes; class 0 is background.
        priors_cxcywh: [N, 4] centre and size, any float dtype.
        score_threshold: 0 to 1; a score must be above it, and above 1e-37.
        nms_threshold: 0 to 1; NMS keeps an IoU of at most this (`just_below(t)`: below t).
        top_k, max_detections: candidates per class that enter NMS, and rows of the result; from 1.
        variances: of the centre and the size, as in `decode_boxes`.
        softmax: False if `logits` holds scores; one that is NaN or outside 0 to 1 counts as 0.
        per_class: give every class except background `max_detections` rows of its own.
        keep_empty: False to keep only the best of a class's boxes of zero area, of IoU 0 / 0.
        iou_eps, metric: the overlap that NMS compares with its threshold, as in `nms`.
        activation: "softmax", "sigmoid", or "none" for scores; None is what `softmax` says.
        background: False if no column is the background; the first then has label 1.
        levels, top_k_per_level: the priors of each feature map, and how many pairs of prior and
            class of each, of all classes together, go on to `top_k`; without `levels`, one map.
        class_agnostic: one NMS, and one `top_k`, over all classes together.
        suppression, soft_sigma: "nms", or "soft_linear" or "soft_gaussian" to lower scores as
            `soft_nms` does, with `nms_threshold` or sigma; those above `score_threshold` stay.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or range, or a contradiction. With
            `checks(True)` also: NaN or inf in `loc`, NaN or +inf in `logits`, a score out of 0 to
            1, and a prior with NaN, inf, a size not above 0, or in another unit than `clip`.

    Source: SSD, sections 2.2 and 3.7; RetinaNet, section 4.1.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> logits = torch.tensor([[[0.0, 5.0], [9.0, 0.0]]])
        >>> ops.detection_output(torch.zeros(1, 2, 4), logits, torch.eye(2, 4) + 0.1).count
        tensor([1])
    """
    _check_tensors(loc, logits, priors_cxcywh, check_flag(_OP, "background", background))
    settings = DetectionOutputSettings(
        *_check_limits(score_threshold, nms_threshold, top_k, max_detections),
        *check_variances(_OP, variances),
        check_flag(_OP, "softmax", softmax) if activation is None else activation == "softmax",
        check_flag(_OP, "per_class", per_class),
        *_check_boxes(keep_empty, iou_eps, max_log_scale, clip, metric),  # type: ignore[arg-type]
        activation is not None and _check_activation(activation, softmax),
        background,
        *_check_levels(levels, top_k_per_level, loc),
        check_flag(_OP, "class_agnostic", class_agnostic) and _check_joint(per_class),
        *_check_suppression(suppression, soft_sigma, metric),  # type: ignore[arg-type]
    )
    return Detections(*_detection_output(loc.detach(), logits.detach(), priors_cxcywh, settings))


def _check_tensors(loc: Tensor, logits: Tensor, priors_cxcywh: Tensor, background: bool) -> None:
    check_tensor(_OP, "loc", loc, ("B", "N", 4))
    check_tensor(_OP, "logits", logits, (loc.shape[0], loc.shape[1], "C"), like=loc)
    check_tensor(_OP, "priors_cxcywh", priors_cxcywh, (loc.shape[1], 4), like=loc)
    if logits.shape[2] < 1 + background:
        least = "2 classes" if background else "1 class"
        raise ValueError(f"{_OP}: logits: expected {least} or more, got {logits.shape[2]}")


def _check_limits(
    score_threshold: object, nms_threshold: object, top_k: object, max_detections: object
) -> tuple[float, float, int, int]:
    return (
        max(check_number(_OP, "score_threshold", score_threshold, 0.0, 1.0), _LEAST_SCORE),
        check_number(_OP, "nms_threshold", nms_threshold, 0.0, 1.0),
        check_int(_OP, "top_k", top_k, _LARGEST),
        check_int(_OP, "max_detections", max_detections, 2**31 - 1),
    )


def _check_boxes(
    keep_empty: object, iou_eps: object, max_log_scale: object, clip: object, metric: object
) -> tuple[bool, float, float | None, float | None, float | None, bool]:
    return (
        check_flag(_OP, "keep_empty", keep_empty),
        check_eps(_OP, iou_eps),
        _check_log_scale(max_log_scale),
        *_check_clip(clip),
        check_metric(_OP, metric, NMS_METRICS) == "ios",
    )


def _check_log_scale(value: object) -> float | None:
    if value is None:
        return None
    number = check_number(_OP, "max_log_scale", value, -math.inf, math.inf)
    largest = torch.finfo(torch.float32).max  # whose exponential is infinite as well
    return max(-largest, min(largest, number))


def _check_clip(clip: object) -> tuple[float | None, float | None]:
    if clip is None:
        return None, None
    if not isinstance(clip, (tuple, list)) or len(clip) != 2:
        raise ValueError(f"{_OP}: clip: expected (width, height) or None, got {shown(clip)}")
    largest = torch.finfo(torch.float32).max
    width, height = (check_number(_OP, "clip", side, 0.0, largest) for side in clip)
    return width, height


def _check_activation(activation: object, softmax: object) -> bool:
    """Check the activation beside the older flag; return whether it is the sigmoid."""
    choice = check_choice(_OP, "activation", activation, ("softmax", "sigmoid", "none"))
    if not check_flag(_OP, "softmax", softmax) and choice != "none":
        raise ValueError(
            f"{_OP}: activation: expected 'none' or None beside softmax=False, got {choice!r}"
        )
    return choice == "sigmoid"


def _check_levels(
    levels: object, top_k_per_level: object, loc: Tensor
) -> tuple[tuple[int, ...] | None, int | None]:
    if levels is None:
        if top_k_per_level is None:
            return None, None
        return None, check_int(_OP, "top_k_per_level", top_k_per_level, _LARGEST)
    if (
        not isinstance(levels, (tuple, list))
        or not 1 <= len(levels) <= _MOST_LEVELS
        or any(isinstance(size, bool) or not isinstance(size, int) for size in levels)
        or any(size < 0 for size in levels)
        or sum(levels) != loc.shape[1]
    ):
        raise ValueError(
            f"{_OP}: levels: expected 1 to {_MOST_LEVELS} ints from 0, with the sum "
            f"{loc.shape[1]}, the number of priors, got {shown(levels)}"
        )
    return tuple(levels), check_int(_OP, "top_k_per_level", top_k_per_level, _LARGEST)


def _check_suppression(
    suppression: object, soft_sigma: object, metric: object
) -> tuple[int, float, bool]:
    choice = check_choice(_OP, "suppression", suppression, SUPPRESSIONS)
    if choice != "nms" and metric not in ("iou", "ios"):  # a score falls with what is 0 to 1
        raise ValueError(
            f"{_OP}: metric: expected 'iou' or 'ios' beside suppression={choice!r}, got {metric!r}"
        )
    sigma = check_number(_OP, "soft_sigma", soft_sigma, *SIGMAS)
    return SUPPRESSIONS.index(choice), sigma, metric == "diou"


def _check_joint(per_class: bool) -> bool:
    if per_class:
        raise ValueError(f"{_OP}: class_agnostic: expected False beside per_class=True, got True")
    return True


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
