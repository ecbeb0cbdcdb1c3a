"""Opening a data set of any format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mdssd.data.coco import CocoDataset
from mdssd.data.dataset import DetectionDataset
from mdssd.data.images import ImageLimits
from mdssd.data.sample import DataError
from mdssd.data.synthetic import SyntheticScenes
from mdssd.data.voc import open_voc

# Added to the seed of generated test scenes, so that nobody trains on them by accident.
_TEST_SEED = 1 << 40


def open_dataset(
    path: str | os.PathLike[str] | None,
    split: str | None = None,
    *,
    train: bool = True,
    classes: Sequence[str] | None = None,
    image_dir: str | os.PathLike[str] | None = None,
    image_size: int = 300,
    count: int | None = None,
    seed: int = 0,
    unlabelled: bool = False,
    faults: list[str] | None = None,
    limits: ImageLimits | None = None,
) -> DetectionDataset:
    """Open the data at `path`: a VOC folder, a COCO JSON file, or None for generated scenes.

    A folder that holds VOC folders (VOC2007, VOC2012 ... as in VOCdevkit) is opened as the union
    of those that have the split.

    Args:
        path: the folder, the file, or None.
        split: the split of a VOC folder or of the generated scenes ("train", "test"). None: a
            split to train on or to test on, as `train` says: the first of trainval, train, or of
            test, val, valid, that the folder has.
        train: see `split`.
        classes: the class names in label order; see `VOCDataset` and `CocoDataset`.
        image_dir: the folder of a COCO file's images; see `CocoDataset`.
        image_size: the side of generated scenes, in pixels.
        count: the number of generated scenes. None: 1000 to train on, 200 to test on.
        seed: the seed of generated scenes.
        unlabelled: also accept images without annotations; see `VOCDataset` and `CocoDataset`.
        faults: a list that receives a line about each image that cannot be used; the image is
            left out. None: the first such image raises DataError.
        limits: what an image file may hold. None: the default of `ImageLimits`.

    Raises:
        DataError: the data cannot be opened. The message names the path and the reason.
        ValueError: an argument does not apply to data of this format.

    Example:
        >>> from mdssd.data import open_dataset
        >>> dataset = open_dataset(None, "test", count=2, image_size=96)
        >>> len(dataset), dataset[0].image.shape
        (2, (96, 96, 3))
    """
    if path is None:
        _refuse("generated scenes", classes=classes, image_dir=image_dir)
        return _open_scenes(split, train, count, seed, image_size)
    path = Path(path)
    if path.is_file():
        _refuse(f"a COCO file ({path})", split=split)
        return CocoDataset(
            path, image_dir, classes, unlabelled=unlabelled, faults=faults, limits=limits
        )
    if path.is_dir():
        _refuse(f"a VOC folder ({path})", image_dir=image_dir)
        return open_voc(
            path,
            split,
            classes,
            train=train,
            unlabelled=unlabelled,
            faults=faults,
            limits=limits,
        )
    if path.exists():
        raise DataError(f"{path}: is neither a regular file nor a folder")
    raise DataError(f"{path}: no such file or folder")


def _open_scenes(
    split: str | None, train: bool, count: int | None, seed: int, image_size: int
) -> SyntheticScenes:
    if split not in (None, "train", "test"):
        raise ValueError(
            f"open_dataset: generated scenes have the splits train and test, got {split!r}"
        )
    testing = split == "test" or (split is None and not train)
    if count is None:
        count = 200 if testing else 1000
    return SyntheticScenes(count, seed + (_TEST_SEED if testing else 0), image_size)


def _refuse(format_name: str, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"open_dataset: {name} does not apply to {format_name}, got {value!r}")
