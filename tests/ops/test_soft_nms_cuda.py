"""The CUDA kernel of `soft_nms`, run on the CPU: launches, registers and memory, many boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mdssd import ops
from mdssd.ops import _modules
from mdssd.ops._settings import SoftNmsSettings
from mdssd.testing import random_boxes

SETTINGS = SoftNmsSettings(False, 0.3, 0.5, 0.001, None)


@pytest.fixture
def simt() -> Iterator[Any]:
    if _modules.simt is None:
        pytest.skip("mdssd._simt is not built: only a development install has it")
    with ops.backend("simt"):
        yield _modules.simt


def softened(backend: str, *args: Any, **settings: Any) -> Any:
    with ops.backend(backend):
        return ops.soft_nms_padded(*args, **settings)


@pytest.mark.parametrize("labels", [None, torch.arange(40) % 3])
def test_one_launch(simt: Any, labels: torch.Tensor | None) -> None:
    for boxes in (torch.zeros(40, 4), torch.rand(40, 4).sort(-1).values):
        before = simt.launch_count()
        ops.soft_nms_padded(boxes, torch.rand(40), labels)
        assert simt.launch_count() - before == 1


# As many boxes as threads, as boxes in registers, and one more than each.
@pytest.mark.parametrize("count", [31, 32, 33, 256, 257, 1024, 1025])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_boxes_in_registers_and_in_memory(simt: Any, count: int, method: str) -> None:
    generator = torch.Generator().manual_seed(count)
    boxes = random_boxes(generator, count).float()
    scores = torch.rand(count, generator=generator)
    settings = {"method": method, "max_detections": 3}
    got, want = (softened(b, boxes, scores, **settings) for b in ("simt", "cpp"))
    torch.testing.assert_close(tuple(got), tuple(want), rtol=0, atol=0)


def test_labels_in_registers_and_in_memory(simt: Any) -> None:
    """The labels of a call have 3, 1,100 and 20 boxes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([7] * 3 + [-1] * 1100 + [9] * 20)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    boxes = random_boxes(generator, len(labels)).float()
    scores = torch.rand(len(labels), generator=generator)
    got, want = (softened(b, boxes, scores, labels, max_detections=9) for b in ("simt", "cpp"))
    torch.testing.assert_close(tuple(got), tuple(want), rtol=0, atol=0)


def test_too_many_boxes_are_refused_by_name(simt: Any) -> None:
    with pytest.raises(ValueError, match=r"soft_nms: more than 2\^31 - 1 boxes"):
        simt.soft_nms_cuda(0, 0, 0, 2**31, SETTINGS, 0, 0, 0, 0)
