"""Sizes of priors fitted to boxes: the IoU in closed form, and what the fit reaches."""

import numpy as np
import pytest

from mdssd.priors import (
    PriorLayer,
    best_iou,
    best_of_sizes,
    dssd_prior_layers,
    fit_priors,
    make_priors,
    mdssd_prior_layers,
    ssd_prior_layers,
    with_sizes,
)
from mdssd.priors.maps import width_height

COCO = mdssd_prior_layers(300, "coco")


def boxes_of(sides, seed=0, size=300):
    """Boxes of these (width, height) in pixels somewhere in the input, xyxy in 0-1."""
    sides = np.array(sides, float).reshape(-1, 2)
    corner = np.random.default_rng(seed).random((len(sides), 2)) * (size - sides)
    return np.hstack([corner, corner + sides]) / size


def any_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    return boxes_of(4 * 70 ** rng.random((count, 2)), seed)


def reached(boxes_xyxy, layers, size=300):
    return float((best_iou(boxes_xyxy, make_priors(layers, size)) >= 0.5).mean())


@pytest.mark.parametrize(
    "layers, size",
    [
        (COCO, 300),
        (mdssd_prior_layers(300, "small"), 300),
        (ssd_prior_layers(512, "voc"), 512),
        (dssd_prior_layers(321, "voc"), 321),
        (mdssd_prior_layers((640, 384), "coco"), (640, 384)),
    ],
)
def test_the_nearest_cell_has_the_best_iou(layers, size):
    boxes_xyxy = any_boxes(300)
    best = np.max(
        [
            best_of_sizes(
                boxes_xyxy * np.tile(width_height(size), 2), layer, np.array(layer.shapes())
            )[0].max(0)
            for layer in layers
        ],
        axis=0,
    )
    exact = best_iou(boxes_xyxy, make_priors(layers, size))
    np.testing.assert_allclose(best, exact, rtol=0, atol=2e-6)  # best_iou computes in float32
    clear = np.abs(exact - 0.5) > 2e-6
    assert ((best >= 0.5) == (exact >= 0.5))[clear].all()


def test_the_number_of_priors_that_reach_a_box():
    layer = PriorLayer(10, 30, 60, 60, (), sizes=((60, 60), (30, 90)))
    boxes_xyxy = any_boxes(200) * 300
    _, count = best_of_sizes(boxes_xyxy, layer, np.array(layer.sizes))
    for k, (width, height) in enumerate(layer.sizes):
        for m, (x1, y1, x2, y2) in enumerate(boxes_xyxy):
            found = 0
            for cx in np.arange(10) * 30 + 15:
                for cy in np.arange(10) * 30 + 15:
                    inner = max(0, min(x2, cx + width / 2) - max(x1, cx - width / 2)) * max(
                        0, min(y2, cy + height / 2) - max(y1, cy - height / 2)
                    )
                    found += inner / (width * height + (x2 - x1) * (y2 - y1) - inner) >= 0.5
            assert count[k, m] == found, (width, height, m)


def test_small_objects_that_no_named_set_reaches():
    rng = np.random.default_rng(1)
    sides = rng.uniform(8, 20, (1500, 2))
    boxes_xyxy = boxes_of(sides)
    sizes = fit_priors(boxes_xyxy, COCO, 300, enlarged=1 / 0.7)
    fitted = with_sizes("mdssd300", COCO, sizes)
    assert reached(boxes_xyxy, COCO) < 0.5
    assert reached(boxes_xyxy, fitted) > 0.99
    # Those of another picture are reached as well, and those of a crop of 0.7.
    other = boxes_of(np.random.default_rng(2).uniform(8, 20, (1500, 2)), seed=3)
    assert reached(other, fitted) > 0.985
    assert reached(boxes_of(sides / 0.7, seed=4), fitted) > 0.985


def test_sizes_that_the_boxes_do_not_need_remain():
    sizes = fit_priors(boxes_of([(14, 14)] * 400), COCO, 300)
    assert [len(of_map) for of_map in sizes] == [layer.per_cell for layer in COCO]
    for layer, of_map in zip(COCO[3:], sizes[3:], strict=True):
        assert of_map == tuple((round(w, 2), round(h, 2)) for w, h in layer.shapes())
    large = boxes_of(np.random.default_rng(5).uniform(40, 280, (500, 2)))
    fitted = with_sizes("mdssd300", COCO, sizes)
    assert reached(large, fitted) > reached(large, COCO) - 0.01


def test_boxes_that_the_start_fits_change_little():
    boxes_xyxy = boxes_of([(45, 45), (67, 67), (64, 32)] * 50)
    sizes = fit_priors(boxes_xyxy, COCO, 300)
    kept = sum(
        (round(w, 2), round(h, 2)) == fitted
        for layer, of_map in zip(COCO, sizes, strict=True)
        for (w, h), fitted in zip(layer.shapes(), of_map, strict=True)
    )
    assert kept >= 20 and reached(boxes_xyxy, with_sizes("mdssd300", COCO, sizes)) == 1


def test_a_rare_class_counts_more_than_its_boxes():
    """Ten long boxes among 3,000 squares have a prior, and only with their labels."""
    boxes_xyxy = np.concatenate([boxes_of([(30, 30)] * 3000), boxes_of([(60, 13)] * 10)])
    labels = np.repeat([1, 2], [3000, 10])
    fitted = with_sizes("mdssd300", COCO, fit_priors(boxes_xyxy, COCO, 300, labels=labels))
    assert best_iou(boxes_xyxy[-10:], make_priors(fitted, 300)).min() > 0.65


def test_turned_images():
    boxes_xyxy = boxes_of([(48, 12)] * 200)
    upright = boxes_of([(12, 48)] * 200)
    once = with_sizes("m", COCO, fit_priors(boxes_xyxy, COCO, 300))
    both = with_sizes("m", COCO, fit_priors(boxes_xyxy, COCO, 300, turned=True))
    assert reached(boxes_xyxy, once) == reached(boxes_xyxy, both) == 1
    assert reached(upright, both) == 1 > reached(upright, once)


def test_the_same_boxes_give_the_same_sizes():
    boxes_xyxy = any_boxes(2500)
    labels = np.arange(2500) % 7
    first = fit_priors(boxes_xyxy, COCO, 300, labels=labels)
    assert fit_priors(boxes_xyxy.copy(), COCO, 300, labels=labels.copy()) == first
    assert all(type(side) is float for of_map in first for pair in of_map for side in pair)


@pytest.mark.parametrize("sides", [[], [(0, 10)], [(1e-6, 1e-6)], [(300, 300)]])
def test_few_or_odd_boxes(sides):
    sizes = fit_priors(boxes_of(sides), COCO, 300)
    assert [len(of_map) for of_map in sizes] == [layer.per_cell for layer in COCO]
    with_sizes("mdssd300", COCO, sizes)  # accepts them


def test_other_models_have_their_own_grids():
    boxes_xyxy = any_boxes(300)
    for layers, size in ((dssd_prior_layers(321, "voc"), 321), (ssd_prior_layers(512), 512)):
        fitted = with_sizes("m", layers, fit_priors(boxes_xyxy, layers, size))
        assert reached(boxes_xyxy, fitted, size) > reached(boxes_xyxy, layers, size)
