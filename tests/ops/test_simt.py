"""The CUDA kernels on the CPU: kernels that are wrong on purpose, and whose faults are found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdssd.ops import _modules

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "csrc" / "simt" / "faults.cu").read_text().splitlines()
RIGHT = [(i + 1) % 64 for i in range(64)]
UNSET = -1  # unwritten shared memory as an int, in the order without a seed

pytestmark = pytest.mark.skipif(
    _modules.simt is None, reason="no mdssd._simt: it comes with pip install -e ."
)
sanitized = pytest.mark.skipif(
    "libasan" not in os.environ.get("LD_PRELOAD", ""),
    reason="needs the sanitized module: make simt-check",
)


def launch(name: str, seed: int = 0) -> list[int]:
    out = torch.zeros(64, dtype=torch.int32)
    _modules.simt.set_shuffle(seed)
    _modules.simt.faults[name](out.data_ptr())
    return out.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_a_right_kernel_is_right_in_any_order(seed):
    assert launch("rotate", seed) == RIGHT


def test_a_missing_barrier_gives_a_wrong_result():
    assert launch("missing_barrier") != RIGHT


def test_a_missing_barrier_gives_a_result_that_depends_on_the_order():
    results = {tuple(launch("missing_barrier", seed)) for seed in range(1, 6)}
    assert len(results) == 5 and tuple(RIGHT) not in results


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "name, message",
    [
        ("partial_barrier", "not all threads of the block reach the barrier"),
        ("two_barriers", "threads wait at different barriers"),
        ("mask_too_wide", "the mask includes a lane that (does not arrive|has ended)"),
        ("mask_without_caller", "the mask does not include the calling lane"),
        ("masks_differ", "the mask includes a lane that does not arrive with the same mask"),
        ("shuffle_outside_mask", "a shuffle reads from a lane outside its mask"),
    ],
)
def test_a_fault_is_named_with_its_line(name, message, seed):
    with pytest.raises(RuntimeError, match=f"^simt: {name}: {message}") as error:
        launch(name, seed)
    place = re.search(r"faults\.cu:(\d+), block 0,0,0, thread \d+,0,0\)$", str(error.value))
    assert place, error.value
    line = int(place[1])
    assert "_sync(" in SOURCE[line - 1] or "__syncthreads()" in SOURCE[line - 1]
    kernel = next(text for text in reversed(SOURCE[:line]) if "__global__" in text)
    assert f" {name}_kernel(" in kernel
    # The next launch is not affected.
    assert launch("rotate", seed) == RIGHT


def test_shared_memory_that_was_never_written_shows():
    out = launch("uninitialised_shared")
    assert out[7] == UNSET and out[:7] + out[8:] == [0] * 63
    assert len({launch("uninitialised_shared", seed)[7] for seed in range(1, 6)}) == 5


@sanitized
@pytest.mark.parametrize(
    "name, ints, report",
    [
        ("rotate", 64, ""),
        (
            "rotate",
            63,
            "AddressSanitizer: heap-buffer-overflow",
        ),  # one too few
        ("shared_overflow", 64, "AddressSanitizer: global-buffer-overflow"),
        ("misaligned", 64, "runtime error: .* misaligned address"),
    ],
)
def test_the_sanitized_module_finds(name, ints, report):
    """Each fault runs in its own process, since it ends the process."""
    script = (
        "import torch, conftest\n"
        f"out = torch.full(({ints},), 64, dtype=torch.int32)\n"
        f"conftest._modules.simt.faults['{name}'](out.data_ptr())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode != 0) == bool(report), done.stderr
    assert re.search(report, done.stderr) and ("faults.cu:" in done.stderr) == bool(report)
