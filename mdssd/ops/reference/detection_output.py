"""Reference of detection_output."""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._results import new_detections
from mdssd.ops._settings import DetectionOutputSettings
from mdssd.ops.reference.boxes import area, decode
from mdssd.ops.reference.nms import greedy


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
    overlap = settings.nms_threshold, settings.iou_eps, settings.ios
    all_scores = logits.to(dtype).softmax(-1) if settings.softmax else logits.to(dtype)
    for image, (boxes, scores) in enumerate(zip(all_boxes, all_scores, strict=True)):
        kept_priors, kept_labels = [], []
        for label in range(1, scores.shape[1]):
            score = scores[:, label]
            candidates = ((score > settings.score_threshold) & (score <= 1)).nonzero()[:, 0]
            order = score[candidates].argsort(descending=True, stable=True)[: settings.top_k]
            candidates = candidates[order]
            candidates = candidates[~boxes[candidates].isnan().any(1)]
            kept = candidates[greedy(boxes[candidates], *overlap)]
            if not settings.keep_empty:  # these suppress no others, so they can be removed last
                empty = area(boxes[kept]) == 0
                kept = kept[~empty | (empty.cumsum(0) == 1)]
            kept = kept[: settings.max_detections]
            if settings.per_class:
                rows = (boxes[kept], score[kept], torch.full_like(kept, label))
                for out, values in zip(result, rows, strict=False):
                    out[image, label - 1, : len(kept)] = values
                result[3][image, label - 1] = len(kept)
            kept_priors.append(kept)
            kept_labels.append(torch.full_like(kept, label))
        if settings.per_class:
            continue
        prior, labels = torch.cat(kept_priors), torch.cat(kept_labels)
        by_prior = prior.argsort(stable=True)  # classes rise within a prior
        prior, labels = prior[by_prior], labels[by_prior]
        order = scores[prior, labels].argsort(descending=True, stable=True)
        best = order[: settings.max_detections]
        prior, labels = prior[best], labels[best]
        rows = (boxes[prior], scores[prior, labels], labels)
        for out, values in zip(result, rows, strict=False):
            out[image, : len(best)] = values
        result[3][image] = len(best)
    return result
