"""A plugin of pytest: runs Triton's compiled kernels by csrc/ptx, on CPU tensors.

Triton takes a driver that says the GPU is an sm_90, and what it compiles goes to the interpreter.
tools/ptx_check.py loads this plugin with TRITON_INTERPRET=0.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

TARGET = GPUTarget("cuda", 90, 32)
# How a kernel receives an argument of a type of Triton.
C_TYPES = {
    "i1": ctypes.c_uint8,
    "u1": ctypes.c_uint8,
    "i8": ctypes.c_int8,
    "u8": ctypes.c_uint8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "u32": ctypes.c_uint32,
    "i64": ctypes.c_int64,
    "u64": ctypes.c_uint64,
    "fp32": ctypes.c_float,
    "fp64": ctypes.c_double,
}


class Interpreter:
    """The C functions of csrc/ptx/interface.cpp, and the kernels that it has been given."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.latest = ""
        self._library: ctypes.CDLL | None = None

    @property
    def library(self) -> ctypes.CDLL:
        if self._library is None:
            from mdssd.ops import _modules

            self._library = ctypes.CDLL(_modules.simt.__file__)
            self._library.mdssd_ptx_load.restype = ctypes.c_char_p
            self._library.mdssd_ptx_launch.restype = ctypes.c_char_p
        return self._library

    def load(self, name: str, path: str, key: str) -> None:
        """Take the PTX of a compiled kernel. Kernels of one name differ by the key."""
        self.latest = f"{name}__{key[:12]}"
        if self.latest in self.names:
            return
        text = Path(path).read_text()
        text = text.replace(f"{name}(", f"{self.latest}(").replace(
            f"{name}_param", f"{self.latest}_param"
        )
        if wrong := self.library.mdssd_ptx_load(text.encode()).decode():
            raise RuntimeError(f"ptx: {name}: {wrong}")
        self.names.add(self.latest)

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, values: list[Any],
               shared: int) -> None:  # fmt: skip
        three = ctypes.c_uint32 * 3
        # Triton adds pointers to memory of its own, which these kernels do not use.
        wanted = self.library.mdssd_ptx_parameters(name.encode())
        values = values + [ctypes.c_uint64(0)] * (wanted - len(values))
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        wrong = self.library.mdssd_ptx_launch(
            name.encode(), three(*grid), three(threads, 1, 1), pointers, ctypes.c_size_t(shared)
        ).decode()
        if wrong:
            raise RuntimeError(f"ptx: {wrong}")


interpreter = Interpreter()


def _load(module: Any, function: Any, name: str, metadata_group: Any, hash: str) -> None:
    path = next(path for file, path in metadata_group.items() if file.endswith(".ptx"))
    interpreter.load(name, path, hash)


class Utils:
    """What Triton asks of a driver's C module."""

    def load_binary(self, name: str, kernel: Any, shared: int, device: int) -> tuple[Any, ...]:
        return object(), interpreter.latest, 32, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Those of an H100."""
        return {
            "max_shared_mem": 232448,
            "multiprocessor_count": 132,
            "max_num_regs": 65536,
            "warpSize": 32,
            "sm_clock_rate": 1755000,
            "mem_clock_rate": 2619000,
            "mem_bus_width": 5120,
        }


class Launcher:
    """Packs the arguments of a launch."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.types = list(src.signature.values())
        self.threads, self.shared = metadata.num_warps * 32, metadata.shared

    def __call__(self, x: int, y: int, z: int, stream: int, function: str, *rest: Any) -> None:
        arguments = rest[4:]  # after the packed metadata, those of the launch, and two hooks
        if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)) and len(self.types) > 1:
            arguments = tuple(arguments[0])
        values: list[Any] = []
        for kind, argument in zip(self.types, arguments, strict=True):
            if kind.startswith("*"):
                values.append(ctypes.c_uint64(0 if argument is None else argument.data_ptr()))
            elif kind != "constexpr":
                values.append(C_TYPES[kind](argument))
        interpreter.launch(function, (x, y, z), self.threads, values, self.shared)


class Driver(DriverBase):
    """A GPU that is the interpreter, with the memory of the CPU."""

    launcher_cls = Launcher

    def __init__(self) -> None:
        self.utils = Utils()

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_benchmarker(self) -> None:
        return None

    def get_empty_cache_for_benchmark(self) -> None:
        return None

    def clear_cache(self, cache: Any) -> None:
        pass


driver.set_active(Driver())
knobs.runtime.kernel_load_start_hook.add(_load)


def pytest_configure() -> None:
    """Let the operators use Triton on the CPU, where it is otherwise the interpreter's alone."""
    from mdssd.ops import _dispatch

    if "triton" not in _dispatch._PREFERENCE["cpu"]:
        _dispatch._PREFERENCE["cpu"] += ("triton",)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"{len(interpreter.names)} compiled kernels of Triton were run")
