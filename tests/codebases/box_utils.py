"""Code that lufficc/SSD and qfgaohao/pytorch-ssd share."""

import math

from torch.nn import functional as F

from codebases import plain


def iou_of(boxes0, boxes1):
    return plain.overlaps(boxes0, boxes1, eps=1e-5, clamp=True)


def assign_priors(gt_boxes, gt_labels, corner_form_priors, iou_threshold):
    iou = iou_of(gt_boxes[None], corner_form_priors[:, None])  # [P, M]
    best, which = iou.max(1)
    for target, prior in enumerate(iou.max(0).indices):
        best[prior], which[prior] = 2, target
    labels = gt_labels[which]
    labels[best < iou_threshold] = 0
    return gt_boxes[which], labels


def hard_negative_mining(loss, labels, neg_pos_ratio):
    positive = labels > 0
    wanted = positive.sum(1, keepdim=True) * neg_pos_ratio
    loss[positive] = -math.inf
    return positive | (plain.ranks(loss) < wanted)


def multibox_loss(mining, ratio, confidence, predicted_locations, labels, gt_locations):
    mask = mining(-confidence.detach().log_softmax(2)[..., 0], labels, ratio)
    classification = F.cross_entropy(confidence[mask], labels[mask], reduction="sum")
    positive = labels > 0
    localisation = plain.smooth_l1(predicted_locations[positive], gt_locations[positive])
    return localisation / positive.sum(), classification / positive.sum()
