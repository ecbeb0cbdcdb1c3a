"""Run the compiled kernels on this machine's CPU, instruction by instruction: make ptx-check.

    python tools/ptx_check.py                   # what CI runs, in two minutes
    python tools/ptx_check.py --nightly         # operators in four interleavings, and Triton's
    python tools/ptx_check.py --counts          # write csrc/cuda/counts.txt
    python tools/ptx_check.py -- tests/ops/test_ops.py -k "simt and nms"   # these tests

csrc/ptx interprets the PTX that nvcc has put into the object files of mdssd._C, and stands in for
the CUDA runtime. Without nvcc or cuobjdump the script says so and checks nothing. --build names a
build folder of CMake; the default is the one of the editable install.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
OWN = ROOT / "build" / "ptx"  # a build with PTX alone, where the installed one has none
# The kernels are the "simt" backend of the operators. Triton's run only where its plugin is loaded.
OPS = [
    "test_ops.py",
    "test_ops_by_hand.py",
    "test_ops_variants.py",
    "test_detection_output_cuda.py",
    "test_matching_cuda.py",
    "test_merge_boxes_cuda.py",
    "test_multibox_loss_cuda.py",
    "test_nms_padded.py",
    "test_one_stage_losses.py",
    "test_soft_nms_cuda.py",
]
OPS_TESTS = [f"tests/ops/{name}" for name in OPS]
KERNELS = "not triton and not cpp"
# Without tests/ptx, which expects the usual order and exact instructions of the interpreter.
CUDA_TESTS = [*OPS_TESTS, "--small", "-k", KERNELS]
# These test what surrounds the kernels, or launch one hundreds of times on the same few numbers.
# `make test` runs them too, so they run here with --nightly only.
AROUND = " and not opcheck and not gradcheck and not compiles and not other_layouts"
ONCE = ["tests/ptx", *OPS_TESTS, "--small", "-k", KERNELS + AROUND]
TRITON_TESTS = ["-p", "ptx_triton", "tests/ops/test_ops.py", "-k", "triton and agrees", "--small"]
# Kernels that read what atomics change: only the one of csrc/simt/faults.cu.
OLD_VALUES = ("read_beside_atomic_kernel",)
SEEDS = (1, 2, 3, 4)


def find_nvcc() -> str | None:
    named = os.environ.get("CUDACXX")
    return shutil.which(named) if named else shutil.which("nvcc", path=PLACES)


def find_cuobjdump() -> str | None:
    """Return the path of cuobjdump: that of the toolkit, or else the one that Triton brings."""
    nvcc = find_nvcc()
    triton = importlib.util.find_spec("triton")
    folders = [str(Path(nvcc).resolve().parent)] if nvcc else []
    if triton and triton.origin:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join([PLACES, *folders]))


def missing() -> str:
    """Return what this machine lacks, or ""."""
    if not find_nvcc():
        return "nvcc"
    return "" if find_cuobjdump() else "cuobjdump (of the CUDA toolkit or of Triton)"


def has_ptx(build: Path) -> bool:
    """Whether a build folder compiles the kernels to PTX too."""
    backends = build / "backends.txt"
    built = backends.read_text() if backends.exists() else ""
    architectures = re.search(r"cuda  yes  nvcc \S+ (\S+)", built)
    names = architectures[1].split(";") if architectures else []
    return any(not name.endswith("-real") for name in names)


def tool(name: str) -> str:
    """Return the path of cmake or ninja, beside this Python or on PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or name


def build(folder: Path, source: Path = ROOT) -> Path:
    """Build the module that interprets PTX; return the folder that it is in."""
    configure = [tool("cmake"), "-S", source, "-B", folder, "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DMDSSD_CUOBJDUMP={find_cuobjdump()}"]
    if not (folder / "CMakeCache.txt").exists():
        ask = [sys.executable, "-m", "pybind11", "--cmakedir"]
        pybind11 = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
        configure += ["-DMDSSD_CUDA=on", "-DMDSSD_CUDA_ARCHS=90-virtual", "-DMDSSD_SIMT=off"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"]
    for command in (configure, [tool("cmake"), "--build", folder, "--target", "ptx"]):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}\nthe build of csrc/ptx failed: see above")
    return folder / "ptx"


