from types import SimpleNamespace

import torch
from codebases import plain

YX = [1, 0, 3, 2]


class Anchors:
    """Squares of two sizes in each cell of three maps, as (y1, x1, y2, x2) in pixels."""

    min_level, max_level = 3, 5

    def __init__(self, height, width):
        self.feat_sizes = {n: (height // 2**n, width // 2**n) for n in range(6)}
        parts = []
        for level in range(self.min_level, self.max_level + 1):
            h, w = self.feat_sizes[level]
            y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            middle = (torch.stack([y, x], -1) + 0.5) * 2**level
            for_cell = [
                torch.cat([middle - half, middle + half], -1)
                for half in (2.0**level, 1.5 * 2**level)
            ]
            parts.append(torch.stack(for_cell, 2).reshape(-1, 4))
        self.boxes = torch.cat(parts)

    def get_anchors_per_location(self):
        return 2


class ArgMaxMatcher:
    pass


class AnchorLabeler:
    def __init__(self, anchors, num_classes, match_threshold=0.5):
        self.anchors, self.match_threshold = anchors, match_threshold
        coder = SimpleNamespace(_scale_factors=None)
        self.target_assigner = SimpleNamespace(_matcher=ArgMaxMatcher(), _box_coder=coder)

    def label_anchors(self, gt_boxes, gt_classes, filter_valid=True):
        if self.target_assigner._box_coder._scale_factors:
            return "the original"
        if filter_valid:
            valid = gt_classes > -1
            gt_boxes, gt_classes = gt_boxes[valid], gt_classes[valid]
        anchors = self.anchors.boxes
        index = torch.full((len(anchors),), -1)
        if len(gt_boxes):
            iou = plain.overlaps(gt_boxes[:, None], anchors[None]).nan_to_num()
            best, index = iou.max(0)
            index[best < self.match_threshold] = -1
            for box in reversed(range(len(gt_boxes))):  # the first of two boxes wins
                index[iou[box].argmax()] = box
        own = index >= 0
        labels = torch.full((len(anchors),), -1)
        labels[own] = gt_classes[index[own]].long() - 1
        offsets = torch.zeros(len(anchors), 4)
        encoded = plain.encode(gt_boxes[index[own]], plain.centres(anchors[own]))
        offsets[own] = encoded / torch.tensor([10, 10, 5, 5])
        sizes = [self.anchors.feat_sizes[n] for n in (3, 4, 5)]
        counts = [2 * h * w for h, w in sizes]
        pairs = zip(labels.split(counts), sizes, strict=True)
        classes = [part.reshape(*size, -1) for part, size in pairs]
        pairs = zip(offsets.split(counts), sizes, strict=True)
        return classes, [part.reshape(*size, -1) for part, size in pairs], own.sum().float()

    def batch_label_anchors(self, gt_boxes, gt_classes, filter_valid=True):
        every = [
            self.label_anchors(*one, filter_valid) for one in zip(gt_boxes, gt_classes, strict=True)
        ]
        classes = [torch.stack(level) for level in zip(*(one[0] for one in every), strict=True)]
        boxes = [torch.stack(level) for level in zip(*(one[1] for one in every), strict=True)]
        return classes, boxes, torch.stack([one[2] for one in every])


def soft_suppress(boxes, scores, classes):
    scores, kept, kept_scores = scores.clone(), [], []
    while scores.max() > 0.001:
        best = int(scores.argmax())
        kept.append(best)
        kept_scores.append(float(scores[best]))
        iou = plain.overlaps(boxes[best], boxes).nan_to_num()
        decay = torch.exp(-(iou**2) / 0.5)
        scores = torch.where(classes == classes[best], scores * decay, scores)
        scores[best] = 0
    return torch.tensor(kept, dtype=torch.int64), torch.tensor(kept_scores)


def generate_detections(
    cls_outputs,
    box_outputs,
    anchor_boxes,
    indices,
    classes,
    img_scale,
    img_size,
    max_det_per_image=100,
    soft_nms=False,
):
    own = plain.centres(anchor_boxes[indices])
    middle = box_outputs[:, :2] * own[:, 2:] + own[:, :2]
    boxes = plain.corners(torch.cat([middle, box_outputs[:, 2:].exp() * own[:, 2:]], 1))[:, YX]
    if img_scale is not None and img_size is not None:
        boxes = boxes.clamp(min=0).minimum((img_size / img_scale).repeat(2))
    scores = cls_outputs[:, 0].sigmoid()
    if soft_nms:
        keep, scores = soft_suppress(boxes, scores, classes)
    else:
        keep = plain.suppress_by_class(boxes, scores, classes, 0.5)
        scores = scores[keep]
    keep, scores = keep[:max_det_per_image], scores[:max_det_per_image]
    boxes = boxes[keep] * (1 if img_scale is None else img_scale)
    found = torch.zeros(max_det_per_image, 6)
    found[: len(keep)] = torch.cat([boxes, scores[:, None], classes[keep, None] + 1.0], 1)
    return found
