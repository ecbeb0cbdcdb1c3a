"""`mdssd eval`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from mdssd.bulk.stream import RayStream
from mdssd.cli.commands.shared import (
    check_local,
    detector_options,
    machine,
    open_data,
    pool_of,
    show,
)
from mdssd.data import DetectionDataset
from mdssd.detection.detector import Detector
from mdssd.evaluation.about import describe_run
from mdssd.evaluation.evaluate import find_all, write_result
from mdssd.evaluation.result import measure
from mdssd.evaluation.submission import check_submission, write_submission
from mdssd.metrics import similar_labels
from mdssd.names import ORIENTATIONS
from mdssd.system import distributed
from mdssd.system.files import writable_folder
from mdssd.system.memory import keep_memory
from mdssd.system.text import some
from mdssd.weights.checkpoint_json import find_checkpoint, read_meta


def run(arguments: argparse.Namespace) -> int:
    with machine(vars(arguments), together=True) as device:
        on_ray = arguments.engine == "ray"
        if not on_ray:
            check_local(vars(arguments), ("ray_address", "actors"))
        elif distributed.running():
            raise ValueError("--engine ray: is not for processes of torchrun")
        # Whatever is wrong should end the command now, not after the detector has seen all images.
        if arguments.submit and not arguments.out:
            raise ValueError("--submit: needs --out, the folder to write to")
        keep_memory()
        options = detector_options(arguments)
        detector = Detector.from_checkpoint(arguments.checkpoint, device=device, **options)
        similar_labels(detector.classes, arguments.similar)
        dataset = _open(arguments, detector)
        main = distributed.is_main()
        if main and arguments.out:
            writable_folder(arguments.out)
        about = describe_run(
            detector,
            dataset,
            checkpoint=arguments.checkpoint,
            data=arguments.data,
            command=shlex.join(["mdssd", *arguments.words]),
        )
        stream = None
        if on_ray:
            pool = pool_of(arguments)
            stream = RayStream(arguments.checkpoint, pool, detector.timings, **options)
        found = find_all(
            detector,
            dataset,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            allow_faults="allow_faults" in arguments,
            stream=stream,
        )
    if not main:
        return 0
    if arguments.submit:
        paths = write_submission(arguments.out, dataset, found.detections, detector.classes)
        show("written: " + some([str(path) for path in paths]))
    if not dataset.labelled:
        show(f"{dataset.name} has images without annotations, so nothing is measured")
        return 0
    result = measure(
        found,
        dataset,
        detector.classes,
        similar=arguments.similar,
        score_threshold=arguments.score_threshold,
        about=about,
    )
    show(*result.table().split("\n"))
    if arguments.out:
        out = Path(arguments.out)
        write_result(result, found, dataset, out)
        show(f"written: {out / 'evaluation.json'} and {out / 'report.html'}")
    return 0


def _open(arguments: argparse.Namespace, detector: Detector) -> DetectionDataset:
    options = dict(vars(arguments))
    if "orientation" not in options:
        options |= _orientation_of_run(arguments.checkpoint)
    dataset = open_data(
        options,
        train=False,
        input_size=detector.input_size,
        # A test set without annotations does not say which classes it has.
        classes=detector.classes if arguments.submit else None,
        unlabelled=bool(arguments.submit),
        by_windows=detector.tiling is not None,
    )
    if arguments.data is None:
        _check_scenes(dataset, detector)
    if arguments.submit:
        if dataset.submission != arguments.submit:
            raise ValueError(
                f"--submit {arguments.submit}: expected data in that format, got {dataset.name}"
            )
        check_submission(dataset)
    return dataset


def _orientation_of_run(checkpoint: str) -> dict[str, str]:
    """Return the option --orientation that the checkpoint's run was trained with, if it had one.

    Data that need it for training need it for evaluation: without it the boxes would lie elsewhere.
    """
    training = read_meta(find_checkpoint(checkpoint)).get("training") or {}
    known = training.get("arguments", {}).get("orientation")
    if known not in ORIENTATIONS:
        return {}
    if distributed.is_main():
        show(f"orientation: {known}, as in training (--orientation chooses another)")
    return {"orientation": known}


def _check_scenes(scenes: DetectionDataset, detector: Detector) -> None:
    """Refuse to measure a detector of other objects on generated scenes."""
    unknown = [name for name in scenes.classes if name not in detector.classes]
    if unknown:
        raise ValueError(
            "--scenes: expected a checkpoint of the scenes' classes "
            f"({', '.join(scenes.classes)}), its classes are {some(detector.classes, 8)}; "
            "--data measures on your own data"
        )
