"""Use this project's operators in mmdetection and mmcv.

    import mmdet
    from mdssd.integrations import mmdetection as fast
    fast.patch(mmdet)                       # or: with fast.patch(mmdet): ...

This replaces `MaxIoUAssigner.assign`, and mmcv's `nms` and `batched_nms` in every module that has
imported them, so in mmdetection's heads too. `patch(mmcv)` replaces only these two. Versions 3 of
mmdetection and 2 of mmcv.

This stays the same:
- Matching: an IoU of at least `pos_iou_thr` is positive, and one below `neg_iou_thr`, or between
  its two numbers, is background. With `match_low_quality`, every prior that has the highest IoU of
  some box takes it, if that is at least `min_pos_iou`; of two such boxes the later one. With
  `gt_max_assign_all` off, only one prior takes it. Priors of which more than `ignore_iof_thr` lies
  on a box to be ignored are left out. The result has `gt_inds`, `max_overlaps` and `labels`.
- NMS: an IoU of at most `iou_threshold` stays; `score_threshold`, `max_num` and `class_agnostic`
  hold, and from `split_thr` boxes on, classes are suppressed one by one.
- Their own code runs for other calculators of overlaps, boxes that are not float32, scores of
  boxes to be ignored by their own area, soft-NMS and other kinds of NMS, pixels that count at both
  ends (`offset=1`), numpy arrays, and thresholds outside of 0 to 1.

This differs:
- Without `gt_max_assign_all`, a box with several best priors takes the first. (In mmdetection it is
  undefined.) So does NMS with equal scores.
- NMS never compares boxes of different classes. (mmcv shifts them apart, which rounds the
  coordinates.) `batched_nms` of no boxes returns none. (mmcv raises an error.)
- Boxes without area overlap nothing. (mmdetection divides by at least 1e-6.)

The matrix of boxes x priors is not built: only the priors with a box's highest IoU, and the
positive ones, are compared with every box.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations import _torchvision as shared
from mdssd.integrations._patch import Patch, Replacement, patch_each, submodule

_PAIRS = 2**21  # overlaps in memory at a time
_SETTINGS = {"type", "iou_threshold", "class_agnostic", "split_thr", "score_threshold", "max_num"}


def patch(*targets: Any) -> Patch:
    """Patch the package `mmdet`, or only `mmcv`.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: a target is neither. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.mmdetection import patch
        >>> import mmdet  # doctest: +SKIP
        >>> with patch(mmdet):  # doctest: +SKIP
        ...     runner.train()
    """
    return patch_each("mmdetection", "the package `mmdet` or `mmcv`", targets, _of_package)


def _of_package(package: ModuleType) -> list[Replacement]:
    if not package.__name__.endswith("mmdet"):
        return _of_mmcv(submodule(package, "ops.nms"))
    assigners = submodule(package, "models.task_modules.assigners.max_iou_assigner")
    result = submodule(package, "models.task_modules.assigners.assign_result").AssignResult
    assigner = assigners.MaxIoUAssigner
    value = _assigning(assigner.assign, result)
    return [Replacement(assigner, "assign", value), *_of_mmcv(import_module("mmcv.ops.nms"))]


def _of_mmcv(home: ModuleType) -> list[Replacement]:
    replacements = []
    for name, function in (("nms", _nms), ("batched_nms", _batched_nms)):
        original = getattr(home, name)
        value = functools.wraps(original)(functools.partial(function, original))
        replacements += [
            Replacement(module, name, value)
            for module in list(sys.modules.values())
            if isinstance(module, ModuleType) and vars(module).get(name) is original
        ]
    return replacements


# --- matching ------------------------------------------------------------------------------------


def _tensor(boxes: Any) -> Any:
    """Return the tensor of boxes, which may be in one of mmdetection's classes."""
    return boxes if isinstance(boxes, Tensor) else getattr(boxes, "tensor", None)


