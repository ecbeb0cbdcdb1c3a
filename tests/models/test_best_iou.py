"""The greatest IoU with any prior, found without comparing every pair."""

import numpy as np
import pytest
import torch

from mdssd import ops
from mdssd.models import build
from mdssd.priors import best_iou
from mdssd.priors.boxes import to_xyxy


def compared_in_pairs(boxes_xyxy, priors_cxcywh):
    boxes = torch.from_numpy(boxes_xyxy.astype(np.float32))
    return ops.box_iou(boxes, to_xyxy(priors_cxcywh)).amax(1).double().numpy()


def boxes_of_any_size(count):
    """Boxes of all sizes and shapes; some reach beyond the image."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(-0.05, 1.05, (count, 2))
    sides = np.exp(rng.uniform(np.log(0.005), 0, (count, 2)))
    return np.hstack([centres - sides / 2, centres + sides / 2])


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("model", ["mdssd300", "mdssd512", "ssd300", "dssd321"])
def test_it_is_that_of_all_pairs(model, clip):
    # Two maps of mdssd300 have priors of the same size, so that these are no single grid.
    config = {"model": model, "num_classes": 2, "width": 0.01, "clip_priors": clip}
    if model.startswith("mdssd"):
        config["prior_scales"] = "coco"
    priors = build(config).priors
    boxes = boxes_of_any_size(300)
    found = best_iou(boxes, priors)
    np.testing.assert_allclose(found, compared_in_pairs(boxes, priors), rtol=0, atol=5e-6)


def test_priors_that_are_no_grid():
    boxes = boxes_of_any_size(100)
    rng = np.random.default_rng(1)
    for count in (1, 7, 2000):
        priors = torch.from_numpy(rng.uniform(0.05, 0.6, (count, 4)).astype(np.float32))
        np.testing.assert_allclose(
            best_iou(boxes, priors), compared_in_pairs(boxes, priors), rtol=0, atol=5e-6
        )
