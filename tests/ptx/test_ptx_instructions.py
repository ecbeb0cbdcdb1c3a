"""Single instructions of PTX, against values worked by hand or by PyTorch."""

from __future__ import annotations

import pytest
import torch

F32, F64, S32 = torch.float32, torch.float64, torch.int32
INF, NAN = float("inf"), float("nan")
THIRD = 1 / 3


def unary(instruction: str, register: str, kind: str, to: str = "", to_kind: str = "") -> str:
    """Load the thread's number, apply one instruction and store the result."""
    to, to_kind = to or register, to_kind or kind
    return (
        f"ld.global.{kind} %{register}0, [%rd0]; {instruction} %{to}1, %{register}0; "
        f"st.global.{to_kind} [%rd1], %{to}1;"
    )


@pytest.mark.parametrize(
    "instruction, x, expected",
    [
        ("sqrt.rn.f32", [4.0, 2.0, -1.0], [2.0, 2.0**0.5, NAN]),
        ("rcp.rn.f32", [3.0, 0.0, -INF], [THIRD, INF, -0.0]),
        ("lg2.approx.f32", [8.0, 0.0, -1.0], [3.0, -INF, NAN]),
        ("ex2.approx.ftz.f32", [3.0, -140.0, INF], [8.0, 0.0, INF]),
        ("ex2.approx.f32", [-140.0], [2.0**-140]),
        ("rsqrt.approx.f32", [4.0, 0.0], [0.5, INF]),
        ("neg.f32", [1.0, NAN], [-1.0, NAN]),
        ("abs.f32", [-2.5], [2.5]),
        ("cvt.rni.f32.f32", [0.5, 1.5, 2.5, -0.5], [0.0, 2.0, 2.0, -0.0]),
        ("cvt.rmi.f32.f32", [1.9, -1.1], [1.0, -2.0]),
        ("cvt.sat.f32.f32", [-1.0, 0.25, 7.0, NAN], [0.0, 0.25, 1.0, 0.0]),
    ],
)
def test_float32(ptx, instruction, x, expected):
    got = ptx.run(unary(instruction, "f", "f32"), torch.tensor(x))
    torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "mode, expected",
    [("rn", 1 / 3), ("rz", float.fromhex("0x1.555554p-2")), ("rp", float.fromhex("0x1.555556p-2"))],
)
def test_the_rounding_that_an_instruction_names(ptx, mode, expected):
    code = (
        "ld.global.f32 %f0, [%rd0]; mov.f32 %f1, 0f3F800000; "
        f"div.{mode}.f32 %f2, %f1, %f0; st.global.f32 [%rd1], %f2;"
    )
    assert ptx.run(code, torch.tensor([3.0])).item() == torch.tensor(expected).item()


def test_a_fused_multiply_add_rounds_once(ptx):
    code = unary("fma.rn.f32", "f", "f32").replace("%f1, %f0;", "%f1, %f0, %f0, 0fBF800000;")
    x = 1 + 2.0**-12
    assert ptx.run(code, torch.tensor([x])).item() == x * x - 1
    parts = code.replace("fma.rn.f32 %f1, %f0, %f0", "mul.f32 %f1, %f0, %f0; add.f32 %f1, %f1")
    assert ptx.run(parts, torch.tensor([x])).item() == 2.0**-11


def test_float64_and_conversions(ptx):
    x = torch.tensor([2.0, 1e-300, -INF], dtype=F64)
    assert torch.equal(ptx.run(unary("sqrt.rn.f64", "fd", "f64"), x[:2]), x[:2].sqrt())
    got = ptx.run(unary("cvt.rn.f32.f64", "fd", "f64", "f", "f32"), x, F32)
    assert got.tolist() == [2.0, 0.0, -INF]
    code = unary("cvt.rzi.s32.f32", "f", "f32", "r", "u32")
    assert ptx.run(code, torch.tensor([-1.9, 3e9, NAN]), S32).tolist() == [-1, 2**31 - 1, 0]
    code = unary("cvt.rn.f32.s32", "r", "u32", "f", "f32")
    assert ptx.run(code, torch.tensor([-3, 2**24 + 1], dtype=S32), F32).tolist() == [-3, 2.0**24]


