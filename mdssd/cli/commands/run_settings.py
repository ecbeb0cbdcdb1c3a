"""Where the settings of a training run come from: options, a recipe, the run to resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdssd.cli.options.train import EPOCHS, WARMUP_FROM_SCRATCH
from mdssd.training.recipe_files import LENGTHS, MODEL_OPTIONS, START, combine, read_recipe
from mdssd.training.settings import Recipe
from mdssd.weights.checkpoint_json import CheckpointError, read_meta

# The options of the data, which a checkpoint stores beside the recipe and the model.
_DATA_OPTIONS = (
    "data",
    "split",
    "image_dir",
    "classes",
    "scenes",
    "eval_data",
    "eval_image_dir",
    "eval_split",
    "eval_every",
)


@dataclass
class RunSettings:
    """The settings of a training run.

    Attributes:
        data: the options of the data, by name; an option that was not given is absent.
        recipe: arguments of `Recipe`.
        model: config of the model; the data decides the number of classes.
        starts_from: what the recipe's paper starts training from, for people to read.
    """

    data: dict[str, Any]
    recipe: dict[str, Any]
    model: dict[str, Any]
    starts_from: str | None = None


def run_settings(given: Mapping[str, Any], out_dir: Path, *, resume: bool) -> RunSettings:
    """Combine the given options with the recipe's settings, or with those of the run to resume."""
    return _resumed_run(given, out_dir) if resume else _new_run(given)


def _new_run(given: Mapping[str, Any]) -> RunSettings:
    recipe, model, file = _chosen(given)
    if not any(name in recipe for name in LENGTHS):
        recipe["epochs"] = EPOCHS
    recipe.setdefault("warmup", 0 if "init" in given else WARMUP_FROM_SCRATCH)
    model.setdefault("model", "mdssd300")
    recipe.setdefault("schedule", "mdssd" if str(model["model"]).startswith("mdssd") else "ssd")
    data = {name: given[name] for name in _DATA_OPTIONS if name in given}
    for name in ("data", "image_dir", "eval_data", "eval_image_dir"):
        if name in data:
            data[name] = str(Path(data[name]).absolute())
    if "recipe" in given:
        data["recipe"] = given["recipe"]
    return RunSettings(data, recipe, model, file.get(START))


def _resumed_run(given: Mapping[str, Any], out_dir: Path) -> RunSettings:
    """The settings of the run in `out_dir`, overridden by the given options."""
    if "init" in given:
        raise ValueError("--init: expected no --resume, whose run has its weights already")
    path = out_dir / "last.json"
    meta = read_meta(path)
    before = meta["training"]
    if not all(isinstance(before.get(name), dict) for name in ("arguments", "recipe")):
        raise CheckpointError(f"{path}: contains no run to resume")
    chosen, model, _ = _chosen(given)
    recipe = dict(before["recipe"])
    if any(name in chosen for name in LENGTHS):
        recipe |= dict.fromkeys(LENGTHS)
    data = dict(before["arguments"])
    data |= {name: given[name] for name in _DATA_OPTIONS if name in given}
    data.setdefault("classes", meta["classes"])
    return RunSettings(data, recipe | chosen, {**meta["model"], **model})


def _chosen(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The given settings of the run and of the model, and the contents of the recipe file."""
    file = read_recipe(given["recipe"]) if "recipe" in given else {}
    names = (*MODEL_OPTIONS, *Recipe.__dataclass_fields__)
    options = {name: given[name] for name in names if name in given}
    if "scale_lr" in given and "batch_size" not in given:
        raise ValueError("--scale-lr: expected a --batch-size to scale with, got none")
    recipe = combine(file, options, scale_lr=given.get("scale_lr", False))
    model = {name: recipe.pop(name) for name in MODEL_OPTIONS if name in recipe}
    return recipe, model, file
