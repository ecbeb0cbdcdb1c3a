"""Every operator on every backend against the reference, on the shared CASES."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.testing import Case

# Sizes for tests that do not depend on the kernels, for backends whose kernels are slow.
_FEW = ("empty", "no_image", "one", "small", "odd", "ragged")


@pytest.fixture(autouse=True)
def memory_filled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill new tensors with NaN and the largest integers, so that unwritten results show.

    With --unfilled they are left as they are, for compute-sanitizer's initcheck, which reports
    reads of memory that nobody wrote.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = not request.config.getoption("unfilled")
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(False)


def test_new_memory_is_filled_unless_asked_not_to(request: pytest.FixtureRequest) -> None:
    fresh = torch.empty(1000, device="cuda" if torch.cuda.is_available() else "cpu")
    assert bool(fresh.isnan().all()) != request.config.getoption("unfilled")


def run(case: Case, backend: str, args: Any, kwargs: Any) -> tuple[Tensor, ...]:
    with ops.backend(backend):
        return case(*args, **kwargs)


def compare(
    case: Case, got: tuple[Tensor, ...], want: tuple[Tensor, ...], dtype: Any, kwargs: Any
) -> None:
    for position, (g, w) in enumerate(zip(got, want, strict=True)):
        rtol, atol = case.allowed(position, dtype, kwargs)
        torch.testing.assert_close(
            g, w, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, p=position: f"result {p}: {m}"
        )


def test_agrees_with_reference(
    case: Case, size: str, dtype: torch.dtype, backend: str, device: str
) -> None:
    args, kwargs = case.inputs(size, dtype, device)
    got = run(case, backend, args, kwargs)
    compare(case, got, run(case, "reference", args, kwargs), dtype, kwargs)


@pytest.mark.cases(size=lambda size: not size.benchmark, emulated=_FEW)
def test_other_layouts_of_the_same_input(case: Case, size: str, backend: str, device: str) -> None:
    args, kwargs = case.inputs(size, torch.float32, device)

    def spread(value: Any) -> Any:
        if isinstance(value, list):
            return [spread(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        wide = value.new_zeros(*value.shape[:-1], 2 * value.shape[-1])
        wide[..., ::2] = value
        return wide[..., ::2]

    kwargs = {name: spread(value) for name, value in kwargs.items()}
    got = run(case, backend, [spread(arg) for arg in args], kwargs)
    compare(case, got, run(case, "reference", args, kwargs), torch.float32, kwargs)


@pytest.mark.cases(size=lambda size: not size.benchmark, emulated=())
def test_same_bits_for_any_number_of_threads(
    case: Case, size: str, backend: str, device: str
) -> None:
    args, kwargs = case.inputs(size, torch.float32, device)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(case, backend, args, kwargs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def gradients(case: Case, backend: str, args: Any, kwargs: Any) -> tuple[Tensor, ...]:
    leaves = [
        arg.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        if position in case.gradients
        else arg
        for position, arg in enumerate(args)
    ]
    results = run(case, backend, leaves, kwargs)
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.rand(r.shape, generator=generator, dtype=torch.float64).to(r) for r in results
    ]
    with ops.backend(backend):
        return torch.autograd.grad(results, [leaves[p] for p in case.gradients], cotangents)


@pytest.mark.cases(case=lambda case: case.gradients)
def test_gradient_agrees_with_reference(
    case: Case, size: str, dtype: torch.dtype, backend: str, device: str
) -> None:
    args, kwargs = case.inputs(size, dtype, device)
    got = gradients(case, backend, args, kwargs)
    want = gradients(case, "reference", args, kwargs)
    for position, g, w in zip(case.gradients, got, want, strict=True):
        assert g.stride() == w.stride()
        rtol, atol = case.tolerance[dtype]
        # A gradient is a sum of many terms, and its error is proportional to the largest of them.
        atol = max(atol, rtol * float(w.nan_to_num(0, 0, 0).abs().max() if w.numel() else 0))
        torch.testing.assert_close(
            g, w, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, p=position: f"{p}: {m}"
        )


# The others compute the reference's gradient, in float64 too: test_gradient_agrees_with_reference.
@pytest.mark.cases(
    case=lambda case: case.gradients,
    size=lambda size: size.gradcheck,
    reference=True,
    emulated=(),
    rest_nightly=True,
)
def test_gradcheck(case: Case, size: str, backend: str, device: str) -> None:
    args, kwargs = case.inputs(size, torch.float64, device)
    args = tuple(
        arg.requires_grad_() if position in case.gradients else arg
        for position, arg in enumerate(args)
    )
    with ops.backend(backend):
        assert torch.autograd.gradcheck(lambda *a: case(*a, **kwargs), args)


# The arguments of the torch op, for the public functions that flatten a list first.
def _torch_arguments(case: Case, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    recorded: list[tuple[Any, ...]] = []
    overload = getattr(torch.ops.mdssd, "nms" if case.op == "batched_nms" else case.op).default

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is overload:
                recorded.append(args)
            return func(*args, **(kwargs or {}))

    with Recorder():
        case(*args, **kwargs)
    return recorded[0]


# What it checks at the other sizes is registered once for all backends.
@pytest.mark.cases(
    size=lambda size: not size.benchmark,
    reference=True,
    emulated=("empty", "no_image", "one"),
    rest_nightly=True,
)
def test_opcheck(case: Case, size: str, backend: str, device: str) -> None:
    args, kwargs = case.inputs(size, torch.float32, device)
    arguments = _torch_arguments(case, args, kwargs)
    if case.gradients:
        arguments = tuple(
            arg.detach().requires_grad_() if position in case.gradients else arg
            for position, arg in enumerate(arguments)
        )
    overload = getattr(torch.ops.mdssd, "nms" if case.op == "batched_nms" else case.op).default
    checks = ["test_schema", "test_faketensor"]
    if size in ("odd", "small", "ragged"):
        checks += ["test_autograd_registration", "test_aot_dispatch_dynamic"]
    with ops.backend(backend):
        torch.library.opcheck(overload, arguments, test_utils=checks)


@pytest.mark.cases(size=lambda size: not size.benchmark, emulated=(), rest_nightly=True)
def test_compiles_without_a_graph_break(case: Case, backend: str, device: str) -> None:
    size = next(name for name in case.sizes if name in ("odd", "ragged"))
    args, kwargs = case.inputs(size, torch.float32, device)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *a: getattr(ops, case.op)(*a, **kwargs), fullgraph=True, backend="aot_eager"
    )
    with (
        ops.backend(backend),
        torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True),
    ):
        got = compiled(*args)
        want = getattr(ops, case.op)(*args, **kwargs)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
