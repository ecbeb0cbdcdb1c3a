"""The proposals of an image that are left."""

import torch
from codebases.detectron2.layers.nms import batched_nms


def find_top_rpn_proposals(proposals, logits, nms_thresh, post_nms_topk):
    """The best of proposals [N, 4] and logits [N] of each feature map, suppressed map by map."""
    levels = torch.cat([torch.full((len(part),), i) for i, part in enumerate(proposals)])
    boxes, scores = torch.cat(proposals), torch.cat(logits)
    keep = batched_nms(boxes, scores, levels, nms_thresh)[:post_nms_topk]
    return boxes[keep], scores[keep]
