"""Options of `mdssd quantize`."""

from __future__ import annotations

from mdssd.cli import values
from mdssd.cli.options.shared import (
    CHECKPOINT,
    DATA,
    IMAGE_DIR,
    SCENES,
    Verbs,
    add_data_rules,
    add_tile_options,
    add_traceback,
)

DESCRIPTION = """Write a checkpoint whose network computes in int8, which is faster on a CPU. The
ranges of the numbers come from training images. The accuracy is measured before and after on
annotated images; layers that cost too much of it stay in float32. Other commands take the result
like any checkpoint: detect, eval, and export to ONNX. docs/int8.md shows what it brings. This
needs the packages of the extra int8."""
EXAMPLES = (
    "mdssd quantize runs/mine --data mydata/ --out mine-int8",
    "mdssd quantize runs/mine --data train.json --eval-data val.json --out mine-int8",
)


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "quantize",
        help="make an int8 checkpoint for a CPU",
        description=DESCRIPTION,
        usage="mdssd quantize CHECKPOINT --data DIR|FILE --out NAME [options]",
        examples=EXAMPLES,
        data="--data DIR|FILE",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument("--data", metavar="DIR|FILE", help=DATA)
    parser.add_argument(
        "--out",
        type=values.new_file,
        required=True,
        metavar="NAME",
        help="checkpoint to write, NAME.json with its network beside it; it must not exist",
    )
    parser.add_argument(
        "--max-drop",
        type=values.fraction,
        default=0.005,
        metavar="D",
        help="the most COCO AP that may be lost, 0 to 1 (default 0.005)",
    )
    parser.add_argument("--split", help="split to calibrate with (default: trainval or train)")
    parser.add_argument(
        "--eval-split",
        metavar="SPLIT",
        help="split to measure the accuracy on (default: test, val or valid)",
    )
    parser.add_argument(
        "--eval-data", metavar="DIR|FILE", help="data to measure on (default: that of --data)"
    )
    parser.add_argument("--image-dir", metavar="DIR", help=IMAGE_DIR)
    parser.add_argument(
        "--eval-image-dir",
        metavar="DIR",
        help="folder of the images of --eval-data, if that is a COCO JSON file",
    )
    parser.add_argument("--scenes", type=values.count, metavar="N", help=SCENES)
    parser.add_argument(
        "--images",
        type=values.count,
        default=300,
        metavar="N",
        help="images, or tiles, to calibrate with (default 300)",
    )
    add_data_rules(parser)
    parser.add_argument(
        "--batch-size",
        type=values.count,
        default=8,
        metavar="N",
        help="images, or tiles, per run of the network (default 8)",
    )
    parser.add_argument(
        "--workers",
        type=values.workers,
        metavar="N",
        help="processes that load images (default: one fewer than the cores, at most 2; 0 for a "
        "single batch)",
    )
    add_tile_options(parser)
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--threads",
        type=values.threads,
        metavar="N",
        help="CPU threads of this process (default: PyTorch's own choice)",
    )
    add_traceback(machine)
    parser.set_defaults(command="quantize")
