"""The rules of docs/architecture.md: the order of the rooms, no circles, no long files."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def architecture():
    path = ROOT / "tools" / "architecture.py"
    spec = importlib.util.spec_from_file_location("architecture", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_import_file_or_function_breaks_the_rules(architecture):
    assert architecture.faults() == []


def test_the_drawing_shows_the_imports_as_they_are(architecture):
    assert (ROOT / "docs" / "architecture.svg").read_text() == architecture.draw(), (
        "run: python tools/architecture.py --draw"
    )


@pytest.mark.parametrize(
    "files, fault",
    [
        (
            {"data/a.py": "from mdssd.training import loop", "training/loop.py": ""},
            "mdssd/data/a.py:1: data imports mdssd.training.loop, which is not a room below it",
        ),
        (
            {"data/a.py": "import mdssd.data.b", "data/b.py": "from mdssd.data.a import f"},
            "circle of imports: mdssd.data.a -> mdssd.data.b -> mdssd.data.a",
        ),
        (
            {"data/a.py": "def f():\n    from mdssd.ops import nms", "ops/nms.py": ""},
            "mdssd/data/a.py:2: a function imports mdssd.ops.nms, which is not in OPTIONAL",
        ),
        (
            {"data/a.py": "import importlib\nimportlib.import_module('mdssd.cli')"},
            "mdssd/data/a.py:2: imports a module by its name, but is not in BY_NAME",
        ),
        ({"data/a.py": "\n" * 401}, "mdssd/data/a.py: 401 lines, expected at most 400"),
        (
            {"data/a.py": "def f():\n" + "    x = 1\n" * 80},
            "mdssd/data/a.py:1: f has 81 lines, expected at most 80",
        ),
        (
            {"attic/a.py": ""},
            "mdssd/attic/a.py: its room is not in ROOMS of tools/architecture.py",
        ),
        ({"data/a.py": "def f():\n    import openvino.runtime\n    import onnx"}, None),
        ({"data/a.py": "from mdssd.ops import nms", "ops/__init__.py": ""}, None),
    ],
)
def test_each_kind_of_fault_is_found(architecture, monkeypatch, tmp_path, files, fault):
    for name, text in files.items():
        path = tmp_path / "mdssd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(architecture, "ROOT", tmp_path)
    assert architecture.faults() == ([fault] if fault else [])
