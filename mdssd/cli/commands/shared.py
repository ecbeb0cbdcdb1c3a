"""What several commands need: the machine, the data set, the detector's options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch

from mdssd import ops
from mdssd.bulk import Pool
from mdssd.data import DataError, DetectionDataset, open_dataset
from mdssd.data.faults import check_faults, faults_line, nothing_to_learn, without_damaged
from mdssd.data.images import ImageLimits
from mdssd.data.splits import ALL
from mdssd.data.tiles import Tiling, make_tiling
from mdssd.names import INPUT_SIZES
from mdssd.priors.maps import InputSize, width_height
from mdssd.system.devices import best_device, describe_device
from mdssd.system.distributed import is_main, process_group
from mdssd.system.text import printable
from mdssd.weights.checkpoint_json import find_checkpoint, is_quantized, read_meta


def show(*lines: str) -> None:
    """Print lines to standard output, with escapes for control characters that names hold."""
    print(*map(printable, lines), sep="\n", flush=True)


@contextmanager
def machine(given: Mapping[str, Any], *, together: bool = False) -> Iterator[str]:
    """Apply the machine options for the time of the block, print the device and yield it.

    together: join the processes that torchrun started, which then share the work.
    """
    if given.get("threads"):
        torch.set_num_threads(given["threads"])
    device = given.get("device") or _usual_device(given.get("checkpoint"))
    _check_device(device)
    with (
        process_group(device) if together else nullcontext(device) as device,
        ops.backend(given["backend"]) if given.get("backend") else nullcontext(),
    ):
        if is_main():
            show(f"device: {describe_device(device)}")
        yield device


def _usual_device(checkpoint: str | None) -> str:
    """The best device that there is; for the int8 network of a checkpoint the CPU."""
    if checkpoint is not None:
        with suppress(OSError, ValueError):  # what is wrong is said when the options are right
            if is_quantized(read_meta(find_checkpoint(checkpoint))):
                return "cpu"
    return best_device()


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: expected cpu, cuda, cuda:1 ..., got {name!r}") from None
    if device.type == "cpu":
        return
    module = getattr(torch, device.type, None)
    count = module.device_count() if module is not None and module.is_available() else 0
    if (device.index or 0) >= count:
        reason = f"found {count}" if count else f"this PyTorch ({torch.__version__}) finds none"
        raise ValueError(f"--device: {name}: no such device, {reason}")


def open_data(
    options: Mapping[str, Any],
    *,
    train: bool,
    input_size: InputSize,
    classes: Sequence[str] | None,
    unlabelled: bool = False,
    learn: bool = True,
    by_windows: bool = False,
    faults: list[str] | None = None,
) -> DetectionDataset:
    """Open the data set that the options data, split, image_dir and scenes describe.

    The first process prints one line if anything was left out, repaired or guessed. Files that
    cannot be used, and more than 5% unusable boxes, are an error unless the option allow_faults is
    set; the files are then left out.

    learn: with `train`, refuse data without a box to learn from.
    by_windows: accept TIFF files above the limit, which are read by windows.
    faults: receives a line about each file that cannot be used; nothing is then refused or printed.
    """
    path = options.get("data")
    if path is not None and options.get("scenes"):
        raise ValueError(f"--scenes: expected no data beside it, got {path}")
    limits = ImageLimits(options.get("max_pixels") or ImageLimits.max_pixels, by_windows=by_windows)
    found: list[str] = [] if faults is None else faults
    dataset = open_dataset(
        path,
        options.get("split"),
        train=train,
        classes=None if path is None else classes,  # generated scenes have their own
        image_dir=options.get("image_dir"),
        image_size=min(width_height(input_size)),
        count=options.get("scenes"),
        unlabelled=unlabelled,
        faults=found,
        limits=limits,
        orientation=options.get("orientation") or "auto",
    )
    if faults is not None:
        return dataset
    if dataset.format and is_main():
        show(recognised(dataset))
    if options.get("allow_faults"):
        dataset = without_damaged(dataset, found)
    else:
        check_faults(dataset, found)
    if train and learn and (reason := nothing_to_learn(dataset)):
        raise DataError(reason)
    # The report that training prints has the notes.
    if (line := faults_line(dataset, found, notes=not (train and learn))) and is_main():
        show(line)
    return dataset


def recognised(dataset: DetectionDataset) -> str:
    """Return a line that says what the data were taken for."""
    split = f", split {dataset.split}" if dataset.split else ""
    return f"data: {dataset.format}{split}"


def open_whole_data(options: Mapping[str, Any], **keywords: Any) -> DetectionDataset:
    """Like `open_data` for training, but without a split use the images of all splits."""
    if options.get("split") is None and options.get("data") is not None:
        options = {**options, "split": ALL}
    return open_data(options, train=True, classes=None, learn=False, **keywords)


# The options that say how tiles are made, and what they are if they are not given.
_OF_TILES = {"overlap": 0.2, "tile_scale": 1.0, "with_whole": False}


def tiling_of(given: Mapping[str, Any], size: InputSize) -> Tiling | None:
    """The tiles that the options of a command describe for an input of this size."""
    options = tile_options(given)
    scale = options.pop("tile_scale")
    return make_tiling(options.pop("tile"), size, scale=scale, **options)


def check_needs_tile(given: Mapping[str, Any], names: Sequence[str], tile: Any) -> None:
    """Refuse options of tiles that were given without tiles.

    given: the options that were given, by name.
    names: those that need tiles.
    tile: the size of the tiles, None without tiles.
    """
    needless = [name for name in names if name in given]
    if tile is None and needless:
        raise ValueError(f"--{needless[0].replace('_', '-')}: needs --tile beside it")


def tile_options(given: Mapping[str, Any]) -> dict[str, Any]:
    check_needs_tile(given, tuple(_OF_TILES), given.get("tile"))
    options = {name: given.get(name, value) for name, value in _OF_TILES.items()}
    try:  # the size of the input matters for "auto" only
        make_tiling(given.get("tile"), INPUT_SIZES[0], scale=options["tile_scale"])
    except ValueError as error:
        raise ValueError(str(error).replace("tile_scale", "--tile-scale", 1)) from None
    return {"tile": given.get("tile"), **options}


def detector_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a `Detector` other than its checkpoint and device."""
    tiles = tile_options(vars(arguments))
    if arguments.tile is None and is_main() and (line := trained_on_tiles(arguments.checkpoint)):
        show(line)
    return {
        **tiles,
        "batch_size": arguments.batch_size,
        "runtime": arguments.runtime,
        "dtype": getattr(torch, arguments.dtype) if arguments.dtype else None,
    }


def trained_on_tiles(checkpoint: str) -> str:
    """Return a line about the tiles that a checkpoint was trained on; "" if there were none."""
    training = read_meta(find_checkpoint(checkpoint)).get("training") or {}
    recipe = training.get("recipe")
    if not isinstance(recipe, dict):
        return ""
    tile = recipe.get("tile")
    if not isinstance(tile, int | str | list):
        return ""
    size = "x".join(map(str, tile)) if isinstance(tile, list) else str(tile)
    scale = recipe.get("tile_scale", 1.0)
    options = f"--tile {size}" + (f" --tile-scale {scale:g}" if scale != 1 else "")
    return f"the checkpoint was trained on tiles; {options} shows it images as in training"


def check_local(given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse options of Ray that were given without it."""
    for name in (name for name in names if given[name]):
        raise ValueError(f"--{name.replace('_', '-')}: needs --engine ray beside it")


def pool_of(arguments: argparse.Namespace) -> Pool:
    """The processes of a Ray cluster that the options describe."""
    return Pool(
        address=arguments.ray_address,
        workers=arguments.actors,
        threads=arguments.threads or 1,
        readers=arguments.workers or 0,
        device=arguments.device,
        backend=arguments.backend,
    )
