"""What a training run does: schedule, optimiser and augmentation settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mdssd.names import AMP, NORMALIZERS, SCHEDULES

# Fractions of the training after which the learning rate falls to a tenth, and to a hundredth.
# MDSSD: 60k and 100k of 120k iterations (paper, section IV-A). SSD: 80k and 100k of 120k.
DROPS: dict[str, tuple[float, ...]] = {"mdssd": (1 / 2, 5 / 6), "ssd": (2 / 3, 5 / 6)}


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; a run that is resumed must have the same ones.

    epochs: passes over the data. iterations: batches instead. minutes: wall-clock time to train
        for instead, evaluation and checkpoints included; the schedule then follows the time. One
        of the three is given.
    batch_size, lr, momentum, weight_decay: SGD as in SSD. The weights of batch normalisation do not
        decay; L2Norm scales do, as in Caffe.
    bias_lr_factor, bias_weight_decay: what biases have instead, a multiple of `lr` and a decay.
    schedule: "mdssd" (lr x 0.1 after 1/2 and again after 5/6), "ssd" (2/3, 5/6), "steps" (after
        each of `drops`) or "cosine".
    drops: for "steps" only: whole numbers are iterations, numbers below 1 fractions of the run.
    warmup: iterations over which lr rises linearly from a tenth.
    clip_gradient: largest norm of the gradient; None for no limit.
    ema: decay per iteration of an average of the weights, which is then what checkpoints hold
        and evaluation sees; None for no average. Early on the decay is (1 + t) / (10 + t).
    batch_size counts the images of one iteration in all processes together. accumulate: parts in
        which a process puts its share through the network, one after another; the gradient is
        the same, the memory smaller.
    normalizer: what the losses are divided by, the positive priors of the whole batch ("global")
        or those of each process's share ("local", as Caffe does), over which the mean is taken.
    amp: type of the network's arithmetic, "bf16" or "fp16" (then with scaled gradients); None for
        float32. The weights, the loss and the update are in float32 anyhow.
    sync_batch_norm: batch normalisation over all processes instead of in each; on GPUs only.
    compile: whether torch.compile translates the network; the first iterations take minutes.
    seed: of the order of the images and of the augmentation.
    expand, crop, crop_min_scale, photometric, mirror, turn: see `mdssd.data.Augmentation`.
    freeze: parts of the model that do not learn; see `SingleShotDetector.freeze`.
    log_every: iterations per line of the loss CSV.
    save_every, save_iterations: epochs per checkpoint, and iterations per checkpoint besides.
    keep: how many of the last checkpoints stay.

    Raises:
        ValueError: a setting is out of range.
    """

    epochs: int | None = None
    iterations: int | None = None
    minutes: float | None = None
    batch_size: int = 32
    lr: float = 1e-3
    schedule: str = "mdssd"
    drops: tuple[float, ...] | None = None
    warmup: int = 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr_factor: float = 2.0
    bias_weight_decay: float = 0.0
    clip_gradient: float | None = None
    ema: float | None = None
    accumulate: int = 1
    normalizer: str = "global"
    amp: str | None = None
    sync_batch_norm: bool = False
    compile: bool = False
    seed: int = 0
    expand: float = 4.0
    crop: bool = True
    crop_min_scale: float = 0.3
    photometric: bool = True
    mirror: bool = True
    turn: bool = False
    freeze: Sequence[str] = ()
    log_every: int = 10
    save_every: int = 1
    save_iterations: int | None = None
    keep: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.freeze, str):
            raise ValueError(f"Recipe: freeze: expected a list of parts, got {self.freeze!r}")
        # A list, as JSON gives it back.
        object.__setattr__(self, "freeze", list(self.freeze))
        if sum(value is not None for value in (self.epochs, self.iterations, self.minutes)) != 1:
            raise ValueError(
                "Recipe: expected either epochs, iterations or minutes, got "
                f"epochs={self.epochs}, iterations={self.iterations}, minutes={self.minutes}"
            )
        for name in ("epochs", "iterations", "batch_size", "accumulate", "log_every", "save_every",
                     "save_iterations", "keep"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"Recipe: {name}: expected a whole number from 1, got {value!r}")
        for name in ("warmup", "seed"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"Recipe: {name}: expected a whole number from 0, got {value!r}")
        for name in ("minutes", "lr", "clip_gradient", "bias_lr_factor"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise ValueError(f"Recipe: {name}: expected a number above 0, got {value!r}")
        for name, top in (("momentum", 1.0), ("ema", 1.0), ("weight_decay", math.inf),
                          ("bias_weight_decay", math.inf)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < top):
                limit = "" if top == math.inf else f" and below {top:g}"
                raise ValueError(
                    f"Recipe: {name}: expected a number of at least 0{limit}, got {value!r}"
                )
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("normalizer", NORMALIZERS),
            ("amp", (None, *AMP)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"Recipe: {name}: expected one of {', '.join(map(str, allowed))}; got {value!r}"
                )
        for name in ("sync_batch_norm", "compile", "crop", "photometric", "mirror", "turn"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(
                    f"Recipe: {name}: expected true or false, got {getattr(self, name)!r}"
                )
        for name in ("expand", "crop_min_scale"):  # Augmentation knows their range
            if not _is_number(getattr(self, name)):
                raise ValueError(f"Recipe: {name}: expected a number, got {getattr(self, name)!r}")
        self._check_drops()

    def _check_drops(self) -> None:
        if (self.schedule == "steps") != (self.drops is not None):
            raise ValueError(
                "Recipe: drops: expected with the schedule steps and no other, got "
                f"schedule={self.schedule!r}, drops={self.drops}"
            )
        if self.drops is None:
            return
        drops = tuple(self.drops) if isinstance(self.drops, list | tuple) else ()
        iterations = all(type(drop) is int and drop >= 1 for drop in drops)
        fractions = all(type(drop) is float and 0 < drop < 1 for drop in drops)
        rising = all(a < b for a, b in zip(drops, drops[1:], strict=False))
        if not drops or not (iterations or fractions) or not rising:
            raise ValueError(
                "Recipe: drops: expected rising iterations (whole numbers from 1) or fractions of "
                f"the run (between 0 and 1), got {self.drops!r}"
            )
        object.__setattr__(self, "drops", drops)  # JSON and TOML have lists

    def learning_rate(self, step: int, progress: float) -> float:
        """The learning rate of iteration `step` (from 0) after a fraction `progress` of the run."""
        warm = min(1.0, 0.1 + 0.9 * step / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            return self.lr * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        drops = DROPS[self.schedule] if self.drops is None else self.drops
        passed = sum((step if type(drop) is int else progress) >= drop for drop in drops)
        return self.lr * warm * 0.1**passed


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
