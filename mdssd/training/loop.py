"""Training a detector: resumable after any interruption, in one process or several."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from mdssd.data import (
    MEAN_RGB,
    Augmentation,
    DataError,
    DetectionDataset,
    TrainingSet,
    collate,
    read_image,
    subtract_mean,
    worker_init,
)
from mdssd.detection.detector import Detector
from mdssd.evaluation.evaluate import EvalResult, evaluate
from mdssd.models import SingleShotDetector
from mdssd.system import distributed
from mdssd.system.files import remove_leftovers
from mdssd.system.stop import StopRequest, Terminated
from mdssd.training.bad_batch import save_batch
from mdssd.training.loss_curve import plot_losses
from mdssd.training.loss_log import LossLog, is_loss_log
from mdssd.training.settings import Recipe, parameter_groups
from mdssd.training.step import Losses, TrainingStep
from mdssd.weights.checkpoint import (
    CheckpointError,
    check_classes,
    keep_last,
    load_checkpoint,
    load_state,
    read_meta,
    save_checkpoint,
)

RUN_FILES = ("last.json", "best.json", "loss.csv")
# Drawing the curve takes 0.3 s; a data set of a few images has epochs shorter than that.
_SECONDS_BETWEEN_PLOTS = 20.0
# Settings that may differ when a run goes on: how long it lasts, what it reports, how it computes.
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


class TrainingError(RuntimeError):
    """Training cannot go on. The last checkpoint is whole."""


@dataclass
class TrainState:
    """How far a run has come; part of its checkpoints."""

    epoch: int = 0  # epochs completed
    step: int = 0  # iterations completed
    batch: int = 0  # of them in the epoch that has begun
    seconds: float = 0.0
    loss: float | None = None  # mean of the last line of the CSV
    metric: str = "VOC07 mAP"  # of the evaluations; "COCO AP" for data in the layout of COCO
    evaluations: list[list[float]] = field(default_factory=list)  # [epoch, metric]
    to_evaluate: bool = False  # the evaluation after this epoch has not been made
    finished: bool = False

    @property
    def best(self) -> float | None:
        """The best of the metric so far; None before the first evaluation."""
        return max((row[1] for row in self.evaluations), default=None)


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
    """Train a model on a data set, with SSD's loss and augmentation and SGD (SSD section 2.2).

    Writes into `out_dir`, which is made: last.json with its weights after every epoch, and in the
    midst of one with `save_iterations` (and what is needed to resume), step-*.json for the `keep`
    last ones, best.json where there is an `eval_dataset`, loss.csv line by line, loss.png.

    A run that is killed at any moment leaves the last checkpoint whole; with `resume` it goes on
    from there, and on one CPU gives the same bits as if it had not been interrupted (not with
    `minutes`, where the schedule follows the clock). No generator's state is kept for that: the
    order of the images follows from (seed, epoch) and the augmentation of one from (seed, epoch,
    image), in whichever process it happens. SIGTERM saves after the iteration that it comes in.
    A checkpoint that cannot be written, on a full disk, costs a warning, and an error at the end.

    Crowd boxes are left out and difficult ones used, as SSD does for COCO and VOC. An image
    without boxes adds nothing to the loss. An epoch is a random order of all images; the images
    beyond the last full batch are left out of it, other ones each time.

    Where torch.distributed has a group, all its processes call this with the same arguments, and
    train one model together on `batch_size` images an iteration (see `TrainingStep`): each loads
    its share of them, the first one writes. They need not be as many when the run is resumed. The
    folder `out_dir` must be the same for all.

    Args:
        model: trained in place, moved to `device`; with `resume` its weights are replaced.
        dataset, eval_dataset: what to learn from, and what to measure on: COCO AP where it has the
            layout of COCO, else VOC07 mAP.
        resume: go on with the run in `out_dir`. Without it a run there is an error.
        eval_every: epochs between evaluations; the end of the training always has one.
        workers: processes that load images; None is one less than the cores, at most 2. In a
            group each process has its own.
        check_images: decode every image once before starting, to find broken ones.
        arguments: facts to keep in the checkpoints' "training" entry.
        progress: whether to show progress bars.
        recipe: the fields of `Recipe`: epochs, iterations or minutes, batch_size, lr ...

    Raises:
        ValueError: settings, classes and model disagree, there is no box to learn from, or the
            run to resume had other settings. Nothing is written then.
        DataError: an image cannot be read.
        CheckpointError: the run to resume cannot be read.
        FileExistsError: `out_dir` has a run and `resume` is not set.
        TrainingError: the loss is NaN or infinite (the batch is then kept in `out_dir`), or the
            last checkpoint of the run cannot be written.
        Terminated: SIGTERM came; the checkpoint is saved.
    """
    settings = Recipe(**recipe)
    out_dir = Path(out_dir)
    device = torch.device(device)
    check_classes("train", dataset.classes, model.num_classes)
    if eval_every < 1:
        raise ValueError(f"train: eval_every: expected 1 or more, got {eval_every}")
    main = distributed.is_main()
    if main:
        check_folder(out_dir, resume)
    distributed.wait_for_all()  # the first process's complaint comes before its files
    state = TrainState()
    tensors: dict[str, Tensor] = {}
    if resume:
        state, tensors = _load_run(out_dir / "last.json", model, dataset, settings)
        state.finished = _progress(state, settings, 0.0) >= 1
        state.to_evaluate = state.to_evaluate and eval_dataset is not None
        if state.finished and not state.to_evaluate:
            return state
    if eval_dataset is not None and state.metric != eval_dataset.metric:  # of another layout
        state.metric, state.evaluations = eval_dataset.metric, []
    if settings.freeze:
        model.freeze(*settings.freeze)
    _check_data(model, dataset, eval_dataset, settings, check_images, progress and main)

    if settings.sync_batch_norm and "batch-norm" not in model.frozen:
        if device.type != "cuda":
            raise ValueError(f"train: sync_batch_norm: works on GPUs only, got device {device}")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model) if settings.ema is not None else None
    optimizer = torch.optim.SGD(
        parameter_groups(model, settings), settings.lr, momentum=settings.momentum, foreach=True
    )
    _restore(model, optimizer, tensors)
    step = TrainingStep(model, optimizer, settings, average)
    step.load_state_dict(tensors)
    loader, batches = _make_loader(model, dataset, settings, workers, device)
    if main:
        out_dir.mkdir(parents=True, exist_ok=True)
        distributed.note_job(out_dir)
        remove_leftovers(out_dir / "loss.png")

    def save(name: str, ends: bool = False) -> None:
        """All processes come here, so that they learn it if the first cannot write the last one."""
        fault = write(name, ends or state.finished) if main else None
        if fault := distributed.from_main(fault):
            raise TrainingError(fault)

    def write(name: str, ends: bool) -> str | None:
        last = name == "last.json"
        try:
            save_checkpoint(
                out_dir / name,
                model if average is None else average,
                classes=dataset.classes,
                mean=MEAN_RGB,
                extra={
                    **asdict(state),
                    "dataset": dataset.name,
                    "images": len(dataset),
                    "recipe": asdict(settings),
                    "arguments": dict(arguments or {}),
                },
                state=_training_tensors(model, optimizer, average) | step.state_dict()
                if last
                else None,
            )
            if last:
                keep_last(out_dir / name, state.step, settings.keep)
        except ValueError as error:  # a weight is not finite, which the next loss would have told
            return f"train: iteration {state.step}: {error}"
        except OSError as error:
            if last and ends:
                return _unsaved(out_dir / name, state, error)
            bar.warn(f"warning: {_unsaved(out_dir / name, state, error)}")
        return None

    def measure() -> None:
        assert eval_dataset is not None
        best = state.best
        with stop.at_once():
            detector = Detector(average or model, classes=dataset.classes)
            value = _figure(evaluate(detector, eval_dataset, progress=progress), state.metric)
        state.evaluations.append([state.epoch, value])
        state.to_evaluate = False
        bar.note(f"epoch {state.epoch}: {state.metric} {value:.4f} on {eval_dataset.name}")
        state.seconds = seconds()
        if state.best != best:
            save("best.json")
        save("last.json")

    def seconds() -> float:
        passed = time.monotonic() - started
        # What follows the clock follows that of the first process.
        return passed if settings.minutes is None else distributed.from_main(passed)

    started = time.monotonic() - state.seconds
    plotted = -math.inf
    with (
        closing(loader.dataset),  # type: ignore[type-var]
        StopRequest(patient=distributed.running()) as stop,
        LossLog(out_dir / "loss.csv", state.step) if main else nullcontext() as log,
        _Bar(state, settings, len(batches), progress and main) as bar,
    ):
        if state.to_evaluate:
            measure()
        while not state.finished:
            model.train()
            batches.epoch, batches.done = state.epoch, state.batch
            loader.dataset.set_epoch(state.epoch)  # type: ignore[attr-defined]
            tally, ends = _Tally(), False
            for images, boxes_xyxy, labels in _batches(loader, tally):
                state.seconds = seconds()
                part = _progress(state, settings, state.batch / len(batches))
                if part >= 1:
                    break
                lr = settings.learning_rate(state.step, part)
                images = subtract_mean(images.to(device, non_blocking=True))
                losses = step.backward(images, boxes_xyxy, labels)
                if not losses.finite:
                    ids = [dataset.image_ids[k] for k in distributed.part(batches.of(state.batch))]
                    message = _diverged(out_dir, state, lr, losses)
                    kept = _keep_batch(
                        out_dir, state, message, images, boxes_xyxy, labels, ids, dataset.classes
                    )
                    raise TrainingError(f"{message}; {kept}")
                step.update(lr, state.step)
                state.step += 1
                state.batch += 1
                tally.add(losses)
                ends = distributed.any_of(stop.asked)  # later ones wait for the next iteration
                to_save = _every(settings.save_iterations, state.step) or ends
                if state.step % settings.log_every == 0 or to_save or state.batch == len(batches):
                    state.loss = tally.flush(log, state, lr)
                bar.show(state, lr, tally)
                if to_save and state.batch < len(batches):
                    state.seconds = seconds()
                    save("last.json", ends)
                    if ends:
                        raise Terminated
            if tally.count:
                state.loss = tally.flush(log, state, lr)
            epoch_ends = state.batch == len(batches)
            if epoch_ends:
                state.epoch, state.batch = state.epoch + 1, 0
            state.seconds = seconds()
            state.finished = _progress(state, settings, 0.0) >= 1
            state.to_evaluate = eval_dataset is not None and (
                state.finished or (epoch_ends and state.epoch % eval_every == 0)
            )
            if (
                state.finished
                or state.to_evaluate
                or ends
                or _every(settings.save_iterations, state.step)
                or (epoch_ends and state.epoch % settings.save_every == 0)
            ):
                save("last.json", ends)
                if ends and (state.to_evaluate or not state.finished):
                    raise Terminated
            if state.to_evaluate:
                measure()
            if log and (state.finished or time.monotonic() - plotted > _SECONDS_BETWEEN_PLOTS):
                try:
                    plot_losses(log.path, out_dir / "loss.png")
                except OSError as error:
                    bar.warn(f"warning: {out_dir / 'loss.png'}: not drawn ({error.strerror})")
                plotted = time.monotonic()
    if average is not None:
        model.load_state_dict(average.state_dict())
    model.eval()
    return state


class EpochBatches(Sampler[list[int]]):
    """Batches of indices in an order that depends on (seed, epoch) alone.

    Indices beyond the last full batch are left out, unless there is no full batch.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = min(batch_size, count)
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.count, generator=generator).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size]


