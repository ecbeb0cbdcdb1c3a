"""sigmoid_focal_loss and box_loss against the published formulas, written out here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mdssd import ops

INF, NAN = math.inf, math.nan


def focal_formula(
    logits: Tensor, labels: Tensor, alpha: float | None, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return each image's loss and positives, with one-hot targets, as torchvision does."""
    classes = logits.shape[2]
    targets = F.one_hot(labels.clamp(min=0), classes + 1)[..., 1:].to(logits)
    p = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = entropy * (1 - p_t) ** gamma
    if alpha is not None:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss[...].mul(labels[..., None] != -1).sum((1, 2)), (labels > 0).sum(1)


def reduced(losses: Tensor, positives: Tensor, reduction: str) -> Tensor:
    if reduction == "image":
        return (losses / positives.clamp(min=1)).mean()
    return losses.sum() / (positives.sum().clamp(min=1) if reduction == "batch" else 1)


def labels_of(images: int, priors: int, classes: int) -> Tensor:
    labels = torch.randint(-1, classes + 1, (images, priors))
    labels[torch.rand(images, priors) < 0.6] = 0
    return labels


def assert_same(got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reduction", ["batch", "image", "sum"])
@pytest.mark.parametrize(
    ("alpha", "gamma"), [(0.25, 2.0), (0.25, 0.0), (0.9, 1.0), (None, 2.0), (0.0, 0.5), (1.0, 3.7)]
)
def test_focal_loss_is_the_published_one(
    backend: str, alpha: float | None, gamma: float, reduction: str
) -> None:
    torch.manual_seed(0)
    logits = (4 * torch.randn(3, 31, 6, dtype=torch.float64)).requires_grad_()
    labels = labels_of(3, 31, 6)
    got = ops.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma, reduction=reduction)
    want = reduced(*focal_formula(logits, labels, alpha, gamma), reduction)
    assert_same(got, want)
    assert_same(*(torch.autograd.grad(loss, logits)[0] for loss in (got, want)))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_loss_of_infinite_logits(backend: str, gamma: float, dtype: torch.dtype) -> None:
    """The right sign gives 0, the wrong one infinity; the slope is that of the cross-entropy."""
    logits = torch.tensor([[[-INF, INF], [-INF, INF]]], dtype=dtype)
    for labels, want, slope in (
        ([2, -1], 0.0, [[0, 0], [0, 0]]),
        ([1, -1], INF, [[-0.25, 0.75], [0, 0]]),
        ([0, 2], INF, [[0, 0.75], [0, 0]]),
    ):
        x = logits.clone().requires_grad_()
        loss = ops.sigmoid_focal_loss(x, torch.tensor([labels]), gamma=gamma)
        loss.backward()
        assert loss == want and x.grad.tolist() == [slope]
    x = torch.full((1, 1, 1), NAN, dtype=dtype, requires_grad=True)
    loss = ops.sigmoid_focal_loss(x, torch.tensor([[0]]), gamma=gamma)
    loss.backward()
    assert loss.isnan() and x.grad.isnan().all()


def test_focal_loss_of_easy_entries_keeps_its_digits(backend: str) -> None:
    """Where 1 + e^-x is 1 in float32, the logarithm must not be 0."""
    logits = torch.full((1, 1, 1), -20.0)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([[0]]), alpha=None, gamma=0.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-5)


def test_ignored_priors_do_not_count_in_the_focal_loss(backend: str) -> None:
    logits = torch.randn(1, 40, 5)
    labels = labels_of(1, 40, 5)
    labels[0, ::3] = -1
    kept = labels[0] != -1
    alone = ops.sigmoid_focal_loss(logits[:, kept], labels[:, kept])
    logits[:, ~kept] = NAN
    logits.requires_grad_()
    loss = ops.sigmoid_focal_loss(logits, labels)
    loss.backward()
    assert_same(loss.detach(), alone, 1e-5)
    assert not logits.grad[:, ~kept].any()


@pytest.mark.parametrize("label", [-2, 4, 2**40, -(2**63), 2**63 - 1])
def test_a_label_that_is_no_class(backend: str, label: int) -> None:
    logits = torch.zeros(2, 70, 3, requires_grad=True)
    labels = torch.zeros(2, 70, dtype=torch.int64)
    labels[1, 69] = label
    if backend in ("reference", "cpp"):
        with pytest.raises(ValueError, match=r"sigmoid_focal_loss: labels\[1, 69\]: expected -1"):
            ops.sigmoid_focal_loss(logits, labels)
        return
    loss = ops.sigmoid_focal_loss(logits, labels)  # a kernel cannot raise
    loss.backward()
    assert loss.isnan() and logits.grad.isnan().sum() == logits.grad[1, 69].isnan().sum() == 3


