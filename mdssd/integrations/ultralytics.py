"""Use this project's operators in ultralytics (YOLO).

    import ultralytics
    from mdssd.integrations import ultralytics as fast
    fast.patch(ultralytics)                 # or: with fast.patch(ultralytics): ...

This replaces `non_max_suppression`, in `ultralytics.utils.nms` (in `ultralytics.utils.ops` of older
versions) and in the modules of the package that have imported it, and `TorchNMS.nms`.

This stays the same:
- Scores must exceed `conf_thres`; the best class of each box counts, or with `multi_label` each
  class; `classes` filters; the best `max_nms` of an image enter NMS, which keeps those with an IoU
  of at most `iou_thres`; the best `max_det` are returned by falling score, as [K, 6 + extra] for
  each image: xyxy, score, class and what else the rows hold.
- The classes are shifted apart by `max_wh`, which rounds the coordinates, as in the codebase.
- The codebase's own code runs for rotated boxes, models that need no NMS, `labels` of an image, and
  arguments that this adapter does not know.

This differs:
- All images pass one NMS, however long it takes: `max_time_img` is not read.
- `prediction` is not changed. (Newer versions of the codebase overwrite its boxes.)
- Equal scores are ranked by the lower box. (In the codebase it is undefined.)
- A box without area is kept and suppresses no other. (`TorchNMS` may drop it.)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdssd import ops
from mdssd.integrations._patch import Patch, Replacement, everywhere, patch_each, submodule

# What the codebase's own code does, by the names of its arguments.
_LEFT_ALONE = ("rotated", "end2end", "labels")
_KNOWN = (
    *("prediction", "conf_thres", "iou_thres", "classes", "agnostic", "multi_label", "max_det"),
    *("nc", "max_time_img", "max_nms", "max_wh", "in_place", "return_idxs"),
)

Detections = list[Tensor] | tuple[list[Tensor], list[Tensor]]


def patch(*targets: Any) -> Patch:
    """Patch the package `ultralytics`.

    Returns:
        The patch. Its `undo()`, or the end of a `with` block, restores everything.

    Raises:
        TypeError: the target is not that package. Nothing is replaced then.

    Example:
        >>> from mdssd.integrations.ultralytics import non_max_suppression, patch
        >>> import ultralytics  # doctest: +SKIP
        >>> with patch(ultralytics):  # doctest: +SKIP
        ...     results = model.predict("photo.jpg")
        >>> import torch  # `ultralytics.utils.nms.non_max_suppression` then calls:
        >>> prediction = torch.tensor([[[5.0, 5], [5.0, 5], [9.0, 8], [9.0, 9], [0.9, 0.8]]])
        >>> non_max_suppression(prediction)
        [tensor([[0.5000, 0.5000, 9.5000, 9.5000, 0.9000, 0.0000]])]
    """
    return patch_each("ultralytics", "the package `ultralytics`", targets, _of_package)


def _of_package(ultralytics: ModuleType) -> list[Replacement]:
    try:
        home = submodule(ultralytics, "utils.nms")
    except ImportError:
        home = submodule(ultralytics, "utils.ops")  # before version 8.3.200
    original = home.non_max_suppression
    replacements = everywhere(ultralytics, home, "non_max_suppression", _with_original(original))
    suppressor = getattr(home, "TorchNMS", None)
    if suppressor is not None:
        replacements.append(Replacement(suppressor, "nms", staticmethod(_nms)))
    return replacements


def _with_original(original: Callable[..., Detections]) -> Callable[..., Detections]:
    """Return `non_max_suppression` with the codebase's own for what it does not do."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Detections:
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        given = dict(bound.arguments)
        prediction = given["prediction"]
        if isinstance(prediction, list | tuple):  # of a model in validation: outputs and loss
            prediction = given["prediction"] = prediction[0]
        if (
            prediction.shape[-1] == 6
            or any(_is_set(given.get(name)) for name in _LEFT_ALONE)
            or given.keys() - {*_KNOWN, *_LEFT_ALONE}
            or not 0 <= given["conf_thres"] <= 1
            or not 0 <= given["iou_thres"] <= 1
        ):
            return original(*arguments, **named)
        known = {name: given[name] for name in _KNOWN if name in given}
        return non_max_suppression(**known)

    return call


