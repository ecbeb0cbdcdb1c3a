"""Plant faults in the CUDA kernels, one at a time, and count which of them the tests find.

A mutant is a kernel without one of its barriers, `__syncwarp`s or bounds checks, or with a plain
read and write in place of an atomic. All mutants are in a single build, and a number says which of
them is active. Each runs on the inputs of mdssd.testing.CASES of its operators, and on the kernels'
own tests, on the CPU, until a launch throws or a result differs from the reference.

    python tools/mutants.py                     the checked build, as it is in the working tree
    python tools/mutants.py --flavour on        without the race checker
    python tools/mutants.py --flavour compiled  what nvcc makes of the kernels, in csrc/ptx
    python tools/mutants.py --revision v1.2     the sources of a commit
    python tools/mutants.py --table             write the results of all three into docs

Results are kept in build/mutants/. A run continues where the last one stopped if the sources are
the same. The exit status is 1 if EXPLAINED does not list a mutant that survives the checked build,
or lists another.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import io
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mutants"
PAGE = ROOT / "docs" / "architecture.md"
MARKS = ("<!-- mutants: begin -->", "<!-- mutants: end -->")
KINDS = {
    "barrier": "a `__syncthreads`",
    "syncwarp": "a `__syncwarp`",
    "atomic": "that an atomic is one",
    "bounds": "a comparison with a bound",
}
FLAVOURS = {
    "on": "simt without its race check",
    "checked": "simt with it",
    "compiled": "compiled code",
}
# The operators that run the code of a file.
OPERATORS = {
    "box_loss.cu": ("box_loss",),
    "boxes.cu": ("box_iou", "encode_boxes", "decode_boxes"),
    "detection_output.cu": ("detection_output",),
    "detection_output_wide.cu": ("detection_output",),
    "detection_parts.h": ("detection_output",),
    "l2norm.cu": ("l2norm", "l2norm_add_relu"),
    "matching.cu": ("match_priors", "encode_targets"),
    "merge_boxes.cu": ("merge_boxes", "merge_boxes_padded"),
    "multibox_loss.cu": ("multibox_loss",),
    "nms.cu": ("nms", "batched_nms", "nms_padded"),
    "resize.cu": ("resize",),
    "sigmoid_focal_loss.cu": ("sigmoid_focal_loss",),
    "soft_nms.cu": ("soft_nms", "soft_nms_padded"),
    "soft_nms.h": ("soft_nms", "soft_nms_padded"),
    "group_sums.h": ("sigmoid_focal_loss", "box_loss"),
    "radix.h": ("detection_output", "multibox_loss"),
    "rows.h": ("detection_output", "multibox_loss"),
    "runtime.h": ("multibox_loss", "detection_output"),
}
# Their tests beyond CASES, which run on what survives.
TESTS = {
    "detection_output": "test_detection_output_cuda.py",
    "l2norm": "test_l2norm_cuda.py",
    "match_priors": "test_matching_cuda.py",
    "merge_boxes": "test_merge_boxes_cuda.py",
    "multibox_loss": "test_multibox_loss_cuda.py",
    "nms_padded": "test_nms_padded.py",
    "soft_nms": "test_soft_nms_cuda.py",
}
# What the mutated sources need in runtime.h. For g++, `planted` has no hook: it is no access of a
# kernel. What nvcc compiles reads a register that csrc/ptx sets.
HEADER = """
namespace simt {
#ifdef __CUDACC__
__device__ __forceinline__ bool planted(int number) {
  int now;
  asm("mov.u32 %0, %%envreg0;" : "=r"(now));
  return now == number;
}
#else
inline int& planted_now() { static int number = 0; return number; }
__attribute__((noinline, no_sanitize("thread"))) inline bool planted(int number) {
  return planted_now() == number;
}
#endif
template <class T>
struct Value {
  using type = T;
};
}  // namespace simt
#define SIMT_PLANTED(name, changed)                                             \\
  template <class T>                                                            \\
  __device__ __forceinline__ T planted_##name(int number, T* address,           \\
                                              typename simt::Value<T>::type value) {\\
    if (!simt::planted(number)) return name(address, value);                    \\
    const T old = *address;                                                     \\
    *address = changed;                                                         \\
    return old;                                                                 \\
  }
