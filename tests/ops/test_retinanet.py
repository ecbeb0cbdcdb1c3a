"""`detection_output` beside RetinaNet's post-processing, written here as torchvision defines it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops

CLIP = math.log(1000 / 16)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Greedy NMS within each label, as torchvision's batched_nms, by falling score."""
    order = scores.argsort(descending=True, stable=True)
    boxes, labels = boxes[order], labels[order]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            low, high = boxes.maximum(boxes[i])[:, :2], boxes.minimum(boxes[i])[:, 2:]
            both = (high - low).clamp(min=0).prod(1)
            gone = (both / (area + area[i] - both) > threshold) & (labels == labels[i])
            gone[: i + 1] = False
            alive &= ~gone
    return order[alive]


def torchvision_way(
    loc: list[Tensor],
    logits: list[Tensor],
    anchors: list[Tensor],
    *,
    size: tuple[float, float] = (256.0, 200.0),
    score: float = 0.05,
    top_k: int = 1000,
    nms: float = 0.5,
    best: int = 300,
) -> tuple[Tensor, Tensor, Tensor]:
    """Post-process one image, whose maps are lists, with anchors as corners in pixels."""
    all_boxes, all_scores, all_labels = [], [], []
    for deltas, level, corners in zip(loc, logits, anchors, strict=True):
        scores = level.sigmoid().flatten()
        places = (scores > score).nonzero()[:, 0]
        scores, order = scores[places].topk(min(top_k, len(places)))
        places = places[order]
        box, label = places // level.shape[1], places % level.shape[1]
        widths, heights = (corners[box, 2:] - corners[box, :2]).unbind(1)
        x = deltas[box, 0] * widths + corners[box, 0] + widths / 2
        y = deltas[box, 1] * heights + corners[box, 1] + heights / 2
        w = deltas[box, 2].clamp(max=CLIP).exp() * widths / 2
        h = deltas[box, 3].clamp(max=CLIP).exp() * heights / 2
        boxes = torch.stack([x - w, y - h, x + w, y + h], 1)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[0])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[1])
        all_boxes.append(boxes)
        all_scores.append(scores)
        all_labels.append(label)
    boxes, scores, labels = map(torch.cat, (all_boxes, all_scores, all_labels))
    keep = suppress(boxes, scores, labels, nms)[:best]
    return boxes[keep], scores[keep], labels[keep]


def head(seed: int, classes: int, cells: tuple[int, ...], shift: float) -> Any:
    """Outputs for a list of square maps with 9 anchors a cell: offsets, logits and anchors."""
    generator = torch.Generator().manual_seed(seed)
    loc, logits, anchors = [], [], []
    for i, side in enumerate(cells):
        count = side * side * 9
        centre = 256 * torch.rand(count, 2, generator=generator)
        half = 2.0**i * (8 + 8 * torch.rand(count, 2, generator=generator))
        loc.append(0.3 * torch.randn(count, 4, generator=generator))
        logits.append(2 * torch.randn(count, classes, generator=generator) - shift)
        anchors.append(torch.cat([centre - half, centre + half], 1))
    return loc, logits, anchors


def post_process(loc: Any, logits: Any, anchors: Any, **options: Any) -> ops.Detections:
    corners = torch.cat(anchors)
    priors = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    settings: dict[str, Any] = {
        "score_threshold": 0.05,
        "nms_threshold": 0.5,
        "top_k": len(priors),
        "max_detections": 300,
        "variances": (1.0, 1.0),
        "activation": "sigmoid",
        "background": False,
        "levels": [len(level) for level in anchors],
        "top_k_per_level": 1000,
        "max_log_scale": CLIP,
        "clip": (256.0, 200.0),
    }
    settings |= options
    return ops.detection_output(torch.cat(loc)[None], torch.cat(logits)[None], priors, **settings)


