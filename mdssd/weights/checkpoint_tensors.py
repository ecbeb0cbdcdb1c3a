"""The tensors of a checkpoint: reading them, and checking their names, shapes and values."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from mdssd.system.files import open_regular
from mdssd.weights.checkpoint_json import (
    CheckpointError,
    cannot_be_read,
    is_safetensors,
    not_safetensors,
)

# The header of the largest model has 200 kB. safetensors itself accepts 100 MB, which become
# gigabytes of Python objects.
HEADER_BYTES = 2**22


def read_checkpoint_tensors(
    path: Path, meta: Mapping[str, Any], kind: str, expected: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Read the file that a checkpoint's JSON names as its weights or as its state.

    Args:
        path: the JSON.
        meta: its content.
        kind: "" for the weights, "state" for the state.
        expected: tensors of the shapes and types that the file must have. They are compared with
            the file's header before its content is read. None accepts any.

    Returns:
        The tensors on the CPU, of the types of `expected`.

    Raises:
        CheckpointError: the file is missing, is not the one that the JSON was written with, does
            not have the expected tensors, or has values that are not finite or a negative variance.
    """
    file = path.with_name(meta[kind or "weights"])

    def check(opened: BinaryIO, size: int) -> None:
        _check_start(file, opened, size)
        if expected is not None:
            _check_header(file, expected)

    content = _read(path, meta, kind, check)
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise _unsound(file, error) from None
    if expected is None:
        return tensors
    for name, want in expected.items():
        # A copy, because the tensors that safetensors makes are not aligned as PyTorch's are.
        tensors[name] = tensors[name].to(want.dtype, copy=True)
        if fault := fault_of(name, tensors[name]):
            raise CheckpointError(f"{file}: {fault}")
    return tensors


def read_checkpoint_network(path: Path, meta: Mapping[str, Any]) -> bytes:
    """Read the ONNX file that the JSON of an int8 checkpoint names as its weights.

    Args:
        path: the JSON.
        meta: its content.

    Raises:
        CheckpointError: the file is missing, or is not the one that the JSON was written with.
    """
    file = path.with_name(meta["weights"])
    return _read(path, meta, "", lambda opened, size: _check_size(file, opened, size))


def _read(
    path: Path, meta: Mapping[str, Any], kind: str, check: Callable[[BinaryIO, int], None]
) -> bytes:
    """Return the content of a file that the JSON names.

    check: is called with the open file and its size in the JSON before the content is read.
    """
    prefix = f"{kind}_" if kind else ""
    file = path.with_name(meta[kind or "weights"])
    try:
        with open_regular(file) as opened:
            check(opened, meta[f"{prefix}bytes"])
            content = opened.read()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file, though {path.name} names it") from None
    except OSError as error:
        raise CheckpointError(f"{file}: {cannot_be_read(error)}") from None
    if hashlib.sha256(content).hexdigest() != meta[f"{prefix}sha256"]:
        raise CheckpointError(
            f"{file}: is not the file that {path.name} was written with: its SHA-256 differs"
        )
    return content


def fault_of(name: str, tensor: Tensor) -> str:
    """Return what makes a weight useless: values that are not finite, or a negative variance.

    Returns:
        The fault, which begins with the name; "" if there is none.

    Example:
        >>> import torch
        >>> from mdssd.weights.checkpoint_tensors import fault_of
        >>> fault_of("a.weight", torch.tensor([1.0, float("nan")]))
        'a.weight has NaN or infinity'
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    low, high = (value.item() for value in tensor.aminmax())  # NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{name} has NaN or infinity"
    if low < 0 and name.endswith("running_var"):
        return f"{name} has a negative variance"
    return ""


def _check_start(file: Path, opened: BinaryIO, expected: int) -> None:
    """Check the size of the file and the size of its header."""
    start = opened.read(9)
    opened.seek(0)
    if not is_safetensors(start):
        raise CheckpointError(not_safetensors(file, start))
    _check_size(file, opened, expected)
    if (header := int.from_bytes(start[:8], "little")) > HEADER_BYTES:
        raise CheckpointError(
            f"{file}: is not a sound safetensors file (its header has {header} bytes, expected at "
            f"most {HEADER_BYTES})"
        )


def _check_size(file: Path, opened: BinaryIO, expected: int) -> None:
    size = os.fstat(opened.fileno()).st_size
    if size < expected:
        raise CheckpointError(f"{file}: is cut short: {size} of {expected} bytes")
    if size > expected:
        raise CheckpointError(f"{file}: has {size} bytes instead of {expected}")


def _check_header(file: Path, expected: Mapping[str, Tensor]) -> None:
    """Compare the names, shapes and types in the file's header with those of the model."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            shapes = {name: (x.get_shape(), x.get_dtype()) for name, x in slices.items()}
    except safetensors.SafetensorError as error:
        raise _unsound(file, error) from None
    faults = [f"{name} is missing" for name in expected if name not in shapes]
    faults += [f"{name} is not of this model" for name in shapes if name not in expected]
    for name, want in expected.items():
        shape, dtype = shapes.get(name, ([], ""))
        if name not in shapes:
            continue
        if shape != list(want.shape):
            faults.append(f"{name}: expected shape {list(want.shape)}, got {shape}")
        elif dtype.startswith(("F", "BF")) != want.is_floating_point():
            faults.append(f"{name}: expected {want.dtype}, got {dtype}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{file}: the weights do not fit the model: {'; '.join(faults[:3])}{more}"
        )


def _unsound(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file}: is not a sound safetensors file ({error})")
