"""From the network's two outputs to detections: softmax, threshold, decode, NMS, best 200."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdssd.ops._dispatch import (
    accumulation_dtype,
    aligned,
    check_eps,
    check_number,
    check_tensor,
    check_variances,
    define,
    dtype_code,
    native,
)
from mdssd.ops.boxes import VARIANCES, area, decode
from mdssd.ops.nms import greedy


class Detections(NamedTuple):
    """Result of `detection_output` for B images and K = `max_detections`.

    With `per_class` every [B, ...] is [B, C - 1, ...]: row c - 1 has the detections of class c.
    """

    boxes: Tensor  # [B, K, 4] xyxy
    scores: Tensor  # [B, K], falling
    labels: Tensor  # [B, K] int64, from 1
    count: Tensor  # type: ignore[assignment]  # [B] int64; rows from `count` on are 0


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
) -> Detections:
    """Detections of a batch of images, in tensors of fixed size.

    Softmax over the classes; per class but background: scores above `score_threshold`, the best
    `top_k` of them, boxes decoded, greedy NMS that keeps an IoU of at most `nms_threshold`; then
    the best `max_detections` of all classes together.

    Args:
        loc: [B, N, 4] offsets as of `encode_boxes`; float32, float16, bfloat16, float64.
        logits: [B, N, C], class 0 is background; any of these dtypes, same device.
        priors_cxcywh: [N, 4] centre and size, any float dtype, same device.
        score_threshold: 0 to 1; a score must be above it.
        nms_threshold: 0 to 1. To keep an IoU below t instead of at most t pass `just_below(t)`.
        top_k: candidates of a class that enter NMS, at least 1; N: all.
        max_detections: rows of the result, at least 1.
        variances: of centre and size, as in `decode_boxes`.
        softmax: False if `logits` holds scores already, such as a softmax: 0 to 1, what lies
            beyond or is NaN counts as 0. Column 0 is background here too, and is not read.
        per_class: no choice of the best over all classes: every class but background has
            `max_detections` rows of its own.
        keep_empty: False if boxes of zero area suppress one another (in the IoU of other code they
            have 0 / 0, which is not "at most the threshold"): of those of a class the best stays.
        iou_eps: added to the union's area in every IoU, as in `nms`.
        max_log_scale: None, or the largest log(size / prior's size) of a box; what is beyond is
            set to it. Some ports have log(1000 / 16).
        clip: None, or (width, height) of the image in the priors' unit: boxes are clipped to it
            before NMS.

    Returns:
        Detections, computed in float32 (float64 if `loc` or `logits` is) and returned in it; boxes
        in the priors' unit (0-1). Ties: higher score, then lower prior, then lower class. A prior
        with a NaN among its logits gives nothing. B and N may be 0. Carries no gradient.
        On a GPU nothing waits for the device, so that the call can be captured in a CUDA graph;
        float64 runs as reference there, which does wait.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range; on a
            GPU, `max_detections` or `top_k` (and N with it) above 1,024.

    Source: SSD, section 2.2 and 3.7; numbers of its DetectionOutput layer.
    """
    op = "detection_output"
    check_tensor(op, "loc", loc, ("B", "N", 4))
    check_tensor(op, "logits", logits, (loc.shape[0], loc.shape[1], "C"), like=loc)
    check_tensor(op, "priors_cxcywh", priors_cxcywh, (loc.shape[1], 4), like=loc)
    if logits.shape[2] < 2:
        raise ValueError(f"{op}: logits: expected 2 classes or more, got {logits.shape[2]}")
    return Detections(
        *_detection_output(
            loc.detach(),
            logits.detach(),
            priors_cxcywh,
            check_number(op, "score_threshold", score_threshold, 0.0, 1.0),
            check_number(op, "nms_threshold", nms_threshold, 0.0, 1.0),
            _check_count(op, "top_k", top_k),
            _check_count(op, "max_detections", max_detections),
            *check_variances(op, variances),
            _check_flag(op, "softmax", softmax),
            _check_flag(op, "per_class", per_class),
            _check_flag(op, "keep_empty", keep_empty),
            check_eps(op, iou_eps),
            _check_log_scale(op, max_log_scale),
            *_check_clip(op, clip),
        )
    )


def _check_flag(op: str, argument: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {argument}: expected True or False, got {type(value).__name__}")
    return value


def _check_log_scale(op: str, value: object) -> float | None:
    if value is None:
        return None
    return check_number(op, "max_log_scale", value, -math.inf, math.inf)


def _check_clip(op: str, clip: object) -> tuple[float, float] | tuple[None, None]:
    if clip is None:
        return None, None
    if not isinstance(clip, tuple | list) or len(clip) != 2:
        raise ValueError(f"{op}: clip: expected (width, height) or None, got {clip!r}")
    largest = torch.finfo(torch.float32).max
    width, height = (check_number(op, "clip", side, 0.0, largest) for side in clip)
    return width, height


def _check_count(op: str, argument: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {argument}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{op}: {argument}: expected 1 or more, got {value}")
    return value


def limits(*given: float | None) -> tuple[float, ...]:
    """Infinity for what has no limit: the op has None, because AOTInductor cannot load infinity."""
    return tuple(math.inf if limit is None else limit for limit in given)


# --- reference ---------------------------------------------------------------------------------


def empty_detections(
    loc: Tensor, logits: Tensor, max_detections: int, per_class: bool
) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(accumulation_dtype(loc.dtype), accumulation_dtype(logits.dtype))
    lists = (loc.shape[0], logits.shape[2] - 1) if per_class else (loc.shape[0],)
    return (
        loc.new_zeros(*lists, max_detections, 4, dtype=dtype),
        loc.new_zeros(*lists, max_detections, dtype=dtype),
        loc.new_zeros(*lists, max_detections, dtype=torch.int64),
        loc.new_zeros(lists, dtype=torch.int64),
    )


def _detection_output_reference(
    loc: Tensor,
    logits: Tensor,
    priors: Tensor,
    score_threshold: float,
    nms_threshold: float,
    top_k: int,
    max_detections: int,
    v0: float,
    v1: float,
    softmax: bool,
    per_class: bool,
    keep_empty: bool,
    iou_eps: float,
    *given: float | None,
) -> tuple[Tensor, ...]:
    max_log_scale, clip_width, clip_height = limits(*given)
    result = empty_detections(loc, logits, max_detections, per_class)
    dtype = result[0].dtype
    all_boxes = decode(loc.to(dtype), priors.to(dtype), v0, v1, max_log_scale)
    if clip_width < math.inf:
        sides = all_boxes.new_tensor([clip_width, clip_height] * 2)
        all_boxes = all_boxes.clamp(min=0).minimum(sides)
    all_scores = logits.to(dtype).softmax(-1) if softmax else logits.to(dtype)
    for image, (boxes, scores) in enumerate(zip(all_boxes, all_scores, strict=True)):
        found_priors, found_labels = [], []
        for label in range(1, scores.shape[1]):
            score = scores[:, label]
            candidates = ((score > score_threshold) & (score <= 1)).nonzero()[:, 0]
            order = score[candidates].argsort(descending=True, stable=True)[:top_k]
            candidates = candidates[order]
            kept = candidates[greedy(boxes[candidates], nms_threshold, iou_eps=iou_eps)]
            if not keep_empty:  # such boxes suppress no others, so they can be taken out last
                empty = area(boxes[kept]) == 0
                kept = kept[~empty | (empty.cumsum(0) == 1)]
            kept = kept[:max_detections]
            if per_class:
                rows = (boxes[kept], score[kept], torch.full_like(kept, label))
                for out, values in zip(result, rows, strict=False):
                    out[image, label - 1, : len(kept)] = values
                result[3][image, label - 1] = len(kept)
            found_priors.append(kept)
            found_labels.append(torch.full_like(kept, label))
        if per_class:
            continue
        prior, labels = torch.cat(found_priors), torch.cat(found_labels)
        by_prior = prior.argsort(stable=True)  # classes rise within a prior
        prior, labels = prior[by_prior], labels[by_prior]
        best = scores[prior, labels].argsort(descending=True, stable=True)[:max_detections]
        prior, labels = prior[best], labels[best]
        rows = (boxes[prior], scores[prior, labels], labels)
        for out, values in zip(result, rows, strict=False):
            out[image, : len(best)] = values
        result[3][image] = len(best)
    return result


# --- cpp ---------------------------------------------------------------------------------------


def _detection_output_cpp(
    loc: Tensor,
    logits: Tensor,
    priors: Tensor,
    score_threshold: float,
    nms_threshold: float,
    top_k: int,
    max_detections: int,
    v0: float,
    v1: float,
    softmax: bool,
    per_class: bool,
    keep_empty: bool,
    iou_eps: float,
    *given: float | None,
) -> tuple[Tensor, ...]:
    result = empty_detections(loc, logits, max_detections, per_class)
    boxes, scores, labels, count = result
    if loc.dtype != logits.dtype:
        loc, logits = loc.to(boxes.dtype), logits.to(boxes.dtype)
    loc, logits = loc.contiguous(), logits.contiguous()
    priors = priors.to(boxes.dtype).contiguous()
    native.detection_output_cpu(
        loc.data_ptr(),
        logits.data_ptr(),
        priors.data_ptr(),
        loc.shape[0],
        loc.shape[1],
        logits.shape[2],
        score_threshold,
        nms_threshold,
        top_k,
        max_detections,
        v0,
        v1,
        softmax,
        per_class,
        keep_empty,
        iou_eps,
        *limits(*given),
        boxes.data_ptr(),
        scores.data_ptr(),
        labels.data_ptr(),
        count.data_ptr(),
        dtype_code(loc),
        torch.get_num_threads(),
    )
    return result


# --- cuda and triton -----------------------------------------------------------------------------

_MOST_ON_GPU = 1024  # kMostKept of csrc/cuda/detection_output.cu


def check_limits(logits: Tensor, top_k: int, max_detections: int) -> int:
    """Check what the kernels for GPUs have room for; return `top_k`, at most the priors."""
    images, count, classes = logits.shape
    top_k = min(top_k, count)
    for argument, value in (("top_k", top_k), ("max_detections", max_detections)):
        if value > _MOST_ON_GPU:
            raise ValueError(
                f"detection_output: {argument}: expected at most {_MOST_ON_GPU} on a GPU "
                f'(or ops.backend("reference")), got {value}'
            )
    sizes = (("priors in a batch", images * count), ("logits per image", count * classes))
    for what, value in sizes:
        if value >= 2**32:
            raise ValueError(
                f"detection_output: logits: expected fewer than 2^32 {what} on a GPU, got {value}"
            )
    return top_k


def _detection_output_cuda(
    kernels: Any,
    stream: int,
    loc: Tensor,
    logits: Tensor,
    priors: Tensor,
    score_threshold: float,
    nms_threshold: float,
    top_k: int,
    max_detections: int,
    v0: float,
    v1: float,
    softmax: bool,
    per_class: bool,
    keep_empty: bool,
    iou_eps: float,
    *given: float | None,
) -> tuple[Tensor, ...]:
    top_k = check_limits(logits, top_k, max_detections)
    settings = (score_threshold, nms_threshold, top_k, max_detections, v0, v1, softmax, per_class)
    variant: tuple[Any, ...] = (keep_empty, iou_eps, *limits(*given))
    if torch.float64 in (loc.dtype, logits.dtype):
        return _detection_output_reference(loc, logits, priors, *settings, *variant)
    images, count, classes = logits.shape
    if images == 0 or count == 0 or score_threshold == 1:
        return empty_detections(loc, logits, max_detections, per_class)
    if loc.dtype != logits.dtype:
        loc, logits = loc.float(), logits.float()
    loc, logits, priors = aligned(loc), aligned(logits), aligned(priors.float())
    lists = (images, classes - 1) if per_class else (images,)
    boxes = loc.new_empty(*lists, max_detections, 4, dtype=torch.float32)
    scores = loc.new_empty(*lists, max_detections, dtype=torch.float32)
    labels = loc.new_empty(*lists, max_detections, dtype=torch.int64)
    found = loc.new_empty(lists, dtype=torch.int64)
    needed = kernels.detection_output_workspace(images, count, classes, top_k, max_detections)
    workspace = loc.new_empty(needed, dtype=torch.uint8)
    kernels.detection_output_cuda(
        loc.data_ptr(),
        logits.data_ptr(),
        priors.data_ptr(),
        images,
        count,
        classes,
        *settings,
        *variant,
        boxes.data_ptr(),
        scores.data_ptr(),
        labels.data_ptr(),
        found.data_ptr(),
        workspace.data_ptr(),
        dtype_code(loc),
        stream,
    )
    return boxes, scores, labels, found


# --- definitions -------------------------------------------------------------------------------

_detection_output = define(
    "detection_output(Tensor loc, Tensor logits, Tensor priors_cxcywh, float score_threshold,"
    " float nms_threshold, int top_k, int max_detections, float v0, float v1, bool softmax,"
    " bool per_class, bool keep_empty, float iou_eps, float? max_log_scale, float? clip_width,"
    " float? clip_height) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_detection_output_reference,
    cpp=_detection_output_cpp,
    cuda=_detection_output_cuda,
    triton="detection_output.detection_output",
    batched=(0, 1),
    fake=lambda loc, logits, *settings: empty_detections(loc, logits, settings[4], settings[8]),
)