@pytest.mark.parametrize("kind, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_types_round_to_nearest_even(ptx, kind, dtype):
    x = torch.cat([torch.linspace(-3, 3, 500), torch.tensor([1e-7, 65519.0, 1e38, INF])])
    code = (
        f"ld.global.f32 %f0, [%rd0]; cvt.rn.{kind}.f32 %h1, %f0; cvt.f32.{kind} %f1, %h1; "
        "st.global.f32 [%rd1], %f1;"
    )
    torch.testing.assert_close(ptx.run(code, x), x.to(dtype).float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "instruction, x, expected",
    [
        ("add.s32 %r2, %r1, 1", [2**31 - 1], [-(2**31)]),
        ("mul.lo.s32 %r2, %r1, -3", [5], [-15]),
        ("mul.hi.u32 %r2, %r1, -1", [-1], [-2]),
        ("mul.hi.s32 %r2, %r1, 1", [-1], [-1]),
        ("mad.lo.s32 %r2, %r1, 7, 2", [3], [23]),
        ("div.s32 %r2, %r1, 2", [-7], [-3]),
        ("rem.s32 %r2, %r1, 2", [-7], [-1]),
        ("div.u32 %r2, %r1, 2", [-2], [2**31 - 1]),
        ("min.u32 %r2, %r1, 5", [-1], [5]),
        ("max.s32 %r2, %r1, 5", [-1], [5]),
        ("shl.b32 %r2, %r1, 33", [1], [0]),
        ("shr.s32 %r2, %r1, 33", [-8], [-1]),
        ("shr.u32 %r2, %r1, 28", [-1], [15]),
        ("not.b32 %r2, %r1", [5], [-6]),
        ("popc.b32 %r2, %r1", [-1, 0, 5], [32, 0, 2]),
        ("clz.b32 %r2, %r1", [0, 1, -1], [32, 31, 0]),
        ("brev.b32 %r2, %r1", [1, 2], [-(2**31), 2**30]),
        ("bfind.u32 %r2, %r1", [0, 1, 1000], [-1, 0, 9]),
        ("bfind.shiftamt.u32 %r2, %r1", [1], [31]),
        ("bfe.u32 %r2, %r1, 4, 8", [0x12345], [0x34]),
        ("bfe.s32 %r2, %r1, 4, 4", [0xF0], [-1]),
        ("bfi.b32 %r2, %r1, 0, 8, 4", [0xF7], [0x700]),
        ("prmt.b32 %r2, %r1, 0, 0x0123", [0x01020304], [0x04030201]),
        ("prmt.b32 %r2, %r1, 0, 0x4448", [0x80], [0xFF]),
        ("lop3.b32 %r2, %r1, 12, 10, 0x96", [6], [6 ^ 12 ^ 10]),
        ("shf.l.wrap.b32 %r2, %r1, 1, 8", [-(2**24)], [0x1FF]),
        ("shf.r.clamp.b32 %r2, %r1, 1, 40", [7], [1]),
        ("cvt.sat.s8.s32 %r2, %r1", [300, -300, 7], [127, -128, 7]),
        ("cvt.u32.u8 %r2, %r1", [0x1FF], [0xFF]),
        ("cvt.s32.s8 %r2, %r1", [0x1FF], [-1]),
    ],
)
def test_integers(ptx, instruction, x, expected):
    code = f"ld.global.u32 %r1, [%rd0]; {instruction}; st.global.u32 [%rd1], %r2;"
    assert ptx.run(code, torch.tensor(x, dtype=S32)).tolist() == expected


@pytest.mark.parametrize(
    "comparison, expected",
    [
        ("lt", [1, 0, 0]),
        ("ge", [0, 1, 0]),
        ("ltu", [1, 0, 1]),
        ("ne", [1, 1, 0]),
        ("nan", [0, 0, 1]),
    ],
)
def test_comparisons_with_nan(ptx, comparison, expected):
    code = (
        f"ld.global.f32 %f0, [%rd0]; setp.{comparison}.f32 %p0|%p1, %f0, 0f3F800000; "
        "selp.u32 %r1, 1, 0, %p0; @%p1 add.s32 %r1, %r1, 10; st.global.u32 [%rd1], %r1;"
    )
    got = ptx.run(code, torch.tensor([0.0, 2.0, NAN]), S32)
    assert got.tolist() == [value + (0 if value else 10) for value in expected]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "instruction, expected",
    [
        ("shfl.sync.down.b32 %r2|%p0, %r0, 1, 31, -1", [*range(1, 32), 31]),
        ("shfl.sync.up.b32 %r2|%p0, %r0, 2, 0, -1", [0, 1, *range(30)]),
        ("shfl.sync.bfly.b32 %r2|%p0, %r0, 31, 31, -1", [*reversed(range(32))]),
        ("shfl.sync.idx.b32 %r2|%p0, %r0, 3, 0x181f, -1", [i // 8 * 8 + 3 for i in range(32)]),
        ("redux.sync.max.s32 %r2, %r0, -1", [31] * 32),
        ("and.b32 %r3, %r0, 1; match.any.sync.b32 %r2, %r3, -1", [0x55555555, -0x55555556] * 16),
        ("setp.lt.u32 %p0, %r0, 3; vote.sync.ballot.b32 %r2, %p0, -1", [7] * 32),
        ("atom.global.add.u32 %r2, [%rd1], 1", [0] * 32),
    ],
)
def test_lanes_of_a_warp(ptx, instruction, expected, seed):
    ptx.module.set_shuffle(seed)
    code = f"{instruction}; st.global.u32 [%rd1], %r2;"
    assert ptx.run(code, torch.zeros(32, dtype=S32)).tolist() == expected


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loops_and_lanes_that_part(ptx, seed):
    ptx.module.set_shuffle(seed)
    code = """
        ld.global.u32 %r1, [%rd0]; mov.u32 %r2, 0;
    $loop:
        setp.eq.s32 %p0, %r1, 0;
        @%p0 bra $end;
        add.s32 %r2, %r2, %r1; add.s32 %r1, %r1, -1;
        bra.uni $loop;
    $end:
        bar.sync 0;
        st.global.u32 [%rd1], %r2;"""
    n = torch.arange(100, dtype=S32)
    assert torch.equal(ptx.run(code, n), n * (n + 1) // 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_endless_loop_ends(ptx, seed):
    ptx.module.set_shuffle(seed)
    ptx.configure(limit=1000)
    with pytest.raises(RuntimeError, match=r"an endless loop \(program_\d+, .*: bra"):
        ptx.run("$loop: bra $loop;", torch.zeros(1))


@pytest.mark.parametrize(
    "between, wrong",
    [
        ("", "a race: two threads write"),
        ("bar.sync 0;", None),
        ("bar.warp.sync -1;", None),
    ],
)
def test_two_lanes_write_one_word(ptx, between, wrong):
    ptx.configure(races=True)
    code = f"""
        setp.eq.u32 %p0, %r0, 0;
        @%p0 st.shared.u32 [scratch], %r0;
        {between}
        @!%p0 st.shared.u32 [scratch], %r0;
        st.global.u32 [%rd1], %r0;"""
    two = torch.zeros(32 if "warp" in between else 2, dtype=S32)
    if "warp" in between:  # only lane 1 writes
        code = code.replace("@!%p0 st.shared", "setp.eq.u32 %p1, %r0, 1; @%p1 st.shared")
    if wrong:
        with pytest.raises(RuntimeError, match=wrong):
            ptx.run(code, two)
    else:
        assert ptx.run(code, two).tolist() == list(range(len(two)))


def test_atomics_are_no_race_but_plain_code_in_their_place_is(ptx):
    ptx.configure(races=True)
    setup = "mov.u32 %r4, 0; setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [scratch], 0; bar.sync 0;"
    end = "bar.sync 0; ld.shared.u32 %r2, [scratch]; st.global.u32 [%rd1], %r2;"
    x = torch.zeros(64, dtype=S32)
    assert ptx.run(f"{setup} red.shared.add.u32 [scratch], 1; {end}", x).tolist() == [64] * 64
    plain = "ld.shared.u32 %r3, [scratch]; add.s32 %r3, %r3, 1; st.shared.u32 [scratch], %r3;"
    with pytest.raises(RuntimeError, match="a race: a write of what another thread reads"):
        ptx.run(f"{setup} {plain} {end}", x)
    plain_read = "ld.shared.u32 %r3, [scratch]; red.shared.max.u32 [scratch], %r3;"
    ptx.run(f"{setup} {plain_read} {end}", x)  # a note: the value may be an old one
    assert [note for note in ptx.report()["notes"] if "another thread reads" in note]


def test_what_is_not_known_is_said(ptx):
    with pytest.raises(AssertionError, match="unknown instruction tanh.approx.f32"):
        ptx.run(unary("tanh.approx.f32", "f", "f32"), torch.zeros(1))
    with pytest.raises(AssertionError, match="unknown label \\$nowhere"):
        ptx.run("bra $nowhere;", torch.zeros(1))
