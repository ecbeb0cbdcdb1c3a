"""Options of `mdssd data check`, `mdssd data show` and `mdssd data convert`."""

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
    add_tile_options,
    add_traceback,
)
from mdssd.names import AUTO_PRIORS, DATA_FORMATS, MODELS, PRIOR_SCALES

CHECK = """Count what a data set holds, compare its boxes with the priors of a model, read every
image and list each file that cannot be used. The exit status is 1 if training would refuse the
data: there is such a file, or more than 5% of the boxes cannot be used, or there is no split to
train on or no box to learn from; and if an image is in two splits that must not share one. With
--allow-faults the first two do not count."""

CHECK_EXAMPLES = (
    "mdssd data check mydata/",
    "mdssd data check train.json --out checked",
    "mdssd data check mydata/ --tile auto --overlap 0.2",
)
CONVERT = """Write a data set in another format, in a new folder. Nothing of the source is changed.
Every image is decoded, to find damaged ones, and its file is copied as it is. A line is printed for
each thing that was left out of the source or repaired, and for each thing that the new format
cannot hold. The folder's contents appear
when all of them are written."""

CONVERT_EXAMPLES = (
    "mdssd data convert mydata/ --to yolo --out mydata-yolo",
    "mdssd data convert mydata/ --to coco --split val --classes car,bus --out val-coco",
)
SHOW_EXAMPLES = (
    "mdssd data show mydata/ --out samples.png",
    "mdssd data show mydata/ --tile auto --out tiles.png",
)


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "data",
        help="inspect data: check it, show samples, convert it",
        description="Look at a data set before training, or write it in another format.",
        examples=(CHECK_EXAMPLES[0], SHOW_EXAMPLES[0], CONVERT_EXAMPLES[0]),
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_check(commands)
    _add_show(commands)
    _add_convert(commands)


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
    add_tile_options(parser)
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
        description="Draw samples as the network sees them in training, with their boxes. With "
        "--tile, draw whole images and their tiles, and mark the objects that every tile cuts.",
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
        help="number of samples, or of images with --tile (default 16)",
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
    add_tile_options(parser)
    add_augmentation_options(parser)
    add_traceback(parser)
    parser.set_defaults(command="data_show")


def _add_convert(commands: Verbs) -> None:
    parser = commands.add_parser(
        "convert",
        help="write the data in another format",
        description=CONVERT,
        usage="mdssd data convert DIR|FILE --to FORMAT --out DIR [options]",
        examples=CONVERT_EXAMPLES,
        data="DIR|FILE",
    )
    _add_data_source(parser)
    parser.add_argument(
        "--to", choices=DATA_FORMATS, required=True, help=f"format: {', '.join(DATA_FORMATS)}"
    )
    parser.add_argument(
        "--out",
        type=values.folder,
        metavar="DIR",
        required=True,
        help="folder to write to; it must not exist, or be empty",
    )
    parser.add_argument(
        "--classes",
        type=values.names,
        metavar="A,B,C",
        help="write only these classes, in this order (default: those of the data)",
    )
    parser.add_argument(
        "--link",
        action="store_true",
        help="make symbolic links to the image files instead of copies; they break if the source "
        "is moved",
    )
    add_traceback(parser)
    parser.set_defaults(command="data_convert")


def _add_data_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", metavar="DIR|FILE", help=DATA)
    parser.add_argument("--split", help="split of the data (default: all)")
    parser.add_argument("--image-dir", metavar="DIR", help=IMAGE_DIR)
    parser.add_argument("--scenes", type=values.count, metavar="N", help=SCENES)
    add_data_rules(parser)
