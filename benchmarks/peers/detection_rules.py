"""Peers of `detection_output` with soft-NMS or DIoU-NMS, otherwise with the numbers of `detection`.

Each returns Found, sorted by falling score. The peers are plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.generators import NetworkOutput
from benchmarks.peers.detection import IOU, SCORE, TOP_K, Call, Found, best, decode
from mdssd import ops

RULES: dict[str, dict[str, Any]] = {
    "soft_linear": {"suppression": "soft_linear"},
    "diou": {"metric": "diou"},
}


def mdssd(x: NetworkOutput, rule: str) -> Call:
    def call() -> Found:
        found = ops.detection_output(*x, **RULES[rule])
        return Found(found.boxes[0], found.scores[0], found.labels[0])

    return call


def overlaps(a: Tensor, b: Tensor, rule: str) -> Tensor:
    """Return the IoU or the DIoU of boxes [..., M, 4] and [..., N, 4]: [..., M, N]."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp_(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b)]
    iou = inter / (areas[0] + areas[1] - inter)
    if rule != "diou":
        return iou
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    return iou - apart.square().sum(-1) / (high - low).square().sum(-1)


def _hard(boxes: Tensor, scores: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Keep the best box, remove those that overlap it, and repeat. Boxes come by falling score."""
    rest, kept = torch.arange(len(boxes), device=boxes.device), []
    while len(rest):
        kept.append(rest[0])
        overlap = overlaps(boxes[rest[:1]], boxes[rest[1:]], rule)[0]
        rest = rest[1:][overlap <= IOU]
    rows = torch.stack(kept)
    return rows, scores[rows]


def _soft(boxes: Tensor, scores: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Keep the best box, lower the scores of those that overlap it, and repeat."""
    rest, kept, found = torch.arange(len(boxes), device=boxes.device), [], []
    while len(rest):
        k = scores[rest].argmax()
        i, rest = rest[k], torch.cat([rest[:k], rest[k + 1 :]])
        kept.append(i)
        found.append(scores[i])
        overlap = overlaps(boxes[i, None], boxes[rest], rule)[0]
        scores[rest] *= torch.where(overlap > IOU, 1 - overlap, 1.0)
        rest = rest[scores[rest] > SCORE]
    return torch.stack(kept), torch.stack(found)


def torch_by_class(x: NetworkOutput, rule: str) -> Call:
    """Loop over the classes and over the boxes that are kept."""
    suppress = _soft if rule.startswith("soft") else _hard

    def call() -> Found:
        boxes = decode(x.loc[0], x.priors)
        scores = x.logits[0].softmax(-1).t().contiguous()
        parts = []
        for label in range(1, len(scores)):
            keep = scores[label] > SCORE
            if keep.any():
                score, box = scores[label][keep], boxes[keep]
                score, order = score.topk(min(TOP_K, len(score)))
                rows, score = suppress(box[order], score, rule)
                parts.append((box[order[rows]], score, torch.full_like(rows, label)))
        return best(*(torch.cat(part) for part in zip(*parts, strict=True)))

    return call


def torch_vectorised(x: NetworkOutput, rule: str) -> Call:
    """Process all classes at once: the best 400 of each, all pairs of boxes, one greedy loop."""

    def call() -> Found:
        boxes = decode(x.loc[0], x.priors)
        scores = x.logits[0].softmax(-1)[:, 1:].t()  # [C - 1, N]
        score, order = scores.topk(min(TOP_K, len(boxes)))  # [C - 1, 400]
        size = max(1, int((score > SCORE).sum(1).max()))
        score, box = score[:, :size], boxes[order[:, :size]]
        overlap = overlaps(box, box, rule)
        label = torch.arange(1, len(scores) + 1, device=boxes.device)[:, None].expand_as(score)
        alive = score > SCORE
        if not rule.startswith("soft"):
            meets = (overlap > IOU).triu_(1)
            for i in range(size):
                alive &= ~(meets[:, i] & alive[:, i, None])
            return best(box[alive], score[alive], label[alive])
        factor = torch.where(overlap > IOU, 1 - overlap, 1.0)
        rows, kept = torch.arange(len(score), device=boxes.device), torch.zeros_like(alive)
        for _ in range(size):
            place = rows, torch.where(alive, score, -1.0).argmax(1)
            chosen = alive[place]
            kept[place] |= chosen
            alive[place] = False
            score = torch.where(alive & chosen[:, None], score * factor[place], score)
            alive &= score > SCORE
        return best(box[kept], score[kept], label[kept])

    return call


PEERS: dict[str, Callable[..., Call]] = {
    "torch vectorised": torch_vectorised,
    "torch, class by class": torch_by_class,
}
ON_GPU = tuple(PEERS)
