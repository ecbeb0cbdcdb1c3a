"""Average precision as PASCAL VOC and COCO define it, AP by size, and an analysis of the errors.

All metrics take the same three arguments. Arrays may be NumPy arrays, tensors or lists.

detections: one dict per image with "boxes" [D, 4] xyxy in pixels, "scores" [D], "labels" [D].
ground_truth: one dict per image, in the same order, with "boxes" [M, 4], "labels" [M] and,
    optionally, "difficult" [M], "crowd" [M] and "area" [M] (default: width * height).
num_classes: the number of classes including the background. Labels are 1 to num_classes - 1.

A box of the ground truth is called an object. A metric raises ValueError, naming the image, for
shapes, labels or scores that are not as above.

Example:
    >>> from mdssd.metrics import voc_ap
    >>> detections = [{"boxes": [[10, 10, 20, 20], [50, 50, 60, 60]], "scores": [0.9, 0.8],
    ...                "labels": [1, 1]}]
    >>> ground_truth = [{"boxes": [[10, 10, 20, 20]], "labels": [1]}]
    >>> voc_ap(detections, ground_truth, num_classes=2).mean_ap
    1.0
"""

from mdssd.metrics.coco import CocoResult, coco_ap
from mdssd.metrics.confusion import confusion_matrix
from mdssd.metrics.errors import FalsePositives, false_positives, similar_labels
from mdssd.metrics.sizes import SizeResult, size_ap
from mdssd.metrics.voc import VocResult, voc_ap

__all__ = [
    "CocoResult",
    "FalsePositives",
    "SizeResult",
    "VocResult",
    "coco_ap",
    "confusion_matrix",
    "false_positives",
    "similar_labels",
    "size_ap",
    "voc_ap",
]
