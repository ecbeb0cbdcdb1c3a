"""Matching of priors to ground truth, and the training targets that follow from it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import (
    check_choice,
    check_eps,
    check_int,
    check_number,
    check_same_dtype,
    check_tensor,
    check_variances,
    shown,
)
from mdssd.ops._dispatch import define, plain_thread
from mdssd.ops._results import new_matches, new_targets
from mdssd.ops._settings import (
    FORCES,
    VARIANCES,
    EncodeTargetsSettings,
    IgnorePriorsSettings,
    MatchPriorsSettings,
)
from mdssd.ops.native import matching as native
from mdssd.ops.reference import matching as reference

_MOST = 2**31 - 1  # priors that a box takes


class Match(NamedTuple):
    """Result of `match_priors` for B images and N priors.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> ops.match_priors([torch.rand(0, 4)], torch.rand(2, 4)).index
        tensor([[-1, -1]])
    """

    index: Tensor  # type: ignore[assignment]  # [B, N] int64, ground truth in its image, -1 or -2
    iou: Tensor  # [B, N] float32, highest IoU (or NWD) of each prior


class Targets(NamedTuple):
    """Result of `encode_targets` for B images and N priors.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> box, prior = torch.tensor([[0.4, 0.4, 0.6, 0.6]]), torch.tensor([[0.5, 0.5, 0.2, 0.2]])
        >>> ops.encode_targets([box], [torch.tensor([7])], prior).labels
        tensor([[7]])
    """

    loc: Tensor  # [B, N, 4], 0 unless the prior is matched
    labels: Tensor  # [B, N] int64, 0 is background and -1 ignored


def match_priors(
    gt_xyxy: Sequence[Tensor],
    priors_cxcywh: Tensor,
    iou_threshold: float = 0.5,
    *,
    iou_eps: float = 0.0,
    priors_form: str = "cxcywh",
    low_threshold: float | None = None,
    force: str = "best_prior",
    top_k: int = 1,
    metric: str = "iou",
    nwd_constant: float | None = None,
    ignored_xyxy: Sequence[Tensor] | None = None,
    ignore_threshold: float = 0.5,
) -> Match:
    """Match every prior of a batch of images to a ground-truth box or to background.

    1. A prior takes the ground truth with which it has its highest IoU, if that is at least
       `iou_threshold`. Ties: the lower index of the ground truth.
    2. Then each ground truth takes the prior with which it has its highest IoU, however low, so
       that none stays without a prior. Ties: the lower prior; a prior that is the best of two
       ground truths goes to the later one.

    The keywords change both steps; docs/operators.md explains them. Memory is O(N + the sum of
    M_i * top_k): only "reference" builds the N x M_i matrix. On a GPU, float64 runs as "reference".

    Args:
        gt_xyxy: B tensors [M_i, 4] of corners in the priors' unit (0-1), M_i from 0; float32,
            float16, bfloat16 or float64, all of one dtype and on one device.
        priors_cxcywh: [N, 4] centre and size; any float dtype, same device. N may be 0.
        iou_threshold: 0 to 1, compared in the dtype of the computation. Pass `just_above(t)` for
            "above t" instead of "at least t".
        iou_eps: added to the area of the union in every IoU; 0 to 1, in the priors' unit squared.
        priors_form: "cxcywh", or "xyxy" if `priors_cxcywh` holds corners.
        low_threshold: step 1 ignores a prior with a highest IoU from this to below `iou_threshold`.
        force: "best_prior" is step 2; "none" leaves it out. "low_quality" is the exact
            `allow_low_quality_matches` of torchvision and detectron2: every prior whose IoU with
            some box is the highest of that box, 0 included, takes its own best box.
        top_k: in step 2, each box takes so many priors in the order of their IoU; after the first,
            only those with an IoU above 0. A prior goes to the box in whose order it comes first.
        metric: "iou", or "nwd" to use the normalised Wasserstein distance in its place.
        nwd_constant: with "nwd", C of that paper in the boxes' unit, from 1e-9 to 1e9.
        ignored_xyxy: B tensors [K_i, 4] like `gt_xyxy`. A background prior is ignored if one of
            these boxes covers at least a share `ignore_threshold`, and more than 0, of its area.

    Returns:
        Match with `index` [B, N] int64, the position in the image's own list, -1 for background or
        -2 for ignored, and `iou` [B, N] float32, the highest IoU (or NWD) before step 2. A box that
        is degenerate or holds a NaN has IoU 0 with every prior and therefore takes prior 0.

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
    corners = check_choice(op, "priors_form", priors_form, ("cxcywh", "xyxy")) == "xyxy"
    threshold = check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0)
    eps = check_eps(op, iou_eps)
    share = check_number(op, "ignore_threshold", ignore_threshold, 0.0, 1.0)
    rules = _rules(op, threshold, eps, low_threshold, force, top_k, metric, nwd_constant)
    settings = MatchPriorsSettings(threshold, eps, corners, *rules)
    gt, offsets = _flatten(op, gt_xyxy, priors_cxcywh)
    index, iou = _match_priors(gt, offsets, priors_cxcywh, settings)
    by = IgnorePriorsSettings(share, -1, corners)
    return Match(_ignore(op, index, gt_xyxy, ignored_xyxy, priors_cxcywh, by), iou)


