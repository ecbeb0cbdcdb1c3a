from enum import Enum

import numpy as np
from codebases.sahi.postprocess.combine import overlap


class OverlapMetric(Enum):
    IOU = "IOU"
    IOS = "IOS"


def _parts(predictions):
    if predictions.shape[1] == 5:
        return [np.arange(len(predictions))]
    return [np.where(predictions[:, 5] == label)[0] for label in np.unique(predictions[:, 5])]


def _check(iou_threshold):
    if not 0 <= iou_threshold <= 1:
        raise ValueError("iou_threshold")


def box_non_max_suppression(predictions, iou_threshold=0.5, overlap_metric=OverlapMetric.IOU):
    _check(iou_threshold)
    keep = np.zeros(len(predictions), dtype=bool)
    for own in _parts(predictions):
        best = []
        for i in own[np.flip(predictions[own, 4].argsort())]:
            others = [overlap(predictions[i], predictions[j], overlap_metric.value) for j in best]
            if all(value <= iou_threshold for value in others):
                best.append(i)
        keep[best] = True
    return keep


def box_non_max_merge(predictions, iou_threshold=0.5, overlap_metric=OverlapMetric.IOU):
    _check(iou_threshold)
    groups = []
    for own in _parts(predictions):
        left = list(own[np.flip(predictions[own, 4].argsort())])
        while left:
            first, *rest = left
            taken = [
                i
                for i in rest
                if overlap(predictions[first], predictions[i], overlap_metric.value)
                >= iou_threshold
            ]
            groups.append([int(i) for i in (first, *taken)])
            left = [i for i in rest if i not in taken]
    return groups
