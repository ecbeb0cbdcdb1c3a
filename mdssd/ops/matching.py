"""Matching of priors to ground truth, and the training targets that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import (
    check_choice,
    check_eps,
    check_number,
    check_same_dtype,
    check_tensor,
    check_variances,
)
from mdssd.ops._dispatch import define
from mdssd.ops._results import new_matches, new_targets
from mdssd.ops._settings import VARIANCES, EncodeTargetsSettings, MatchPriorsSettings
from mdssd.ops.native import matching as native
from mdssd.ops.reference import matching as reference


class Match(NamedTuple):
    """Result of `match_priors` for B images and N priors.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> ops.match_priors([torch.rand(0, 4)], torch.rand(2, 4)).index
        tensor([[-1, -1]])
    """

    index: Tensor  # type: ignore[assignment]  # [B, N] int64, ground truth in its image or -1
    iou: Tensor  # [B, N] float32, highest IoU of each prior


class Targets(NamedTuple):
    """Result of `encode_targets` for B images and N priors.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> box, prior = torch.tensor([[0.4, 0.4, 0.6, 0.6]]), torch.tensor([[0.5, 0.5, 0.2, 0.2]])
        >>> ops.encode_targets([box], [torch.tensor([7])], prior).labels
        tensor([[7]])
    """

    loc: Tensor  # [B, N, 4], 0 if the prior is background
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

    1. A prior takes the ground truth with which it has its highest IoU, if that is at least
       `iou_threshold`. Ties: the lower index of the ground truth.
    2. Then each ground truth takes the prior with which it has its highest IoU, however low, so
       that none stays without a prior. Ties: the lower prior; a prior that is the best of two
       ground truths goes to the later one.

    Memory is O(N + sum of M_i): only "reference" builds the N x M_i matrix. On a GPU, float64 runs
    as "reference" and the other dtypes in two kernels per 512 images.

    Args:
        gt_xyxy: B tensors [M_i, 4] of corners in the priors' unit (0-1), M_i from 0; float32,
            float16, bfloat16 or float64, all of one dtype and on one device.
        priors_cxcywh: [N, 4] centre and size; any float dtype, same device. N may be 0.
        iou_threshold: 0 to 1, compared in the dtype of the computation. Pass `just_above(t)` for
            "above t" instead of "at least t".
        iou_eps: added to the area of the union in every IoU; 0 to 1, in the priors' unit squared.
            Some SSD ports add 1e-5, so that an IoU of exactly 0.5 falls below 0.5.
        priors_form: "cxcywh", or "xyxy" if `priors_cxcywh` holds corners. Converting corners to
            centres and back may change their last bit.

    Returns:
        Match with `index` [B, N] int64, the position in the image's own list or -1 for background,
        and `iou` [B, N] float32, the highest IoU of each prior before step 2. A box that is
        degenerate or holds a NaN has IoU 0 with every prior and therefore takes prior 0.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
            With `checks(True)` also: a box with a NaN, inf, x2 < x1 or y2 < y1; a prior with a NaN,
            inf or a size that is not above 0; boxes and priors of which one is in pixels.

    Warns:
        UserWarning: on the CPU, boxes or priors are in pixels and the other ones in 0-1.

    Source: SSD, section 2.2, in the form of its PyTorch ports (Caffe assigns one by one).

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> priors = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])
        >>> ops.match_priors([torch.tensor([[0.5, 0.5, 0.9, 1.0]])], priors).index
        tensor([[-1,  0]])
    """
    op = "match_priors"
    check_choice(op, "priors_form", priors_form, ("cxcywh", "xyxy"))
    settings = MatchPriorsSettings(
        check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0),
        check_eps(op, iou_eps),
        corners=priors_form == "xyxy",
    )
    gt, offsets = _flatten(op, gt_xyxy, priors_cxcywh)
    return Match(*_match_priors(gt, offsets, priors_cxcywh, settings))


