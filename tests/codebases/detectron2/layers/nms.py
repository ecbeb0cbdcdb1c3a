"""NMS of boxes of any floating type."""

from codebases import plain


def batched_nms(boxes, scores, idxs, iou_threshold):
    return plain.suppress_by_class(boxes.float(), scores, idxs, iou_threshold)
