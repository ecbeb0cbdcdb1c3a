"""NMS of mmcv: rows of box and score, and their indices."""

import torch
from codebases import plain


def nms(boxes, scores, iou_threshold, offset=0, score_threshold=0, max_num=-1):
    if offset:
        return "the original"
    place = torch.arange(len(boxes))
    if score_threshold > 0:
        place = (scores > score_threshold).nonzero()[:, 0]
    keep = place[plain.suppress_all(boxes[place], scores[place], iou_threshold)]
    keep = keep[:max_num] if max_num > 0 else keep
    return torch.cat([boxes[keep], scores[keep, None]], 1), keep


def batched_nms(boxes, scores, idxs, nms_cfg, class_agnostic=False):
    if nms_cfg is None:
        order = plain.falling(scores)
        return torch.cat([boxes, scores[:, None]], 1)[order], order
    settings = dict(nms_cfg)
    if settings.pop("type", "nms") != "nms":
        return "another kind"
    together = settings.pop("class_agnostic", class_agnostic)
    if len(boxes) >= settings.pop("split_thr", 10000):
        most, keep = settings.pop("max_num", -1), []
        for label in idxs.unique():
            own = (idxs == label).nonzero()[:, 0]
            keep.append(own[nms(boxes[own], scores[own], **settings)[1]])
        keep = torch.cat(keep).sort().values
        keep = keep[plain.falling(scores[keep])]
        keep = keep[:most] if most > 0 else keep
    else:
        shift = 0 if together else 1000 * idxs[:, None].to(boxes.dtype)
        keep = nms(boxes + shift, scores, **settings)[1]
    return torch.cat([boxes[keep], scores[keep, None]], 1), keep