@pytest.mark.parametrize("backend", ["reference", "cpp", "simt"])
@pytest.mark.parametrize(
    ("classes", "cells", "shift", "top_k"),
    [
        (3, (5, 3, 2), 4.0, 1000),  # fewer candidates than a level may have
        (3, (5, 3, 1), 0.0, 60),  # more in some levels, fewer in the last
        (11, (6, 3), 3.0, 1000),
        (1, (5, 3), 1.0, 20),
    ],
)
def test_the_detections_are_those_of_torchvision(
    backend: str, classes: int, cells: tuple[int, ...], shift: float, top_k: int
) -> None:
    if backend not in ops.backends()["detection_output"]:
        pytest.skip(f"no backend {backend} here")
    output = head(classes, classes, cells, shift)
    boxes, scores, labels = torchvision_way(*output, top_k=top_k)
    with ops.backend(backend):
        found = post_process(*output, top_k_per_level=top_k)
    assert found.count.tolist() == [len(scores)] and len(scores) > 15
    rows = slice(len(scores))
    assert torch.equal(found.labels[0, rows] - 1, labels)  # torchvision's start at 0
    torch.testing.assert_close(found.scores[0, rows], scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.boxes[0, rows], boxes, rtol=1e-5, atol=1e-3)


# --- by hand, on every backend -------------------------------------------------------------------

PRIORS = torch.tensor([[0.1 + 0.2 * i, 0.5, 0.1, 0.1] for i in range(5)])


def detect(scores: Any, priors: Tensor = PRIORS, **options: Any) -> ops.Detections:
    given = torch.tensor([scores], dtype=torch.float32)
    priors = priors[: given.shape[1]]
    defaults: dict[str, Any] = {"activation": "none", "background": False, "max_detections": 6}
    options = defaults | options
    return ops.detection_output(torch.zeros(1, len(priors), 4), given, priors, **options)


def rows(found: ops.Detections) -> list[tuple[int, int, float]]:
    """Prior, label and score of each detection."""
    prior = ((found.boxes[0, :, 0] + 0.05 - 0.1) / 0.2).round().long()
    together = zip(prior.tolist(), found.labels[0].tolist(), found.scores[0].tolist(), strict=True)
    return [(p, c, round(s, 4)) for p, c, s in together][: int(found.count)]


def test_the_first_column_is_a_class_without_a_background(backend: str) -> None:
    scores = [[0.9, 0.0], [0.2, 0.8]]
    assert rows(detect(scores)) == [(0, 1, 0.9), (1, 2, 0.8), (1, 1, 0.2)]
    assert rows(detect(scores, background=True)) == [(1, 1, 0.8)]
    each = detect(scores, per_class=True)
    assert each.boxes.shape == (1, 2, 6, 4) and each.count.tolist() == [[2, 1]]
    assert rows(detect([[0.9], [0.8]])) == [(0, 1, 0.9), (1, 1, 0.8)]


def test_the_sigmoid_of_each_logit_is_its_score(backend: str) -> None:
    logits = [[0.0, -200.0], [math.log(3), math.inf], [-math.inf, math.nan]]
    found = detect(logits, activation="sigmoid")
    assert rows(found) == [(1, 2, 1.0), (1, 1, 0.75), (0, 1, 0.5)]
    above = detect(logits, activation="sigmoid", score_threshold=0.5)
    assert rows(above) == [(1, 2, 1.0), (1, 1, 0.75)]


def test_the_best_of_each_level_over_all_classes(backend: str) -> None:
    scores = [[0.9, 0.8], [0.7, 0.6], [0.5, 0.1], [0.4, 0.3], [0.2, 0.02]]
    levels: Any = {"levels": (2, 2, 1), "top_k_per_level": 2, "score_threshold": 0.05}
    first = [(0, 1, 0.9), (0, 2, 0.8)]
    assert rows(detect(scores, **levels)) == [*first, (2, 1, 0.5), (3, 1, 0.4), (4, 1, 0.2)]
    one = detect(scores, top_k_per_level=3)  # a single level of all priors
    assert rows(one) == [*first, (1, 1, 0.7)]
    assert rows(detect(scores, **levels, top_k=1)) == first  # the best of each class


def test_equal_scores_of_a_level_are_taken_by_prior_and_then_by_class(backend: str) -> None:
    scores = [[0.1, 0.5], [0.5, 0.5], [0.5, 0.5]]
    found = detect(scores, top_k_per_level=4)
    assert rows(found) == [(0, 2, 0.5), (1, 1, 0.5), (1, 2, 0.5), (2, 1, 0.5)]


def test_one_suppression_for_all_classes(backend: str) -> None:
    scores = [[0.9, 0.8], [0.3, 0.6]]
    assert rows(detect(scores, class_agnostic=True)) == [(0, 1, 0.9), (1, 2, 0.6)]
    assert rows(detect(scores, class_agnostic=True, top_k=2)) == [(0, 1, 0.9)]
    # An IoU of 1 is not above 1: a prior is found as several classes.
    both = detect(scores, class_agnostic=True, nms_threshold=1.0, top_k=3)
    assert rows(both) == [(0, 1, 0.9), (0, 2, 0.8), (1, 2, 0.6)]


