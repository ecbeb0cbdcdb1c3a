"""The text of `mdssd info`: what is installed, and which devices and backends can run."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch

from mdssd import ops
from mdssd.ops import _modules
from mdssd.system.devices import best_device, describe_device
from mdssd.version import __version__


def info() -> str:
    """Describe this installation: versions, the native build, devices, backends per operator.

    The text is meant for people and bug reports; its layout may change. This function runs one tiny
    kernel on each CUDA device, to detect a GPU for which the build contains no code.

    Returns:
        Several lines of text without a final line end.

    Example:
        >>> from mdssd.info import info
        >>> print(info())  # doctest: +ELLIPSIS
        mdssd     ...
        python    ...
    """
    lines = [
        f"mdssd     {__version__} in {Path(__file__).parent}",
        f"python    {platform.python_version()}, {platform.platform()}",
        f"torch     {torch.__version__}",
        f"numpy     {np.__version__}",
        f"opencv    {cv2.__version__}",
        f"pillow    {PIL.__version__}",
        *_native_lines(),
        _triton_line(),
        *_device_lines(),
        f"default   {describe_device(best_device())}; --device chooses another",
        f"threads   {torch.get_num_threads()} (torch.get_num_threads), {_cores()} cores usable",
    ]
    lines += [f"set       {k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("MDSSD_")]
    table = ops.backends()
    width = max(len(name) for name in table)
    lines.append("backends  of each operator, the default first")
    lines += [f"  {name:<{width}}  {', '.join(table[name])}" for name in table]
    return "\n".join(lines)


def _native_lines() -> list[str]:
    native = _modules.native
    if native is None:
        return [
            f"cpp       not available: {_modules.native_error}",
            "          every operator runs as the slow reference until mdssd is installed again",
        ]
    build = native.build_info()
    lines = [f"cpp       built by {build['compiler']}, {build['build_type']}"]
    if build["cuda"]:
        major, minor = divmod(build["cuda_runtime"] // 10, 100)
        archs = " ".join(build["cuda_archs"])
        lines.append(f"cuda      built by nvcc {build['nvcc']} for {archs}")
        lines.append(f"          with runtime {major}.{minor} linked in")
    else:
        lines.append(f"cuda      not built: {build['cuda_off_reason']}")
    return lines


def _triton_line() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton    not installed: pip install triton (optional, for GPUs)"
    try:
        import triton
    except ImportError as error:
        return f"triton    does not import: {error}"
    return f"triton    {triton.__version__}"


def _device_lines() -> list[str]:
    native = _modules.native
    lines = [f"device    cpu: {_cpu_name()}"]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        fault = native.cuda_device_fault(index) if native is not None else "no native module"
        lines.append(
            f"device    cuda:{index}: {torch.cuda.get_device_name(index)}, architecture "
            f"{major}{minor}; mdssd's kernels {f'do not run: {fault}' if fault else 'run'}"
        )
    if torch.xpu.is_available():
        lines += [
            f"device    xpu:{index}: {torch.xpu.get_device_name(index)}"
            for index in range(torch.xpu.device_count())
        ]
    present = native.cuda_device_count() if native is not None else 0
    if present and not torch.cuda.is_available():
        lines.append(f"device    {present} CUDA device(s) that this build of torch cannot use")
    return lines


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
