"""The stages of a cascade."""

from codebases.detectron2.modeling.matcher import Matcher
from codebases.detectron2.structures.boxes import pairwise_iou


class CascadeROIHeads:
    def __init__(self):
        self.proposal_matchers = [Matcher([t], [0, 1]) for t in (0.5, 0.6, 0.7)]

    def _match_and_label_boxes(self, proposals, stage, targets):
        return [
            self.proposal_matchers[stage](pairwise_iou(boxes, own))
            for own, boxes in zip(proposals, targets, strict=True)
        ]
