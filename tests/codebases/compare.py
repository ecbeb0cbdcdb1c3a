"""Comparisons of a codebase with itself, patched and not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def both(targets: tuple[Any, ...], adapter: Any, call: Callable[[], Any]) -> None:
    """Check that the call returns the same when patched, and exactly the same after `undo`."""
    want = call()
    with adapter.patch(*targets):
        got = call()
    assert_same(got, want)
    assert_same(call(), want, exact=True)


def assert_same(got: Any, want: Any, exact: bool = False) -> None:
    if isinstance(want, Tensor):
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 2e-6}
        if not exact and want.numel() and want.abs().max() > 10:
            tolerance = {"rtol": 1e-5, "atol": 1e-4}  # pixels
        torch.testing.assert_close(got, want, **tolerance, equal_nan=exact)
    elif isinstance(want, dict):
        assert got.keys() == want.keys()
        assert_same(list(got.values()), list(want.values()), exact)
    elif isinstance(want, tuple | list):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            assert_same(g, w, exact)
    else:
        assert got == want


def with_gradients(call: Callable[..., Any], *parameters: Tensor) -> list[Tensor]:
    """Losses of the call, and the gradients of a weighted sum of them."""
    parameters = tuple(p.detach().requires_grad_() for p in parameters)
    losses = call(*parameters)
    losses = list(losses.values()) if isinstance(losses, dict) else list(losses)
    weighted = sum(weight * loss for weight, loss in enumerate(losses, 2))
    return [*losses, *torch.autograd.grad(weighted, parameters)]
