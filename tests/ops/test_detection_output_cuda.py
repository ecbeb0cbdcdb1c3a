"""The CUDA kernels of detection_output, run on the CPU, beyond what CASES cover."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdssd import ops
from mdssd.ops import _modules
from mdssd.testing import detection_inputs

simt = _modules.simt
pytestmark = pytest.mark.skipif(simt is None, reason="mdssd._simt is only in an editable install")


def launches(images: int, kind: str = "trained", priors: int = 300, **options: Any) -> int:
    generator = torch.Generator().manual_seed(0)
    args, _ = detection_inputs(generator, torch.float32, images, priors, 3, kind)
    before = simt.launch_count()
    with ops.backend("simt"):
        ops.detection_output(*args, **options)
    return simt.launch_count() - before


def test_launches_do_not_depend_on_the_batch_or_the_data() -> None:
    assert launches(1) == launches(7) == launches(3, "untrained")


def test_a_sample_is_taken_where_lists_could_overflow() -> None:
    # Launches: zero, bound, append, select, nms, best. With many priors also sample.
    assert launches(1, priors=2048) == 6
    assert launches(1, priors=2049) == launches(1, priors=20_000) == 7


@pytest.mark.parametrize("shift", [3.0, -3.0])
def test_a_sample_that_misleads(shift: float) -> None:
    """Only the sampled priors score high, or low, so too few or too many reach the bound."""
    count = 10_000
    sample = (count + 23) // 24
    i = torch.arange(sample + 1)
    first = i * count // sample
    jitter = (i[:-1] * 2654435761 % 2**32 >> 8) % (first[1:] - first[:-1])
    generator = torch.Generator().manual_seed(0)
    (loc, logits, priors), _ = detection_inputs(generator, torch.float32, 1, count, 3, "untrained")
    logits[:, first[:-1] + jitter, 1] += shift
    agree_with_reference(loc, logits, priors)


def test_a_bound_of_few_candidates() -> None:
    """The candidates are all in the sample: more than its rank, but fewer than top_k."""
    generator = torch.Generator().manual_seed(0)
    (loc, logits, priors), _ = detection_inputs(generator, torch.float32, 1, 2400, 2, "untrained")
    logits[..., 0] += 20
    i = torch.arange(100)  # positions in the sample
    logits[:, 24 * i + (i * 2654435761 % 2**32 >> 8) % 24, 1] += 20
    agree_with_reference(loc, logits, priors)


def agree_with_reference(*args: torch.Tensor) -> None:
    with ops.backend("simt"):
        got = ops.detection_output(*args, max_detections=400)
    with ops.backend("reference"):
        want = ops.detection_output(*args, max_detections=400)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("argument", ["top_k", "max_detections"])
def test_limits_of_the_kernels_are_named(argument: str) -> None:
    args = (torch.zeros(1, 1025, 4), torch.zeros(1, 1025, 3), torch.ones(1025, 4))
    message = rf"detection_output: {argument}: expected at most 1024 on a GPU .* got 1025"
    with ops.backend("simt"), pytest.raises(ValueError, match=message):
        ops.detection_output(*args, **{argument: 1025})


def test_more_logits_than_a_key_can_hold_are_named() -> None:
    count = 2**16
    logits = torch.zeros(1).expand(1, count, 2**16)
    args = (torch.zeros(1, count, 4), logits, torch.ones(count, 4))
    with ops.backend("simt"), pytest.raises(ValueError, match="fewer than 2.32 logits per image"):
        ops.detection_output(*args)


def test_top_k_beyond_the_priors_is_no_limit() -> None:
    generator = torch.Generator().manual_seed(0)
    args, _ = detection_inputs(generator, torch.float32, 1, 50, 3, "untrained")
    with ops.backend("simt"):
        got = ops.detection_output(*args, top_k=10**6)
    with ops.backend("reference"):
        want = ops.detection_output(*args, top_k=10**6)
    torch.testing.assert_close(got, want)


def test_logits_of_another_dtype() -> None:
    generator = torch.Generator().manual_seed(0)
    (loc, logits, priors), _ = detection_inputs(generator, torch.float32, 2, 300, 5)
    with ops.backend("simt"):
        got = ops.detection_output(loc, logits.half(), priors)
    with ops.backend("reference"):
        want = ops.detection_output(loc, logits.half(), priors)
    torch.testing.assert_close(got, want)
