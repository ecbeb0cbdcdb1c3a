import math
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F

from codebases import plain

torchvision = ModuleType("torchvision")
torchvision.ops = ModuleType("torchvision.ops")
torchvision.ops.boxes = ModuleType("torchvision.ops.boxes")
torchvision.ops.boxes.batched_nms = torchvision.ops.batched_nms = plain.suppress_by_class
torchvision.ops.boxes.box_iou = lambda a, b: plain.overlaps(a[:, None], b[None])
torchvision.ops.boxes.nms = torchvision.ops.nms = plain.suppress_all
box_ops = torchvision.ops.boxes


class BoxCoder:
    weights = (10.0, 10.0, 5.0, 5.0)
    bbox_xform_clip = math.log(1000 / 16)

    def encode_single(self, boxes, anchors):
        return plain.encode(boxes, plain.centres(anchors))

    def decode_single(self, codes, anchors):
        anchors = plain.centres(anchors)
        middle = codes[:, :2] / 10 * anchors[:, 2:] + anchors[:, :2]
        size = (codes[:, 2:] / 5).clamp(max=self.bbox_xform_clip).exp() * anchors[:, 2:]
        return plain.corners(torch.cat([middle, size], 1))


class SSDMatcher:
    def __init__(self, threshold):
        self.high_threshold = self.low_threshold = threshold

    def __call__(self, match_quality_matrix):
        best, matches = match_quality_matrix.max(0)
        matches[best < self.low_threshold] = -1
        for box, anchor in enumerate(match_quality_matrix.max(1).indices):
            matches[anchor] = box
        return matches


class SSD(nn.Module):
    """The part of the model after its head; the anchors [N, 4] are xyxy in pixels."""

    def __init__(self, anchors):
        super().__init__()
        self.anchors = anchors
        self.box_coder = BoxCoder()
        self.proposal_matcher = SSDMatcher(0.5)
        self.score_thresh, self.nms_thresh = 0.01, 0.45
        self.topk_candidates, self.detections_per_img = 400, 200
        self.neg_to_pos_ratio = 3.0

    def forward(self, head_outputs, image_sizes, targets=None):
        anchors = [self.anchors.clone() for _ in image_sizes]
        if targets is None:
            return self.postprocess_detections(head_outputs, anchors, image_sizes)
        matched = []
        for own, target in zip(anchors, targets, strict=True):
            if target["boxes"].numel() == 0:
                matched.append(torch.full((len(own),), -1))
            else:
                iou = box_ops.box_iou(target["boxes"], own)
                matched.append(self.proposal_matcher(iou))
        return self.compute_loss(targets, head_outputs, anchors, matched)

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        loc, logits = head_outputs["bbox_regression"], head_outputs["cls_logits"]
        localisation, wanted, positives = 0, [], 0
        for i, index in enumerate(matched_idxs):
            own = (index >= 0).nonzero()[:, 0]
            boxes = targets[i]["boxes"][index[own]]
            offsets = self.box_coder.encode_single(boxes, anchors[i][own])
            localisation = localisation + plain.smooth_l1(loc[i][own], offsets)
            labels = torch.zeros(len(index), dtype=torch.int64)
            labels[own] = targets[i]["labels"][index[own]]
            wanted.append(labels)
            positives += len(own)
        wanted = torch.stack(wanted)
        each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        each = each.view(wanted.shape)
        positive = wanted > 0
        rank = plain.ranks(each.detach().masked_fill(positive, -math.inf))
        negative = rank < self.neg_to_pos_ratio * positive.sum(1, keepdim=True)
        n = max(1, positives)
        return {
            "bbox_regression": localisation / n,
            "classification": (each[positive].sum() + each[negative].sum()) / n,
        }

    def postprocess_detections(self, head_outputs, image_anchors, image_shapes):
        scores = head_outputs["cls_logits"].softmax(-1)
        detections = []
        for i, (height, width) in enumerate(image_shapes):
            boxes = self.box_coder.decode_single(
                head_outputs["bbox_regression"][i], image_anchors[i]
            )
            sides = torch.tensor([width, height, width, height])
            boxes = boxes.clamp(min=0).minimum(sides)
            parts = []
            for label in range(1, scores.shape[2]):
                score = scores[i, :, label]
                passes = score > self.score_thresh
                score, box = score[passes], boxes[passes]
                order = plain.falling(score)[: self.topk_candidates]
                parts.append((box[order], score[order], torch.full_like(order, label)))
            box, score, label = (torch.cat(part) for part in zip(*parts, strict=True))
            keep = torchvision.ops.boxes.batched_nms(box, score, label, self.nms_thresh)
            keep = keep[: self.detections_per_img]
            found = {"boxes": box[keep], "scores": score[keep], "labels": label[keep]}
            detections.append(found)
        return detections
