"""Detections of supervision (Roboflow), and this project's operators in it.

    import supervision
    from mdssd.integrations import supervision as fast
    fast.patch(supervision)                 # or: with fast.patch(supervision): ...

This replaces `box_non_max_suppression` and `box_non_max_merge`, with which `Detections.with_nms`,
`Detections.with_nmm` and `InferenceSlicer` suppress and merge, in all modules of the package that
have imported them. Masks and oriented boxes stay with the package.

- The same: NMS keeps an overlap of at most `iou_threshold`, and merging takes one of at least that;
  the overlap is the IoU or the IoS; equal scores are ranked as numpy's `argsort` ranks them.
- The difference: memory grows with the number of boxes, not with its square.

The other functions here convert detections:

    from mdssd.integrations.supervision import from_supervision, to_supervision
    (found,) = detector("photo.jpg")
    detections = to_supervision(found, detector.classes)  # a supervision.Detections
    found = from_supervision(detections)

A detector here returns the dictionary that torchvision's detectors return: "boxes" [K, 4] xyxy in
pixels, "scores" [K] and "labels" [K], as tensors. So these functions take and return torchvision's
dictionaries as well. Labels count from 1, as 0 is the background; supervision's class ids count
from 0.

`supervision` is imported when `to_supervision` is called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdssd.integrations import _groups
from mdssd.integrations._patch import Patch, Replacement, everywhere, patch_each, submodule


def patch(*targets: Any) -> Patch:
    """Patch the package `supervision`.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: the target is not that package. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.supervision import patch
        >>> import supervision  # doctest: +SKIP
        >>> with patch(supervision):  # doctest: +SKIP
        ...     detections = detections.with_nms(0.5)
    """
    return patch_each("supervision", "the package `supervision`", targets, _of_package)


def _of_package(supervision: ModuleType) -> list[Replacement]:
    try:
        home = submodule(supervision, "detection.utils.iou_and_nms")
    except ImportError:
        home = submodule(supervision, "detection.overlap_filter")  # before version 0.26
    replacements = []
    for name, function in (
        ("box_non_max_suppression", _suppressed),
        ("box_non_max_merge", _merged),
    ):
        value = _with_original(getattr(home, name), function)
        replacements += everywhere(supervision, home, name, value)
    return replacements


def _with_original(
    original: Callable[..., Any], function: Callable[..., Any]
) -> Callable[..., Any]:
    """Return `function` where the arguments are what it takes, else the package's own."""

    @functools.wraps(original)
    def call(predictions: Any, iou_threshold: float = 0.5, *rest: Any, **named: Any) -> Any:
        metric = [*rest, *named.values()]
        name = str(getattr(metric[0], "value", metric[0])).lower() if metric else "iou"
        if (
            not isinstance(predictions, np.ndarray)
            or predictions.ndim != 2
            or predictions.shape[1] not in (5, 6)
            or not 0 < iou_threshold <= 1
            or len(metric) > 1
            or named.keys() - {"overlap_metric"}
            or name not in ("iou", "ios")
        ):
            return original(predictions, iou_threshold, *rest, **named)
        return function(predictions, float(iou_threshold), name)

    return call


def _suppressed(predictions: NDArray[Any], threshold: float, metric: str) -> NDArray[np.bool_]:
    """Return whether NMS keeps each row [N, 5 or 6]: xyxy, score, class."""
    order = np.flip(predictions[:, 4].argsort())
    boxes = _groups.as_tensor(predictions[order, :4])
    categories = None
    if predictions.shape[1] == 6:
        classes = np.unique(predictions[order, 5], return_inverse=True)[1]
        categories = torch.from_numpy(classes.astype(np.int64).reshape(-1))
    keep = np.zeros(len(predictions), dtype=bool)
    keep[order[_groups.kept(boxes, categories, threshold, metric)]] = True
    return keep


def _merged(predictions: NDArray[Any], threshold: float, metric: str) -> list[list[int]]:
    """Return the rows of each group of boxes to merge, the best first, class by class."""
    places = [np.arange(len(predictions))]
    if predictions.shape[1] == 6:
        places = [np.where(predictions[:, 5] == c)[0] for c in np.unique(predictions[:, 5])]
    found = []
    for place in places:
        order = place[np.flip(predictions[place, 4].argsort())]
        boxes = _groups.as_tensor(predictions[order, :4])
        found += [order[group].tolist() for group in _groups.groups(boxes, threshold, metric)]
    return found


