"""The part of supervision that suppresses and merges, in the module that imports it by value."""

from codebases.slicer.detection.utils.iou_and_nms import (
    box_non_max_merge,
    box_non_max_suppression,
)


def with_nms(predictions, *settings, **named):
    return box_non_max_suppression(predictions, *settings, **named)


def with_nmm(predictions, *settings, **named):
    return box_non_max_merge(predictions, *settings, **named)
