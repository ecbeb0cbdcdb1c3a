"""The autograd.Function of an op and its rule for vmap, which `torch.func` uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from mdssd.ops._values import checks


def autograd_function(
    name: str,
    forward: Callable[..., Any],
    setup_context: Callable[..., Any],
    backward: Callable[..., Any],
) -> Any:
    """Return the op as a torch.autograd.Function.

    `torch.func` needs it, since it ignores the gradients that are registered with torch.library.
    """

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            f"{name}: no forward-mode differentiation; use torch.func.vjp in place of jvp, "
            "jacrev of jacfwd"
        )

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "jvp": staticmethod(jvp),
        "generate_vmap_rule": True,
    }
    return type(name, (torch.autograd.Function,), members)


def some_requires_grad(*args: Any) -> bool:
    """Return whether an argument requires a gradient."""
    return any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)


def vmap_refused(name: str, why: str) -> Callable[..., Any]:
    """Return a rule that raises an error with this reason."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        raise NotImplementedError(f"{name}: torch.func.vmap: {why}")

    return rule


def vmap_rule(overload: Any, batched: tuple[int, ...], leading: bool) -> Callable[..., Any]:
    """Return the rule of an op, whose results are, bit for bit, those of a loop over the rows.

    vmap over no other tensors than those at `batched` is a single call: the rows join the batch,
    which is the first dimension of these tensors and of all results, or, with `leading`, they
    become one more leading dimension. Otherwise the op is called once per row.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        mapped = {i for i, dim in enumerate(in_dims) if isinstance(dim, int)}  # a list has a list
        rows = list(args)
        for i in mapped:
            rows[i] = args[i].movedim(in_dims[i], 0)
        if not mapped <= set(batched):
            return _each(overload, rows, mapped, size), 0
        for i in set(batched) - mapped:
            rows[i] = args[i].expand(size, *args[i].shape)
        if leading:
            return overload(*rows), 0
        lengths = rows[batched[0]].shape[:2]
        for i in batched:
            rows[i] = _joined(rows[i])
        results = overload(*rows)
        if isinstance(results, Tensor):
            return results.unflatten(0, lengths), 0
        return tuple(result.unflatten(0, lengths) for result in results), 0

    return rule


def _joined(tensor: Tensor) -> Tensor:
    """Join the first two dimensions. The result is channels-last if each row is."""
    flat = tensor.flatten(0, 1)
    if tensor.dim() == 5 and len(tensor):
        row = tensor[0]
        if not row.is_contiguous() and row.is_contiguous(memory_format=torch.channels_last):
            return flat.contiguous(memory_format=torch.channels_last)
    return flat.contiguous()


def _each(overload: Any, rows: list[Any], mapped: set[int], size: int) -> Any:
    """Call the op for each row. Without rows, a call with ones tells the shapes and dtypes."""

    def call(k: int) -> Any:
        one = list(rows)
        for i in mapped:
            one[i] = rows[i][k] if size else rows[i].new_ones(rows[i].shape[1:])
        return overload(*one)

    with nullcontext() if size else checks(False):
        results = [call(k) for k in range(max(1, size))]
    if isinstance(results[0], Tensor):
        return torch.stack(results)[:size]
    return tuple(torch.stack(parts)[:size] for parts in zip(*results, strict=True))
