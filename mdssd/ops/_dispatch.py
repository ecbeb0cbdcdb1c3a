"""The torch ops and the choice of the backend: the only file that talks to torch.library.

A public function checks its arguments and calls the function that `define` returned, with the
tensors and, last, the settings. An ordinary call (`_plain`) goes straight to the backend, which
saves 20 us. Any other call goes through PyTorch's dispatcher, as the torch op `mdssd::<name>`. A
torch op takes plain values only, so the settings are flattened for the dispatcher and rebuilt
behind it. Both happen in `define` and nowhere else.

The dispatcher selects by the device alone. The backend is chosen behind it, by `_choose`: the one
that is forced, else the first of `_PREFERENCE` that the op has and that can run here.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from mdssd.names import BACKENDS
from mdssd.ops._modules import native, native_error, simt
from mdssd.ops._settings import fields_of_schema
from mdssd.ops._transforms import autograd_function, some_requires_grad, vmap_refused, vmap_rule
from mdssd.ops._values import checks

ALL_BACKENDS = (*BACKENDS, "simt")

# "simt" runs the CUDA source on the CPU, and Triton's interpreter runs its kernels there. Both are
# for the tests and are used only if they are forced.
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
_PREFERENCE = {
    "cpu": ("cpp", "reference", "simt", *(("triton",) if _INTERPRET else ())),
    "cuda": ("cuda", "triton", "reference"),
    "xpu": ("triton", "reference"),
}
_KEYS = ("CPU", "CUDA", "XPU")
_CPU = torch.device("cpu")

# `_OTHER_KEYS` are all dispatch keys except those of an ordinary tensor and of a thread in which
# nothing traces, records, transforms or fakes calls. A call that meets one of them goes through
# the dispatcher, and so does every call if this version of PyTorch lacks one of these functions.
try:
    _any_requires_grad = getattr(torch._C, "_any_requires_grad", some_requires_grad)  # not in 2.6
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
_flat_references: dict[str, Callable[..., Any]] = {}  # as the dispatcher calls them
# A module global rather than a thread-local: backward runs on autograd's own threads.
_forced: str | None = None


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    cpp: Callable[..., Any] | None = None,
    cuda: Callable[..., Any] | None = None,
    triton: str = "",
    settings: Any = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] = lambda ctx, inputs, output: None,
    always: Callable[..., None] | None = None,
    values: Callable[..., None] | None = None,
    batched: tuple[int, ...] = (),
    leading: bool = False,
    no_vmap: str = "",
) -> Callable[..., Any]:
    """Define the torch op `mdssd::<schema>`; return the function that calls it.

    Args:
        schema: that of torch.library. The first argument is a tensor. "{settings}", after the
            tensors, stands for the fields of `settings`.
        reference, cpp, cuda: the backends' forms. Like `fake` and `setup_context` they take the
            tensors and then, if there are any, the settings as a whole. `cuda` takes the module of
            the kernels and a stream before them.
        triton: file of mdssd/ops/triton that has a function of the op's name.
        settings: class of the settings, one of mdssd/ops/_settings.py.
        backward: returns the gradients of the tensors, or of the first of them.
        always, values: check the values of the arguments, on the CPU and with `ops.checks(True)`.
        batched, leading, no_vmap: how `torch.func.vmap` calls it, see `vmap_rule`, `vmap_refused`.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema.format(settings=fields_of_schema(settings)))
    overload = getattr(torch.ops.mdssd, name).default
    arguments = len(overload._schema.arguments)
    tensors = arguments - len(settings._fields if settings else ())

    def rebuilt(args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*args[:tensors], settings(*args[tensors:])) if settings else args

    table = _implementations[name] = _backends_of(name, reference, cpp, cuda, triton)
    _flat_references[name] = lambda *args: table["reference"](*rebuilt(args))

    def run(*args: Any) -> Any:
        if always or checks.active:
            _check(args, always, values)
        return table[_choose(name, args[0].device)](*args)

    def run_flat(*args: Any) -> Any:
        return run(*rebuilt(args))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, rebuilt(inputs), output)

    def gradients(ctx: Any, *grads: Any) -> Any:
        if backward is None:
            raise _no_gradient(name)
        result = backward(ctx, *grads)
        result = result if isinstance(result, tuple) else (result,)
        return (*result, *[None] * (arguments - len(result)))

    for key in _KEYS:
        _library.impl(name, run_flat, key)
    torch_name = f"mdssd::{name}"
    torch.library.register_fake(torch_name, lambda *args: fake(*rebuilt(args)), lib=_library)
    torch.library.register_autograd(torch_name, gradients, setup_context=save, lib=_library)
    rule = vmap_refused(name, no_vmap) if no_vmap else vmap_rule(overload, batched, leading)
    torch.library.register_vmap(torch_name, rule, lib=_library)
    function = autograd_function(name, overload, save, gradients)

    def call(*args: Any) -> Any:
        if _plain(args[:-1] if settings else args):  # to look at the settings would take 2 us
            return run(*args)
        flat = (*args[:-1], *args[-1]) if settings else args
        return function.apply(*flat) if _transformed() else overload(*flat)

    for inner in (run, run_flat, call):
        _rename(inner, name)
    return call


