"""What `mdssd train` says about a run: before it starts, and when it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdssd.cli.commands.run_settings import RunSettings
from mdssd.data import DetectionDataset
from mdssd.data.windows import count_windows
from mdssd.models import SingleShotDetector
from mdssd.models.build import default_options
from mdssd.priors import scales_name
from mdssd.system.text import plural
from mdssd.training.recipe_files import LENGTHS
from mdssd.training.settings import Recipe
from mdssd.training.state import TrainState
from mdssd.weights.checkpoint_json import listed


def describe_run(
    model: SingleShotDetector, settings: RunSettings, dataset: DetectionDataset, out_dir: Path
) -> list[str]:
    """Return lines about the model, the length of the run, and how to stop it."""
    options, recipe = model.options, Recipe(**settings.recipe)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    usual = default_options(model.name).trunk
    trunk = "" if options.trunk == usual else f" on {options.trunk}"
    form = "light " if options.light else ""
    norm = "with" if options.batch_norm else "without"
    again = f"mdssd train --resume --out {out_dir}"
    start = "continues" if settings.before is not None else "starts"
    return [
        f"model: {form}{model.name}{trunk}, width {options.width:g}, {norm} batch normalisation, "
        f"{parameters / 1e6:.1f} million parameters, {len(model.priors):,} priors "
        f"({scales_name(options.prior_scales)})",
        *_windows(recipe, model, dataset),
        f"run: {start} in {out_dir}, for {_length(settings.recipe)} in batches of "
        f"{recipe.batch_size} at a learning rate of {recipe.lr:g}; --print-recipe shows all "
        "settings",
        f"Ctrl-C saves and stops; {again} then continues",
    ]


def _windows(recipe: Recipe, model: SingleShotDetector, dataset: DetectionDataset) -> list[str]:
    """Return a line about windows; none if the run shows whole images."""
    draws = recipe.window_draws(model.input_size)
    if draws is None:
        return []
    count = count_windows(dataset, draws)
    return [
        f"windows: {draws.width} x {draws.height} pixels of the image, {count:,} in an epoch, "
        f"{draws.background:.0%} of them drawn anywhere, the others around an object"
    ]


def check_resumed(
    before: Mapping[str, Any], data: Mapping[str, Any], dataset: DetectionDataset, out_dir: Path
) -> str:
    """Check that a data set can be the one that a run was trained on; return a line if it moved.

    Args:
        before: the "training" entry of the run's checkpoint, and its classes.
        data: the options of the data.
        dataset: the data set that they describe.
        out_dir: the folder of the run.

    Raises:
        ValueError: the classes or the number of images differ. The message says how to start a new
            run from the weights of this one.
    """
    place, place_before = data.get("data"), before["arguments"].get("data")
    moved = place != place_before
    differences = []
    if before["classes"] != dataset.classes:
        differences.append(
            f"was trained for other classes than the data has: {listed(before['classes'])}, and "
            f"{dataset.name} has {listed(dataset.classes)}"
        )
    if before.get("images") != len(dataset):
        differences.append(
            f"was trained on {before.get('images')} images"
            + (f" of {place_before}" if moved else "")
            + f", {dataset.name} has {len(dataset)}"
        )
    if differences:
        raise ValueError(
            f"--resume: the run in {out_dir} {' and '.join(differences)}; --init {out_dir} instead "
            "of --resume, with another --out, starts a new run from its weights"
        )
    if not moved:
        return ""
    return (
        f"the run was trained on {place_before}; it continues on {place}, which has the same "
        "classes and as many images"
    )


def summary(state: TrainState, settings: RunSettings, out_dir: Path) -> list[str]:
    """Return how far the run has come; of a run that was finished before, how to train longer."""
    best = "" if state.best is None else f", best {state.metric} {state.best:.4f} (best.json)"
    lines = [
        f"{plural(state.step, 'iteration')}, {plural(state.epoch, 'epoch')}, "
        f"{state.seconds / 60:.1f} minutes, "
        f"loss {state.loss:.4f}{best}: {out_dir}"
    ]
    if settings.before is not None and settings.before.get("step") == state.step:
        lines.append(
            f"nothing was left to do: the run has its length of {_length(settings.recipe)}; a "
            f"greater one continues it: mdssd train --resume --out {out_dir} {_longer(settings)}"
        )
    return lines


def _length(recipe: Mapping[str, Any]) -> str:
    name, value = _given_length(recipe)
    return plural(value, name.removesuffix("s"))


def _longer(settings: RunSettings) -> str:
    name, value = _given_length(settings.recipe)
    return f"--{name} {2 * value:g}" if name == "minutes" else f"--{name} {2 * value}"


def _given_length(recipe: Mapping[str, Any]) -> tuple[str, Any]:
    return next((name, recipe[name]) for name in LENGTHS if recipe.get(name) is not None)
