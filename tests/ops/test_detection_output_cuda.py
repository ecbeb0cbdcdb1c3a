"""The CUDA kernels of detection_output, run on the CPU, beyond what CASES cover."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdssd import ops
from mdssd.ops import _modules
from mdssd.testing import _spread, detection_inputs

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
    _spread(logits, 400, sigmoid=False, background=True)  # so that all rank the scores alike
    agree_with_reference(loc, logits, priors)


def test_a_bound_of_few_candidates() -> None:
    """The candidates are all in the sample: more than its rank, but fewer than top_k."""
    generator = torch.Generator().manual_seed(0)
    (loc, logits, priors), _ = detection_inputs(generator, torch.float32, 1, 2400, 2, "untrained")
    logits[..., 0] += 20
    i = torch.arange(100)  # positions in the sample
    logits[:, 24 * i + (i * 2654435761 % 2**32 >> 8) % 24, 1] += 20
    _spread(logits, 400, sigmoid=False, background=True)
    agree_with_reference(loc, logits, priors)


def agree_with_reference(*args: torch.Tensor, **options: Any) -> None:
    with ops.backend("simt"):
        got = ops.detection_output(*args, max_detections=400, **options)
    with ops.backend("reference"):
        want = ops.detection_output(*args, max_detections=400, **options)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("backend", "top_k", "max_detections"),
    [("simt", 1025, 1000), ("simt", 900, 1025), ("triton", 1025, 1025)],
)
def test_limits_above_those_of_the_fast_kernels(
    backend: str, top_k: int, max_detections: int
) -> None:
    """Above 1,024, other kernels run, or the same ones with longer lists."""
    if backend not in ops.backends()["detection_output"]:
        pytest.skip(f"no backend {backend} here")
    generator = torch.Generator().manual_seed(0)
    args, _ = detection_inputs(generator, torch.float32, 1, 1100, 3, "untrained")
    args = (args[0], args[1][..., 1:], args[2])
    options: dict[str, Any] = {"top_k": top_k, "max_detections": max_detections}
    options |= {"score_threshold": 0.0, "nms_threshold": 0.99}
    with ops.backend(backend):
        got = ops.detection_output(*args, **options)
    with ops.backend("reference"):
        want = ops.detection_output(*args, **options)
    assert int(want.count) > 850
    torch.testing.assert_close(got, want)


def test_launches_of_the_wide_way_depend_on_nothing() -> None:
    wide = {"top_k": 1025, "max_detections": 1025}
    many = launches(1, priors=3000, **wide)
    assert many == launches(4, "untrained", 3000, **wide) == launches(2, "alike", 3000, **wide)
    # Four that zero, a scan and a digit at a time, the last scan, and four kernels more. A key has
    # 26 bits of a score above 0.01 and 13 of an index.
    assert many == 4 + 2 * 4 + 1 + 4


def test_equal_scores_need_all_digits_of_their_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    args, _ = detection_inputs(generator, torch.float32, 2, 3001, 4, "alike")
    agree_with_reference(*args, top_k=1100)
    agree_with_reference(*args, levels=(2000, 1000, 1), top_k_per_level=37)


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
