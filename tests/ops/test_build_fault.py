"""A build whose CUDA kernels cannot run on this GPU: the operators use another backend."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mdssd import ops
from mdssd.ops import _dispatch, _modules

GPU = torch.device("cuda", 0)
FAULT = "the driver supports CUDA up to 12.2, and the kernels were built with CUDA 13.0"


class _Native:
    """A native module that was built for CUDA, on a machine of which `faults` tells."""

    def __init__(self, faults: dict[int, str]) -> None:
        self.faults = faults
        self.asked: list[int] = []

    def cuda_build_fault(self, index: int) -> str:
        self.asked.append(index)
        return self.faults.get(index, "")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Native]:
    """Let nms have "cuda" and "triton", on a GPU 0 that is too old and a GPU 1 that is not."""
    module = _Native({0: FAULT})
    monkeypatch.setattr(_dispatch, "native", module)
    fresh = functools.cache(_dispatch._build_fault.__wrapped__)
    monkeypatch.setattr(_dispatch, "_build_fault", fresh)
    table = {"reference": None, "cuda": None, "triton": None}
    monkeypatch.setitem(_dispatch._implementations, "nms", table)
    yield module


def choose(index: int) -> str:
    return _dispatch._choose("nms", torch.device("cuda", index))


def test_triton_takes_over_after_one_warning(native: _Native) -> None:
    with pytest.warns(UserWarning, match="do not run on cuda:0.*driver supports CUDA up to 12.2"):
        assert choose(0) == "triton"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [choose(0), choose(1), choose(0), choose(1)] == ["triton", "cuda", "triton", "cuda"]
    assert native.asked == [0, 1]  # each once


@pytest.mark.filterwarnings("ignore:mdssd")
def test_a_forced_backend_says_why_it_cannot_run(
    native: _Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "_forced", "cuda")
    with pytest.raises(RuntimeError, match="'cuda' cannot run on a cuda tensor.*12.2.*: triton, r"):
        choose(0)
    assert choose(1) == "cuda"


@pytest.mark.filterwarnings("ignore:mdssd")
def test_backends_lists_what_can_run(native: _Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ops.backends()["nms"] == ["triton", "reference"]
    native.faults.clear()
    _dispatch._build_fault.cache_clear()
    assert ops.backends()["nms"][0] == "cuda"


def test_backends_of_the_cpu_ask_no_gpu(native: _Native) -> None:
    with ops.backend("cpp"), ops.backend("reference"):
        pass
    assert native.asked == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU")
def test_the_native_module_names_what_is_missing() -> None:
    native: Any = _modules.native
    if not native.build_info()["cuda"]:
        pytest.skip("built without CUDA")
    assert native.cuda_build_fault(0) == "there is no NVIDIA driver"
    assert native.cuda_device_fault(0) == "there is no NVIDIA driver"
    with pytest.raises(RuntimeError):
        native.cuda_use_device(0)
