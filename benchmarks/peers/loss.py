"""Peers of the losses. All are differentiable.

Those of `multibox_loss` return (localisation, confidence), the others a scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from mdssd import ops

RATIO = 3
Losses: TypeAlias = tuple[Tensor, Tensor]
Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Losses]


def mdssd(loc: Tensor, logits: Tensor, loc_targets: Tensor, labels: Tensor) -> Losses:
    return ops.multibox_loss(loc, logits, loc_targets, labels, RATIO)


def _localisation(loc: Tensor, loc_targets: Tensor, positive: Tensor) -> Tensor:
    return F.smooth_l1_loss(loc[positive], loc_targets[positive], reduction="sum")


def torchvision_way(loc: Tensor, logits: Tensor, loc_targets: Tensor, labels: Tensor) -> Losses:
    """Compute the cross-entropy of all priors and rank them by sorting, as torchvision does."""
    positive = labels > 0
    total = max(1, int(positive.sum()))
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    entropy = entropy.view(labels.shape)
    negative = entropy.detach().masked_fill(positive, -torch.inf)
    rank = negative.sort(1, descending=True)[1].sort(1)[1]
    hard = rank < RATIO * positive.sum(1, keepdim=True)
    confidence = entropy[positive].sum() + entropy[hard].sum()
    return _localisation(loc, loc_targets, positive) / total, confidence / total


def ssd_pytorch(loc: Tensor, logits: Tensor, loc_targets: Tensor, labels: Tensor) -> Losses:
    """Rank all priors by log-sum-exp and two sorts, then compute the chosen rows' cross-entropy."""
    positive = labels > 0
    flat = logits.reshape(-1, logits.shape[2])
    top = flat.detach().max()
    mined = torch.log(torch.exp(flat - top).sum(1, keepdim=True)) + top
    mined = (mined - flat.gather(1, labels.reshape(-1, 1))).view(labels.shape)
    mined = mined.masked_fill(positive, 0)
    rank = mined.sort(1, descending=True)[1].sort(1)[1]
    count = positive.sum(1, keepdim=True)
    hard = rank < torch.clamp(RATIO * count, max=positive.shape[1] - 1)
    chosen = positive | hard
    confidence = F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")
    total = count.sum().clamp(min=1)
    return _localisation(loc, loc_targets, positive) / total, confidence / total


def torch_lean(loc: Tensor, logits: Tensor, loc_targets: Tensor, labels: Tensor) -> Losses:
    """Find the hardest priors by topk and compute the cross-entropy of the chosen rows only."""
    positive = labels > 0
    with torch.no_grad():
        loss = logits.logsumexp(2).sub_(logits[..., 0]).masked_fill_(positive, -torch.inf)
        counts = positive.sum(1).tolist()
        chosen = positive.clone()
        for image, count in enumerate(counts):
            wanted = min(RATIO * count, loss.shape[1] - count)
            chosen[image, loss[image].topk(wanted).indices] = True
    rows = chosen.flatten().nonzero()[:, 0]
    picked = logits.flatten(0, 1).index_select(0, rows)
    confidence = F.cross_entropy(picked, labels.flatten()[rows], reduction="sum")
    total = max(1, sum(counts))
    return _localisation(loc, loc_targets, positive) / total, confidence / total


def _masked(loc: Tensor, logits: Tensor, loc_targets: Tensor, labels: Tensor) -> Losses:
    """Do the same as torchvision without data-dependent shapes, which torch.compile needs."""
    positive = labels > 0
    count = positive.sum(1, keepdim=True)
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    entropy = entropy.view(labels.shape)
    negative = entropy.detach().masked_fill(positive, -torch.inf)
    rank = negative.sort(1, descending=True)[1].sort(1)[1]
    chosen = positive | (rank < RATIO * count)
    distance = F.smooth_l1_loss(loc, loc_targets, reduction="none").sum(2)
    total = count.sum().clamp(min=1)
    return (distance * positive).sum() / total, (entropy * chosen).sum() / total


compiled = torch.compile(_masked, dynamic=False)

PEERS: dict[str, Loss] = {
    "torch, topk and gather": torch_lean,
    "torchvision's way": torchvision_way,
    "ssd.pytorch's way": ssd_pytorch,
    "torch.compile": compiled,
}
ON_GPU = tuple(PEERS)


# --- sigmoid_focal_loss --------------------------------------------------------------------------


def mdssd_focal(logits: Tensor, labels: Tensor) -> Tensor:
    return ops.sigmoid_focal_loss(logits, labels)


def torchvision_focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Make one-hot targets and apply torchvision's published formula, as its RetinaNet does."""
    targets = torch.zeros_like(logits)
    image, prior = (labels > 0).nonzero(as_tuple=True)
    targets[image, prior, labels[image, prior] - 1] = 1.0
    kept = labels != -1
    logits, targets = logits[kept], targets[kept]
    p = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = entropy * ((1 - p_t) ** 2)
    loss = (0.25 * targets + 0.75 * (1 - targets)) * loss
    return loss.sum() / max(1, len(image))


def _focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Do the same without data-dependent shapes, which torch.compile needs."""
    own = labels[..., None] == torch.arange(1, logits.shape[2] + 1, device=labels.device)
    z = torch.where(own, logits, -logits)
    loss = torch.sigmoid(-z) ** 2 * F.softplus(-z) * torch.where(own, 0.25, 0.75)
    loss = torch.where((labels != -1)[..., None], loss, 0).sum()
    return loss / (labels > 0).sum().clamp(min=1)


FOCAL_PEERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torchvision's way": torchvision_focal,
    "torch.compile": torch.compile(_focal, dynamic=False),
}


# --- box_loss ------------------------------------------------------------------------------------


def mdssd_giou(loc: Tensor, loc_targets: Tensor, labels: Tensor, priors: Tensor) -> Tensor:
    return ops.box_loss(loc, loc_targets, labels, priors)


def _decoded(loc: Tensor, priors: Tensor) -> Tensor:
    centre = priors[..., :2] + 0.1 * loc[..., :2] * priors[..., 2:]
    half = priors[..., 2:] * torch.exp(0.2 * loc[..., 2:]) / 2
    return torch.cat([centre - half, centre + half], -1)


def torchvision_giou(loc: Tensor, loc_targets: Tensor, labels: Tensor, priors: Tensor) -> Tensor:
    """Decode the positives and apply torchvision's `generalized_box_iou_loss`."""
    image, prior = (labels > 0).nonzero(as_tuple=True)
    a, b = (_decoded(x[image, prior], priors[prior]) for x in (loc, loc_targets))
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a.unbind(1), b.unbind(1)
    low_x, low_y = torch.max(x1, u1), torch.max(y1, v1)
    high_x, high_y = torch.min(x2, u2), torch.min(y2, v2)
    inside = torch.zeros_like(x1)
    mask = (high_y > low_y) & (high_x > low_x)
    inside[mask] = (high_x[mask] - low_x[mask]) * (high_y[mask] - low_y[mask])
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inside
    around = (torch.max(x2, u2) - torch.min(x1, u1)) * (torch.max(y2, v2) - torch.min(y1, v1))
    loss = 1 - (inside / union - (around - union) / around)
    return loss.sum() / max(1, len(image))


BOX_PEERS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "torchvision's way": torchvision_giou,
}
