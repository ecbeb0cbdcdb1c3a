"""Options that several verbs share."""

from __future__ import annotations

import argparse
from typing import Any, TypeAlias

from mdssd.cli import values
from mdssd.names import BACKENDS, DTYPES, ENGINES, INPUT_SIZES, ORIENTATIONS, RUNTIMES

Verbs: TypeAlias = "argparse._SubParsersAction[Any]"
Group: TypeAlias = argparse._ArgumentGroup
ON_OFF = argparse.BooleanOptionalAction
CHECKPOINT = "checkpoint: its .json or .safetensors file, or the folder of a training run"
DATA = (
    "folder, or file that describes it, with YOLO, COCO, VOC, LabelMe, CVAT, CSV, KITTI or Hugging "
    "Face annotations; the format is recognised (docs/formats.md)"
)
IMAGE_DIR = "folder of the images of a COCO JSON file, or of a folder with such files"
SCENES = "use N generated scenes instead of data, to try the command out"


def add_traceback(parser: argparse.ArgumentParser | Group) -> None:
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )


def add_data_rules(parser: argparse.ArgumentParser | Group) -> None:
    """Add the options that `open_data` reads beside the place of the data; absent if not given."""
    parser.add_argument(
        "--allow-faults",
        action="store_true",
        default=argparse.SUPPRESS,
        help="leave out images and annotations that cannot be used, and say how many (default: "
        "such a file is an error, and so are more than 5%% unusable boxes)",
    )
    parser.add_argument(
        "--max-pixels",
        type=values.count,
        default=argparse.SUPPRESS,
        metavar="N",
        help="refuse images of more than N pixels (default 100,000,000); with --tile, read TIFF "
        "files of more by windows",
    )
    parser.add_argument(
        "--orientation",
        choices=ORIENTATIONS,
        default=argparse.SUPPRESS,
        help="where EXIF turns an image, the boxes refer to the image turned upright or as stored "
        "(default auto: what the stated size tells, or the habit of the format)",
    )


def add_input_size(parser: argparse.ArgumentParser | Group, meaning: str) -> None:
    """Add the option that gives a model another input size."""
    parser.add_argument(
        "--input-size",
        type=values.input_size,
        metavar="N",
        help=f"{meaning}, in pixels: a multiple of {INPUT_SIZES.step} from {INPUT_SIZES[0]} to "
        f"{INPUT_SIZES[-1]}, or two of them as in 640x384, width x height (default: that in the "
        "model's name)",
    )


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that divide large images into tiles; all but --tile absent if not given."""
    tiles = parser.add_argument_group("tiles, for small objects in large images")
    tiles.add_argument(
        "--tile",
        type=values.tile,
        metavar="N",
        help="show the network tiles of N x N pixels one by one, or of width x height as in "
        "640x384; auto is the size of the network's input (default: the whole image, resized)",
    )
    tiles.add_argument(
        "--overlap",
        type=values.overlap,
        default=argparse.SUPPRESS,
        metavar="S",
        help="the part of a tile that the next one shows too, 0 to 0.9 (default 0.2)",
    )
    tiles.add_argument(
        "--tile-scale",
        type=values.tile_scale,
        default=argparse.SUPPRESS,
        metavar="S",
        help="enlarge the image by S before it is divided, up to 16 (default 1)",
    )
    tiles.add_argument(
        "--with-whole",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the whole image too, for objects larger than a tile",
    )


def add_machine_options(parser: argparse.ArgumentParser) -> Group:
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device",
        type=values.device,
        metavar="NAME",
        help="device to compute on: cpu, cuda, cuda:1, ... (default: cuda if there is a GPU, "
        "otherwise cpu)",
    )
    machine.add_argument(
        "--threads",
        type=values.threads,
        metavar="N",
        help="CPU threads of this process (default: PyTorch's own choice)",
    )
    machine.add_argument(
        "--backend",
        choices=BACKENDS,
        help="implementation of all operators (default: the fastest that can run)",
    )
    add_traceback(machine)
    return machine


def add_runtime_options(machine: Group) -> None:
    machine.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="eager",
        help="how to run the network: in PyTorch (eager, the default), with torch.compile, with "
        "OpenVINO on a CPU, or as CUDA graphs on a GPU",
    )
    machine.add_argument(
        "--dtype", choices=DTYPES, help="data type of the network (default float32)"
    )


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Add how a detector works: its batches, tiles, runtime and machine."""
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
        help="processes that load images (default: one fewer than the cores, at most 2 for a CPU "
        "and 8 for a GPU; 0 for a single batch)",
    )
    add_tile_options(parser)
    add_runtime_options(add_machine_options(parser))


def add_engine(parser: argparse.ArgumentParser, there: str = "") -> Group:
    """Add where a detector works; `there` says what differs on a cluster."""
    ray = parser.add_argument_group("detection on Ray (docs/cluster.md)")
    ray.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="detect in this process (local, the default), or in processes of a Ray cluster (ray)"
        + there,
    )
    ray.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="cluster to join, auto for that of this machine (default: start Ray on this machine, "
        "or join that of the environment variable RAY_ADDRESS)",
    )
    ray.add_argument(
        "--actors",
        type=values.count,
        metavar="N",
        help="most processes that detect (default: as many as the cluster has room for); each has "
        "--threads cores (default 1) and --workers more to read images (default 0)",
    )
    return ray


def add_augmentation_options(parser: argparse.ArgumentParser) -> Group:
    augmentation = parser.add_argument_group("augmentation")
    augmentation.add_argument(
        "--expand",
        type=values.expand,
        metavar="MAX",
        help="zoom out of some images, onto a canvas of up to MAX times their sides; 1 never does "
        "(default 1)",
    )
    augmentation.add_argument("--crop", action=ON_OFF, help="crop at random (default: on)")
    augmentation.add_argument(
        "--crop-min-scale",
        type=values.share,
        metavar="S",
        help="smallest side of a crop as a fraction of the image's, 0 to 1 (default 0.7)",
    )
    augmentation.add_argument(
        "--photometric",
        action=ON_OFF,
        help="change brightness, contrast, saturation and hue (default: on)",
    )
    augmentation.add_argument(
        "--mirror", action=ON_OFF, help="mirror half of the images (default: on)"
    )
    augmentation.add_argument(
        "--turn",
        action=ON_OFF,
        help="rotate by quarter turns, for aerial and microscope images (default: off)",
    )
    return augmentation
