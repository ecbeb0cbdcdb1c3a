"""The operators of SSD-type detectors, each with several backends behind one function."""

from mdssd.ops._dispatch import backend, backends
from mdssd.ops._values import checks
from mdssd.ops.box_loss import box_loss
from mdssd.ops.boxes import box_iou, decode_boxes, encode_boxes, just_above, just_below
from mdssd.ops.detection_output import Detections, detection_output
from mdssd.ops.l2norm import l2norm, l2norm_add_relu
from mdssd.ops.matching import Match, Targets, encode_targets, match_priors
from mdssd.ops.merge_boxes import (
    MergedBoxes,
    PaddedMergedBoxes,
    merge_boxes,
    merge_boxes_padded,
)
from mdssd.ops.multibox_loss import multibox_loss
from mdssd.ops.nms import PaddedKeep, batched_nms, nms, nms_padded
from mdssd.ops.resize import resize
from mdssd.ops.sigmoid_focal_loss import sigmoid_focal_loss
from mdssd.ops.soft_nms import PaddedSoftKeep, SoftKeep, soft_nms, soft_nms_padded

__all__ = [
    "Detections",
    "Match",
    "MergedBoxes",
    "PaddedKeep",
    "PaddedMergedBoxes",
    "PaddedSoftKeep",
    "SoftKeep",
    "Targets",
    "backend",
    "backends",
    "batched_nms",
    "box_iou",
    "box_loss",
    "checks",
    "decode_boxes",
    "detection_output",
    "encode_boxes",
    "encode_targets",
    "just_above",
    "just_below",
    "l2norm",
    "l2norm_add_relu",
    "match_priors",
    "merge_boxes",
    "merge_boxes_padded",
    "multibox_loss",
    "nms",
    "nms_padded",
    "resize",
    "sigmoid_focal_loss",
    "soft_nms",
    "soft_nms_padded",
]
