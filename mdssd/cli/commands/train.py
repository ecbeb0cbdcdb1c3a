"""`mdssd train`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mdssd.cli.commands.run_report import check_resumed, describe_run, summary
from mdssd.cli.commands.run_settings import RunSettings, run_settings
from mdssd.cli.commands.shared import machine, open_data, show
from mdssd.data import DataError, DetectionDataset
from mdssd.models import SingleShotDetector, build
from mdssd.models.build import default_options, input_size
from mdssd.names import AUTO_PRIORS
from mdssd.system import distributed
from mdssd.system.memory import keep_memory
from mdssd.system.stop import Terminated
from mdssd.system.text import some
from mdssd.training.folder import RUN_FILES, check_folder
from mdssd.training.loop import train
from mdssd.training.prior_choice import choose_priors
from mdssd.training.recipe_files import format_recipe
from mdssd.training.settings import Recipe
from mdssd.training.state import TrainState
from mdssd.weights.checkpoint_json import read_meta
from mdssd.weights.pretrained import is_checkpoint, load_pretrained
from mdssd.weights.timm_weights import TIMM


def run(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    out_dir = Path(given.get("out", "runs/train"))
    resume = given.get("resume", False)
    if given.get("print_recipe"):
        settings = run_settings(given, out_dir, resume=resume)
        show(*format_recipe(settings.model, Recipe(**settings.recipe)).splitlines())
        return 0
    with machine(given, together=True) as device:
        keep_memory()
        main = distributed.is_main()
        if distributed.from_main(distributed.is_restart(out_dir)):
            resume = _prepare_restart(given, out_dir)
        if main:
            check_folder(out_dir, resume)
        distributed.wait_for_all()
        _run(given, out_dir, resume, device)
    return 0


def _prepare_restart(given: dict[str, Any], out_dir: Path) -> bool:
    """After torchrun restarted the job: return whether a checkpoint exists; if not, clean up."""
    resume = (out_dir / "last.json").exists()
    distributed.wait_for_all()  # until every process has looked
    if resume:
        given.pop("init", None)
    elif distributed.is_main():
        for name in RUN_FILES:
            (out_dir / name).unlink(missing_ok=True)
    return resume


def _run(given: Mapping[str, Any], out_dir: Path, resume: bool, device: str) -> None:
    """Open the data, make the model, train it, and print what came of it."""
    main = distributed.is_main()
    settings = run_settings(given, out_dir, resume=resume)
    _check_model(settings)
    dataset, eval_dataset = _open_both(settings)
    moved = ""
    if settings.before is not None:
        moved = check_resumed(settings.before, settings.data, dataset, out_dir)
    if main:
        show(*dataset.report().split("\n"), *filter(None, [moved]))
    model = _make_model(settings, dataset, device)
    start = "" if resume else _initialise(model, given, settings, dataset.classes)
    if main:
        show(*filter(None, [start]), *describe_run(model, settings, dataset, out_dir))
    state = _train(
        model,
        dataset,
        out_dir,
        resume=resume,
        eval_dataset=eval_dataset,
        eval_every=settings.data.get("eval_every", 10),
        device=device,
        workers=given.get("workers"),
        check_images=not given.get("no_check_images", False),
        arguments=settings.data,
        **settings.recipe,
    )
    if main:
        show(*summary(state, settings, out_dir))


def _open_both(settings: RunSettings) -> tuple[DetectionDataset, DetectionDataset | None]:
    """The data set to train on, and the one to evaluate on if there is one."""
    data, classes = settings.data, settings.data.get("classes")
    how: dict[str, Any] = {
        "input_size": input_size(settings.model["model"]),
        "by_windows": settings.recipe.get("tile") is not None,
    }
    dataset = open_data(data, train=True, classes=classes, **how)
    if classes is not None and classes != dataset.classes:
        raise ValueError(
            f"--classes: {dataset.name} has its own classes {', '.join(dataset.classes)}; "
            f"got {', '.join(classes)}"
        )
    if not any(name in data for name in ("eval_split", "eval_data", "eval_image_dir")):
        return dataset, None
    image_dir = None if "eval_data" in data else data.get("image_dir")
    eval_options = {
        "data": data.get("eval_data", data.get("data")),
        "split": data.get("eval_split"),
        "image_dir": data.get("eval_image_dir", image_dir),
        "allow_faults": data.get("allow_faults"),
        "max_pixels": data.get("max_pixels"),
        "orientation": data.get("orientation"),
    }
    return dataset, open_data(eval_options, train=False, classes=dataset.classes, **how)


def _check_model(settings: RunSettings) -> None:
    """Check the options of the model before the data are read, which may take long."""
    config = {**settings.model, "num_classes": 2}
    if config.get("prior_scales") == AUTO_PRIORS:
        del config["prior_scales"]
    with torch.device("meta"):
        build(config)


def _make_model(
    settings: RunSettings, dataset: DetectionDataset, device: str
) -> SingleShotDetector:
    config = {**settings.model, "num_classes": len(dataset.classes) + 1}
    if config.get("prior_scales") == AUTO_PRIORS:
        choice = None
        if distributed.is_main():
            recipe = Recipe(**settings.recipe)
            tiling = recipe.tiling(input_size(config["model"]))
            choice = choose_priors(dataset, config, device, turned=recipe.turn, tiling=tiling)
        choice = distributed.from_main(choice)
        assert choice is not None
        config["prior_scales"] = choice.scales
        if distributed.is_main():
            show(f"priors: {choice}")
    torch.manual_seed(settings.recipe.get("seed", 0))
    return build(config)


def _initialise(
    model: SingleShotDetector,
    given: Mapping[str, Any],
    settings: RunSettings,
    classes: Sequence[str],
) -> str:
    """Load the weights of --init; return a line that says what the model starts from."""
    if "init" in given:
        return load_start(model, given["init"], classes)
    if settings.starts_from:
        return (
            f"the recipe starts from {settings.starts_from} (--init FILE), this run from random "
            "weights"
        )
    return ""


def load_start(model: SingleShotDetector, path: str, classes: Sequence[str] | None = None) -> str:
    """Load starting weights; return a line that says which tensors and classes they set."""
    try:
        loaded = load_pretrained(model, path, classes=classes)
    except ValueError as error:
        own, fits = model.options, default_options(model.name)
        same = (own.width, own.batch_norm) == (fits.width, fits.batch_norm)
        if same or path == TIMM or is_checkpoint(Path(path)):
            raise
        fitting = {**model.config(), "width": fits.width, "batch_norm": fits.batch_norm}
        try:
            load_pretrained(build(fitting), path)
        except ValueError:
            raise ValueError(f"--init: {error}") from None
        norm = "--batch-norm" if fits.batch_norm else "--no-batch-norm"
        raise ValueError(f"--init: {error}; with --width 1 {norm} the model fits") from None
    line = f"{len(loaded.taken)} of {len(model.state_dict())} tensors start from {path}"
    line += f"; the others are new: {some(loaded.fresh)}" if loaded.fresh else ""
    line += f"; not used: {some(loaded.unused)}" if loaded.unused else ""
    if loaded.classes and classes is not None:
        new = [name for name in classes if name not in loaded.classes]
        line += f"; class scores, by name: {some(loaded.classes)}"
        line += f"; new classes: {some(new)}" if new else ""
    if loaded.partly and not loaded.classes:
        line += "; class scores are new, since the file has none of these classes"
    if loaded.other_priors:
        line += (
            f"; the predictions from {some(loaded.other_priors)} are new, since the priors of the "
            "file have quite other sizes there"
        )
    if loaded.by_position:
        line += "; class scores by position, since the file does not name its classes"
    return line


def _train(
    model: SingleShotDetector, dataset: DetectionDataset, out_dir: Path, **options: Any
) -> TrainState:
    """Train; if that ends early, say in the exception how to go on."""
    resume = f"mdssd train --resume --out {out_dir}"
    try:
        return train(model, dataset, out_dir, **options)
    except DataError as error:
        raise DataError(f"{error}; --allow-faults leaves such files out") from None
    except KeyboardInterrupt:
        last = out_dir / "last.json"
        if not last.exists():
            raise KeyboardInterrupt("no checkpoint was saved, nothing to resume") from None
        step = read_meta(last)["training"]["step"]
        raise KeyboardInterrupt(f"{last} has iteration {step}; resume with: {resume}") from None
    except Terminated:
        raise Terminated(
            f"terminated after saving {out_dir / 'last.json'}; resume with: {resume}"
        ) from None
