"""Prior (default) boxes: the boxes that a detector's predictions are relative to."""

from mdssd.priors.boxes import (
    PriorLayer,
    best_iou,
    dssd_prior_layers,
    make_priors,
    mdssd_prior_layers,
    ssd_prior_layers,
)
from mdssd.priors.fit import best_of_sizes, fit_priors
from mdssd.priors.sizes import Sizes, check_sizes, scales_name, with_sizes

__all__ = [
    "PriorLayer",
    "Sizes",
    "best_iou",
    "best_of_sizes",
    "check_sizes",
    "dssd_prior_layers",
    "fit_priors",
    "make_priors",
    "mdssd_prior_layers",
    "scales_name",
    "ssd_prior_layers",
    "with_sizes",
]
