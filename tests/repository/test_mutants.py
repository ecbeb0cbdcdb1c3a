"""tools/mutants.py: which faults it plants in the kernels."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mdssd.ops import _modules

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
int host(int n, int m) { return n < m ? n : m; }
template <class T>
__device__ T sum(T value, T* scratch) {
  __syncthreads();  // not __syncthreads(); here
  return value;
}
__global__ void __launch_bounds__(128, 8 * sizeof(int) / sizeof(T)) a_kernel(int n, int* out) {
  const int i = threadIdx.x;
  if (i >= n) return;
  for (int k = 0; k < n; ++k) out[k] = i < n ? 1 : 0;
  const bool inside = i < n;
  if (inside && k + i < n) atomicAdd(&out[i], 1);
  __syncwarp();
}
"""


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    return module


def test_what_is_planted(mutants):
    text, planted = mutants.plant("nms.cu", SOURCE, 5)
    assert [mutant.name for mutant in planted] == [
        "nms.cu sum barrier 1: __syncthreads()",
        "nms.cu a_kernel bounds 1: i >= n",
        "nms.cu a_kernel bounds 2: i < n",
        "nms.cu a_kernel bounds 3: i < n",
        "nms.cu a_kernel bounds 4: k + i < n",
        "nms.cu a_kernel atomic 1: atomicAdd",
        "nms.cu a_kernel syncwarp 1: __syncwarp()",
    ]
    assert [mutant.number for mutant in planted] == list(range(5, 12))
    for line in [
        "  if (!simt::planted(5)) __syncthreads();  // not __syncthreads(); here",
        "  if (!simt::planted(6) && (i >= n)) return;",
        "out[k] = (simt::planted(7) || (i < n)) ? 1 : 0;",
        "  const bool inside = (simt::planted(8) || (i < n));",
        "  if (inside && (simt::planted(9) || (k + i < n))) planted_atomicAdd(10, &out[i], 1);",
        "  if (!simt::planted(11)) __syncwarp();",
        "int host(int n, int m) { return n < m ? n : m; }",
    ]:
        assert line in text


def test_every_barrier_and_atomic_of_the_kernels_has_a_mutant(mutants):
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.*")):
        code = re.sub(r"//[^\n]*", "", path.read_text())
        wanted = {
            "barrier": len(re.findall(r"__syncthreads\(|__syncthreads_\w+\(", code)),
            "syncwarp": code.count("__syncwarp("),
            "atomic": len(re.findall(r"\batomic[A-Z]\w*\(", code)),
        }
        planted = mutants.plant(path.name, path.read_text(), 1)[1]
        kinds = Counter(mutant.kind for mutant in planted)
        if path.suffix in (".cu", ".h"):
            assert {kind: kinds[kind] for kind in wanted} == wanted, path.name
            assert path.name in mutants.OPERATORS or not planted


def test_the_table_counts_what_each_build_finds(mutants, tmp_path, monkeypatch):
    planted = mutants.plant("nms.cu", SOURCE, 1)[1]
    kept = {flavour: tmp_path / flavour for flavour in mutants.FLAVOURS}
    for flavour, path in kept.items():
        found = {m.name: "a race" if flavour == "checked" else "" for m in planted}
        found[planted[1].name] = "" if flavour != "on" else "another result"
        path.write_text(json.dumps({"seconds": 90, "results": found}))
    monkeypatch.setattr(mutants, "EXPLAINED", {planted[1].name: "It only saves work."})
    lines = mutants.table(planted, kept, "abc123").splitlines()
    assert "| a `__syncthreads` | 0 of 1 | 1 of 1 | 0 of 1 |" in lines
    assert "| a comparison with a bound | 1 of 4 | 3 of 4 | 0 of 4 |" in lines
    assert "| minutes of one processor | 1.5 | 1.5 | 1.5 |" in lines
    both = "simt with it, compiled code"
    assert f"| `nms.cu a_kernel bounds 1: i >= n` | {both} | It only saves work. |" in lines
    others = "simt without its race check, compiled code"
    assert f"| `nms.cu sum barrier 1: __syncthreads()` | {others} | not explained |" in lines


def test_a_reason_without_a_survivor_is_wrong(mutants, monkeypatch):
    planted = mutants.plant("nms.cu", SOURCE, 1)[1]
    results = {mutant.name: "a race" for mutant in planted}
    results[planted[2].name] = ""
    reasons = dict.fromkeys([planted[0].name, "nms.cu gone"], "A reason.")
    monkeypatch.setattr(mutants, "EXPLAINED", reasons)
    wrong = mutants.unexplained(planted, results)
    assert sorted(wrong) == sorted([planted[2].name, planted[0].name, "nms.cu gone"])


@pytest.mark.nightly("ten minutes: each fault of each kernel")
@pytest.mark.skipif(_modules.simt is None, reason="no mdssd._simt: it comes with pip install -e .")
def test_the_race_check_finds_every_fault_that_is_not_explained():
    command = [sys.executable, ROOT / "tools" / "mutants.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