def _backends_of(
    name: str,
    reference: Callable[..., Any],
    cpp: Callable[..., Any] | None,
    cuda: Callable[..., Any] | None,
    triton: str,
) -> dict[str, Callable[..., Any]]:
    """Return the backends of an op that this installation has."""
    table = {"reference": reference}
    if cpp is not None and native is not None:
        table["cpp"] = cpp
    if cuda is not None:
        for backend, kernels in (("cuda", native), ("simt", simt)):
            if hasattr(kernels, "launch_count"):
                table[backend] = _with_stream(name, cuda, kernels)
    if triton and importlib.util.find_spec("triton") is not None:
        table["triton"] = _triton_form(name, triton, reference)
    return table


def _rename(function: Any, name: str) -> None:
    """Let the frames of a function carry this name in tracebacks and profiles."""
    names = {"co_name": name}
    if hasattr(function.__code__, "co_qualname"):  # from Python 3.11 on
        names["co_qualname"] = name
    function.__code__ = function.__code__.replace(**names)
    function.__name__ = function.__qualname__ = name


def _no_gradient(name: str) -> NotImplementedError:
    """Return the error of an op without a gradient. PyTorch would warn and continue with zeros."""
    op = name.removesuffix("_backward")
    what = "gradient" if op == name else "second derivative"
    return NotImplementedError(f"{op}: no {what}")