def _is_set(value: Any) -> bool:
    return value is not None and (bool(value) if isinstance(value, bool) else len(value) > 0)


def non_max_suppression(
    prediction: Tensor,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Any = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
    nc: int = 0,
    max_time_img: float = 0.05,
    max_nms: int = 30000,
    max_wh: int = 7680,
    in_place: bool = True,
    return_idxs: bool = False,
) -> Detections:
    """Select the detections of prediction [B, 4 + classes + extra, N], whose boxes are cxcywh.

    Args:
        prediction: boxes, scores of the classes and what else the rows hold, in this order.
        conf_thres: a score must be above it.
        iou_thres: NMS keeps an IoU of at most this.
        classes: None, or the indices of the classes to return.
        agnostic: suppress boxes of other classes too.
        multi_label: return a box once for each class that passes, not only for the best.
        max_det: detections of an image.
        nc: the number of classes; 0 if there are no extra rows.
        max_time_img: without effect.
        max_nms: boxes of an image that enter NMS.
        max_wh: how far the classes are shifted apart.
        in_place: without effect.
        return_idxs: also return the index of each detection's box.

    Returns:
        A tensor [K, 6 + extra] for each image, and with `return_idxs` another list, of indices [K].

    Example:
        >>> import torch
        >>> from mdssd.integrations.ultralytics import non_max_suppression
        >>> prediction = torch.tensor([[[5.0, 30], [5.0, 5], [8.0, 8], [8.0, 8], [0.9, 0.1]]])
        >>> non_max_suppression(prediction, return_idxs=True)[1]
        [tensor([0])]
    """
    count = len(prediction)
    rows = prediction.transpose(1, 2)  # [B, N, 4 + classes + extra]
    nc = nc or rows.shape[2] - 4
    scores = rows[..., 4 : 4 + nc]
    if multi_label and nc > 1:
        image, box, label = (scores > conf_thres).nonzero(as_tuple=True)
    else:
        best, columns = scores.max(2)
        image, box = (best > conf_thres).nonzero(as_tuple=True)
        label = columns[image, box]
    if classes is not None:
        wanted = torch.isin(label, torch.as_tensor(classes, device=label.device))
        image, box, label = image[wanted], box[wanted], label[wanted]
    found = rows[image, box]
    score = found.gather(1, 4 + label[:, None])[:, 0]
    half = found[:, 2:4] / 2
    boxes = torch.cat([found[:, :2] - half, found[:, :2] + half], 1)
    excess = _excess(image, score, count, max_nms)
    if excess is not None:
        image, box, label, score = image[excess], box[excess], label[excess], score[excess]
        boxes, found = boxes[excess], found[excess]
    shifted = boxes + label[:, None].to(boxes.dtype) * (0 if agnostic else max_wh)
    kept = ops.batched_nms(shifted, score, image, iou_thres)
    detections = torch.cat(
        [boxes, score[:, None], label[:, None].to(boxes.dtype), found[:, 4 + nc :]], 1
    )
    places = [kept[image[kept] == i][:max_det] for i in range(count)]
    output = [detections[place] for place in places]
    return (output, [box[place] for place in places]) if return_idxs else output


def _excess(image: Tensor, score: Tensor, images: int, most: int) -> Tensor | None:
    """Return the candidates that stay if an image has more than `most`, or None if none has."""
    if image.numel() <= most or int(torch.bincount(image, minlength=images).max()) <= most:
        return None
    order = score.argsort(descending=True, stable=True)
    return torch.cat([order[image[order] == i][:most] for i in range(images)])


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Replace `TorchNMS.nms`."""
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    return ops.nms(boxes.reshape(-1, 4).to(dtype), scores.to(dtype), iou_threshold)
