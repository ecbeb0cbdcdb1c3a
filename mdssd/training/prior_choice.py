"""Fitting the priors of a model to the boxes of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdssd.data import DataError, DetectionDataset
from mdssd.data.images import read_header
from mdssd.data.tiled_boxes import best_windows, in_windows
from mdssd.data.tiles import Tiling
from mdssd.models.build import build
from mdssd.priors import Sizes, best_iou, fit_priors, scales_name

# The fit starts from these priors if the model has them, or else from its own default.
START = "coco"
# A box of a smaller IoU is matched to a single prior and hardly learnt.
IOU = 0.5
# How much larger the crops of training show an object; `mdssd train` crops to 0.7 of the side.
ENLARGED = 1 / 0.7
# Larger data sets are represented by this many of their images, evenly spaced.
_IMAGES = 2000


class PriorChoice(NamedTuple):
    """Sizes of priors, and for these and others the share of the boxes they reach (0 to 1).

    Example:
        >>> from mdssd.training.prior_choice import PriorChoice
        >>> print(PriorChoice((((15, 16), (22, 9)),), {"coco": 0.697, "fitted": 0.998}))
        fitted, which reach 99.8% of the boxes with an IoU of 0.5 (coco 69.7%)
    """

    scales: str | Sizes
    shares: dict[str, float]

    def __str__(self) -> str:
        text = {name: f"{share:.1%}" for name, share in self.shares.items()}
        name = scales_name(self.scales)
        chosen = f"{name}, which reach {text.pop(name)} of the boxes with an IoU of {IOU}"
        others = ", ".join(f"{name} {share}" for name, share in text.items())
        return chosen + (f" ({others})" if others else "")


def choose_priors(
    dataset: DetectionDataset,
    config: Mapping[str, Any],
    device: str = "cpu",
    *,
    turned: bool = False,
    tiling: Tiling | None = None,
) -> PriorChoice:
    """Fit the priors of a model to a data set; see `mdssd.priors.fit_priors`.

    Boxes are those of the network's input, as the images have them and up to 1.43 times larger, as
    crops show them. Crowds do not count.

    Args:
        dataset: the data to train on.
        config: the model, as `build` takes it. Its prior_scales and its width do not matter.
        device: where to compute the shares.
        turned: whether training turns images by quarters.
        tiling: how images are divided, if the network sees tiles of them. Each box counts in the
            tile that shows the most of it.

    Returns:
        The sizes, and the share of the boxes that these and the priors to start from reach, without
        augmentation. Without any box the priors to start from are chosen.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.training.prior_choice import choose_priors
        >>> choice = choose_priors(SyntheticScenes(4), {"model": "mdssd300"})
        >>> [len(of_map) for of_map in choice.scales], choice.shares["fitted"] > 0.95
        ([4, 4, 6, 6, 6, 4, 4], True)
    """
    boxes_xyxy, labels = _relative_boxes(dataset, tiling)
    config = {**config, "num_classes": 2, "width": 0.01}
    config.pop("prior_scales", None)
    model = build(config)
    name: Any = model.options.prior_scales
    with suppress(ValueError):  # this model does not have them
        model = build({**config, "prior_scales": START})
        name = START
    if not len(boxes_xyxy):
        return PriorChoice(name, {name: 0.0})
    layers = type(model).prior_layers(model.input_size, name)
    sizes = fit_priors(
        boxes_xyxy, layers, model.input_size, labels=labels, enlarged=ENLARGED, turned=turned
    )
    fitted = build({**config, "prior_scales": sizes})
    shares = {
        each: float((best_iou(boxes_xyxy, priors.to(device)) >= IOU).mean())
        for each, priors in ((name, model.priors), (scales_name(sizes), fitted.priors))
    }
    return PriorChoice(sizes, shares)


def _relative_boxes(
    dataset: DetectionDataset, tiling: Tiling | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return boxes [M, 4] of the data set, xyxy in 0-1, clipped to the window, and labels [M]."""
    boxes, labels = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
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
        windows_xyxy = best_windows(boxes_xyxy, (width, height), tiling)
        boxes.append(in_windows(boxes_xyxy, windows_xyxy))
        labels.append(sample.labels[~sample.crowd])
    return np.concatenate(boxes), np.concatenate(labels)
