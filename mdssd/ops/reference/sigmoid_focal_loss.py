"""Reference of sigmoid_focal_loss and its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mdssd.ops._checks import bad_label
from mdssd.ops._settings import SigmoidFocalLossSettings
from mdssd.ops._tensors import accumulation_dtype


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, settings: SigmoidFocalLossSettings
) -> tuple[Tensor, Tensor]:
    classes = logits.shape[2]
    if logits.device.type == "cpu" and ((labels < -1) | (labels > classes)).any():
        raise bad_label("sigmoid_focal_loss", labels, classes)
    x, own, weight = _entries(logits, labels, settings)
    z = torch.where(own, x, -x)  # the logit of what is true
    terms = weight * torch.sigmoid(-z).pow(settings.gamma) * -F.logsigmoid(z)
    sums = torch.where(labels[..., None] == -1, 0, terms).sum((1, 2))
    return mean_over_positives(sums, labels, settings.per_image, settings.normalise)


def mean_over_positives(
    sums: Tensor, labels: Tensor, per_image: bool, normalise: bool
) -> tuple[Tensor, Tensor]:
    """Divide the sums [B] of the images, or their sum; also return what they are divided by."""
    positives = (labels > 0).sum(1)
    if not per_image:
        sums, positives = sums.sum(), positives.sum()
    normaliser = positives.clamp(min=1) if normalise else torch.ones_like(positives)
    return sums / normaliser, normaliser


def sigmoid_focal_loss_backward(
    grad_loss: Tensor,
    logits: Tensor,
    labels: Tensor,
    normaliser: Tensor,
    settings: SigmoidFocalLossSettings,
) -> Tensor:
    x, own, weight = _entries(logits, labels, settings)
    z = torch.where(own, x, -x)
    right, wrong = torch.sigmoid(z), torch.sigmoid(-z)
    loss = (-F.logsigmoid(z)).clamp(max=torch.finfo(z.dtype).max)  # so that 0 times it is 0
    slope = wrong.pow(settings.gamma) * (settings.gamma * (right * loss) + wrong)
    scale = torch.where(own, -weight, weight) * (grad_loss / normaliser).reshape(-1, 1, 1)
    return torch.where(labels[..., None] == -1, 0, slope * scale).to(logits.dtype)


def _entries(
    logits: Tensor, labels: Tensor, settings: SigmoidFocalLossSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits, whether each is that of the prior's class, and its weight: [B, N, C].

    A label that is neither -1, nor 0, nor a class makes the weights NaN.
    """
    x = logits.to(accumulation_dtype(logits.dtype))
    classes = logits.shape[2]
    label = labels[..., None]
    own = label == torch.arange(1, classes + 1, device=labels.device)
    weight = torch.full_like(x, settings.negative_weight)
    weight = weight.masked_fill(own, settings.positive_weight)
    return x, own, weight.masked_fill((label < -1) | (label > classes), math.nan)
