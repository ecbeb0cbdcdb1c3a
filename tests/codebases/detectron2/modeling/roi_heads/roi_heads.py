"""The second stage: which proposals are of which box."""

from codebases.detectron2.modeling.matcher import Matcher
from codebases.detectron2.structures.boxes import pairwise_iou


class ROIHeads:
    def __init__(self):
        self.proposal_matcher = Matcher([0.5], [0, 1])

    def label_and_sample_proposals(self, proposals, targets):
        return [
            self.proposal_matcher(pairwise_iou(boxes, own))
            for own, boxes in zip(proposals, targets, strict=True)
        ]
