"""Damaged recipes: their settings are right, or one line names the file."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import damaged_bytes

from mdssd.cli import main
from mdssd.training.recipe_files import read_recipe

BASE = {"model": "ssd300", "width": 0.5, "epochs": 10, "batch_size": 8, "lr": 0.01, "warmup": 5}
SETTINGS = [
    *("model", "width", "batch_norm", "prior_scales", "clip_priors", "truncate_sizes", "trunk"),
    "light",
    *("epochs", "iterations", "minutes", "batch_size", "lr", "schedule", "drops", "warmup"),
    *("momentum", "weight_decay", "ema", "accumulate", "normalizer", "amp", "seed", "expand"),
    *("crop", "freeze", "keep", "save_every", "starts_from", "no_such_setting", "Lr"),
]
VALUES = st.one_of(
    st.sampled_from(
        [
            *(0, 1, -1, 2, 10**400, 2**63, 0.5, -0.5, 1e308, math.nan, math.inf, True, False, ""),
            *("ssd300", "mdssd512", "steps", "cosine", "small", "size", "local", "bf16", "x" * 300),
            *([], [1, 2], [0.5, 0.75], [2, 1], ["vgg"], [[1]], {}, {"a": 1}, "é", '"', "\\", "\0"),
        ]
    ),
    st.integers(-5, 10**6),
    st.floats(),
    st.text(max_size=5),
)


def toml(value: Any) -> str:
    """Write a value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, float) else repr(value)


@st.composite
def recipes(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a recipe in which something may be wrong."""
    settings = BASE | draw(st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=3))
    for name in draw(st.lists(st.sampled_from(list(settings)), max_size=2)):
        settings.pop(name, None)
    text = "".join(f"{name} = {toml(value)}\n" for name, value in settings.items())
    data = text.encode("utf-8", "surrogatepass")
    return draw(damaged_bytes(data)) if draw(st.integers(0, 3)) == 0 else data


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "mine.toml"


@given(content=recipes(), scale=st.booleans())
@example(content=b"model = 5\n", scale=False)
@example(content=b"batch_size = 0\nlr = 0.1\n", scale=True)
def test_a_damaged_recipe(path: Path, content: bytes, scale: bool) -> None:
    path.write_bytes(content)
    arguments = ["train", "--recipe", str(path), "--print-recipe"]
    arguments += ["--batch-size", "16", "--scale-lr"] if scale else []
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    if status == 0:  # what was printed is a recipe, of the same settings
        path.write_text(out.getvalue(), encoding="utf-8")
        again = io.StringIO()
        with contextlib.redirect_stdout(again):
            assert main(["train", "--recipe", str(path), "--print-recipe"]) == 0
        assert again.getvalue() == out.getvalue()
        assert read_recipe(str(path))["model"]
    else:
        assert status == 2
        lines = err.getvalue().splitlines()
        assert len(lines) == 1 and lines[0].startswith("mdssd: error: ")
        named = str(path) in lines[0] or any(name in lines[0] for name in SETTINGS)
        assert named and "bug" not in lines[0], lines[0]
