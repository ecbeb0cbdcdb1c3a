"""RetinaNet: the labels of the anchors."""

from codebases.detectron2.modeling.matcher import Matcher
from codebases.detectron2.structures.boxes import Boxes, pairwise_iou


class RetinaNet:
    num_classes = 5

    def __init__(self):
        self.anchor_matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)

    def label_anchors(self, anchors, gt_instances):
        anchors = Boxes.cat(anchors)
        found = []
        for boxes, classes in gt_instances:
            index, labels = self.anchor_matcher(pairwise_iou(boxes, anchors))
            own = index + self.num_classes
            if len(boxes):
                own = classes[index]
                own[labels == 0] = self.num_classes
                own[labels == -1] = -1
            found.append(own)
        return found
