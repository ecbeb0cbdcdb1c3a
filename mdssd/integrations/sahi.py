"""Use this project's operators in SAHI.

    import sahi
    from mdssd.integrations import sahi as fast
    fast.patch(sahi)                        # or: with fast.patch(sahi): ...

In `sahi.postprocess.combine`, this replaces `nms` and `batched_nms`, with which `NMSPostprocess`
works, and what `GreedyNMMPostprocess`, SAHI's default, and `NMMPostprocess` do when called: the
merging of boxes too, which takes most of the time.

This stays the same:
- An overlap of `match_threshold` or more suppresses or merges; it is the IoU or the IoS. Of equal
  scores, the box that is further left, then further up, comes first.
- A merged box has the highest score, and covers all its boxes, of which one that the grown box does
  not overlap any more is left out. In `NMMPostprocess` a box that was taken takes others in turn.
  Per category, or over all with `class_agnostic`; the results are in the codebase's order.
- SAHI's own code runs for predictions with masks, which it merges too, for thresholds that are not
  above 0 and up to 1, and for versions of SAHI that suppress tensors.

This differs:
- With `class_agnostic`, a merged box has the category of its first box. (In SAHI, of equal scores,
  that of the last one.)
- The list of predictions is not changed. (SAHI puts merged boxes into it.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mdssd import ops
from mdssd.integrations import _groups
from mdssd.integrations._patch import Patch, Replacement, patch_each, submodule


def patch(*targets: Any) -> Patch:
    """Patch the package `sahi`.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: the target is not that package. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.sahi import patch
        >>> import sahi  # doctest: +SKIP
        >>> with patch(sahi):  # doctest: +SKIP
        ...     result = sahi.predict.get_sliced_prediction("photo.jpg", model)
    """
    return patch_each("sahi", "the package `sahi`", targets, _of_package)


def _of_package(sahi: ModuleType) -> list[Replacement]:
    combine = submodule(sahi, "postprocess.combine")
    greedy, chains = combine.GreedyNMMPostprocess, combine.NMMPostprocess
    return [
        Replacement(combine, "nms", _suppression(combine.nms, per_category=False)),
        Replacement(combine, "batched_nms", _suppression(combine.batched_nms, per_category=True)),
        Replacement(greedy, "__call__", _merging(greedy.__call__, "greedy_nmm")),
        Replacement(chains, "__call__", _merging(chains.__call__, "nmm")),
    ]


def _in_range(metric: object, threshold: object) -> bool:
    return metric in ("IOU", "IOS") and isinstance(threshold, float | int) and 0 < threshold <= 1


def _order(boxes: NDArray[Any], scores: NDArray[Any]) -> NDArray[np.intp]:
    """Return the ranking by falling score, then by x1, y1, x2, y2."""
    x1, y1, x2, y2 = boxes.T
    return np.lexsort((y2, x2, y1, x1, -scores))


def _suppression(original: Callable[..., Any], per_category: bool) -> Callable[..., Any]:
    """Return what replaces `nms` or `batched_nms`, of predictions [N, 6]: xyxy, score, category."""

    @functools.wraps(original)
    def call(predictions: Any, match_metric: str = "IOU", match_threshold: float = 0.5) -> Any:
        if not isinstance(predictions, np.ndarray) or not _in_range(match_metric, match_threshold):
            return original(predictions, match_metric, match_threshold)
        order = _order(predictions[:, :4], predictions[:, 4])
        boxes = _groups.as_tensor(predictions[order, :4])
        categories = None
        if per_category:
            classes = np.unique(predictions[order, 5], return_inverse=True)[1]
            categories = torch.from_numpy(classes.astype(np.int64).reshape(-1))
        below = ops.just_below(match_threshold, boxes.dtype)
        keep = order[_groups.kept(boxes, categories, below, match_metric.lower())]
        if per_category:  # equal scores by category
            keep = keep[predictions[keep, 5].argsort(kind="stable")]
            keep = keep[(-predictions[keep, 4]).argsort(kind="stable")]
        return keep.tolist()

    return call


def _merging(original: Callable[..., Any], way: str) -> Callable[..., Any]:
    """Return what replaces the call of a class that merges, in one of the operator's ways."""

    @functools.wraps(original)
    def call(self: Any, object_predictions: list[Any]) -> list[Any]:
        predictions = list(object_predictions)
        if (
            not predictions
            or any(each.mask is not None for each in predictions)
            or not _in_range(self.match_metric, self.match_threshold)
        ):
            merged: list[Any] = original(self, object_predictions)
            return merged
        return _merge(self, predictions, way)

    return call


def _merge(postprocess: Any, predictions: list[Any], method: str) -> list[Any]:
    boxes = np.array([each.bbox.to_xyxy() for each in predictions], dtype=np.float64)
    scores = np.array([each.score.value for each in predictions], dtype=np.float64)
    categories = np.array([each.category.id for each in predictions], dtype=np.int64)
    ranks = np.empty(len(boxes))
    ranks[_order(boxes, scores)] = np.arange(len(boxes), 0, -1)
    found = ops.merge_boxes(
        torch.from_numpy(boxes),
        torch.from_numpy(ranks),
        torch.from_numpy(categories),
        method=method,
        threshold=ops.just_below(postprocess.match_threshold, torch.float64),
        metric=postprocess.match_metric.lower(),
        per_class=not postprocess.class_agnostic,
    )
    places = torch.arange(len(found.index))
    if not postprocess.class_agnostic:
        places = found.labels.sort(stable=True).indices
    results = []
    for place in places.tolist():
        best = predictions[int(found.index[place])]
        box = found.boxes[place].tolist()
        if box != best.bbox.to_xyxy():
            best = type(best)(
                bbox=box,
                score=best.score.value,
                category_id=best.category.id,
                category_name=best.category.name,
                shift_amount=list(best.bbox.shift_amount),
            )
        results.append(best)
    return results
