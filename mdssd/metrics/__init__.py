"""Average precision as PASCAL VOC and COCO define it."""

from mdssd.metrics.coco import CocoResult, coco_ap
from mdssd.metrics.voc import VocResult, voc_ap

__all__ = ["CocoResult", "VocResult", "coco_ap", "voc_ap"]
