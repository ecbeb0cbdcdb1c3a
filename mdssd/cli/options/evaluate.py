"""Options of `mdssd eval`."""

from __future__ import annotations

from mdssd.cli import values
from mdssd.cli.options.shared import (
    CHECKPOINT,
    DATA,
    IMAGE_DIR,
    SCENES,
    Verbs,
    add_data_rules,
    add_detector_options,
    add_engine,
)
from mdssd.names import SUBMISSIONS

DESCRIPTION = """Detect in all images of a data set and compare with its annotations: average
precision by VOC's and COCO's rules, for each class and for sizes of objects, and the kinds of
errors. --out writes evaluation.json and report.html, a page with curves and pictures of the
mistakes."""
EXAMPLES = (
    "mdssd eval runs/mine --data mydata/ --split test --out runs/mine/test",
    "mdssd eval runs/mine --data val.json --image-dir images/",
)


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "eval",
        help="measure a checkpoint on a data set",
        description=DESCRIPTION,
        usage="mdssd eval CHECKPOINT --data DIR|FILE [options]",
        examples=EXAMPLES,
        data="--data DIR|FILE",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument("--data", metavar="DIR|FILE", help=DATA)
    parser.add_argument("--split", help="split of the data (default: test, val or valid)")
    parser.add_argument("--image-dir", metavar="DIR", help=IMAGE_DIR)
    parser.add_argument("--scenes", type=values.count, metavar="N", help=SCENES)
    add_data_rules(parser)
    parser.add_argument(
        "--out",
        type=values.folder,
        metavar="DIR",
        help="folder to write evaluation.json and report.html to (default: none)",
    )
    parser.add_argument(
        "--submit",
        choices=SUBMISSIONS,
        help="also write a submission to the evaluation server of VOC or COCO into --out; images "
        "without annotations are accepted, but then nothing is measured",
    )
    parser.add_argument(
        "--similar",
        type=values.names,
        action="append",
        metavar="A,B",
        help="classes that look alike, for the analysis of false positives; may be repeated "
        "(default: VOC's groups for VOC's classes, else none)",
    )
    parser.add_argument(
        "--score-threshold",
        type=values.fraction,
        default=0.5,
        metavar="S",
        help="minimum score, 0 to 1, of a detection in the confusion matrix and in the report's "
        "pictures (default 0.5)",
    )
    add_engine(parser)
    add_detector_options(parser)
    parser.set_defaults(command="evaluate")