# --- box_loss ----------------------------------------------------------------------------------


def box_formula(a: Tensor, b: Tensor, kind: str, constant: float, eps: float) -> Tensor:
    """The loss of pairs of corners [n, 4], from the papers and torchvision's description."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.unbind(1), b.unbind(1)
    aw, ah, bw, bh = ax2 - ax1, ay2 - ay1, bx2 - bx1, by2 - by1
    centres = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2
    if kind == "nwd":
        return 1 - torch.exp(-(centres + ((aw - bw) ** 2 + (ah - bh) ** 2) / 4).sqrt() / constant)
    width = (torch.min(ax2, bx2) - torch.max(ax1, bx1)).clamp(min=0)
    height = (torch.min(ay2, by2) - torch.max(ay1, by1)).clamp(min=0)
    union = aw * ah + bw * bh - width * height
    iou = width * height / (union + eps)
    wide = torch.max(ax2, bx2) - torch.min(ax1, bx1)
    high = torch.max(ay2, by2) - torch.min(ay1, by1)
    if kind == "giou":
        return 1 - iou + (wide * high - union) / (wide * high + eps)
    loss = 1 - iou + centres / (wide**2 + high**2 + eps)
    if kind == "ciou":
        v = 4 / math.pi**2 * (torch.atan(bw / bh) - torch.atan(aw / ah)) ** 2
        loss = loss + (v / (1 - iou + v + eps)).detach() * v
    return loss


def box_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    loc = 2 * torch.randn(3, 40, 4, dtype=dtype)
    targets = loc + torch.randn(3, 40, 4, dtype=dtype)
    priors = torch.rand(40, 4, dtype=dtype) * 0.5 + 0.05
    labels = labels_of(3, 40, 5)
    labels[1] = 0
    return loc, targets, labels, priors


@pytest.mark.parametrize("reduction", ["batch", "image", "sum"])
@pytest.mark.parametrize("eps", [1e-12, 1e-7, 1e-2])
@pytest.mark.parametrize("kind", ["giou", "diou", "ciou", "nwd"])
def test_box_loss_is_the_published_one(backend: str, kind: str, eps: float, reduction: str) -> None:
    loc, targets, labels, priors = box_inputs()
    loc.requires_grad_()
    got = ops.box_loss(
        loc, targets, labels, priors, kind=kind, eps=eps, nwd_constant=0.3, reduction=reduction
    )
    losses = []
    for image in range(3):
        a, b = (ops.decode_boxes(x[image], priors) for x in (loc, targets))
        of_priors = box_formula(a, b, kind, 0.3, eps)
        losses.append(of_priors[labels[image] > 0].sum())
    want = reduced(torch.stack(losses), (labels > 0).sum(1), reduction)
    assert_same(got, want)
    assert_same(*(torch.autograd.grad(loss, loc)[0] for loss in (got, want)))


def test_box_losses_by_hand(backend: str) -> None:
    """A box of 2 x 2 beside one of 2 x 2, 3 to the right: the hull is 5 x 2, the diagonal 29."""
    priors = torch.tensor([[10.0, 20.0, 2.0, 2.0]])
    loc, targets = torch.tensor([[[15.0, 0.0, 0.0, 0.0]]]), torch.zeros(1, 1, 4)
    values = {"giou": 1 + 2 / 10, "diou": 1 + 9 / 29, "ciou": 1 + 9 / 29, "nwd": 1 - math.exp(-1.5)}
    for kind, want in values.items():
        got = ops.box_loss(loc, targets, torch.tensor([[7]]), priors, kind=kind, nwd_constant=2.0)
        assert got.item() == pytest.approx(want, rel=1e-5)
    # 4 x 1 beside 2 x 2 around the same centre: IoU 2 / 6, v from the angles atan(4) and atan(1).
    loc = torch.tensor([[[0.0, 0.0, math.log(2) / 0.2, -math.log(2) / 0.2]]])
    v = 4 / math.pi**2 * (math.atan(4) - math.atan(1)) ** 2
    got = ops.box_loss(loc, targets, torch.tensor([[7]]), priors, kind="ciou")
    assert got.item() == pytest.approx(2 / 3 + v * v / (2 / 3 + v), rel=1e-5)
    got = ops.box_loss(loc, targets, torch.tensor([[7]]), priors, kind="nwd", nwd_constant=5.0)
    assert got.item() == pytest.approx(1 - math.exp(-math.sqrt(1 + 0.25) / 5), rel=1e-5)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou", "nwd"])
def test_equal_boxes_have_no_loss_and_no_slope(backend: str, kind: str) -> None:
    loc, _, labels, priors = box_inputs(torch.float32)
    loc.requires_grad_()
    targets = loc.detach().clone()
    loss = ops.box_loss(loc, targets, labels, priors, kind=kind, nwd_constant=0.3)
    loss.backward()
    assert abs(loss.item()) < 1e-6 and loc.grad.abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou", "nwd"])
def test_boxes_without_area_have_finite_losses(backend: str, kind: str) -> None:
    labels, priors = torch.ones(1, 4).long(), torch.full((4, 4), 0.25)
    flat = torch.zeros(1, 4, 4)
    flat[0, 0, 2] = flat[0, 1, 3] = flat[0, 2, 2] = flat[0, 2, 3] = -INF
    whole = torch.zeros(1, 4, 4)
    for pair in ((flat, whole), (whole, flat), (flat, flat.clone())):
        loc = pair[0].clone().requires_grad_()
        loss = ops.box_loss(loc, pair[1], labels, priors, kind=kind, nwd_constant=0.3)
        loss.backward()
        assert 0 <= loss.item() < 3 and loc.grad.isfinite().all()


def test_only_positives_are_read(backend: str) -> None:
    loc, targets, labels, priors = box_inputs(torch.float32)
    want = ops.box_loss(loc, targets, labels, priors)
    loc[labels <= 0], targets[labels <= 0] = NAN, INF
    loc.requires_grad_()
    got = ops.box_loss(loc, targets, labels, priors)
    got.backward()
    assert_same(got.detach(), want, 0)
    assert not loc.grad[labels <= 0].any() and loc.grad[labels > 0].any(-1).all()


def test_small_boxes_keep_their_digits_far_from_the_origin(backend: str) -> None:
    """In float32 a box of 0.002 at 0.9 loses four digits of its size as corners."""
    priors = torch.tensor([[0.9, 0.9, 0.002, 0.002]])
    loc, targets = torch.tensor([[[1.0, -2.0, 0.5, 0.3]]]), torch.zeros(1, 1, 4)
    arguments = loc, targets, torch.tensor([[1]]), priors
    for kind in ("giou", "diou", "ciou"):
        a, b = (ops.decode_boxes(x[0].double(), priors.double()) for x in (loc, targets))
        want = box_formula(a, b, kind, 1.0, 0.0).item()
        assert ops.box_loss(*arguments, kind=kind).item() == pytest.approx(want, rel=1e-6)


def test_targets_of_the_matching_are_taken_as_they_are(backend: str) -> None:
    priors = torch.rand(60, 4) * 0.5 + 0.05
    boxes, labels = [torch.tensor([[0.1, 0.1, 0.5, 0.5]])], [torch.tensor([3])]
    targets = ops.encode_targets(boxes, labels, priors)
    loc = targets.loc.clone()
    assert abs(ops.box_loss(loc, targets.loc, targets.labels, priors).item()) < 1e-5
    logits = torch.full((1, 60, 3), -200.0)
    logits[0, :, 2] = torch.where(targets.labels[0] > 0, 200.0, -200.0)
    assert ops.sigmoid_focal_loss(logits, targets.labels) == 0


ONE = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), torch.zeros(1, 3).long(), torch.ones(3, 4)
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("box_loss", ONE, {"kind": "iou"}, ValueError, "kind: expected 'giou' or 'diou' or"),
    ("box_loss", ONE, {"kind": "nwd"}, ValueError, "nwd_constant: expected a number with kind"),
    ("box_loss", ONE, {"nwd_constant": 0.0}, ValueError, "nwd_constant: expected"),
    ("box_loss", ONE, {"eps": -1.0}, ValueError, "eps: expected 0.0 to 1.0"),
    ("box_loss", ONE, {"reduction": "mean"}, ValueError, "reduction: expected 'batch' or 'image'"),
    ("box_loss", (*ONE[:3], torch.ones(2, 4)), {}, ValueError, r"priors_cxcywh: .*\[3, 4\]"),
    ("sigmoid_focal_loss", ONE[:1] * 2, {}, ValueError, r"labels: expected shape \[1, 3\]"),
    ("sigmoid_focal_loss", (ONE[0], ONE[2]), {"alpha": 1.5}, ValueError, "alpha: expected 0.0 to"),
    ("sigmoid_focal_loss", (ONE[0], ONE[2]), {"gamma": -1}, ValueError, "gamma: expected 0.0 to"),
    ("sigmoid_focal_loss", (ONE[0][..., :0], ONE[2]), {}, ValueError, "expected 1 class or more"),
]


@pytest.mark.parametrize(("op", "args", "settings", "error", "message"), WRONG)
def test_wrong_input_is_named(
    op: str, args: Any, settings: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"{op}: .*{message}"):
        getattr(ops, op)(*args, **settings)