def run_tests(ptx: Path, arguments: list[str], **settings: str) -> int:
    """Run pytest with the interpreted kernels as the backend "simt"; return its exit status."""
    python_path = filter(None, [os.environ.get("PYTHONPATH")])
    environment = {
        "MDSSD_PTX_RACES": "1",
        **os.environ,
        "MDSSD_MODULES": str(ptx),
        "LD_PRELOAD": str(ptx / "ptx_memory.so"),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools"), *python_path]),
        **settings,
    }
    parallel = ["-n", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
    if importlib.util.find_spec("xdist") is None or "-n0" in arguments:
        parallel = []
    command = [sys.executable, "-m", "pytest", "-q", *parallel, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def read_reports(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Return how often each kernel was launched, and what is doubtful, over all processes."""
    launches: dict[str, int] = {}
    notes: set[str] = set()
    for path in folder.glob("*.json"):
        report = json.loads(path.read_text())
        notes |= report["notes"].keys()
        for name, kernel in report["kernels"].items():
            title = kernel["title"]
            if "faults_cu" not in name and not title.startswith("program_"):  # of tests/ptx
                launches[title] = launches.get(title, 0) + kernel["launches"]
    return launches, sorted(note for note in notes if "(program_" not in note)


def check_once(ptx: Path) -> bool:
    """Run the tests in one order, looking for races and for kernels that no test launches."""
    with tempfile.TemporaryDirectory() as folder:
        report = ["-p", "ptx_report"]
        failed = run_tests(ptx, [*report, *ONCE], MDSSD_PTX_REPORT=folder)
        launches, notes = read_reports(Path(folder))
    never = sorted(title for title, count in launches.items() if count == 0)
    doubtful = [note for note in notes if not any(kernel in note for kernel in OLD_VALUES)]
    for title in never:
        print(f"ptx-check: no test launches {title}")
    for note in doubtful:
        print(f"ptx-check: {note}")
    print(f"ptx-check: the tests launched {len(launches) - len(never)} of {len(launches)} kernels")
    return bool(launches) and not failed and not never and not doubtful


def check_seeds(ptx: Path) -> bool:
    """Run the tests in other orders, with approximate instructions that miss an ulp."""
    passed = True
    for seed in map(str, SEEDS):
        order = ["--simt-shuffle", seed]
        # Triton's compiler lets all warps load a number of which one stores the next value.
        triton = {"MDSSD_PTX_RACES": "0", "TRITON_INTERPRET": "0"}
        passed &= run_tests(ptx, [*CUDA_TESTS, *order], MDSSD_PTX_NOISE=seed) == 0
        passed &= run_tests(ptx, [*TRITON_TESTS, *order], MDSSD_PTX_NOISE=seed, **triton) == 0
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=Path, help="build folder of CMake")
    parser.add_argument("--nightly", action="store_true", help="also in four interleavings")
    parser.add_argument("--counts", action="store_true", help="write csrc/cuda/counts.txt")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    args = parser.parse_args()
    if lacking := missing():
        print(f"ptx-check: the compiled kernels were not checked: no {lacking}")
        return 0
    ptx = build(args.build or (INSTALLED if has_ptx(INSTALLED) else OWN))
    if args.counts:
        return run_tests(ptx, ["tests/ptx/test_ptx_counts.py", "-n0"], MDSSD_PTX_WRITE_COUNTS="1")
    if args.pytest:
        return run_tests(ptx, args.pytest)
    passed = check_once(ptx)
    if args.nightly:
        passed &= check_seeds(ptx)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
