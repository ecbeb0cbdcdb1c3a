"""The keyword arguments that reproduce other SSD code, against values worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops

# The second box has half the area of the first, so their IoU is exactly 0.5.
HALVES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5]])
HALVES_CXCYWH = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.5, 0.25, 1.0, 0.5]])


def scores_of(*foreground: float) -> Tensor:
    """Scores [1, N, 2] of the background and of one class."""
    scores = torch.tensor(foreground)
    return torch.stack([1 - scores, scores], -1)[None]


def detect(priors: Tensor, scores: Tensor, loc: Tensor | None = None, **options: Any) -> Any:
    loc = torch.zeros(scores.shape[0], len(priors), 4) if loc is None else loc
    return ops.detection_output(loc, scores, priors, softmax=False, **options)


# --- thresholds at equality --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "eps", "index"),
    [(0.5, 0.0, [0, 0]), (ops.just_above(0.5), 0.0, [0, -1]), (0.5, 1e-5, [0, -1])],
)
def test_a_match_at_exactly_the_threshold(
    backend: str, threshold: float, eps: float, index: list[int]
) -> None:
    settings: Any = {"iou_threshold": threshold, "iou_eps": eps}
    match = ops.match_priors([HALVES[:1]], HALVES_CXCYWH, **settings)
    assert match.index.tolist() == [index]
    assert match.iou[0, 1] == 0.5 / (torch.tensor(1.0) + eps)
    label = torch.tensor([7])
    targets = ops.encode_targets([HALVES[:1]], [label], HALVES_CXCYWH, **settings)
    assert targets.labels.tolist() == [[7 * (i + 1) for i in index]]


@pytest.mark.parametrize(
    ("threshold", "eps", "kept"),
    [(0.5, 0.0, 2), (ops.just_below(0.5), 0.0, 1), (ops.just_below(0.5), 1e-5, 2)],
)
def test_suppression_at_exactly_the_threshold(
    backend: str, threshold: float, eps: float, kept: int
) -> None:
    scores = torch.tensor([0.9, 0.8])
    idxs = torch.zeros(2, dtype=torch.int64)
    assert len(ops.nms(HALVES, scores, threshold, iou_eps=eps)) == kept
    assert len(ops.batched_nms(HALVES, scores, idxs, threshold, iou_eps=eps)) == kept
    assert ops.nms_padded(HALVES, scores, threshold, iou_eps=eps).count == kept
    found = detect(HALVES_CXCYWH, scores_of(0.9, 0.8), nms_threshold=threshold, iou_eps=eps)
    assert found.count.tolist() == [kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_of_a_threshold(dtype: torch.dtype) -> None:
    at = torch.tensor(0.45, dtype=dtype)
    above = torch.tensor(ops.just_above(0.45, dtype), dtype=dtype)
    below = torch.tensor(ops.just_below(0.45, dtype), dtype=dtype)
    assert below < at < above
    assert torch.nextafter(below, at) == at == torch.nextafter(above, at)
    # The threshold is rounded to the dtype first: the float64 after 0.45 is 0.45 in float32.
    assert ops.just_above(0.45) != math.nextafter(0.45, 1)


# --- matching ----------------------------------------------------------------------------------


def test_priors_as_corners_match_to_the_bit(backend: str) -> None:
    """Converting the corners to centres and back would round some of these."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, 2, generator=generator).sort(1).values.reshape(200, 4)
    match = ops.match_priors([corners[:9]], corners, priors_form="xyxy")
    assert match.iou.tolist() == [ops.box_iou(corners[:9], corners).amax(0).tolist()]
    assert match.index[0, :9].tolist() == list(range(9))


# --- detections --------------------------------------------------------------------------------


def test_scores_come_out_as_they_went_in(backend: str) -> None:
    scores = scores_of(0.3, 1.0, math.nan, 1.5, 0.01, 0.7)
    priors = torch.tensor([[0.1 + 0.15 * i, 0.5, 0.1, 0.1] for i in range(6)])
    found = detect(priors, scores, max_detections=4)
    assert found.count.tolist() == [3]  # 0.01 is not above the threshold
    assert found.scores[0].tolist() == [1.0, *torch.tensor([0.7, 0.3, 0.0]).tolist()]


def test_every_class_has_its_own_rows(backend: str) -> None:
    priors = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
    scores = torch.tensor([[[0.1, 0.5, 0.0, 0.4], [0.1, 0.6, 0.0, 0.3]]])
    found = detect(priors, scores, per_class=True, max_detections=1)
    assert found.boxes.shape == (1, 3, 1, 4)
    assert found.count.tolist() == [[1, 0, 1]]
    assert found.labels.tolist() == [[[1], [0], [3]]]
    torch.testing.assert_close(found.scores, torch.tensor([[[0.6], [0.0], [0.4]]]))
    torch.testing.assert_close(found.boxes[0, 0, 0], torch.tensor([0.6, 0.6, 0.8, 0.8]))
    torch.testing.assert_close(found.boxes[0, 2, 0], torch.tensor([0.1, 0.1, 0.3, 0.3]))


