"""Where the settings of a training run come from: options, a recipe, the run to resume."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdssd.cli.commands.shared import check_needs_tile
from mdssd.cli.options.train import EPOCHS, WARMUP_FROM_SCRATCH
from mdssd.models.build import default_options, with_input_size
from mdssd.names import AUTO_PRIORS, TRUNKS
from mdssd.training.recipe_files import (
    DEFAULT_RECIPE,
    LENGTHS,
    MODEL_OPTIONS,
    START,
    combine,
    read_recipe,
)
from mdssd.training.settings import WINDOW_SETTINGS, Recipe
from mdssd.weights.checkpoint_json import CheckpointError, find_checkpoint, read_meta
from mdssd.weights.pretrained import is_checkpoint
from mdssd.weights.timm_weights import TIMM

_OF_RECIPE = re.compile(r"^Recipe: (\w+):")

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
    "allow_faults",
    "max_pixels",
    "orientation",
)


# The learning rate of the default recipe is meant for batch normalisation. Without that, as with
# published weights of VGG16, the rate is that of the papers.
_LR_WITHOUT_BATCH_NORM = 1e-3
_LR_LIGHT = 0.1  # benchmarks/NOTES.md


@dataclass
class RunSettings:
    """The settings of a training run.

    Attributes:
        data: the options of the data, by name; an option that was not given is absent.
        recipe: arguments of `Recipe`.
        model: config of the model; the data decides the number of classes. The prior scales may be
            "auto", which lets the data choose them.
        starts_from: what the recipe's paper starts training from, for people to read.
        before: the "training" entry of the run to resume, and its classes; None for a new run.
    """

    data: dict[str, Any]
    recipe: dict[str, Any]
    model: dict[str, Any]
    starts_from: str | None = None
    before: dict[str, Any] | None = None


def run_settings(given: Mapping[str, Any], out_dir: Path, *, resume: bool) -> RunSettings:
    """Combine the given options with the recipe's settings, or with those of the run to resume.

    Raises:
        ValueError: an option has a wrong value, or options do not go together.
    """
    settings = _resumed_run(given, out_dir) if resume else _new_run(given)
    check_needs_tile(given, WINDOW_SETTINGS, settings.recipe.get("tile"))
    try:
        Recipe(**settings.recipe)
    except ValueError as error:  # of an option, as read_recipe has checked the recipe
        raise ValueError(_OF_RECIPE.sub(_option, str(error))) from None
    return settings


def _new_run(given: Mapping[str, Any]) -> RunSettings:
    file = read_recipe(given.get("recipe", DEFAULT_RECIPE))
    if "recipe" not in given and "init" in given:
        model_options = _start_options(given)
        file = {k: v for k, v in file.items() if k not in MODEL_OPTIONS} | model_options
    recipe, model = _chosen(file, given)
    if not any(name in recipe for name in LENGTHS):
        recipe["epochs"] = EPOCHS
    recipe.setdefault("warmup", 0 if "init" in given else WARMUP_FROM_SCRATCH)
    model.setdefault("model", "mdssd300")
    model |= _resized(model, given)
    recipe.setdefault("schedule", "mdssd" if model["model"].startswith("mdssd") else "ssd")
    batch_norm = model.get("batch_norm", default_options(model["model"]).batch_norm)
    if not ("recipe" in given or "lr" in given):
        usual = read_recipe(DEFAULT_RECIPE)["lr"]
        if not batch_norm:
            recipe["lr"] *= _LR_WITHOUT_BATCH_NORM / usual
        elif given.get("light") and not file.get("light"):  # a light checkpoint has learnt already
            recipe["lr"] *= _LR_LIGHT / usual
    data = _data_options(given)
    if "recipe" in given:
        data["recipe"] = given["recipe"]
    return RunSettings(data, recipe, model, file.get(START))


def _data_options(given: Mapping[str, Any]) -> dict[str, Any]:
    data = {name: given[name] for name in _DATA_OPTIONS if name in given}
    for name in ("data", "image_dir", "eval_data", "eval_image_dir"):
        if name in data:
            data[name] = str(Path(data[name]).absolute())
    return data


def _start_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the model that starts from a checkpoint, or from published weights.

    A checkpoint's own options fit its weights, except that fitted priors fit no other model:
    another one gets its own. Published weights fit the model's defaults: the full
    width, and for VGG16 no batch normalisation. Those of EfficientNet-Lite0 and of timm's networks
    fit every width: the other options remain the default recipe's.
    """
    path, model = given["init"], given.get("model")
    trunk = given.get("trunk", "vgg16")
    if path == TIMM and trunk in TRUNKS:
        raise ValueError(f"--init {TIMM}: expected --trunk with a network of timm, got {trunk}")
    if path != TIMM and not Path(path).exists():
        raise FileNotFoundError(f"--init: {path}: no such file or folder")
    if path == TIMM or not is_checkpoint(Path(path)):
        if trunk not in ("vgg16", "resnet101"):
            default = read_recipe(DEFAULT_RECIPE)
            return {name: default[name] for name in MODEL_OPTIONS if name in default}
        return {"prior_scales": AUTO_PRIORS}
    config: dict[str, Any] = read_meta(find_checkpoint(path))["model"]
    if not isinstance(config.get("prior_scales"), str) and model not in (None, config.get("model")):
        config = {**config, "prior_scales": AUTO_PRIORS}
    return {name: value for name, value in config.items() if name in MODEL_OPTIONS}


def _resumed_run(given: Mapping[str, Any], out_dir: Path) -> RunSettings:
    """The settings of the run in `out_dir`, overridden by the given options."""
    if "init" in given:
        raise ValueError("--init: expected no --resume, whose run has its weights already")
    path = out_dir / "last.json"
    meta = read_meta(path)
    before = meta["training"]
    try:
        if not isinstance(before["arguments"], dict):
            raise TypeError("its arguments are no table")
        Recipe(**before["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: contains no run to resume ({error})") from None
    chosen, model = _chosen(read_recipe(given["recipe"]) if "recipe" in given else {}, given)
    if model.get("prior_scales") == AUTO_PRIORS:
        del model["prior_scales"]  # chosen when the run began
    recipe = dict(before["recipe"])
    if any(name in chosen for name in LENGTHS):
        recipe |= dict.fromkeys(LENGTHS)
    data = before["arguments"] | _data_options(given)
    before = {**before, "classes": meta["classes"]}
    model = {**meta["model"], **model}
    model |= _resized(model, given)
    return RunSettings(data, recipe | chosen, model, before=before)


def _resized(model: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the model that --input-size changes.

    Sizes of priors in pixels were fitted to another input; the data then choose priors anew.
    """
    name = with_input_size(model["model"], given.get("input_size"))
    if name != model["model"] and isinstance(model.get("prior_scales"), list):
        return {"model": name, "prior_scales": AUTO_PRIORS}
    return {"model": name}


def _chosen(
    file: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the run and of the model in a recipe, overridden by the given options."""
    names = (*MODEL_OPTIONS, *Recipe.__dataclass_fields__)
    options = {name: given[name] for name in names if name in given}
    if "scale_lr" in given and "batch_size" not in given:
        raise ValueError("--scale-lr: expected a --batch-size to scale with, got none")
    recipe = combine(file, options, scale_lr=given.get("scale_lr", False))
    model = {name: recipe.pop(name) for name in MODEL_OPTIONS if name in recipe}
    return recipe, model


def _option(match: re.Match[str]) -> str:
    return f"--{match[1].replace('_', '-')}:"
