"""The names that images, splits and classes get when a data set is written in another format."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mdssd.data.dataset import SPLITS, DetectionDataset
from mdssd.data.reasons import Losses
from mdssd.data.splits import ALL
from mdssd.data.values import shown

# Folders that say nothing about an image: those of a format's images, and those of its splits.
_IMAGE_FOLDER = re.compile("images?|JPEGImages|image_2", re.IGNORECASE)
_SPLIT_FOLDER = re.compile("(train|val|valid|test|trainval)([0-9]{4})?", re.IGNORECASE)
# Characters that Windows does not allow in names, and names that are devices there.
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
# Bytes of a name without its ending. File systems allow 255, some 143.
_LONGEST = 120
# Names that mean something else where a format or an option names a split.
_NO_SPLITS = ("all", "path", "names", "nc", "download", "kpt_shape", "flip_idx")
# Images in no split of a data set that has splits.
UNLISTED = "unlisted"


class OutputImage(NamedTuple):
    """An image to write.

    Attributes:
        number: its place in the data set, from 0.
        name: its path in the folder of images, without the ending. No two differ only in case.
        splits: the splits that it belongs to.
    """

    number: int
    name: str
    splits: tuple[str, ...]


def output_images(
    dataset: DetectionDataset, split: str | None, losses: Losses, spaces: bool = True
) -> list[OutputImage]:
    """Return the name and the splits of each image.

    The name is the path of the image's file in the folder that holds them all, without the folders
    that say nothing, such as "images" and "train"; or its id if it has no file.

    Args:
        dataset: the data set.
        split: the split to put all images into; None for those that the data set has.
        losses: counts the names that had to change.
        spaces: whether a name may have spaces.
    """
    found = _names(dataset)
    splits = _safe_splits(_splits(dataset, split), losses)
    used: set[str] = set()
    images = []
    for index, name in enumerate(found):
        safe = "/".join(_safe(part, spaces) for part in name.split("/"))
        if safe != name:
            what = "whose name is not safe on every system"
            losses.add("image", what, f"{shown(name)} to {shown(safe)}", "renamed")
        final, number = safe, 1
        while _folded(final) in used:
            number += 1
            final = f"{safe}_{number}"
        if final != safe:
            what = "with the name of another one, apart from its ending or case"
            losses.add("image", what, f"{shown(name)} to {shown(final)}", "renamed")
        used.add(_folded(final))
        images.append(OutputImage(index, final, splits[index]))
    return images


def output_classes(dataset: DetectionDataset) -> list[str]:
    """Return the names of the classes, without the space around them, which no reader keeps.

    Raises:
        ValueError: two names are the same then, or one is empty.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> from mdssd.data.output_names import output_classes
        >>> output_classes(SyntheticScenes(1))
        ['cross', 'disc', 'ring', 'square', 'triangle']
    """
    return distinct(dataset, [name.strip() for name in dataset.classes])


def distinct(dataset: DetectionDataset, names: list[str]) -> list[str]:
    """Return the names as they are to be written; raise ValueError if two are the same."""
    for name, count in Counter(names).items():
        if count > 1 or not name:
            same = [known for known, new in zip(dataset.classes, names, strict=True) if new == name]
            raise ValueError(
                f"{dataset.name}: the class names {', '.join(map(shown, same))} would be written "
                f"as {shown(name)}; expected distinct names that are not empty"
            )
    return names


def ordered_splits(images: Sequence[OutputImage]) -> list[str]:
    """Return the names of the splits that hold an image, in the usual order."""
    found = sorted({name for image in images for name in image.splits})
    return [name for name in SPLITS if name in found] + [n for n in found if n not in SPLITS]


def disjoint_splits(
    images: Sequence[OutputImage], losses: Losses, lone_trainval: str
) -> list[OutputImage]:
    """Return the images with at least one split each, and without a union of other splits.

    For formats in which each split has files of its own, and a union would repeat them.

    Args:
        images: the images with the splits of the data set.
        losses: counts the images whose splits change.
        lone_trainval: the name for the split trainval of data that have neither train nor val.
    """
    found = {name for image in images for name in image.splits}
    lone = not found & {"train", "val", "valid"}
    result = []
    for image in images:
        splits = dict.fromkeys(image.splits)
        if "trainval" in splits:
            del splits["trainval"]
            if lone:
                splits[lone_trainval] = None
            elif not splits:
                splits["train"] = None
            if not lone or lone_trainval != "trainval":
                what = "of the split trainval"
                outcome = f"written as {lone_trainval}" if lone else "written as train or val only"
                losses.add("image", what, image.name, outcome)
        if not splits:
            splits[UNLISTED if found else "train"] = None
            what, outcome = ("in no split", UNLISTED) if found else ("without splits", "train")
            losses.add("image", what, image.name, f"written as {outcome}")
        result.append(image._replace(splits=tuple(splits)))
    return result


def _splits(dataset: DetectionDataset, split: str | None) -> list[tuple[str, ...]]:
    """Return the splits of each image; nothing for all of them if the data set has none."""
    if split is None and dataset.split != ALL:
        split = dataset.split
    if split is not None:
        return [(split,)] * len(dataset)
    result: list[tuple[str, ...]] = []
    for lists in dataset.split_lists([]):
        listed = {name: set(ids) for name, ids in lists.listed.items()}
        result += [
            tuple(name for name, ids in listed.items() if image_id in ids)
            for image_id in lists.image_ids
        ]
    return result or [()] * len(dataset)


def _safe_splits(splits: list[tuple[str, ...]], losses: Losses) -> list[tuple[str, ...]]:
    """Return the splits with names that can be those of a file, a folder and a key."""
    counts = Counter(name for names in splits for name in names)
    safe: dict[str, str] = {}
    used: set[str] = set()
    for name in sorted(counts, key=lambda name: (name not in SPLITS, name)):
        first = final = _safe(name.replace("/", "_"), spaces=False)
        if first in _NO_SPLITS:
            first = final = f"split_{first}"
        number = 1
        while _folded(final) in used:
            number += 1
            final = f"{first}_{number}"
        used.add(_folded(final))
        safe[name] = final
        if final != name:
            what = f"of the split {shown(name)}"
            losses.add("image", what, "the name is not safe", f"written as {final}", counts[name])
    return [tuple(safe[name] for name in names) for names in splits]


def _names(dataset: DetectionDataset) -> list[str]:
    paths = [dataset.image_path(index) for index in range(len(dataset))]
    files = [os.path.abspath(path) for path in paths if path is not None]
    if len(files) < len(paths):
        names = [image_id.replace("\\", "/") for image_id in dataset.image_ids]
    else:
        top = os.path.commonpath([os.path.dirname(file) for file in files])
        names = [os.path.splitext(os.path.relpath(file, top))[0] for file in files]
        names = [Path(name).as_posix() for name in names]
    parts = [_parts(name) for name in names]
    inner = ["/".join(_without(part, _IMAGE_FOLDER)) for part in parts]
    short = ["/".join(_without(_without(part, _IMAGE_FOLDER), _SPLIT_FOLDER)) for part in parts]
    return short if len(set(map(_folded, short))) == len(short) else inner


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")] or ["image"]


def _without(parts: list[str], folder: re.Pattern[str]) -> list[str]:
    return [part for part in parts[:-1] if not folder.fullmatch(part)] + parts[-1:]


def _folded(name: str) -> str:
    """Return the name as a file system compares it that ignores case and Unicode forms."""
    return unicodedata.normalize("NFC", name).casefold()


def _safe(part: str, spaces: bool) -> str:
    """Return a part of a path that every file system takes, and that no reader skips as hidden."""
    part = part.encode("utf-8", "replace").decode()  # lone surrogates become question marks
    part = _FORBIDDEN.sub("_", part).strip().rstrip(". ")
    if not spaces:
        part = re.sub(r"\s", "_", part)
    if part.startswith(".") or part == "__MACOSX" or _DEVICE.fullmatch(part) or not part:
        part = f"_{part}"
    data = part.encode()
    if len(data) > _LONGEST:
        digest = hashlib.sha256(data).hexdigest()[:8]
        part = data[: _LONGEST - 9].decode(errors="ignore") + "_" + digest
    return part