def _assigning(original: Callable[..., Any], result: Callable[..., Any]) -> Callable[..., Any]:
    """Return what replaces `assign`."""

    @functools.wraps(original)
    def call(
        self: Any,
        pred_instances: Any,
        gt_instances: Any,
        gt_instances_ignore: Any = None,
        **others: Any,
    ) -> Any:
        priors, boxes = _tensor(pred_instances.priors), _tensor(gt_instances.bboxes)
        ignored = None
        if self.ignore_iof_thr > 0 and gt_instances_ignore is not None:
            ignored = _tensor(gt_instances_ignore.bboxes)
        if not _fits(self, priors, boxes, ignored):
            return original(self, pred_instances, gt_instances, gt_instances_ignore, **others)
        index, overlap = assign(self, priors, boxes, ignored)
        labels = torch.full_like(index, -1)
        own = index > 0
        labels[own] = gt_instances.labels[index[own] - 1]
        return result(num_gts=len(boxes), gt_inds=index, max_overlaps=overlap, labels=labels)

    return call


def _fits(assigner: Any, priors: Any, boxes: Any, ignored: Any) -> bool:
    """Whether the operators do what this assigner does with these boxes."""
    calculator, negative = assigner.iou_calculator, assigner.neg_iou_thr
    given = [priors, boxes] if ignored is None else [priors, boxes, ignored]
    return (
        type(calculator).__name__ == "BboxOverlaps2D"
        and calculator.dtype != "fp16"
        and getattr(assigner, "perm_repeat_gt_cfg", None) is None
        and all(isinstance(each, Tensor) for each in given)
        and all(each.dtype == torch.float32 and each.ndim == 2 for each in given)
        and all(each.shape[1] == 4 for each in given)
        and shared.share(assigner.pos_iou_thr)
        and (isinstance(negative, float) or (isinstance(negative, tuple) and len(negative) == 2))
        and assigner.min_pos_iou >= 0
        and (ignored is None or (assigner.ignore_wrt_candidates and assigner.ignore_iof_thr < 1))
    )