def _plain(args: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would only call the backend: no gradient, no mode, no subclass."""
    if is_compiling() or not _CAN_LOOK:  # first: Dynamo cannot follow the others
        return False
    if (
        _has_torch_function(args)
        or _profiler_enabled()
        or forward_ad._current_level >= 0
        or (is_grad_enabled() and _any_requires_grad(*args))
    ):
        return False
    keys = _keys_of_thread().raw_repr()
    for arg in args:
        if isinstance(arg, Tensor):
            keys |= _keys_of_tensor(arg).raw_repr()
    return not keys & _OTHER_KEYS


def plain_thread() -> bool:
    """Whether nothing traces, records, transforms or fakes the calls of this thread."""
    if is_compiling() or not _CAN_LOOK:
        return False
    return not (_profiler_enabled() or _keys_of_thread().raw_repr() & _OTHER_KEYS)


def _transformed() -> bool:
    """Whether a transform of `torch.func`, or forward-mode differentiation, is active."""
    if is_compiling() or not _CAN_LOOK:
        return False
    return _transforms_active() or forward_ad._current_level >= 0


def _check(
    args: tuple[Any, ...],
    always: Callable[..., None] | None,
    values: Callable[..., None] | None,
) -> None:
    """Check the values of an op's arguments, as far as they are checked here and now."""
    device_type = args[0].device.type
    if always is not None and device_type == "cpu":
        always(*args)
    if values is not None and checks.active:
        # While a CUDA graph is recorded, nothing can wait for the device.
        if device_type != "cuda" or not torch.cuda.is_current_stream_capturing():
            values(*args)


def _device(args: tuple[Any, ...]) -> torch.device:
    return next(arg.device for arg in args if isinstance(arg, Tensor))


def _with_stream(name: str, function: Callable[..., Any], kernels: Any) -> Callable[..., Any]:
    """Call a `cuda` form on the tensors' device and its current stream."""

    def call(*args: Any) -> Any:
        device = _device(args)
        if device.type != "cuda":
            return function(kernels, 0, *args)
        with torch.cuda.device(device):
            kernels.cuda_use_device(device.index)
            return function(kernels, torch.cuda.current_stream().cuda_stream, *args)

    _rename(call, name)
    return call


def _triton_form(name: str, file: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """Call a Triton form on the tensors' device.

    Its file is imported by the first call, since Triton is an optional package and slow to import.
    Float64 tensors go to the reference.
    """

    @functools.cache
    def load() -> Callable[..., Any]:
        form: Callable[..., Any] = getattr(
            importlib.import_module(f"mdssd.ops.triton.{file}"), name
        )
        return form

    def call(*args: Any) -> Any:
        if any(isinstance(arg, Tensor) and arg.dtype == torch.float64 for arg in args):
            return reference(*args)
        device = _device(args)
        guard: AbstractContextManager[Any] = nullcontext()
        if device.type != "cpu":
            guard = getattr(torch, device.type).device(device)
        with guard:
            return load()(*args)

    _rename(call, name)
    return call


@functools.cache
def _build_fault(index: int) -> str:
    """Return why this build's CUDA kernels cannot run on a device, after one warning, or ""."""
    if fault := str(native.cuda_build_fault(index)):
        instead = "Triton" if importlib.util.find_spec("triton") else "plain PyTorch"
        message = f"the CUDA kernels of this build do not run on cuda:{index}, so the operators use"
        message += f" {instead} there: {fault}; install mdssd again on this machine"
        warnings.warn(f"mdssd: {message}", stacklevel=2)
    return fault


def _runs(backend: str, device: torch.device) -> bool:
    return backend != "cuda" or not _build_fault(device.index or 0)


def _runnable(name: str, device: torch.device) -> list[str]:
    """Return the op's backends for tensors on this device, the default first."""
    preferred = _PREFERENCE.get(device.type, ("reference",))
    return [b for b in preferred if b in _implementations[name] and _runs(b, device)]


def _choose(name: str, device: torch.device) -> str:
    if _forced is None:
        table = _implementations[name]
        if device == _CPU and (first := _PREFERENCE["cpu"][0]) in table:  # saves 0.3 us
            return first
        for preferred in _PREFERENCE.get(device.type, ()):
            if preferred in table and _runs(preferred, device):
                return preferred
        return "reference"
    runnable = _runnable(name, device)
    if _forced not in runnable:
        ours = _forced == device.type and "cuda" in _implementations[name]
        why = f" ({_build_fault(device.index or 0)})" if ours else ""
        raise RuntimeError(
            f"{name}: backend {_forced!r} cannot run on a {device.type} tensor here{why}; "
            f"available: {', '.join(runnable)}"
        )
    return _forced


def backends() -> dict[str, list[str]]:
    """List the backends of each op that can run on this machine.

    Returns:
        Names of backends by name of the op, the default first. Backward ops are listed under their
        own names, such as `l2norm_backward`.

    Example:
        >>> from mdssd import ops
        >>> "reference" in ops.backends()["nms"]
        True
    """
    types = ["cpu"] + [d for d in ("cuda", "xpu") if getattr(torch, d).is_available()]
    devices = list(map(torch.device, types))
    return {
        name: list(dict.fromkeys(b for d in reversed(devices) for b in _runnable(name, d)))
        for name in sorted(_implementations)
    }


def plain_ops() -> dict[Any, Callable[..., Any]]:
    """Return each op's reference, for `ExportedProgram.run_decompositions`.

    The exported program then consists of PyTorch's own ops, which other programs understand.
    """
    return {
        getattr(torch.ops.mdssd, name).default: reference
        for name, reference in _flat_references.items()
    }


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force every op onto one backend, within a `with` statement.

    This holds for the whole process, other threads included, since autograd runs backward on its
    own threads. The statements can be nested; the previous choice is restored at the end.

    Args:
        name: "reference", "cpp", "cuda" or "triton". A development install also has "simt", which
            runs the CUDA kernels on CPU tensors, slowly.

    Raises:
        ValueError: there is no backend of this name.
        RuntimeError: the backend cannot run on this machine; the message lists those that can. If
            only some ops have the backend, the first op without it raises the error.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> with ops.backend("reference"):
        ...     ops.box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 1, 2]]))
        tensor([[0.5000]])
    """
    global _forced
    if name not in ALL_BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(ALL_BACKENDS)}; got {name!r}")
    # Asking whether a GPU can be used would occupy memory on it.
    on_cpu = name in _PREFERENCE["cpu"] and any(name in row for row in _implementations.values())
    available = [] if on_cpu else sorted({b for row in backends().values() for b in row})
    if not on_cpu and name not in available:
        why = f" (mdssd._C did not load: {native_error})" if name == "cpp" else ""
        raise RuntimeError(
            f"backend: {name!r} is not available here{why}; available: {', '.join(available)}"
        )
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous
