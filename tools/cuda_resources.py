"""Writes csrc/cuda/resources.txt: registers, shared memory, stack, spills of every kernel.

Compiles each .cu for ARCHITECTURES and reads what ptxas says. A file whose code is that of the
report (comments and layout do not count) is not compiled again. With --check nothing is compiled:
says which files are stale or spill, and exits with 1 if there are any.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CUDA = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
REPORT = CUDA / "resources.txt"
# The oldest that nvcc 13 compiles for, and Hopper.
ARCHITECTURES = (75, 90)
# What reaches device code of the flags in CMakeLists.txt.
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "--fmad=false")


class Kernel(NamedTuple):
    """One line of the report."""

    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spilled: int  # bytes of spill stores and loads

    def __str__(self) -> str:
        return (
            f"{self.name}  {self.arch}  {self.registers} registers  {self.shared} shared  "
            f"{self.stack} stack  {self.spilled} spilled"
        )


def sources() -> list[Path]:
    return sorted(path for path in CUDA.glob("*.cu") if path.name != "device.cu")  # no operator


def included(path: Path, seen: dict[Path, str]) -> dict[Path, str]:
    """Code of the file and of what it includes from this project, without comments and layout."""
    text = path.read_text()
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    seen[path] = " ".join(code.split())
    for name in re.findall(r'^#include "([^"]+)"', text, flags=re.MULTILINE):
        found = ((folder / name).resolve() for folder in (path.parent, CUDA.parent))
        header = next((file for file in found if file.exists()), None)
        if header and header not in seen and header.parent.name != "simt":  # nvcc does not see simt
            included(header, seen)
    return seen


def fingerprint(path: Path) -> str:
    """Changes when what ptxas reports of the file may change."""
    codes = [code for _, code in sorted(included(path, {}).items())]
    return hashlib.sha256(repr((codes, FLAGS, ARCHITECTURES)).encode()).hexdigest()[:16]


def short_name(demangled: str) -> str:
    """box_iou_kernel<float> of void mdssd::(anonymous namespace)::box_iou_kernel<float>(...)."""
    name = re.sub(r"mdssd::|\(anonymous namespace\)::|_GLOBAL__N_\w+::|^void ", "", demangled)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i]
    return name


def parse_ptxas(text: str) -> list[Kernel]:
    """What `ptxas -v` printed, as lines of the report; the names are still mangled."""
    kernels: dict[tuple[str, str], Kernel] = {}
    arch = name = ""
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            name, arch = match.groups()
        elif match := re.search(r"Function properties for (\S+)", line):
            name = match[1]  # of the kernel, or of a function that it calls
        if name and (name, arch) not in kernels:
            kernels[name, arch] = Kernel(name, arch, 0, 0, 0, 0)
        if match := re.search(r"(\d+) bytes stack frame, (\d+) .* stores, (\d+) .* loads", line):
            stack, stores, loads = map(int, match.groups())
            kernels[name, arch] = kernels[name, arch]._replace(stack=stack, spilled=stores + loads)
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[name, arch] = kernels[name, arch]._replace(
                registers=int(match[1]), shared=int(shared[1]) if shared else 0
            )
    return list(kernels.values())


def compile_kernels(nvcc: str, path: Path) -> list[Kernel]:
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, *codes, "-Xptxas=-v", "-I", str(CUDA.parent), "-fatbin"]
        command += ["-o", f"{folder}/out.fatbin", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    kernels = parse_ptxas(done.stdout + done.stderr)
    mangled = "\n".join(kernel.name for kernel in kernels)
    # c++filt is of the binutils, without which there is no g++.
    names = subprocess.run(["c++filt"], input=mangled, check=True, capture_output=True, text=True)
    return [
        kernel._replace(name=short_name(name))
        for kernel, name in zip(kernels, names.stdout.splitlines(), strict=True)
    ]


def read_report() -> tuple[str, dict[str, tuple[str, list[str]]]]:
    """The compiler's version and, by file, its fingerprint and lines."""
    version, files = "", {}
    for line in REPORT.read_text().splitlines() if REPORT.exists() else []:
        if match := re.match(r"# nvcc ([\d.]+)", line):
            version = match[1]
        elif match := re.match(r"# (\S+\.cu) (\w+)$", line):
            lines: list[str] = []
            files[match[1]] = (match[2], lines)
        elif line and not line.startswith("#"):
            lines.append(line)
    return version, files


def faults() -> list[str]:
    """What a test complains about; empty where the report is right."""
    _, files = read_report()
    now = {path.name: fingerprint(path) for path in sources()}
    stale = [name for name in now | files if files.get(name, ("",))[0] != now.get(name)]
    found = [f"{name}: the report is stale: make resources" for name in sorted(stale)]
    for name, (_, lines) in files.items():
        found += [f"{name}: spills: {line}" for line in lines if not line.endswith(" 0 spilled")]
    return found


def update() -> None:
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    version = re.search(r"V([\d.]+)", said)[1]
    old_version, old = read_report()
    now = {path: fingerprint(path) for path in sources()}
    todo = [p for p in now if version != old_version or old.get(p.name, ("",))[0] != now[p]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        new = dict(zip(todo, pool.map(lambda path: compile_kernels(nvcc, path), todo), strict=True))
    text = (
        "# What the kernels take, in bytes but for the registers, which are per thread.\n"
        f"# nvcc {version}; written by: make resources\n"
    )
    for path, key in now.items():
        lines = sorted(map(str, new[path])) if path in new else old[path.name][1]
        text += f"\n# {path.name} {key}\n" + "".join(f"{line}\n" for line in lines)
    REPORT.write_text(text)
    print(f"{REPORT}: {len(todo)} of {len(now)} files compiled")


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        update()
    if found := faults():
        sys.exit("\n".join(found))
