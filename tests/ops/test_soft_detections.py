"""`detection_output` with soft-NMS: the same as its steps, one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.testing import random_priors

BACKENDS = [b for b in ops.backends()["detection_output"] if b not in ("cuda", "triton")]


def steps(
    scores: Tensor, priors: Tensor, top_k: int, most: int, agnostic: bool, **settings: Any
) -> tuple[Tensor, ...]:
    """Select, soften and select again: boxes, scores and labels of one image [N, F]."""
    columns = scores.shape[1]
    passes = (scores > 0.05).flatten()
    chosen = torch.zeros_like(passes)
    groups = (
        [torch.arange(len(passes))] if agnostic else torch.arange(len(passes)).view(-1, columns).T
    )
    for group in groups:
        group = group[passes[group]]
        order = scores.flatten()[group].argsort(descending=True, stable=True)
        chosen[group[order[:top_k]]] = True
    index = chosen.nonzero()[:, 0]
    prior, label = index // columns, index % columns
    half = priors[:, 2:] * 0.5
    boxes = torch.cat([priors[:, :2] - half, priors[:, :2] + half], 1)[prior]
    keep, found = ops.soft_nms(
        boxes,
        scores.flatten()[index],
        None if agnostic else label,
        score_threshold=ops.just_above(0.05),
        max_detections=most,
        **settings,
    )
    return boxes[keep], found, label[keep] + 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_as_its_steps(backend: str, method: str, agnostic: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    priors = random_priors(generator, 60)
    scores = (torch.rand(2, 60, 3, generator=generator) * 40).round() / 40  # with ties
    with ops.backend(backend):
        found = ops.detection_output(
            torch.zeros(2, 60, 4),
            scores,
            priors,
            activation="none",
            background=False,
            score_threshold=0.05,
            nms_threshold=0.2,
            top_k=14,
            max_detections=30,
            suppression=f"soft_{method}",
            soft_sigma=0.3,
            class_agnostic=agnostic,
        )
    for i in range(2):
        rows = found.count[i]
        settings = {"iou_threshold": 0.2, "sigma": 0.3, "method": method}
        want = steps(scores[i], priors, 14, 30, agnostic, **settings)
        got = found.boxes[i, :rows], found.scores[i, :rows], found.labels[i, :rows]
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert not found.scores[i, rows:].any() and not found.boxes[i, rows:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    """The second box has IoU 1/2 with the first, so that its score falls from 0.6 to 0.3."""
    priors = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.5, 0.25, 1.0, 0.5], [2.5, 2.5, 1.0, 1.0]])
    scores = torch.tensor([[[0.75, 0.0], [0.6, 0.5], [0.4, 0.0]]])

    def found(**settings: Any) -> ops.Detections:
        with ops.backend(backend):
            return ops.detection_output(
                torch.zeros(1, 3, 4),
                scores,
                priors,
                activation="none",
                background=False,
                suppression="soft_linear",
                **settings,
            )

    every = found()
    assert every.scores[0, :5].tolist() == pytest.approx([0.75, 0.5, 0.4, 0.3, 0])
    assert every.labels[0, :4].tolist() == [1, 2, 1, 1]
    assert found(score_threshold=0.3).count.tolist() == [3]  # above, not at least
    assert found(score_threshold=0.29).count.tolist() == [4]
    assert found(max_detections=2).scores[0].tolist() == [0.75, 0.5]
    assert found(nms_threshold=0.5).scores[0, :4].tolist() == pytest.approx([0.75, 0.6, 0.5, 0.4])
    per_class = found(per_class=True)
    assert per_class.count.tolist() == [[3, 1]]
    assert per_class.scores[0, 0, :3].tolist() == pytest.approx([0.75, 0.4, 0.3])
    agnostic = found(class_agnostic=True)  # the second box, as of the second class, falls to 0
    assert agnostic.scores[0, :4].tolist() == pytest.approx([0.75, 0.4, 0.3, 0])


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("suppression", ["soft_linear", "soft_gaussian"])
def test_many_candidates_of_a_class(backend: str, suppression: str) -> None:
    """More candidates than a block of a kernel keeps in registers."""
    generator = torch.Generator().manual_seed(5)
    priors = random_priors(generator, 1300)
    scores = torch.rand(1, 1300, 1, generator=generator)
    results = []
    for name in (backend, "reference"):
        with ops.backend(name):
            results.append(
                ops.detection_output(
                    torch.zeros(1, 1300, 4),
                    scores,
                    priors,
                    activation="none",
                    background=False,
                    top_k=1200,
                    max_detections=5,
                    suppression=suppression,
                )
            )
    torch.testing.assert_close(tuple(results[0]), tuple(results[1]), rtol=0, atol=0)


def test_wrong_settings_are_named() -> None:
    args = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), torch.ones(3, 4)
    with pytest.raises(ValueError, match="detection_output: suppression: expected 'nms' or 'soft"):
        ops.detection_output(*args, suppression="soft")
    with pytest.raises(ValueError, match="detection_output: soft_sigma: expected 1e-06 to 1000000"):
        ops.detection_output(*args, suppression="soft_gaussian", soft_sigma=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("suppression", ["nms", "soft_gaussian"])
def test_scores_that_are_not_dense(backend: str, suppression: str) -> None:
    scores = torch.tensor([[[0.75, 0.5], [0.25, 0.6]]])
    settings = {"activation": "none", "background": False, "top_k_per_level": 3}
    args = torch.zeros(1, 2, 4), torch.eye(2, 4) + 0.1
    with ops.backend(backend):
        found, want = (
            ops.detection_output(args[0], given, args[1], suppression=suppression, **settings)
            for given in (scores.mT.contiguous().mT, scores)
        )
    torch.testing.assert_close(tuple(found), tuple(want), rtol=0, atol=0)
    assert found.count.tolist() == [3]
