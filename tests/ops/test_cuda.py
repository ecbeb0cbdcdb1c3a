"""Tests that need a GPU: CUDA graphs, streams, devices and reproducible results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.testing import Case, to_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


@pytest.fixture(autouse=True, params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if not any(request.param in row for row in ops.backends().values()):
        pytest.skip(f"{request.param} is not available here")
    with ops.backend(request.param):
        yield request.param


def _pretended() -> bool:
    return torch.cuda.get_device_name() == "pretended GPU"


def sizes(case: Case) -> list[str]:
    """Names of the sizes to test: the one that fits no tile, and those of the benchmarks."""
    large = not _pretended()
    names = [n for n, s in case.sizes.items() if s.benchmark and large or n in ("odd", "ragged")]
    return [n for n in names if torch.float32 in case.sizes[n].dtypes]


def inputs(case: Case, size: str, seed: int, device: str = "cuda") -> tuple[list[Any], Any]:
    args, kwargs = case.inputs(size, torch.float32, device, seed)
    leaves = [
        arg.requires_grad_() if position in case.gradients else arg
        for position, arg in enumerate(args)
    ]
    return leaves, kwargs


def call(case: Case, args: list[Any], kwargs: Any) -> tuple[Tensor, ...]:
    """Return the results and the gradients of their sums. The form of a fixed size is called."""
    if case.op in ("nms", "batched_nms"):
        boxes, scores, *idxs, threshold = args
        return tuple(ops.nms_padded(boxes, scores, threshold, *idxs))
    if case.op == "soft_nms":
        return tuple(ops.soft_nms_padded(*args, **kwargs))
    if case.op == "merge_boxes":
        return tuple(ops.merge_boxes_padded(*args, **kwargs))
    results = case(*args, **kwargs)
    if not case.gradients:
        return results
    ones = [torch.ones_like(result) for result in results]
    leaves = [args[position] for position in case.gradients]
    return (*(r.detach() for r in results), *torch.autograd.grad(results, leaves, ones))


def flat(values: list[Any]) -> list[Tensor]:
    """Return the tensors among the arguments, including those in lists."""
    nested = [v if isinstance(v, list) else [v] for v in values]
    return [v for row in nested for v in row if isinstance(v, Tensor)]


def overwrite(args: list[Any], values: list[Any]) -> None:
    with torch.no_grad():
        for arg, value in zip(flat(args), flat(values), strict=True):
            arg.copy_(value)


def assert_same_bits(got: tuple[Tensor, ...], want: tuple[Tensor, ...], where: str) -> None:
    for position, (g, w) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(
            g.cpu(),
            w.cpu(),
            rtol=0,
            atol=0,
            equal_nan=True,
            msg=lambda m, p=position: f"{where}, result {p}: {m}",
        )


def test_a_cuda_graph_gives_the_results_of_eager(case: Case) -> None:
    """The graph is captured on one input and replayed on another."""
    for size in sizes(case):
        args, kwargs = inputs(case, size, seed=0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call(case, args, kwargs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = call(case, args, kwargs)
        for seed in (1, 0):
            values, _ = inputs(case, size, seed)
            overwrite(args, values)
            graph.replay()
            assert_same_bits(got, call(case, values, kwargs), f"{size}, seed {seed}")


def test_two_runs_give_the_same_bits(case: Case) -> None:
    for size in sizes(case):
        args, kwargs = inputs(case, size, seed=0)
        first = tuple(result.clone() for result in call(case, args, kwargs))
        for _ in range(3):
            assert_same_bits(call(case, args, kwargs), first, size)


def test_the_callers_stream_is_used(case: Case) -> None:
    """The input is written late on a side stream; a kernel on another stream would miss it."""
    for size in sizes(case):
        args, kwargs = inputs(case, size, seed=0)
        values, _ = inputs(case, size, seed=1)
        want = call(case, values, kwargs)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)
            overwrite(args, values)
            got = call(case, args, kwargs)
        side.synchronize()
        assert_same_bits(got, want, size)


_FIRST_CALL = """
import torch
from mdssd import ops

boxes = torch.rand(50, 4, device="cuda").sort(1).values
with ops.backend("{backend}"):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.box_iou(boxes, boxes)
    graph.replay()
    assert torch.equal(got, ops.box_iou(boxes, boxes)) and got.sum() > 0
"""


def test_the_first_call_of_a_process_can_be_captured(gpu_backend: str) -> None:
    """The capture then also loads the module with the kernels. Triton compiles them before."""
    if _pretended():
        pytest.skip("the pretended GPU has no CUDA graphs")
    if gpu_backend == "triton":
        pytest.skip("Triton's kernels are compiled by a call before the capture")
    program = _FIRST_CALL.format(backend=gpu_backend)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
def test_a_second_device_gives_the_same_bits(case: Case) -> None:
    for size in sizes(case):
        args, kwargs = inputs(case, size, seed=0)
        there, _ = inputs(case, size, seed=0, device="cuda:1")
        got = call(case, there, kwargs)
        assert torch.cuda.current_device() == 0
        assert all(result.device.index == 1 for result in got)
        assert_same_bits(got, call(case, args, kwargs), size)


@pytest.mark.cases(case=lambda case: case.op in ("nms", "batched_nms"))
def test_nms_of_fixed_size_keeps_what_nms_keeps(case: Case) -> None:
    for size in sizes(case):
        args, kwargs = inputs(case, size, seed=0)
        keep, count = call(case, args, kwargs)
        assert_same_bits((keep[: int(count)],), case(*args, **kwargs), size)


@pytest.mark.cases(case=lambda case: case.op not in ("nms", "batched_nms"))
def test_nothing_waits_for_the_device(case: Case) -> None:
    for size in sizes(case):
        args, kwargs = inputs(case, size, seed=0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            call(case, args, kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_an_argument_on_the_cpu_is_refused(case: Case, gpu_backend: str) -> None:
    args, kwargs = inputs(case, sizes(case)[0], seed=0)
    last = max(i for i, arg in enumerate(args) if isinstance(arg, Tensor | list))
    args[last] = to_device(args[last], "cpu")
    if case.op == "resize" and gpu_backend == "triton" and _pretended():
        pytest.skip("Triton's interpreter takes tensors of the CPU")
    if case.op == "resize":  # its only tensor, so the backend finds it on the wrong device
        with pytest.raises(RuntimeError, match="resize: backend .* cannot run on a cpu tensor"):
            case(*args, **kwargs)
        return
    with pytest.raises(ValueError, match=f"{case.op}: .*device"):
        case(*args, **kwargs)
