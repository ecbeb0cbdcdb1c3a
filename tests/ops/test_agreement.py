"""How far `detection_output` agrees between the C++ backend and the reference.

Given the scores, everything else is the same to the bit. The softmax is not: each backend has its
own exponential and its own order of the sum. So two scores that differ by a few units in the last
place may change places, and one of them may be chosen instead of the other where a threshold or a
limit lies between them.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mdssd import ops

ON_CPU = [name for name in ("reference", "cpp", "simt") if name in ops.backends()["nms"]]
ULPS = 8  # a few roundings of exponentials, of a sum of up to 21 terms and of a quotient


def random_call(seed: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Logits whose scores often lie within an ulp, priors, and settings.

    The offsets of the sizes are 0, so that the boxes of all backends are the same to the bit: e^0
    is 1.
    """
    generator = Generator().manual_seed(seed)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    images, num_priors, classes = 1 + below(2), 1 + below(200), 2 + below(20)
    loc = torch.randn(images, num_priors, 4, generator=generator)
    loc[..., 2:] = 0
    spread = (1e-6, 1e-3, 1.0, 30.0)[below(4)]
    logits = spread * torch.randn(images, num_priors, classes, generator=generator)
    centre = torch.rand(num_priors, 2, generator=generator)
    size = 0.05 + 0.4 * torch.rand(num_priors, 2, generator=generator)
    settings = {
        "score_threshold": (0.0, 0.01, 0.2)[below(3)],
        "nms_threshold": (0.0, 0.45, 1.0)[below(3)],
        "top_k": 1 + below(200),
        "max_detections": 1 + below(200),
        "per_class": bool(below(2)),
        "keep_empty": bool(below(2)),
        "iou_eps": (0.0, 1e-5)[below(2)],
        "clip": (None, (1.0, 1.0))[below(2)],
    }
    return loc, logits, torch.cat([centre, size], 1), settings


def scores_of(backend: str, logits: Tensor) -> Tensor:
    """The softmax of a backend, read from detections that are far apart: [B, N, C], 0 for class 0.

    A prior is known by the place of its box.
    """
    images, num_priors, classes = logits.shape
    priors = torch.full((num_priors, 4), 0.5)
    priors[:, 0] = torch.arange(num_priors)
    with ops.backend(backend):
        found = ops.detection_output(
            torch.zeros(images, num_priors, 4),
            logits,
            priors,
            score_threshold=0.0,
            nms_threshold=1.0,
            top_k=num_priors,
            max_detections=num_priors,
            per_class=True,
        )
    prior = (found.boxes[..., 0] + 0.25).round().long()
    rows = torch.arange(num_priors) < found.count[..., None]
    scores = torch.zeros(images, classes, num_priors)
    # Rows beyond the count would write to prior 0.
    image, label, row = rows.nonzero().unbind(1)
    scores[image, label + 1, prior[image, label, row]] = found.scores[image, label, row]
    return scores.transpose(1, 2).contiguous()


@pytest.mark.parametrize("seed", range(30))
def test_given_the_scores_all_is_the_same_to_the_bit(seed: int) -> None:
    loc, logits, priors, settings = random_call(seed)
    scores = scores_of("cpp", logits)
    with ops.backend("reference"):
        want = ops.detection_output(loc, scores, priors, softmax=False, **settings)
    with ops.backend("cpp"):
        torch.testing.assert_close(
            ops.detection_output(loc, scores, priors, softmax=False, **settings),
            want,
            rtol=0,
            atol=0,
        )
        got = ops.detection_output(loc, logits, priors, **settings)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("seed", range(10))
def test_scores_lie_within_ulps_of_the_exact_softmax(backend: str, seed: int) -> None:
    _, logits, _, _ = random_call(seed)
    # The difference from the largest logit is rounded to float32, by every backend alike.
    exact = (logits - logits.amax(-1, keepdim=True)).double().softmax(-1)
    exact[..., 0] = 0
    ulp = 2.0 ** (exact.clamp(min=2.0**-126).log2().floor() - 23)
    # Scores up to 1e-37 yield nothing, on any backend.
    error = torch.where(exact > 1.1e-37, (scores_of(backend, logits) - exact).abs() / ulp, 0)
    assert error.max() <= ULPS


@pytest.mark.parametrize("backend", ops.backends()["detection_output"])
def test_a_threshold_of_0_means_above_1e_37(backend: str) -> None:
    # The scores of class 1 are e^-85, e^-86 and so on; e^-85.19 is 1e-37.
    logits = torch.zeros(1, 25, 2)
    logits[0, :, 1] = -80 - torch.arange(25.0) / 2
    priors = torch.full((25, 4), 0.5)
    priors[:, 0] = torch.arange(25)
    with ops.backend(backend):
        found = ops.detection_output(torch.zeros(1, 25, 4), logits, priors, score_threshold=0.0)
        assert found.count.tolist() == [11]
        given = logits.softmax(-1)
        found = ops.detection_output(
            torch.zeros(1, 25, 4), given, priors, score_threshold=0.0, softmax=False
        )
        assert found.count.tolist() == [11]
    assert math.exp(-85.0) > 1e-37 > math.exp(-85.5)
