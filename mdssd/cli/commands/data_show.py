"""`mdssd data show`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mdssd.cli.commands.shared import open_whole_data, show, tiling_of
from mdssd.data import Augmentation, DataError
from mdssd.drawing import write_image
from mdssd.inspection.plots import contact_sheet
from mdssd.inspection.tile_sheet import tile_sheet
from mdssd.models.build import input_size, with_input_size
from mdssd.system.files import writable_folder
from mdssd.system.text import plural
from mdssd.training.recipe_files import DEFAULT_RECIPE, read_recipe

_AUGMENTATION = ("expand", "photometric", "crop", "crop_min_scale", "mirror", "turn")
_NO_AUGMENTATION = {"expand": 1.0, "photometric": False, "crop": False, "mirror": False}


def run(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    out = Path(arguments.out)
    size = input_size(with_input_size(arguments.model, given.get("input_size")))
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a name that ends with .png, got {arguments.out!r}")
    writable_folder(out.parent)  # now, not after the work
    tiling = tiling_of(given, size)
    if tiling and (needless := [name for name in (*_AUGMENTATION, "no_augment") if name in given]):
        raise ValueError(
            f"--{needless[0].replace('_', '-')}: --tile shows the images as they are, without "
            "augmentation"
        )
    augmentation = Augmentation(size, **_augmentation_options(given))
    dataset = open_whole_data(given, input_size=size, by_windows=tiling is not None)
    if not len(dataset):
        raise DataError(f"{dataset.name}: no image can be used; `mdssd data check` says why")
    if tiling is None:
        count = arguments.count
        sheet = contact_sheet(dataset, augmentation, count, arguments.seed)
        noun = "sample"
    else:
        count = min(arguments.count, len(dataset))
        sheet = tile_sheet(dataset, tiling, count, arguments.seed)
        noun = "image"
    write_image(sheet, out)
    show(f"written: {out}, {plural(count, noun)} of {dataset.name}")
    return 0


def _augmentation_options(given: dict[str, Any]) -> dict[str, Any]:
    options = {name: given[name] for name in _AUGMENTATION if name in given}
    if "no_augment" not in given:
        recipe = read_recipe(DEFAULT_RECIPE)
        return {name: recipe[name] for name in _AUGMENTATION} | options
    if options:
        raise ValueError("--no-augment: expected no other augmentation option")
    return _NO_AUGMENTATION
