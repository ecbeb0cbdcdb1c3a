"""SSD's training loss: softmax with hard negative mining, and smooth L1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mdssd.ops._dispatch import (
    accumulation_dtype,
    aligned,
    check_number,
    check_same_dtype,
    check_tensor,
    define,
    dtype_code,
    native,
    widened,
)


def multibox_loss(
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    neg_pos_ratio: float = 3.0,
    *,
    reduction: str = "batch",
) -> tuple[Tensor, Tensor]:
    """Localisation and confidence loss of a batch, each over its number of positive priors.

    Positives are the priors with a label above 0. Per image, the `neg_pos_ratio` x positives
    background priors of the largest -log softmax(logits)[0] join them (all, if there are fewer).
    Localisation: smooth L1 (beta 1) over the positives' four offsets. Confidence: cross-entropy
    over positives and mined negatives. Both are sums over max(1, positives of the batch), or see
    `reduction`.

    Args:
        loc: [B, N, 4] predicted offsets; float32, float16, bfloat16, float64.
        logits: [B, N, C], class 0 is background, C >= 2; same dtype.
        loc_targets: [B, N, 4] from `encode_targets`, any float dtype; read at the positives only.
        labels: [B, N] int64, 0 to C - 1.
        neg_pos_ratio: 0 or more.
        reduction: "batch": sums over max(1, positives of the batch). "image": the mean over the
            images of their sums over max(1, positives of the image), to which an image without
            positives adds 0.

    Returns:
        (localisation, confidence), scalars in float32 (float64 for float64 input). Without
        positives both are 0, and so are the gradients; an image without positives gives no
        negatives. Ties in mining: the lower prior; NaN counts as the largest loss, so that it
        shows. Differentiable in `loc` and `logits`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range; a
            label outside 0 to C - 1, on the CPU. On a GPU, where looking would stop it, such a
            label makes the confidence loss NaN, and the gradient of its prior's logits.

    Source: SSD, section 2.2, equations 1 to 3 and "hard negative mining".
    """
    op = "multibox_loss"
    check_tensor(op, "loc", loc, ("B", "N", 4))
    rows = (loc.shape[0], loc.shape[1])
    check_tensor(op, "logits", logits, (*rows, "C"), like=loc)
    check_same_dtype(op, "logits", logits, loc)
    check_tensor(op, "loc_targets", loc_targets, (*rows, 4), like=loc)
    check_tensor(op, "labels", labels, rows, dtypes=(torch.int64,), like=loc)
    if logits.shape[2] < 2:
        raise ValueError(f"{op}: logits: expected 2 classes or more, got {logits.shape[2]}")
    ratio = check_number(op, "neg_pos_ratio", neg_pos_ratio, 0.0, math.inf)
    if reduction not in ("batch", "image"):
        raise ValueError(f"{op}: reduction: expected 'batch' or 'image', got {reduction!r}")
    per_image = reduction == "image"
    loc_loss, conf_loss, _, _ = _multibox_loss(loc, logits, loc_targets, labels, ratio, per_image)
    if per_image:
        images = max(1, loc.shape[0])
        return loc_loss.sum() / images, conf_loss.sum() / images
    return loc_loss, conf_loss


def _bad_label(classes: int) -> ValueError:
    return ValueError(f"multibox_loss: labels: expected 0 to {classes - 1}, got another value")


def _groups(logits: Tensor, per_image: bool) -> tuple[int, ...]:
    """Shape of what is one number for the batch, or one for each image."""
    return (logits.shape[0],) if per_image else ()


def _group_rows(labels: Tensor, normaliser: Tensor) -> int:
    """Rows that have a normaliser in common."""
    return labels.shape[1] if normaliser.dim() else labels.numel()


def _empty(
    loc: Tensor, logits: Tensor, labels: Tensor, per_image: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results, not yet filled: losses, priors selected, normaliser."""
    dtype, groups = accumulation_dtype(loc.dtype), _groups(logits, per_image)
    return (
        loc.new_empty(groups, dtype=dtype),
        loc.new_empty(groups, dtype=dtype),
        loc.new_empty(labels.shape, dtype=torch.bool),
        loc.new_empty(groups, dtype=torch.int64),
    )


