"""Definition of the torch ops and choice of the backend: the only file that talks to torch.library.

A public function checks its arguments and calls one torch op. The dispatcher keys on the device
alone, so the op itself picks the backend (`_choose`): the forced one, else the first of
`_PREFERENCE` that the op has and that this machine can run. Where the dispatcher would do nothing
else (`_plain`), the backend is called without it, which saves 20 us a call.

A gradient is registered with the torch op, and is a torch.autograd.Function besides, for the
transforms of `torch.func`, which do not go through the former.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mdssd.names import BACKENDS

ALL_BACKENDS = (*BACKENDS, "simt")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# "simt" runs the CUDA source on the CPU, and Triton's interpreter its kernels: for the tests, and
# only when forced.
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
_PREFERENCE = {
    "cpu": ("cpp", "reference", "simt", *(("triton",) if _INTERPRET else ())),
    "cuda": ("cuda", "triton", "reference"),
    "xpu": ("triton", "reference"),
}
_KEYS = ("CPU", "CUDA", "XPU")
# The order is that of `enum class DType` in csrc/ops.h.
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(FLOATS)}

# The dispatch keys of an ordinary tensor, and of a thread in which nothing traces, records,
# transforms or fakes the calls: anything else is the dispatcher's. All is, where a version of
# PyTorch lacks one of these private functions.
try:
    _any_requires_grad = torch._C._any_requires_grad
    _has_torch_function = torch._C._has_torch_function
    _keys_of_tensor = torch._C._dispatch_keys
    _keys_of_thread = torch._C._dispatch_tls_local_include_set
    _profiler_enabled = torch.autograd._profiler_enabled
    _transforms_active = torch._C._are_functorch_transforms_active
    _OTHER_KEYS = ~functools.reduce(
        operator.or_,
        (
            torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)).raw_repr()
            for key in ("ADInplaceOrView", "BackendSelect")
            + tuple(kind + device for kind in ("", "Autograd", "Autocast") for device in _KEYS)
        ),
    )
    _CAN_LOOK = True
except AttributeError:
    _CAN_LOOK = False

_library = torch.library.Library("mdssd", "DEF")
_implementations: dict[str, dict[str, Callable[..., Any]]] = {}
# A module global rather than a thread-local: backward runs on autograd's own threads.
_forced: str | None = None

try:
    native: Any = importlib.import_module("mdssd._C")
    native_error = ""
except ImportError as error:  # an install without the native module still has the reference
    native = None
    native_error = str(error)
try:
    simt: Any = importlib.import_module("mdssd._simt")
except ImportError:  # only an editable install has it
    simt = None


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    cpp: Callable[..., Any] | None = None,
    cuda: Callable[..., Any] | None = None,
    triton: str | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] = _save_nothing,
    batched: tuple[int, ...] = (),
    leading: bool = False,
    no_vmap: str = "",
) -> Callable[..., Any]:
    """Define the torch op `mdssd::<schema>` with its backends, fake, gradient and vmap.

    Returns what calls it. The first argument of every op is a tensor.

    `cuda` is called with the module that holds the entry points and a stream before the op's own
    arguments: the kernels of `mdssd._C` on the tensors' device, or those of `mdssd._simt`.
    `triton` names a function of `mdssd.ops.triton` as "file.function".

    `torch.func.vmap` over none but the tensors at `batched` is one call of the op: the rows join
    the batch that is the first dimension of these tensors and of all results, or, with `leading`,
    are one more of any number of leading dimensions. Over others it is a call for each row, or,
    with `no_vmap`, an error of this text.
    """
    name = schema.split("(", 1)[0]
    table = {"reference": reference}
    if cpp is not None and native is not None:
        table["cpp"] = cpp
    if cuda is not None:
        for backend, kernels in (("cuda", native), ("simt", simt)):
            if hasattr(kernels, "launch_count"):
                table[backend] = _with_stream(cuda, kernels)
    if triton is not None and importlib.util.find_spec("triton") is not None:
        table["triton"] = _imported_later(triton, reference)
    _implementations[name] = table

    def run(*args: Any) -> Any:
        return table[_choose(name, args[0].device.type)](*args)

    _library.define(schema)
    for key in _KEYS:
        _library.impl(name, run, key)
    torch.library.register_fake(f"mdssd::{name}", fake, lib=_library)
    backward = backward or _no_gradient(name)
    torch.library.register_autograd(
        f"mdssd::{name}", backward, setup_context=setup_context, lib=_library
    )
    overload = getattr(torch.ops.mdssd, name).default
    rule = _vmap_refused(name, no_vmap) if no_vmap else _vmap(overload, batched, leading)
    torch.library.register_vmap(f"mdssd::{name}", rule, lib=_library)

    function = _function(name, overload, setup_context, backward)

    def call(*args: Any) -> Any:
        if _plain(args):
            return run(*args)
        return function.apply(*args) if _transformed() else overload(*args)

    return call


def _no_gradient(name: str) -> Callable[..., Any]:
    """The backward of an op without one, where PyTorch would warn and go on with zeros."""
    op = name.removesuffix("_backward")
    what = "gradient" if op == name else "second derivative"

    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"{op}: no {what}")

    return backward


def _function(
    name: str,
    forward: Callable[..., Any],
    setup_context: Callable[..., Any],
    backward: Callable[..., Any],
) -> Any:
    """The op for `torch.func`, to which the gradients of torch.library are closed."""

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


def _vmap_refused(name: str, why: str) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        raise NotImplementedError(f"{name}: torch.func.vmap: {why}")

    return rule


def _vmap(overload: Any, batched: tuple[int, ...], leading: bool) -> Callable[..., Any]:
    """What `torch.func.vmap` does with an op; the bits are those of a loop over the rows."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        mapped = {i for i, dim in enumerate(in_dims) if dim is not None}
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
    """The first two dimensions as one; channels-last where each row is, as kernels go by that."""
    flat = tensor.flatten(0, 1)
    if tensor.dim() == 5 and len(tensor):
        row = tensor[0]
        if not row.is_contiguous() and row.is_contiguous(memory_format=torch.channels_last):
            return flat.contiguous(memory_format=torch.channels_last)
    return flat.contiguous()


