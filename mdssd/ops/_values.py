"""Checks of the values in tensors, which `ops.checks(True)` turns on, and those made always.

A check of values costs time and, on a GPU, waits for the device. So only what costs nothing beside
the operator is checked always: `labels_from_1` and `one_unit`, on the CPU. Every other function is
called by the op of its name, with the op's arguments, while `checks` is on. The calls are made
behind PyTorch's dispatcher, so that they also see the values inside a compiled graph.
"""

from __future__ import annotations

import math
import warnings
from types import TracebackType

import torch
from torch import Tensor

from mdssd.ops._modules import native
from mdssd.ops._settings import (
    BoxCodingSettings,
    BoxLossSettings,
    DetectionOutputSettings,
    EncodeTargetsSettings,
    IgnorePriorsSettings,
    MatchPriorsSettings,
    MergeBoxesSettings,
    MultiboxLossSettings,
    NmsSettings,
    SigmoidFocalLossSettings,
    SoftNmsSettings,
)
from mdssd.ops._tensors import dtype_code

_READS = hasattr(native, "largest_cpu")  # PyTorch takes four times as long to read one number

# The coordinates of boxes in 0-1 stay below this, and the sizes of priors in pixels lie above that.
_FRACTIONS, _PIXELS = 2.0, 10.0


class checks:  # noqa: N801 - it is used as a function
    """Check the values in the tensors of every operator, or stop doing so.

    Some mistakes show only in the values of a tensor: labels that start at 0, a NaN, priors in
    pixels beside boxes from 0 to 1. To look for them costs time in every call and, on a GPU, waits
    for the device, so it must be asked for. Switch it on when results look wrong. docs/operators.md
    lists what each operator checks always and what only then.

    The call takes effect at once. As the argument of a `with` statement, the previous state returns
    at the end. Like `backend`, it holds for the whole process, other threads included.

    Args:
        enabled: whether to check.

    Raises:
        TypeError: `enabled` is neither True nor False.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> boxes, scores = torch.tensor([[0.0, 0.0, 1.0, float("nan")]]), torch.tensor([0.9])
        >>> with ops.checks(True):
        ...     ops.nms(boxes, scores, 0.5)
        Traceback (most recent call last):
        ValueError: nms: boxes_xyxy[0]: expected finite numbers, got [0, 0, 1, nan]
    """

    active = False

    def __init__(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(
                f"checks: enabled: expected True or False, got {type(enabled).__name__}"
            )
        self._previous = checks.active
        checks.active = enabled

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        checks.active = self._previous


# --- always, on the CPU --------------------------------------------------------------------------


def labels_from_1(op: str, gt_labels: Tensor, offsets: Tensor) -> None:
    """Check that no object has the label of the background."""
    if gt_labels.numel() and _lowest(gt_labels) < 1:
        image, k = _place_in_list(gt_labels < 1, offsets)
        start = int(offsets[image])
        raise ValueError(
            f"{op}: gt_labels[{image}]: expected 1-based labels (0 is background), "
            f"got {int(gt_labels[start + k])}"
        )


def one_unit(op: str, gt: Tensor, priors: Tensor) -> None:
    """Warn of priors in pixels beside boxes in 0-1, or the other way round."""
    if message := _two_units(op, gt, priors):
        warnings.warn(message, stacklevel=7)  # at the caller of the public function


def _two_units(op: str, gt: Tensor, priors: Tensor) -> str:
    """Say that boxes and priors are in different units, judging by the last prior's width."""
    if gt.numel() == 0 or priors.numel() == 0:
        return ""
    prior, box = _last_width(priors), _largest(gt)
    units = "0 to 1", "pixels"
    if prior > _PIXELS and box < _FRACTIONS:
        units = units[::-1]
    elif not (prior < _FRACTIONS and _PIXELS < box < math.inf):
        return ""
    return (
        f"{op}: priors_cxcywh: expected the unit of gt_xyxy, got {units[0]} beside boxes in "
        f"{units[1]}: the last prior is {prior:g} wide and the largest coordinate of a box is "
        f"{box:g}; divide the pixels by the width and height of the image"
    )


def _dense(tensor: Tensor) -> bool:
    """Whether the native module can read the tensor as it is."""
    return _READS and tensor.is_cpu and tensor.is_contiguous()


def _largest(tensor: Tensor) -> float:
    if _dense(tensor):
        return float(native.largest_cpu(tensor, tensor.numel(), dtype_code(tensor)))
    return tensor.max().item()


def _last_width(priors: Tensor) -> float:
    if _dense(priors):
        return float(native.number_cpu(priors, priors.numel() - 2, dtype_code(priors)))
    return priors[-1, 2].item()


def _lowest(labels: Tensor) -> int:
    return int(native.lowest_cpu(labels, labels.numel()) if _dense(labels) else labels.min())


def always_match_priors(
    gt: Tensor, offsets: Tensor, priors: Tensor, settings: MatchPriorsSettings
) -> None:
    one_unit("match_priors", gt, priors)


def always_encode_targets(
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: EncodeTargetsSettings,
) -> None:
    labels_from_1("encode_targets", gt_labels, offsets)
    one_unit("encode_targets", gt, priors)


# --- with checks(True) ---------------------------------------------------------------------------


def box_iou(a: Tensor, b: Tensor) -> None:
    _boxes("box_iou", "a_xyxy", a)
    _boxes("box_iou", "b_xyxy", b)


def encode_boxes(boxes: Tensor, priors: Tensor, settings: BoxCodingSettings) -> None:
    _boxes("encode_boxes", "boxes_xyxy", boxes, empty=False)
    _priors("encode_boxes", priors)


def decode_boxes(loc: Tensor, priors: Tensor, settings: BoxCodingSettings) -> None:
    _finite("decode_boxes", "loc", loc)
    _priors("decode_boxes", priors)


def match_priors(
    gt: Tensor, offsets: Tensor, priors: Tensor, settings: MatchPriorsSettings
) -> None:
    op = "match_priors"
    _each_image(op, "gt_xyxy", gt, offsets)
    if settings.corners:
        _boxes(op, "priors_cxcywh", priors)
    else:
        _priors(op, priors)
    if message := _two_units(op, gt, priors):
        raise ValueError(message)


def encode_targets(
    gt: Tensor,
    gt_labels: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: EncodeTargetsSettings,
) -> None:
    op = "encode_targets"
    _each_image(op, "gt_xyxy", gt, offsets, empty=False)
    labels_from_1(op, gt_labels, offsets)
    _priors(op, priors)
    if message := _two_units(op, gt, priors):
        raise ValueError(message)


def ignore_priors(
    marks: Tensor,
    ignored: Tensor,
    offsets: Tensor,
    priors: Tensor,
    settings: IgnorePriorsSettings,
) -> None:
    op = "encode_targets" if settings.background == 0 else "match_priors"
    _each_image(op, "ignored_xyxy", ignored, offsets)


def nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, settings: NmsSettings) -> None:
    op = "nms" if idxs is None else "batched_nms"
    _boxes(op, "boxes_xyxy", boxes)
    _finite(op, "scores", scores)