# --- reference ---------------------------------------------------------------------------------


def _multibox_loss_reference(
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    neg_pos_ratio: float,
    per_image: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if loc.device.type == "cpu" and ((labels < 0) | (labels >= logits.shape[2])).any():
        raise _bad_label(logits.shape[2])
    dtype = accumulation_dtype(loc.dtype)
    log_probs = logits.to(dtype).log_softmax(-1)
    positive = labels > 0
    # Positives sort last: they are not candidates.
    hardness = torch.where(positive, -math.inf, -log_probs[..., 0])
    rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    positives = positive.sum(1, keepdim=True)
    wanted = (neg_pos_ratio * positives.double()).floor()
    selected = positive | (rank < torch.minimum(wanted, (~positive).sum(1, keepdim=True)))

    cross_entropy = -log_probs.gather(-1, labels[..., None])[..., 0]
    smooth_l1 = F.smooth_l1_loss(loc.to(dtype), loc_targets.to(dtype), reduction="none").sum(-1)
    dims = (1,) if per_image else (0, 1)
    normaliser = positives.sum(dims).clamp(min=1)
    loc_loss = torch.where(positive, smooth_l1, 0).sum(dims) / normaliser
    conf_loss = torch.where(selected, cross_entropy, 0).sum(dims) / normaliser
    return loc_loss, conf_loss, selected, normaliser


def _multibox_loss_backward_reference(
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
    # [1, 1, 1], or of each image: [B, 1, 1].
    loc_scale = (grad_loc_loss / normaliser).reshape(-1, 1, 1)
    conf_scale = (grad_conf_loss / normaliser).reshape(-1, 1, 1)
    slope = (loc.to(dtype) - loc_targets.to(dtype)).clamp(-1, 1)
    grad_loc = torch.where((labels > 0)[..., None], slope * loc_scale, 0)
    error = logits.to(dtype).softmax(-1) - F.one_hot(labels, logits.shape[2])
    grad_logits = torch.where(selected[..., None], error * conf_scale, 0)
    return grad_loc.to(loc.dtype), grad_logits.to(logits.dtype)


# --- cpp ---------------------------------------------------------------------------------------


def _multibox_loss_cpp(
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    neg_pos_ratio: float,
    per_image: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(loc.dtype)
    loc, logits, labels = loc.contiguous(), logits.contiguous(), labels.contiguous()
    loc_targets = widened(loc_targets, dtype)
    groups = _groups(logits, per_image)
    losses = loc.new_empty(2, *groups, dtype=dtype)
    selected = torch.empty(labels.shape, dtype=torch.bool)
    normaliser = torch.empty(groups, dtype=torch.int64)
    labels_fit = native.multibox_loss_cpu(
        loc.data_ptr(),
        logits.data_ptr(),
        loc_targets.data_ptr(),
        labels.data_ptr(),
        logits.shape[0],
        logits.shape[1],
        logits.shape[2],
        neg_pos_ratio,
        per_image,
        losses.data_ptr(),
        selected.data_ptr(),
        normaliser.data_ptr(),
        dtype_code(loc),
        torch.get_num_threads(),
    )
    if not labels_fit:
        raise _bad_label(logits.shape[2])
    return losses[0].clone(), losses[1].clone(), selected, normaliser


def _multibox_loss_backward_cpp(
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
    loc, logits, labels = loc.contiguous(), logits.contiguous(), labels.contiguous()
    loc_targets = widened(loc_targets, dtype)
    loc_scale = widened(grad_loc_loss / normaliser, dtype)
    conf_scale = widened(grad_conf_loss / normaliser, dtype)
    grad_loc, grad_logits = torch.empty_like(loc), torch.empty_like(logits)
    native.multibox_loss_backward_cpu(
        loc_scale.data_ptr(),
        conf_scale.data_ptr(),
        loc.data_ptr(),
        logits.data_ptr(),
        loc_targets.data_ptr(),
        labels.data_ptr(),
        selected.data_ptr(),
        labels.numel(),
        _group_rows(labels, normaliser),
        logits.shape[2],
        grad_loc.data_ptr(),
        grad_logits.data_ptr(),
        dtype_code(loc),
        torch.get_num_threads(),
    )
    return grad_loc, grad_logits


# --- cuda --------------------------------------------------------------------------------------


def _multibox_loss_cuda(
    kernels: Any,
    stream: int,
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    neg_pos_ratio: float,
    per_image: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(loc.dtype)
    loc, logits, labels = aligned(loc), aligned(logits), labels.contiguous()
    loc_targets = aligned(loc_targets.to(dtype))
    loc_loss, conf_loss, selected, normaliser = _empty(loc, logits, labels, per_image)
    size = kernels.multibox_loss_workspace(*logits.shape, per_image, dtype_code(loc))
    workspace = loc.new_empty(size, dtype=torch.uint8)
    kernels.multibox_loss_cuda(
        loc.data_ptr(),
        logits.data_ptr(),
        loc_targets.data_ptr(),
        labels.data_ptr(),
        logits.shape[0],
        logits.shape[1],
        logits.shape[2],
        neg_pos_ratio,
        per_image,
        loc_loss.data_ptr(),
        conf_loss.data_ptr(),
        selected.data_ptr(),
        normaliser.data_ptr(),
        workspace.data_ptr(),
        dtype_code(loc),
        stream,
    )
    return loc_loss, conf_loss, selected, normaliser


def _multibox_loss_backward_cuda(
    kernels: Any,
    stream: int,
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
    loc, logits, labels = aligned(loc), aligned(logits), labels.contiguous()
    loc_targets = aligned(loc_targets.to(dtype))
    # Scalars stay on the device: reading one would wait for it.
    grad_loc_loss = grad_loc_loss.to(dtype).contiguous()
    grad_conf_loss = grad_conf_loss.to(dtype).contiguous()
    grad_loc, grad_logits = torch.empty_like(loc), torch.empty_like(logits)
    kernels.multibox_loss_backward_cuda(
        grad_loc_loss.data_ptr(),
        grad_conf_loss.data_ptr(),
        loc.data_ptr(),
        logits.data_ptr(),
        loc_targets.data_ptr(),
        labels.data_ptr(),
        selected.data_ptr(),
        normaliser.data_ptr(),
        labels.numel(),
        _group_rows(labels, normaliser),
        logits.shape[2],
        grad_loc.data_ptr(),
        grad_logits.data_ptr(),
        dtype_code(loc),
        stream,
    )
    return grad_loc, grad_logits


# --- definitions -------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], *output[2:])


_multibox_loss_backward = define(
    "multibox_loss_backward(Tensor grad_loc_loss, Tensor grad_conf_loss, Tensor loc, Tensor logits,"
    " Tensor loc_targets, Tensor labels, Tensor selected, Tensor normaliser) -> (Tensor, Tensor)",
    reference=_multibox_loss_backward_reference,
    cpp=_multibox_loss_backward_cpp,
    cuda=_multibox_loss_backward_cuda,
    triton="multibox_loss.multibox_loss_backward",
    fake=lambda grad_loc_loss, grad_conf_loss, loc, logits, *rest: (
        loc.new_empty(loc.shape),
        logits.new_empty(logits.shape),
    ),
)

_multibox_loss = define(
    "multibox_loss(Tensor loc, Tensor logits, Tensor loc_targets, Tensor labels,"
    " float neg_pos_ratio, bool per_image) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_multibox_loss_reference,
    cpp=_multibox_loss_cpp,
    cuda=_multibox_loss_cuda,
    triton="multibox_loss.multibox_loss",
    fake=lambda loc, logits, loc_targets, labels, neg_pos_ratio, per_image: _empty(
        loc, logits, labels, per_image
    ),
    setup_context=_save,
    backward=lambda ctx, grad_loc_loss, grad_conf_loss, *_: (
        *_multibox_loss_backward(grad_loc_loss, grad_conf_loss, *ctx.saved_tensors),
        None,
        None,
        None,
        None,
    ),
)
