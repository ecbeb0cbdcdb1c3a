"""Replace attributes of other code, and restore them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdssd import ops
from mdssd.ops.reference.boxes import pairwise_iou, to_xyxy

_ABSENT = object()


class Replacement(NamedTuple):
    """A new value for an attribute of a Python module, a class or an object."""

    owner: Any
    name: str
    value: Any
    new: bool = False  # whether the owner need not have the attribute


class Patch:
    """Replaces attributes until `undo()` is called, or until the end of a `with` block.

    Undo several patches of the same attribute in reverse order.

    Example:
        >>> from mdssd.integrations._patch import Patch, Replacement
        >>> from types import SimpleNamespace
        >>> codebase = SimpleNamespace(nms="slow")
        >>> with Patch([Replacement(codebase, "nms", "fast")]):
        ...     print(codebase.nms)
        fast
        >>> codebase.nms
        'slow'
    """

    def __init__(self, replacements: Iterable[Replacement]) -> None:
        replacements = list(replacements)
        for owner, name, _, new in replacements:
            if not new:
                getattr(owner, name)  # fail before anything is replaced
        self._saved: list[Replacement] = []
        for owner, name, value, _ in replacements:
            self._saved.append(Replacement(owner, name, vars(owner).get(name, _ABSENT)))
            _set(owner, name, value)

    def undo(self) -> None:
        """Restore the attributes; a second call does nothing."""
        while self._saved:
            owner, name, value, _ = self._saved.pop()
            _set(owner, name, value)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def _set(owner: Any, name: str, value: Any) -> None:
    # In a network, write to the instance's dictionary, which has precedence over its submodules.
    # The submodules, and so its parameters and the keys of its state dict, do not change.
    plain = isinstance(owner, nn.Module)
    if value is _ABSENT:
        (object.__delattr__ if plain else delattr)(owner, name)
    else:
        (object.__setattr__ if plain else setattr)(owner, name, value)


def patch_each(
    adapter: str,
    expected: str,
    targets: tuple[Any, ...],
    of_package: Callable[[ModuleType], list[Replacement]],
    of_object: Callable[[Any], list[Replacement]] | None = None,
) -> Patch:
    """Patch all targets, packages by `of_package` and objects by `of_object`, or none.

    Raises:
        TypeError: there is no target, or one does not have the attributes to replace. The message
            begins with `adapter` and states `expected`.
    """
    replacements: list[Replacement] = []
    for target in targets or (None,):
        try:
            if isinstance(target, ModuleType):
                replacements += of_package(target)
            elif of_object is not None and target is not None:
                replacements += of_object(target)
            else:
                raise AttributeError("it is neither")
        except (AttributeError, ImportError, OSError, SystemExit) as error:
            raise TypeError(
                f"{adapter}.patch: targets: expected {expected}, got {_short(target)}: {error}"
            ) from error
    return Patch(replacements)


def _short(target: Any) -> str:
    return repr(target) if isinstance(target, ModuleType) else type(target).__name__


def submodule(package: ModuleType, path: str) -> ModuleType:
    """Import a module of a package."""
    return import_module(f"{package.__name__}.{path}")


def imported(package: ModuleType, path: str) -> ModuleType | None:
    """Return a module of a package if it is imported already, for one whose import does more."""
    return sys.modules.get(f"{package.__name__}.{path}")


def everywhere(package: ModuleType, home: ModuleType, name: str, value: Any) -> list[Replacement]:
    """Replace a function of `home` wherever a module of the package holds it under its name."""
    original, prefix = getattr(home, name), package.__name__ + "."
    owners = [
        module
        for key, module in list(sys.modules.items())
        if (key + ".").startswith(prefix) and vars(module).get(name) is original
    ]
    return [Replacement(owner, name, value) for owner in owners]


def method(
    owner: Any, name: str, function: Callable[..., Any], *, new: bool = False
) -> Replacement:
    """Replace a method of one object by `function`, whose first argument is the object."""
    # Not a MethodType, which is pickled as the attribute with the function's name.
    return Replacement(owner, name, partial(function, owner), new)


def to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert [..., 4] from corners to centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([0.5 * (low + high), high - low], -1)


def within(threshold: float) -> float:
    """Return the threshold of a codebase in the operators' range, 0 to 1, with the same effect.

    No score or overlap is above 1, so that every threshold from 1 on is like 1.
    """
    return min(threshold, 1.0)


def match_index(
    boxes_xyxy: Tensor, priors: Tensor, threshold: float, *, form: str, iou_eps: float = 0.0
) -> Tensor:
    """Match priors [N, 4] to the boxes [M, 4] of one image; return the index [N], see `ops.Match`.

    These codebases do not widen their tensors first: beside float64 boxes, the area of a float32
    prior is still rounded to float32, which decides between priors with almost the same IoU. So
    boxes and priors of different types are matched in their way, by the matrix of all IoUs.
    """
    if boxes_xyxy.dtype == priors.dtype and priors.dtype in (torch.float32, torch.float64):
        matched = ops.match_priors(
            [boxes_xyxy], priors, threshold, iou_eps=iou_eps, priors_form=form
        )
        return matched.index[0]
    corners = priors if form == "xyxy" else to_xyxy(priors)
    overlap = pairwise_iou(boxes_xyxy[:, None], corners[None], iou_eps)  # [M, N]
    best, index = overlap.max(0)
    index = torch.where(best >= threshold, index, -1)
    for box, prior in enumerate(overlap.argmax(1).tolist()):
        index[prior] = box
    return index


def matched_boxes(boxes_xyxy: Tensor, index: Tensor, otherwise: Tensor) -> Tensor:
    """The boxes [N, 4] at `index` [N], and those of `otherwise` [N, 4] where the index is -1."""
    if len(boxes_xyxy) == 0:
        return otherwise.clone()
    result = otherwise.to(torch.promote_types(boxes_xyxy.dtype, otherwise.dtype), copy=True)
    rows = (index >= 0).nonzero()[:, 0]  # few
    result[rows] = boxes_xyxy[index[rows]].to(result.dtype)
    return result


def matched_labels(labels: Tensor, index: Tensor) -> Tensor:
    """The labels [N] at `index` [N], and 0, background, where the index is -1."""
    result = labels.new_zeros(index.shape)
    rows = (index >= 0).nonzero()[:, 0]
    result[rows] = labels[index[rows]]
    return result
