"""Checking the arguments of a detector."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from mdssd.system import distributed


def class_names(classes: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return the names of labels 1, 2 ...

    Args:
        classes: the names; None for "class 1", "class 2" ...
        num_classes: how many classes the model scores, with background.

    Raises:
        ValueError: these are not the names of as many classes.
    """
    if classes is None:
        return [f"class {k}" for k in range(1, num_classes)]
    if isinstance(classes, str) or len(classes) != num_classes - 1:
        raise ValueError(
            f"Detector: classes: expected {num_classes - 1} names, as the model scores "
            f"{num_classes} classes with background, got {classes!r}"
        )
    return list(classes)


def check_batch_size(where: str, batch_size: int) -> None:
    """Raise ValueError if a batch size is not an int of 1 or more."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{where}: batch_size: expected an int of 1 or more, got {batch_size!r}")


def check_stream(images: Any, workers: int | None, device: torch.device) -> int:
    """Return the number of worker processes of a stream.

    Args:
        images: the images, which are only checked.
        workers: the number, or None to choose one.
        device: where the network runs.

    Raises:
        TypeError, ValueError: an argument is not as `Detector.stream` describes it.
    """
    if workers is None:
        cores = (os.cpu_count() or 1) // distributed.processes_here()
        workers = max(0, min(2 if device.type == "cpu" else 8, cores - 1))
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ValueError(f"Detector.stream: workers: expected an int from 0, got {workers!r}")
    if isinstance(images, (str, bytes, np.ndarray)) or not isinstance(images, Iterable):
        raise TypeError(
            "Detector.stream: images: expected an iterable of numpy arrays, Pillow images, "
            f"paths or bytes, got {type(images).__name__}"
        )
    return workers