class OwnShares(Sampler[list[int]]):
    """This process's share of each batch, which may be empty."""

    def __init__(self, batches: Sampler[list[int]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        return (list(distributed.part(batch)) for batch in self.batches)


class _Reporting(Dataset[Any]):
    """Hands a DataError over as a value: raised in a worker it would come back as a traceback."""

    def __init__(self, samples: TrainingSet) -> None:
        self.samples = samples
        self.set_epoch = samples.set_epoch
        self.closed = torch.zeros((), dtype=torch.bool).share_memory_()

    def close(self) -> None:
        """Let SIGTERM end the workers from now on."""
        self.closed.fill_(True)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.samples[index]
        except DataError as error:
            return error


class _Remaining(Sampler[list[int]]):
    """The batches of an epoch without the first `done`, those of an interrupted run."""

    def __init__(self, batches: EpochBatches) -> None:
        self._batches = batches
        self.epoch = 0
        self.done = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        self._batches.epoch = self.epoch
        return islice(iter(self._batches), self.done, None)

    def of(self, number: int) -> list[int]:
        """The images of a batch, counted from the epoch's first."""
        self._batches.epoch = self.epoch
        return next(islice(iter(self._batches), number, None))


def _collate(batch: list[Any], size: int) -> Any:
    if not batch:
        return torch.zeros(0, 3, size, size, dtype=torch.uint8), [], []
    return next((item for item in batch if isinstance(item, DataError)), None) or collate(batch)


def _start_worker(worker_id: int) -> None:
    import signal

    # Ctrl-C reaches the whole process group, and SIGTERM often does; the main process needs its
    # workers until the iteration is done, and then ends them, with SIGTERM if need be.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    info: Any = torch.utils.data.get_worker_info()
    closed = info.dataset.closed
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closed else None)
    worker_init(worker_id)


def _batches(loader: DataLoader[Any], tally: _Tally) -> Iterator[Any]:
    """The loader's batches; `tally` learns how long each was waited for."""
    waited_since = time.monotonic()
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        tally.waited += time.monotonic() - waited_since
        yield batch
        waited_since = time.monotonic()


def _make_loader(
    model: SingleShotDetector,
    dataset: DetectionDataset,
    settings: Recipe,
    workers: int | None,
    device: torch.device,
) -> tuple[DataLoader[Any], _Remaining]:
    augmentation = Augmentation(
        model.input_size,
        expand=settings.expand,
        crop=settings.crop,
        crop_min_scale=settings.crop_min_scale,
        photometric=settings.photometric,
        mirror=settings.mirror,
        turn=settings.turn,
        raw=True,
    )
    batches = _Remaining(EpochBatches(len(dataset), settings.batch_size, settings.seed))
    if workers is None:
        cores = (os.cpu_count() or 1) // distributed.processes_here()
        workers = max(0, min(2, cores - 1))
    loader: DataLoader[Any] = DataLoader(
        _Reporting(TrainingSet(dataset, augmentation, settings.seed)),
        batch_sampler=OwnShares(batches),
        num_workers=workers,
        collate_fn=partial(_collate, size=model.input_size),
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    return loader, batches


def _progress(state: TrainState, settings: Recipe, part_of_epoch: float) -> float:
    """The fraction of the run that is done."""
    if settings.minutes is not None:
        return state.seconds / (60 * settings.minutes)
    if settings.iterations is not None:
        return state.step / settings.iterations
    assert settings.epochs is not None
    return (state.epoch + part_of_epoch) / settings.epochs


def _every(count: int | None, step: int) -> bool:
    return count is not None and step % count == 0


def _figure(result: EvalResult, metric: str) -> float:
    if metric == "VOC07 mAP":
        value = float(result.voc07.mean_ap)
    elif result.coco is not None:
        value = float(result.coco.figures["AP"])
    else:
        raise ImportError(f"train: {metric} of {result.dataset} needs pycocotools")
    return value if math.isfinite(value) else 0.0


def _diverged(out_dir: Path, state: TrainState, lr: float, losses: Losses) -> str:
    kept = out_dir / "last.json"
    return (
        f"train: the loss is not finite (boxes {losses.loc:g}, classes "
        f"{losses.conf:g}) in iteration {state.step + 1} of epoch {state.epoch + 1} at "
        f"learning rate {lr:g}; try a lower one, a warm-up or a gradient limit; "
        + (f"{kept} is the last checkpoint" if kept.exists() else "there is no checkpoint yet")
    )


def _keep_batch(
    out_dir: Path,
    state: TrainState,
    message: str,
    images: Tensor,
    boxes_xyxy: list[Tensor],
    labels: list[Tensor],
    ids: list[str],
    classes: list[str],
) -> str:
    """Save the batch that the run stops at, each process its share; say, in all, where it is."""
    rank = distributed.rank()
    folder = out_dir / (f"not-finite-{state.step + 1:08}" + (f"-rank{rank}" if rank else ""))
    facts = {"iteration": state.step + 1, "epoch": state.epoch + 1, "message": message}
    kept = f"{folder} has its batch"
    try:
        if ids:
            save_batch(folder, images, boxes_xyxy, labels, ids, classes, facts)
    except OSError as error:
        kept = f"its batch could not be kept in {folder} ({error.strerror})"
    # No process may end, and have the others ended, before all have written.
    shares = distributed.gather(kept if ids else "")
    return distributed.from_main("; ".join(filter(None, shares)))


def _unsaved(path: Path, state: TrainState, error: OSError) -> str:
    kept = "its predecessor is whole" if path.exists() else "there is none before it"
    return (
        f"{path}: the checkpoint of iteration {state.step} cannot be written "
        f"({error.strerror}); {kept}"
    )


def _training_tensors(
    model: SingleShotDetector,
    optimizer: torch.optim.Optimizer,
    average: SingleShotDetector | None,
) -> dict[str, Tensor]:
    """What a resumed run needs besides the checkpoint's weights."""
    tensors = {}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer
    if average is not None:
        tensors |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return tensors


def _restore(
    model: SingleShotDetector, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    if weights:
        model.load_state_dict(weights)
    for name, parameter in model.named_parameters():
        buffer = tensors.get(f"momentum.{name}")
        if buffer is not None:
            kept = torch.empty_like(parameter).copy_(buffer)
            optimizer.state[parameter]["momentum_buffer"] = kept


def _load_run(
    path: Path, model: SingleShotDetector, dataset: DetectionDataset, settings: Recipe
) -> tuple[TrainState, dict[str, Tensor]]:
    """Read the run's last checkpoint; check that it is of this model, data and recipe."""
    meta = read_meta(path)
    if meta["model"] != model.config():
        raise CheckpointError(
            f"{path}: is of another model: expected {model.config()}, got {meta['model']}"
        )
    facts = meta["training"]
    try:
        # A run of an earlier version lacks settings, and had what are now their defaults.
        before = asdict(Recipe(**facts["recipe"]))
        known = {name: facts[name] for name in TrainState.__dataclass_fields__ if name in facts}
        state = TrainState(**{"epoch": facts["epoch"], "step": facts["step"], **known})
        changed = [
            f"{name} (was {before[name]!r}, is {value!r})"
            for name, value in asdict(settings).items()
            if name not in _MAY_CHANGE and before[name] != value
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: holds no run to resume ({error})") from None
    if facts.get("images") != len(dataset):
        changed.append(f"images (were {facts.get('images')}, are {len(dataset)})")
    if changed:
        raise ValueError(f"train: cannot resume {path} with other settings: {', '.join(changed)}")
    loaded, _ = load_checkpoint(path, classes=dataset.classes)
    tensors = load_state(path)
    model.load_state_dict(loaded.state_dict())
    state.finished = False
    return state, tensors


def check_folder(out_dir: Path, resume: bool) -> None:
    there = [name for name in RUN_FILES if (out_dir / name).exists()]
    if resume and "last.json" not in there:
        raise CheckpointError(f"{out_dir / 'last.json'}: no such file: there is no run to resume")
    if there == ["loss.csv"] and is_loss_log(out_dir / "loss.csv"):
        there = []  # of a run that ended before its first checkpoint: nothing is lost with it
    if there and not resume:
        raise FileExistsError(
            f"{out_dir}: holds a run already ({', '.join(there)}): resume it, or write elsewhere"
        )
    existing = next(folder for folder in (out_dir, *out_dir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing}: is not a folder")
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"{existing}: cannot be written")


def _check_data(
    model: SingleShotDetector,
    dataset: DetectionDataset,
    eval_dataset: DetectionDataset | None,
    settings: Recipe,
    check_images: bool,
    progress: bool,
) -> None:
    if not len(dataset):
        raise ValueError(f"train: dataset: expected at least one image, {dataset.name} has none")
    if not any((~dataset.annotation(i).crowd).any() for i in range(len(dataset))):
        raise ValueError(f"train: dataset: {dataset.name} has no box to learn from")
    _check_batch_norm(model, settings, len(dataset))
    if eval_dataset is not None:
        if not len(eval_dataset):
            raise ValueError(f"train: eval_dataset: {eval_dataset.name} has no image")
        unknown = [name for name in eval_dataset.classes if name not in dataset.classes]
        if unknown:
            raise ValueError(
                f"train: eval_dataset: {eval_dataset.name} has classes that {dataset.name} "
                f"lacks: {', '.join(unknown)}"
            )
    if check_images:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            own = (dataset.image_path(i) for i in distributed.part(range(len(dataset))))
            paths = [path for path in own if path is not None]
            checked = pool.map(_decode, paths)
            for _ in tqdm(checked, "check images", len(paths), disable=not progress, leave=False):
                pass


def _check_batch_norm(model: SingleShotDetector, settings: Recipe, images: int) -> None:
    if not model.batch_norm or "batch-norm" in model.frozen:
        return
    processes = distributed.world_size()
    part = min(settings.batch_size, images) // processes // settings.accumulate
    needed = 1 if settings.sync_batch_norm and processes > 1 else 2
    if part < needed:
        raise ValueError(
            f"train: batch_size: batch normalisation needs batches of {needed} images or more, got "
            f"batches of {settings.batch_size} from {images} images"
            + (f" in {processes} processes" if processes > 1 else "")
            + (f" in {settings.accumulate} parts" if settings.accumulate > 1 else "")
        )


def _decode(path: Path) -> None:
    read_image(path)


class _Tally:
    """Losses since the last line of the CSV."""

    def __init__(self) -> None:
        self.loc = self.conf = 0.0
        self.images = self.count = 0
        self.waited = 0.0
        self.since = time.monotonic()

    def add(self, losses: Losses) -> None:
        self.loc += losses.loc
        self.conf += losses.conf
        self.images += losses.images
        self.count += 1

    def means(self) -> tuple[float, float, float, float]:
        """Mean loss of boxes and classes, images per second, share of the time spent waiting."""
        seconds = max(time.monotonic() - self.since, 1e-9)
        return (
            self.loc / self.count,
            self.conf / self.count,
            self.images / seconds,
            self.waited / seconds,
        )

    def flush(self, log: LossLog | None, state: TrainState, lr: float) -> float:
        """Write a line; give its total loss."""
        loc, conf, speed, waiting = self.means()
        if log is not None:
            log.write(
                step=state.step,
                epoch=state.epoch + 1,
                lr=lr,
                loc=loc,
                conf=conf,
                total=loc + conf,
                images_per_s=speed,
                waiting=waiting,
            )
        self.__init__()  # type: ignore[misc]
        return loc + conf


class _Bar:
    """The progress bar of a run: over its iterations, or over its time."""

    def __init__(self, state: TrainState, settings: Recipe, batches: int, progress: bool) -> None:
        self._timed = settings.minutes is not None
        total = settings.minutes * 60 if settings.minutes else (settings.epochs or 0) * batches
        total = settings.iterations or total
        self._bar = tqdm(
            total=round(total),
            initial=round(state.seconds) if self._timed else state.step,
            desc="train",
            unit="s" if self._timed else "it",
            # A log file gets a line now and then, a terminal a bar that moves.
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
            disable=not progress,
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def show(self, state: TrainState, lr: float, tally: _Tally) -> None:
        if tally.count:
            loc, conf, speed, waiting = tally.means()
            self._bar.set_postfix_str(
                f"epoch {state.epoch + 1}, loss {loc + conf:.3f} = boxes {loc:.3f} + classes "
                f"{conf:.3f}, lr {lr:.2g}, {speed:.1f} images/s, "
                f"waiting for images {waiting:.0%}",
                refresh=False,
            )
        reached = round(state.seconds) if self._timed else state.step
        self._bar.update(min(reached, self._bar.total) - self._bar.n)

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        if not self._bar.disable:
            self._bar.write(line)

    def warn(self, line: str) -> None:
        """Print a line above the bar, or where it would be."""
        self._bar.write(line, file=sys.stderr)
