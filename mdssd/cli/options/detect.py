"""Options of `mdssd detect`."""

from __future__ import annotations

import argparse

from mdssd.cli import values
from mdssd.cli.options.shared import (
    CHECKPOINT,
    Verbs,
    add_detector_options,
    add_engine,
)
from mdssd.names import ORIENTATIONS, TABLES

DESCRIPTION = """Find the objects in images. The folder --out receives detections.json with their
boxes in pixels, or other formats, and a copy of each image with the boxes drawn. Images that cannot
be read are named and left out; the exit status is then 1."""
EXAMPLES = (
    "mdssd detect runs/mine photos/ --out found",
    "mdssd detect runs/mine 'photos/*.jpg' --score-threshold 0.3 --csv --no-draw",
    "mdssd detect runs/mine photos/ --recursive --format yolo,coco",
    "mdssd detect runs/mine @files.txt --format jsonl --no-draw",
    "mdssd detect runs/mine s3://bucket/photos/ --engine ray --out s3://bucket/found",
)


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "detect",
        help="find objects in images",
        description=DESCRIPTION,
        usage="mdssd detect CHECKPOINT IMAGE [IMAGE ...] [options]",
        examples=EXAMPLES,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image, folder, glob pattern, @FILE for a list of images (one per line, relative to "
        "the folder of FILE), or - for standard input: an image, or such a list",
    )
    parser.add_argument(
        "--recursive",
        action="store_true",
        help="search the folders below a folder too; DIR gets the same folders",
    )
    parser.add_argument(
        "--out",
        type=values.folder,
        default="detections",
        metavar="DIR",
        help="folder to write boxes and pictures to (default detections)",
    )
    _add_choice(parser)
    _add_formats(parser)
    parser.add_argument("--no-draw", action="store_true", help="do not draw pictures")
    parser.add_argument(
        "--picture-scale",
        type=values.picture_scale,
        default=1.0,
        metavar="S",
        help="size of the pictures relative to the images, up to 100 (default 1)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files in DIR that mdssd detect has not written (default: refuse)",
    )
    _add_limits(parser)
    _add_ray(parser)
    add_detector_options(parser)
    parser.set_defaults(command="detect")


def _add_formats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        type=values.some_of(TABLES),
        default=["json"],
        metavar="NAMES",
        help=f"what to write, separated by commas: {', '.join(TABLES)} (default json)",
    )
    parser.add_argument(
        "--csv", action="store_true", help="write detections.csv as well; the same as csv above"
    )
    parser.add_argument(
        "--coco-images",
        metavar="FILE",
        help="with --format coco: a COCO file whose numbers of images (found by their names) and "
        "of classes are written (default: numbers from 1, which coco_images.json lists)",
    )
    parser.add_argument(
        "--yolo-scores",
        action="store_true",
        help="with --format yolo: end each line with the score, which most tools refuse in labels",
    )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--score-threshold",
        type=values.fraction,
        default=0.5,
        metavar="S",
        help="minimum score of an object, 0 to 1 (default 0.5)",
    )
    parser.add_argument(
        "--nms-threshold",
        type=values.fraction,
        default=0.45,
        metavar="T",
        help="of two boxes of a class whose IoU is above T, only the better is kept (default 0.45)",
    )
    parser.add_argument(
        "--max-detections",
        type=values.detections,
        default=200,
        metavar="N",
        help="most objects per image (default 200)",
    )
    parser.add_argument(
        "--classes",
        type=values.names,
        metavar="NAMES",
        help="write and draw only these classes, separated by commas (default: all)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-pixels",
        type=values.count,
        default=100_000_000,
        metavar="N",
        help="refuse images of more than N pixels (default 100,000,000)",
    )
    parser.add_argument(
        "--accept-damage",
        action="store_true",
        help="detect in JPEG files of which a part is missing or damaged (default: refuse them)",
    )
    parser.add_argument(
        "--orientation",
        choices=ORIENTATIONS[1:],
        default=ORIENTATIONS[1],
        help="take images turned upright as their EXIF data say (default), or as they are stored",
    )


def _add_ray(parser: argparse.ArgumentParser) -> None:
    ray = add_engine(
        parser,
        ", which write Parquet files and no pictures; IMAGE and DIR can then be addresses such as "
        "s3://bucket/photos/, and IMAGE a Parquet file with a column of images, or a tar file of "
        "images such as 'shards-{0000..0099}.tar'",
    )
    ray.add_argument(
        "--resume",
        action="store_true",
        help="continue the job in DIR, or begin it if there is none",
    )
    ray.add_argument(
        "--shard",
        type=values.count,
        metavar="N",
        help="images that a process takes at a time, whose results are a file (default 256)",
    )
    ray.add_argument(
        "--image-column",
        metavar="NAME",
        help="column of a Parquet file that has the bytes of the images (default: the only one "
        "with bytes)",
    )
