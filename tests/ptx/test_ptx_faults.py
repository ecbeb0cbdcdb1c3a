"""The interpreter of compiled kernels finds those that are wrong on purpose."""

from __future__ import annotations

import pytest
import torch

UNSET = -1  # unwritten shared memory as an int, in the order without a seed
RIGHT = [(i + 1) % 64 for i in range(64)]


def launch(ptx, name: str, seed: int = 0, out: torch.Tensor | None = None) -> list[int]:
    out = torch.zeros(64, dtype=torch.int32) if out is None else out
    ptx.module.set_shuffle(seed)
    ptx.module.faults[name](out.data_ptr())
    return out.tolist()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("races", [False, True])
def test_a_right_kernel_is_right_in_any_order(ptx, races, seed):
    ptx.configure(races=races)
    assert launch(ptx, "rotate", seed) == RIGHT
    near = [i ^ 1 if i % 32 < 16 else i ^ 16 for i in range(64)]
    assert launch(ptx, "syncwarp", seed) == near
    assert launch(ptx, "atomic", seed) == [128, *[0] * 63]
    assert launch(ptx, "volatile_beside_atomic", seed) == [128, *[0] * 63]
    launch(ptx, "bytes", seed)


def test_a_missing_barrier_gives_a_result_that_depends_on_the_order(ptx):
    ptx.configure(races=False)
    assert launch(ptx, "missing_barrier") != RIGHT
    results = {tuple(launch(ptx, "missing_barrier", seed)) for seed in range(1, 6)}
    assert len(results) == 5 and tuple(RIGHT) not in results


def test_shared_memory_that_was_never_written_shows(ptx):
    ptx.configure(races=False)
    out = launch(ptx, "uninitialised_shared")
    assert out[7] == UNSET and out[:7] + out[8:] == [0] * 63
    assert len({launch(ptx, "uninitialised_shared", seed)[7] for seed in range(1, 6)}) == 5


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "name, message",
    [
        ("missing_barrier", "a race: a (read|write) of what another thread (writes|reads)"),
        ("missing_syncwarp", "a race: a (read|write) of what another thread (writes|reads)"),
        ("syncwarp_of_half", "a race: a (read|write) of what another thread (writes|reads)"),
        ("overtaking", "a race: a (read|write) of what another thread (writes|reads)"),
        ("missing_atomic", "a race: .* another thread|a race: two threads write"),
        ("uninitialised_shared", "a read of shared memory that nobody wrote"),
        ("partial_barrier", "not all threads of the block reach the barrier"),
        ("two_barriers", "threads wait at different barriers"),
        ("mask_too_wide", "the mask names a lane that (does not arrive|has ended)"),
        ("mask_without_caller", "the mask does not include the calling lane"),
        ("masks_differ", "the mask names a lane that (does not arrive|has ended)"),
        ("shuffle_outside_mask", "a shuffle reads from a lane outside its mask"),
        ("misaligned", "a misaligned address"),
    ],
)
def test_a_fault_is_named_with_its_kernel_and_instruction(ptx, name, message, seed):
    ptx.configure(races=True)
    where = rf"\({name}_kernel, block 0,0,0, thread \d+: (ld|st|bar|vote|shfl)\S* .*\)$"
    with pytest.raises(RuntimeError, match=f"^{name}: CUDA: {message}.*{where}"):
        launch(ptx, name, seed)
    assert launch(ptx, "rotate", seed) == RIGHT  # the next launch is not affected


def test_an_access_beyond_shared_memory_is_found(ptx):
    with pytest.raises(RuntimeError, match="an address outside shared memory"):
        launch(ptx, "shared_overflow", out=torch.full((64,), 64, dtype=torch.int32))


def test_an_access_beyond_an_array_is_found(ptx):
    with pytest.raises(RuntimeError, match=r"an address outside all arrays \(rotate_kernel"):
        launch(ptx, "rotate", out=torch.zeros(63, dtype=torch.int32))


@pytest.mark.parametrize("name", ["write_outside", "read_outside"])
def test_an_access_outside_the_array_of_a_call_is_found(ptx, name):
    inside = torch.zeros(192, dtype=torch.int32)[64:128]  # in memory that the process has
    with pytest.raises(RuntimeError, match="an address outside all arrays"):
        ptx.module.faults[name](inside.data_ptr(), 256)
    assert not inside.any()


def test_a_plain_read_of_what_atomics_change_is_noted(ptx):
    ptx.configure(races=True)
    launch(ptx, "read_beside_atomic")
    assert [note for note in ptx.report()["notes"] if "(read_beside_atomic_kernel: " in note]


@pytest.mark.parametrize("scope, races", [("", False), (".gpu", False), (".cta", True)])
def test_an_atomic_for_a_block_is_a_race_with_other_blocks(ptx, scope, races):
    ptx.configure(races=True)
    code = f"mov.u32 %r3, 1; atom{scope}.global.add.u32 %r2, [%rd1], %r3;"
    x = torch.zeros(4, dtype=torch.int32)
    assert ptx.run(code, x, blocks=1).tolist() == [1] * 4
    if not races:
        assert ptx.run(code, x, blocks=3).tolist() == [3] * 4
        return
    with pytest.raises(RuntimeError, match="a race: two threads write"):
        ptx.run(code, x, blocks=3)


def test_a_kernel_reads_the_number_that_chooses_a_mutant(ptx):
    code = "mov.u32 %r3, %envreg0; st.global.u32 [%rd1], %r3;"
    x = torch.zeros(2, dtype=torch.int32)
    ptx.choose(7)
    assert ptx.run(code, x).tolist() == [7, 7]
    ptx.choose(0)
    assert ptx.run(code, x).tolist() == [0, 0]


def test_the_kernel_that_asks_a_device_for_an_answer_runs(ptx):
    assert ptx.device_fault() == ""


def test_noise_moves_approximations_by_one_ulp(ptx):
    x = torch.linspace(-3, 3, 256)
    code = "ld.global.f32 %f0, [%rd0]; ex2.approx.f32 %f1, %f0; st.global.f32 [%rd1], %f1;"
    ptx.configure(noise=0)
    right = ptx.run(code, x)
    assert torch.equal(right, torch.exp2(x.double()).float())
    moved = []
    for noise in (1, 2):
        ptx.configure(noise=noise)
        off = ptx.run(code, x).view(torch.int32) - right.view(torch.int32)
        assert set(off.tolist()) == {-1, 0, 1}
        moved.append(off)
    assert not torch.equal(*moved)
    for noise in range(1, 9):  # but not the value that PTX promises
        ptx.configure(noise=noise)
        assert ptx.run(code, torch.zeros(256)).eq(1).all()
