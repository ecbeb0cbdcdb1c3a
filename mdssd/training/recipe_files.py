"""Recipe files: those that come with the package, most with a paper's settings, and a user's own.

A recipe is a flat TOML file. Its settings have the names of the options of `mdssd train`, with
underscores. TOML is plain data, so that a file from elsewhere runs no code; it has comments, which
state the source of each setting; and the standard library reads it from Python 3.11 on.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import Any

from mdssd.models.build import default_options, network_of
from mdssd.models.options import ModelOptions
from mdssd.names import AUTO_PRIORS, PRIOR_SCALES
from mdssd.priors import check_sizes
from mdssd.system.files import read_regular
from mdssd.training.settings import MATCH_SETTINGS, WINDOW_SETTINGS, Recipe, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The data set decides the number of classes; a recipe has the other options of the model.
MODEL_OPTIONS = ("model", *(f.name for f in fields(ModelOptions) if f.name != "num_classes"))
LENGTHS = ("epochs", "iterations", "minutes")
# The weights that the paper started from. Only shown: a recipe file contains no weights.
START = "starts_from"
# The recipe of a training for which none is named.
DEFAULT_RECIPE = "photos"
_MOST_BYTES = 2**20  # of a recipe file


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir())


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe of the package, or a TOML file.

    Args:
        name: the name of the recipe, or the path of the file.

    Returns:
        The settings: options of the model, fields of `Recipe`, and possibly "starts_from". The
        prior scales may be "auto", or a list for each map of [width, height] in input pixels.

    Raises:
        ValueError: there is no such recipe or file, it is not TOML, or one of its settings does not
            exist or has a wrong value.

    Example:
        >>> from mdssd.training.recipe_files import read_recipe
        >>> settings = read_recipe("mdssd300-voc")
        >>> settings["model"], settings["iterations"], settings["lr"]
        ('mdssd300', 120000, 0.001)
    """
    if name in recipe_names():
        text = (_folder() / f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).exists():
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
    except (ValueError, RecursionError):
        raise ValueError(
            f"--recipe: {name}: cannot be read: a number of thousands of digits, or lists in lists"
        ) from None
    known = (START, *MODEL_OPTIONS, *Recipe.__dataclass_fields__)
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key[:40], known, 1)
            hint = f"did you mean {close[0]}?" if close else f"expected some of {', '.join(known)}"
            raise ValueError(f"--recipe: {name}: {shown(key)[1:-1]}: no such setting; {hint}")
    lengths = [key for key in LENGTHS if key in settings]
    if len(lengths) > 1:
        raise ValueError(f"--recipe: {name}: expected one length, got {', '.join(lengths)}")
    _check_values(f"--recipe: {name}", settings)
    return settings


def _check_values(where: str, settings: Mapping[str, Any]) -> None:
    """Check the type and range of every setting of a recipe file.

    Raises:
        ValueError: one is wrong; the message begins with `where` and names it.
    """
    for key, value in settings.items():
        if isinstance(value, int) and abs(value) >= 2**63:  # as TOML itself demands
            raise ValueError(f"{where}: {key}: expected a number of 64 bits, got {shown(value)}")
    if "model" in settings:
        network_of(settings["model"], f"{where}: model: expected")
    scales, names = settings.get("prior_scales", AUTO_PRIORS), (*PRIOR_SCALES, AUTO_PRIORS)
    if isinstance(scales, list):
        check_sizes(where, scales)
    elif scales not in names:
        raise ValueError(
            f"{where}: prior_scales: expected one of {', '.join(names)}; got {shown(scales)}"
        )
    if not isinstance(settings.get(START, ""), str):
        raise ValueError(f"{where}: {START}: expected a text, got {shown(settings[START])}")
    options = {f.name: settings[f.name] for f in fields(ModelOptions) if f.name in settings}
    ModelOptions(**options).check(where)
    recipe = {key: settings[key] for key in Recipe.__dataclass_fields__ if key in settings}
    if not any(key in recipe for key in LENGTHS):
        recipe["epochs"] = 1  # the length is then an option
    if recipe.get("schedule") == "steps" and "drops" not in recipe:
        del recipe["schedule"]  # and so are the drops
    try:
        Recipe(**recipe)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix('Recipe: ')}") from None


def combine(
    recipe: Mapping[str, Any], options: Mapping[str, Any], *, scale_lr: bool = False
) -> dict[str, Any]:
    """Override the settings of a recipe by options; return the result.

    A length among the options replaces the recipe's, of whatever kind that is. If the recipe drops
    its learning rate at certain iterations, these become fractions of the run. The option drops
    sets the schedule to "steps"; any other schedule removes the recipe's drops.

    Args:
        recipe: the settings of `read_recipe`; may be empty.
        options: the settings that override them.
        scale_lr: apply the linear scaling rule (Goyal et al. 2017): k times the batch size gets k
            times the learning rate, and a k-th of the recipe's iterations, so that the run sees
            the same number of images. Without a recipe, the reference is a batch of 32.

    Example:
        >>> from mdssd.training.recipe_files import combine
        >>> combine({"iterations": 100, "lr": 0.01, "batch_size": 32}, {"batch_size": 64})
        {'iterations': 100, 'lr': 0.01, 'batch_size': 64}
        >>> combine({"iterations": 100, "lr": 0.01}, {"batch_size": 64}, scale_lr=True)
        {'iterations': 50, 'lr': 0.02, 'batch_size': 64}
    """
    both = {key: value for key, value in recipe.items() if key != START}
    if any(key in options for key in LENGTHS):
        whole = both.get("iterations")
        if whole and _in_iterations(both.get("drops")):
            # Drops beyond the end of the recipe never come, at any length.
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
    """Return all settings of a run, defaults included, as TOML that `read_recipe` can read.

    The model's usual trunk and form are left out, those about windows if the run draws none, ignore
    if it ignores no boxes, and those about matching if they have SSD's values.

    Args:
        model: options of the model, of which "model" (its name) is required.
        recipe: the settings of the run.

    Example:
        >>> from mdssd.training.recipe_files import format_recipe
        >>> from mdssd.training.settings import Recipe
        >>> print(format_recipe({"model": "ssd300"}, Recipe(epochs=10)))  # doctest: +ELLIPSIS
        model = "ssd300"
        width = 1.0
        ...
        epochs = 10
        batch_size = 32
        ...
    """
    usual = asdict(default_options(model["model"]))
    options = {**usual, **model}
    for name in ("trunk", "light"):
        if options[name] == usual[name]:
            del options[name]
    settings = asdict(recipe)
    if recipe.tile is None:
        settings = {name: settings[name] for name in settings if name not in WINDOW_SETTINGS}
    if not recipe.ignore:
        del settings["ignore"]
    if all(settings[name] == getattr(Recipe, name) for name in MATCH_SETTINGS):
        settings = {name: settings[name] for name in settings if name not in MATCH_SETTINGS}
    elif recipe.match_metric != "nwd":
        del settings["nwd_constant"]
    tables = ({name: options[name] for name in MODEL_OPTIONS if name in options}, settings)
    return "\n".join(
        "".join(f"{key} = {_toml(value)}\n" for key, value in table.items() if value is not None)
        for table in tables
    )


def _folder() -> Any:
    return resources.files("mdssd") / "recipes"


def _read(path: Path) -> str:
    try:
        return read_regular(path, _MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise ValueError(f"--recipe: {path}: cannot be read ({error.strerror})") from None
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
