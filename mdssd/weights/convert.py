"""Published SSDs into this project's checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mdssd.models.build import build
from mdssd.weights.checkpoint import save_checkpoint
from mdssd.weights.foreign_files import read_tensors
from mdssd.weights.published import Published, read_published

_VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()
# COCO's by their number, from 1; "-" where it has none.
_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,-,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,-,"
    "backpack,umbrella,-,-,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,-,wine glass,cup,fork,"
    "knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,"
    "couch,potted plant,bed,-,dining table,-,-,toilet,-,tv,laptop,mouse,remote,keyboard,cell phone,"
    "microwave,oven,toaster,sink,refrigerator,-,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
).split(",")


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    prior_scales: str | None = None,
) -> Published:
    """Write the checkpoint of a published SSD: the JSON `out` and the weights beside it.

    source: a file as of `load_pretrained`, of a whole SSD300 or SSD512.
    out: the .json to write; the suffix may be left out.
    classes: names of labels 1, 2 ...; None names those of VOC (21 classes with background) or COCO
        (81; 91 with the numbers it skips; the 201 of ssd.pytorch, which uses 81), and else
        "class 1", "class 2" ...
    prior_scales: "voc" or "coco", which the network was trained with, and the file does not say.
        None is what its codebase takes: "coco" for 81 classes, for any number in torchvision's and
        for any but 21 in ssd.pytorch's, otherwise "voc".

    The checkpoint's priors and mean are those of the source, so that its boxes are too. Raises
    ValueError (see `load_pretrained`), also for a file that holds a trunk alone.
    """
    name = os.fspath(source)
    found = read_published("convert", name, read_tensors("convert", name), prior_scales)
    if found.config is None:
        raise ValueError(
            f"convert: {name}: is a VGG16 alone, not a detector; train starts from it with --init"
        )
    model = build(found.config)
    model.load_state_dict(found.tensors)
    if classes is None:
        classes = _names(model.num_classes - 1, found.layout)
    save_checkpoint(
        json_path(out),
        model,
        classes=classes,
        mean=found.mean,
        extra={"source": Path(name).name, "layout": found.layout},
    )
    return found


def json_path(out: str | os.PathLike[str]) -> Path:
    """`out` with .json behind it, where that is not its suffix yet."""
    path = Path(out)
    return path if path.suffix == ".json" else path.with_name(f"{path.name}.json")


def _names(count: int, layout: str) -> list[str]:
    if count == len(_VOC):
        return _VOC
    if count == len(_COCO):
        return [f"unused {k}" if name == "-" else name for k, name in enumerate(_COCO, 1)]
    named = [name for name in _COCO if name != "-"]
    if count == 200 and layout == "ssd.pytorch":
        named += [f"unused {k}" for k in range(81, 201)]
    return named if count == len(named) else [f"class {k}" for k in range(1, count + 1)]
