"""Reference of match_priors, encode_targets and the marking of priors to be ignored.

Unlike the other backends, it builds the matrix of boxes x priors of an image: it is what they are
compared with, so it is written as the definition is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mdssd.ops._settings import (
    FORCES,
    EncodeTargetsSettings,
    IgnorePriorsSettings,
    MatchPriorsSettings,
)
from mdssd.ops._tensors import accumulation_dtype
from mdssd.ops.reference.boxes import area, encode, pairwise_iou, to_xyxy


def nwd_limit(overlap: float, constant: float) -> float:
    """Return the largest sum of squared differences of corners with at least this overlap.

    The overlap is exp(-sqrt(sum / 2) / constant). Backends compare sums, which they compute alike
    to the last bit, unlike roots and exponentials. A sum that is infinite or NaN is an overlap
    of 0.
    """
    if overlap == 0:
        return math.inf
    distance = constant * math.log(overlap)
    return 2 * distance * distance


def _ranks(gt: Tensor, priors_xyxy: Tensor, settings: MatchPriorsSettings) -> Tensor:
    """Return numbers [M, N] that order the pairs like their overlap: the IoU, or minus the sum."""
    if settings.nwd_constant is None:
        return pairwise_iou(gt[:, None], priors_xyxy[None], settings.iou_eps)
    x1, y1, x2, y2 = (gt[:, None] - priors_xyxy[None]).square().unbind(-1)
    total = (x1 + y1) + (x2 + y2)
    return torch.where(total < torch.inf, -total, -torch.inf)  # NaN compares false


def _thresholds(settings: MatchPriorsSettings) -> tuple[float, float, float]:
    """Return the ranks of the two thresholds and of an overlap of 0."""
    high, low, constant = settings.iou_threshold, settings.low_threshold, settings.nwd_constant
    low = high if low is None else low
    if constant is None:
        return high, low, 0.0
    return -nwd_limit(high, constant), -nwd_limit(low, constant), -math.inf


def _claims(ranks: Tensor, top_k: int, nothing: float) -> Tensor:
    """Return the priors [top_k, M] that each box takes, the best first; -1 for none."""
    if top_k == 1:
        # argmax may return any of several equal maxima; the first is wanted.
        return (ranks == ranks.amax(1, keepdim=True)).to(torch.uint8).argmax(1)[None]
    values, priors = ranks.sort(dim=1, descending=True, stable=True)
    values, priors = values[:, :top_k], priors[:, :top_k]
    taken = values > nothing
    taken[:, 0] = True
    return torch.where(taken, priors, -1).T


def match_priors(
    gt: Tensor, offsets: Tensor, priors: Tensor, settings: MatchPriorsSettings
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(gt.dtype)
    priors_xyxy = priors.to(dtype) if settings.corners else to_xyxy(priors.to(dtype))
    high, low, nothing = _thresholds(settings)
    force = FORCES[settings.force]
    bounds = offsets.tolist()
    size = (len(bounds) - 1, len(priors))
    index = torch.full(size, -1, dtype=torch.int64, device=gt.device)
    best_overlap = torch.zeros(size, dtype=torch.float32, device=gt.device)
    for image, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if start == end or len(priors) == 0:
            continue
        ranks = _ranks(gt[start:end].to(dtype), priors_xyxy, settings)
        best = ranks.amax(0)
        best_gt = (ranks == best).to(torch.uint8).argmax(0)  # the first of equal maxima
        index[image] = torch.where(best >= high, best_gt, torch.where(best >= low, -2, -1))
        if force == "low_quality":
            restored = (ranks == ranks.amax(1, keepdim=True)).any(0)
            index[image] = torch.where(restored, best_gt, index[image])
        elif force == "best_prior":
            claims = _claims(ranks, settings.top_k, nothing).tolist()
            for prior, k in ((p, k) for rank in reversed(claims) for k, p in enumerate(rank)):
                if prior >= 0:
                    index[image, prior] = k
        if settings.nwd_constant is not None:
            best = (-(best / -2).sqrt() / settings.nwd_constant).exp()
        best_overlap[image] = best
    return index, best_overlap


def encode_targets(
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: EncodeTargetsSettings,
) -> tuple[Tensor, Tensor]:
    index, _ = match_priors(gt, offsets, priors, settings.match())
    dtype = accumulation_dtype(gt.dtype)
    loc = gt.new_zeros(*index.shape, 4)
    labels = torch.where(index == -2, -1, 0)
    for image, start in enumerate(offsets[:-1].tolist()):
        positive = index[image] >= 0
        matched = start + index[image, positive]
        targets = encode(
            gt[matched].to(dtype), priors[positive].to(dtype), settings.v0, settings.v1
        )
        loc[image, positive] = targets.to(gt.dtype)
        labels[image, positive] = gt_labels[matched]
    return loc, labels


def ignore_priors(
    marks: Tensor,
    ignored: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: IgnorePriorsSettings,
) -> Tensor:
    dtype = accumulation_dtype(ignored.dtype)
    priors_xyxy = priors.to(dtype) if settings.corners else to_xyxy(priors.to(dtype))
    bounds = offsets.tolist()
    result = marks.clone()
    for image, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        boxes = ignored[start:end, None].to(dtype)
        low = torch.maximum(boxes[..., :2], priors_xyxy[:, :2])
        high = torch.minimum(boxes[..., 2:], priors_xyxy[:, 2:])
        width, height = (high - low).clamp(min=0).unbind(-1)
        intersection = width * height  # [M, N]
        share = intersection / area(priors_xyxy)
        covered = ((intersection > 0) & (share >= settings.threshold)).any(0)
        background = marks[image] == settings.background
        result[image] = torch.where(covered & background, settings.background - 1, marks[image])
    return result
