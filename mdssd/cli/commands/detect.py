"""`mdssd detect`."""

from __future__ import annotations

import argparse

from mdssd import bulk
from mdssd.cli.commands.shared import check_local, detector_options, machine, pool_of, show
from mdssd.data.images import ImageLimits
from mdssd.detection.detector import Detector
from mdssd.detection.files import detect
from mdssd.system.memory import keep_memory


def run(arguments: argparse.Namespace) -> int:
    if arguments.engine == "ray":
        return _on_ray(arguments)
    check_local(vars(arguments), ("resume", "ray_address", "actors", "image_column", "shard"))
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


def _on_ray(arguments: argparse.Namespace) -> int:
    """Run the command on a Ray cluster."""
    local = {
        "csv": arguments.csv,
        "format": arguments.format != ["json"],
        "coco-images": arguments.coco_images,
        "yolo-scores": arguments.yolo_scores,
        "picture-scale": arguments.picture_scale != 1,
        "overwrite": arguments.overwrite,
    }
    for name in (name for name, given in local.items() if given):
        raise ValueError(f"--{name}: is for --engine local; on Ray, Parquet files are written")
    report = bulk.detect(
        arguments.checkpoint,
        arguments.images,
        arguments.out,
        pool=pool_of(arguments),
        score_threshold=arguments.score_threshold,
        classes=arguments.classes,
        shard_images=arguments.shard or 256,
        resume=arguments.resume,
        recursive=arguments.recursive,
        image_column=arguments.image_column,
        limits=ImageLimits(arguments.max_pixels, arguments.accept_damage),
        upright=arguments.orientation == "upright",
        nms_threshold=arguments.nms_threshold,
        max_detections=arguments.max_detections,
        **detector_options(arguments),
    )
    show(*report.table().split("\n"))
    return 1 if report.failed else 0
