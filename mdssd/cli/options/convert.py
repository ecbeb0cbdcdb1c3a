"""Options of `mdssd convert`."""

from __future__ import annotations

from mdssd.cli import values
from mdssd.cli.options.shared import Verbs, add_traceback
from mdssd.names import SSD_PRIOR_SCALES

DESCRIPTION = """Turn the weights of an SSD that another project published into a checkpoint for
mdssd detect, eval, export and train --init. The file decides which project it is from, and no code
in it is executed."""
EXAMPLES = (
    "mdssd convert ssd300_mAP_77.43_v2.pth --out ssd300-voc.json",
    "mdssd convert VGG_coco_SSD_512x512_iter_360000.caffemodel --out ssd512-coco.json",
)


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "convert",
        help="make a checkpoint of a published SSD",
        description=DESCRIPTION,
        usage="mdssd convert SOURCE --out NAME [options]",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="weights file of torchvision, ssd.pytorch, lufficc/SSD or Caffe",
    )
    parser.add_argument(
        "--out",
        type=values.new_file,
        required=True,
        metavar="NAME",
        help="checkpoint to write, a .json; the weights go beside it",
    )
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
