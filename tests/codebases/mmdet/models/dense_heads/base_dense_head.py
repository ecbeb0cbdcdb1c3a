"""A head, which suppresses by the function that it imported."""

from codebases.mmcv.ops.nms import batched_nms


def _bbox_post_process(boxes, scores, labels, cfg):
    return batched_nms(boxes, scores, labels, cfg)
