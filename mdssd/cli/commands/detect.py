"""`mdssd detect`."""

from __future__ import annotations

import argparse

from mdssd.cli.commands.shared import detector_options, machine, show
from mdssd.data.images import ImageLimits
from mdssd.detection.detector import Detector
from mdssd.detection.files import detect
from mdssd.system.memory import keep_memory


def run(arguments: argparse.Namespace) -> int:
    with machine(vars(arguments)) as device:
        keep_memory()
        detector = Detector.from_checkpoint(
            arguments.checkpoint,
            device=device,
            nms_threshold=arguments.nms_threshold,
            max_detections=arguments.max_detections,
            **detector_options(arguments),
        )
        detector.limits = ImageLimits(arguments.max_pixels, arguments.accept_damage)
        detector.upright = arguments.orientation == "upright"
        report = detect(
            detector,
            arguments.images,
            arguments.out,
            score_threshold=arguments.score_threshold,
            draw=not arguments.no_draw,
            formats=arguments.format + ["csv"] * arguments.csv,
            workers=arguments.workers,
            keep_images=False,
            classes=arguments.classes,
            picture_scale=arguments.picture_scale,
            overwrite=arguments.overwrite,
            recursive=arguments.recursive,
            coco_images=arguments.coco_images,
            yolo_scores=arguments.yolo_scores,
        )
    show(*report.table(failures=False).split("\n"))  # each failure was printed when it happened
    return 1 if report.failed else 0