# --- arguments -----------------------------------------------------------------------------------

Wrong = tuple[dict[str, Any], str]
WRONG: list[Wrong] = [
    ({"activation": "relu"}, "activation: expected 'softmax' or 'sigmoid' or 'none', got 'relu'"),
    ({"activation": "sigmoid", "softmax": False}, "activation: expected 'none' or None beside"),
    ({"activation": "softmax", "softmax": False}, "activation: expected 'none' or None beside"),
    ({"levels": (2,), "top_k_per_level": 1}, "levels: expected .* the sum 3, .* got \\(2\\)"),
    ({"levels": [4, -1], "top_k_per_level": 1}, "levels: expected 1 to 32 ints from 0"),
    ({"levels": [0] * 32 + [3], "top_k_per_level": 1}, "levels: expected 1 to 32 ints"),
    ({"levels": [3]}, "top_k_per_level: expected an int, got NoneType"),
    ({"top_k_per_level": 0}, "top_k_per_level: expected 1 to "),
    ({"class_agnostic": True, "per_class": True}, "class_agnostic: expected False beside"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_contradictions_are_named(options: dict[str, Any], message: str) -> None:
    args = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), torch.ones(3, 4)
    with pytest.raises((TypeError, ValueError), match=f"^detection_output: {message}"):
        ops.detection_output(*args, **options)


def test_the_least_number_of_columns() -> None:
    args = torch.zeros(1, 3, 4), torch.zeros(1, 3, 1), torch.ones(3, 4)
    assert ops.detection_output(*args, background=False).count.shape == (1,)
    with pytest.raises(ValueError, match="logits: expected 2 classes or more, got 1"):
        ops.detection_output(*args)
    with pytest.raises(ValueError, match="logits: expected 1 class or more, got 0"):
        ops.detection_output(args[0], args[1][..., :0], args[2], background=False)


def test_the_older_flag_and_the_activation_say_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    args = torch.zeros(1, 9, 4), torch.rand(1, 9, 3, generator=generator), PRIORS.repeat(2, 1)[:9]

    def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
        results = (ops.detection_output(*args, **options) for options in (one, other))
        return all(map(torch.equal, *results))

    assert same({}, {"activation": "softmax"})
    assert same({"softmax": False}, {"activation": "none"})
    assert same({"softmax": False}, {"activation": "none", "softmax": False})
    assert not same({}, {"activation": "sigmoid"})


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "batch": lambda call, loc, logits, priors: torch.func.vmap(lambda a, b: call(a, b, priors)),
    "priors": lambda call, loc, logits, priors: torch.func.vmap(call, (0, 0, None)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_levels_under_vmap(name: str) -> None:
    loc, logits, anchors = head(0, 3, (3, 2), 1.0)
    args = torch.cat(loc)[None, None], torch.cat(logits)[None, None], torch.cat(anchors)

    def call(loc: Tensor, logits: Tensor, priors: Tensor) -> Any:
        return ops.detection_output(
            loc, logits, priors, activation="sigmoid", levels=(81, 36), top_k_per_level=5
        )

    mapped = TRANSFORMS[name](call, *args)
    got = mapped(*args[: 2 if name == "batch" else 3])
    want = call(args[0][0], args[1][0], args[2])
    assert int(want.count) > 0
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g[0], w)


def test_an_exported_program_keeps_the_levels() -> None:
    loc, logits, anchors = head(0, 3, (3, 2), 1.0)
    args = torch.cat(loc)[None], torch.cat(logits)[None], torch.cat(anchors)

    class Head(torch.nn.Module):
        def forward(self, loc: Tensor, logits: Tensor, priors: Tensor) -> tuple[Tensor, ...]:
            return tuple(
                ops.detection_output(
                    *(loc, logits, priors),
                    activation="sigmoid",
                    background=False,
                    levels=(81, 36),
                    top_k_per_level=5,
                    class_agnostic=True,
                )
            )

    program = torch.export.export(Head(), args)
    want = Head()(*args)
    assert int(want[3]) > 0
    for got, expected in zip(program.module()(*args), want, strict=True):
        assert torch.equal(got, expected)
