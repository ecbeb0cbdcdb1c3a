"""Options of `mdssd export`."""

from __future__ import annotations

import argparse
from typing import Any

from mdssd.cli import values
from mdssd.cli.options.shared import CHECKPOINT, Verbs, add_traceback
from mdssd.names import EXPORTS

DESCRIPTION = """Write a checkpoint as one file that other programs run without mdssd: the network,
the decoding of its boxes and the suppression of duplicates. docs/export.md describes inputs and
outputs."""
EXAMPLES = (
    "mdssd export runs/mine --out detector.onnx",
    "mdssd export runs/mine --out detector.pt2",
    "mdssd export runs/mine --out detector.pt2 --format aoti",
)


class _Given(argparse.Action):
    """Keep that the option was given, since otherwise the ending of --out decides."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: Any = None) -> None:
        namespace.format, namespace.format_given = value, True


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "export",
        help="write a detector for other programs",
        description=DESCRIPTION,
        usage="mdssd export CHECKPOINT --out FILE [options]",
        examples=EXAMPLES,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument(
        "--out", type=values.new_file, required=True, metavar="FILE", help="file to write"
    )
    parser.add_argument(
        "--format",
        choices=EXPORTS,
        default="onnx",
        action=_Given,
        help="ONNX, a program of torch.export (pt2), or a library compiled by AOTInductor (aoti; "
        "default: pt2 if FILE ends with .pt2, otherwise onnx)",
    )
    parser.add_argument(
        "--score-threshold",
        type=values.fraction,
        default=0.01,
        metavar="S",
        help="minimum score of an object, 0 to 1 (default 0.01)",
    )
    add_traceback(parser)
    parser.set_defaults(command="export", format_given=False)
