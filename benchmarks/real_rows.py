"""What the rows of `benchmarks.real_codebases` are made of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

Call = Callable[[], Any]


def unchecked(got: Any, want: Any) -> None:
    """Compare nothing: the tests of the adapter do."""


class Row(NamedTuple):
    """A call of a codebase, what patches it, and what compares both results."""

    package: str
    what: str
    call: Call
    patch: Callable[[], AbstractContextManager[Any]]
    check: Callable[[Any, Any], None] = unchecked


def random_numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(count: int, side: float, generator: torch.Generator) -> Tensor:
    """Boxes xyxy [count, 4] of a fortieth to a seventh of an image of this side."""
    low = side * torch.rand(count, 2, generator=generator)
    size = side / 40 + side / 8 * torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + size], 1)
