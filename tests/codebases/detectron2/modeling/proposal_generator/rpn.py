"""The region proposal network: labels of the anchors, of two images or more."""

from codebases.detectron2.modeling.matcher import Matcher
from codebases.detectron2.structures.boxes import Boxes, pairwise_iou


class RPN:
    def __init__(self):
        self.anchor_matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)

    def label_and_sample_anchors(self, anchors, gt_instances):
        anchors = Boxes.cat(anchors)
        found = []
        for boxes in gt_instances:
            overlap = pairwise_iou(boxes, anchors)
            found.append(self.anchor_matcher(overlap))
        return found
