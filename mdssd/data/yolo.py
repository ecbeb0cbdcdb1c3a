"""Data sets with YOLO labels: a text file per image, a row per box."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mdssd.data.file_index import is_hidden
from mdssd.data.listed import ListedDataset, ListedImage, NamedBox, ReadOptions
from mdssd.data.photos import CollectFaults, progress
from mdssd.data.sample import DataError
from mdssd.data.splits import ALL, chosen_splits
from mdssd.data.yolo_darknet import is_darknet_data, read_darknet
from mdssd.data.yolo_description import YoloDescription
from mdssd.data.yolo_folder import add_names, describe_folder
from mdssd.data.yolo_images import YoloImages
from mdssd.data.yolo_labels import LabelReader
from mdssd.data.yolo_yaml import is_yolo_yaml, read_yaml
from mdssd.system.text import some

_USUAL = ("data.yaml", "data.yml", "dataset.yaml", "obj.data")


def is_yolo(path: Path) -> bool:
    """Return whether `open_yolo` opens this folder or file."""
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml", ".data")
    return bool(_descriptions(path)) or describe_folder(path) is not None


def open_yolo(path: Path, split: str | None, train: bool, options: ReadOptions) -> ListedDataset:
    """Open a data set with YOLO labels; see `open_dataset`.

    Args:
        path: a data.yaml, a .data file of darknet, or a folder that holds one of them, or images
            and labels.
        split: the name of a split, "all", or None for the usual one.
        train: whether to train or to test, if `split` is None.
        options: how to read.

    Raises:
        DataError: something cannot be read. The message names the file and the reason.
    """
    description = _describe(path)
    if description.names is None:
        add_names(description)
    split = description.same.get(split or "", split)
    wanted = _wanted(description, split, train, options.faults)
    images = YoloImages(description, options.faults)
    images.note_unused()
    chosen = [(name, each) for each in wanted for name in images.splits[each]]
    labelled = _check_labels(description, images, chosen, options)
    origin = str(description.names_file or description.file)
    notes = [*description.notes, *images.notes]
    if description.names is None:
        classes = _numbers(images)
        notes.append(
            f"{description.file}: no class names (names in data.yaml, or classes.txt); "
            "the class numbers are taken as names"
        )
    else:
        classes = list(dict.fromkeys(description.names.values()))
    reader = LabelReader(description.names, origin, description.keypoints)
    reader.notes += notes
    dataset = ListedDataset(
        f"{(path if path.is_dir() else path.parent).resolve().name} {_split_text(wanted, split)}",
        _listed(images, chosen, reader, options.faults),
        classes,
        options,
        format=description.format,
        root=description.folder,
        split=_split_text(wanted, split) or None,
        dropped=reader.dropped,
        notes=reader.notes,
    )
    dataset.labelled = labelled
    return dataset


def _descriptions(folder: Path) -> list[Path]:
    """Return the descriptions in a folder; without one, those in the folders in it."""
    for pattern in ("*.{}", "*/*.{}"):
        found = [
            path
            for suffix in ("yaml", "yml", "data")
            for path in sorted(folder.glob(pattern.format(suffix)))
            if not is_hidden(path.name) and (is_yolo_yaml(path) or is_darknet_data(path))
        ]
        if found:
            return found
    return []


def _describe(path: Path) -> YoloDescription:
    if path.is_file():
        return _read(path, path.parent)
    files = _descriptions(path)
    if files:
        usual = [
            f for name in (*_USUAL, f"{path.resolve().name}.yaml") for f in files if f.name == name
        ]
        if len(files) > 1 and not usual:
            names = some([str(file) for file in files])
            raise DataError(
                f"{path}: has more than one description of YOLO labels, {names}; give one"
            )
        file = (usual or files)[0]
        description = _read(file, path)
        if len(files) > 1:
            others = some([str(each) for each in files if each != file])
            description.notes.append(f"{file}: taken, not {others}")
        return description
    layout = describe_folder(path)
    if layout is None:
        raise DataError(f"{path}: holds no YOLO labels")
    for name in ("data.yaml", "data.yml"):
        if (path / name).exists():
            layout.notes.append(f"{path / name}: names no splits and no classes; not read")
    return layout


def _read(file: Path, root: Path) -> YoloDescription:
    read = read_darknet if file.suffix.lower() == ".data" else read_yaml
    description = read(file, root)
    if not description.splits and not description.missing:
        # Some tools write only the names into it.
        layout = describe_folder(description.folder)
        if layout is None:
            raise DataError(
                f"{file}: names neither train, val nor test, and {description.folder} holds no "
                "images with labels"
            )
        description.splits = layout.splits
    return description


def _wanted(
    description: YoloDescription, split: str | None, train: bool, faults: list[str] | None
) -> list[str]:
    """Return the splits to read; name those of the description that are not there."""
    splits = list(description.splits)
    if not splits:
        raise DataError("; ".join(description.missing.values()))
    if splits == [""]:
        if split not in (None, ALL):
            raise DataError(f"{description.folder}: no such split {split} (there are none)")
        return splits
    if split in description.missing and split not in splits:
        raise DataError(description.missing[split])
    try:
        wanted = chosen_splits(description.folder, splits, split, train)
    except DataError as error:
        lines = [str(error), *description.missing.values()]
        raise DataError("; ".join(lines)) from None
    for name, line in description.missing.items():
        if name in wanted:
            with CollectFaults(faults):
                raise DataError(line)
        else:
            description.notes.append(f"{line}; left out")
    return wanted


def _split_text(wanted: Sequence[str], split: str | None) -> str:
    if wanted == [""]:
        return ALL
    return ALL if split == ALL else wanted[0]


def _check_labels(
    description: YoloDescription,
    images: YoloImages,
    chosen: Sequence[tuple[str, str]],
    options: ReadOptions,
) -> bool:
    """Note the images without labels, and return whether there are labels.

    Raises:
        DataError: there are no images, or no labels although they are needed.
    """
    names = list(dict.fromkeys(name for name, _ in chosen))
    if not names:
        first = f"; the first fault: {options.faults[0]}" if options.faults else ""
        places = some([str(place) for each in description.splits.values() for place in each])
        raise DataError(f"{description.file}: found no image in {places}{first}")
    bare = [name for name in names if images.label(name) is None]
    if len(bare) == len(names) and not options.unlabelled:
        stem = os.path.splitext(bare[0])[0]
        before, folder, after = f"/{stem}".rpartition("/images/")
        parallel = f"{before}/labels/{after}.txt"[1:] if folder else f"{stem}.txt"
        raise DataError(
            f"{description.folder}: none of the {len(names):,} images has a label file; expected, "
            f"for {bare[0]}, {parallel}"
        )
    if bare:
        images.notes.append(
            f"{description.folder}: {len(bare):,} of {len(names):,} images have no label file and "
            f"are background, such as {bare[0]}"
        )
    return len(bare) < len(names)


def _numbers(images: YoloImages) -> list[str]:
    """Return the class numbers of all splits as names, in ascending order."""
    reader = LabelReader(None)
    found: set[int] = set()
    every = dict.fromkeys(name for names in images.splits.values() for name in names)
    for name in progress(list(every), "reading class numbers"):
        label = images.label(name)
        if label is not None:
            with CollectFaults([]):
                found |= reader.class_numbers(images.folder / label)
    return [str(number) for number in sorted(found)]


def _listed(
    images: YoloImages,
    chosen: Sequence[tuple[str, str]],
    reader: LabelReader,
    faults: list[str] | None,
) -> Iterator[ListedImage]:
    unreadable: set[str] = set()
    read: set[str] = set()
    for name, split in progress(chosen, f"reading {images.folder}"):
        if name in unreadable:
            continue
        label = images.label(name)
        path = images.folder / (label or name)
        boxes: list[NamedBox] | None = None
        with CollectFaults(faults):
            # An image of two splits is listed twice, and its labels count once.
            boxes = reader.read(path) if label is not None and name not in read else []
        if boxes is None:
            unreadable.add(name)
            continue
        read.add(name)
        yield ListedImage(
            os.path.splitext(name)[0],
            images.folder / name,
            boxes,
            str(path),
            relative=True,
            split=split,
        )
    if reader.polygons:
        reader.notes.append(
            f"{reader.first_polygon}: a polygon; its bounding box is taken "
            f"(polygons: {reader.polygons:,})"
        )
