"""The interpreter of compiled kernels, where tools/ptx_check.py has built it."""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any

import pytest
import torch

from mdssd.ops import _modules

_PROGRAM = """.version 8.0
.target sm_90
.address_size 64
.visible .entry {name}(.param .u64 from, .param .u64 to)
{{
.reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %rd<16>;
.reg .f32 %f<8>; .reg .f64 %fd<8>; .shared .align 8 .b8 scratch[1024];
ld.param.u64 %rd0, [from]; ld.param.u64 %rd1, [to];
mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, {bytes};
add.s64 %rd0, %rd0, %rd2; mul.wide.u32 %rd2, %r0, {out_bytes}; add.s64 %rd1, %rd1, %rd2;
{code}
ret;
}}
"""


class Interpreter:
    """csrc/ptx, through its C functions."""

    def __init__(self, module: Any, library: ctypes.CDLL) -> None:
        self.module, self._library = module, library
        for name in ("load", "launch", "report", "device_fault"):
            getattr(library, f"mdssd_ptx_{name}").restype = ctypes.c_char_p
        self._programs = 0

    def configure(
        self, races: bool = False, noise: int = 0, ulps: int = 1, limit: int = 1 << 32
    ) -> None:
        self._library.mdssd_ptx_configure(int(races), noise, ulps, ctypes.c_uint64(limit))

    def restore(self) -> None:
        """Return to the settings of the environment."""
        names = ("RACES", "NOISE", "ULPS")
        races, noise, ulps = (
            int(os.environ.get(f"MDSSD_PTX_{name}", name == "ULPS")) for name in names
        )
        self.configure(bool(races), noise, ulps)

    def choose(self, number: int) -> None:
        """Set what %envreg0 reads."""
        self._library.mdssd_ptx_set_environment(number)

    def device_fault(self) -> str:
        return self._library.mdssd_ptx_device_fault().decode()

    def report(self) -> dict[str, Any]:
        return json.loads(self._library.mdssd_ptx_report())

    def load(self, text: str) -> None:
        """Add the kernels of a PTX file, in place of those of the same names."""
        wrong = self._library.mdssd_ptx_load(text.encode()).decode()
        assert not wrong, wrong

    def run(
        self, code: str, x: torch.Tensor, dtype: torch.dtype | None = None, blocks: int = 1
    ) -> torch.Tensor:
        """Run PTX in blocks with a thread for each number of x.

        %rd0 is the address of the thread's number, %rd1 that of its result, and %r0 its index.
        """
        out = torch.zeros(len(x), dtype=dtype or x.dtype)
        self._programs += 1
        name = f"program_{self._programs}"
        text = _PROGRAM.format(
            name=name, bytes=x.element_size(), out_bytes=out.element_size(), code=code
        )
        self.load(text)
        addresses = [ctypes.c_uint64(tensor.data_ptr()) for tensor in (x, out)]
        pointers = (ctypes.c_void_p * 2)(*map(ctypes.addressof, addresses))
        three = ctypes.c_uint32 * 3
        wrong = self._library.mdssd_ptx_launch(
            name.encode(), three(blocks, 1, 1), three(len(x), 1, 1), pointers, ctypes.c_size_t(0)
        ).decode()
        if wrong:
            raise RuntimeError(wrong)
        return out


@pytest.fixture
def ptx(request: pytest.FixtureRequest) -> Any:
    """Return the interpreter; skip the test where the module is another one."""
    try:
        interpreter = Interpreter(_modules.simt, ctypes.CDLL(_modules.simt.__file__))
    except AttributeError:  # there is none, or it has no such functions
        pytest.skip("interprets compiled kernels: make ptx-check")
    yield interpreter
    interpreter.restore()
