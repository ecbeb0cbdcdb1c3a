"""Recipes as files: those of the papers, which come with the package, and a user's own.

A recipe is a TOML file of settings, flat, under the names of the options of `mdssd train` (with
underscores). TOML because it is plain data (a file from elsewhere runs no code), has comments for
the source of each setting, and is in Python's own library from 3.11.
"""

from __future__ import annotations

import difflib
import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from mdssd.training.settings import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODEL_OPTIONS = (
    "model",
    "width",
    "batch_norm",
    "prior_scales",
    "clip_priors",
    "truncate_sizes",
)
LENGTHS = ("epochs", "iterations", "minutes")
# For people: what the paper started from, which no file of settings can bring.
START = "starts_from"


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir())


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe of the package, by its name, or of the TOML file of that path.

    Raises:
        ValueError: there is no such recipe, it is not TOML, or it has a setting that does not
            exist. Their values are checked where they are used.
    """
    if name in recipe_names():
        text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = _read(Path(name))
    else:
        raise ValueError(
            f"--recipe: {name}: no such recipe or file; expected a TOML file or one of "
            f"{', '.join(recipe_names())}"
        )
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"--recipe: {name}: is not TOML: {error}") from None
    known = (START, *MODEL_OPTIONS, *Recipe.__dataclass_fields__)
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected some of {', '.join(known)}"
            raise ValueError(f"--recipe: {name}: {key}: no such setting; {hint}")
    lengths = [key for key in LENGTHS if key in settings]
    if len(lengths) > 1:
        raise ValueError(f"--recipe: {name}: expected one length, got {', '.join(lengths)}")
    return settings


def combine(
    recipe: Mapping[str, Any], options: Mapping[str, Any], *, scale_lr: bool = False
) -> dict[str, Any]:
    """A recipe with options in place of its settings; neither is changed.

    A length among the options replaces that of the recipe, whatever its kind; drops that the recipe
    has in iterations then keep their place in the run, as fractions. Drops among the options set
    the schedule to "steps"; another schedule among them ends the recipe's drops.

    With `scale_lr`, a batch of k times the recipe's (without one: of 32) has k times the learning
    rate, and where the recipe's length holds, a k-th of its iterations and drops: the linear
    scaling rule (Goyal et al. 2017), by which the run sees as many images as before.
    """
    both = {key: value for key, value in recipe.items() if key != START}
    if any(key in options for key in LENGTHS):
        whole = both.get("iterations")
        if whole and _in_iterations(both.get("drops")):
            # What lies beyond the recipe's end is of no consequence at any length.
            both["drops"] = [drop / whole for drop in both["drops"] if drop < whole]
        both = {key: value for key, value in both.items() if key not in LENGTHS}
    if "drops" in options:
        both["schedule"] = "steps"
    elif options.get("schedule", "steps") != "steps":
        both.pop("drops", None)
    own = set(both)
    both |= options
    if scale_lr and "batch_size" in options:
        ratio = options["batch_size"] / recipe.get("batch_size", Recipe.batch_size)
        both["lr"] = both.get("lr", Recipe.lr) * ratio
        if "iterations" in own and "iterations" not in options:
            both["iterations"] = max(1, round(both["iterations"] / ratio))
        if "drops" in own and "drops" not in options and _in_iterations(both["drops"]):
            both["drops"] = [max(1, round(drop / ratio)) for drop in both["drops"]]
    return both


def format_recipe(model: Mapping[str, Any], recipe: Recipe) -> str:
    """Everything that a run would use, defaults included, as TOML that `read_recipe` takes."""
    from mdssd.models import mdssd300

    signature = inspect.signature(mdssd300).parameters
    defaults = {name: signature[name].default for name in MODEL_OPTIONS if name in signature}
    options = defaults | {name: model[name] for name in MODEL_OPTIONS if name in model}
    tables = ({"model": options.pop("model"), **options}, asdict(recipe))
    return "\n".join(
        "".join(f"{key} = {_toml(value)}\n" for key, value in table.items() if value is not None)
        for table in tables
    )


def _folder() -> Any:
    return resources.files("mdssd") / "recipes"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"--recipe: {path}: is not TOML: not UTF-8") from None


def _in_iterations(drops: Any) -> bool:
    return isinstance(drops, list | tuple) and all(type(drop) is int for drop in drops)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"format_recipe: expected finite numbers, got {value}")
    return repr(value)
