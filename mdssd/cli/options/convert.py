"""Options of `mdssd convert`."""

from __future__ import annotations

from mdssd.cli import values
from mdssd.cli.options.shared import Verbs, add_traceback
from mdssd.names import SSD_PRIOR_SCALES


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser("convert", help="make a checkpoint of a published SSD")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="weights file of torchvision, ssd.pytorch, lufficc/SSD or Caffe",
    )
    parser.add_argument("--out", required=True, metavar="NAME", help="checkpoint to write, a .json")
    parser.add_argument(
        "--classes",
        type=values.names,
        metavar="A,B",
        help="class names of labels 1, 2, ... (default: VOC's or COCO's, by their number)",
    )
    parser.add_argument(
        "--prior-scales",
        choices=SSD_PRIOR_SCALES,
        help="prior sizes the network was trained with (default: those its code uses: coco for "
        "torchvision, for 81 classes, and for ssd.pytorch with other than 21; else voc)",
    )
    add_traceback(parser)
    parser.set_defaults(command="convert")
