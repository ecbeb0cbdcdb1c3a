"""detection_output's CUDA kernels, run on the CPU: what CASES do not say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdssd import ops
from mdssd.ops import _dispatch
from mdssd.testing import detection_inputs

simt = _dispatch.simt
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


def test_longer_keys_need_more_digits() -> None:
    # Ten for three digits: zero, append, select three times, histogram twice, collect, nms, best.
    assert launches(1, priors=20_000) == 10
    assert launches(1, priors=20_000, score_threshold=0.0) == 12


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
