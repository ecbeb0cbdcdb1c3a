"""The splits of a data set: their usual names, and which one is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mdssd.data.sample import DataError

_TRAIN_SPLITS = ("trainval", "train")
_TEST_SPLITS = ("test", "val", "valid")
# Stands for the images of all splits together.
ALL = "all"
# Names of splits in the names of files and folders, and what they are called here.
_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "trainval",
    "val": "val",
    "valid": "valid",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def split_of_folder(name: str) -> str:
    """Return the split that a folder's name is, with or without a year; "" if it is none.

    Unlike `split_in_name` it takes no other word beside it: "test drive" is no split.

    Example:
        >>> from mdssd.data.splits import split_of_folder
        >>> [split_of_folder(name) for name in ("train2017", "Validation", "test drive")]
        ['train', 'val', '']
    """
    match = re.fullmatch(r"([a-z]+)((19|20)\d\d)?", name.lower())
    return _WORDS.get(match[1], "") if match else ""


def split_in_name(name: str) -> str | None:
    """Return the split that a file's name has in it; None if it has none, or two.

    Example:
        >>> from mdssd.data.splits import split_in_name
        >>> [split_in_name(name) for name in ("instances_train2017", "test-dev", "minival")]
        ['train', 'test', None]
    """
    words = re.findall("[a-z]+", name.lower())
    found = {_WORDS[word] for word in words if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def chosen_splits(path: Path, splits: Iterable[str], split: str | None, train: bool) -> list[str]:
    """Return the names of the splits to read.

    Args:
        path: the data set, for messages.
        splits: the names of the splits that exist.
        split: the name of one of them, "all", or None for `default_split`; a single split with
            another name than usual then serves both to train and to test.
        train: whether to train or to test; see `default_split`.

    Raises:
        DataError: there is no such split.

    Example:
        >>> from pathlib import Path
        >>> from mdssd.data.splits import chosen_splits
        >>> chosen_splits(Path("birds"), ("train", "val"), None, train=False)
        ['val']
        >>> chosen_splits(Path("birds"), ("train", "val"), "all", train=False)
        ['train', 'val']
    """
    splits = list(splits)
    if split == ALL:
        return splits
    unusual = not set(splits) & {*_TRAIN_SPLITS, *_TEST_SPLITS}
    if split is None and len(splits) <= 1 and unusual:
        return splits
    if split is None:
        return [default_split(path, splits, train)]
    if split not in splits:
        names = ", ".join(splits) or "none"
        raise DataError(f"{path}: no such split {split} (there are: {names}; or {ALL})")
    return [split]


def default_split(path: Path, splits: Iterable[str], train: bool) -> str:
    """Return the split to train on, or to test on.

    Args:
        path: the data set, for messages.
        splits: the names of the splits that exist.
        train: which of the two is meant.

    Raises:
        DataError: there is none.

    Example:
        >>> from pathlib import Path
        >>> from mdssd.data.splits import default_split
        >>> default_split(Path("birds"), ("train", "val"), train=False)
        'val'
    """
    splits = list(splits)
    usual = _TRAIN_SPLITS if train else _TEST_SPLITS
    for split in usual:
        if split in splits:
            return split
    names = ", ".join(splits) or "none"
    raise DataError(f"{path}: none of the splits {', '.join(usual)} (there are: {names}; or {ALL})")
