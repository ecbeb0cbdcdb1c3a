"""tools/mutants.py: which faults it plants in the kernels."""

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

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
