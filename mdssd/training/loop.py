"""Training a detector; a run can be resumed after any interruption.

A run that is killed at any moment leaves its last checkpoint whole. On one CPU, a resumed run gives
the same bits as one that was never interrupted, except with `minutes`, where the schedule follows
the clock. This needs no state of a random generator: the order of the images depends only on (seed,
epoch), and the augmentation of an image only on (seed, epoch, image), in whichever process it is
loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mdssd.data import DetectionDataset
from mdssd.models import SingleShotDetector
from mdssd.training.checks import check_arguments, check_run
from mdssd.training.folder import RunFolder
from mdssd.training.loading import EpochLoader
from mdssd.training.run import Evaluation, Run
from mdssd.training.settings import Recipe
from mdssd.training.state import TrainState
from mdssd.training.step import TrainingStep


def train(
    model: SingleShotDetector,
    dataset: DetectionDataset,
    out_dir: str | os.PathLike[str],
    *,
    resume: bool = False,
    eval_dataset: DetectionDataset | None = None,
    eval_every: int = 10,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    check_images: bool = True,
    arguments: Mapping[str, Any] | None = None,
    progress: bool = True,
    **recipe: Any,
) -> TrainState:
    """Train a model with SSD's loss and augmentation and SGD (SSD, section 2.2).

    Writes last.json after every epoch and every five minutes, best.json if there is an
    `eval_dataset`, loss.csv and loss.png. SIGTERM and Ctrl-C save after the current iteration; a
    second Ctrl-C stops at once. A full disk costs a warning, and an error only at the end.

    Crowd boxes are left out; difficult ones are used. In a torch.distributed group, all processes
    call this with the same arguments and train one model; only the first writes.

    Args:
        model: the model, trained in place on `device`.
        dataset: the images to learn from.
        out_dir: the folder of the run, created if necessary; the same for all processes.
        resume: continue the run in `out_dir`. The weights of `model` are replaced.
        eval_dataset: the images to evaluate on, by the metric of this data set.
        eval_every: epochs between evaluations; one is always made at the end.
        device: "cpu", "cuda", "cuda:1", ...
        workers: processes that load images, by default one fewer than the cores, at most 2.
        check_images: decode every image first, to find broken ones.
        arguments: facts to keep in the checkpoints' "training" entry.
        progress: show progress bars.
        **recipe: the fields of `Recipe`: epochs, iterations or minutes, batch_size, lr, ...

    Returns:
        How far the run has come.

    Raises:
        ValueError: the arguments do not go together, or not with the run to resume.
        DataError: an image cannot be read.
        CheckpointError: the run to resume cannot be read.
        FileExistsError: `out_dir` contains a run and `resume` is not set.
        TrainingError: the loss is not finite, or the last checkpoint cannot be written.
        Terminated, KeyboardInterrupt: SIGTERM or Ctrl-C came, and the checkpoint is saved.

    Example:
        >>> import tempfile
        >>> from mdssd.training.loop import train
        >>> import mdssd
        >>> from mdssd.data import SyntheticScenes
        >>> model, scenes = mdssd.ssd300(6, width=0.0625), SyntheticScenes(2)
        >>> options = dict(iterations=1, batch_size=2, workers=0, progress=False)
        >>> with tempfile.TemporaryDirectory() as out_dir:
        ...     state = train(model, scenes, out_dir, **options)
        >>> state.step, state.finished
        (1, True)
    """
    settings, device = Recipe(**recipe), torch.device(device)
    check_arguments(model, dataset, eval_every)
    folder = RunFolder(Path(out_dir), dataset, settings, arguments or {})
    evaluation = Evaluation(eval_dataset, eval_every, progress)
    state, tensors = folder.begin(model, resume=resume, evaluates=eval_dataset is not None)
    if state.complete:
        return state
    if settings.freeze:
        model.freeze(*settings.freeze)
    check_run(model, dataset, eval_dataset, settings, device, check_images, progress)
    step = TrainingStep.create(model, settings, device, tensors)
    loader = EpochLoader(dataset, model.input_size, settings, workers, device)
    with Run.begin(state, settings, step, loader, folder, evaluation, progress=progress) as run:
        run.evaluate()  # if the run was interrupted before the end of an evaluation
        while not state.finished:
            for batch in run.epoch():
                run.iteration(batch)
            run.end_epoch()
    return run.end()
