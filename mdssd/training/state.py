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

    Raises:
        ValueError: a value has another type, as in a checkpoint that was edited.
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

    def __post_init__(self) -> None:
        for name in ("epoch", "step", "batch"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**63:
                raise ValueError(f"TrainState: {name}: expected a whole number from 0")
        for name in ("seconds", "loss"):
            value = getattr(self, name)
            if type(value) not in (int, float) and not (name == "loss" and value is None):
                raise ValueError(f"TrainState: {name}: expected a number")
        for row in self.evaluations:
            if len(row) != 2 or not all(type(value) in (int, float) for value in row):
                raise ValueError("TrainState: evaluations: expected rows of two numbers")

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
