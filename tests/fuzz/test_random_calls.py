"""Random calls of every operator: the C++ backend against the reference, and wrong arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies_ops import CASE, Call, calls, wrong_calls
from torch import Tensor

from mdssd import ops

OPS = tuple(CASE)


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_memory_filled() -> Iterator[None]:
    """Fill new tensors with NaN and the largest integers, so that unwritten results show."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


def run(call: Call, backend: str) -> tuple[Tensor, ...]:
    with ops.backend(backend):
        return call.case(*call.args, **call.kwargs)


def assert_agrees(call: Call, got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for position, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.dtype == w.dtype and g.shape == w.shape
        rtol, atol = call.case.allowed(position, call.dtype, call.kwargs)
        torch.testing.assert_close(
            g, w, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, p=position: f"result {p}: {m}"
        )


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_cpp_agrees_with_the_reference(op: str, data: st.DataObject) -> None:
    call = data.draw(calls(op))
    assert_agrees(call, run(call, "cpp"), run(call, "reference"))


def outcome(call: Call, backend: str) -> Any:
    """Return the results, or the error of a wrong argument; any other exception is raised."""
    try:
        return run(call, backend)
    except (ValueError, TypeError) as error:
        return error


@pytest.mark.parametrize("op", OPS)
@given(data=st.data())
def test_a_wrong_argument_is_a_value_or_type_error(op: str, data: st.DataObject) -> None:
    call = data.draw(wrong_calls(op))
    got, want = outcome(call, "cpp"), outcome(call, "reference")
    if isinstance(want, Exception) or isinstance(got, Exception):
        assert type(got) is type(want) and str(got) == str(want)
        assert op in str(want) or "batched_nms" in op and "nms" in str(want), "names no operator"
    elif op != "detection_output" and all(t.device.type == "cpu" for t in want):
        assert_agrees(call, got, want)


@pytest.mark.parametrize("limit", [1e39, -1e39, math.inf])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_log_scale_beyond_float32_is_no_limit_or_zero_size(backend: str, limit: float) -> None:
    # Found by the random calls: the reference ended in a RuntimeError.
    loc, scores = torch.full((1, 1, 4), 3.0), torch.tensor([[[0.0, 1.0]]])
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    with ops.backend(backend):
        found = ops.detection_output(loc, scores, priors, softmax=False, max_log_scale=limit)
        want = ops.detection_output(loc, scores, priors, softmax=False)
    width = float(found.boxes[0, 0, 2] - found.boxes[0, 0, 0])
    assert width == (0 if limit < 0 else float(want.boxes[0, 0, 2] - want.boxes[0, 0, 0]))
