"""The settings of a training run: its length, schedule, optimiser and augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mdssd.data.tiles import Tiling, make_tiling
from mdssd.data.windows import WindowDraws
from mdssd.names import (
    AMP,
    FREEZABLE,
    IGNORABLE,
    INPUT_SIZES,
    MATCH_METRICS,
    NORMALIZERS,
    SCHEDULES,
)
from mdssd.priors.maps import InputSize

# Fractions of the run after which the learning rate falls to a tenth and to a hundredth.
# MDSSD: 60k and 100k of 120k iterations (paper, section IV-A). SSD: 80k and 100k of 120k.
DROPS: dict[str, tuple[float, ...]] = {"mdssd": (1 / 2, 5 / 6), "ssd": (2 / 3, 5 / 6)}
# The settings that only matter beside `tile`.
WINDOW_SETTINGS = ("tile_scale", "tile_jitter", "background_share", "min_visible")
MATCH_SETTINGS = ("match_metric", "match_threshold", "match_top_k", "nwd_constant")


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run. Exactly one of epochs, iterations and minutes is given.

    Checkpoints contain every field. A resumed run must have the same settings, except for those
    about its length, its reports and checkpoints, `accumulate` and `compile`.

    Attributes:
        epochs: length of the run in passes over the data.
        iterations: length of the run in batches.
        minutes: length of the run in minutes of wall-clock time, including evaluations and
            checkpoints. The schedule then follows the clock.
        batch_size: images per iteration, in all processes together.
        lr: the initial learning rate.
        schedule: "mdssd" (lr x 0.1 after 1/2 and again after 5/6 of the run), "ssd" (2/3 and 5/6),
            "steps" (after each of `drops`) or "cosine".
        drops: when the learning rate drops, only for "steps": iterations as whole numbers, or
            fractions of the run between 0 and 1.
        warmup: iterations over which the learning rate rises linearly from a tenth.
        momentum: momentum of SGD.
        weight_decay: weight decay, also of the scales of L2Norm as in Caffe; the weights of batch
            normalisation have none.
        bias_lr_factor: the learning rate of biases, as a multiple of `lr`.
        bias_weight_decay: the weight decay of biases.
        clip_gradient: the largest norm of the gradient; None sets no limit.
        ema: decay per iteration of an exponential moving average of the weights, which checkpoints
            contain and evaluations use; None keeps no average. In iteration t the decay is at most
            (1 + t) / (10 + t), so that the average soon forgets the initial weights.
        accumulate: parts in which a process puts its share of a batch through the network, one
            after another: the same gradient in less memory.
        normalizer: what divides the losses: the positive priors of the whole batch ("global"), or
            those of each process's share, averaged over the processes ("local", as Caffe does).
        amp: the type that the network computes in: "bf16", "fp16" (with scaled gradients) or None
            for float32. The weights, the loss and the update are float32 in any case.
        sync_batch_norm: normalise over the images of all processes; on GPUs only.
        compile: compile the network with torch.compile; the first iterations take minutes.
        seed: seed of the order of the images and of their augmentation.
        expand: see `mdssd.data.Augmentation`, also for the next five.
        crop: whether to crop.
        crop_min_scale: the smallest scale of a crop.
        photometric: whether to distort the colours.
        mirror: whether to mirror.
        turn: whether to turn by quarters.
        tile: train on windows of this many pixels of the image, a side or (width, height), instead
            of on whole images: see `mdssd.data.windows.TrainingWindows`. "auto" is the size of the
            network's input; None shows whole images.
        tile_scale: how much larger the image is made before windows are drawn.
        tile_jitter: the greatest factor by which the sides of a window differ from the tile's.
        background_share: the share of windows drawn anywhere, with or without an object.
        min_visible: a box of which a window shows a smaller share of its area is left out.
        freeze: parts of the model that do not learn, see `SingleShotDetector.freeze`.
        log_every: iterations per row of loss.csv.
        save_every: epochs between checkpoints.
        save_iterations: iterations between further checkpoints within an epoch; None saves none.
        keep: how many of the newest checkpoints stay.
        ignore: boxes that are neither objects nor background, some of "cut", "crowd" and
            "difficult"; see `mdssd.data.Augmentation`.
        match_metric: "iou", or "nwd" to match priors and objects by their normalised Wasserstein
            distance, which is above 0 also for those that do not overlap.
        match_threshold: a prior learns the object with which its IoU or NWD is at least this.
        match_top_k: so many priors learn each object in any case, in the order of that measure.
        nwd_constant: the distance, in pixels of the network's input, at which the NWD is 1 / e;
            the mean side of the objects is usual.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from mdssd.training.settings import Recipe
        >>> recipe = Recipe(epochs=10, lr=0.01, schedule="steps", drops=[0.5, 0.75])
        >>> [round(recipe.learning_rate(0, progress), 6) for progress in (0.0, 0.5, 0.9)]
        [0.01, 0.001, 0.0001]
        >>> Recipe(epochs=10, keep=0)
        Traceback (most recent call last):
        ValueError: Recipe: keep: expected a whole number from 1, got 0
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
    tile: int | Sequence[int] | str | None = None
    tile_scale: float = 1.0
    tile_jitter: float = 1.33
    background_share: float = 0.25
    min_visible: float = 0.5
    freeze: Sequence[str] = ()
    log_every: int = 10
    save_every: int = 1
    save_iterations: int | None = None
    keep: int = 1
    ignore: Sequence[str] = ()
    match_metric: str = "iou"
    match_threshold: float = 0.5
    match_top_k: int = 1
    nwd_constant: float = 12.8

    def __post_init__(self) -> None:
        for name, what, known in (
            ("freeze", "parts", FREEZABLE),
            ("ignore", "boxes", IGNORABLE),
        ):
            value = getattr(self, name)
            words = value if isinstance(value, list | tuple) else (None,)
            if not all(word in known for word in words):
                raise ValueError(
                    f"Recipe: {name}: expected a list of {what} among {', '.join(known)}; "
                    f"got {shown(value)}"
                )
            # JSON has only lists: a recipe from a checkpoint must equal the one that was saved.
            object.__setattr__(self, name, list(words))
        if sum(value is not None for value in (self.epochs, self.iterations, self.minutes)) != 1:
            raise ValueError(
                "Recipe: expected either epochs, iterations or minutes, got "
                f"epochs={self.epochs}, iterations={self.iterations}, minutes={self.minutes}"
            )
        for names, expected, holds in _RANGES:
            for name in names.split():
                value = getattr(self, name)
                is_left_out = value is None and getattr(Recipe, name) is None
                if not (is_left_out or holds(value)):
                    raise ValueError(f"Recipe: {name}: expected {expected}, got {shown(value)}")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"Recipe: {name}: expected one of {', '.join(map(str, choices))}; "
                    f"got {shown(value)}"
                )
        if self.match_metric != "nwd" and self.nwd_constant != Recipe.nwd_constant:
            raise ValueError(
                "Recipe: nwd_constant: needs the match_metric nwd, got "
                f"match_metric={shown(self.match_metric)}"
            )
        self._check_drops()
        self._check_tile()
        object.__setattr__(self, "drops", None if self.drops is None else tuple(self.drops))
        if isinstance(self.tile, tuple):
            object.__setattr__(self, "tile", list(self.tile))

    def tiling(self, input_size: InputSize) -> Tiling | None:
        """Return the tiles for a network of this input size; None for whole images."""
        return make_tiling(self._tile, input_size, scale=self.tile_scale)

    def window_draws(self, input_size: InputSize) -> WindowDraws | None:
        """Return how windows are drawn for a network of this input size; None for whole images."""
        tiling = self.tiling(input_size)
        if tiling is None:
            return None
        shares = (self.tile_jitter, self.background_share, self.min_visible)
        return WindowDraws(tiling.width, tiling.height, *shares)

    def detector_options(self) -> dict[str, Any]:
        """Return the options with which a `Detector` sees images as this training shows them."""
        return {} if self.tile is None else {"tile": self._tile, "tile_scale": self.tile_scale}

    @property
    def _tile(self) -> Any:
        return tuple(self.tile) if isinstance(self.tile, list) else self.tile

    def _check_tile(self) -> None:
        sides = self.tile if isinstance(self.tile, list | tuple) else (self.tile,) * 2
        pixels = len(sides) == 2 and all(_is_whole(v) and v >= 1 for v in sides)
        if not (self.tile is None or self.tile == "auto" or pixels):
            raise ValueError(
                "Recipe: tile: expected a number of pixels, a width and a height, or 'auto'; got "
                f"{shown(self.tile)}"
            )
        for name in WINDOW_SETTINGS:
            if self.tile is None and getattr(self, name) != getattr(Recipe, name):
                raise ValueError(f"Recipe: {name}: needs a tile, got {shown(getattr(self, name))}")
        try:  # the size of the input matters for "auto" only
            self.tiling(INPUT_SIZES[0])
        except ValueError as error:
            raise ValueError(f"Recipe: {error}") from None

    def _check_drops(self) -> None:
        if (self.schedule == "steps") != (self.drops is not None):
            raise ValueError(
                "Recipe: drops: expected with the schedule steps and no other, got "
                f"schedule={self.schedule!r}, drops={shown(self.drops)}"
            )
        if self.drops is None:
            return
        drops = tuple(self.drops) if isinstance(self.drops, list | tuple) else ()
        iterations = all(_is_whole(drop) and drop >= 1 for drop in drops)
        fractions = all(type(drop) is float and 0 < drop < 1 for drop in drops)
        rising = all(a < b for a, b in zip(drops, drops[1:], strict=False))
        if not drops or not (iterations or fractions) or not rising:
            raise ValueError(
                "Recipe: drops: expected rising iterations (whole numbers from 1) or fractions of "
                f"the run (between 0 and 1), got {shown(self.drops)}"
            )

    def learning_rate(self, step: int, progress: float) -> float:
        """Return the learning rate of an iteration.

        Args:
            step: the iteration, from 0.
            progress: the completed fraction of the run.
        """
        warm = min(1.0, 0.1 + 0.9 * step / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            return self.lr * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        drops = DROPS[self.schedule] if self.drops is None else self.drops
        passed = sum((step if type(drop) is int else progress) >= drop for drop in drops)
        return self.lr * warm * 0.1**passed


def shown(value: Any) -> str:
    """Return a value for a message, shortened if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = f"a {type(value).__name__} with a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63  # as PyTorch's generators and tensors take it


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e9


