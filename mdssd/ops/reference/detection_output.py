"""Reference of detection_output."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mdssd.ops._results import new_detections
from mdssd.ops._settings import SUPPRESSIONS, DetectionOutputSettings, SoftNmsSettings
from mdssd.ops.reference.boxes import area, decode
from mdssd.ops.reference.nms import greedy
from mdssd.ops.reference.soft_nms import soften


def detection_output(
    loc: Tensor, logits: Tensor, priors: Tensor, settings: DetectionOutputSettings
) -> tuple[Tensor, ...]:
    result = new_detections(loc, logits, settings)
    dtype = result[0].dtype
    all_boxes = decode(
        loc.to(dtype), priors.to(dtype), settings.v0, settings.v1, settings.max_log_scale
    )
    if settings.clip_width is not None:
        sides = all_boxes.new_tensor([settings.clip_width, settings.clip_height] * 2)
        all_boxes = all_boxes.clamp(min=0).minimum(sides)
    all_scores = _scores(logits.to(dtype), settings)
    for image, (boxes, scores) in enumerate(zip(all_boxes, all_scores, strict=True)):
        foreground, flat = scores.shape[1], scores.flatten().clone()
        kept = []
        for row, candidates in enumerate(_candidates(scores, settings)):
            if settings.suppression:
                mine = _softened(boxes, flat, candidates, foreground, settings)
            else:
                mine = _suppressed(boxes, candidates, foreground, settings)
            if settings.per_class:
                _write(result, (image, row), boxes, flat, mine, foreground)
            kept.append(mine)
        if not settings.per_class:
            joined = _best(flat, torch.cat(kept).sort().values, settings.max_detections)
            _write(result, (image,), boxes, flat, joined, foreground)
    return result


def _scores(logits: Tensor, settings: DetectionOutputSettings) -> Tensor:
    """Return the scores [B, N, F] of the F classes except background."""
    if settings.softmax:
        logits = logits.softmax(-1)
    elif settings.sigmoid:
        logits = logits.sigmoid()
    return logits[..., 1:] if settings.background else logits


# A candidate is a place in the flattened scores [N * F]: its prior times F plus its class's column.
# So the lower place is that of the lower prior, then of the lower class.


def _best(flat: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return the best candidates, by falling score; equal scores stay in their order."""
    return candidates[flat[candidates].argsort(descending=True, stable=True)[:count]]


def _candidates(scores: Tensor, settings: DetectionOutputSettings) -> Iterator[Tensor]:
    """Yield the candidates, by rank, of each class or, with `class_agnostic`, of all together."""
    foreground, flat = scores.shape[1], scores.flatten()
    passes = (scores > settings.score_threshold) & (scores <= 1)
    if settings.top_k_per_level is not None:
        best, start = passes.new_zeros(passes.shape), 0  # dense, whatever the layout
        for size in settings.levels or [len(scores)]:
            level = passes[start : start + size].flatten().nonzero()[:, 0] + start * foreground
            best.view(-1)[_best(flat, level, settings.top_k_per_level)] = True
            start += size
        passes = best
    if settings.class_agnostic:
        yield _best(flat, passes.flatten().nonzero()[:, 0], settings.top_k)
        return
    for column in range(foreground):
        candidates = passes[:, column].nonzero()[:, 0] * foreground + column
        yield _best(flat, candidates, settings.top_k)


def _suppressed(
    boxes: Tensor, candidates: Tensor, foreground: int, settings: DetectionOutputSettings
) -> Tensor:
    """Return the candidates that NMS keeps, at most `max_detections`."""
    candidates = candidates[~boxes[candidates // foreground].isnan().any(1)]
    overlap = settings.nms_threshold, settings.iou_eps, settings.ios, settings.diou
    kept = candidates[greedy(boxes[candidates // foreground], *overlap)]
    if not settings.keep_empty:  # these suppress no others, so they can be removed last
        kept = kept[_first_of_empty(boxes[kept // foreground])]
    return kept[: settings.max_detections]


def _softened(
    boxes: Tensor,
    flat: Tensor,
    candidates: Tensor,
    foreground: int,
    settings: DetectionOutputSettings,
) -> Tensor:
    """Return the candidates that soft-NMS keeps, at most `max_detections`; lower their scores."""
    candidates = candidates[~boxes[candidates // foreground].isnan().any(1)]
    if not settings.keep_empty:
        candidates = candidates[_first_of_empty(boxes[candidates // foreground])]
    candidates = candidates.sort().values
    soft = soft_settings(settings, flat.dtype)
    positions, found = soften(
        boxes[candidates // foreground],
        flat[candidates],
        soft,
        settings.max_detections,
        settings.iou_eps,
        settings.ios,
    )
    kept = candidates[positions]
    flat[kept] = found
    return _best(flat, kept.sort().values, settings.max_detections)


def soft_settings(settings: DetectionOutputSettings, dtype: torch.dtype) -> SoftNmsSettings:
    """Return the settings of soft-NMS. Its scores are at least the lowest above the threshold."""
    threshold, infinity = torch.tensor([settings.score_threshold, torch.inf], dtype=dtype)
    return SoftNmsSettings(
        gaussian=SUPPRESSIONS[settings.suppression] == "soft_gaussian",
        iou_threshold=settings.nms_threshold,
        sigma=settings.soft_sigma,
        score_threshold=float(torch.nextafter(threshold, infinity)),
        max_detections=settings.max_detections,
    )


def _first_of_empty(boxes: Tensor) -> Tensor:
    """Return [N]: whether a box has an area other than 0, or is the first without."""
    empty = area(boxes) == 0
    return ~empty | (empty.cumsum(0) == 1)


def _write(
    result: tuple[Tensor, ...],
    place: tuple[int, ...],
    boxes: Tensor,
    flat: Tensor,
    kept: Tensor,
    foreground: int,
) -> None:
    """Write the detections of one image, or of one class of it."""
    rows = (boxes[kept // foreground], flat[kept], kept % foreground + 1)
    for out, values in zip(result, rows, strict=False):
        out[place][: len(kept)] = values
    result[3][place] = len(kept)
