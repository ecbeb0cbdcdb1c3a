"""Peers of `multibox_loss`. Each returns (localisation, confidence) and is differentiable."""

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
