"""Options of `mdssd detect`."""

from __future__ import annotations

from mdssd.cli import values
from mdssd.cli.options.shared import (
    CHECKPOINT,
    Verbs,
    add_machine_options,
    add_runtime_options,
)

DESCRIPTION = """Find the objects in images. The folder --out receives detections.json with their
boxes in pixels, and a copy of each image with the boxes drawn. Images that cannot be read are
named and left out; the exit status is then 1."""
EXAMPLES = (
    "mdssd detect runs/mine photos/ --out found",
    "mdssd detect runs/mine 'photos/*.jpg' --score-threshold 0.3 --csv --no-draw",
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
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image, folder or glob pattern")
    parser.add_argument(
        "--out",
        type=values.folder,
        default="detections",
        metavar="DIR",
        help="folder to write boxes and pictures to (default detections)",
    )
    parser.add_argument(
        "--score-threshold",
        type=values.fraction,
        default=0.5,
        metavar="S",
        help="minimum score of an object, 0 to 1 (default 0.5)",
    )
    parser.add_argument(
        "--csv", action="store_true", help="write detections.csv as well as detections.json"
    )
    parser.add_argument("--no-draw", action="store_true", help="do not draw pictures")
    parser.add_argument(
        "--batch-size",
        type=values.count,
        default=8,
        metavar="N",
        help="images per run of the network (default 8)",
    )
    parser.add_argument(
        "--workers",
        type=values.workers,
        metavar="N",
        help="processes that load images (default: one fewer than the cores, at most 2 for a CPU "
        "and 8 for a GPU; 0 for a single batch)",
    )
    add_runtime_options(add_machine_options(parser))
    parser.set_defaults(command="detect")
