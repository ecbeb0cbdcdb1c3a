"""The CUDA kernels on the CPU: kernels that are wrong on purpose, and whose faults are found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdssd.ops import _modules
from mdssd.ops._tensors import dtype_code

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "csrc" / "simt" / "faults.cu").read_text().splitlines()
RIGHT = [(i + 1) % 64 for i in range(64)]
UNSET = -1  # unwritten shared memory as an int, in the order without a seed

pytestmark = pytest.mark.skipif(
    _modules.simt is None, reason="no mdssd._simt: it comes with pip install -e ."
)
CHECKED = getattr(_modules.simt, "checked", False)
checked = pytest.mark.skipif(not CHECKED, reason="needs the checked module: make simt-check")
unchecked = pytest.mark.skipif(CHECKED, reason="the checked module reports the race instead")
sanitized = pytest.mark.skipif(
    "libasan" not in os.environ.get("LD_PRELOAD", ""),
    reason="needs the sanitized module: make simt-check",
)


def launch(name: str, seed: int = 0) -> list[int]:
    out = torch.zeros(64, dtype=torch.int32)
    _modules.simt.set_shuffle(seed)
    _modules.simt.faults[name](out.data_ptr(), out.nbytes)
    return out.tolist()


def kernel_of(line: int) -> str:
    """The name of the kernel that has this line of faults.cu."""
    kernel = next(text for text in reversed(SOURCE[:line]) if "__global__" in text)
    return re.search(r"(\w+)_kernel\(", kernel)[1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "name, expected",
    [
        ("rotate", RIGHT),
        ("syncwarp", [i ^ 1 if i % 32 < 16 else i ^ 16 for i in range(64)]),
        ("atomic", [128] + [0] * 63),
        ("volatile_beside_atomic", [128] + [0] * 63),
        ("bytes", [int.from_bytes(bytes(range(i, i + 4)), "little") for i in range(0, 64, 4)] * 2),
    ],
)
def test_a_right_kernel_is_right_in_any_order(name, expected, seed):
    assert launch(name, seed) == expected + [0] * (64 - len(expected))


@unchecked
def test_a_missing_barrier_gives_a_wrong_result():
    assert launch("missing_barrier") != RIGHT


@unchecked
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
    assert kernel_of(line) == name
    # The next launch is not affected.
    assert launch("rotate", seed) == RIGHT


@pytest.mark.parametrize("name", ["uninitialised_shared", "uninitialised_template"])
def test_shared_memory_that_was_never_written_shows(name):
    out = launch(name)
    assert out[7] == UNSET and out[:7] + out[8:] == [0] * 63
    assert len({launch(name, seed)[7] for seed in range(1, 6)}) == 5


def test_shared_memory_may_have_what_another_block_left():
    assert launch("left_by_a_block") == [UNSET] * 64
    assert any(launch("left_by_a_block", seed) == [1] * 64 for seed in range(1, 20))


@unchecked
def test_a_warp_that_overtakes_another_gives_a_wrong_result():
    """It does so where one warp runs as far as it can; in step, each reads what it should."""
    in_step = [0 + 1 + 2] * 64
    assert any(launch("overtaking", seed) != in_step for seed in range(3))


# The kernel, and the lines of the two accesses as they stand in its code.
RACES = {
    "missing_barrier": ("numbers[threadIdx.x] = int", "out[threadIdx.x] = numbers"),
    "missing_barrier_after_result": ("fours[threadIdx.x] = four_of", "const int sum = fours"),
    "overtaking": ("= turn;", "out[threadIdx.x] += "),
    "missing_syncwarp": ("numbers[threadIdx.x] = int", "out[threadIdx.x] = numbers"),
    "syncwarp_of_half": ("numbers[threadIdx.x] = int", "out[threadIdx.x] = numbers"),
    "missing_atomic": ("*out += 1", "*out += 1"),
    "read_beside_atomic": ("*out < 1000", "*out < 1000"),
}


@checked
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("name", RACES)
def test_a_race_is_found_in_any_order_with_both_lines(name, seed):
    with pytest.raises(RuntimeError, match=f"^simt: {name}: data race\n") as error:
        launch(name, seed)
    lines = str(error.value).splitlines()[1:]
    assert lines
    for line in lines:
        places = re.findall(rf"faults\.cu:(\d+) in {name}_kernel by block \d, thread \d+", line)
        assert len(places) == 2 and all(kernel_of(int(place)) == name for place in places)
        for place in places:
            assert any(code in SOURCE[int(place) - 1] for code in RACES[name]), line
        assert ("shared memory" in line) == ("atomic" not in name)
    assert launch("rotate", seed) == RIGHT


@checked
def test_a_race_is_found_in_a_kernel_that_never_ends():
    with pytest.raises(RuntimeError, match=r"^simt: endless: data race\n"):
        launch("endless")


@checked
@pytest.mark.parametrize("name, what", [("write_outside", "a write"), ("read_outside", "a read")])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_access_outside_of_the_arrays_does_not_happen(name, what, seed):
    message = rf"^simt: {name}: {what} outside of the arrays of the call \(faults\.cu:(\d+) in"
    with pytest.raises(RuntimeError, match=message) as error:
        launch(name, seed)
    assert kernel_of(int(re.match(message, str(error.value))[1])) == name


@checked
def test_the_bytes_between_the_arrays_of_a_workspace_are_outside():
    out = torch.zeros(256, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"^simt: write_between: a write outside of the arrays"):
        _modules.simt.faults["write_between"](out.data_ptr(), out.nbytes)
    assert not out.any()


@checked
def test_the_bounds_are_those_of_the_tensors_that_an_operator_gets():
    boxes, other = torch.rand(2, 3, 4)
    result = torch.empty(3, 2)
    with pytest.raises(RuntimeError, match=r"^simt: box_iou: a write outside .* box_iou_kernel"):
        _modules.simt.box_iou_cuda(boxes, 3, other, 3, result, dtype_code(boxes), 0)


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
