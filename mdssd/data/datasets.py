"""One way in to every kind of data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mdssd.data.coco import CocoDataset
from mdssd.data.loader import DetectionDataset
from mdssd.data.sample import DataError
from mdssd.data.synthetic import SyntheticScenes
from mdssd.data.voc import VOCDataset

TRAIN_SPLITS = ("trainval", "train")
TEST_SPLITS = ("test", "val", "valid")
# Generated scenes to test on come from a seed that nobody trains with by chance.
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
) -> DetectionDataset:
    """Open the data at `path`: a VOC folder, a COCO JSON file, or None for generated scenes.

    split: of a VOC folder or of the generated scenes ("train", "test"); None: by `train`, for a
    VOC folder the first of trainval, train (or test, val, valid) that it has.
    classes: the class names of a VOC folder. image_dir: see CocoDataset. image_size, count (1000
    to train on, 200 to test on, where None) and seed: of the generated scenes.
    unlabelled: take images without annotations; see VOCDataset, CocoDataset. faults: a list takes
    what is wrong with single images, which are left out; None raises at the first.
    Raises DataError, naming the path and the reason, for data that cannot be opened, ValueError
    for an argument that this kind of data does not take.
    """
    if path is None:
        _refuse("generated scenes", classes=classes, image_dir=image_dir)
        if split not in (None, "train", "test"):
            raise ValueError(
                f"open_dataset: generated scenes have the splits train and test, got {split!r}"
            )
        testing = split == "test" or (split is None and not train)
        if count is None:
            count = 200 if testing else 1000
        return SyntheticScenes(count, seed + (_TEST_SEED if testing else 0), image_size)
    path = Path(path)
    if path.is_file():
        _refuse(f"a COCO file ({path})", split=split, classes=classes)
        return CocoDataset(path, image_dir, unlabelled=unlabelled, faults=faults)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    _refuse(f"a VOC folder ({path})", image_dir=image_dir)
    split = split or _default_split(path, train)
    return VOCDataset(path, split, classes, unlabelled=unlabelled, faults=faults)


def _default_split(root: Path, train: bool) -> str:
    folder = root / "ImageSets" / "Main"
    if not folder.is_dir():
        return "all"
    wanted = TRAIN_SPLITS if train else TEST_SPLITS
    for split in wanted:
        if (folder / f"{split}.txt").is_file():
            return split
    there = ", ".join(sorted(path.stem for path in folder.glob("*.txt"))) or "none"
    raise DataError(
        f"{folder}: none of the splits {', '.join(wanted)} (there are: {there}; or all)"
    )


def _refuse(kind: str, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"open_dataset: {name} does not go with {kind}, got {value!r}")
