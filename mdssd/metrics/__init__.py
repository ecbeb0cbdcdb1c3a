"""Average precision as PASCAL VOC and COCO define it, by size, and what the errors are."""

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
