import torch
from codebases import plain
from torch import nn

from .inference import CFG, PostProcessor
from .loss import MultiBoxLoss


class SSDBoxHead(nn.Module):
    def __init__(self, priors):
        super().__init__()
        self.post_processor = PostProcessor(CFG)
        self.loss_evaluator = MultiBoxLoss(neg_pos_ratio=3)
        self.priors = priors

    def forward(self, confidence, locations, targets=None):
        if targets is not None:
            boxes, labels = targets
            return self.loss_evaluator(confidence, locations, labels, boxes)
        middle = locations[..., :2] * 0.1 * self.priors[:, 2:] + self.priors[:, :2]
        size = (locations[..., 2:] * 0.2).exp() * self.priors[:, 2:]
        boxes = plain.corners(torch.cat([middle, size], -1))
        return self.post_processor((confidence.softmax(2), boxes))


class SSDDetector(nn.Module):
    def __init__(self, priors):
        super().__init__()
        self.box_head = SSDBoxHead(priors)

    def forward(self, *outputs):
        return self.box_head(*outputs)
