"""How far a run has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from mdssd.training.settings import Recipe


@dataclass
class TrainState:
    """How far a run has come. Its checkpoints contain every field.

    Attributes:
        epoch: completed epochs.
        step: completed iterations.
        batch: completed iterations of the current epoch.
        seconds: time spent training, over all sessions of the run.
        loss: the mean loss in the last row of loss.csv.
        metric: the metric of the evaluations: "VOC07 mAP" or "COCO AP".
        evaluations: a row [epoch, metric] for each evaluation.
        to_evaluate: whether the evaluation after the last epoch is still to be made.
        finished: whether the run has reached its length.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    seconds: float = 0.0
    loss: float | None = None
    metric: str = "VOC07 mAP"
    evaluations: list[list[float]] = field(default_factory=list)
    to_evaluate: bool = False
    finished: bool = False

    @property
    def best(self) -> float | None:
        """The best metric so far, or None before the first evaluation."""
        return max((row[1] for row in self.evaluations), default=None)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do, neither iterations nor an evaluation."""
        return self.finished and not self.to_evaluate

    def progress(self, settings: Recipe, part_of_epoch: float = 0.0) -> float:
        """Return the completed fraction of the run; 1 or more ends it."""
        if settings.minutes is not None:
            return self.seconds / (60 * settings.minutes)
        if settings.iterations is not None:
            return self.step / settings.iterations
        assert settings.epochs is not None
        return (self.epoch + part_of_epoch) / settings.epochs