def nms_padded(boxes: Tensor, scores: Tensor, idxs: Tensor | None, settings: NmsSettings) -> None:
    _boxes("nms_padded", "boxes_xyxy", boxes)
    _finite("nms_padded", "scores", scores)


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, settings: SoftNmsSettings
) -> None:
    _boxes("soft_nms", "boxes_xyxy", boxes)
    _finite("soft_nms", "scores", scores)


def soft_nms_padded(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, settings: SoftNmsSettings
) -> None:
    _boxes("soft_nms_padded", "boxes_xyxy", boxes)
    _finite("soft_nms_padded", "scores", scores)


def merge_boxes(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> None:
    _boxes("merge_boxes", "boxes_xyxy", boxes)
    _finite("merge_boxes", "scores", scores)


def merge_boxes_padded(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    images: Tensor | None,
    settings: MergeBoxesSettings,
) -> None:
    _boxes("merge_boxes_padded", "boxes_xyxy", boxes)
    _finite("merge_boxes_padded", "scores", scores)


def detection_output(
    loc: Tensor, logits: Tensor, priors: Tensor, settings: DetectionOutputSettings
) -> None:
    op = "detection_output"
    _finite(op, "loc", loc)
    if settings.softmax or settings.sigmoid:
        _logits(op, logits)
    else:
        _require(op, "logits", logits, (logits >= 0) & (logits <= 1), "scores from 0 to 1")
    _priors(op, priors)
    width, height = settings.clip_width, settings.clip_height
    if width is not None and height is not None:
        inside = (priors[:, 0] <= 2 * width) & (priors[:, 1] <= 2 * height)
        _require(op, "priors_cxcywh", priors, inside[:, None], "the unit of clip")


def multibox_loss(
    loc: Tensor,
    logits: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    settings: MultiboxLossSettings,
) -> None:
    op = "multibox_loss"
    _labels(op, labels, logits.shape[2] - 1)
    _finite(op, "loc", loc)
    _logits(op, logits)
    _loc_targets(op, loc_targets, labels)


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, settings: SigmoidFocalLossSettings) -> None:
    op = "sigmoid_focal_loss"
    _labels(op, labels, logits.shape[2])
    _require(op, "logits", logits, ~logits.isnan(), "no NaN")


