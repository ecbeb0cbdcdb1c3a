"""tools/ptx_check.py: what it needs, which build it takes, what it reads from the reports."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "ptx_check.py"


@pytest.fixture
def ptx_check() -> Any:
    spec = importlib.util.spec_from_file_location("mdssd_ptx_check", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_nvcc_it_says_that_nothing_was_checked():
    environment = {**os.environ, "CUDACXX": "/nowhere/nvcc"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ptx-check: the compiled kernels were not checked: no nvcc\n"


def test_without_cuobjdump_it_says_that_nothing_was_checked(ptx_check, monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    monkeypatch.setattr(ptx_check, "PLACES", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ptx_check.missing() == "cuobjdump (of the CUDA toolkit or of Triton)"
    (tmp_path / "cuobjdump").symlink_to(nvcc)
    assert ptx_check.missing() == ""


@pytest.mark.parametrize(
    "line, expected",
    [
        ("cuda  yes  nvcc 13.0.88, 80-real;90-real;90-virtual", True),
        ("cuda  yes  nvcc 13.0.88, 90", True),
        ("cuda  yes  nvcc 13.0.88, 90-real", False),
        ("cuda  no   no nvcc on PATH", False),
        (None, False),
    ],
)
def test_a_build_without_ptx_is_not_taken(ptx_check, tmp_path, line, expected):
    if line:
        (tmp_path / "backends.txt").write_text(f"mdssd: native backends built\n  {line}\n  simt\n")
    assert ptx_check.has_ptx(tmp_path) == expected


def test_the_reports_of_all_processes_count(ptx_check, tmp_path):
    def kernel(title: str, launches: int) -> dict[str, Any]:
        return {"title": title, "launches": launches}

    first = {"_Z1a": kernel("a<float>", 0), "_Z1b": kernel("b", 2)}
    other = {"_Z1a": kernel("a<float>", 0), "_Z1b": kernel("b", 3)}
    other |= {"_Z9faults_cu_rotate": kernel("rotate", 0), "program_1": kernel("program_1", 0)}
    (tmp_path / "1.json").write_text(json.dumps({"kernels": first, "notes": {"doubt (b: st)": 1}}))
    (tmp_path / "2.json").write_text(json.dumps({"kernels": other, "notes": {"x (program_1:": 1}}))
    assert ptx_check.read_reports(tmp_path) == ({"a<float>": 0, "b": 5}, ["doubt (b: st)"])


@pytest.mark.parametrize("option", [[], ["--nightly"], ["--counts"]])
def test_all_tests_that_it_runs_exist(ptx_check, monkeypatch, option):
    named: list[str] = []
    monkeypatch.setattr(ptx_check, "missing", lambda: "")
    monkeypatch.setattr(ptx_check, "build", lambda folder: folder)
    monkeypatch.setattr(ptx_check, "run_tests", lambda ptx, arguments, **_: named.extend(arguments))
    monkeypatch.setattr(sys, "argv", ["ptx_check.py", *option])
    ptx_check.main()
    tests = [name for name in named if name.startswith("tests/")]
    assert tests and all((SCRIPT.parents[1] / name).exists() for name in tests)
