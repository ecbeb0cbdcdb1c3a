"""Options of `mdssd train`."""

from __future__ import annotations

import argparse

from mdssd.cli import values
from mdssd.cli.options.matching import add_matching_options
from mdssd.cli.options.shared import (
    DATA,
    IMAGE_DIR,
    ON_OFF,
    SCENES,
    Verbs,
    add_augmentation_options,
    add_data_rules,
    add_input_size,
    add_machine_options,
)
from mdssd.names import (
    AMP,
    AUTO_PRIORS,
    FREEZABLE,
    IGNORABLE,
    MODELS,
    NORMALIZERS,
    PRIOR_SCALES,
    SCHEDULES,
    TRUNKS,
)

# The length of a recipe that states none: the paper's 120,000 iterations of 32 images are 232
# epochs of VOC 07+12's 16,551 images (MDSSD paper, section IV-A).
EPOCHS = 232
# The warm-up of a recipe that states none, if training starts without loaded weights.
WARMUP_FROM_SCRATCH = 100

DESCRIPTION = """Train a detector. Without further options: MDSSD300 with a quarter of its channels,
from scratch, for 30 minutes, with priors that fit the boxes of the data; --print-recipe shows all
settings, and the defaults below are these. With --recipe the settings are a paper's, and what the
recipe leaves open has the defaults of the Python class Recipe. The folder --out receives last.json
with its weights, loss.csv and loss.png and, with --eval-split, the best checkpoint as best.json.
Ctrl-C and SIGTERM save before they stop; after a crash the last checkpoint remains, which is at
most about five minutes old. --resume continues the run from it. On several GPUs: torchrun
--nproc-per-node N -m mdssd train ..."""

EXAMPLES = (
    "mdssd train --data mydata/ --out runs/mine",
    "mdssd train --data train.json --eval-data val.json --epochs 100 --out runs/mine",
    "mdssd train --resume --out runs/mine",
)


def add_to(verbs: Verbs) -> None:
    # An option that was not typed is absent from the result: --resume must be able to tell it
    # from one that was typed with its default value.
    parser = verbs.add_parser(
        "train",
        help="train a model",
        argument_default=argparse.SUPPRESS,
        description=DESCRIPTION,
        usage="mdssd train --data DIR|FILE [options]",
        examples=EXAMPLES,
        data="--data DIR|FILE",
    )
    _add_common_options(parser.add_argument_group("most used"))
    data = parser.add_argument_group("data")
    _add_data_options(data)
    add_data_rules(data)
    _add_model_options(parser.add_argument_group("model"))
    _add_optimiser_options(parser.add_argument_group("optimiser"))
    _add_ignore_option(add_augmentation_options(parser))
    add_matching_options(parser)
    _add_window_options(parser.add_argument_group("windows, for small objects in large images"))
    _add_run_options(parser.add_argument_group("run"))
    _add_speed_options(parser.add_argument_group("speed and memory"))
    add_machine_options(parser)
    parser.set_defaults(command="train")


def _add_common_options(common: argparse._ArgumentGroup) -> None:
    common.add_argument("--data", metavar="DIR|FILE", help=DATA)
    common.add_argument("--split", help="split of the data (default: trainval or train)")
    common.add_argument(
        "--eval-split",
        metavar="SPLIT",
        help="evaluate on this split of the data during training, and keep the "
        "checkpoint with the best VOC07 mAP (COCO AP for a COCO JSON file)",
    )
    common.add_argument(
        "--out",
        type=values.folder,
        metavar="DIR",
        help="folder to write the run to (default runs/train)",
    )
    length = common.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs",
        type=values.count,
        metavar="N",
        help="train for N passes over the data instead of 30 minutes",
    )
    length.add_argument(
        "--iterations",
        type=values.count,
        metavar="N",
        help="train for N batches instead of 30 minutes",
    )
    length.add_argument(
        "--minutes", type=values.above_zero, metavar="M", help="train for M minutes (default 30)"
    )
    common.add_argument("--resume", action="store_true", help="continue the run in --out")
    common.add_argument(
        "--init",
        metavar="FILE",
        help="start from this file: ImageNet weights of the trunk (timm: those that timm downloads "
        "for its networks), a published SSD (see `mdssd convert --help`) or a checkpoint. By "
        "default the model has the checkpoint's options, and for other files its paper's",
    )
    common.add_argument(
        "--recipe",
        metavar="NAME",
        help="settings of a paper (a model's name, then -voc or -coco, for DSSD also -stage1 or "
        "-stage2) or of a TOML file; other options override them",
    )