def box_loss(
    loc: Tensor,
    loc_targets: Tensor,
    labels: Tensor,
    priors: Tensor,
    settings: BoxLossSettings,
) -> None:
    _finite("box_loss", "loc", loc)
    _loc_targets("box_loss", loc_targets, labels)
    _priors("box_loss", priors)


def l2norm(x: Tensor, scale: Tensor, eps: float) -> None:
    _finite("l2norm", "x", x)
    _finite("l2norm", "scale", scale)


def l2norm_add_relu(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, eps: float) -> None:
    for name, tensor in {"a": a, "b": b, "scale_a": scale_a, "scale_b": scale_b}.items():
        _finite("l2norm_add_relu", name, tensor)


# --- their parts ---------------------------------------------------------------------------------


def _require(op: str, argument: str, tensor: Tensor, holds: Tensor, expected: str) -> None:
    """Raise a ValueError that names the first row, or number, of a tensor that does not hold.

    `holds` has the shape of `tensor`, or a last size of 1 if it judges whole rows.
    """
    if bool(holds.all()):
        return
    place = (~holds).nonzero()[0].tolist()
    if holds.shape != tensor.shape or (tensor.dim() > 1 and tensor.shape[-1] == 4):
        place = place[:-1]
    got = tensor[tuple(place)].tolist()
    text = _row(got) if isinstance(got, list) else f"{got:g}"
    indices = ", ".join(str(index) for index in place)
    raise ValueError(f"{op}: {argument}[{indices}]: expected {expected}, got {text}")


def _row(numbers: list[float]) -> str:
    return f"[{', '.join(f'{number:g}' for number in numbers)}]"


def _finite(op: str, argument: str, tensor: Tensor) -> None:
    _require(op, argument, tensor, torch.isfinite(tensor), "finite numbers")


def _logits(op: str, logits: Tensor) -> None:
    """Check for NaN and inf; -inf is how code rules out a class."""
    _require(op, "logits", logits, logits < torch.inf, "numbers below infinity")


def _labels(op: str, labels: Tensor, highest: int) -> None:
    _require(op, "labels", labels, (labels >= -1) & (labels <= highest), f"-1 to {highest}")


def _loc_targets(op: str, loc_targets: Tensor, labels: Tensor) -> None:
    read = torch.isfinite(loc_targets) | (labels <= 0)[..., None]
    _require(op, "loc_targets", loc_targets, read, "finite numbers at the positives")


def _boxes(op: str, argument: str, boxes: Tensor, empty: bool = True) -> None:
    _finite(op, argument, boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    ordered = (low <= high if empty else low < high).all(-1, keepdim=True)
    sign = "<=" if empty else "<"
    _require(op, argument, boxes, ordered, f"x1 {sign} x2 and y1 {sign} y2")


def _priors(op: str, priors: Tensor) -> None:
    _finite(op, "priors_cxcywh", priors)
    positive = (priors[:, 2:] > 0).all(-1, keepdim=True)
    _require(op, "priors_cxcywh", priors, positive, "sizes above 0")


def _each_image(op: str, argument: str, boxes: Tensor, offsets: Tensor, empty: bool = True) -> None:
    """Check the boxes of each image on its own, so that the message names the image."""
    bounds = offsets.tolist()
    for image, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        _boxes(op, f"{argument}[{image}]", boxes[start:end], empty)


def _place_in_list(wrong: Tensor, offsets: Tensor) -> tuple[int, int]:
    """Return the image of the first True in a joined batch, and its row in the image's list."""
    at = int(wrong.nonzero()[0])
    image = int((offsets <= at).sum()) - 1
    return image, at - int(offsets[image])
