"""The parts of torchvision's RetinaNet, FCOS and region proposal network after their heads."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from codebases import plain
from codebases.torchvision_ssd import BoxCoder as SSDBoxCoder
from codebases.torchvision_ssd import torchvision


class BoxCoder(SSDBoxCoder):
    weights = (1.0, 1.0, 1.0, 1.0)

    def encode_single(self, boxes, anchors):
        return plain.encode(boxes, plain.centres(anchors)) / torch.tensor([10, 10, 5, 5])

    def decode_single(self, codes, anchors):
        return super().decode_single(codes * torch.tensor([10, 10, 5, 5]), anchors)


class BoxLinearCoder:
    normalize_by_size = True

    def encode(self, anchors, boxes):
        middle = plain.centres(anchors)
        codes = torch.cat([middle[..., :2] - boxes[..., :2], boxes[..., 2:] - middle[..., :2]], -1)
        return codes / middle[..., 2:].repeat_interleave(2, -1) if self.normalize_by_size else codes

    def decode(self, codes, anchors):
        middle = plain.centres(anchors)
        if self.normalize_by_size:
            codes = codes * middle[:, 2:].repeat(1, 2)
        low, high = middle[:, :2] - codes[:, :2], middle[:, :2] + codes[:, 2:]
        return torch.cat([low, high], 1)


class Matcher:
    def __init__(self, high, low, allow_low_quality_matches=True):
        self.high_threshold, self.low_threshold = high, low
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix):
        best, nearest = match_quality_matrix.max(0)
        index = nearest.clone()
        index[best < self.high_threshold] = -2
        index[best < self.low_threshold] = -1
        if self.allow_low_quality_matches:
            top = match_quality_matrix.max(1, keepdim=True).values
            restored = (match_quality_matrix == top).any(0)
            index[restored] = nearest[restored]
        return index


def focal(logits, wanted):
    p = logits.sigmoid()
    right = p * wanted + (1 - p) * (1 - wanted)
    weight = 0.25 * wanted + 0.75 * (1 - wanted)
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (weight * (1 - right) ** 2 * each).sum()


class RetinaNetClassificationHead(nn.Module):
    def compute_loss(self, targets, head_outputs, matched_idxs):
        total = 0
        pairs = zip(targets, head_outputs["cls_logits"], matched_idxs, strict=True)
        for target, logits, index in pairs:
            own = (index >= 0).nonzero()[:, 0]
            wanted = torch.zeros_like(logits)
            wanted[own, target["labels"][index[own]]] = 1
            total = total + focal(logits[index != -2], wanted[index != -2]) / max(1, len(own))
        return total / len(targets)


class RegressionHead(nn.Module):
    box_coder = BoxCoder()

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        total = 0
        together = (targets, head_outputs["bbox_regression"], anchors, matched_idxs)
        for target, loc, own_anchors, index in zip(*together, strict=True):
            own = (index >= 0).nonzero()[:, 0]
            offsets = self.box_coder.encode_single(target["boxes"][index[own]], own_anchors[own])
            total = total + (loc[own] - offsets).abs().sum() / max(1, len(own))
        return total / len(targets)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.classification_head = RetinaNetClassificationHead()
        self.regression_head = RegressionHead()

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        return {
            "classification": self.classification_head.compute_loss(
                targets, head_outputs, matched_idxs
            ),
            "bbox_regression": self.regression_head.compute_loss(
                targets, head_outputs, anchors, matched_idxs
            ),
        }


class OneStage(nn.Module):
    """What RetinaNet and FCOS do alike. Outputs and anchors are lists, one part for each map."""

    score_thresh, nms_thresh = 0.05, 0.5
    topk_candidates, detections_per_img = 1000, 300

    def scores(self, head_outputs, level, image):
        raise NotImplementedError

    def boxes(self, codes, anchors):
        raise NotImplementedError

    def postprocess_detections(self, head_outputs, anchors, image_shapes):
        detections = []
        for image, (height, width) in enumerate(image_shapes):
            sides = torch.tensor([width, height, width, height])
            parts = []
            for level, own_anchors in enumerate(anchors[image]):
                scores = self.scores(head_outputs, level, image)
                classes = scores.shape[1]
                place = (scores.flatten() > self.score_thresh).nonzero()[:, 0]
                place = place[plain.falling(scores.flatten()[place])[: self.topk_candidates]]
                row = place // classes
                codes = head_outputs["bbox_regression"][level][image]
                boxes = self.boxes(codes[row], own_anchors[row]).clamp(min=0).minimum(sides)
                parts.append((boxes, scores.flatten()[place], place % classes))
            boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
            keep = torchvision.ops.boxes.batched_nms(boxes, scores, labels, self.nms_thresh)
            keep = keep[: self.detections_per_img]
            found = {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
            detections.append(found)
        return detections


class RetinaNet(OneStage):
    def __init__(self):
        super().__init__()
        self.head = Head()
        self.box_coder = BoxCoder()
        self.proposal_matcher = Matcher(0.5, 0.4)

    def scores(self, head_outputs, level, image):
        return head_outputs["cls_logits"][level][image].sigmoid()

    def boxes(self, codes, anchors):
        return self.box_coder.decode_single(codes, anchors)

    def compute_loss(self, targets, head_outputs, anchors):
        matched = []
        for target, own_anchors in zip(targets, anchors, strict=True):
            if len(target["boxes"]) == 0:
                matched.append(torch.full((len(own_anchors),), -1))
            else:
                iou = plain.overlaps(target["boxes"][:, None], own_anchors[None])
                matched.append(self.proposal_matcher(iou))
        return self.head.compute_loss(targets, head_outputs, anchors, matched)


def giou_losses(boxes, others):
    low, high = torch.min(boxes, others), torch.max(boxes, others)
    sides = low[:, 2:] - high[:, :2]
    inside = torch.where((sides > 0).all(1), sides.prod(1), 0)  # no slope where boxes touch
    around = (high[:, 2:] - low[:, :2]).prod(1)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
    both = sum(areas) - inside
    return 1 - inside / (both + 1e-7) + (around - both) / (around + 1e-7)


class FCOSHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.box_coder = BoxLinearCoder()

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        total = torch.zeros(3)
        positives = 0
        for i, (target, own_anchors, index) in enumerate(
            zip(targets, anchors, matched_idxs, strict=True)
        ):
            logits = head_outputs["cls_logits"][i]
            own = (index >= 0).nonzero()[:, 0]
            own = own[target["labels"][index[own]] >= 0]
            wanted = torch.zeros_like(logits)
            wanted[own, target["labels"][index[own]]] = 1
            boxes = target["boxes"][index[own]]
            sides = self.box_coder.encode(own_anchors[own], boxes)
            shares = sides.view(-1, 2, 2).min(1).values / sides.view(-1, 2, 2).max(1).values
            found = self.box_coder.decode(head_outputs["bbox_regression"][i, own], own_anchors[own])
            centreness = F.binary_cross_entropy_with_logits(
                head_outputs["bbox_ctrness"][i, own, 0], shares.prod(1).sqrt(), reduction="sum"
            )
            losses = focal(logits, wanted), giou_losses(found, boxes).sum(), centreness
            total = total + torch.stack(losses)
            positives += len(own)
        names = ("classification", "bbox_regression", "bbox_ctrness")
        return dict(zip(names, total / max(1, positives), strict=True))


class FCOS(OneStage):
    center_sampling_radius = 1.5

    def __init__(self):
        super().__init__()
        self.box_coder = BoxLinearCoder()
        self.head = FCOSHead()

    def scores(self, head_outputs, level, image):
        centreness = head_outputs["bbox_ctrness"][level][image].sigmoid()
        return (head_outputs["cls_logits"][level][image].sigmoid() * centreness).sqrt()

    def boxes(self, codes, anchors):
        return self.box_coder.decode(codes, anchors)

    def compute_loss(self, targets, head_outputs, anchors, num_anchors_per_level):
        matched = []
        for target, own in zip(targets, anchors, strict=True):
            boxes = target["boxes"]
            if len(boxes) == 0:
                matched.append(torch.full((len(own),), -1))
                continue
            middle, size = plain.centres(own).split(2, 1)
            size = size[:, :1]
            low, high = 4 * size, 8 * size
            low[: num_anchors_per_level[0]] = 0
            high[-num_anchors_per_level[-1] :] = math.inf  # all, if the last map is empty
            apart = (middle[:, None] - plain.centres(boxes)[:, :2]).abs().max(2).values
            sides = torch.cat([middle[:, None] - boxes[:, :2], boxes[:, 2:] - middle[:, None]], 2)
            furthest = sides.max(2).values
            fits = (apart < self.center_sampling_radius * size) & (sides.min(2).values > 0)
            fits = fits & (furthest > low) & (furthest < high)
            rest = 1e8 - (boxes[:, 2:] - boxes[:, :2]).prod(1)
            best, index = (fits.float() * rest).max(1)
            matched.append(torch.where(best < 1e-5, -1, index))
        return self.head.compute_loss(targets, head_outputs, anchors, matched)


def box_iou(boxes, anchors):
    return plain.overlaps(boxes[:, None], anchors[None])


class RegionProposalNetwork(nn.Module):
    nms_thresh, score_thresh, min_size = 0.7, 0.0, 1e-3

    def __init__(self):
        super().__init__()
        self.proposal_matcher = Matcher(0.7, 0.3)
        self.box_similarity = box_iou

    def pre_nms_top_n(self):
        return 60 if self.training else 40

    def post_nms_top_n(self):
        return 30 if self.training else 20

    def _get_top_n_idx(self, objectness, num_anchors_per_level):
        parts, start = [], 0
        for level in objectness.split(num_anchors_per_level, 1):
            order = level.sort(dim=1, descending=True, stable=True).indices
            parts.append(order[:, : self.pre_nms_top_n()] + start)
            start += level.shape[1]
        return torch.cat(parts, 1)

    def filter_proposals(self, proposals, objectness, image_shapes, num_anchors_per_level):
        objectness = objectness.detach().reshape(len(proposals), -1)
        best = self._get_top_n_idx(objectness, num_anchors_per_level)
        sizes = enumerate(num_anchors_per_level)
        levels = torch.cat([torch.full((size,), level) for level, size in sizes])
        final_boxes, final_scores = [], []
        for image, (height, width) in enumerate(image_shapes):
            own = best[image]
            sides = torch.tensor([width, height, width, height])
            boxes = proposals[image, own].clamp(min=0).minimum(sides)
            scores = objectness[image, own].sigmoid()
            large = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(1)
            stays = large & (scores >= self.score_thresh)
            boxes, scores, level = boxes[stays], scores[stays], levels[own][stays]
            keep = torchvision.ops.boxes.batched_nms(boxes, scores, level, self.nms_thresh)
            keep = keep[: self.post_nms_top_n()]
            final_boxes.append(boxes[keep])
            final_scores.append(scores[keep])
        return final_boxes, final_scores

    def assign_targets_to_anchors(self, anchors, targets):
        labels, boxes = [], []
        for own_anchors, target in zip(anchors, targets, strict=True):
            if len(target["boxes"]) == 0:
                labels.append(torch.zeros(len(own_anchors)))
                boxes.append(torch.zeros(len(own_anchors), 4))
                continue
            index = self.proposal_matcher(self.box_similarity(target["boxes"], own_anchors))
            boxes.append(target["boxes"][index.clamp(min=0)])
            labels.append(torch.tensor([1.0, -1.0, 0.0])[index.clamp(max=0)])
        return labels, boxes


class FasterRCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.rpn = RegionProposalNetwork()