def _add_data_options(data: argparse._ArgumentGroup) -> None:
    data.add_argument("--image-dir", metavar="DIR", help=IMAGE_DIR)
    data.add_argument(
        "--classes",
        type=values.names,
        metavar="A,B",
        help="class names in label order (default: all of the data)",
    )
    data.add_argument("--scenes", type=values.count, metavar="N", help=SCENES)
    data.add_argument(
        "--eval-data", metavar="DIR|FILE", help="data to evaluate on (default: that of --data)"
    )
    data.add_argument(
        "--eval-image-dir",
        metavar="DIR",
        help="folder of the images of --eval-data, if that is a COCO JSON file",
    )
    data.add_argument(
        "--eval-every",
        type=values.count,
        metavar="N",
        help="epochs from one evaluation to the next (default 10)",
    )


def _add_model_options(model: argparse._ArgumentGroup) -> None:
    model.add_argument("--model", choices=MODELS, help="model to train (default mdssd300)")
    add_input_size(model, "side of the network's input")
    model.add_argument(
        "--width",
        type=values.width,
        metavar="F",
        help="factor for the channels of every layer (default 0.25)",
    )
    model.add_argument(
        "--trunk",
        metavar="NAME",
        help=f"network under the detector: {', '.join(TRUNKS)}, or a network of the package timm "
        "(default vgg16; dssd321, dssd513, ssd321 and ssd513 have resnet101). The width does not "
        "change efficientnet_lite0 and those of timm",
    )
    model.add_argument(
        "--light",
        action=ON_OFF,
        help="build the layers above the trunk from depthwise and 1x1 convolutions, for processors "
        "without a GPU (mdssd300, mdssd512, ssd300, ssd512; default: off)",
    )
    model.add_argument(
        "--batch-norm",
        action=ON_OFF,
        help="use batch normalisation, which training from scratch needs (default: on)",
    )
    model.add_argument(
        "--prior-scales",
        type=values.one_of((*PRIOR_SCALES, AUTO_PRIORS)),
        metavar="NAME",
        help=f"set of prior sizes: {', '.join(PRIOR_SCALES)}, or {AUTO_PRIORS} (the default), "
        "which fits sizes and shapes to the boxes of the data",
    )
    model.add_argument("--clip-priors", action=ON_OFF, help="clip priors to the image")
    model.add_argument(
        "--truncate-sizes",
        action=ON_OFF,
        help="cut prior sizes down to whole pixels, as Caffe's SSD512 does",
    )


def _add_window_options(windows: argparse._ArgumentGroup) -> None:
    windows.add_argument(
        "--tile",
        type=values.or_none(values.tile),
        metavar="N",
        help="train on windows of N x N pixels of the images, or of width x height as in 640x384; "
        "auto is the size of the network's input (default: none, the whole image, resized)",
    )
    windows.add_argument(
        "--tile-scale",
        type=values.tile_scale,
        metavar="S",
        help="enlarge the image by S before windows are drawn, up to 16 (default 1)",
    )
    windows.add_argument(
        "--tile-jitter",
        type=values.tile_jitter,
        metavar="F",
        help="the sides of a window are up to F times shorter or longer, 1 to 4 (default 1.33)",
    )
    windows.add_argument(
        "--background-share",
        type=values.fraction,
        metavar="S",
        help="share of windows drawn anywhere, 0 to 1; the others contain the centre of an object "
        "(default 0.25)",
    )
    windows.add_argument(
        "--min-visible",
        type=values.share,
        metavar="S",
        help="leave out boxes of which a window shows less than this share; the rest of such an "
        "object counts as background, unless --ignore has cut (default 0.5)",
    )


def _add_ignore_option(augmentation: argparse._ArgumentGroup) -> None:
    augmentation.add_argument(
        "--ignore",
        type=values.some_or_none_of(IGNORABLE),
        metavar="KIND",
        help="boxes that count neither as objects nor as background, by kind: cut (of which a "
        "window or a crop shows too little), crowd, difficult, or several as in cut,crowd (default "
        "none: what is seen of the first two is background, and difficult ones are objects)",
    )


