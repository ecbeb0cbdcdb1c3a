"""Checks of a run before it writes anything."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch

from mdssd.data import DetectionDataset
from mdssd.data.ignored import objects_of
from mdssd.data.opened import check_file
from mdssd.data.windows import count_windows
from mdssd.models import SingleShotDetector
from mdssd.system import distributed
from mdssd.system.progress import progress_bar
from mdssd.training.settings import Recipe
from mdssd.weights.checkpoint import check_classes


def check_arguments(model: SingleShotDetector, dataset: DetectionDataset, eval_every: int) -> None:
    """Check what needs neither the images nor the folder of the run."""
    check_classes("train", dataset.classes, model.num_classes)
    if eval_every < 1:
        raise ValueError(f"train: eval_every: expected 1 or more, got {eval_every}")


def check_run(
    model: SingleShotDetector,
    dataset: DetectionDataset,
    eval_dataset: DetectionDataset | None,
    settings: Recipe,
    device: torch.device,
    decode: bool,
    progress: bool,
) -> None:
    """Check that model, data and settings go together.

    decode: Also decode every image, to find broken ones. Each process decodes its share.

    Raises:
        ValueError: they do not.
        DataError: an image cannot be read.
    """
    if not len(dataset):
        raise ValueError(f"train: dataset: expected at least one image, {dataset.name} has none")
    if not any(
        objects_of(dataset.annotation(i), settings.ignore).any() for i in range(len(dataset))
    ):
        raise ValueError(f"train: dataset: {dataset.name} has no box to learn from")
    normalised = model.options.batch_norm or model.options.light
    if normalised and "batch-norm" not in model.frozen:
        draws = settings.window_draws(model.input_size)
        _check_batch_size(settings, count_windows(dataset, draws) if draws else len(dataset))
    if eval_dataset is not None:
        _check_eval_dataset(eval_dataset, dataset)
    if decode:
        _decode_all(dataset, progress)
    if settings.sync_batch_norm and "batch-norm" not in model.frozen and device.type != "cuda":
        raise ValueError(f"train: sync_batch_norm: works on GPUs only, got device {device}")


def _check_batch_size(settings: Recipe, images: int) -> None:
    """Check that batch normalisation gets at least two images to normalise over."""
    processes = distributed.world_size()
    part = min(settings.batch_size, images) // processes // settings.accumulate
    needed = 1 if settings.sync_batch_norm and processes > 1 else 2
    if part < needed:
        least = needed * processes * settings.accumulate
        raise ValueError(
            f"train: batch_size: expected at least {least} images, {needed} for each part that "
            f"batch normalisation sees, got {settings.batch_size} of {images} images"
            + (f" in {processes} processes" if processes > 1 else "")
            + (f" in {settings.accumulate} parts" if settings.accumulate > 1 else "")
        )


def _check_eval_dataset(eval_dataset: DetectionDataset, dataset: DetectionDataset) -> None:
    if not len(eval_dataset):
        raise ValueError(f"train: eval_dataset: {eval_dataset.name} has no image")
    unknown = [name for name in eval_dataset.classes if name not in dataset.classes]
    if unknown:
        raise ValueError(
            f"train: eval_dataset: {eval_dataset.name} has classes that {dataset.name} "
            f"lacks: {', '.join(unknown)}"
        )


def _decode_all(dataset: DetectionDataset, progress: bool) -> None:
    own = distributed.part(range(len(dataset)))
    indices = [index for index in own if dataset.image_path(index) is not None]
    processes = distributed.world_size()

    def decode(index: int) -> None:  # the pixels are not returned, or the pool would collect them
        check_file(dataset, index)

    bar = progress_bar(
        desc="check images" + (f" (1/{processes} of them)" if processes > 1 else ""),
        total=len(indices),
        visible=bool(indices) and progress and distributed.is_main(),
        leave=False,
    )
    with closing(bar), ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, indices):
            bar.update()
