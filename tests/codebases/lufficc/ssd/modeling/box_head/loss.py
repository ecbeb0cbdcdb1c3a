from codebases.box_utils import multibox_loss
from torch import nn

from ...utils import box_utils


class MultiBoxLoss(nn.Module):
    def __init__(self, neg_pos_ratio):
        super().__init__()
        self.neg_pos_ratio = neg_pos_ratio

    def forward(self, confidence, predicted_locations, labels, gt_locations):
        outputs = (confidence, predicted_locations, labels, gt_locations)
        return multibox_loss(box_utils.hard_negative_mining, self.neg_pos_ratio, *outputs)
