"""What the kernels cost: instructions and memory requests on the inputs of the benchmarks.

csrc/cuda/counts.txt has the counts of the last `make ptx-counts`. They do not depend on the
machine, and little on the compiler and the architecture.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mdssd import ops
from mdssd.ops import _modules
from mdssd.testing import CASES, Case

REPORT = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "counts.txt"
WRITE = os.environ.get("MDSSD_PTX_WRITE_COUNTS")
COUNTED = {
    "warp_instructions": "instructions",
    "sectors_loaded": "sectors loaded",
    "sectors_stored": "sectors stored",
    "wavefronts": "wavefronts",
}
MOST = 1.5  # times the count of the report
FEW = 1000  # more may be added to any count
HEADER = """\
# What each kernel costs on the inputs of the benchmarks: the instructions of its warps, the
# sectors of 32 bytes that global memory moves, and the wavefronts of shared memory (more than one
# where banks conflict). tests/ptx/test_ptx_counts.py fails if one grows by half.
# PTX {} for {}; written by: make ptx-counts
"""
# The sizes of MDSSD512 run the same kernels for longer.
INPUTS = {
    f"{case.op}-{name}": (case, name)
    for case in CASES
    for name, size in case.sizes.items()
    if size.benchmark and name != "mdssd512"
}
Counts = dict[str, dict[str, int]]  # of each kernel


def count(ptx: Any, case: Case, size: str) -> Counts:
    """Run an operator and its gradient; return the counts of the kernels that it launched."""
    args, kwargs = case.inputs(size, torch.float32)
    for position in case.gradients:
        args[position].requires_grad_()
    ptx.module.set_shuffle(0)
    ptx.configure()
    before = counts_so_far(ptx)
    with ops.backend("simt"):
        results = case(*args, **kwargs)
        if case.gradients:
            torch.stack([result.sum() for result in results]).sum().backward()
    now = counts_so_far(ptx)
    added = {
        title: {what: n - before[title][what] for what, n in kernel.items()}
        for title, kernel in now.items()
    }
    return {title: kernel for title, kernel in added.items() if any(kernel.values())}


def counts_so_far(ptx: Any) -> Counts:
    return {
        kernel["title"]: {text: kernel[name] for name, text in COUNTED.items()}
        for kernel in ptx.report()["kernels"].values()
    }


def read_report(text: str) -> dict[str, Counts]:
    """Return the counts of each input."""
    inputs: dict[str, Counts] = {}
    for line in text.splitlines():
        if line.removeprefix("# ") in INPUTS:
            kernels = inputs.setdefault(line.removeprefix("# "), {})
        elif line and not line.startswith("#"):
            title, *counts = line.split("  ")
            kernels[title] = {what: int(n) for n, what in (c.split(" ", 1) for c in counts)}
    return inputs


def write_report(inputs: dict[str, Counts]) -> str:
    """Return the text of a report, without its header."""
    text = ""
    for key in INPUTS:
        text += f"\n# {key}\n"
        for title, kernel in sorted(inputs.get(key, {}).items()):
            text += "  ".join([title, *(f"{n} {what}" for what, n in kernel.items())]) + "\n"
    return text


def header() -> str:
    ptx = next(Path(_modules.simt.__file__).parent.glob("*.ptx")).read_text()
    words = [re.search(rf"^\.{word} (\S+)", ptx, re.MULTILINE) for word in ("version", "target")]
    return HEADER.format(*(match[1] if match else "?" for match in words))


def faults(old: Counts, new: Counts) -> list[str]:
    """Return a line for each kernel that costs more, or that the report does not have."""
    found = []
    for title in sorted(old | new):
        if title not in old or title not in new:
            found.append(
                f"{title}: {'not in the report' if title in new else 'no longer launched'}"
            )
            continue
        for what, n in new[title].items():
            if n > MOST * old[title][what] + FEW:
                found.append(f"{title}: {n} {what}, {old[title][what]} in the report")
    return found


@pytest.mark.parametrize("key", INPUTS)
def test_no_kernel_costs_half_as_much_again(ptx: Any, key: str) -> None:
    new = count(ptx, *INPUTS[key])
    inputs = read_report(REPORT.read_text() if REPORT.exists() else "")
    if WRITE:
        REPORT.write_text(header() + write_report(inputs | {key: new}))
    else:
        found = faults(inputs.get(key, {}), new)
        assert not found, "\n".join([*found, "If this is right: make ptx-counts"])


def test_a_report_that_is_read_is_as_it_was_written() -> None:
    text = REPORT.read_text()
    assert text.endswith(write_report(read_report(text)))


@pytest.mark.parametrize(
    "new, found",
    [
        ({"k<float>": {"instructions": 14000, "wavefronts": 900}}, []),
        ({"k<float>": {"instructions": 20000, "wavefronts": 0}}, ["k<float>: 20000 instructions"]),
        ({"k<float>": {"instructions": 10000, "wavefronts": 5000}}, ["k<float>: 5000 wavefronts"]),
        ({}, ["k<float>: no longer launched"]),
    ],
)
def test_a_kernel_that_costs_twice_as_much_is_found(new: Counts, found: list[str]) -> None:
    old = {"k<float>": {"instructions": 10000, "wavefronts": 0}}
    assert [line.split(",")[0] for line in faults(old, new)] == found
    assert faults({}, old) == ["k<float>: not in the report"]
