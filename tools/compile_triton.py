"""Compile the Triton kernels for several GPUs, none of which has to be present.

The kernels are compiled as the operators launch them on the inputs of mdssd.testing.CASES. This
finds errors that Triton's interpreter does not. TRITON_INTERPRET must not be set.

    python tools/compile_triton.py [op ...]
    python tools/compile_triton.py --largest
    python tools/compile_triton.py --report

Prints the registers, shared memory and spills of each kernel on each target. The AMD target needs
ROCm's linker, which is part of Triton 3.9 but not of 3.4. Every distinct launch in float32 is
compiled and, for each kernel, the launch on the largest input in float16 and bfloat16. --largest
compiles only the latter in float16, after listing the files for which the report is stale.
--report writes mdssd/ops/triton/resources.txt and skips files whose code and launches have not
changed; comments and docstrings do not count.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.amd.compiler import HIPBackend
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mdssd import ops
from mdssd.ops import _dispatch
from mdssd.system.files import atomic_write
from mdssd.testing import CASES, Case

KERNELS = Path(ops.__file__).with_name("triton")
REPORT = KERNELS / "resources.txt"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
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


class Launch(NamedTuple):
    """A kernel with everything that its machine code depends on."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]

    @property
    def file(self) -> str:
        return self.kernel.fn.__module__.rpartition(".")[2] + ".py"

    @property
    def dtype(self) -> str:
        """The narrowest type of the tensors; all kernels also have float32 tensors."""
        return next((t for t in ("fp16", "bf16") if f"*{t}" in self.signature.values()), "fp32")

    @property
    def name(self) -> str:
        constants = [f"{name}={value}" for name, value in self.constants.items()]
        warps = self.options.get("num_warps", 4)
        return f"{self.kernel.fn.__name__}<{', '.join([self.dtype, *constants])}>  {warps} warps"

    def compile(self, target: GPUTarget) -> Any:
        # Triton generates other code for addresses that are multiples of 16, as PyTorch's are.
        aligned = [i for i, t in enumerate(self.signature.values()) if t.startswith("*")]
        if "constexprs" in inspect.signature(ASTSource).parameters:
            attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
            source = ASTSource(self.kernel, self.signature, self.constants, attributes)
        else:  # Triton 3.2
            types = {name: t for name, t in self.signature.items() if t != "constexpr"}
            source = ASTSource(self.kernel, types, self.constants)
        return triton.compile(source, target=target, options=self.options)


class Recorder:
    """Replaces Triton's launch and records the arguments instead of running the kernel."""

    def __init__(self) -> None:
        self.launches: dict[tuple[str, str], Launch] = {}

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
        launch = Launch(kernel, signature, constants, options)
        key = (launch.file, launch.name)
        self.launches.pop(key, None)  # keeps the launches in the order of their last occurrence
        self.launches[key] = launch


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


def record(names: list[str]) -> list[Launch]:
    """Record the launches of these operators (default: all) on CASES, the largest sizes last."""
    recorder = Recorder()
    JITFunction.run = lambda kernel, *args, **kwargs: recorder.run(kernel, *args, **kwargs)
    _dispatch._PREFERENCE["cpu"] = ("triton",)
    # Fills uninitialised tensors, so that no random number is taken for a count.
    torch.use_deterministic_algorithms(True)
    for case in CASES:
        if names and case.op not in names:
            continue
        for size in sorted(case.sizes, key=lambda size: case.sizes[size].benchmark):
            for dtype in _DTYPES:
                with ops.backend("triton"):
                    _run(case, size, dtype)
    return list(recorder.launches.values())


def largest(launches: list[Launch], dtype: str) -> list[Launch]:
    """Return the last launch of each kernel, in this type if the kernel supports it."""
    single = [launch for launch in launches if launch.dtype == "fp32"]
    wanted = [launch for launch in launches if launch.dtype == dtype]
    last = {(launch.file, launch.kernel.fn.__name__): launch for launch in single + wanted}
    return list(last.values())


def chosen(launches: list[Launch]) -> list[Launch]:
    """Return the launches that belong in the report."""
    halves = largest(launches, "fp16") + largest(launches, "bf16")
    return [launch for launch in launches if launch.dtype == "fp32" or launch in halves]


