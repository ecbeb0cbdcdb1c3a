"""Choosing the sizes of the priors by the boxes of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdssd.data import DataError, DetectionDataset
from mdssd.data.images import read_header
from mdssd.models.build import build
from mdssd.priors import best_iou

# From the largest priors to the smallest. "paper" has only larger ones than any of these.
CANDIDATES = ("voc", "coco", "small")
# A box of a smaller IoU is matched to a single prior and hardly learnt.
IOU = 0.5
# Smaller priors that reach no more than half a percent of the boxes in addition are not worth it:
# they take the place of larger ones.
MARGIN = 0.005
# Larger data sets are represented by this many of their images and boxes, evenly spaced.
_IMAGES, _BOXES = 2000, 5000


class PriorChoice(NamedTuple):
    """A set of prior sizes, and for each set the share of the boxes that it reaches (0 to 1).

    Example:
        >>> from mdssd.training.prior_choice import PriorChoice
        >>> print(PriorChoice("coco", {"voc": 0.76, "coco": 0.994, "small": 0.981}))
        coco, which reach 99.4% of the boxes with an IoU of 0.5 (voc 76.0%, small 98.1%)
    """

    scales: str
    shares: dict[str, float]

    def __str__(self) -> str:
        text = {name: f"{share:.1%}" for name, share in self.shares.items()}
        chosen = f"{self.scales}, which reach {text.pop(self.scales)} of the boxes with an IoU of "
        others = ", ".join(f"{name} {share}" for name, share in text.items())
        return f"{chosen}{IOU}" + (f" ({others})" if others else "")


def choose_priors(
    dataset: DetectionDataset, config: Mapping[str, Any], device: str = "cpu"
) -> PriorChoice:
    """Choose the largest priors of a model that reach nearly as many boxes as any others.

    A box is reached if a prior has an IoU of at least 0.5 with it in the network's input, without
    augmentation. Crowds do not count.

    Args:
        dataset: the data to train on.
        config: the model, as `build` takes it. Its prior_scales and its width do not matter.
        device: where to compute.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.training.prior_choice import choose_priors
        >>> choose_priors(SyntheticScenes(4), {"model": "mdssd300"}).scales
        'small'
    """
    boxes_xyxy = _relative_boxes(dataset)
    shares = {}
    for scales in CANDIDATES:
        with suppress(ValueError):  # this model does not have them
            model = build({**config, "prior_scales": scales, "num_classes": 2, "width": 0.01})
            iou = best_iou(boxes_xyxy, model.priors.to(device))
            shares[scales] = float((iou >= IOU).mean()) if len(iou) else 0.0
    most = max(shares.values())
    return PriorChoice(next(s for s in shares if shares[s] >= most - MARGIN), shares)


def _relative_boxes(dataset: DetectionDataset) -> NDArray[np.float64]:
    """Return boxes [M, 4] of the data set, xyxy in 0-1, clipped to the image."""
    parts = [np.zeros((0, 4))]
    for index in range(0, len(dataset), max(1, len(dataset) // _IMAGES)):
        path = dataset.image_path(index)
        if path is None:
            sample = dataset[index]
            height, width = sample.image.shape[:2]
        else:
            sample = dataset.annotation(index)
            try:
                width, height = read_header(path).size(dataset.upright(index))
            except DataError:
                continue  # the check of the images names it
        boxes_xyxy = sample.boxes_xyxy[~sample.crowd].astype(np.float64)
        parts.append((boxes_xyxy / (width, height, width, height)).clip(0, 1))
    boxes_xyxy = np.concatenate(parts)
    return boxes_xyxy[:: max(1, len(boxes_xyxy) // _BOXES)]
