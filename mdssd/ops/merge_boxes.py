"""Merging of boxes that several tiles, or several models, have found of the same objects."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdssd.ops import _values
from mdssd.ops._checks import (
    check_choice,
    check_flag,
    check_int,
    check_metric,
    check_number,
    check_same_dtype,
    check_tensor,
)
from mdssd.ops._dispatch import define
from mdssd.ops._results import new_merged
from mdssd.ops._settings import METHODS, MergeBoxesSettings
from mdssd.ops.native import merge_boxes as native
from mdssd.ops.reference import merge_boxes as reference


class MergedBoxes(NamedTuple):
    """Result of `merge_boxes`: K boxes, by rising image and, within an image, by falling score.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 8.0, 4.0], [2.0, 0.0, 9.0, 4.0]])
        >>> scores, labels = torch.tensor([0.5, 0.9]), torch.tensor([3, 3])
        >>> ops.merge_boxes(boxes, scores, labels, method="nms", threshold=0.5).index
        tensor([1])
    """

    boxes: Tensor  # [K, 4] corners
    scores: Tensor  # [K]
    labels: Tensor  # [K] int64
    images: Tensor  # [K] int64; 0 if `images` was not given
    index: Tensor  # type: ignore[assignment]  # [K] int64, of the best box of each merged box


class PaddedMergedBoxes(NamedTuple):
    """Result of `merge_boxes_padded` for N boxes: the rows of `MergedBoxes`, then zeros.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 8.0, 4.0], [2.0, 0.0, 9.0, 4.0]])
        >>> scores, labels = torch.tensor([0.5, 0.9]), torch.tensor([3, 3])
        >>> ops.merge_boxes_padded(boxes, scores, labels, method="nms", threshold=0.5).count
        tensor(1)
    """

    boxes: Tensor  # [N, 4] corners
    scores: Tensor  # [N]
    labels: Tensor  # [N] int64
    images: Tensor  # [N] int64; 0 if `images` was not given
    index: Tensor  # type: ignore[assignment]  # [N] int64, of the best box of each merged box
    count: Tensor  # type: ignore[assignment]  # int64 scalar; the rows from `count` on are 0


def merge_boxes(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: str,
    threshold: float,
    metric: str = "iou",
    per_class: bool = True,
    images: Tensor | None = None,
    models: int = 1,
) -> MergedBoxes:
    """Merge overlapping boxes of one image and label, in one of four ways.

    Boxes of higher scores come first, and two boxes overlap if their IoU is above `threshold`.

    - "nms": a box takes all later ones that it overlaps, and they are dropped. That is
      `batched_nms`.
    - "greedy_nmm" (non-maximum merging): a box takes all later ones that it overlaps and that
      nothing has taken. One after the other, by falling score, they join it: the merged box grows
      to include the one that joins, or drops it if the two do not overlap (any more).
    - "nmm": a box that has been taken takes others too, for the merged box to which it belongs, so
      that chains are merged. Those that one box takes join by rising index.
    - "wbf" (weighted boxes fusion): a box joins the fused box that it overlaps most, and of equal
      ones the first, or starts a new one. A fused box is the mean of its boxes, weighted by their
      scores (the first of them, as long as the sum of the scores is not above 0), and its score is
      the mean of their scores.

    On a GPU this waits for the device, since the size of the result depends on the data;
    `merge_boxes_padded` does not. Memory is O(N).

    Args:
        boxes_xyxy: [N, 4] corners in any unit; float32, float16, bfloat16 or float64. N may be 0.
        scores: [N], same dtype and device. NaN counts as the highest score.
        labels: [N] int64, any value.
        method: "nms", "greedy_nmm", "nmm" or "wbf".
        threshold: 0 to 1. Pass `just_below(t)` to merge boxes of an IoU of t as well, as SAHI does.
        metric: "iou" or "ios", the overlap, as in `nms`; not "diou".
        per_class: False to merge boxes of different labels too.
        images: None, or [N] int64, the image of each box, any value.
        models: with "wbf", how many models found the boxes: a score is multiplied by
            min(models, boxes fused) / models, so that what few models found counts less.

    Returns:
        MergedBoxes. Except with "wbf", a merged box has the score of its first box, and it always
        has the label of that. Ties: the lower index comes first; of merged boxes, the one whose
        first box comes first. A box of zero or negative size, of infinite area, or with a NaN,
        overlaps nothing. No gradient.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
            With `checks(True)` also: a box with a NaN, inf, x2 < x1 or y2 < y1; a score that is NaN
            or inf.

    Source: "greedy_nmm" and "nmm" are those of SAHI (Akyon et al., 2022), "wbf" is section 3 of
    Solovyev et al., 2021.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 6.0, 4.0], [2.0, 0.0, 9.0, 4.0]])  # of two tiles
        >>> scores, labels = torch.tensor([0.5, 0.9]), torch.tensor([3, 3])
        >>> settings = {"metric": "ios", "threshold": 0.5}
        >>> ops.merge_boxes(boxes, scores, labels, method="greedy_nmm", **settings).boxes
        tensor([[0., 0., 9., 4.]])
    """
    op = "merge_boxes"
    settings = _checked(op, method, threshold, metric, models)
    _check_tensors(op, boxes_xyxy, scores, labels, images, per_class)
    own_labels = labels if per_class else None
    boxes, scores, index = _merge_boxes(boxes_xyxy, scores, own_labels, images, settings)
    own_images = torch.zeros_like(index) if images is None else images.index_select(0, index)
    return MergedBoxes(boxes, scores, labels.index_select(0, index), own_images, index)


def merge_boxes_padded(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: str,
    threshold: float,
    metric: str = "iou",
    per_class: bool = True,
    images: Tensor | None = None,
    models: int = 1,
) -> PaddedMergedBoxes:
    """Run `merge_boxes` with a result of a fixed size.

    The size does not depend on the data, so nothing waits for a GPU and a CUDA graph can capture
    the call. Memory is O(N).

    Args:
        boxes_xyxy, scores, labels, method, threshold, metric, per_class, images, models: as in
            `merge_boxes`.

    Returns:
        PaddedMergedBoxes with the rows that `merge_boxes` returns and then zeros, and `count`, an
        int64 scalar on the device, the number of these rows.

    Raises:
        TypeError, ValueError: as in `merge_boxes`.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes = torch.tensor([[0.0, 0.0, 6.0, 4.0], [2.0, 0.0, 9.0, 4.0]])
        >>> scores, labels = torch.tensor([0.5, 0.9]), torch.tensor([3, 3])
        >>> merged = ops.merge_boxes_padded(boxes, scores, labels, method="wbf", threshold=0.4)
        >>> merged.count, merged.scores
        (tensor(1), tensor([0.7000, 0.0000]))
    """
    op = "merge_boxes_padded"
    settings = _checked(op, method, threshold, metric, models)
    _check_tensors(op, boxes_xyxy, scores, labels, images, per_class)
    own_labels = labels if per_class else None
    boxes, merged_scores, index, count = _merge_boxes_padded(
        boxes_xyxy, scores, own_labels, images, settings
    )
    unused = torch.arange(index.shape[0], device=index.device) >= count
    own_images = _rows(images, index, unused) if images is not None else torch.zeros_like(index)
    merged_labels = _rows(labels, index, unused)
    return PaddedMergedBoxes(boxes, merged_scores, merged_labels, own_images, index, count)


def _rows(numbers: Tensor, index: Tensor, unused: Tensor) -> Tensor:
    return numbers.index_select(0, index).masked_fill_(unused, 0)


def _checked(
    op: str, method: object, threshold: object, metric: object, models: object
) -> MergeBoxesSettings:
    """Check the settings, in the order in which the functions list them."""
    return MergeBoxesSettings(
        method=METHODS.index(check_choice(op, "method", method, METHODS)),
        threshold=check_number(op, "threshold", threshold, 0.0, 1.0),
        ios=check_metric(op, metric) == "ios",
        models=check_int(op, "models", models, 2**31 - 1),
    )


def _check_tensors(
    op: str,
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    images: Tensor | None,
    per_class: object,
) -> None:
    check_tensor(op, "boxes_xyxy", boxes_xyxy, ("N", 4))
    shape = (boxes_xyxy.shape[0],)
    check_tensor(op, "scores", scores, shape, like=boxes_xyxy)
    check_same_dtype(op, "scores", scores, boxes_xyxy)
    check_tensor(op, "labels", labels, shape, dtypes=(torch.int64,), like=boxes_xyxy)
    check_flag(op, "per_class", per_class)
    if images is not None:
        check_tensor(op, "images", images, shape, dtypes=(torch.int64,), like=boxes_xyxy)


# --- definitions ---------------------------------------------------------------------------------


def _fake_merge_boxes(boxes: Tensor, *_: Any) -> tuple[Tensor, ...]:
    rows = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(rows, 4), boxes.new_empty(rows), boxes.new_empty(rows, dtype=torch.int64)


_merge_boxes = define(
    "merge_boxes(Tensor boxes_xyxy, Tensor scores, Tensor? labels, Tensor? images, {settings})"
    " -> (Tensor boxes, Tensor scores, Tensor index)",
    settings=MergeBoxesSettings,
    reference=reference.merge_boxes,
    cpp=native.merge_boxes_cpp,
    cuda=native.merge_boxes_cuda,
    triton="merge_boxes",
    values=_values.merge_boxes,
    no_vmap="rows differ in how many boxes remain; use merge_boxes_padded",
    fake=_fake_merge_boxes,
)

_merge_boxes_padded = define(
    "merge_boxes_padded(Tensor boxes_xyxy, Tensor scores, Tensor? labels, Tensor? images,"
    " {settings}) -> (Tensor boxes, Tensor scores, Tensor index, Tensor count)",
    settings=MergeBoxesSettings,
    reference=reference.merge_boxes_padded,
    cpp=native.merge_boxes_padded_cpp,
    cuda=native.merge_boxes_padded_cuda,
    triton="merge_boxes",
    values=_values.merge_boxes_padded,
    fake=lambda boxes, *_: new_merged(boxes),
)
