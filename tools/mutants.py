"""Plant faults in the CUDA kernels, one at a time, and count which of them the tests find.

A mutant is a kernel without one of its barriers, `__syncwarp`s or bounds checks, or with a plain
read and write in place of an atomic. All mutants are in a single build of csrc/simt, and a number
says which of them is active. Each runs on the inputs of mdssd.testing.CASES of its operators, on
the CPU, until a launch throws or a result differs from the reference.

    python tools/mutants.py                     the checked build, as it is in the working tree
    python tools/mutants.py --flavour on        without the race checker
    python tools/mutants.py --revision v1.2     the kernels and csrc/simt of a commit

Results are kept in build/mutants/. A run continues where the last one stopped if the sources are
the same. The exit status is 1 if a mutant survives the checked build that EXPLAINED does not list.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mutants"
KINDS = ("barrier", "syncwarp", "atomic", "bounds")
# The operators that run the code of a file.
OPERATORS = {
    "box_loss.cu": ("box_loss",),
    "boxes.cu": ("box_iou", "encode_boxes", "decode_boxes"),
    "detection_output.cu": ("detection_output",),
    "l2norm.cu": ("l2norm", "l2norm_add_relu"),
    "matching.cu": ("match_priors", "encode_targets"),
    "merge_boxes.cu": ("merge_boxes",),
    "multibox_loss.cu": ("multibox_loss",),
    "nms.cu": ("nms", "batched_nms", "nms_padded"),
    "resize.cu": ("resize",),
    "sigmoid_focal_loss.cu": ("sigmoid_focal_loss",),
    "group_sums.h": ("sigmoid_focal_loss", "box_loss"),
    "radix.h": ("detection_output", "multibox_loss"),
    "rows.h": ("detection_output", "multibox_loss"),
    "runtime.h": ("multibox_loss", "detection_output"),
}
# What the mutated sources need in simt.h. `planted` has no hook, so it is no access of a kernel.
HEADER = """
namespace simt {
inline int& planted_now() { static int number = 0; return number; }
__attribute__((noinline, no_sanitize("thread"))) inline bool planted(int number) {
  return planted_now() == number;
}
}  // namespace simt
#define SIMT_PLANTED(name, changed)                                                              \\
  template <class T>                                                                             \\
  __forceinline__ T planted_##name(int number, T* address, typename Same<T>::type value) {       \\
    if (!simt::planted(number)) return name(address, value);                                     \\
    const T old = *address;                                                                      \\
    *address = changed;                                                                          \\
    return old;                                                                                  \\
  }
