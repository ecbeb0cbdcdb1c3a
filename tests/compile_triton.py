"""Compiles every Triton kernel, as the operators launch it on CASES, for GPUs that are not here.

Triton's interpreter forgives what its compiler does not. Run without TRITON_INTERPRET:
`python tests/compile_triton.py [--one-per-kernel] [op ...]`; prints a line per kernel, signature
and target. With --one-per-kernel only the first signature of each, in float16 where it has one.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mdssd import ops
from mdssd.ops import _dispatch
from mdssd.testing import CASES, Case

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


class Recorder:
    """Takes the place of the launch: notes kernel, signature, constants and options."""

    def __init__(self) -> None:
        self.launches: dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]] = {}

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = inspect.signature(kernel.fn).parameters
        options = {name: value for name, value in kwargs.items() if name not in names}
        bound = inspect.signature(kernel.fn).bind(
            *args, **{name: value for name, value in kwargs.items() if name in names}
        )
        bound.apply_defaults()
        signature, constants = {}, {}
        for parameter in kernel.params:
            value = bound.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            else:
                signature[parameter.name] = _type(value)
        key = " ".join(
            [kernel.fn.__name__, *(t for t in signature.values() if t != "constexpr")]
            + [f"{name}={value}" for name, value in constants.items()]
        )
        self.launches[key] = (kernel, signature, constants, options)


def _run(case: Case, size: str, dtype: torch.dtype) -> None:
    args, kwargs = case.inputs(size, dtype)
    leaves = [
        arg.requires_grad_() if position in case.gradients else arg
        for position, arg in enumerate(args)
    ]
    results = case(*leaves, **kwargs)
    if case.gradients:
        wanted = [leaves[position] for position in case.gradients]
        torch.autograd.grad(results, wanted, [torch.ones_like(r) for r in results])


def main(names: list[str], one_per_kernel: bool) -> None:
    """Record what the operators launch, then compile it for each target."""
    recorder = Recorder()
    JITFunction.run = lambda kernel, *args, **kwargs: recorder.run(kernel, *args, **kwargs)
    _dispatch._PREFERENCE["cpu"] = ("triton",)
    torch.use_deterministic_algorithms(True)  # what no kernel writes is then known: never a size
    for case in CASES:
        if names and case.op not in names:
            continue
        for size, row in case.sizes.items():
            if one_per_kernel and row.benchmark:
                continue
            for dtype in row.dtypes:
                if dtype != torch.float64:
                    with ops.backend("triton"):
                        _run(case, size, dtype)
    launches = sorted(recorder.launches.items(), key=lambda item: ("*fp16" not in item[0], item[0]))
    compiled_already: set[tuple[str, str]] = set()
    for key, (kernel, signature, constants, options) in launches:
        which = (kernel.fn.__module__, kernel.fn.__name__)
        if one_per_kernel and which in compiled_already:
            continue
        compiled_already.add(which)
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        for name, target in TARGETS.items():
            compiled = triton.compile(source, target=target, options=options)
            print(f"{name} {key}: shared {compiled.metadata.shared}", flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    one = "--one-per-kernel" in arguments
    main([name for name in arguments if not name.startswith("--")], one)
