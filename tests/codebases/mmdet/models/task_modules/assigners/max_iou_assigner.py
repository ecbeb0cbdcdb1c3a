"""Priors to boxes, by the matrix of their overlaps."""

import torch
from codebases.mmdet.models.task_modules.assigners.assign_result import AssignResult


class BboxOverlaps2D:
    dtype = None

    def __call__(self, boxes, priors, mode="iou"):
        boxes, priors = (getattr(each, "tensor", each) for each in (boxes, priors))
        low = torch.maximum(boxes[:, None, :2], priors[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], priors[None, :, 2:])
        inside = (high - low).clamp(min=0).prod(2)
        sides, others = boxes[:, 2:] - boxes[:, :2], priors[:, 2:] - priors[:, :2]
        area = sides.prod(1)[:, None]
        whole = area if mode == "iof" else area + others.prod(1) - inside
        return inside / whole.clamp(min=1e-6)


class MaxIoUAssigner:
    def __init__(self, pos_iou_thr, neg_iou_thr, **rules):
        self.pos_iou_thr, self.neg_iou_thr = pos_iou_thr, neg_iou_thr
        self.min_pos_iou, self.match_low_quality, self.gt_max_assign_all = 0.0, True, True
        self.ignore_iof_thr, self.ignore_wrt_candidates = -1, True
        self.iou_calculator = BboxOverlaps2D()
        vars(self).update(rules)

    def assign(self, pred_instances, gt_instances, gt_instances_ignore=None, **others):
        boxes, priors = gt_instances.bboxes, pred_instances.priors
        overlap = self.iou_calculator(boxes, priors)
        if self.ignore_iof_thr > 0 and gt_instances_ignore is not None:
            ignored = gt_instances_ignore.bboxes
            if self.ignore_wrt_candidates:
                share = self.iou_calculator(priors, ignored, "iof").T
            else:
                share = self.iou_calculator(ignored, priors, "iof")
            overlap[:, (share > self.ignore_iof_thr).any(0)] = -1
        return self.assign_wrt_overlaps(overlap, gt_instances.labels)

    def assign_wrt_overlaps(self, overlap, labels):
        boxes, priors = overlap.shape
        inds = torch.full((priors,), 0 if boxes == 0 else -1)
        if boxes == 0 or priors == 0:
            return AssignResult(boxes, inds, torch.zeros(priors), torch.full((priors,), -1))
        best, nearest = overlap.max(0)
        limits = self.neg_iou_thr
        low, high = limits if isinstance(limits, tuple) else (0, limits)
        inds[(best >= low) & (best < high)] = 0
        inds[best >= self.pos_iou_thr] = nearest[best >= self.pos_iou_thr] + 1
        for box, row in enumerate(overlap if self.match_low_quality else ()):
            if row.max() >= self.min_pos_iou:
                tied = (row == row.max()).nonzero()[:, 0]
                inds[tied if self.gt_max_assign_all else tied[:1]] = box + 1
        own = torch.full((priors,), -1)
        own[inds > 0] = labels[inds[inds > 0] - 1]
        return AssignResult(boxes, inds, best, own)
