"""The classification loss of one-stage detectors without a background column."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import check_choice, check_number, check_tensor
from mdssd.ops._dispatch import define
from mdssd.ops._results import new_mean_loss
from mdssd.ops._settings import REDUCTIONS, SigmoidFocalLossSettings
from mdssd.ops.native import sigmoid_focal_loss as native
from mdssd.ops.reference import sigmoid_focal_loss as reference

_MOST_GAMMA = 1e6


def sigmoid_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "batch",
) -> Tensor:
    """Compute the sigmoid focal loss of a batch, as RetinaNet does.

    Every class is a decision of its own, and there is no column for the background: the prior's own
    class is to be 1, all others 0. With p the probability that the sigmoid gives to what is true,
    an entry's loss is -(1 - p)^gamma log(p), times `alpha` for the prior's own class and
    1 - `alpha` for the others. Differentiable in `logits`; nothing else of their size is stored.

    Args:
        logits: [B, N, C], C at least 1; float32, float16, bfloat16 or float64. B and N may be 0.
        labels: [B, N] int64, from `encode_targets`: -1 ignored, 0 background, c = 1 to C an object
            of the class of column c - 1.
        alpha: 0 to 1, or None to weight all entries by 1.
        gamma: 0 to 1e6; with 0 it is the binary cross-entropy.
        reduction: "batch" divides the sum of all entries by max(1, positives of the batch), where
            positives are the priors with a label above 0. "image" divides each image's sum by
            max(1, its positives) and averages over the images. "sum" does not divide.

    Returns:
        A scalar in float32 (float64 for float64 input). The loss of an infinite logit is 0 if it
        has the right sign, else infinity; its gradient is finite. A NaN shows in the loss.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range. On the
            CPU this includes a label outside -1 to C, and with `checks(True)` everywhere. On a GPU
            such a label otherwise makes the loss, and the gradient of its logits, NaN. With
            `checks(True)` also: a NaN in `logits`.

    Source: Lin et al., Focal Loss for Dense Object Detection (2017), equation 5 and section 4.1.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> logits = torch.tensor([[[0.0, 0.0], [2.0, -2.0], [9.0, 9.0]]])
        >>> ops.sigmoid_focal_loss(logits, torch.tensor([[0, 1, -1]]))
        tensor(0.2617)
    """
    op = "sigmoid_focal_loss"
    check_tensor(op, "logits", logits, ("B", "N", "C"))
    rows = (logits.shape[0], logits.shape[1])
    check_tensor(op, "labels", labels, rows, dtypes=(torch.int64,), like=logits)
    if logits.shape[2] < 1:
        raise ValueError(f"{op}: logits: expected 1 class or more, got 0")
    check_choice(op, "reduction", reduction, REDUCTIONS)
    own = 1.0 if alpha is None else check_number(op, "alpha", alpha, 0.0, 1.0)
    settings = SigmoidFocalLossSettings(
        own,
        1.0 if alpha is None else 1.0 - own,
        check_number(op, "gamma", gamma, 0.0, _MOST_GAMMA),
        per_image=reduction == "image",
        normalise=reduction != "sum",
    )
    loss, _ = _sigmoid_focal_loss(logits, labels, settings)
    return loss.sum() / max(1, logits.shape[0]) if settings.per_image else loss


# --- definitions ---------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.settings = inputs
    ctx.save_for_backward(*tensors, output[1])


_sigmoid_focal_loss_backward = define(
    "sigmoid_focal_loss_backward(Tensor grad_loss, Tensor logits, Tensor labels,"
    " Tensor normaliser, {settings}) -> Tensor",
    settings=SigmoidFocalLossSettings,
    reference=reference.sigmoid_focal_loss_backward,
    cpp=native.sigmoid_focal_loss_backward_cpp,
    cuda=native.sigmoid_focal_loss_backward_cuda,
    triton="sigmoid_focal_loss",
    fake=lambda grad_loss, logits, *rest: logits.new_empty(logits.shape),
)

_sigmoid_focal_loss = define(
    "sigmoid_focal_loss(Tensor logits, Tensor labels, {settings}) -> (Tensor, Tensor)",
    settings=SigmoidFocalLossSettings,
    reference=reference.sigmoid_focal_loss,
    cpp=native.sigmoid_focal_loss_cpp,
    cuda=native.sigmoid_focal_loss_cuda,
    triton="sigmoid_focal_loss",
    values=_values.sigmoid_focal_loss,
    fake=lambda logits, labels, settings: new_mean_loss(logits, labels, settings.per_image),
    setup_context=_save,
    backward=lambda ctx, grad_loss, _: _sigmoid_focal_loss_backward(
        grad_loss, *ctx.saved_tensors, ctx.settings
    ),
)