def encode_targets(
    gt_xyxy: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    priors_cxcywh: Tensor,
    iou_threshold: float = 0.5,
    variances: tuple[float, float] = VARIANCES,
    *,
    iou_eps: float = 0.0,
    low_threshold: float | None = None,
    force: str = "best_prior",
    top_k: int = 1,
    metric: str = "iou",
    nwd_constant: float | None = None,
    ignored_xyxy: Sequence[Tensor] | None = None,
    ignore_threshold: float = 0.5,
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
        iou_eps: as in `match_priors`, like the keywords below.
        low_threshold: from this to below `iou_threshold`, a prior is ignored.
        force: "best_prior", "low_quality" or "none".
        top_k: priors that each box takes.
        metric: "iou" or "nwd".
        nwd_constant: with "nwd", in the unit of the boxes.
        ignored_xyxy: B tensors [K_i, 4] of boxes on which background is ignored.
        ignore_threshold: the least share of a prior's area on such a box, 0 to 1.

    Returns:
        Targets with `loc` [B, N, 4] in the dtype of the boxes (that of the priors if there is no
        image), 0 unless a box is matched, and `labels` [B, N] int64, 0 for background and -1 for
        ignored. Ties and images without boxes as in `match_priors`.

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
    threshold = check_number(op, "iou_threshold", iou_threshold, 0.0, 1.0)
    v0, v1 = check_variances(op, variances)
    eps = check_eps(op, iou_eps)
    share = check_number(op, "ignore_threshold", ignore_threshold, 0.0, 1.0)
    rules = _rules(op, threshold, eps, low_threshold, force, top_k, metric, nwd_constant)
    settings = EncodeTargetsSettings(threshold, v0, v1, eps, *rules)
    gt, offsets = _flatten(op, gt_xyxy, priors_cxcywh)
    gt_labels_flat = _flatten_labels(op, gt_labels, gt_xyxy, gt)
    loc, labels = _encode_targets(gt, gt_labels_flat, offsets, priors_cxcywh, settings)
    by = IgnorePriorsSettings(share, 0, False)
    return Targets(loc, _ignore(op, labels, gt_xyxy, ignored_xyxy, priors_cxcywh, by))


def _rules(
    op: str,
    iou_threshold: float,
    iou_eps: float,
    low_threshold: object,
    force: object,
    top_k: object,
    metric: object,
    nwd_constant: object,
) -> tuple[float | None, int, int, float | None]:
    """Check the keywords that change the steps; return the last fields of the settings."""
    low = None
    if low_threshold is not None:
        low = check_number(op, "low_threshold", low_threshold, 0.0, iou_threshold)
    place = FORCES.index(check_choice(op, "force", force, FORCES))
    ranks = check_int(op, "top_k", top_k, _MOST)
    if ranks > 1 and place != 0:
        raise ValueError(f"{op}: top_k: expected 1 with force={force!r}, got {ranks}")
    if check_choice(op, "metric", metric, ("iou", "nwd")) == "iou":
        if nwd_constant is not None:
            given = shown(nwd_constant)
            raise ValueError(f'{op}: nwd_constant: expected None with metric="iou", got {given}')
        return low, place, ranks, None
    if nwd_constant is None:
        raise ValueError(
            f'{op}: nwd_constant: expected a number with metric="nwd", in the unit of the boxes '
            "(12.8 pixels in the paper), got None"
        )
    if iou_eps:
        raise ValueError(f'{op}: iou_eps: expected 0 with metric="nwd", got {iou_eps}')
    return low, place, ranks, check_number(op, "nwd_constant", nwd_constant, 1e-9, 1e9)


def _ignore(
    op: str,
    marks: Tensor,
    gt_xyxy: Sequence[Tensor],
    ignored_xyxy: Sequence[Tensor] | None,
    priors_cxcywh: Tensor,
    settings: IgnorePriorsSettings,
) -> Tensor:
    """Mark the background priors on boxes to be ignored, if there are such boxes."""
    if ignored_xyxy is None:
        return marks
    ignored, offsets = _flatten(op, ignored_xyxy, priors_cxcywh, "ignored_xyxy")
    if len(ignored_xyxy) != len(gt_xyxy):
        raise ValueError(
            f"{op}: ignored_xyxy: expected {len(gt_xyxy)} tensors, one per image of gt_xyxy, "
            f"got {len(ignored_xyxy)}"
        )
    if gt_xyxy:
        check_same_dtype(op, "ignored_xyxy[0]", ignored, gt_xyxy[0])
    return _ignore_priors(marks, ignored, offsets, priors_cxcywh, settings)


def _flatten(
    op: str, boxes_xyxy: Sequence[Tensor], priors_cxcywh: Tensor, name: str = "gt_xyxy"
) -> tuple[Tensor, Tensor]:
    """Check the ragged batch; return all boxes [sum of M_i, 4] and the offsets [B + 1] int64.

    The offsets stay on the CPU, wherever the boxes are: no backend needs them on the device, and
    copying them there would make the call wait for it.
    """
    check_tensor(op, "priors_cxcywh", priors_cxcywh, ("N", 4))
    if not isinstance(boxes_xyxy, (list, tuple)):
        got = type(boxes_xyxy)
        raise TypeError(f"{op}: {name}: expected a list of Tensors, one per image; got {got}")
    for i, boxes in enumerate(boxes_xyxy):
        check_tensor(op, f"{name}[{i}]", boxes, ("M", 4), like=priors_cxcywh)
        check_same_dtype(op, f"{name}[{i}]", boxes, boxes_xyxy[0])
    ends = [0, *accumulate([boxes.shape[0] for boxes in boxes_xyxy])]
    if plain_thread():  # a third of torch.tensor's time, but modes do not see it
        offsets = torch.frombuffer(array("q", ends), dtype=torch.int64)
    else:
        offsets = torch.tensor(ends, dtype=torch.int64, device="cpu")
    joined = torch.cat(list(boxes_xyxy)) if boxes_xyxy else priors_cxcywh.new_empty(0, 4)
    return joined, offsets


def _flatten_labels(
    op: str, gt_labels: Sequence[Tensor], gt_xyxy: Sequence[Tensor], gt: Tensor
) -> Tensor:
    """Check the labels against the boxes; return all labels [sum of M_i]."""
    if not isinstance(gt_labels, (list, tuple)):
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

_ignore_priors = define(
    "ignore_priors(Tensor marks, Tensor ignored_xyxy, Tensor offsets, Tensor priors_cxcywh,"
    " {settings}) -> Tensor",
    settings=IgnorePriorsSettings,
    reference=reference.ignore_priors,
    cpp=native.ignore_priors_cpp,
    cuda=native.ignore_priors_cuda,
    triton="matching",
    values=_values.ignore_priors,
    fake=lambda marks, ignored, offsets, priors, settings: torch.empty_like(marks),
)
