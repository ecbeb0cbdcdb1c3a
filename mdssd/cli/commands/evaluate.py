"""`mdssd eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mdssd.cli.commands.shared import detector_options, machine, open_data, some
from mdssd.data import DetectionDataset
from mdssd.detection.detector import Detector
from mdssd.evaluation.evaluate import find_all, write_result
from mdssd.evaluation.result import measure
from mdssd.evaluation.submission import write_submission
from mdssd.metrics import similar_labels
from mdssd.system import distributed
from mdssd.system.memory import keep_memory


def run(arguments: argparse.Namespace) -> int:
    with machine(vars(arguments), together=True) as device:
        # Wrong options should end the command now, not after the detector has seen all images.
        if arguments.submit and not arguments.out:
            raise ValueError("--submit: needs --out, the folder to write to")
        keep_memory()
        detector = Detector.from_checkpoint(
            arguments.checkpoint, device=device, **detector_options(arguments)
        )
        similar_labels(detector.classes, arguments.similar)
        dataset = _open(arguments, detector)
        main = distributed.is_main()
        if main and arguments.out:
            Path(arguments.out).mkdir(parents=True, exist_ok=True)
        found = find_all(detector, dataset, batch_size=arguments.batch_size)
    if not main:
        return 0
    if arguments.submit:
        paths = write_submission(arguments.out, dataset, found.detections, detector.classes)
        print("written: " + some([str(path) for path in paths]))
    if not dataset.labelled:
        print(f"{dataset.name} has images without annotations, so nothing is measured")
        return 0
    result = measure(
        found,
        dataset,
        detector.classes,
        similar=arguments.similar,
        score_threshold=arguments.score_threshold,
    )
    print(result.table())
    if arguments.out:
        out = Path(arguments.out)
        write_result(result, found, dataset, out)
        print(f"written: {out / 'evaluation.json'} and {out / 'report.html'}")
    return 0


def _open(arguments: argparse.Namespace, detector: Detector) -> DetectionDataset:
    dataset = open_data(
        vars(arguments),
        train=False,
        input_size=detector.input_size,
        classes=detector.classes,
        unlabelled=bool(arguments.submit),
    )
    if arguments.submit and dataset.submission != arguments.submit:
        raise ValueError(
            f"--submit {arguments.submit}: expected data in that format, got {dataset.name}"
        )
    return dataset