def taken(launch: Launch) -> list[str]:
    """Compile a launch for each target and return the lines of the report."""
    lines = []
    for name, target in TARGETS.items():
        compiled = launch.compile(target)
        used = _used_nvidia if target.backend == "cuda" else _used_amd
        shared = f"{compiled.metadata.shared} shared"
        registers, spilled = used(compiled.asm)
        lines.append(f"{launch.name}  {name}  {registers}  {shared}  {spilled} spilled")
    return lines


def _used_nvidia(asm: dict[str, Any]) -> tuple[str, int]:
    """Return the registers and stack bytes of a thread; only spills use the stack here."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [str(program), "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (
        int(re.search(rf"\b{key}:(\d+)", said)[1]) for key in ("REG", "STACK", "LOCAL")
    )
    return f"{registers} registers", stack + local


def _used_amd(asm: dict[str, Any]) -> tuple[str, int]:
    vector, scalar, scratch = (
        int(re.search(rf"\.{key}:\s+(\d+)", asm["amdgcn"])[1])
        for key in ("vgpr_count", "sgpr_count", "private_segment_fixed_size")
    )
    return f"{vector} registers  {scalar} scalar", scratch


def fingerprint(path: Path) -> str:
    """Return a hash of the code of a file and of common.py, without comments and docstrings."""
    dropped = (tokenize.COMMENT, tokenize.NL)
    code = []
    for file in (path, KERNELS / "common.py"):
        begins = True  # at the start of a statement, where a string is a docstring
        with file.open("rb") as stream:
            for token in tokenize.tokenize(stream.readline):
                if token.type not in dropped and not (begins and token.type == tokenize.STRING):
                    code.append(token.string.strip())
                breaks = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
                begins = token.type in breaks or (begins and token.type in dropped)
    return hashlib.sha256(" ".join(filter(None, code)).encode()).hexdigest()[:16]


def by_file(launches: list[Launch]) -> dict[str, list[Launch]]:
    files = sorted({launch.file for launch in launches})
    return {file: [launch for launch in launches if launch.file == file] for file in files}


def read_report() -> tuple[str, dict[str, tuple[str, list[str]]]]:
    """Return the version of Triton and, for each file, its fingerprint and lines."""
    version, files = "", {}
    for line in REPORT.read_text().splitlines() if REPORT.exists() else []:
        if match := re.match(r"# Triton ([\d.]+)", line):
            version = match[1]
        elif match := re.match(r"# (\S+\.py) (\w+)$", line):
            lines: list[str] = []
            files[match[1]] = (match[2], lines)
        elif line and not line.startswith("#"):
            lines.append(line)
    return version, files


def stale(files: dict[str, list[Launch]]) -> list[str]:
    """Return the files whose code or launches differ from the report."""
    _, reported = read_report()
    result = [file for file in reported if file not in files]
    for file, launches in files.items():
        key, lines = reported.get(file, ("", []))
        names = {line.rpartition("  sm_")[0] for line in lines if "  sm_" in line}
        if key != fingerprint(KERNELS / file) or names != {launch.name for launch in launches}:
            result.append(file)
    return result


def update(files: dict[str, list[Launch]]) -> None:
    """Write the report."""
    version, reported = read_report()
    todo = stale(files) if version == triton.__version__ else list(files)
    text = (
        "# Per thread, the registers and the spilled bytes; per program, the shared bytes.\n"
        f"# Triton {triton.__version__}; written by: make resources\n"
    )
    for file, launches in files.items():
        if file in todo:
            print(f"{file}: {len(launches)} kernels", flush=True)
            lines = sorted(line for launch in launches for line in taken(launch))
        else:
            lines = reported[file][1]
        text += f"\n# {file} {fingerprint(KERNELS / file)}\n" + "".join(f"{x}\n" for x in lines)
    with atomic_write(REPORT) as report:
        report.write(text)
    print(REPORT)


def _leave_out_amd() -> None:
    try:
        getattr(HIPBackend, "path_to_rocm_lld", str)()
    except Exception as error:
        del TARGETS["gfx942"]
        print(f"left out: gfx942: {error}", flush=True)


def main() -> None:
    arguments = sys.argv[1:]
    _leave_out_amd()
    launches = record([name for name in arguments if not name.startswith("--")])
    files = by_file(chosen(launches))
    if arguments == ["--report"]:
        update(files)
        return
    if arguments == ["--largest"]:
        for file in stale(files):
            print(f"stale: {file}", flush=True)
        launches = largest(launches, "fp16")
    else:
        launches = chosen(launches)
    for launch in launches:
        print(*taken(launch), sep="\n", flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # skips Python's shutdown, in which LLVM sometimes crashes
