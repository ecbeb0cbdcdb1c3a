"""The folder of a run: its checkpoints, loss.csv and loss.png."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mdssd.data import MEAN_RGB, DetectionDataset
from mdssd.models import SingleShotDetector
from mdssd.system import distributed
from mdssd.system.files import remove_leftovers
from mdssd.training.loss_log import is_loss_log
from mdssd.training.settings import Recipe, shown
from mdssd.training.state import TrainState
from mdssd.training.step import TrainingStep
from mdssd.weights.checkpoint import keep_last, load_checkpoint, load_state, save_checkpoint
from mdssd.weights.checkpoint_json import CheckpointError, read_meta

LAST, BEST, LOSSES, CURVE = "last.json", "best.json", "loss.csv", "loss.png"
# A folder with one of these files holds a run.
RUN_FILES = (LAST, BEST, LOSSES)
# Settings that may change when a run is resumed. They are about its length, its reports, and how it
# computes, not about what it learns from each batch.
_MAY_CHANGE = (
    "epochs",
    "iterations",
    "minutes",
    "log_every",
    "save_every",
    "save_iterations",
    "keep",
    "accumulate",
    "compile",
)


class RunFolder:
    """Reads and writes the checkpoints of a run.

    Args:
        path: the folder.
        dataset: the training data. Checkpoints contain its classes, name and number of images.
        settings: the settings of the run.
        arguments: further facts for the checkpoints' "training" entry.
    """

    def __init__(
        self,
        path: Path,
        dataset: DetectionDataset,
        settings: Recipe,
        arguments: Mapping[str, Any],
    ) -> None:
        self.path = path
        self.classes = dataset.classes
        self._settings = settings
        self._facts: dict[str, Any] = {
            "dataset": dataset.name,
            "images": len(dataset),
            "recipe": asdict(settings),
            "arguments": dict(arguments),
        }

    @property
    def last(self) -> Path:
        """The newest checkpoint, which a run resumes from."""
        return self.path / LAST

    def begin(
        self, model: SingleShotDetector, *, resume: bool, evaluates: bool
    ) -> tuple[TrainState, dict[str, Tensor]]:
        """Return the state to start from and the tensors for `TrainingStep`; write nothing.

        With `resume`, both come from the last checkpoint, and so do the weights of the model.
        """
        if distributed.is_main():
            check_folder(self.path, resume)
        distributed.wait_for_all()  # nobody may write before the main process has checked
        if not resume:
            return TrainState(), {}
        state, tensors = self._load_last(model)
        state.finished = state.progress(self._settings) >= 1
        state.to_evaluate = state.to_evaluate and evaluates
        return state, tensors

    def create(self) -> None:
        """Create the folder, and remove what a killed process left half written."""
        self.path.mkdir(parents=True, exist_ok=True)
        distributed.note_job(self.path)
        remove_leftovers(self.path / CURVE)

    def save(self, name: str, state: TrainState, step: TrainingStep) -> None:
        """Write a checkpoint. Only last.json contains what a resumed run needs.

        Raises:
            ValueError: a weight is NaN or infinite.
            OSError: the checkpoint cannot be written.
        """
        save_checkpoint(
            self.path / name,
            step.saved_model,
            classes=self.classes,
            mean=MEAN_RGB,
            extra={**asdict(state), **self._facts},
            state=step.state_dict() if name == LAST else None,
        )
        if name == LAST:
            keep_last(self.last, state.step, self._settings.keep)

    def describe_unsaved(self, name: str, state: TrainState, error: OSError) -> str:
        """Return a message for a checkpoint that `save` could not write."""
        path = self.path / name
        before = "its predecessor is whole" if path.exists() else "no earlier one exists"
        return (
            f"{path}: the checkpoint of iteration {state.step} cannot be written "
            f"({error.strerror}); {before}"
        )

    def _load_last(self, model: SingleShotDetector) -> tuple[TrainState, dict[str, Tensor]]:
        """Read the last checkpoint, after checking that it has this model, data and recipe."""
        meta = read_meta(self.last)
        other = [
            f"{name} (was {shown(meta['model'].get(name))}, is {shown(value)})"
            for name, value in model.config().items()
            if meta["model"].get(name) != value
        ]
        if other:
            raise CheckpointError(f"{self.last}: has another model: {', '.join(other)}")
        facts = meta["training"]
        try:
            # Settings that did not exist yet when the run began get their defaults.
            before = asdict(Recipe(**facts["recipe"]))
            known = {name: facts[name] for name in TrainState.__dataclass_fields__ if name in facts}
            state = TrainState(**{"epoch": facts["epoch"], "step": facts["step"], **known})
            changed = [
                f"{name} (was {before[name]!r}, is {value!r})"
                for name, value in self._facts["recipe"].items()
                if name not in _MAY_CHANGE and before[name] != value
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.last}: contains no run to resume ({error})") from None
        images = self._facts["images"]
        if facts.get("images") != images:
            changed.append(f"images (were {facts.get('images')}, are {images})")
        if changed:
            raise ValueError(
                f"train: cannot resume {self.last} with other settings: {', '.join(changed)}"
            )
        loaded, _ = load_checkpoint(self.last, classes=self.classes)
        tensors = load_state(self.last)
        model.load_state_dict(loaded.state_dict())
        return state, tensors


def check_folder(path: Path, resume: bool) -> None:
    """Check that a run can be written to a folder, or resumed from it; write nothing.

    Raises:
        CheckpointError: there is no run to resume.
        FileExistsError: the folder contains a run and `resume` is not set.
        NotADirectoryError: the path, or one above it, is a file.
        PermissionError: the folder cannot be written to.
    """
    existing = [name for name in RUN_FILES if (path / name).exists()]
    if resume and LAST not in existing:
        raise CheckpointError(f"{path / LAST}: no such file: there is no run to resume")
    if existing == [LOSSES] and is_loss_log(path / LOSSES):
        existing = []  # the run ended before its first checkpoint, so nothing is lost
    if existing and not resume:
        raise FileExistsError(
            f"{path}: holds a run already ({', '.join(existing)}): resume it, or choose another "
            "folder"
        )
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest}: is not a folder")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{nearest}: cannot be written to")
