"""Losses of the boxes that offsets encode: GIoU, DIoU, CIoU and Wasserstein's distance."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import check_choice, check_number, check_tensor, check_variances
from mdssd.ops._dispatch import define
from mdssd.ops._results import new_mean_loss
from mdssd.ops._settings import KINDS, REDUCTIONS, VARIANCES, BoxLossSettings
from mdssd.ops.native import box_loss as native
from mdssd.ops.reference import box_loss as reference


def box_loss(
    loc: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    priors_cxcywh: Tensor,
    *,
    kind: str = "giou",
    variances: tuple[float, float] = VARIANCES,
    nwd_constant: float | None = None,
    eps: float = 1e-12,
    reduction: str = "batch",
) -> Tensor:
    """Compare the boxes that predicted and target offsets encode, at the positives of a batch.

    Both are decoded and compared in one step; boxes are never stored. The loss of a prior with a
    label above 0 is, with A the predicted and B the target box:

    - "giou": 1 - IoU + (the part of the smallest box around A and B that neither covers)
    - "diou": 1 - IoU + (distance of the centres / diagonal of the smallest box around both)^2
    - "ciou": that of "diou" + a v, where v = 4 / pi^2 (difference of the angles
      atan(width / height))^2 and a = v / (1 - IoU + v), a constant for the gradient
    - "nwd": 1 - exp(-d / `nwd_constant`), with d^2 = (difference of the centres)^2 + (difference of
      the sizes / 2)^2. It also has a slope where small boxes do not overlap.

    Differentiable in `loc`. The difference of coordinates that are equal counts half, so that the
    gradient of equal boxes is 0.

    Args:
        loc: [B, N, 4] predicted offsets; float32, float16, bfloat16 or float64. B and N may be 0.
        loc_targets: [B, N, 4] from `encode_targets`, any float dtype; read at the positives only.
        labels: [B, N] int64, from `encode_targets`; priors with a label of 0 or less do not count.
        priors_cxcywh: [N, 4] centre and size; any float dtype, same device.
        kind: "giou", "diou", "ciou" or "nwd".
        variances: v0 of the centre and v1 of the size, above 0, as in `encode_targets`.
        nwd_constant: above 0, in the unit of the priors; required by "nwd", of no use otherwise.
            The paper takes the mean size of the data set's objects (12.7 pixels in AI-TOD).
        eps: 0 to 1, in the unit of the priors squared; added to the area of the union, to that of
            the box around both, to its squared diagonal and, in "ciou", to what v is divided by. It
            defines the losses of boxes without area. Pass 1e-7 for what torchvision does.
        reduction: "batch" divides the sum by max(1, positives of the batch). "image" divides each
            image's sum by max(1, its positives) and averages over the images. "sum" divides by 1.

    Returns:
        A scalar in float32 (float64 for float64 input); 0 without positives. A positive whose boxes
        are not finite makes it NaN, and so the gradient of its offsets.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range. With
            `checks(True)` also: a NaN or inf in `loc`, or in `loc_targets` at a positive; a prior
            with a NaN, inf or a size that is not above 0.

    Source: Rezatofighi et al., Generalized Intersection over Union (2019), algorithm 1; Zheng et
        al., Distance-IoU Loss (2020), equations 7 to 11; Wang et al., A Normalized Gaussian
        Wasserstein Distance for Tiny Object Detection (2021), equations 8 to 10.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> priors = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
        >>> loc, targets = torch.tensor([[[5.0, 0.0, 0.0, 0.0]]]), torch.zeros(1, 1, 4)
        >>> ops.box_loss(loc, targets, torch.tensor([[1]]), priors)  # half of the box beside it
        tensor(0.6667)
    """
    op = "box_loss"
    check_tensor(op, "loc", loc, ("B", "N", 4))
    check_tensor(op, "loc_targets", loc_targets, loc.shape, like=loc)
    check_tensor(op, "labels", labels, (*loc.shape[:2],), dtypes=(torch.int64,), like=loc)
    check_tensor(op, "priors_cxcywh", priors_cxcywh, (loc.shape[1], 4), like=loc)
    check_choice(op, "kind", kind, KINDS)
    check_choice(op, "reduction", reduction, REDUCTIONS)
    settings = BoxLossSettings(
        KINDS.index(kind),
        *check_variances(op, variances),
        _check_constant(op, kind, nwd_constant),
        check_number(op, "eps", eps, 0.0, 1.0),
        per_image=reduction == "image",
        normalise=reduction != "sum",
    )
    loss, _ = _box_loss(loc, loc_targets, labels, priors_cxcywh, settings)
    return loss.sum() / max(1, loc.shape[0]) if settings.per_image else loss


def _check_constant(op: str, kind: str, value: object) -> float:
    """Check the number that "nwd" divides by; return it, or 1 if there is none."""
    if value is None and kind != "nwd":
        return 1.0
    if value is None:
        raise ValueError(f'{op}: nwd_constant: expected a number with kind "nwd", got None')
    return check_number(op, "nwd_constant", value, math.ulp(0.0), sys.float_info.max)


# --- definitions ---------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.settings = inputs
    ctx.save_for_backward(*tensors, output[1])


_box_loss_backward = define(
    "box_loss_backward(Tensor grad_loss, Tensor loc, Tensor loc_targets, Tensor labels,"
    " Tensor priors_cxcywh, Tensor normaliser, {settings}) -> Tensor",
    settings=BoxLossSettings,
    reference=reference.box_loss_backward,
    cpp=native.box_loss_backward_cpp,
    cuda=native.box_loss_backward_cuda,
    triton="box_loss",
    fake=lambda grad_loss, loc, *rest: loc.new_empty(loc.shape),
)

_box_loss = define(
    "box_loss(Tensor loc, Tensor loc_targets, Tensor labels, Tensor priors_cxcywh, {settings})"
    " -> (Tensor, Tensor)",
    settings=BoxLossSettings,
    reference=reference.box_loss,
    cpp=native.box_loss_cpp,
    cuda=native.box_loss_cuda,
    triton="box_loss",
    values=_values.box_loss,
    fake=lambda loc, loc_targets, labels, priors, settings: new_mean_loss(
        loc, labels, settings.per_image
    ),
    setup_context=_save,
    backward=lambda ctx, grad_loss, _: _box_loss_backward(
        grad_loss, *ctx.saved_tensors, ctx.settings
    ),
)
