"""SSD's training loss: softmax with hard negative mining, and smooth L1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import check_choice, check_number, check_same_dtype, check_tensor
from mdssd.ops._dispatch import define
from mdssd.ops._results import new_losses
from mdssd.ops._settings import MultiboxLossSettings
from mdssd.ops.native import multibox_loss as native
from mdssd.ops.reference import multibox_loss as reference


def multibox_loss(
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    neg_pos_ratio: float = 3.0,
    *,
    reduction: str = "batch",
) -> tuple[Tensor, Tensor]:
    """Compute the localisation and the confidence loss of a batch.

    Positives are the priors with a label above 0; priors with the label -1 are left out. In each
    image, the `neg_pos_ratio` x positives background priors with the largest
    -log softmax(logits)[0] are the mined negatives, or all background priors if there are fewer.
    The localisation loss is the smooth L1 (beta 1) of the positives' offsets; the confidence loss
    is the cross-entropy of positives and mined negatives. Both are divided by the number of
    positives, see `reduction`. Differentiable in `loc` and `logits`.

    Args:
        loc: [B, N, 4] predicted offsets; float32, float16, bfloat16 or float64. B and N may be 0.
        logits: [B, N, C], same dtype, C at least 2; class 0 is background.
        loc_targets: [B, N, 4] from `encode_targets`, any float dtype; read at the positives only.
        labels: [B, N] int64: -1 ignored, 0 background, 1 to C - 1 an object.
        neg_pos_ratio: mined negatives per positive, 0 or more.
        reduction: "batch" divides the sums by max(1, positives of the batch). "image" divides each
            image's sums by max(1, its positives) and averages over the images.

    Returns:
        (localisation, confidence), scalars in float32 (float64 for float64 input). Without
        positives both are 0, and so are the gradients; an image without positives has no negatives.
        Ties in mining: the lower prior; losses closer than 1e-6 (relative) may rank otherwise on
        another backend. NaN counts as the largest loss, so that it shows.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range. On the
            CPU this includes a label outside -1 to C - 1, and with `checks(True)` everywhere. On a
            GPU such a label otherwise makes the confidence loss, and the gradient of its logits,
            NaN. With `checks(True)` also: a NaN or inf in `loc`, or in `loc_targets` at a positive;
            a NaN or +inf in `logits`.

    Source: SSD, section 2.2, equations 1 to 3 and "hard negative mining".

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> loc, logits = torch.zeros(1, 2, 4), torch.zeros(1, 2, 2)
        >>> ops.multibox_loss(loc, logits, loc + 2.0, torch.tensor([[1, 0]]))
        (tensor(6.), tensor(1.3863))
    """
    op = "multibox_loss"
    _check_tensors(op, loc, logits, loc_targets, labels)
    check_choice(op, "reduction", reduction, ("batch", "image"))
    settings = MultiboxLossSettings(
        check_number(op, "neg_pos_ratio", neg_pos_ratio, 0.0, math.inf),
        per_image=reduction == "image",
    )
    loc_loss, conf_loss, _, _ = _multibox_loss(loc, logits, loc_targets, labels, settings)
    if settings.per_image:
        images = max(1, loc.shape[0])
        return loc_loss.sum() / images, conf_loss.sum() / images
    return loc_loss, conf_loss


def _check_tensors(
    op: str, loc: Tensor, logits: Tensor, loc_targets: Tensor, labels: Tensor
) -> None:
    check_tensor(op, "loc", loc, ("B", "N", 4))
    rows = (loc.shape[0], loc.shape[1])
    check_tensor(op, "logits", logits, (*rows, "C"), like=loc)
    check_same_dtype(op, "logits", logits, loc)
    check_tensor(op, "loc_targets", loc_targets, (*rows, 4), like=loc)
    check_tensor(op, "labels", labels, rows, dtypes=(torch.int64,), like=loc)
    if logits.shape[2] < 2:
        raise ValueError(f"{op}: logits: expected 2 classes or more, got {logits.shape[2]}")


# --- definitions ---------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _ = inputs
    ctx.save_for_backward(*tensors, *output[2:])


_multibox_loss_backward = define(
    "multibox_loss_backward(Tensor grad_loc_loss, Tensor grad_conf_loss, Tensor loc, Tensor logits,"
    " Tensor loc_targets, Tensor labels, Tensor selected, Tensor normaliser) -> (Tensor, Tensor)",
    reference=reference.multibox_loss_backward,
    cpp=native.multibox_loss_backward_cpp,
    cuda=native.multibox_loss_backward_cuda,
    triton="multibox_loss",
    fake=lambda grad_loc_loss, grad_conf_loss, loc, logits, *rest: (
        loc.new_empty(loc.shape),
        logits.new_empty(logits.shape),
    ),
)

_multibox_loss = define(
    "multibox_loss(Tensor loc, Tensor logits, Tensor loc_targets, Tensor labels, {settings})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    settings=MultiboxLossSettings,
    reference=reference.multibox_loss,
    cpp=native.multibox_loss_cpp,
    cuda=native.multibox_loss_cuda,
    triton="multibox_loss",
    values=_values.multibox_loss,
    fake=lambda loc, logits, loc_targets, labels, settings: new_losses(
        loc, labels, settings.per_image
    ),
    setup_context=_save,
    backward=lambda ctx, grad_loc_loss, grad_conf_loss, *_: _multibox_loss_backward(
        grad_loc_loss, grad_conf_loss, *ctx.saved_tensors
    ),
)