def _add_run_options(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--print-recipe",
        action="store_true",
        help="print all settings as a TOML file for --recipe, and exit",
    )
    run.add_argument(
        "--seed",
        type=values.number,
        metavar="N",
        help="seed of the weights, the order of the images and the augmentation (default 0)",
    )
    run.add_argument(
        "--workers",
        type=values.workers,
        metavar="N",
        help="processes that load images (default: one fewer than the cores, at most 2)",
    )
    run.add_argument(
        "--log-every",
        type=values.count,
        metavar="N",
        help="iterations per line of loss.csv (default 10)",
    )
    run.add_argument(
        "--save-every", type=values.count, metavar="N", help="epochs per checkpoint (default 1)"
    )
    run.add_argument(
        "--save-iterations",
        type=values.or_none(values.count),
        metavar="N",
        help="also save a checkpoint every N iterations (default: none, but every five minutes)",
    )
    run.add_argument(
        "--keep",
        type=values.count,
        metavar="K",
        help="keep the last K checkpoints, as step-*.json (default 1)",
    )
    run.add_argument(
        "--no-check-images",
        action="store_true",
        help="skip the check before training that every image can be read",
    )
    run.add_argument(
        "--freeze",
        type=values.names,
        metavar="PART",
        help="do not train these parts: base (the trunk and the extra layers), batch-norm, or "
        f"both as {','.join(FREEZABLE)}",
    )


def _add_optimiser_options(sgd: argparse._ArgumentGroup) -> None:
    sgd.add_argument(
        "--batch-size",
        type=values.count,
        metavar="N",
        help="images per iteration, over all processes (default 4)",
    )
    sgd.add_argument(
        "--lr",
        type=values.above_zero,
        metavar="R",
        help="learning rate for the batch size (default 0.01, with --light 0.1, without batch "
        "normalisation 0.001)",
    )
    sgd.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="multiply the learning rate by 0.1 after 1/2 and 5/6 of the run (mdssd), after 2/3 "
        "and 5/6 (ssd) or at --drops (steps), or lower it along a cosine (default cosine)",
    )
    sgd.add_argument(
        "--drops",
        type=values.drops,
        metavar="A,B",
        help="multiply the learning rate by 0.1 after each of these iterations, or fractions of "
        "the run",
    )
    sgd.add_argument(
        "--scale-lr",
        action="store_true",
        help="scale with --batch-size: for k times the recipe's batch size (4 without a recipe), "
        "use k times the learning rate and 1/k of the recipe's iterations",
    )
    sgd.add_argument(
        "--warmup",
        type=values.number,
        metavar="N",
        help="iterations over which the learning rate rises at the start (default 50)",
    )
    sgd.add_argument(
        "--momentum", type=values.below_one, metavar="M", help="momentum of SGD (default 0.9)"
    )
    sgd.add_argument(
        "--weight-decay",
        type=values.from_zero,
        metavar="D",
        help="weight decay of all weights except biases and those of batch normalisation "
        "(default 0.0005)",
    )
    sgd.add_argument(
        "--bias-lr-factor",
        type=values.above_zero,
        metavar="F",
        help="learning rate of biases as a multiple of --lr (default 2)",
    )
    sgd.add_argument(
        "--bias-weight-decay",
        type=values.from_zero,
        metavar="D",
        help="weight decay of biases (default 0)",
    )
    sgd.add_argument(
        "--clip-gradient",
        type=values.or_none(values.above_zero),
        metavar="NORM",
        help="scale a gradient with a larger norm down to NORM; none sets no limit (default 10)",
    )
    sgd.add_argument(
        "--ema",
        type=values.or_none(values.below_one),
        metavar="DECAY",
        help="evaluate and save a moving average of the weights with this decay per iteration, "
        "or none (default 0.99)",
    )


def _add_speed_options(speed: argparse._ArgumentGroup) -> None:
    speed.add_argument(
        "--amp",
        type=values.or_none(str),
        choices=(None, *AMP),
        metavar="TYPE",
        help="run the network in bf16 or fp16 (default: none, float32)",
    )
    speed.add_argument(
        "--compile",
        action=ON_OFF,
        help="compile the network with torch.compile; the first iterations take minutes",
    )
    speed.add_argument(
        "--accumulate",
        type=values.count,
        metavar="K",
        help="run a batch through the network in K parts, which needs less memory (default 1)",
    )
    speed.add_argument(
        "--normalizer",
        choices=NORMALIZERS,
        help="divide the loss by the number of positive priors in the whole batch (global, the "
        "default) or in each process's share of it (local, as Caffe does)",
    )
    speed.add_argument(
        "--sync-batch-norm",
        action=ON_OFF,
        help="share batch normalisation's statistics among all processes; GPUs only",
    )