def to_supervision(found: Mapping[str, Tensor], classes: Sequence[str]) -> Any:
    """Return detections as a `supervision.Detections`.

    Args:
        found: "boxes", "labels" and, unless they are annotations, "scores"; on any device. What
            else there is, such as torchvision's masks, is left out.
        classes: the names of labels 1, 2 ... For a model of torchvision they are
            `weights.meta["categories"][1:]`.

    Returns:
        The detections in the same order: xyxy, class_id (the label minus 1), data["class_name"],
        and confidence if there are scores.

    Raises:
        ImportError: supervision is not installed.
        ValueError: a label has no name.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            f"to_supervision: supervision is needed ({error}): pip install supervision"
        ) from None
    boxes = found["boxes"].detach().cpu().float().reshape(-1, 4).numpy()
    labels = found["labels"].detach().cpu().long().numpy()
    wrong = labels[(labels < 1) | (labels > len(classes))]
    if len(wrong):
        raise ValueError(
            f"to_supervision: expected labels from 1 to {len(classes)}, the number of classes, "
            f"got {wrong[0]}"
        )
    scores = found.get("scores")
    return supervision.Detections(
        xyxy=boxes,
        confidence=None if scores is None else scores.detach().cpu().float().numpy(),
        class_id=labels - 1,
        data={"class_name": np.array(classes, dtype=str)[labels - 1]},
    )


def from_supervision(detections: Any, classes: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return a `supervision.Detections` as a detector of this project or torchvision returns it.

    Args:
        detections: the detections; masks and track ids are left out.
        classes: the names of labels 1, 2 ..., by which data["class_name"] gives the labels. None
            gives each box the class_id plus 1.

    Returns:
        "boxes" [K, 4] float32 xyxy, "labels" [K] int64 and, if there is a confidence, "scores"
        [K] float32, in the same order. Without scores they are a target, as torchvision trains
        with.

    Raises:
        ValueError: the boxes have no class, or one of a name that is not among `classes`.

    Example:
        >>> from types import SimpleNamespace
        >>> import numpy as np
        >>> from mdssd.integrations.supervision import from_supervision
        >>> detections = SimpleNamespace(  # as supervision.Detections
        ...     xyxy=np.array([[10, 20, 30, 40]]),
        ...     confidence=np.array([0.5]),
        ...     class_id=np.array([0]),
        ...     data={"class_name": np.array(["cell"])},
        ... )
        >>> from_supervision(detections)["labels"], from_supervision(detections, ["x", "cell"])
        (tensor([1]), {'boxes': tensor([[10., 20., 30., 40.]]), 'labels': tensor([2]), \
'scores': tensor([0.5000])})
    """
    boxes = np.asarray(detections.xyxy, np.float32).reshape(-1, 4)
    if classes is not None:
        labels = _labels(detections.data.get("class_name", []), len(boxes), classes)
    elif detections.class_id is not None:
        labels = [int(number) + 1 for number in detections.class_id]
    elif len(boxes) == 0:
        labels = []
    else:
        raise ValueError("from_supervision: expected boxes with a class_id, got None")
    found = {
        "boxes": torch.from_numpy(boxes.copy()),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
    if detections.confidence is not None:
        scores = np.asarray(detections.confidence, np.float32)
        found["scores"] = torch.from_numpy(scores.copy())
    return found


def _labels(names: Sequence[str], count: int, classes: Sequence[str]) -> list[int]:
    if len(names) != count:
        raise ValueError(
            f'from_supervision: expected data["class_name"] to name the class of {count} boxes, '
            f"got {len(names)} names"
        )
    unknown = [str(name) for name in names if name not in classes]
    if unknown:
        raise ValueError(
            f"from_supervision: expected class names among {', '.join(classes)}; got {unknown[0]!r}"
        )
    known = list(classes)
    return [known.index(name) + 1 for name in names]
