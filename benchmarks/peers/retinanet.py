"""Peers of RetinaNet's post-processing for one image, with torchvision's numbers.

Scores above 0.05, the best 1,000 pairs of anchor and class of each feature map, NMS at 0.5 per
class, the best 300.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.generators import RetinaOutput
from benchmarks.peers.detection import Found
from mdssd import ops

SCORE, IOU, TOP_K, BEST = 0.05, 0.5, 1000, 300
_CLIP = math.log(1000 / 16)

Call = Callable[[], Found]


def mdssd(x: RetinaOutput) -> Call:
    def call() -> Found:
        found = ops.detection_output(
            x.loc,
            x.logits,
            x.priors,
            score_threshold=SCORE,
            nms_threshold=IOU,
            top_k=len(x.priors),
            max_detections=BEST,
            variances=(1.0, 1.0),
            max_log_scale=_CLIP,
            clip=(x.width, x.height),
            activation="sigmoid",
            background=False,
            levels=x.levels,
            top_k_per_level=TOP_K,
        )
        return Found(found.boxes[0], found.scores[0], found.labels[0])

    return call


def decode(loc: Tensor, anchors: Tensor, width: float, height: float) -> Tensor:
    """Decode to corners and clip them, as torchvision's BoxCoder does with weights of 1."""
    size = anchors[:, 2:] - anchors[:, :2]
    middle = loc[:, :2] * size + anchors[:, :2] + 0.5 * size
    half = 0.5 * torch.exp(loc[:, 2:].clamp(max=_CLIP)) * size
    boxes = torch.cat([middle - half, middle + half], 1)
    clipped = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack(clipped, 2).flatten(1)


def torchvision_way(x: RetinaOutput) -> Call:
    """Use torchvision's steps, with this project's NMS if torchvision is missing."""
    try:
        from torchvision.ops import batched_nms
    except (ImportError, RuntimeError):
        batched_nms = ops.batched_nms
    classes = x.logits.shape[2]
    half = x.priors[:, 2:] / 2
    corners = torch.cat([x.priors[:, :2] - half, x.priors[:, :2] + half], 1).split(x.levels)
    loc, logits = x.loc[0].split(x.levels), x.logits[0].split(x.levels)

    def call() -> Found:
        parts = []
        for offsets, level, anchors in zip(loc, logits, corners, strict=True):
            scores = level.sigmoid().flatten()
            keep = scores > SCORE
            scores, place = scores[keep], torch.where(keep)[0]
            scores, order = scores.topk(min(TOP_K, len(place)))
            place = place[order]
            anchor = torch.div(place, classes, rounding_mode="floor")
            boxes = decode(offsets[anchor], anchors[anchor], x.width, x.height)
            parts.append((boxes, scores, place % classes))
        boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        keep = batched_nms(boxes, scores, labels, IOU)[:BEST]
        return Found(boxes[keep], scores[keep], labels[keep] + 1)

    return call


PEERS: dict[str, Any] = {"torchvision's way": torchvision_way}
ON_GPU = tuple(PEERS)
