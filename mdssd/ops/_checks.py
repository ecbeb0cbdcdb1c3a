"""Checks of the operators' arguments.

Each check raises a TypeError or a ValueError of the form "op: argument: expected X, got Y".
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mdssd.ops._modules import native
from mdssd.ops._tensors import FLOATS

_LARGEST = sys.float_info.max
# Whether a tensor passes check_tensor, asked in C++: Python takes four times as long.
_fits_in_cpp = native.fits_of((Tensor, torch.nn.Parameter)) if hasattr(native, "fits_of") else None


def check_tensor(
    op: str,
    argument: str,
    tensor: object,
    shape: tuple[int | str | None, ...],
    *,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    like: Tensor | None = None,
) -> None:
    """Check one argument's type, shape, dtype and, if `like` is given, its device.

    In `shape`, a number must match, a string names a free size, and a leading None stands for any
    number of leading sizes.
    """
    if _fits_in_cpp and not is_compiling() and _fits_in_cpp(tensor, shape, dtypes, like):
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {argument}: expected a Tensor, got {type(tensor).__name__}")
    got = tensor.shape
    if got != shape and not _fits(got, shape):
        names = ", ".join("..." if size is None else str(size) for size in shape)
        raise ValueError(f"{op}: {argument}: expected shape [{names}], got {list(got)}")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {argument}: expected dtype {names}; got {tensor.dtype}")
    if like is not None and tensor.device != like.device:
        raise ValueError(
            f"{op}: {argument}: expected device {like.device} like the first argument, "
            f"got {tensor.device}"
        )


def _fits(got: torch.Size, shape: tuple[int | str | None, ...]) -> bool:
    if shape and shape[0] is None:
        shape = shape[1:]
        if len(got) < len(shape):
            return False
        got = got[len(got) - len(shape) :]
    if len(got) != len(shape):
        return False
    for want, have in zip(shape, got, strict=True):  # a loop takes a third of any()'s time
        if isinstance(want, int) and want != have:
            return False
    return True


def check_same_dtype(op: str, argument: str, tensor: Tensor, like: Tensor) -> None:
    """Check that two arguments have the same dtype."""
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{op}: {argument}: expected dtype {like.dtype} like the first argument, "
            f"got {tensor.dtype}"
        )


def check_number(op: str, argument: str, value: object, low: float, high: float) -> float:
    """Check that an argument is a number in [low, high]; return it as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {argument}: expected a number, got {type(value).__name__}")
    if not low <= value <= high or (isinstance(value, int) and abs(value) > _LARGEST):
        raise ValueError(f"{op}: {argument}: expected {low} to {high}, got {shown(value)}")
    return float(value)


def check_int(op: str, argument: str, value: object, high: int) -> int:
    """Check that an argument is an int in [1, high]; return it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {argument}: expected an int, got {type(value).__name__}")
    if not 1 <= value <= high:
        raise ValueError(f"{op}: {argument}: expected 1 to {high}, got {shown(value)}")
    return value


def check_choice(op: str, argument: str, value: object, choices: tuple[str, ...]) -> str:
    """Check that an argument is one of these strings; return it."""
    if not isinstance(value, str) or value not in choices:
        expected = " or ".join(map(repr, choices))
        raise ValueError(f"{op}: {argument}: expected {expected}, got {shown(value)}")
    return value


def shown(value: object) -> str:
    """Return a value as a message shows it: in one line, and not all digits of a huge integer."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(map(shown, value[:4])) + (", ..." if len(value) > 4 else "")
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{value!r:.80}"
    return type(value).__name__


def check_flag(op: str, argument: str, value: object) -> bool:
    """Check that an argument is True or False; return it."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {argument}: expected True or False, got {type(value).__name__}")
    return value


def check_eps(op: str, iou_eps: object) -> float:
    """Check the number that an overlap adds to what it divides by; return it as a float."""
    return check_number(op, "iou_eps", iou_eps, 0.0, 1.0)


def check_metric(op: str, metric: object, choices: tuple[str, ...] = ("iou", "ios")) -> str:
    """Check the name of an overlap of two boxes; return it."""
    return check_choice(op, "metric", metric, choices)


def check_variances(op: str, variances: object) -> tuple[float, float]:
    """Check the pair of variances of the centre and the size; return it as floats."""
    if not isinstance(variances, (tuple, list)) or len(variances) != 2:
        raise ValueError(f"{op}: variances: expected a pair of numbers, got {shown(variances)}")
    for value in variances:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= _LARGEST:
            raise ValueError(
                f"{op}: variances: expected two finite numbers above 0, got {shown(variances)}"
            )
    return float(variances[0]), float(variances[1])


def bad_label(op: str, labels: Tensor, highest: int) -> ValueError:
    """Return the error of labels [B, N] of which an operator found one out of range."""
    image, prior = ((labels < -1) | (labels > highest)).nonzero()[0].tolist()
    return ValueError(
        f"{op}: labels[{image}, {prior}]: expected -1 to {highest}, got {int(labels[image, prior])}"
    )


def check_gpu_limits(logits: Tensor) -> None:
    """Check that the kernels of `detection_output` for GPUs have room for the call."""
    images, num_priors, classes = logits.shape
    sizes = (
        ("priors in a batch", images * num_priors),
        ("logits per image", num_priors * classes),
    )
    for what, value in sizes:
        if value >= 2**32:
            raise ValueError(
                f"detection_output: logits: expected fewer than 2^32 {what} on a GPU, got {value}"
            )
