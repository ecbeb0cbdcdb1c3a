"""A matrix of overlaps that is not computed until something reads it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


class Overlaps(Tensor):
    """The IoU [M, N] of boxes [M, 4] and others [N, 4], computed when its values are needed.

    Its shape, type and device are known without that.
    """

    compute: Callable[[], Tensor]
    boxes: Tensor
    others: Tensor

    @staticmethod
    def __new__(cls, compute: Callable[[], Tensor], boxes: Tensor, others: Tensor) -> Overlaps:
        made: Overlaps = Tensor._make_wrapper_subclass(
            cls, (len(boxes), len(others)), dtype=boxes.dtype, device=boxes.device
        )
        made.compute, made.boxes, made.others = compute, boxes, others
        return made

    @functools.cached_property
    def matrix(self) -> Tensor:
        """The values, computed once."""
        return self.compute()

    def is_computed(self) -> bool:
        """Whether something has read the values, and may have changed them."""
        return "matrix" in vars(self)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def computed(value: Any) -> Any:
            return value.matrix if isinstance(value, Overlaps) else value

        return func(*tree_map(computed, args), **tree_map(computed, kwargs or {}))
