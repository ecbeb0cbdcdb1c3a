"""Reference of multibox_loss and its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mdssd.ops._checks import bad_label
from mdssd.ops._settings import MultiboxLossSettings
from mdssd.ops._tensors import accumulation_dtype


def multibox_loss(
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    settings: MultiboxLossSettings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if loc.device.type == "cpu" and ((labels < -1) | (labels >= logits.shape[2])).any():
        raise bad_label("multibox_loss", labels, logits.shape[2] - 1)
    dtype = accumulation_dtype(loc.dtype)
    log_probs = logits.to(dtype).log_softmax(-1)
    positive, background = labels > 0, labels == 0
    # The others sort last: they are not candidates.
    hardness = torch.where(background, -log_probs[..., 0], -math.inf)
    rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    positives = positive.sum(1, keepdim=True)
    wanted = (settings.neg_pos_ratio * positives.double()).floor()
    selected = positive | (rank < torch.minimum(wanted, background.sum(1, keepdim=True)))

    cross_entropy = -log_probs.gather(-1, _classes(labels)[..., None])[..., 0]
    smooth_l1 = F.smooth_l1_loss(loc.to(dtype), loc_targets.to(dtype), reduction="none").sum(-1)
    dims = (1,) if settings.per_image else (0, 1)
    normaliser = positives.sum(dims).clamp(min=1)
    loc_loss = torch.where(positive, smooth_l1, 0).sum(dims) / normaliser
    conf_loss = torch.where(selected, cross_entropy, 0).sum(dims) / normaliser
    return loc_loss, conf_loss, selected, normaliser


def multibox_loss_backward(
    grad_loc_loss: Tensor,
    grad_conf_loss: Tensor,
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    selected: Tensor,
    normaliser: Tensor,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(loc.dtype)
    # [1, 1, 1], or one number per image: [B, 1, 1].
    loc_scale = (grad_loc_loss / normaliser).reshape(-1, 1, 1)
    conf_scale = (grad_conf_loss / normaliser).reshape(-1, 1, 1)
    slope = (loc.to(dtype) - loc_targets.to(dtype)).clamp(-1, 1)
    grad_loc = torch.where((labels > 0)[..., None], slope * loc_scale, 0)
    error = logits.to(dtype).softmax(-1) - F.one_hot(_classes(labels), logits.shape[2])
    grad_logits = torch.where(selected[..., None], error * conf_scale, 0)
    return grad_loc.to(loc.dtype), grad_logits.to(logits.dtype)


def _classes(labels: Tensor) -> Tensor:
    """The labels, with that of the background for the priors that are left out."""
    return torch.where(labels == -1, 0, labels)
