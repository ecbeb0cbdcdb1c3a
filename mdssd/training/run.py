"""The steps of a training run; `train` in loop.py puts them in order."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NoReturn

from mdssd.data import DetectionDataset, subtract_mean
from mdssd.detection.detector import Detector
from mdssd.evaluation.evaluate import evaluate
from mdssd.system import distributed
from mdssd.system.stop import StopRequest
from mdssd.training.bad_batch import keep_batch
from mdssd.training.folder import BEST, CURVE, LAST, LOSSES, RunFolder
from mdssd.training.loading import Batch, EpochLoader
from mdssd.training.loss_curve import plot_losses
from mdssd.training.loss_log import LossLog
from mdssd.training.progress import Bar, Clock, Tally
from mdssd.training.settings import Recipe
from mdssd.training.state import TrainState
from mdssd.training.step import Losses, TrainingStep

# Drawing the curve takes 0.3 s, longer than an epoch of a few images.
_SECONDS_BETWEEN_CURVES = 20.0
# A run that is killed loses at most this much work, however long its epochs are.
_SECONDS_BETWEEN_SAVES = 300.0
_STOPPING = "mdssd: stopping after this iteration (Ctrl-C again stops at once, without saving)"


class TrainingError(RuntimeError):
    """Training cannot continue. The last checkpoint is whole."""


@dataclass(frozen=True)
class Evaluation:
    """The data that a run is evaluated on, if any, and after how many epochs."""

    dataset: DetectionDataset | None
    every: int
    progress: bool = True

    def is_due(self, state: TrainState, epoch_ended: bool) -> bool:
        if self.dataset is None:
            return False
        return state.finished or (epoch_ended and state.epoch % self.every == 0)


@dataclass
class Run:
    """A training run in progress, in each of its processes.

    Each method is one step. Processes talk to each other within the steps, so all of them must take
    the same steps in the same order, or they wait forever.

    Loggers belong beside `log`: `begin` opens them, `report` and `evaluate` feed them.
    """

    state: TrainState
    settings: Recipe
    step: TrainingStep
    loader: EpochLoader
    folder: RunFolder
    evaluation: Evaluation
    clock: Clock
    stop: StopRequest
    log: LossLog | None  # in the main process
    bar: Bar
    tally: Tally = field(default_factory=Tally)
    stopping: bool = False  # a signal came to a process during the last iteration
    curve_drawn_at: float = -math.inf
    saved_at: float = field(default_factory=time.monotonic)
    lr: float = 0.0  # of the last iteration

    @classmethod
    @contextmanager
    def begin(
        cls,
        state: TrainState,
        settings: Recipe,
        step: TrainingStep,
        loader: EpochLoader,
        folder: RunFolder,
        evaluation: Evaluation,
        *,
        progress: bool,
    ) -> Iterator[Run]:
        """Create the folder and open all that lasts until the end of the block."""
        main = distributed.is_main()
        if evaluation.dataset is not None and state.metric != evaluation.dataset.metric:
            # The evaluations so far cannot be compared with those to come.
            state.metric, state.evaluations = evaluation.dataset.metric, []
        if main:
            folder.create()
        clock = Clock(state.seconds, shared=settings.minutes is not None)
        with (
            closing(loader),
            StopRequest(distributed.running(), _STOPPING if main else "") as stop,
            LossLog(folder.path / LOSSES, state.step) if main else nullcontext() as log,
            Bar(state, settings, len(loader), progress and main) as bar,
        ):
            yield cls(state, settings, step, loader, folder, evaluation, clock, stop, log, bar)

    def epoch(self) -> Iterator[Batch]:
        """Yield the remaining batches of the epoch, until the run has reached its length."""
        self.step.model.train()
        self.tally.reset()
        self.stopping = False
        for batch in self.tally.time_waits(self.loader.load(self.state.epoch, self.state.batch)):
            self.state.seconds = self.clock.seconds()
            if self._progress() >= 1:
                break
            yield batch

    def iteration(self, batch: Batch) -> None:
        """Train on one batch, report its losses, and save if it is time to.

        Raises:
            TrainingError: the loss is NaN or infinite, or the last checkpoint cannot be written.
            Terminated, Interrupted: a signal came; the checkpoint is saved.
        """
        state, settings = self.state, self.settings
        self.lr = lr = settings.learning_rate(state.step, self._progress())
        images = subtract_mean(batch.images.to(self.step.device, non_blocking=True))
        batch = batch._replace(images=images)
        losses = self.step.backward(*batch)
        if not losses.finite:
            self._fail(batch, losses)
        self.step.update(lr, state.step)
        state.step += 1
        state.batch += 1
        self.tally.add(losses, lr)
        # A signal that comes after this waits for the next iteration.
        late = distributed.is_main() and time.monotonic() - self.saved_at > _SECONDS_BETWEEN_SAVES
        self.stopping, late = distributed.any_of_each(self.stop.asked, late)
        to_save = self.stopping or late or _is_multiple(state.step, settings.save_iterations)
        epoch_ends = state.batch == len(self.loader)
        if to_save or epoch_ends or state.step % settings.log_every == 0:
            self.report()
        self.bar.show(state, self.tally)
        if to_save and not epoch_ends:
            state.seconds = self.clock.seconds()
            self.save(LAST)
            if self.stopping:
                raise self.stop.error()

    def report(self) -> None:
        """Write the mean losses of the iterations since the last report."""
        means = self.tally.means()
        self.state.loss = means.total
        if self.log is not None:
            self.log.write(
                step=self.state.step,
                epoch=self.state.epoch + 1,
                lr=self.tally.lr,
                total=means.total,
                **means._asdict(),
            )
        self.tally.reset()

    def end_epoch(self) -> None:
        """Save and evaluate, each if it is due, and draw the curve of the losses.

        Raises:
            TrainingError: the last checkpoint of the run cannot be written.
            Terminated, Interrupted: a signal came; the checkpoint is saved.
        """
        state, settings = self.state, self.settings
        if self.tally.count:
            self.report()
        ended = state.batch == len(self.loader)
        if ended:
            state.epoch, state.batch = state.epoch + 1, 0
        state.seconds = self.clock.seconds()
        state.finished = state.progress(settings) >= 1
        state.to_evaluate = self.evaluation.is_due(state, ended)
        if (
            state.finished
            or state.to_evaluate
            or self.stopping
            or _is_multiple(state.step, settings.save_iterations)
            or (ended and state.epoch % settings.save_every == 0)
        ):
            self.save(LAST)
            if self.stopping and not state.complete:
                raise self.stop.error()
        self.evaluate()
        self._draw_curve()

    def evaluate(self) -> None:
        """Evaluate the model if that is due. The best model so far is saved as best.json.

        Raises:
            TrainingError: the last checkpoint of the run cannot be written.
            Terminated, Interrupted: a signal came. A resumed run repeats the evaluation.
        """
        state, dataset = self.state, self.evaluation.dataset
        if dataset is None or not state.to_evaluate:
            return
        best = state.best
        with self.stop.at_once():
            options = self.settings.detector_options()
            detector = Detector(self.step.saved_model, classes=self.folder.classes, **options)
            result = evaluate(detector, dataset, progress=self.evaluation.progress)
            value = result.headline(state.metric)
        state.evaluations.append([state.epoch, value])
        state.to_evaluate = False
        self.bar.note(f"epoch {state.epoch}: {state.metric} {value:.4f} on {dataset.name}")
        state.seconds = self.clock.seconds()
        if state.best != best:
            self.save(BEST)
        self.save(LAST)

    def save(self, name: str) -> None:
        """Write a checkpoint. All processes call this, so that all learn of a failure.

        A full disk costs only a warning, unless the run is about to end.

        Raises:
            TrainingError: the checkpoint cannot be written and no later one will be.
        """
        failure = self._write(name) if distributed.is_main() else None
        self.saved_at = time.monotonic()
        if failure := distributed.from_main(failure):
            raise TrainingError(failure)

    def end(self) -> TrainState:
        """Leave the model as the last checkpoint has it, and return the final state."""
        self.step.finish()
        return self.state

    def _progress(self) -> float:
        return self.state.progress(self.settings, self.state.batch / len(self.loader))

    def _write(self, name: str) -> str | None:
        """Write a checkpoint, and return a message if the run has to end because it failed."""
        state = self.state
        try:
            self.folder.save(name, state, self.step)
        except ValueError as error:  # a weight is not finite
            what = str(error).removeprefix("save_checkpoint: model: ")
            return f"train: after iteration {state.step}: {what}; {self._diverged()}"
        except OSError as error:
            failure = self.folder.describe_unsaved(name, state, error)
            if name == LAST and (self.stopping or state.finished):
                return failure
            self.bar.warn(f"warning: {failure}")
        return None

    def _draw_curve(self) -> None:
        passed = time.monotonic() - self.curve_drawn_at
        if self.log is None or not (self.state.finished or passed > _SECONDS_BETWEEN_CURVES):
            return
        path = self.folder.path / CURVE
        try:
            plot_losses(self.log.path, path)
        except OSError as error:
            self.bar.warn(f"warning: {path}: not drawn ({error.strerror})")
        self.curve_drawn_at = time.monotonic()

    def _fail(self, batch: Batch, losses: Losses) -> NoReturn:
        """Keep the batch whose loss is not finite and raise TrainingError."""
        state = self.state
        message = (
            f"train: the loss is not finite (boxes {losses.loc:g}, classes {losses.conf:g}) in "
            f"iteration {state.step + 1} of epoch {state.epoch + 1}; {self._diverged()}"
        )
        facts = {"iteration": state.step + 1, "epoch": state.epoch + 1, "message": message}
        image_ids = self.loader.own_image_ids(state.batch)
        kept = keep_batch(self.folder.path, batch, image_ids, self.folder.classes, facts)
        raise TrainingError(f"{message}; {kept}")

    def _diverged(self) -> str:
        """Say what to do about losses or weights that are not finite."""
        last, loss = self.folder.last, self.state.loss
        if self.tally.count:
            loss = self.tally.means().total
        before = "no loss before was finite" if loss is None else f"the loss before was {loss:.4g}"
        text = (
            f"the learning rate was {self.lr:g}, and {before}; try a lower learning rate, a longer "
            "warm-up or a gradient limit"
        )
        if not last.exists():
            return f"{text}; there is no checkpoint yet"
        return f"{text}; {last} is the last checkpoint and is whole, a new run can start from it"


def _is_multiple(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
