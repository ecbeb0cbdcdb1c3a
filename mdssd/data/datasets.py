"""One way in to every kind of data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mdssd.data.coco import CocoDataset
from mdssd.data.dataset import DetectionDataset
from mdssd.data.sample import DataError
from mdssd.data.synthetic import SyntheticScenes
from mdssd.data.voc import VOCDataset, VOCYears

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

    A folder of VOC folders (VOC2007, VOC2012 ... as in VOCdevkit) counts as the union of those
    that have the split.
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
    roots = _voc_folders(path)
    lists = [root / "ImageSets" / "Main" for root in roots]
    split = split or _default_split(path, lists, train)
    years = [
        VOCDataset(root, split, classes, unlabelled=unlabelled, faults=faults)
        for root, folder in zip(roots, lists, strict=True)
        if len(roots) == 1 or split == "all" or (folder / f"{split}.txt").is_file()
    ]
    if not years:
        raise DataError(f"{path}: none of {', '.join(r.name for r in roots)} has a split {split}")
    return years[0] if len(years) == 1 else VOCYears(years)


def _voc_folders(path: Path) -> list[Path]:
    """The folder itself, or those in it that VOC has named after their year."""
    if (path / "JPEGImages").is_dir():
        return [path]
    years = sorted(f for f in path.glob("VOC[12][0-9][0-9][0-9]") if (f / "JPEGImages").is_dir())
    files = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    if files and not years:
        raise DataError(
            f"{path}: not in VOC layout, it has no folder JPEGImages; of COCO data give the file: "
            + ", ".join(map(str, files[:4]))
            + (" ..." if len(files) > 4 else "")
        )
    return years or [path]


def _default_split(path: Path, lists: Sequence[Path], train: bool) -> str:
    if not any(folder.is_dir() for folder in lists):
        return "all"
    wanted = TRAIN_SPLITS if train else TEST_SPLITS
    for split in wanted:
        if any((folder / f"{split}.txt").is_file() for folder in lists):
            return split
    there = ", ".join(sorted({p.stem for f in lists for p in f.glob("*.txt")})) or "none"
    where = lists[0] if len(lists) == 1 else path
    raise DataError(f"{where}: none of the splits {', '.join(wanted)} (there are: {there}; or all)")


def _refuse(kind: str, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"open_dataset: {name} does not go with {kind}, got {value!r}")