# Settings, what is expected of them, and a test of that. A setting whose default is None may be
# None.
_RANGES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    (
        "epochs iterations batch_size accumulate log_every save_every save_iterations keep",
        "a whole number from 1",
        lambda value: _is_whole(value) and value >= 1,
    ),
    (
        "match_top_k",
        "a whole number from 1 to 1000",
        lambda value: _is_whole(value) and 1 <= value <= 1000,
    ),
    (
        "nwd_constant",
        "a number of pixels from 0.1 to 10000",
        lambda value: _is_number(value) and 0.1 <= value <= 10_000,
    ),
    ("warmup seed", "a whole number from 0", lambda value: _is_whole(value) and value >= 0),
    (
        "minutes lr clip_gradient bias_lr_factor",
        "a number above 0",
        lambda value: _is_number(value) and value > 0,
    ),
    (
        "momentum ema",
        "a number of at least 0 and below 1",
        lambda value: _is_number(value) and 0 <= value < 1,
    ),
    (
        "weight_decay bias_weight_decay",
        "a number of at least 0",
        lambda value: _is_number(value) and value >= 0,
    ),
    (
        "sync_batch_norm compile crop photometric mirror turn",
        "true or false",
        lambda value: type(value) is bool,
    ),
    (
        "tile_scale",
        "a number above 0 and at most 16",
        lambda value: _is_number(value) and 0 < value <= 16,
    ),
    (
        "tile_jitter",
        "a number from 1 to 4",
        lambda value: _is_number(value) and 1 <= value <= 4,
    ),
    (
        "background_share",
        "a number from 0 to 1",
        lambda value: _is_number(value) and 0 <= value <= 1,
    ),
    ("expand", "a number of at least 1", lambda value: _is_number(value) and value >= 1),
    (
        "crop_min_scale min_visible match_threshold",
        "a number above 0 and at most 1",
        lambda value: _is_number(value) and 0 < value <= 1,
    ),
)
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "schedule": SCHEDULES,
    "normalizer": NORMALIZERS,
    "amp": (None, *AMP),
    "match_metric": MATCH_METRICS,
}
