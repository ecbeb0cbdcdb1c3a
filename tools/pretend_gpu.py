"""Pretend that there is an NVIDIA GPU, to rehearse on a CPU what runs on the first GPU machine.

    PYTHONPATH=tools python -m pytest -p pretend_gpu tests/ops/test_ops_by_hand.py
    python tools/pretend_gpu.py -m mdssd info

As a pytest plugin, or around another program, it lets PyTorch report one GPU. A tensor that is made
on "cuda", or moved there, is one of the CPU that says it is on "cuda:0"; so is everything computed
from it. As on a GPU, tensors of both devices do not mix, `numpy()` is refused, and
`torch.cuda.set_sync_debug_mode("error")` raises an error where the host would wait for the device.
The backend "cuda" runs the kernels of "simt", and "triton" those of Triton's interpreter.

There are no CUDA graphs, no second stream that runs at the same time, no memory of the device, and
no torch.compile: tests of these are skipped, and the skip says so. Benchmarks run with small
inputs, once, so that their times say nothing; they are never stored. tests/ops/test_pretend_gpu.py
tests this file.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map  # noqa: E402

NAME = "pretended GPU"
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
# What may take tensors of both devices.
_MIXING = {
    "copy_", "__getitem__", "__setitem__", "__set__", "data", "_has_compatible_shallow_copy_type",
}  # fmt: skip
_WAITING = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "nonzero", "equal",
    "allclose", "unique", "masked_select", "repeat_interleave", "is_nonzero",
}  # fmt: skip


class OnGpu(Tensor):
    """A tensor that says it is on the GPU."""

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl


def on_gpu(value: Any) -> Any:
    """Let a tensor say that it is on the GPU. It shares the memory of the one that is given."""
    if not isinstance(value, Tensor) or isinstance(value, OnGpu):
        return value
    if value.is_leaf:  # an alias would not receive the gradient
        return Tensor._make_subclass(OnGpu, value.detach(), value.requires_grad)
    return value.as_subclass(OnGpu)


def _names_gpu(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


class Pretend(TorchFunctionMode):
    """Handles every function of PyTorch that meets a device or a tensor."""

    sync = "default"
    in_backward = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        tensors = _tensors((args, kwargs))
        here = any(isinstance(each, OnGpu) for each in tensors)
        if name in ("to", "cuda", "cpu", "numpy", "pin_memory", "is_pinned", "__array__"):
            if tensors and args and args[0] is tensors[0]:
                return self._move(func, name, args, kwargs)
        if here and name in _WAITING:
            self._waits(name)
        if name in ("backward", "grad") and here and callable(func):
            self.in_backward += 1
            try:
                return self._on(True, func(*args, **kwargs), tensors)
            finally:
                self.in_backward -= 1
        asked = kwargs.get("device")
        if asked is not None:
            if _names_gpu(asked):
                if name in ("tensor", "as_tensor", "scalar_tensor"):
                    self._waits(name)
                kwargs["device"] = CPU
            there = _names_gpu(asked)
        else:
            there = here
        own = getattr(func, "namespace", "") == "mdssd"
        if here and not own and name not in _MIXING:
            if any(not isinstance(each, OnGpu) and each.ndim for each in tensors):
                if not name.startswith("__get__"):
                    raise RuntimeError(
                        "Expected all tensors to be on the same device, but found at least two "
                        f"devices, cuda:0 and cpu! (in {name})"
                    )
        return self._on(there, func(*args, **kwargs), tensors)

    def _waits(self, name: str) -> None:
        if self.sync == "error" and not self.in_backward:
            raise RuntimeError(f"called a synchronizing CUDA operation: {name}")

    @staticmethod
    def _on(there: bool, result: Any, inputs: list[Tensor]) -> Any:
        if not there or isinstance(result, torch.Size):
            return result
        same = {id(each) for each in inputs}
        return tree_map(lambda x: x if id(x) in same else on_gpu(x), result)

    def _move(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = args[0]
        here = isinstance(tensor, OnGpu)
        if name in ("numpy", "__array__"):
            if here:
                raise TypeError("can't convert cuda:0 device type tensor to numpy.")
            return func(*args, **kwargs)
        if name == "pin_memory":
            return tensor.clone()
        if name == "is_pinned":
            return not here
        wanted: torch.device | None = {"cuda": GPU, "cpu": CPU}.get(name)
        kwargs = dict(kwargs) if name == "to" else {}
        for value in args[1:] if name == "to" else ():
            if isinstance(value, Tensor):
                wanted, kwargs["dtype"] = value.device, value.dtype
            elif isinstance(value, str | torch.device):
                wanted = torch.device(value)
            elif isinstance(value, torch.dtype):
                kwargs["dtype"] = value
            elif isinstance(value, bool):
                kwargs.setdefault("non_blocking", value)
        if kwargs.get("device") is not None:
            wanted = torch.device(kwargs["device"])
        kwargs.pop("device", None)
        there = here if wanted is None else wanted.type == "cuda"
        if there != here and not kwargs.get("non_blocking"):
            self._waits(f"to({wanted})")
        if there == here:
            moved = Tensor.to(tensor, **kwargs) if kwargs else tensor
        else:
            moved = Tensor.to(tensor, **{**kwargs, "copy": True})
        if not there:
            return moved.as_subclass(Tensor) if isinstance(moved, OnGpu) else moved
        return moved if isinstance(moved, OnGpu) else on_gpu_copy(moved)


def on_gpu_copy(moved: Tensor) -> Tensor:
    """Mark the result of a copy, which stays connected to what it is a copy of."""
    return moved.as_subclass(OnGpu) if moved.grad_fn is not None else on_gpu(moved)


class Stream:
    """A stream, in whose order everything runs anyway."""

    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = GPU

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


class Event(Stream):
    """An event, which happens at once."""

    seconds = 0.0

    def record(self, *args: Any) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.seconds - self.seconds)


@contextlib.contextmanager
def _nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def _no_graph(*args: Any, **kwargs: Any) -> None:
    import pytest

    pytest.skip("the pretended GPU has no CUDA graphs")


def _no_compile(model: Any = None, **options: Any) -> Callable[..., Any]:
    """Return a function that skips the test that calls it. Some modules compile one on import."""

    def skip(*args: Any, **kwargs: Any) -> None:
        import pytest

        pytest.skip("torch.compile looks below the tensors that pretend to be on a GPU")

    if isinstance(model, torch.nn.Module):
        skip()
    return skip if model is not None else lambda function: skip


def _set_sync(mode: str | int) -> None:
    MODE.sync = {0: "default", 1: "warn", 2: "error"}.get(mode, mode)  # type: ignore[arg-type]


MODE = Pretend()
_REPLACED = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_lazy_init": lambda: None,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_name": lambda device=None: NAME,
    "get_device_capability": lambda device=None: (9, 0),
    "is_bf16_supported": lambda *args, **kwargs: True,
    "is_current_stream_capturing": lambda: False,
    "current_stream": lambda device=None: Stream(),
    "default_stream": lambda device=None: Stream(),
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "mem_get_info": lambda device=None: (64 << 30, 64 << 30),
    "max_memory_allocated": lambda device=None: 0,
    "memory_allocated": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "set_sync_debug_mode": _set_sync,
    "_sleep": lambda cycles: None,
    "device": _nothing,
    "stream": _nothing,
    "Stream": Stream,
    "Event": Event,
    "CUDAGraph": _no_graph,
    "graph_pool_handle": _no_graph,
}


def install() -> None:
    """Begin to pretend, in this thread and until the process ends."""
    for name, value in _REPLACED.items():
        setattr(torch.cuda, name, value)
    torch.compile = _no_compile
    MODE.__enter__()
    # Modules that are set to a device must hold tensors that say they are on it.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    from mdssd.ops import _dispatch, _modules

    if _modules.native is not None:
        _dispatch._build_fault = lambda index: ""  # type: ignore[assignment]
    if _modules.simt is not None:
        _modules.simt.cuda_use_device = lambda index: None
    for table in _dispatch._implementations.values():
        if "simt" in table:
            table["cuda"] = table["simt"]
        for backend, form in list(table.items()):
            table[backend] = _with_mode(form)
    choose = _dispatch._choose

    def chosen(name: str, device: torch.device) -> str:
        return choose(name, GPU if MODE.in_backward else device)

    _dispatch._choose = chosen


def _with_mode(form: Callable[..., Any]) -> Callable[..., Any]:
    """Run a backend's form as a program would that calls it from outside PyTorch's dispatcher."""

    def call(*args: Any) -> Any:
        here = any(isinstance(each, OnGpu) for each in _tensors(args))
        if not here and not MODE.in_backward:
            return form(*args)
        # The offsets of a ragged batch stay on the CPU.
        args = tree_map(lambda x: on_gpu(x) if _is_gradient(x) else x, args)
        before, MODE.in_backward = MODE.in_backward, 0
        try:
            with torch._C._EnableTorchFunction(), MODE:
                return form(*args)
        finally:
            MODE.in_backward = before

    return call


def _is_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.uint8)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    install()
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif sys.argv[1] == "-c":
        program = compile(sys.argv[2], "<command>", "exec")
        sys.argv = ["-c", *sys.argv[3:]]
        exec(program, {"__name__": "__main__"})
    else:
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
else:
    install()
