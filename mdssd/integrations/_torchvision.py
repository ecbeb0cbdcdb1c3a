"""What the adapters of torchvision's detectors share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import matched_labels
from mdssd.ops._tensors import FLOATS

Shape = tuple[int, int]  # of an image: height, width


def own(model: Any, name: str) -> Callable[..., Any]:
    """Return the method of this name that the model's class has, whatever is patched."""
    method: Callable[..., Any] = getattr(type(model), name)
    return method


def defining_class(owner: Any, name: str) -> str:
    """Return the name of the class that defines a method of the object, or ""."""
    return next((each.__name__ for each in type(owner).__mro__ if name in vars(each)), "")


def traced() -> bool:
    """Whether a call is being recorded for TorchScript or ONNX, which do not know the operators."""
    return torch.jit.is_tracing()


def exporting() -> bool:
    """Whether `torch.export` runs, so that no decision can depend on the values of a tensor."""
    return bool(getattr(torch.compiler, "is_exporting", lambda: False)())


def share(value: object) -> bool:
    """Whether a threshold is one that the operators take: a number from 0 to 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def in_range(model: Any) -> bool:
    """Whether the operators take the model's limits of post-processing."""
    limits = (model.topk_candidates, model.detections_per_img)
    return (
        share(model.score_thresh)
        and share(model.nms_thresh)
        and all(isinstance(limit, int) and limit >= 1 for limit in limits)
    )


def variances(box_coder: Any) -> tuple[float, float]:
    """Return the box coder's weights as the operators take them."""
    wx, wy, ww, wh = box_coder.weights
    if wx != wy or ww != wh:
        raise AttributeError(f"box_coder.weights must be (c, c, s, s), are {box_coder.weights}")
    return 1 / wx, 1 / ww


def alike(anchors: Sequence[Tensor]) -> bool:
    """Whether there are images, and all have the same anchors."""
    if exporting():
        return len(anchors) == 1
    return len(anchors) > 0 and all(torch.equal(each, anchors[0]) for each in anchors[1:])


def groups(anchors: Sequence[Tensor], shapes: Sequence[Shape]) -> list[slice]:
    """Divide the images: all together if they have the same anchors and size, else one by one."""
    if all(tuple(shape) == tuple(shapes[0]) for shape in shapes) and alike(anchors):
        return [slice(0, len(shapes))]
    return [slice(i, i + 1) for i in range(len(shapes))]


def as_lists(
    found: ops.Detections, first_label: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> list[dict[str, Tensor]]:
    """Return the detections of each image as torchvision does, with boxes and scores of `dtypes`.

    In autocast on a GPU, torchvision's are float32.
    """
    boxes, scores = found.boxes, found.scores
    if boxes.device.type == "cpu" or not torch.is_autocast_enabled(boxes.device.type):
        boxes, scores = boxes.to(dtypes[0]), scores.to(dtypes[1])
    labels = found.labels + (first_label - 1)
    results = []
    for i, count in enumerate(found.count.tolist()):
        if exporting():
            torch._check(count >= 0)
            torch._check(count <= boxes.shape[1])
        results.append(
            {"boxes": boxes[i, :count], "scores": scores[i, :count], "labels": labels[i, :count]}
        )
    return results


def match(
    boxes: list[Tensor], anchors: list[Tensor], threshold: float, **rules: Any
) -> list[Tensor]:
    """Match the anchors [N, 4] of each image to its boxes [M, 4], all xyxy; see `match_priors`.

    Returns the index [N] of each image.
    """
    boxes = [each.to(own_anchors.dtype) for each, own_anchors in zip(boxes, anchors, strict=True)]
    if alike(anchors):
        matched = ops.match_priors(boxes, anchors[0], threshold, priors_form="xyxy", **rules)
        return list(matched.index)
    return [
        ops.match_priors([each], own_anchors, threshold, priors_form="xyxy", **rules).index[0]
        for each, own_anchors in zip(boxes, anchors, strict=True)
    ]


def match_by(
    matcher: Any, targets: list[dict[str, Tensor]], anchors: list[Tensor]
) -> list[Tensor] | None:
    """Match as a `Matcher` of torchvision, or return None where only it can.

    That is so for another class of matcher, for thresholds that are no IoU, and for boxes of
    another type than the anchors: torchvision computes the areas of each in its own type.
    """
    boxes = [target["boxes"] for target in targets]
    if (
        type(matcher).__name__ != "Matcher"
        or not share(matcher.high_threshold)
        or not share(matcher.low_threshold)
        or any(each.dtype != some.dtype for each, some in zip(boxes, anchors, strict=True))
    ):
        return None
    return match(
        [each.reshape(-1, 4) for each in boxes],
        anchors,
        float(matcher.high_threshold),
        low_threshold=float(matcher.low_threshold),
        force="low_quality" if matcher.allow_low_quality_matches else "none",
    )


def labels_of(target: dict[str, Tensor], index: Tensor, first: int) -> Tensor:
    """Return the labels [N] of matched anchors, as the operators count them.

    The label `first` of torchvision becomes 1; 0 is the background, and -1 an ignored anchor.
    """
    labels = matched_labels(target["labels"].long() + (1 - first), index)
    return torch.where(index == -2, -1, labels)


def with_original(
    original: Callable[..., Tensor],
    function: Callable[..., Tensor],
    fits: Callable[..., bool],
) -> Callable[..., Tensor]:
    """Return `function` where its arguments fit, and torchvision's original otherwise."""

    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Tensor:
        if not traced() and fits(*arguments, **named):
            return function(*arguments, **named)
        return original(*arguments, **named)

    call.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]  # for TorchScript
    return call


def nms_fits(
    boxes: Any = None, scores: Any = None, iou_threshold: Any = None, *more: Any, **others: Any
) -> bool:
    return (
        not more
        and not others
        and isinstance(boxes, Tensor)
        and isinstance(scores, Tensor)
        and boxes.dtype in FLOATS
        and scores.dtype in FLOATS
        and boxes.ndim == 2
        and boxes.shape[1] == 4
        and scores.shape == boxes.shape[:1]
        and scores.device == boxes.device
        and share(iou_threshold)
    )


def batched_nms_fits(
    boxes: Any = None,
    scores: Any = None,
    idxs: Any = None,
    iou_threshold: Any = None,
    *more: Any,
    **others: Any,
) -> bool:
    return (
        nms_fits(boxes, scores, iou_threshold, *more, **others)
        and isinstance(idxs, Tensor)
        and idxs.shape == boxes.shape[:1]
        and idxs.device == boxes.device
    )
