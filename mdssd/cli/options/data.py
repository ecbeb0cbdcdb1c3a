"""Options of `mdssd data check` and `mdssd data show`."""

from __future__ import annotations

import argparse

from mdssd.cli import values
from mdssd.cli.options.shared import (
    DATA,
    IMAGE_DIR,
    SCENES,
    Verbs,
    add_augmentation_options,
    add_data_rules,
    add_input_size,
    add_traceback,
)
from mdssd.names import AUTO_PRIORS, MODELS, PRIOR_SCALES

CHECK = """Count what a data set holds, compare its boxes with the priors of a model, read every
image and list each file that cannot be used. The exit status is 1 if training would refuse the
data: there is such a file, or more than 5% of the boxes cannot be used, or there is no box to learn
from; and if an image is in two splits that must not share one. With --allow-faults only the last
counts."""

CHECK_EXAMPLES = ("mdssd data check mydata/", "mdssd data check train.json --out checked")
SHOW_EXAMPLES = ("mdssd data show mydata/ --out samples.png",)


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "data",
        help="inspect data: check it, show samples",
        description="Look at a data set before training.",
        examples=(CHECK_EXAMPLES[0], SHOW_EXAMPLES[0]),
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_check(commands)
    _add_show(commands)


def _add_check(commands: Verbs) -> None:
    parser = commands.add_parser(
        "check",
        help="count, compare with the priors, find faults",
        description=CHECK,
        usage="mdssd data check DIR|FILE [options]",
        examples=CHECK_EXAMPLES,
        data="DIR|FILE",
    )
    _add_data_source(parser)
    parser.add_argument(
        "--out",
        type=values.folder,
        metavar="DIR",
        help="folder to write check.json and the plots to (default: none)",
    )
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="mdssd300",
        help="model whose priors are compared (default mdssd300)",
    )
    add_input_size(parser, "side of the model's input")
    parser.add_argument(
        "--prior-scales",
        type=values.one_of((*PRIOR_SCALES, AUTO_PRIORS)),
        metavar="NAME",
        help=f"set of prior sizes: {', '.join(PRIOR_SCALES)}, or {AUTO_PRIORS} (the default), "
        "those that `mdssd train` would fit to the boxes",
    )
    parser.add_argument(
        "--fit-priors",
        action="store_true",
        help="fit priors to the boxes, and show by size which boxes the named sets and these reach",
    )
    parser.add_argument("--clip-priors", action="store_true", help="clip priors to the image")
    parser.add_argument(
        "--truncate-sizes",
        action="store_true",
        help="cut prior sizes down to whole pixels, as Caffe's SSD512 does",
    )
    parser.add_argument(
        "--tiny",
        type=values.from_zero,
        default=4.0,
        metavar="PX",
        help="list boxes with a side of less than PX pixels in the network's input (default 4)",
    )
    parser.add_argument(
        "--workers",
        type=values.threads,
        metavar="N",
        help="threads that read images (default: one per core)",
    )
    add_traceback(parser)
    parser.set_defaults(command="data_check")


def _add_show(commands: Verbs) -> None:
    # An option that was not typed is absent from the result; Augmentation then has its default.
    parser = commands.add_parser(
        "show",
        help="draw augmented samples",
        usage="mdssd data show DIR|FILE --out FILE [options]",
        examples=SHOW_EXAMPLES,
        data="DIR|FILE",
        argument_default=argparse.SUPPRESS,
        description="Draw samples as the network sees them in training, with their boxes.",
    )
    _add_data_source(parser)
    parser.add_argument(
        "--out",
        type=values.new_file,
        metavar="FILE",
        required=True,
        help="picture to write, a .png",
    )
    parser.add_argument(
        "--count",
        type=values.whole(1, 400),
        default=16,
        metavar="N",
        help="number of samples (default 16)",
    )
    parser.add_argument(
        "--seed",
        type=values.number,
        default=0,
        metavar="N",
        help="seed of the choice and the augmentation of the samples (default 0)",
    )
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="mdssd300",
        help="model whose input size the samples get (default mdssd300)",
    )
    add_input_size(parser, "side of the samples")
    parser.add_argument(
        "--no-augment", action="store_true", help="only resize the samples, as in evaluation"
    )
    add_augmentation_options(parser)
    add_traceback(parser)
    parser.set_defaults(command="data_show")


def _add_data_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", metavar="DIR|FILE", help=DATA)
    parser.add_argument("--split", help="split of the data (default: all)")
    parser.add_argument("--image-dir", metavar="DIR", help=IMAGE_DIR)
    parser.add_argument("--scenes", type=values.count, metavar="N", help=SCENES)
    add_data_rules(parser)
