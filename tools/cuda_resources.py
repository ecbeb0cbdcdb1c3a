"""Write csrc/cuda/resources.txt: the registers, shared memory, stack and spills of every kernel.

Compiles each .cu file for ARCHITECTURES and reads the output of ptxas. Files whose code has not
changed since the last report are not compiled again; comments and layout do not count. With
--check, nothing is compiled: the script lists the files that have changed or spill registers and
exits with status 1 if there are any.
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
# The oldest architecture that nvcc 13 supports, and Hopper.
ARCHITECTURES = (75, 90)
# The flags of CMakeLists.txt that affect device code.
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "--fmad=false")


class Kernel(NamedTuple):
    """One line of the report."""

    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spilled: int  # bytes, stores plus loads

    def __str__(self) -> str:
        return (
            f"{self.name}  {self.arch}  {self.registers} registers  {self.shared} shared  "
            f"{self.stack} stack  {self.spilled} spilled"
        )


def sources() -> list[Path]:
    return sorted(path for path in CUDA.glob("*.cu") if path.name != "device.cu")


def included(path: Path, seen: dict[Path, str]) -> dict[Path, str]:
    """Return the code of a file and of the headers it includes, without comments and layout."""
    text = path.read_text()
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    seen[path] = " ".join(code.split())
    for name in re.findall(r'^#include "([^"]+)"', text, flags=re.MULTILINE):
        found = ((folder / name).resolve() for folder in (path.parent, CUDA.parent))
        header = next((file for file in found if file.exists()), None)
        if header and header not in seen and header.parent.name != "simt":  # nvcc does not use simt
            included(header, seen)
    return seen


def fingerprint(path: Path) -> str:
    """Return a hash of everything that determines what ptxas reports for the file."""
    codes = [code for _, code in sorted(included(path, {}).items())]
    return hashlib.sha256(repr((codes, FLAGS, ARCHITECTURES)).encode()).hexdigest()[:16]


def short_name(demangled: str) -> str:
    """Shorten a demangled signature to the kernel's name and template arguments."""
    name = re.sub(r"mdssd::|\(anonymous namespace\)::|_GLOBAL__N_\w+::|^void ", "", demangled)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i]
    return name


def parse_ptxas(text: str) -> list[Kernel]:
    """Parse the output of `ptxas -v`. The names remain mangled."""
    kernels: dict[tuple[str, str], Kernel] = {}
    arch = name = ""
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            name, arch = match.groups()
        elif match := re.search(r"Function properties for (\S+)", line):
            name = match[1]  # a kernel, or a function that is not inlined
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
    # c++filt is part of the binutils, which g++ needs.
    names = subprocess.run(["c++filt"], input=mangled, check=True, capture_output=True, text=True)
    return [
        kernel._replace(name=short_name(name))
        for kernel, name in zip(kernels, names.stdout.splitlines(), strict=True)
    ]


def read_report() -> tuple[str, dict[str, tuple[str, list[str]]]]:
    """Return the version of nvcc and, for each file, its fingerprint and lines."""
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
    """Return a message for each file that has changed and for each kernel that spills."""
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
        "# Registers per thread, and bytes of shared memory, stack and spills, of each kernel.\n"
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
