"""Reference of match_priors and encode_targets."""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._settings import EncodeTargetsSettings, MatchPriorsSettings
from mdssd.ops._tensors import accumulation_dtype
from mdssd.ops.reference.boxes import encode, pairwise_iou, to_xyxy


def match_priors(
    gt: Tensor, offsets: Tensor, priors: Tensor, settings: MatchPriorsSettings
) -> tuple[Tensor, Tensor]:
    iou_threshold, iou_eps, corners = settings
    dtype = accumulation_dtype(gt.dtype)
    priors_xyxy = priors.to(dtype) if corners else to_xyxy(priors.to(dtype))
    bounds = offsets.tolist()
    size = (len(bounds) - 1, len(priors))
    index = torch.full(size, -1, dtype=torch.int64, device=gt.device)
    best_iou = torch.zeros(size, dtype=torch.float32, device=gt.device)
    for image, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if start == end or len(priors) == 0:
            continue
        iou = pairwise_iou(gt[start:end, None].to(dtype), priors_xyxy[None], iou_eps)  # [M, N]
        # argmax may return any of several equal maxima; the first is wanted.
        best = iou.amax(0)
        best_gt = (iou == best).to(torch.uint8).argmax(0)
        index[image] = torch.where(best >= iou_threshold, best_gt, -1)
        best_iou[image] = best
        best_prior = (iou == iou.amax(1, keepdim=True)).to(torch.uint8).argmax(1)
        for k, prior in enumerate(best_prior.tolist()):
            index[image, prior] = k
    return index, best_iou


def encode_targets(
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: EncodeTargetsSettings,
) -> tuple[Tensor, Tensor]:
    match = MatchPriorsSettings(settings.iou_threshold, settings.iou_eps, corners=False)
    index, _ = match_priors(gt, offsets, priors, match)
    dtype = accumulation_dtype(gt.dtype)
    loc = gt.new_zeros(*index.shape, 4)
    labels = torch.zeros_like(index)
    for image, start in enumerate(offsets[:-1].tolist()):
        positive = index[image] >= 0
        matched = start + index[image, positive]
        targets = encode(
            gt[matched].to(dtype), priors[positive].to(dtype), settings.v0, settings.v1
        )
        loc[image, positive] = targets.to(gt.dtype)
        labels[image, positive] = gt_labels[matched]
    return loc, labels