def assign(
    assigner: Any, priors: Tensor, boxes: Tensor, ignored: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the number [N] of each prior's box and its highest IoU [N], as `MaxIoUAssigner`.

    Args:
        assigner: it has the thresholds and rules.
        priors: [N, 4] xyxy.
        boxes: [M, 4] xyxy in the same unit.
        ignored: None, or boxes [K, 4] on which priors are ignored.

    Returns:
        The numbers count from 1; 0 is background, and -1 an ignored prior. The IoU of a prior on an
        ignored box is -1 if there are boxes.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from mdssd.integrations.mmdetection import assign
        >>> assigner = SimpleNamespace(
        ...     pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.3, match_low_quality=False
        ... )
        >>> priors = torch.tensor([[0.0, 0, 10, 10], [10.0, 10, 20, 20]])
        >>> assign(assigner, priors, torch.tensor([[0.0, 0, 10, 9]]))
        (tensor([1, 0]), tensor([0.9000, 0.0000]))
    """
    overlap = priors.new_zeros(len(priors))
    numbers = torch.zeros_like(overlap, dtype=torch.int64)
    if len(boxes) == 0 or len(priors) == 0:
        return numbers, overlap
    place: Any = slice(None)
    if ignored is not None and len(ignored):
        above = ops.just_above(assigner.ignore_iof_thr)
        nothing = priors.new_zeros(0, 4)
        marks = ops.match_priors(
            [nothing], priors, priors_form="xyxy", ignored_xyxy=[ignored], ignore_threshold=above
        )
        left = marks.index[0] != -2
        numbers[~left], overlap[~left] = -1, -1.0
        place = left
    numbers[place], overlap[place] = _assign(assigner, priors[place], boxes)
    return numbers, overlap


def _assign(assigner: Any, priors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers and the highest IoU of priors of which none is on an ignored box."""
    force = "low_quality" if assigner.match_low_quality else "none"
    found = ops.match_priors(
        [boxes], priors, float(assigner.pos_iou_thr), priors_form="xyxy", force=force
    )
    index, overlap = found.index[0], found.iou[0]
    negative = assigner.neg_iou_thr
    low, high = negative if isinstance(negative, tuple) else (0.0, negative)
    numbers = torch.full_like(index, -1)
    numbers[(overlap >= low) & (overlap < high)] = 0
    positive = overlap >= assigner.pos_iou_thr
    numbers[positive] = index[positive] + 1
    if assigner.match_low_quality and len(priors):
        _restore(assigner, priors, boxes, (index >= 0).nonzero()[:, 0], numbers)
    return numbers, overlap


def _restore(
    assigner: Any, priors: Tensor, boxes: Tensor, candidates: Tensor, numbers: Tensor
) -> None:
    """Give each box its best priors, in `numbers` [N]; all of them are among the candidates."""
    parts = candidates.split(max(1, _PAIRS // len(boxes)))
    best = torch.stack([ops.box_iou(boxes, priors[part]).amax(1) for part in parts]).amax(0)
    takes_any = best >= assigner.min_pos_iou
    first = torch.full_like(best, -1, dtype=torch.int64)
    for part in reversed(parts):
        takes = (ops.box_iou(boxes, priors[part]) == best[:, None]) & takes_any[:, None]
        if assigner.gt_max_assign_all:
            last = len(boxes) - takes.flip(0).to(torch.uint8).argmax(0)
            numbers[part] = torch.where(takes.any(0), last, numbers[part])
        else:
            first = torch.where(takes.any(1), part[takes.to(torch.uint8).argmax(1)], first)
    for box, prior in enumerate(first.tolist()):
        if prior >= 0:
            numbers[prior] = box + 1


# --- NMS -----------------------------------------------------------------------------------------


def _kept(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor | None,
    threshold: float,
    score_threshold: float,
    most: int,
) -> Tensor:
    """Return the indices of the boxes that NMS keeps, by falling score."""
    place = None
    if score_threshold > 0:
        place = (scores > score_threshold).nonzero()[:, 0]
        boxes, scores = boxes[place], scores[place]
        classes = None if classes is None else classes[place]
    if classes is None:
        kept = ops.nms(boxes, scores, threshold)
    else:
        kept = ops.batched_nms(boxes, scores, classes.long(), threshold)
    kept = kept[:most] if most > 0 else kept
    return kept if place is None else place[kept]


def _with_scores(boxes: Tensor, scores: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([boxes[kept], scores[kept, None]], 1), kept


def _nms(original: Callable[..., Any], boxes: Any, scores: Any, *rest: Any, **named: Any) -> Any:
    """Replace `nms` of mmcv."""
    names = ("iou_threshold", "offset", "score_threshold", "max_num")
    given = dict(zip(names, rest, strict=False)) | named
    if (
        len(rest) > len(names)
        or given.keys() - set(names)
        or given.get("offset", 0) != 0
        or not shared.nms_fits(boxes, scores, given.get("iou_threshold"))
        or boxes.dtype != scores.dtype
        or shared.traced()
    ):
        return original(boxes, scores, *rest, **named)
    limits = given.get("score_threshold", 0), given.get("max_num", -1)
    kept = _kept(boxes, scores, None, given["iou_threshold"], *limits)
    return _with_scores(boxes, scores, kept)


def _batched_nms(
    original: Callable[..., Any],
    boxes: Any,
    scores: Any,
    idxs: Any,
    nms_cfg: Any,
    class_agnostic: bool = False,
) -> Any:
    """Replace `batched_nms` of mmcv."""
    settings: dict[str, Any] = {"type": "none"} if nms_cfg is None else dict(nms_cfg)
    threshold = settings.get("iou_threshold")
    if (
        settings.get("type", "nms") != "nms"
        or settings.keys() - _SETTINGS
        or not shared.batched_nms_fits(boxes, scores, idxs, threshold)
        or boxes.dtype != scores.dtype
        or shared.traced()
    ):
        return original(boxes, scores, idxs, nms_cfg, class_agnostic)
    together = settings.get("class_agnostic", class_agnostic)
    if len(boxes) >= settings.get("split_thr", 10000):
        together = False
    limits = settings.get("score_threshold", 0), settings.get("max_num", -1)
    kept = _kept(
        boxes, scores, None if together else idxs, float(settings["iou_threshold"]), *limits
    )
    return _with_scores(boxes, scores, kept)
