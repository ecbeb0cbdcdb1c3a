"""What csrc/cuda/runtime.h promises, and which CUDA versions compile csrc/storage.h."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
# The first thread sanitizer that reports an unordered access ends the program with this status.
PROGRAM = """
#include <cstdio>
#include <functional>
#include <thread>
#include "cuda/runtime.h"

namespace simt {
void launch(const char*, dim3, dim3, const std::function<void()>&) {}
}

int main() {
  auto work = [] {
    char bytes[8];
    for (int i = 0; i < 100000; ++i) mdssd::zero("test", bytes, 8, nullptr);
  };
  std::thread other(work);
  work();
  other.join();
  std::printf("%lld", (long long)mdssd::launch_count());
}
"""
ARRAYS = """
#include <cstdio>
#include <cstdlib>
#include "cuda/runtime.h"

int main(int count, char**) {
  mdssd::Workspace measure(nullptr);
  measure.take<float>(40), measure.take<int>(1);
  void* const memory = std::malloc(size_t(measure.bytes()));
  mdssd::Workspace workspace(memory);
  volatile float* const first = workspace.take<float>(40);
  volatile int* const second = workspace.take<int>(1);
  for (int i = 0; i < 40; ++i) first[i] = 0;
  second[0] = 0;
  std::printf("inside ");
  std::fflush(stdout);
  first[40 + count - 1] = 1;  // the first place beyond the array
}
"""


def build(folder: Path, program: str, *options: str) -> Path:
    compiler = os.environ.get("CXX", "c++")
    (folder / "a.cpp").write_text(program)
    command = [compiler, "-std=c++17", "-O1", "-g", f"-I{CSRC}", *options]
    done = subprocess.run(
        [*command, folder / "a.cpp", "-o", folder / "a", "-pthread"], capture_output=True, text=True
    )
    if "cannot find" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "a"


def test_threads_count_launches_together(tmp_path: Path) -> None:
    program = build(tmp_path, PROGRAM, "-fsanitize=thread")
    done = subprocess.run([program], capture_output=True, text=True)
    assert "data race" not in done.stderr
    assert done.stdout == "200000"


def test_a_write_beyond_an_array_of_a_workspace_is_found(tmp_path: Path) -> None:
    program = build(tmp_path, ARRAYS, "-fsanitize=address")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.stdout == "inside "
    assert done.returncode != 0 and "AddressSanitizer: use-after-poison" in done.stderr


KERNEL = """
#include "storage.h"
__global__ void k(float x, mdssd::BFloat16* y, mdssd::Half* z) {
  *y = mdssd::narrow<mdssd::BFloat16>(x);
  *z = mdssd::narrow<mdssd::Half>(mdssd::widen(*y));
}
"""


@pytest.mark.parametrize("arch", [75, 80, 90])
def test_older_headers_of_cuda_compile(tmp_path: Path, arch: int) -> None:
    """Of the package nvidia-cuda-runtime-cu11 or cu12, if one is installed; MDSSD_CUDA_HEADERS."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    installed = Path(sysconfig.get_path("purelib"), "nvidia", "cuda_runtime", "include")
    folders = os.environ.get("MDSSD_CUDA_HEADERS", str(installed)).split(os.pathsep)
    found = [path for path in map(Path, folders) if (path / "cuda_bf16.h").exists()]
    if not nvcc or not found:
        pytest.skip("needs nvcc and pip install nvidia-cuda-runtime-cu11")
    for path in found:
        # These headers alone, since the others belong to the compiler's own version.
        old = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        old.mkdir()
        for name in ("cuda_bf16.h", "cuda_bf16.hpp", "cuda_fp16.h", "cuda_fp16.hpp"):
            shutil.copy(path / name, old)
        source = old / "kernel.cu"
        source.write_text(KERNEL)
        command = [nvcc, f"-arch=sm_{arch}", "-std=c++17", f"-I{old}", f"-I{CSRC}", "-ptx"]
        done = subprocess.run([*command, "-o", os.devnull, source], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
