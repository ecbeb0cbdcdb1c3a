import torch
from codebases import plain
from torch import nn
from torch.nn import functional as F

from ..box_utils import match


class MultiBoxLoss(nn.Module):
    def __init__(self, num_classes, overlap_thresh, negpos_ratio):
        super().__init__()
        self.num_classes = num_classes
        self.threshold = overlap_thresh
        self.negpos_ratio = negpos_ratio
        self.variance = [0.1, 0.2]

    def forward(self, predictions, targets):
        loc, conf, priors = predictions
        images, count = loc.shape[:2]
        priors = priors[:count]
        loc_t = torch.empty(images, count, 4)
        conf_t = torch.empty(images, count, dtype=torch.int64)
        for i in range(images):
            truths, labels = targets[i][:, :-1], targets[i][:, -1]
            match(self.threshold, truths, priors, self.variance, labels, loc_t, conf_t, i)
        positive = conf_t > 0
        loss_l = plain.smooth_l1(loc[positive], loc_t[positive])
        each = F.cross_entropy(conf.flatten(0, 1), conf_t.flatten(), reduction="none")
        hardness = each.detach().view(images, count).masked_fill(positive, 0)
        wanted = (self.negpos_ratio * positive.sum(1, keepdim=True)).clamp(max=count - 1)
        chosen = positive | (plain.ranks(hardness) < wanted)
        loss_c = F.cross_entropy(conf[chosen], conf_t[chosen], reduction="sum")
        return loss_l / positive.sum(), loss_c / positive.sum()
