"""Results before they are filled: their shapes, dtypes and layouts, the same for every backend.

Fake tensors take theirs from here too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._settings import DetectionOutputSettings, SoftNmsSettings
from mdssd.ops._tensors import accumulation_dtype, map_format


def new_matches(gt: Tensor, offsets: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
    """Index and IoU of `match_priors`."""
    shape = (offsets.shape[0] - 1, priors.shape[0])
    return gt.new_empty(*shape, dtype=torch.int64), gt.new_empty(*shape, dtype=torch.float32)


def new_targets(gt: Tensor, offsets: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets and labels of `encode_targets`."""
    images, num_priors = offsets.shape[0] - 1, priors.shape[0]
    return (
        gt.new_empty(images, num_priors, 4),
        gt.new_empty(images, num_priors, dtype=torch.int64),
    )


def new_detections(
    loc: Tensor, logits: Tensor, settings: DetectionOutputSettings, zeros: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, scores, labels and count of `detection_output`, all zeros unless told otherwise."""
    dtype = torch.promote_types(accumulation_dtype(loc.dtype), accumulation_dtype(logits.dtype))
    rows = settings.max_detections
    foreground = logits.shape[2] - int(settings.background)
    lists = (loc.shape[0], foreground) if settings.per_class else (loc.shape[0],)
    new = loc.new_zeros if zeros else loc.new_empty
    return (
        new(*lists, rows, 4, dtype=dtype),  # PyTorch reads a tuple of sizes 0.5 us more slowly
        new(*lists, rows, dtype=dtype),
        new(*lists, rows, dtype=torch.int64),
        new(*lists, dtype=torch.int64),
    )


def new_soft_keep(boxes: Tensor, settings: SoftNmsSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, scores and count of `soft_nms_padded`, all zeros."""
    rows = boxes.shape[0]
    if settings.max_detections is not None:
        rows = torch.sym_min(rows, settings.max_detections)
    return (
        boxes.new_zeros(rows, dtype=torch.int64),
        boxes.new_zeros(rows),
        boxes.new_zeros((), dtype=torch.int64),
    )


def new_merged(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, scores, index and count of `merge_boxes_padded`, all zeros."""
    num_boxes = boxes.shape[0]
    return (
        boxes.new_zeros(num_boxes, 4),
        boxes.new_zeros(num_boxes),
        boxes.new_zeros(num_boxes, dtype=torch.int64),
        boxes.new_zeros((), dtype=torch.int64),
    )


def new_losses(
    loc: Tensor, labels: Tensor, per_image: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Localisation loss, confidence loss, selected priors and normaliser of `multibox_loss`."""
    dtype = accumulation_dtype(loc.dtype)
    groups = (labels.shape[0],) if per_image else ()
    return (
        loc.new_empty(groups, dtype=dtype),
        loc.new_empty(groups, dtype=dtype),
        loc.new_empty(labels.shape, dtype=torch.bool),
        loc.new_empty(groups, dtype=torch.int64),
    )


def new_mean_loss(x: Tensor, labels: Tensor, per_image: bool) -> tuple[Tensor, Tensor]:
    """Loss and normaliser of `sigmoid_focal_loss` and `box_loss`."""
    groups = (labels.shape[0],) if per_image else ()
    return (
        x.new_empty(groups, dtype=accumulation_dtype(x.dtype)),
        x.new_empty(groups, dtype=torch.int64),
    )


def new_map(x: Tensor, like: Tensor | None = None) -> Tensor:
    """A map of the shape of `x`, in the memory format of `x` or `like`."""
    layout = map_format(x if like is None else like)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


def new_norms(x: Tensor) -> Tensor:
    """One number per pixel of a map [B, C, H, W], in the dtype of the computation: [B, H, W]."""
    images, _, height, width = x.shape
    return x.new_empty(images, height, width, dtype=accumulation_dtype(x.dtype))


def new_images(images: Tensor, height: int, width: int) -> Tensor:
    """The dense result of `resize`."""
    return images.new_empty(*images.shape[:-3], height, width, images.shape[-1])
