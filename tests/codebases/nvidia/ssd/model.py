import torch
from codebases import plain
from torch import nn
from torch.nn import functional as F


class Loss(nn.Module):
    def __init__(self, dboxes):
        super().__init__()
        self.scale_xy, self.scale_wh = 1 / dboxes.scale_xy, 1 / dboxes.scale_wh
        self.dboxes = nn.Parameter(dboxes(order="xywh").t()[None], requires_grad=False)

    def _loc_vec(self, loc):
        middle = self.scale_xy * (loc[:, :2] - self.dboxes[:, :2]) / self.dboxes[:, 2:]
        size = self.scale_wh * (loc[:, 2:] / self.dboxes[:, 2:]).log()
        return torch.cat([middle, size], 1)

    def forward(self, ploc, plabel, gloc, glabel):
        mask = glabel > 0
        positives = mask.sum(1)
        localisation = F.smooth_l1_loss(ploc, self._loc_vec(gloc), reduction="none").sum(1)
        localisation = torch.where(mask, localisation, 0).sum(1)
        each = F.cross_entropy(plabel, glabel, reduction="none")
        wanted = (3 * positives).clamp(max=mask.shape[1])[:, None]
        negative = plain.ranks(each.detach().masked_fill(mask, 0)) < wanted
        confidence = (each * (mask + negative).float()).sum(1)
        total = (localisation + confidence) * (positives > 0)
        return (total / positives.clamp(min=1e-6)).mean()
