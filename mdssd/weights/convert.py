"""Convert published SSDs to this project's checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mdssd.models.build import build
from mdssd.weights.checkpoint import save_checkpoint
from mdssd.weights.checkpoint_json import find_checkpoint, read_meta
from mdssd.weights.class_names import usual_names
from mdssd.weights.foreign_files import read_tensors
from mdssd.weights.pretrained import is_checkpoint
from mdssd.weights.published import Published, read_published


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    prior_scales: str | None = None,
) -> Published:
    """Convert the weights of a published SSD to a checkpoint that detects the same boxes.

    The checkpoint has the priors and the mean of the source.

    Args:
        source: a file of a whole SSD300 or SSD512, as `load_pretrained` takes it.
        out: the .json to write, with or without its suffix; the weights go to the same folder.
        classes: names of labels 1, 2, ... By default the names of VOC (21 classes with the
            background) or COCO (81; 91 with the numbers it skips; the 201 of ssd.pytorch, which
            uses 81), otherwise "class 1", "class 2", ...
        prior_scales: the scales that the network was trained with, "voc" or "coco", which the file
            does not tell. None takes the codebase's own: "coco" for 81 classes, for any number in
            torchvision and for any except 21 in ssd.pytorch; otherwise "voc".

    Returns:
        The source's tensors under this project's names.

    Raises:
        OSError: the source cannot be read, or the checkpoint cannot be written.
        ValueError: the file is of no published SSD (see `load_pretrained`), is of a trunk only, or
            is a checkpoint already.

    Example:
        >>> from mdssd.models import build
        >>> from mdssd.weights.convert import convert
        >>> import tempfile, torch
        >>> from mdssd.weights.published import LAYOUTS
        >>> pytorch = next(layout for layout in LAYOUTS if layout.name == "ssd.pytorch")
        >>> model = build({"model": "ssd300", "num_classes": 3, "width": 0.0625})
        >>> theirs = {pytorch.names(6)[name]: x for name, x in model.state_dict().items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(theirs, f"{folder}/ssd300.pth")
        ...     found = convert(f"{folder}/ssd300.pth", f"{folder}/ssd300", classes=["cat", "dog"])
        >>> found.layout, found.config["prior_scales"]
        ('ssd.pytorch', 'coco')
    """
    name = os.fspath(source)
    if is_checkpoint(Path(name)):
        own = read_meta(find_checkpoint(name))["model"]
        raise ValueError(
            f"convert: {name}: is a checkpoint of mdssd already ({own.get('model')}, "
            f"{own.get('num_classes')} classes with background); every command takes it as it is"
        )
    found = read_published("convert", name, read_tensors("convert", name), prior_scales)
    if found.config is None:
        raise ValueError(
            f"convert: {name}: is a VGG16 only, not a detector; `train --init` can start from it"
        )
    model = build(found.config)
    model.load_state_dict(found.tensors)
    if classes is None:
        count = model.num_classes - 1
        classes = usual_names(found.layout, count) or [f"class {k}" for k in range(1, count + 1)]
    save_checkpoint(
        json_path(out),
        model,
        classes=classes,
        mean=found.mean,
        extra={"source": Path(name).name, "layout": found.layout},
    )
    return found


def json_path(out: str | os.PathLike[str]) -> Path:
    """Append .json to `out` if that is not its suffix."""
    path = Path(out)
    return path if path.suffix == ".json" else path.with_name(f"{path.name}.json")