def test_boxes_are_clipped_before_suppression(backend: str) -> None:
    """Clipped to the image the two boxes are equal; before, their IoU is a third."""
    priors = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.5, 1.0, 1.0, 2.0]])
    scores = scores_of(0.9, 0.8)
    assert detect(priors, scores, nms_threshold=0.6).count.tolist() == [2]
    found = detect(priors, scores, nms_threshold=0.6, clip=(1.0, 1.0))
    assert found.count.tolist() == [1]
    assert found.boxes[0, 0].tolist() == [0, 0, 1, 1]


def test_a_box_grows_no_further_than_the_limit(backend: str) -> None:
    loc = torch.tensor([[[0.0, 0.0, 50.0, -50.0]]])
    priors = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    found = detect(priors, scores_of(0.9), loc, max_log_scale=math.log(4))
    half_w, half_h = 0.25 * 4, 0.25 * math.exp(-10)
    want = [0.5 - half_w, 0.5 - half_h, 0.5 + half_w, 0.5 + half_h]
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor(want))


def test_only_the_best_box_without_area_is_kept(backend: str) -> None:
    priors = torch.tensor([[0.2, 0.2, 0.1, 0.0], [0.5, 0.5, 0.1, 0.1], [0.8, 0.8, 0.0, 0.1]])
    scores = torch.tensor([[[0.1, 0.5, 0.4], [0.1, 0.6, 0.3], [0.1, 0.7, 0.2]]])
    assert detect(priors, scores).count.tolist() == [6]
    found = detect(priors, scores, keep_empty=False, per_class=True, max_detections=3)
    want = torch.tensor([[[0.7, 0.6, 0.0], [0.4, 0.3, 0.0]]])
    torch.testing.assert_close(found.scores, want)


# --- loss --------------------------------------------------------------------------------------


def test_the_mean_over_images_is_that_of_single_images(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    loc, targets = torch.randn(2, 3, 40, 4, generator=generator)
    logits = torch.randn(3, 40, 5, generator=generator)
    labels = torch.randint(1, 5, (3, 40), generator=generator)
    labels[0, 1:], labels[1], labels[2, 7:] = 0, 0, 0
    loc.requires_grad_()
    logits.requires_grad_()

    def gradients(losses: tuple[Tensor, Tensor]) -> list[Tensor]:
        grads = torch.autograd.grad(losses[0] + 2 * losses[1], [loc, logits])
        return [*losses, *grads]

    each = [
        ops.multibox_loss(*(x[i : i + 1] for x in (loc, logits, targets, labels))) for i in range(3)
    ]
    want = gradients((sum(e[0] for e in each) / 3, sum(e[1] for e in each) / 3))
    got = gradients(ops.multibox_loss(loc, logits, targets, labels, reduction="image"))
    assert want[0] > 0.1
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)


# --- errors ------------------------------------------------------------------------------------

MATCH = ([HALVES], HALVES_CXCYWH)
DETECT = (torch.zeros(1, 2, 4), torch.zeros(1, 2, 3), HALVES_CXCYWH)
LOSS = (*DETECT[:2], torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64))
WRONG = [
    ("match_priors", MATCH, {"iou_eps": -1.0}, ValueError, "iou_eps: expected 0.0 to "),
    ("match_priors", MATCH, {"priors_form": "ltrb"}, ValueError, "priors_form: .*got 'ltrb'"),
    ("nms", (HALVES, torch.ones(2), 0.5), {"iou_eps": "1"}, TypeError, "iou_eps: .*got str"),
    ("detection_output", DETECT, {"softmax": 1}, TypeError, "softmax: .*got int"),
    ("detection_output", DETECT, {"per_class": None}, TypeError, "per_class: .*got NoneType"),
    ("detection_output", DETECT, {"keep_empty": 0}, TypeError, "keep_empty: .*got int"),
    ("detection_output", DETECT, {"clip": 1.0}, ValueError, r"clip: expected \(width, height\)"),
    ("detection_output", DETECT, {"clip": (1.0, -1.0)}, ValueError, "clip: .*got -1.0"),
    ("detection_output", DETECT, {"max_log_scale": "4"}, TypeError, "max_log_scale: .*got str"),
    ("multibox_loss", LOSS, {"reduction": "mean"}, ValueError, "reduction: .*got 'mean'"),
]


@pytest.mark.parametrize(("op", "args", "kwargs", "error", "message"), WRONG)
def test_a_wrong_variant_is_named(
    op: str, args: Any, kwargs: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=f"^{op}: {message}"):
        getattr(ops, op)(*args, **kwargs)