def encode_targets(
    gt_xyxy: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    priors_cxcywh: Tensor,
    iou_threshold: float = 0.5,
    variances: tuple[float, float] = VARIANCES,
    *,
    iou_eps: float = 0.0,
) -> Targets:
    """Compute the training targets of a batch: `match_priors`, then `encode_boxes` of the matches.

    A degenerate box has the offsets that `encode_boxes` describes; drop such boxes first. On a GPU,
    float64 runs as "reference".

    Args:
        gt_xyxy: B tensors [M_i, 4] of corners in the priors' unit (0-1), M_i from 0; float32,
            float16, bfloat16 or float64, all of one dtype and on one device.
        gt_labels: B int64 tensors [M_i], from 1 on; 0 is background.
        priors_cxcywh: [N, 4] centre and size, sizes above 0; any float dtype, same device.
        iou_threshold: 0 to 1, as in `match_priors`.
        variances: of the centre and the size, as in `encode_boxes`.
        iou_eps: as in `match_priors`.

    Returns:
        Targets with `loc` [B, N, 4] in the dtype of the boxes (that of the priors if there is no
        image), 0 for background, and `labels` [B, N] int64, 0 for background. Ties and images
        without boxes as in `match_priors`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range. On the
            CPU this includes a label below 1, and with `checks(True)` everywhere. Then also: a box
            with a NaN, inf or a side that is not above 0; a prior with a NaN, inf or a size that is
            not above 0; boxes and priors of which one is in pixels.

    Warns:
        UserWarning: as `match_priors`.

    Source: SSD, section 2.2.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> priors = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])
        >>> box = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
        >>> ops.encode_targets([box], [torch.tensor([3])], priors).labels
        tensor([[0, 3]])
    """
    op = "encode_targets"
    settings = EncodeTargetsSettings(
        check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0),
        *check_variances(op, variances),
        check_eps(op, iou_eps),
    )
    gt, offsets = _flatten(op, gt_xyxy, priors_cxcywh)
    labels = _flatten_labels(op, gt_labels, gt_xyxy, gt)
    return Targets(*_encode_targets(gt, labels, offsets, priors_cxcywh, settings))


def _flatten(op: str, gt_xyxy: Sequence[Tensor], priors_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """Check the ragged batch; return all boxes [sum of M_i, 4] and the offsets [B + 1] int64.

    The offsets stay on the CPU, wherever the boxes are: no backend needs them on the device, and
    copying them there would make the call wait for it.
    """
    check_tensor(op, "priors_cxcywh", priors_cxcywh, ("N", 4))
    if not isinstance(gt_xyxy, list | tuple):
        raise TypeError(
            f"{op}: gt_xyxy: expected a list of Tensors, one per image; got {type(gt_xyxy)}"
        )
    for i, boxes in enumerate(gt_xyxy):
        check_tensor(op, f"gt_xyxy[{i}]", boxes, ("M", 4), like=priors_cxcywh)
        check_same_dtype(op, f"gt_xyxy[{i}]", boxes, gt_xyxy[0])
    ends = accumulate(boxes.shape[0] for boxes in gt_xyxy)
    offsets = torch.tensor([0, *ends], dtype=torch.int64, device="cpu")
    gt = torch.cat(list(gt_xyxy)) if gt_xyxy else priors_cxcywh.new_empty(0, 4)
    return gt, offsets


def _flatten_labels(
    op: str, gt_labels: Sequence[Tensor], gt_xyxy: Sequence[Tensor], gt: Tensor
) -> Tensor:
    """Check the labels against the boxes; return all labels [sum of M_i]."""
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
    return torch.cat(list(gt_labels)) if gt_labels else gt.new_empty(0, dtype=torch.int64)


# --- definitions ---------------------------------------------------------------------------------

_match_priors = define(
    "match_priors(Tensor gt_xyxy, Tensor offsets, Tensor priors_cxcywh, {settings})"
    " -> (Tensor, Tensor)",
    settings=MatchPriorsSettings,
    reference=reference.match_priors,
    cpp=native.match_priors_cpp,
    cuda=native.match_priors_cuda,
    triton="matching",
    always=_values.always_match_priors,
    values=_values.match_priors,
    fake=lambda gt, offsets, priors, settings: new_matches(gt, offsets, priors),
)

_encode_targets = define(
    "encode_targets(Tensor gt_xyxy, Tensor gt_labels, Tensor offsets, Tensor priors_cxcywh,"
    " {settings}) -> (Tensor, Tensor)",
    settings=EncodeTargetsSettings,
    reference=reference.encode_targets,
    cpp=native.encode_targets_cpp,
    cuda=native.encode_targets_cuda,
    triton="matching",
    always=_values.always_encode_targets,
    values=_values.encode_targets,
    fake=lambda gt, gt_labels, offsets, priors, settings: new_targets(gt, offsets, priors),
)