SIMT_PLANTED(atomicAdd, T(old + value))
SIMT_PLANTED(atomicMax, old < value ? T(value) : old)
SIMT_PLANTED(atomicOr, T(old | value))
"""
# Mutants that survive, and why no test can or does find them.
EXPLAINED: dict[str, str] = {}
SECONDS = 120  # for one mutant; one that hangs is found


class Mutant(NamedTuple):
    """One fault: its place, what is lost there, and its number in the build."""

    number: int
    file: str
    line: int
    function: str
    kind: str
    place: int  # among those of its kind in the function
    code: str

    @property
    def name(self) -> str:
        """A name that stays the same when the lines above change."""
        return f"{self.file} {self.function} {self.kind} {self.place}: {self.code}"


def device_code(text: str) -> list[tuple[int, int, str]]:
    """Return where the bodies of the functions for the device begin and end, and their names."""
    spans: list[tuple[int, int, str]] = []
    for match in re.finditer(r"__global__|__device__", text):
        begin = re.compile(r"[{;]").search(text, match.end())
        if begin is None or begin[0] == ";":
            continue
        depth, at = 1, begin.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not spans or begin.start() >= spans[-1][1]:
            head = re.sub(
                r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)", "", text[match.end() : begin.start()]
            )
            name = re.search(r"(\w+|operator\(\)) ?\(", head)
            spans.append((match.end(), at, name[1] if name else ""))
    return spans


_SIDE = r"[\w.]+(?:\([^()]*\))?(?:\[[^\]]*\])?(?: [+*/%-] [\w.]+(?:\([^()]*\))?)*"
_FAULTS = [
    ("barrier", re.compile(r"__syncthreads\(\);")),
    ("syncwarp", re.compile(r"__syncwarp\([^)]*\);")),
    ("atomic", re.compile(r"\batomic(?:Add|Max|Or)\(")),
    # if (a >= b) return;
    ("bounds", re.compile(rf"(?<=if \(){_SIDE} >= {_SIDE}(?=\) return)")),
    # a < b in a condition, a selection or a flag, but not what continues a loop
    ("bounds", re.compile(rf"(?<=if \(){_SIDE} < {_SIDE}(?=\)| &&)")),
    ("bounds", re.compile(rf"(?<=&& ){_SIDE} < {_SIDE}(?=\)| &&| \?|;)")),
    ("bounds", re.compile(rf"(?<== ){_SIDE} < {_SIDE}(?= \?|;| &&)")),
    ("bounds", re.compile(rf"(?<=, |\w\(){_SIDE} < {_SIDE}(?= \?|\))")),
]


def plant(file: str, text: str, first: int) -> tuple[str, list[Mutant]]:
    """Return the source with its mutants, which are numbered from `first` on, and their list."""
    spans = device_code(text)
    comments = [m.span() for m in re.finditer(r"//[^\n]*", text)]
    loops = [m.span() for m in re.finditer(r"for \([^;]*;[^;]*;", text)]
    found: list[tuple[int, int, str]] = []
    for kind, pattern in _FAULTS:
        for match in pattern.finditer(text):
            at, end = match.span()
            hidden = any(a <= at < b for a, b in comments)
            hidden |= kind == "bounds" and any(a <= at < b for a, b in loops)
            inside = any(a <= at < b for a, b, _ in spans)
            if inside and not hidden and not any(a < end and at < b for a, b, _ in found):
                found.append((at, end, kind))
    mutants, parts, last = [], [], 0
    for number, (at, end, kind) in enumerate(sorted(found), first):
        code = text[at:end]
        if kind in ("barrier", "syncwarp"):
            new = f"if (!simt::planted({number})) {code}"
        elif kind == "atomic":
            new = f"planted_{code}{number}, "
        elif ">=" in code:
            new = f"!simt::planted({number}) && ({code})"
        else:
            new = f"(simt::planted({number}) || ({code}))"
        parts += [text[last:at], new]
        last = end
        line = text.count("\n", 0, at) + 1
        function = next(name for a, b, name in spans if a <= at < b)
        place = 1 + sum(m.function == function and m.kind == kind for m in mutants)
        shown = " ".join(code.split()).rstrip("(;")
        mutants.append(Mutant(number, file, line, function, kind, place, shown))
    return "".join([*parts, text[last:]]), mutants


def write_sources(folder: Path, revision: str | None) -> list[Mutant]:
    """Write the sources with all mutants in them; return the list of mutants."""
    names = ["CMakeLists.txt", "cmake", "csrc"]
    if revision:
        data = subprocess.run(
            ["git", "archive", revision, *names], cwd=ROOT, check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            files = {
                member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive
                if member.isfile()
            }
    else:
        paths = [p for name in names for p in [ROOT / name, *(ROOT / name).rglob("*")]]
        files = {str(p.relative_to(ROOT)): p.read_bytes() for p in paths if p.is_file()}
    mutants: list[Mutant] = []
    for name, data in sorted(files.items()):
        path = Path(name)
        if path.parent == Path("csrc/cuda") and path.name in OPERATORS:
            text, more = plant(path.name, data.decode(), len(mutants) + 1)
            mutants += more
            data = text.encode()
        elif name == "csrc/simt/simt.h":
            data += HEADER.encode()
        elif name == "csrc/bind.cpp":
            data = data.replace(
                b'  module.def("set_shuffle"',
                b'  module.def("plant", [](int number) { simt::planted_now() = number; });\n'
                b'  module.def("set_shuffle"',
            )
        target = folder / name
        if not target.exists() or target.read_bytes() != data:  # so that ninja builds no more
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return mutants


def build(folder: Path, flavour: str) -> Path:
    """Build the module; return its folder."""
    import pybind11

    out = folder / f"build-{flavour}"
    tools = Path(sys.executable).parent
    cmake = str(tools / "cmake") if (tools / "cmake").exists() else "cmake"
    configure = ["-G", "Ninja", "-DMDSSD_CUDA=off", f"-DMDSSD_SIMT={flavour}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    if (tools / "ninja").exists():
        configure += [f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
    for command in (["-S", folder, "-B", out, *configure], ["--build", out, "--target", "_simt"]):
        subprocess.run([cmake, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return out


def inputs(operators: tuple[str, ...]) -> list[tuple[Any, str, Any]]:
    """Return the small inputs of the operators: case, size and dtype, float32 first."""
    import torch

    from mdssd.testing import CASES

    rows = [
        (case, size, dtype)
        for case in CASES
        if case.op in operators
        for size, of in case.sizes.items()
        if not of.benchmark and not of.nightly
        for dtype in of.dtypes
    ]
    return sorted(rows, key=lambda row: row[2] != torch.float32)


def find(mutant: Mutant, seeds: list[int]) -> str:
    """Return what shows that the mutant is wrong, in one line, or "" if nothing does."""
    from mdssd.ops import _modules
    from tests.ops import test_ops

    _modules.simt.plant(mutant.number)
    for seed in seeds:
        for case, size, dtype in inputs(OPERATORS[mutant.file]):
            _modules.simt.set_shuffle(seed)
            try:
                test_ops.test_agrees_with_reference(case, size, dtype, "simt", "cpu")
                if case.gradients:
                    test_ops.test_gradient_agrees_with_reference(case, size, dtype, "simt", "cpu")
            except Exception as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                what = " ".join(lines[:2]) if "data race" in lines[0] else lines[0]
                return f"{case.op}-{size}-{str(dtype).removeprefix('torch.')}: {what}"[:400]
    return ""


def in_child(mutant: Mutant, seeds: list[int]) -> tuple[int, int]:
    """Start a process that writes what it finds; return its number and where to read."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            signal.alarm(SECONDS)
            os.write(write, find(mutant, seeds).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    return child, read


def result(child: int, read: int) -> str:
    """Wait for the process; return what it wrote, or how it ended."""
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return text if status == 0 else "the process failed"


def run(mutants: list[Mutant], seeds: list[int], kept: Path, processes: int) -> dict[str, str]:
    """Run the mutants that have no result yet, some at a time, and keep each result."""
    results: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    waiting = [mutant for mutant in mutants if mutant.name not in results]
    running: list[tuple[Mutant, tuple[int, int]]] = []
    while waiting or running:
        while waiting and len(running) < processes:
            mutant = waiting.pop(0)
            running.append((mutant, in_child(mutant, seeds)))
        mutant, process = running.pop(0)
        results[mutant.name] = result(*process)
        print(f"{mutant.name}\n    {results[mutant.name] or 'SURVIVES'}", flush=True)
        kept.write_text(json.dumps(results, indent=1))
    return results


def table(mutants: list[Mutant], results: dict[str, str]) -> str:
    """Return how many mutants of each kind are found in each file, as a table in Markdown."""
    planted = Counter((m.file, m.kind) for m in mutants)
    found = Counter((m.file, m.kind) for m in mutants if results[m.name])
    lines = ["| file | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for file in [*OPERATORS, ""]:
        cells = []
        for kind in KINDS:
            keys = [key for key in planted if key[1] == kind and (not file or key[0] == file)]
            total = sum(planted[key] for key in keys)
            cells.append(f"{sum(found[key] for key in keys)} of {total}" if total else "")
        lines.append(f"| {file or 'all'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--flavour", default="checked", help="MDSSD_SIMT of the build")
    parser.add_argument("--revision", help="take csrc from this commit, not the working tree")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of --simt-shuffle")
    parser.add_argument("--only", default="", help="run the mutants whose name has this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    args = parser.parse_args()
    folder = BUILD / (args.revision or "working-tree")
    mutants = write_sources(folder, args.revision)
    if args.list:
        print("\n".join(mutant.name for mutant in mutants))
        return 0
    began = time.monotonic()
    os.environ["MDSSD_MODULES"] = str(build(folder, args.flavour))
    sources = [p for p in sorted((folder / "csrc").rglob("*")) if p.is_file()]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    seeds = "-".join(map(str, args.seeds))
    kept = folder / f"results-{args.flavour}-{seeds}-{key}.json"
    sys.path.insert(0, str(ROOT))
    import torch

    import conftest  # noqa: F401  (loads the module of MDSSD_MODULES)

    torch.set_num_threads(1)
    mutants = [mutant for mutant in mutants if args.only in mutant.name]
    results = run(mutants, args.seeds, kept, args.processes)
    survivors = [mutant for mutant in mutants if not results[mutant.name]]
    print(table(mutants, results))
    print(f"{len(survivors)} of {len(mutants)} survive; {time.monotonic() - began:.0f} s")
    unexplained = 0
    for mutant in survivors:
        reason = EXPLAINED.get(mutant.name, "")
        unexplained += not reason
        print(f"  {mutant.file}:{mutant.line} {mutant.name}: {reason or 'NOT EXPLAINED'}")
    return 1 if unexplained and args.flavour == "checked" else 0


if __name__ == "__main__":
    sys.exit(main())