def _each(overload: Any, rows: list[Any], mapped: set[int], size: int) -> Any:
    """The op for one row after the other; for no row, what it gives for zeros, without them."""

    def call(k: int) -> Any:
        one = list(rows)
        for i in mapped:
            one[i] = rows[i][k] if size else rows[i].new_zeros(rows[i].shape[1:])
        return overload(*one)

    results = [call(k) for k in range(max(1, size))]
    if isinstance(results[0], Tensor):
        return torch.stack(results)[:size]
    return tuple(torch.stack(parts)[:size] for parts in zip(*results, strict=True))


def _plain(args: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would only call the backend: no gradient, no mode, no subclass."""
    if (
        torch.compiler.is_compiling()  # first: Dynamo cannot follow the others
        or not _CAN_LOOK
        or _has_torch_function(args)
        or _profiler_enabled()
        or forward_ad._current_level >= 0
        or _keys_of_thread().raw_repr() & _OTHER_KEYS
        or (torch.is_grad_enabled() and _any_requires_grad(*args))
    ):
        return False
    for arg in args:
        if isinstance(arg, Tensor) and _keys_of_tensor(arg).raw_repr() & _OTHER_KEYS:
            return False
    return True


def _transformed() -> bool:
    """Whether a transform of `torch.func`, or forward-mode differentiation, is under way."""
    if torch.compiler.is_compiling() or not _CAN_LOOK:
        return False
    return _transforms_active() or forward_ad._current_level >= 0


def _device(args: tuple[Any, ...]) -> torch.device:
    return next(arg.device for arg in args if isinstance(arg, Tensor))


def _with_stream(function: Callable[..., Any], kernels: Any) -> Callable[..., Any]:
    """Call a `cuda` backend on the tensors' device and its current stream."""

    def call(*args: Any) -> Any:
        device = _device(args)
        if device.type != "cuda":
            return function(kernels, 0, *args)
        with torch.cuda.device(device):
            return function(kernels, torch.cuda.current_stream().cuda_stream, *args)

    return call


def _imported_later(path: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """Call a Triton backend on the tensors' device; Triton is imported by the first call."""
    module, name = path.split(".")

    def call(*args: Any) -> Any:
        if any(isinstance(arg, Tensor) and arg.dtype == torch.float64 for arg in args):
            return reference(*args)
        function = getattr(importlib.import_module(f"mdssd.ops.triton.{module}"), name)
        device = _device(args)
        guard: AbstractContextManager[Any] = nullcontext()
        if device.type != "cpu":
            guard = getattr(torch, device.type).device(device)
        with guard:
            return function(*args)

    return call


def _runnable(name: str, device_type: str) -> list[str]:
    """The op's backends for tensors on this device, the default first."""
    return [b for b in _PREFERENCE.get(device_type, ("reference",)) if b in _implementations[name]]


def _choose(name: str, device_type: str) -> str:
    if _forced is None:
        table = _implementations[name]
        for preferred in _PREFERENCE.get(device_type, ()):
            if preferred in table:
                return preferred
        return "reference"
    runnable = _runnable(name, device_type)
    if _forced not in runnable:
        raise RuntimeError(
            f"{name}: backend {_forced!r} cannot run on a {device_type} tensor here; "
            f"available: {', '.join(runnable)}"
        )
    return _forced


def backends() -> dict[str, list[str]]:
    """The backends of each op that can run on this machine, the default for its devices first.

    Backward ops are listed under their own names (`l2norm_backward`).
    """
    devices = ["cpu"] + [d for d in ("cuda", "xpu") if getattr(torch, d).is_available()]
    return {
        name: list(dict.fromkeys(b for d in reversed(devices) for b in _runnable(name, d)))
        for name in sorted(_implementations)
    }


def plain_ops() -> dict[Any, Callable[..., Any]]:
    """Each op's reference, by which `ExportedProgram.run_decompositions` replaces the op.

    What is exported then holds PyTorch's own ops only, which other programs understand.
    """
    return {
        getattr(torch.ops.mdssd, name).default: table["reference"]
        for name, table in _implementations.items()
    }


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force every op onto one backend: "reference", "cpp", "cuda" or "triton".

    A development install also has "simt", which runs the CUDA kernels on CPU tensors, slowly.

    Holds for the whole process, other threads included, since autograd runs backward on threads
    of its own. Can be nested; the previous choice returns at the end.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend cannot run on this machine; the message lists those that can.
            Raised here if no op has it, else by the first op that lacks it.
    """
    global _forced
    if name not in ALL_BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(ALL_BACKENDS)}; got {name!r}")
    available = sorted({b for row in backends().values() for b in row})
    if name not in available:
        why = f" (mdssd._C did not load: {native_error})" if name == "cpp" else ""
        raise RuntimeError(
            f"backend: {name!r} is not available here{why}; available: {', '.join(available)}"
        )
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def dtype_code(tensor: Tensor) -> int:
    """The number by which the native module knows the tensor's dtype."""
    return _DTYPE_CODES[tensor.dtype]


def aligned(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """The tensor, or a copy, dense and at an address that is a multiple of 16, as kernels need."""
    tensor = tensor.contiguous(memory_format=memory_format)
    if tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.preserve_format)


def widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, or a copy, contiguous and of this dtype."""
    if tensor.dtype != dtype:  # `to` takes ten times as long to see that there is nothing to do
        tensor = tensor.to(dtype)
    return tensor.contiguous()


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which every backend computes: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensor(
    op: str,
    argument: str,
    tensor: object,
    shape: tuple[int | str | None, ...],
    *,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    like: Tensor | None = None,
) -> None:
    """Check one argument's type, shape, dtype and, against `like`, its device.

    A number in `shape` must match, a string names a free size, a leading None stands for any
    number of leading sizes.
    """
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
            f"{op}: {argument}: expected device {like.device} as of the first argument, "
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
    """Check that two arguments have one dtype."""
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{op}: {argument}: expected dtype {like.dtype} as of the first argument, "
            f"got {tensor.dtype}"
        )


def check_number(op: str, argument: str, value: object, low: float, high: float) -> float:
    """Check that an argument is a number in [low, high]; return it as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{op}: {argument}: expected a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{op}: {argument}: expected {low} to {high}, got {value}")
    return float(value)


def check_eps(op: str, iou_eps: object) -> float:
    """Check what is added to the union's area in an IoU; return it as a float."""
    return check_number(op, "iou_eps", iou_eps, 0.0, 1.0)


def check_variances(op: str, variances: object) -> tuple[float, float]:
    """Check the pair of variances of centre and size; return it as floats."""
    if not isinstance(variances, tuple | list) or len(variances) != 2:
        raise ValueError(f"{op}: variances: expected a pair of numbers, got {variances!r}")
    for value in variances:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{op}: variances: expected two numbers above 0, got {variances!r}")
    return float(variances[0]), float(variances[1])
