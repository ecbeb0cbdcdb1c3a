"""tools/compat.py: what it counts, and the page that it writes."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import real_codebases

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compat() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compat", ROOT / "tools" / "compat.py")
    assert spec and spec.loader
    sys.modules["compat"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts_are_those_of_the_last_line(compat: ModuleType) -> None:
    output = "....s\n7 passed\n=== 12 passed, 3 skipped, 40 deselected, 2 warnings in 3.14s ===\n"
    assert compat.counted(output) == "12 passed, 3 skipped"
    assert compat.counted("1 failed, 11 passed in 1s") == "1 failed, 11 passed"


def test_a_row_takes_the_place_of_the_same_versions(compat: ModuleType) -> None:
    old = compat.Seen("3.11", "2.9.1", "0.24.1", "1 passed", "2 passed", "")
    new = compat.Seen("3.11", "2.14.1", "0.29.1", "3 passed", "4 passed", "sahi 0.12.8")
    page = compat.with_row(compat.with_row("", old), new)
    assert compat.rows(page) == [new, old]  # the newest first, and 2.14 is newer than 2.9
    again = new._replace(adapters="5 passed")
    assert compat.rows(compat.with_row(page, again)) == [again, old]


def test_gains_stay_when_versions_change(compat: ModuleType) -> None:
    row = compat.Seen("3.11", "2.14.1", "0.29.1", "3 passed", "4 passed", "sahi 0.12.8")
    gain = ("sahi 0.12.8", "NMSPostprocess, 2,000 boxes", "20", "2", "10x")
    page = compat.with_gains(compat.with_row("", row), [gain])
    assert compat.gains(page) == [gain] and compat.rows(page) == [row]
    newer = row._replace(torch="2.15.0")
    page = compat.with_row(page, newer)
    assert compat.gains(page) == [gain] and compat.rows(page) == [newer, row]


def test_the_page_is_as_the_tool_writes_it(compat: ModuleType) -> None:
    page = compat.PAGE.read_text()
    assert page == compat.render(compat.rows(page), compat.gains(page)) and compat.rows(page)
    assert not any("failed" in row.adapters + row.operators for row in compat.rows(page))


def test_a_failed_run_leaves_the_page(
    compat: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(compat, "PAGE", page)
    monkeypatch.setattr(compat, "run", lambda python, arguments: (1, "1 failed"))
    assert compat.main(["--venv", str(tmp_path), "--keep"]) == 1
    assert not page.exists()
    monkeypatch.setattr(compat, "run", lambda python, arguments: (0, "7 passed in 1s"))
    seen = {"python": "3.12", "torch": "2.13.0", "torchvision": "0.28.0", "sahi": "0.12"}
    monkeypatch.setattr(compat, "versions", lambda python: seen)
    assert compat.main(["--venv", str(tmp_path), "--keep"]) == 0
    row = compat.Seen("3.12", "2.13.0", "0.28.0", "7 passed", "7 passed", "sahi 0.12")
    assert compat.rows(page.read_text()) == [row]


def test_rows_measured_again_take_their_places() -> None:
    old = [("sahi 1", "a", "9", "3", "3x"), ("effdet 1", "b", "8", "2", "4x")]
    newer = [("sahi 1", "c", "6", "2", "3x"), ("sahi 1", "a", "8", "4", "2x")]
    assert real_codebases.replaced(old, newer) == [newer[1], newer[0], old[1]]


def test_a_measurement_replaces_the_rows_of_what_it_measured(
    compat: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = [("sahi 1", "a", "9", "3", "3x"), ("sahi 1", "gone", "9", "3", "3x")]
    other = ("lufficc/SSD 68dc0a2", "b", "8", "2", "4x")
    page = tmp_path / "page.md"
    page.write_text(compat.render([], [*gains, other]))
    monkeypatch.setattr(real_codebases.compat, "PAGE", page)
    for module, name in ((real_codebases, "run_before_others"), (torch, "set_num_threads")):
        monkeypatch.setattr(module, name, lambda *_: None)
    calls = []
    row = real_codebases.Row("sahi", "a", lambda: calls.append(1), nullcontext)
    monkeypatch.setattr(real_codebases, "sources", lambda options: [("2", [row])])
    monkeypatch.setattr(real_codebases, "MOST", 2)
    monkeypatch.setattr(real_codebases, "LEAST", 2)
    with warnings.catch_warnings():
        assert real_codebases.main([]) == 0
    assert len(calls) == 6
    found = compat.gains(page.read_text())
    assert [line[:2] for line in found] == [other[:2], ("sahi 2", "a")]

    def differ(got: object, want: object) -> None:
        raise AssertionError("other detections")

    monkeypatch.setattr(
        real_codebases, "sources", lambda options: [("2", [row._replace(check=differ)])]
    )
    with warnings.catch_warnings(), pytest.raises(AssertionError, match="other detections"):
        real_codebases.main([])