SIMT_PLANTED(atomicAdd, T(old + value))
SIMT_PLANTED(atomicMax, old < value ? T(value) : old)
SIMT_PLANTED(atomicOr, T(old | value))
"""
# Mutants that survive, and why no test can or does find them.
EXPLAINED = {
    "detection_parts.h for_each_candidate bounds 1: own < kWarpSize": (
        "A lane has more than 32 classes in rows of over 1,024 only. The next round marks those "
        "that it shifts out, and the exact test rejects any that it marks by mistake."
    ),
    "detection_output.cu nms_kernel bounds 1: thread < kMostKept / kWarpSize": (
        "The zeros land in shared memory behind `removed` that is written later. AddressSanitizer "
        "finds writes beyond a shared array, in the sanitized build."
    ),
    "detection_output_wide.cu digit_kernel bounds 1: digit + 1 < digits": (
        "After the last digit a cell has one candidate, as keys differ, so the list is settled."
    ),
    "detection_parts.h suppress_in_tiles bounds 3: first + lane < n": (
        "Boxes beyond the last one are not alive, so nothing uses what is read for them."
    ),
    "detection_parts.h suppress_in_tiles bounds 5: later < n": (
        "Nothing looks at the bits of boxes beyond the last one."
    ),
    "matching.cu match_kernel bounds 3: start + lane < n": (
        "Shared memory that nobody wrote is NaN here, which meets no prior. The check of compiled "
        "code finds that it is read."
    ),
    "matching.cu may_match bounds 1: b.y1 < bounds.y2": (
        "It only saves work: boxes that do not meet have an IoU of 0."
    ),
    "matching.cu match_kernel bounds 4: start + lane < n": (
        "Nothing reads the places beyond the last box of a tile."
    ),
    "merge_boxes.cu parents_kernel bounds 3: from < to": (
        "It only saves work: the loop compares with both ends too."
    ),
    "multibox_loss.cu select_kernel bounds 3: wanted < background": (
        "It only saves work: the search ends at the smallest key, which selects all of them too."
    ),
    "multibox_loss.cu multibox_loss_backward_kernel bounds 1: first >= rows": (
        "It only saves work: a warp without rows has nothing to write."
    ),
    "multibox_loss.cu multibox_loss_backward_kernel bounds 3: group_rows < rows": (
        "It only saves a division, whose result is 0 if there is a single group."
    ),
    "nms.cu load bounds 1: lane < group": (
        "Lane g has kept nothing before group g, so nothing uses what is read for it."
    ),
    "nms.cu apply_kernel bounds 3: i < num_boxes": (
        "The box beyond the last one is empty, so its category does not count. Small inputs do not "
        "get here with categories; those of more than 2,048 boxes run nightly."
    ),
    "radix.h find_cell bounds 1: above < need": (
        "It only saves work: the comparison within the loop has the same bound."
    ),
    "sigmoid_focal_loss.cu for_each_logit bounds 1: first < begin": (
        "A begin below 0 excludes no number, and neither does 0."
    ),
    "sigmoid_focal_loss.cu for_each_logit bounds 2: end - first < kCount": (
        "It only fits the end into an int: the loops over the numbers end at kCount too."
    ),
    "detection_output_wide.cu soften_kernel bounds 2: total < sizes.max_detections": (
        "More are kept only if their scores equal that of the last, and place_kernel limits the "
        "rows and their count too."
    ),
    "soft_nms.h soften_in_steps bounds 1: top.key < lowest": (
        "Of equal scores the lower index is chosen first, so those chosen after `most` boxes come "
        "after them in the result too."
    ),
    "soft_nms.h soften bounds 3: i < n": (
        "A thread without a box has no key, so nothing compares its index."
    ),
}
_ONE_WORKSPACE = (
    "It stays in the workspace of the call, which is a single array to the compiled code; the "
    "checked build knows the arrays in it."
)
_SHIFT = "A GPU shifts a word by its width or more to 0, so the bits stay right."
# Mutants that survive in the compiled code only, and why.
COMPILED = {
    "detection_output_wide.cu offset_kernel bounds 1: first + lane < per_image": _ONE_WORKSPACE,
    "detection_parts.h suppress_in_tiles bounds 2: n - first < kWarpSize": _SHIFT,
    "nms.cu gather_kernel bounds 1: i < padded_to_groups(num_boxes)": _ONE_WORKSPACE,
    "nms.cu mask_kernel bounds 3: i < num_boxes": _ONE_WORKSPACE,
    "nms.cu mask_kernel bounds 5: i < num_boxes": _ONE_WORKSPACE,
    "nms.cu scan_kernel bounds 1: lane < groups": _ONE_WORKSPACE,
    "nms.cu apply_kernel bounds 1: thread < kGroup": _SHIFT,
    "nms.cu apply_kernel bounds 2: i < num_boxes": _ONE_WORKSPACE,
}
SECONDS = 100  # of processor time for one mutant; one that hangs is found
INSTRUCTIONS = 1 << 26  # of a launch of compiled code


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
    mutants: list[Mutant] = []
    parts, last = [], 0
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
            if path.name == "runtime.h":  # after what it includes
                text = text.replace("#endif\n", "#endif\n" + HEADER, 1)
            data = text.encode()
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
    if flavour == "compiled":
        import ptx_check  # beside this file

        return ptx_check.build(out, folder)
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


def sources_of_results(folder: Path) -> list[Path]:
    """Return the files that results depend on."""
    found = [
        path
        for name in ("", "cuda", "simt", "ptx")
        for path in sorted((folder / "csrc" / name).iterdir())
    ]
    return [p for p in found if p.suffix in (".cu", ".h", ".cpp") and p.name != "faults.cu"]


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


def activate(number: int) -> None:
    """Choose the mutant that the kernels are."""
    from mdssd.ops import _modules

    _modules.simt.plant(number)
    library = ctypes.CDLL(_modules.simt.__file__)
    if hasattr(library, "mdssd_ptx_set_environment"):
        library.mdssd_ptx_configure(1, 0, 1, ctypes.c_uint64(INSTRUCTIONS))
        library.mdssd_ptx_set_environment(number)


def noted() -> str:
    """Return what `make ptx-check` refuses although the launch does not end: a plain read of what
    other threads change by atomics. There are no such notes of other kernels than mutants.
    """
    from mdssd.ops import _modules

    library = ctypes.CDLL(_modules.simt.__file__)
    if not hasattr(library, "mdssd_ptx_report"):
        return ""
    library.mdssd_ptx_report.restype = ctypes.c_char_p
    return next(iter(json.loads(library.mdssd_ptx_report())["notes"]), "")


def find(mutant: Mutant, seeds: list[int], hint: str = "") -> str:
    """Return what shows that the mutant is wrong, in one line, or "" if nothing does.

    `hint` is what has shown another mutant of the function: the same input or test goes first.
    """
    from mdssd.ops import _modules
    from tests.ops import test_ops

    activate(mutant.number)
    if hint.startswith("tests/") and (failed := run_tests([hint.split(" ")[0]], seeds[0])):
        return failed
    rows = [(name_of(*row), *row) for row in inputs(OPERATORS[mutant.file])]
    rows.sort(key=lambda row: not hint.startswith(f"{row[0]}: "))
    for seed in seeds:
        for name, case, size, dtype in rows:
            _modules.simt.set_shuffle(seed)
            try:
                test_ops.test_agrees_with_reference(case, size, dtype, "simt", "cpu")
                if case.gradients:
                    test_ops.test_gradient_agrees_with_reference(case, size, dtype, "simt", "cpu")
            except Exception as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                what = " ".join(lines[:2]) if "data race" in lines[0] else lines[0]
                return f"{name}: {what}"[:400]
    files = [TESTS[name] for name in OPERATORS[mutant.file] if name in TESTS]
    return run_tests([f"tests/ops/{file}" for file in files], seeds[-1]) if files else ""


def name_of(case: Any, size: str, dtype: Any) -> str:
    """Return the name of an input."""
    return f"{case.op}-{size}-{str(dtype).removeprefix('torch.')}"


class Failures:
    """A plugin of pytest that keeps the name of each test that fails."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the name of a test that failed."""
        if report.failed:
            self.names.append(report.nodeid)


