"""Compiled kernels without one of their barriers or atomics: the cases of the operators find each.

A mutant is a kernel in which one `bar.sync` or `bar.warp.sync` is missing, or one atomic is a load,
an operation and a store. The inputs of CASES that launch the kernel run on it, the cheapest first,
until a launch ends with a fault or with a new note (a plain read of what atomics change), or a
result differs from the reference. MDSSD_PTX_MUTANTS names a file that receives a line for each
mutant. It takes about an hour:

    python tools/ptx_check.py -- tests/ptx/test_ptx_mutants.py --nightly -n0

A barrier or atomic of the source must be found in one of the kernels that are made of it: those for
other types and settings have the same. EXPLAINED lists what cannot be found in any.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.ops import _modules
from mdssd.testing import CASES, Case

BARRIER = re.compile(r"^\s*(@!?%p\d+\s+)?(bar\.sync|bar\.warp\.sync|barrier\.sync)\b.*;$")
ATOMIC = re.compile(
    r"^\s*(?P<guard>@!?%p\d+\s+)?(?P<op>atom|red)(\.relaxed|\.gpu|\.cta)*\.(?P<space>global|shared)"
    r"(\.relaxed|\.gpu|\.cta)*\.(?P<what>\w+)\.(?P<type>\w+)\s+(?P<rest>.*);$"
)


# How many barriers of a kernel no input shows, and why.
EXPLAINED = {
    ("detection_output", "append_kernel"): (
        1,
        "rows.h: before a block stages its next rows. No input has so many that a block has a "
        "second turn. row_kernel of multibox_loss has the same barrier, and many_rows shows it.",
    ),
    ("detection_output", "best_kernel"): (
        1,
        "block_sum begins with a barrier for its next call. This is the only one of the kernel.",
    ),
    ("l2norm", "backward_nhwc_kernel"): (
        1,
        "Before the next tile: another barrier lies between all accesses, unless there are more "
        "than 256 vectors of channels; and then a block has one tile up to 16,384 pixels.",
    ),
    ("l2norm", "forward_nchw_kernel"): (
        1,
        "sum_over_warps begins with a barrier for its next call. The kernel has one, while "
        "backward_nchw_kernel has one in each turn of a loop, where many_pixels shows it.",
    ),
    ("multibox_loss", "select_kernel"): (
        3,
        "block_sum begins with a barrier for its next call. The first calls with `counts` and with "
        "`losses` need none. The barrier after the first count of digits has those of block_sum "
        "between it and the first reader.",
    ),
    ("multibox_loss", "finish_kernel"): (2, "The same, for `losses` and `counts`."),
    ("multibox_loss", "row_kernel"): (1, "The same, for `scratch`."),
}


class Input(NamedTuple):
    case: Case
    size: str
    dtype: torch.dtype


class Mutant(NamedTuple):
    kernel: str  # as in the object file
    line: int  # of the kernel's text
    instruction: str
    before: str  # PTX, up to the instruction
    changed: str
    after: str

    @property
    def kind(self) -> str:
        return "barrier" if BARRIER.match(self.instruction) else "atomic"

    @property
    def source(self) -> str:
        """The name of the file of csrc/cuda, without its ending."""
        found = re.search(r"_\d+_(\w+?)_cu_", self.kernel)
        return found[1] if found else ""

    def text(self, instruction: str) -> str:
        return f"{self.before}\n{instruction}\n{self.after}\n"


def plain(atomic: re.Match[str]) -> str:
    """Return code that is no atomic and does the same for a single thread."""
    guard, kind = atomic["guard"] or "", atomic["type"]
    places = [part.strip() for part in atomic["rest"].split(",")]
    old, address, value = places if atomic["op"] == "atom" else ["%mutant0", *places]
    space = atomic["space"]
    return (
        f"{{ .reg .{kind} %mutant0; .reg .{kind} %mutant1;\n"
        f"{guard}ld.{space}.{kind} %mutant0, {address};\n"
        f"{guard}{atomic['what']}.{kind} %mutant1, %mutant0, {value};\n"
        f"{guard}st.{space}.{kind} {address}, %mutant1;\n"
        + (f"{guard}mov.{kind} {old}, %mutant0;\n" if old != "%mutant0" else "")
        + "}"
    )


def kernels_of(text: str) -> dict[str, str]:
    """Return a PTX file for each kernel of a file."""
    first, *rest = re.split(r"(?=^(?:\.visible )?\.entry )", text, flags=re.MULTILINE)
    names = (re.match(r"(?:\.visible )?\.entry (\w+)", kernel) for kernel in rest)
    return {name[1]: first + kernel for name, kernel in zip(names, rest, strict=True) if name}


def mutants_of(text: str) -> Iterator[Mutant]:
    for name, kernel in kernels_of(text).items():
        lines = kernel.splitlines()
        for number, line in enumerate(lines):
            if atomic := ATOMIC.match(line):
                changed = plain(atomic)
            elif BARRIER.match(line):
                changed = ""
            else:
                continue
            before, after = "\n".join(lines[:number]), "\n".join(lines[number + 1 :])
            yield Mutant(name, number, line.strip(), before, changed, after)


def run(backend: str, chosen: Input) -> list[Tensor]:
    """Return the results of an input, and the gradients."""
    case = chosen.case
    args, kwargs = case.inputs(chosen.size, chosen.dtype)
    for position in case.gradients:
        args[position].requires_grad_()
    with ops.backend(backend):
        results = case(*args, **kwargs)
        if not case.gradients:
            return list(results)
        ones = [torch.ones_like(result) for result in results]
        inputs = [args[position] for position in case.gradients]
        return [*results, *torch.autograd.grad(results, inputs, ones)]


def agree(chosen: Input, got: list[Tensor], want: list[Tensor]) -> bool:
    for position, (g, w) in enumerate(zip(got, want, strict=True)):
        keywords = chosen.case.sizes[chosen.size].arguments
        rtol, atol = chosen.case.allowed(position, chosen.dtype, keywords)
        if atol and w.numel():
            atol = max(atol, rtol * float(w.detach().nan_to_num(0, 0, 0).abs().max()))
        if g.shape != w.shape or not torch.allclose(g, w, rtol, atol, equal_nan=True):
            return False
    return True


class Found:
    """Runs mutants; knows which inputs launch a kernel and what the reference says."""

    def __init__(self, ptx: Any) -> None:
        self.ptx = ptx
        # By kernel: what an input costs it, and may cost at most, and what the reference says.
        self.inputs: dict[str, list[tuple[int, int, Input, list[Tensor]]]] = defaultdict(list)
        ptx.configure(races=True)
        ptx.module.set_shuffle(0)
        for case in CASES:
            for name, size in case.sizes.items():
                # The kernels of the half types are the same code as those of float32.
                for dtype in () if size.benchmark else size.dtypes:
                    if dtype in (torch.float32, torch.float64):
                        self.add(Input(case, name, dtype))
        kernels = ptx.report()["kernels"]
        self.titles = {name: kernel["title"] for name, kernel in kernels.items()}
        for costs in self.inputs.values():
            costs.sort(key=lambda cost: cost[0])

    def add(self, chosen: Input) -> None:
        before = self.ptx.report()["kernels"]
        want = run("reference", chosen)
        try:
            if not agree(chosen, run("simt", chosen), want):
                return
        except RuntimeError:  # a fault without a mutation
            return
        costs = {
            name: kernel["warp_instructions"] - before[name]["warp_instructions"]
            for name, kernel in self.ptx.report()["kernels"].items()
        }
        limit = 10 * sum(costs.values()) + 100_000  # a mutant may never end
        for name, cost in costs.items():
            if cost:
                self.inputs[name].append((cost, limit, chosen, want))

    def by(self, mutant: Mutant) -> str:
        """Return what shows the mutant, "not reached" if no input executes the place, or ""."""
        try:
            if by := self._shown(mutant, mutant.changed):
                return by
            return "" if self._shown(mutant, "trap;") else "not reached"
        finally:
            self.ptx.load(mutant.text(mutant.instruction))

    def _shown(self, mutant: Mutant, instruction: str) -> str:
        self.ptx.load(mutant.text(instruction))
        notes = self.ptx.report()["notes"]
        for _, limit, chosen, want in self.inputs[mutant.kernel]:
            self.ptx.configure(races=True, limit=limit)
            try:
                if not agree(chosen, run("simt", chosen), want):
                    return f"another result of {chosen.case.op}-{chosen.size}"
                if self.ptx.report()["notes"] != notes:
                    return "a note"
            except RuntimeError as error:
                return str(error).split(": ", 2)[-1].partition(" (")[0]
        return ""


@pytest.fixture(scope="module")
def originals() -> list[Path]:
    return sorted(Path(getattr(_modules.simt, "__file__", "/")).parent.glob("*.ptx"))


@pytest.mark.nightly("hundreds of mutants of the compiled kernels")
def test_missing_barriers_and_atomics_are_found(ptx: Any, originals: list[Path]) -> None:
    newest = max(file.suffixes[-2] for file in originals)
    runs = Found(ptx)
    # Whether each was found: by file, kernel, kind, and its number among those of its kernel.
    places: dict[tuple[str, str, str, int], list[bool]] = defaultdict(list)
    before: Counter[tuple[str, str]] = Counter()
    log = Path(os.environ.get("MDSSD_PTX_MUTANTS", os.devnull)).open("w")
    for file in originals:
        text = file.read_text()
        if file.suffixes[-2] != newest or "faults_cu" in text:
            continue
        for mutant in mutants_of(text):
            title, kind = runs.titles[mutant.kernel], mutant.kind
            if re.search("Half|BFloat16", title):
                continue
            by = runs.by(mutant)
            line = f"{title}, line {mutant.line}: {mutant.instruction}"
            print(f"{line}: {by or 'NOT FOUND'}", file=log, flush=True)
            number = before[title, kind]
            before[title, kind] += 1
            key = (mutant.source, title.partition("<")[0], kind, number)
            places[key].append(by not in ("", "not reached"))
    log.close()
    assert places
    unseen = Counter(place[:2] for place, found in places.items() if not any(found))
    assert not unseen - Counter({kernel: count for kernel, (count, _) in EXPLAINED.items()})


def test_a_mutant_knows_its_file() -> None:
    kernel = "_ZN5mdssd52_GLOBAL__N__350a1b92_19_detection_output_cu_8190625112bound_kernelE"
    barrier = Mutant(kernel, 3, "bar.sync 0;", "", "", "")
    assert (barrier.source, barrier.kind) == ("detection_output", "barrier")
    assert barrier._replace(instruction="red.global.add.u32 [%rd1], 1;").kind == "atomic"


def test_an_atomic_becomes_plain_code(ptx: Any) -> None:
    code = "mov.u32 %r3, 5; atom.global.max.u32 %r2, [%rd1], %r3;\nred.global.add.u32 [%rd1], %r2;"
    lines = [ATOMIC.match(line) for line in code.replace("; atom", ";\natom").splitlines()]
    mutated = "mov.u32 %r3, 5;\n" + "\n".join(plain(line) for line in lines if line)
    assert mutated.count("st.global.u32 [%rd1]") == 2
    x = torch.zeros(1, dtype=torch.int32)
    assert ptx.run(code, x).tolist() == ptx.run(mutated, x).tolist() == [5]
