"""The CUDA kernels of `merge_boxes`, run on the CPU: launches, memory, and what one warp shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mdssd import ops
from mdssd.ops import _modules
from mdssd.ops._settings import METHODS, MergeBoxesSettings
from mdssd.testing import random_boxes

SETTINGS = MergeBoxesSettings(0.5, METHODS.index("nmm"), False, 1)


@pytest.fixture
def simt() -> Iterator[Any]:
    if _modules.simt is None:
        pytest.skip("mdssd._simt is not built: only a development install has it")
    with ops.backend("simt"):
        yield _modules.simt


def merged(backend: str, *args: Any, **settings: Any) -> Any:
    with ops.backend(backend):
        return ops.merge_boxes_padded(*args, **settings)


@pytest.mark.parametrize("count", [1, 100, 2049])
def test_launches_follow_from_the_number_of_boxes(simt: Any, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for method in METHODS:
        launches = []
        for boxes in (torch.zeros(count, 4), random_boxes(generator, count).float()):
            args = (boxes, torch.arange(count).float(), torch.zeros(count).long())
            before = simt.launch_count()
            ops.merge_boxes_padded(*args, method=method, threshold=0.5)
            launches.append(simt.launch_count() - before)
        # As in nms: one launch gathers, and each chunk of 2048 has three, the last only two.
        nms = 3 * -(-count // 2048)
        want = {"nms": nms, "greedy_nmm": nms + 2, "nmm": 2, "wbf": 1}
        assert launches == [want[method]] * 2


# A box that grows with each of its members, in steps of a warp of 32, and one that does not grow.
@pytest.mark.parametrize("method", ["greedy_nmm", "nmm"])
@pytest.mark.parametrize("count", [31, 32, 33, 64, 65, 300])
def test_many_members_of_one_box(simt: Any, count: int, method: str) -> None:
    step = torch.arange(count).float()
    boxes = torch.stack([-step, torch.zeros(count), 100 + step, torch.full((count,), 10.0)], 1)
    boxes = torch.cat([boxes, boxes.flip(0) + torch.tensor([1000.0, 0.0, 1000.0, 0.0])])
    args = (boxes, 1 - torch.arange(2 * count) / (2 * count), torch.zeros(2 * count).long())
    settings = {"method": method, "metric": "ios", "threshold": 0.9}
    got, want = merged("simt", *args, **settings), merged("reference", *args, **settings)
    assert int(got.count) == 2
    left, right = 1.0 - count, 99.0 + count
    assert got.boxes[:2].tolist() == [[left, 0, right, 10], [1000 + left, 0, 1000 + right, 10]]
    torch.testing.assert_close(tuple(got), tuple(want), rtol=0, atol=0)


# More fused boxes than a block has threads; many boxes of one fused box.
@pytest.mark.parametrize("distance", [0.0, 3.0, 20.0])
def test_many_fused_boxes_of_one_group(simt: Any, distance: float) -> None:
    left = distance * torch.arange(300).float()
    boxes = torch.stack([left, torch.zeros(300), left + 10, torch.full((300,), 10.0)], 1)
    args = (boxes, torch.arange(300, 0, -1) / 300, torch.zeros(300).long())
    settings = {"method": "wbf", "threshold": 0.5}
    got, want = merged("simt", *args, **settings), merged("reference", *args, **settings)
    assert int(got.count) == {0.0: 1, 3.0: 150, 20.0: 300}[distance]
    torch.testing.assert_close(tuple(got), tuple(want), rtol=0, atol=0)


def test_of_two_fused_boxes_that_overlap_as_much_the_first_takes_a_box(simt: Any) -> None:
    left = torch.tensor([[0.0, 20.0, 40.0, 10.0]])
    boxes = torch.cat([left, torch.zeros(1, 4), left + 20, torch.full((1, 4), 10.0)]).T
    args = (boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4).long())
    settings = {"method": "wbf", "threshold": 0.3}
    got, want = merged("simt", *args, **settings), merged("reference", *args, **settings)
    assert sorted(got.boxes[:3, 0].tolist()) == [4.0, 20.0, 40.0]
    torch.testing.assert_close(tuple(got), tuple(want), rtol=0, atol=0)


def test_a_parent_is_one_of_the_candidates_of_the_box(simt: Any) -> None:
    boxes = torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 10], [0, 0, 10, 10]])
    candidates, begin, end = (torch.tensor(row) for row in ([0, 2, 1], [0, 0, 0], [0, 1, 3]))
    parents = torch.full((3,), -1)
    simt.merge_parents_cuda(boxes, candidates, begin, end, 3, SETTINGS, parents, 0, 0)
    assert parents.tolist() == [0, 1, 2]


def test_workspace_grows_with_the_boxes(simt: Any) -> None:
    sizes = [simt.merge_fused_workspace(n, 0) for n in (10_000, 110_000, 1_110_000)]
    per_box = [(b - a) / n for a, b, n in zip(sizes, sizes[1:], (1e5, 1e6), strict=False)]
    assert all(55 < value < 57 for value in per_box)


def test_too_many_boxes_are_refused_by_name(simt: Any) -> None:
    with pytest.raises(ValueError, match=r"merge_boxes: more than 2\^31 - 1 boxes"):
        simt.merge_parents_cuda(0, 0, 0, 0, 2**31, SETTINGS, 0, 0, 0)
    with pytest.raises(ValueError, match=r"merge_boxes: more than 2\^31 - 1 boxes"):
        simt.merge_members_cuda(0, 0, 0, 2**31, SETTINGS, 0, 0, 0)
    with pytest.raises(ValueError, match=r"merge_boxes: more than 2\^31 - 1 boxes"):
        simt.merge_fused_cuda(0, 0, 0, 2**31, SETTINGS, 0, 0, 0, 0, 0, 0)
