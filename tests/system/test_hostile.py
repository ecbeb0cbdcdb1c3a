"""Hostile inputs at the command line: refused, or handled in less than 2 GiB."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "hostile_inputs.py"
_spec = importlib.util.spec_from_file_location("hostile_inputs", TOOL)
tool = importlib.util.module_from_spec(_spec)
sys.modules["hostile_inputs"] = tool  # where NamedTuple looks
_spec.loader.exec_module(tool)


def _parameters():
    for hostile in tool.INPUTS:
        marks = [pytest.mark.nightly("a process for each input")] if hostile.nightly else []
        yield pytest.param(hostile, id=hostile.name, marks=marks)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures by the kernel of Linux")
@pytest.mark.parametrize("hostile", _parameters())
def test_refused_or_handled_in_less_than_2_gib(hostile, tmp_path):
    assert tool.faults(hostile, tool.measure(hostile, tmp_path)) == []


@pytest.mark.parametrize(
    "outcome, fault",
    [
        (tool.Outcome(2, "mdssd: error: r.toml: batch_size", 3000, 1.0), "took 3000 MiB"),
        (tool.Outcome(-9, "batch_size", 300, 1.0), "ended with -9"),
        (tool.Outcome(2, "Traceback batch_size", 300, 1.0), "ended in an error of the program"),
        (tool.Outcome(2, "batch_size", 300, 1.0), "did not say why in one line"),
        (tool.Outcome(2, "mdssd: error: r.toml: no", 300, 1.0), "did not say 'batch_size'"),
        (tool.Outcome(2, "mdssd: error: r.toml: batch_size: no", 300, 1.0), None),
    ],
)
def test_each_wrong_outcome_is_a_fault(outcome, fault):
    hostile = next(h for h in tool.INPUTS if "400-digit batch" in h.name)
    found = tool.faults(hostile, outcome)
    assert (fault in found[0]) if fault else found == []
