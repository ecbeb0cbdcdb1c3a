"""docs/reliability.md: the tests that it names exist, and its table is that of the tool."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 20
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file} has no {name}"


def test_the_table_has_no_input_that_takes_2_gib():
    rows = re.findall(r"^\| .* \| `[a-z ]+` \| .* \| (\d+) \| [\d.]+ \|$", PAGE, re.MULTILINE)
    assert len(rows) > 40 and max(map(int, rows)) < 2048
