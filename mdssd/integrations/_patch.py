"""Replacing attributes of other code, and putting them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ABSENT = object()


class Replacement(NamedTuple):
    owner: Any  # a Python module, a class or an object
    name: str
    value: Any


class Patch:
    """Attributes that are replaced until `undo()`, or until the end of a `with` block.

    Patches of the same attribute are undone in the reverse order.
    """

    def __init__(self, replacements: Iterable[Replacement]) -> None:
        replacements = list(replacements)
        for owner, name, _ in replacements:  # all or none
            getattr(owner, name)
        self._saved: list[Replacement] = []
        for owner, name, value in replacements:
            self._saved.append(Replacement(owner, name, vars(owner).get(name, _ABSENT)))
            _set(owner, name, value)

    def undo(self) -> None:
        """Put everything back; a second call does nothing."""
        while self._saved:
            _set(*self._saved.pop())

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
    # Into a network's own dictionary, which is looked into before its submodules: they, and with
    # them its parameters and the keys of its state, stay as they are.
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
    """Patch packages and objects together.

    Raises:
        TypeError: there is no target, or one is not what it should be. Nothing is replaced then.
    """
    replacements: list[Replacement] = []
    for target in targets or (None,):
        try:
            if isinstance(target, ModuleType):
                replacements += of_package(target)
            elif of_object is not None and target is not None:
                replacements += of_object(target)
            else:
                raise AttributeError("that is neither")
        except (AttributeError, ImportError) as error:
            raise TypeError(
                f"{adapter}.patch: targets: expected {expected}, got {_short(target)}: {error}"
            ) from error
    return Patch(replacements)


def _short(target: Any) -> str:
    return repr(target) if isinstance(target, ModuleType) else type(target).__name__


def submodule(package: ModuleType, path: str) -> ModuleType:
    return import_module(f"{package.__name__}.{path}")


def method(owner: Any, name: str, function: Callable[..., Any]) -> Replacement:
    """`function` as a method of one object."""
    # Not a MethodType, which pickles as the attribute of its owner that has the function's name.
    return Replacement(owner, name, partial(function, owner))


def to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """[..., 4] corners -> centre and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([0.5 * (low + high), high - low], -1)


def taken(boxes_xyxy: Tensor, index: Tensor, otherwise: Tensor) -> Tensor:
    """[N, 4]: the box that `index` [N] names, or where it is -1 that of `otherwise` [N, 4]."""
    if len(boxes_xyxy) == 0:
        return otherwise.clone()
    return torch.where(index[:, None] >= 0, boxes_xyxy[index.clamp(min=0)], otherwise)


def taken_labels(labels: Tensor, index: Tensor) -> Tensor:
    """[N]: the label that `index` [N] names, or where it is -1 background, 0."""
    if len(labels) == 0:
        return labels.new_zeros(index.shape)
    return torch.where(index >= 0, labels[index.clamp(min=0)], 0)
