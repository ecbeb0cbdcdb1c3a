"""The device to compute on, and its name for people."""

from __future__ import annotations

import os
import warnings

import torch

from mdssd.system import distributed
from mdssd.system.text import plural


def best_device() -> str:
    """Return "cuda" if this PyTorch can compute on an NVIDIA or AMD GPU, otherwise "cpu".

    A GPU that is found but cannot be used, for example because this PyTorch has no kernels for
    it, is a warning.

    Example:
        >>> from mdssd.system.devices import best_device
        >>> best_device() in ("cpu", "cuda")
        True
    """
    if not torch.cuda.is_available():
        return "cpu"
    # torchrun gives each process a GPU of its own; none of them should occupy another's.
    index = min(int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count() - 1)
    try:
        torch.ones(1, device=f"cuda:{index}").add_(1).item()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"computing on the CPU, since the GPU cannot be used: {reason}", stacklevel=2)
        return "cpu"
    return "cuda"


def describe_device(device: str) -> str:
    """Return a device as people know it: "cuda (NVIDIA H100)", "cpu, 2 threads".

    Example:
        >>> from mdssd.system.devices import describe_device
        >>> describe_device("cpu").startswith("cpu, ")
        True
    """
    kind = torch.device(device).type
    if kind == "cuda":
        text = f"{device} ({torch.cuda.get_device_name(device)})"
    elif kind == "cpu":
        threads = torch.get_num_threads()
        text = f"cpu, {plural(threads, 'thread')}"
    else:
        text = device
    processes = distributed.world_size()
    return text if processes == 1 else f"{text}, {processes} processes"
