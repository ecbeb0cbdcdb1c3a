"""`mdssd quantize`."""

from __future__ import annotations

import argparse
from typing import Any

from mdssd.cli.commands.shared import machine, open_data, show, tile_options, trained_on_tiles
from mdssd.data import DetectionDataset
from mdssd.quantization.quantize import check_packages, new_checkpoint, quantize
from mdssd.system.memory import keep_memory
from mdssd.weights.checkpoint_json import find_checkpoint, read_meta


def run(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    with machine({**given, "device": "cpu"}):
        keep_memory()
        new_checkpoint(arguments.out)
        check_packages()
        meta = read_meta(find_checkpoint(arguments.checkpoint))
        tiles = tile_options(given)
        if arguments.tile is None and (line := trained_on_tiles(arguments.checkpoint)):
            show(line)
        result = quantize(
            arguments.checkpoint,
            arguments.out,
            calibration=_open(given, meta, train=True),
            validation=_open(_evaluation(given), meta, train=False),
            max_drop=arguments.max_drop,
            images=arguments.images,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            allow_faults=given.get("allow_faults", False),
            report=show,
            **tiles,
        )
    show("", *result.table().split("\n"), f"written: {result.path}")
    return 0


def _evaluation(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the validation data under the names that `open_data` reads."""
    image_dir = None if given["eval_data"] else given["image_dir"]
    return {
        **given,
        "data": given["eval_data"] or given["data"],
        "split": given["eval_split"],
        "image_dir": given["eval_image_dir"] or image_dir,
    }


def _open(given: dict[str, Any], meta: dict[str, Any], *, train: bool) -> DetectionDataset:
    size = meta["input_size"]
    return open_data(
        given,
        train=train,
        input_size=tuple(size) if isinstance(size, list) else size,
        classes=None,
        learn=False,
        unlabelled=train,
        by_windows=given["tile"] is not None,
    )