def run_tests(names: list[str], seed: int) -> str:
    """Run these files or tests until one fails; return which did."""
    import pytest

    failures = Failures()
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        options = ["-x", "-q", "-p", "no:cacheprovider", "--nightly", f"--simt-shuffle={seed}"]
        pytest.main([*options, "-k", "not triton and not cpp", *names], plugins=[failures])
    return " ".join(failures.names)


def in_child(mutant: Mutant, seeds: list[int], hint: str) -> tuple[int, int]:
    """Start a process that writes what it finds; return its number and where to read."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            os.write(write, (find(mutant, seeds, hint) or noted()).encode())
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
    state: Any = {"seconds": 0, "results": {}}
    if kept.exists():
        state = json.loads(kept.read_text())
    results: dict[str, str] = state["results"]
    before = state["seconds"]
    hints = {(m.file, m.function): results[m.name] for m in mutants if results.get(m.name)}
    waiting = [mutant for mutant in mutants if mutant.name not in results]
    running: list[tuple[Mutant, tuple[int, int]]] = []
    while waiting or running:
        while waiting and len(running) < processes:
            mutant = waiting.pop(0)
            hint = hints.get((mutant.file, mutant.function), "")
            running.append((mutant, in_child(mutant, seeds, hint)))
        ready = select.select([process[1] for _, process in running], [], [])[0]
        at = next(i for i, (_, process) in enumerate(running) if process[1] in ready)
        mutant, process = running.pop(at)
        results[mutant.name] = found = result(*process)
        if found:
            hints[mutant.file, mutant.function] = found
        print(f"{mutant.name}\n    {results[mutant.name] or 'SURVIVES'}", flush=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        state["seconds"] = before + used.ru_utime + used.ru_stime
        kept.write_text(json.dumps(state, indent=1))
        if not waiting and not running:
            waiting = [unchanged(file) for file in files_without_survivor(mutants, results)]
    return results


def unchanged(file: str) -> Mutant:
    """Return the kernels of a file as they are, in which nothing may be found."""
    return Mutant(0, file, 0, "", "", 0, "unchanged")


def files_without_survivor(mutants: list[Mutant], results: dict[str, str]) -> list[str]:
    """Return the files whose kernels have not yet passed the tests in any form."""
    passed = {mutant.file for mutant in mutants if not results[mutant.name]}
    asked = {file for file in OPERATORS if unchanged(file).name in results}
    return sorted({mutant.file for mutant in mutants} - passed - asked)


def count(mutants: list[Mutant], results: dict[str, str], kind: str) -> str:
    """Return how many mutants of a kind are found, as a cell of a table."""
    chosen = [mutant for mutant in mutants if mutant.kind == kind]
    return f"{sum(bool(results[mutant.name]) for mutant in chosen)} of {len(chosen)}"


def by_file(mutants: list[Mutant], results: dict[str, str]) -> str:
    """Return how many mutants of each kind are found in each file, as a table in Markdown."""
    lines = ["| file | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for file in OPERATORS:
        here = [mutant for mutant in mutants if mutant.file == file]
        lines.append(f"| {file} | " + " | ".join(count(here, results, k) for k in KINDS) + " |")
    lines.append("| all | " + " | ".join(count(mutants, results, k) for k in KINDS) + " |")
    return "\n".join(lines)


def commit_of_kernels() -> str:
    """Return the last commit that changed the kernels."""
    command = ["git", "log", "-1", "--format=%h", "--", "csrc/cuda"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def table(mutants: list[Mutant], kept: dict[str, Path], commit: str) -> str:
    """Return what each build finds, and the survivors, as Markdown. `kept` has their results."""
    columns = {title: json.loads(kept[flavour].read_text()) for flavour, title in FLAVOURS.items()}
    for title, column in columns.items():
        if missing := [m.name for m in mutants if m.name not in column["results"]]:
            sys.exit(f"{title}: no result of {len(missing)} mutants, such as {missing[0]}")
    lines = [f"The kernels are those of commit {commit.strip()}.", ""]
    lines += ["| what is lost | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for kind, words in KINDS.items():
        cells = [count(mutants, column["results"], kind) for column in columns.values()]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    minutes = [f"{column['seconds'] / 60:.1f}" for column in columns.values()]
    lines.append("| minutes of one processor | " + " | ".join(minutes) + " |")
    lines += ["", "| survivor | where | why |", "|---|---|---|"]
    for mutant in mutants:
        survived = [title for title, c in columns.items() if not c["results"][mutant.name]]
        reason = EXPLAINED.get(mutant.name) or COMPILED.get(mutant.name, "")
        if survived and (reason or survived != [FLAVOURS["on"]]):
            where = "all" if len(survived) == len(columns) else ", ".join(survived)
            lines.append(f"| `{mutant.name}` | {where} | {reason or 'not explained'} |")
    return "\n".join(lines)


def write_table(text: str) -> None:
    """Put the table between its two marks in the page."""
    page = PAGE.read_text()
    begin, end = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
    PAGE.write_text(f"{page[:begin]}\n\n{text}\n\n{page[end:]}")


def unexplained(mutants: list[Mutant], results: dict[str, str]) -> list[str]:
    """Return the mutants that survive without a reason, and the reasons without such a mutant."""
    survivors = {mutant.name for mutant in mutants if not results[mutant.name]}
    for mutant in mutants:
        if mutant.name in survivors:
            reason = EXPLAINED.get(mutant.name, "NOT EXPLAINED")
            print(f"  {mutant.file}:{mutant.line} {mutant.name}: {reason}")
    idle = [name for name in EXPLAINED if name not in survivors and name in results]
    lost = [name for name in EXPLAINED if name not in results]
    print("".join(f"  EXPLAINED, but found: {name}\n" for name in idle), end="")
    print("".join(f"  EXPLAINED, but no mutant: {name}\n" for name in lost), end="")
    return [*survivors - EXPLAINED.keys(), *idle, *lost]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--flavour", default="checked", choices=FLAVOURS, help="of the build")
    parser.add_argument("--revision", help="take csrc from this commit, not the working tree")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of --simt-shuffle")
    parser.add_argument("--only", default="", help="run the mutants whose name has this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    parser.add_argument("--table", action="store_true", help=f"write the results into {PAGE.name}")
    args = parser.parse_args()
    folder = BUILD / (args.revision or "working-tree")
    mutants = write_sources(folder, args.revision)
    if args.list:
        print("\n".join(mutant.name for mutant in mutants))
        return 0
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources_of_results(folder)))
    seeds = "-".join(map(str, args.seeds))
    kept = {
        flavour: folder / f"results-{flavour}-{seeds}-{key.hexdigest()[:12]}.json"
        for flavour in FLAVOURS
    }
    if args.table:
        write_table(table(mutants, kept, commit_of_kernels()))
        return 0
    os.environ["MDSSD_MODULES"] = str(build(folder, args.flavour))
    sys.path.insert(0, str(ROOT))
    import torch

    import conftest  # noqa: F401  (loads the module of MDSSD_MODULES)

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    chosen = [mutant for mutant in mutants if args.only in mutant.name]
    results = run(chosen, args.seeds, kept[args.flavour], args.processes)
    print(by_file(chosen, results))
    survive = sum(not results[mutant.name] for mutant in chosen)
    seconds = json.loads(kept[args.flavour].read_text())["seconds"]
    print(f"{survive} of {len(chosen)} survive; {seconds:.0f} s of one processor")
    wrong = unexplained(chosen, results) if args.flavour == "checked" else []
    for file in OPERATORS:
        if found := results.get(unchanged(file).name):
            sys.exit(f"{file} fails without a mutant: {found}")
    return int(bool(wrong) and not args.only)


if __name__ == "__main__":
    sys.exit(main())
