"""Matching of priors to ground truth, and the training targets that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdssd.ops._dispatch import (
    accumulation_dtype,
    aligned,
    check_eps,
    check_number,
    check_same_dtype,
    check_tensor,
    check_variances,
    define,
    dtype_code,
    native,
)
from mdssd.ops.boxes import VARIANCES, encode, pairwise_iou


class Match(NamedTuple):
    """Result of `match_priors` for B images and N priors."""

    index: Tensor  # type: ignore[assignment]  # [B, N] int64, ground truth in its image or -1
    iou: Tensor  # [B, N] float32, best IoU of each prior


class Targets(NamedTuple):
    """Result of `encode_targets` for B images and N priors."""

    loc: Tensor  # [B, N, 4], 0 where the prior is background
    labels: Tensor  # [B, N] int64, 0 is background


def match_priors(
    gt_xyxy: Sequence[Tensor],
    priors_cxcywh: Tensor,
    iou_threshold: float = 0.5,
    *,
    iou_eps: float = 0.0,
    priors_form: str = "cxcywh",
) -> Match:
    """Match every prior of a batch of images to a ground-truth box or to background.

    1. A prior takes the ground truth of its highest IoU, if that is at least `iou_threshold`.
       Ties: the lower ground-truth index.
    2. Then each ground truth takes the prior of its highest IoU, whatever that IoU, so that none
       stays without a prior. Ties: the lower prior index. A prior that is the best of two
       ground truths goes to the later one.

    Args:
        gt_xyxy: B tensors [M_i, 4] of corners in the priors' unit (0-1), M_i from 0; float32,
            float16, bfloat16 or float64, all alike and on one device.
        priors_cxcywh: [N, 4] centre and size; any float dtype, same device. N may be 0.
        iou_threshold: 0 to 1, compared in the dtype of the computation. For "IoU above t"
            instead of "at least t" pass `just_above(t)`.
        iou_eps: added to the union's area in every IoU, 0 or more, in the priors' unit squared.
            Some SSD ports have 1e-5, by which an IoU of exactly 0.5 falls below 0.5.
        priors_form: "cxcywh", or "xyxy" where `priors_cxcywh` holds corners: of priors that are at
            hand as corners only, since corners -> centres -> corners may change the last bit.

    Returns:
        Match. index [B, N] int64: position in the image's own list, -1 for background, all -1 in
        an image without boxes. iou [B, N] float32: the best IoU of each prior, before step 2. A box
        that is degenerate or holds a NaN has IoU 0 with every prior, and so takes prior 0.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.

    Source: SSD, section 2.2, in the form of its PyTorch ports (Caffe assigns one by one).
    Memory is O(N + sum of M_i): the N x M_i matrix is never built, but by "reference". On a GPU
    float64 runs as "reference", the other dtypes in two kernels per 512 images.
    """
    op = "match_priors"
    iou_threshold = check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0)
    iou_eps = check_eps(op, iou_eps)
    if priors_form not in ("cxcywh", "xyxy"):
        raise ValueError(f"{op}: priors_form: expected 'cxcywh' or 'xyxy', got {priors_form!r}")
    gt, offsets = _flatten(op, gt_xyxy, priors_cxcywh)
    corners = priors_form == "xyxy"
    return Match(*_match_priors(gt, offsets, priors_cxcywh, iou_threshold, iou_eps, corners))


def encode_targets(
    gt_xyxy: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    priors_cxcywh: Tensor,
    iou_threshold: float = 0.5,
    variances: tuple[float, float] = VARIANCES,
    *,
    iou_eps: float = 0.0,
) -> Targets:
    """Training targets of a batch of images: `match_priors`, then `encode_boxes` of the matches.

    Args:
        gt_xyxy: B tensors [M_i, 4] of corners in the priors' unit (0-1), M_i from 0; float32,
            float16, bfloat16 or float64, all alike and on one device.
        gt_labels: B int64 tensors [M_i], 1-based (0 is background).
        priors_cxcywh: [N, 4] centre and size, above 0; any float dtype, same device.
        iou_threshold: 0 to 1.
        variances: of centre and size, as in `encode_boxes`.
        iou_eps: as in `match_priors`.

    Returns:
        Targets. loc [B, N, 4] in the dtype of the boxes (float32 if there is no image), 0 where the
        prior is background; labels [B, N] int64, 0 for background. Ties and the empty image as in
        `match_priors`. A degenerate box encodes as in `encode_boxes`: drop such boxes first.
        On a GPU float64 runs as "reference".

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.

    Source: SSD, section 2.2.
    """
    op = "encode_targets"
    iou_threshold = check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0)
    v0, v1 = check_variances(op, variances)
    iou_eps = check_eps(op, iou_eps)
    gt, offsets = _flatten(op, gt_xyxy, priors_cxcywh)
    if not isinstance(gt_labels, list | tuple):
        raise TypeError(f"{op}: gt_labels: expected a list of Tensors, got {type(gt_labels)}")
    if len(gt_labels) != len(gt_xyxy):
        raise ValueError(
            f"{op}: gt_labels: expected {len(gt_xyxy)} tensors, one per image of gt_xyxy, "
            f"got {len(gt_labels)}"
        )
    for i, (labels, boxes) in enumerate(zip(gt_labels, gt_xyxy, strict=True)):
        name = f"gt_labels[{i}]"
        check_tensor(op, name, labels, (boxes.shape[0],), dtypes=(torch.int64,), like=gt)
    labels = torch.cat(list(gt_labels)) if gt_labels else gt.new_empty(0, dtype=torch.int64)
    settings = (iou_threshold, v0, v1, iou_eps)
    return Targets(*_encode_targets(gt, labels, offsets, priors_cxcywh, *settings))


def _flatten(op: str, gt_xyxy: Sequence[Tensor], priors_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """Check the ragged batch; return all boxes [sum of M_i, 4] and offsets [B + 1] int64.

    The offsets stay on the CPU, wherever the boxes are: no backend needs them on the device, and a
    copy would have to be waited for.
    """
    check_tensor(op, "priors_cxcywh", priors_cxcywh, ("N", 4))
    if not isinstance(gt_xyxy, list | tuple):
        raise TypeError(
            f"{op}: gt_xyxy: expected a list of Tensors, one per image; got {type(gt_xyxy)}"
        )
    for i, boxes in enumerate(gt_xyxy):
        check_tensor(op, f"gt_xyxy[{i}]", boxes, ("M", 4), like=priors_cxcywh)
        check_same_dtype(op, f"gt_xyxy[{i}]", boxes, gt_xyxy[0])
    counts = [boxes.shape[0] for boxes in gt_xyxy]
    offsets = torch.tensor([0, *accumulate(counts)], dtype=torch.int64, device="cpu")
    gt = torch.cat(list(gt_xyxy)) if gt_xyxy else priors_cxcywh.new_empty(0, 4)
    return gt, offsets


# --- reference ---------------------------------------------------------------------------------


def to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """[..., 4] centre and size -> corners."""
    half = boxes_cxcywh[..., 2:] * 0.5
    return torch.cat([boxes_cxcywh[..., :2] - half, boxes_cxcywh[..., :2] + half], -1)


def _match_priors_reference(
    gt: Tensor,
    offsets: Tensor,
    priors: Tensor,
    iou_threshold: float,
    iou_eps: float,
    corners: bool,
) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(gt.dtype)
    priors_xyxy = priors.to(dtype) if corners else to_xyxy(priors.to(dtype))
    bounds = offsets.tolist()
    size = (len(bounds) - 1, len(priors))
    index = torch.full(size, -1, dtype=torch.int64, device=gt.device)
    best_iou = torch.zeros(size, dtype=torch.float32, device=gt.device)
    for image, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if start == end or len(priors) == 0:
            continue
        iou = pairwise_iou(gt[start:end, None].to(dtype), priors_xyxy[None], iou_eps)  # [M, N]
        # argmax returns any of the equal maxima; the first is wanted.
        best = iou.amax(0)
        best_gt = (iou == best).to(torch.uint8).argmax(0)
        index[image] = torch.where(best >= iou_threshold, best_gt, -1)
        best_iou[image] = best
        best_prior = (iou == iou.amax(1, keepdim=True)).to(torch.uint8).argmax(1)
        for k, prior in enumerate(best_prior.tolist()):
            index[image, prior] = k
    return index, best_iou


def _encode_targets_reference(
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    iou_threshold: float,
    v0: float,
    v1: float,
    iou_eps: float,
) -> tuple[Tensor, Tensor]:
    index, _ = _match_priors_reference(gt, offsets, priors, iou_threshold, iou_eps, False)
    dtype = accumulation_dtype(gt.dtype)
    loc = gt.new_zeros(*index.shape, 4)
    labels = torch.zeros_like(index)
    for image, start in enumerate(offsets[:-1].tolist()):
        positive = index[image] >= 0
        matched = start + index[image, positive]
        targets = encode(gt[matched].to(dtype), priors[positive].to(dtype), v0, v1)
        loc[image, positive] = targets.to(gt.dtype)
        labels[image, positive] = gt_labels[matched]
    return loc, labels


# --- cpp ---------------------------------------------------------------------------------------


def _match_priors_cpp(
    gt: Tensor,
    offsets: Tensor,
    priors: Tensor,
    iou_threshold: float,
    iou_eps: float,
    corners: bool,
) -> tuple[Tensor, Tensor]:
    images, count = offsets.shape[0] - 1, priors.shape[0]
    gt = gt.to(accumulation_dtype(gt.dtype)).contiguous()
    priors = priors.to(gt.dtype).contiguous()
    index = torch.empty(images, count, dtype=torch.int64)
    iou = torch.empty(images, count)
    native.match_priors_cpu(
        gt.data_ptr(),
        offsets.data_ptr(),
        images,
        priors.data_ptr(),
        corners,
        count,
        iou_threshold,
        iou_eps,
        index.data_ptr(),
        iou.data_ptr(),
        dtype_code(gt),
        torch.get_num_threads(),
    )
    return index, iou


def _encode_targets_cpp(
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    iou_threshold: float,
    v0: float,
    v1: float,
    iou_eps: float,
) -> tuple[Tensor, Tensor]:
    images, count = offsets.shape[0] - 1, priors.shape[0]
    dtype = gt.dtype
    gt = gt.to(accumulation_dtype(dtype)).contiguous()
    gt_labels = gt_labels.contiguous()
    priors = priors.to(gt.dtype).contiguous()
    loc = gt.new_empty(images, count, 4)
    labels = torch.empty(images, count, dtype=torch.int64)
    native.encode_targets_cpu(
        gt.data_ptr(),
        gt_labels.data_ptr(),
        offsets.data_ptr(),
        images,
        priors.data_ptr(),
        count,
        iou_threshold,
        iou_eps,
        v0,
        v1,
        loc.data_ptr(),
        labels.data_ptr(),
        dtype_code(gt),
        torch.get_num_threads(),
    )
    return loc.to(dtype), labels


# --- cuda --------------------------------------------------------------------------------------


def _match_priors_cuda(
    kernels: Any,
    stream: int,
    gt: Tensor,
    offsets: Tensor,
    priors: Tensor,
    iou_threshold: float,
    iou_eps: float,
    corners: bool,
) -> tuple[Tensor, Tensor]:
    if gt.dtype == torch.float64:
        return _match_priors_reference(gt, offsets, priors, iou_threshold, iou_eps, corners)
    images, count = offsets.shape[0] - 1, priors.shape[0]
    gt, priors = aligned(gt), aligned(priors.float())
    workspace = gt.new_empty(kernels.match_priors_workspace(gt.shape[0]), dtype=torch.uint8)
    index = gt.new_empty(images, count, dtype=torch.int64)
    iou = gt.new_empty(images, count, dtype=torch.float32)
    kernels.match_priors_cuda(
        gt.data_ptr(),
        offsets.data_ptr(),
        images,
        priors.data_ptr(),
        corners,
        count,
        iou_threshold,
        iou_eps,
        workspace.data_ptr(),
        index.data_ptr(),
        iou.data_ptr(),
        dtype_code(gt),
        stream,
    )
    return index, iou


def _encode_targets_cuda(
    kernels: Any,
    stream: int,
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    iou_threshold: float,
    v0: float,
    v1: float,
    iou_eps: float,
) -> tuple[Tensor, Tensor]:
    if gt.dtype == torch.float64:
        settings = (iou_threshold, v0, v1, iou_eps)
        return _encode_targets_reference(gt, gt_labels, offsets, priors, *settings)
    images, count = offsets.shape[0] - 1, priors.shape[0]
    gt, gt_labels, priors = aligned(gt), gt_labels.contiguous(), aligned(priors.float())
    workspace = gt.new_empty(kernels.match_priors_workspace(gt.shape[0]), dtype=torch.uint8)
    loc = gt.new_empty(images, count, 4)
    labels = gt.new_empty(images, count, dtype=torch.int64)
    kernels.encode_targets_cuda(
        gt.data_ptr(),
        gt_labels.data_ptr(),
        offsets.data_ptr(),
        images,
        priors.data_ptr(),
        count,
        iou_threshold,
        iou_eps,
        v0,
        v1,
        workspace.data_ptr(),
        loc.data_ptr(),
        labels.data_ptr(),
        dtype_code(gt),
        stream,
    )
    return loc, labels


# --- definitions -------------------------------------------------------------------------------

_match_priors = define(
    "match_priors(Tensor gt_xyxy, Tensor offsets, Tensor priors_cxcywh, float iou_threshold,"
    " float iou_eps, bool corners) -> (Tensor, Tensor)",
    reference=_match_priors_reference,
    cpp=_match_priors_cpp,
    cuda=_match_priors_cuda,
    triton="matching.match_priors",
    fake=lambda gt, offsets, priors, *settings: (
        gt.new_empty(offsets.shape[0] - 1, priors.shape[0], dtype=torch.int64),
        gt.new_empty(offsets.shape[0] - 1, priors.shape[0], dtype=torch.float32),
    ),
)

_encode_targets = define(
    "encode_targets(Tensor gt_xyxy, Tensor gt_labels, Tensor offsets, Tensor priors_cxcywh,"
    " float iou_threshold, float v0, float v1, float iou_eps) -> (Tensor, Tensor)",
    reference=_encode_targets_reference,
    cpp=_encode_targets_cpp,
    cuda=_encode_targets_cuda,
    triton="matching.encode_targets",
    fake=lambda gt, gt_labels, offsets, priors, *settings: (
        gt.new_empty(offsets.shape[0] - 1, priors.shape[0], 4),
        gt.new_empty(offsets.shape[0] - 1, priors.shape[0], dtype=torch.int64),
    ),
)
