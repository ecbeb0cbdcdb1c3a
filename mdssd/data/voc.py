"""Data sets in the folder layout of PASCAL VOC."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from mdssd.data.dataset import SPLITS, SplitLists
from mdssd.data.file_index import FileIndex
from mdssd.data.images import IMAGE_SUFFIXES, ImageLimits
from mdssd.data.joined import JoinedDataset
from mdssd.data.photos import CollectFaults, PhotoDataset, class_notes, progress
from mdssd.data.sample import BoxRow, DataError
from mdssd.data.splits import chosen_splits
from mdssd.data.voc_layout import (
    VocFiles,
    VocLayout,
    find_layout,
    image_id,
    listed_id,
    not_voc,
    read_lines,
    split_folders,
    voc_folders,
)
from mdssd.data.voc_xml import VocAnnotation, read_annotation
from mdssd.system.text import plural

_NO_ANNOTATION = VocAnnotation(None, [], [], [], "", frozenset())


class VOCDataset(PhotoDataset):
    """A folder with JPEGImages, Annotations and (optionally) ImageSets/Main.

    The annotations may also lie beside their images, in the folder itself. Coordinates are kept as
    written. An object whose box or name cannot be used is left out and listed in `dropped`. An
    image whose annotation has no boxes is kept, as pure background.

    Args:
        root: the folder.
        split: the name of a file in ImageSets/Main, without ".txt". "all" uses every annotation,
            and so does a folder without lists in ImageSets/Main.
        classes: class names in label order; boxes of other classes are left out, and counted in
            `notes`. None: every name that occurs in Annotations, sorted. These are the same for
            every split.
        unlabelled: also accept images of the split that have no annotation, as in a challenge's
            test set. `labelled` is False if there is one. With `classes` given, the folder
            Annotations need not exist.
        faults: a list that receives a line about each image that cannot be used; the image is
            left out. None: the first such image raises DataError.
        limits: what an image file may hold.
        orientation: "auto", "upright" or "stored"; see `open_dataset`.
        part: whether it is one of several that are read together: it need not have a box of the
            classes then, and does not note which have none.

    Raises:
        DataError: something cannot be read. The message names the file and the reason.
        ValueError: `classes` contains a name twice.

    Example:
        >>> import tempfile
        >>> from mdssd.data import SyntheticScenes, VOCDataset, write_voc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_voc(SyntheticScenes(2, image_size=96), f"{folder}/scenes", "train")
        ...     dataset = VOCDataset(root, "train")
        ...     dataset[0].image.shape, dataset.image_ids, dataset.image_path(0).name
        ((96, 96, 3), ['scene_000000', 'scene_000001'], 'scene_000000.png')
    """

    format = "VOC XML"
    submission = "voc"

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "trainval",
        classes: Sequence[str] | None = None,
        *,
        unlabelled: bool = False,
        faults: list[str] | None = None,
        limits: ImageLimits | None = None,
        orientation: str = "auto",
        part: bool = False,
    ) -> None:
        self.root = Path(root)
        self.split: str = split
        super().__init__(f"{self.root.resolve().name} {split}", limits, orientation)
        layout = find_layout(self.root)
        if layout is None:
            raise not_voc(self.root)
        self._layout = layout
        names_suffice = unlabelled and classes is not None
        for folder in [layout.images] if names_suffice else [layout.annotations, layout.images]:
            if not folder.is_dir():
                raise DataError(f"{self.root}: not in VOC layout, it has no folder {folder.name}")
        if classes is not None and len(set(classes)) < len(classes):
            raise ValueError(f"VOCDataset: classes names one twice: {', '.join(classes)}")
        files = layout.files()
        lines = self._read_split(files, faults)
        read = self._read_all(files.xml, faults) if classes is None else {}
        self.classes = self._found_classes(read, faults) if classes is None else list(classes)
        for number in progress(list(lines), f"reading {self.name}"):
            with CollectFaults(faults):
                self._add(number, lines[number], files, read, unlabelled)
        if self.labelled and not part:
            found = self.labelled_classes()
            self.notes += class_notes(self.classes, found, self.left_out, str(self.root))

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """Read every usual split in ImageSets/Main; listing an unannotated image is a fault."""
        layout = self._layout
        if layout.images == self.root and self.root.name in SPLITS and not layout.list_names():
            # The folder is a split, as in train/, valid/, test/ with each XML beside its image.
            return [SplitLists(self.root, {self.root.name: self.image_ids}, self.image_ids)]
        files = layout.files()
        listed: dict[str, list[str]] = {}
        for name in SPLITS:
            path = layout.list_path(name)
            if not path.exists():
                continue
            with CollectFaults(faults):
                # The faults of the split that was opened are known.
                new = faults if self.split != name else []
                lines = _read_list(path, files, new)
                listed[name] = list(lines)
                new += [
                    f"{path}:{line}: lists {listed_name}, which has no annotation"
                    for listed_name, line in lines.items()
                    if files.xml.find_stem(listed_name) is None
                ]
        return [SplitLists(layout.lists, listed, self.image_ids)]

    def _read_split(self, files: VocFiles, faults: list[str] | None) -> dict[str, int]:
        """Return the ids of the images, each with its line of the list, 0 without a list."""
        layout = self._layout
        if self.split == "all" or not layout.list_names():
            if not files.xml.names:
                raise DataError(f"{files.xml.folder}: holds no annotation (*.xml)")
            self._note_unannotated(files)
            return dict.fromkeys(sorted(files.xml.names), 0)
        path = layout.list_path(self.split)
        if not path.exists():
            splits = ", ".join(layout.list_names()) or "none"
            raise DataError(f"{path}: no such split (there are: {splits}; or all)")
        return _read_list(path, files, faults)

    def _note_unannotated(self, files: VocFiles) -> None:
        xml, images = files
        alone = sorted(name for name in images.names if xml.find_stem(name) is None)
        if alone and len(images.names) > len(xml.names):
            self.notes.append(
                f"{images.folder}: {plural(len(alone), 'image')} without an annotation left out, "
                f"such as {images.names[alone[0]]}"
            )

    def _read_all(
        self, xml: FileIndex, faults: list[str] | None
    ) -> dict[Path, VocAnnotation | None]:
        """Read the annotations of all splits: the classes must not depend on the split.

        The value is None for an annotation whose fault is in `faults`.
        """
        if not xml.names:
            raise DataError(f"{xml.folder}: holds no annotation (*.xml)")
        paths = [xml.folder / xml.names[name] for name in sorted(xml.names)]
        read: dict[Path, VocAnnotation | None] = dict.fromkeys(paths)
        for path in progress(paths, f"reading {xml.folder}"):
            with CollectFaults(faults):
                read[path] = read_annotation(path)
        return read

    def _found_classes(
        self, read: dict[Path, VocAnnotation | None], faults: list[str] | None
    ) -> list[str]:
        found = {name for annotation in read.values() if annotation for name in annotation.names}
        if not found:
            reasons = [*(faults or []), *(line for a in read.values() if a for line in a.unusable)]
            first = f" that can be read; the first fault: {reasons[0]}" if reasons else ""
            raise DataError(f"{self._layout.annotations}: no annotation holds an object{first}")
        return sorted(found)

    def _add(
        self,
        number: str,
        line: int,
        files: VocFiles,
        read: dict[Path, VocAnnotation | None],
        unlabelled: bool,
    ) -> None:
        path = files.xml.find_stem(number)
        annotation = _NO_ANNOTATION
        if path is not None:
            known = read[path] if path in read else read_annotation(path)
            if known is None:
                return
            annotation = known
        elif unlabelled:
            self.labelled = False
        else:
            raise DataError(
                f"{files.xml.folder / number}.xml: no such annotation "
                f"({self._layout.list_path(self.split)}:{line} lists it)"
            )
        where = str(path or files.xml.folder / f"{number}.xml")
        image_path = _find_image(number, annotation.file_name, where, files)
        rows = []
        label_of = {name: label for label, name in enumerate(self.classes, 1)}
        for name, box_xyxy, difficult, place in annotation.objects:
            if name in label_of:
                box = BoxRow(box_xyxy, label_of[name], difficult, where=f"{where}: {place}")
                rows.append(box)
            else:
                self.left_out[name] += 1
        self.add_image(number, image_path, rows, annotation.size, where)
        self.dropped += annotation.unusable
        self.notes += annotation.notes


def _read_list(path: Path, files: VocFiles, faults: list[str] | None) -> dict[str, int]:
    """Return the ids of the images that a split list names, each with its first line."""
    ids: dict[str, int] = {}
    for number, line in read_lines(path):
        with CollectFaults(faults):
            ids.setdefault(listed_id(line, f"{path}:{number}", files), number)
    return ids


def _find_image(number: str, told: str, where: str, files: VocFiles) -> Path:
    """Return the image with the annotation's name, else the one that the annotation names.

    Of several images with that name but other endings, the annotation decides which it is.

    told: the name of the image in the annotation, or "".
    """
    xml, images = files
    parent = Path(number).parent.as_posix()
    if (path := images.find_stem(number)) is not None:
        named = images.find(f"{parent}/{told}") if told and ".." not in told else None
        if named is not None and named.stem == path.stem:
            return named
        return images.only(path, where)
    for name in (f"{parent}/{told}", told) if told and ".." not in told else ():
        path = images.find(name)
        # An image that has an annotation of its own is named by a copy of that one.
        if path is not None and xml.find_stem(image_id(path, images)) is None:
            return path
    endings = ", ".join(IMAGE_SUFFIXES)
    also = f", and for {told!r}, which {where} names" if told else ""
    raise DataError(f"{images.folder / number}: no such image (looked for {endings}{also})")


class VOCYears(JoinedDataset):
    """The same split of several VOC folders, joined: "07+12" is VOC2007 and VOC2012.

    `classes` are those of the folders if all have the same ones, else all of them, sorted.

    Args:
        years: the data sets to join, one or more, in this order.
        classes: the class names, which include those of the folders; None: see above.

    Example:
        >>> import tempfile
        >>> from mdssd.data import SyntheticScenes, VOCDataset, VOCYears, write_voc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     roots = [
        ...         write_voc(SyntheticScenes(2, seed, image_size=96), f"{folder}/VOC{year}")
        ...         for seed, year in enumerate((2007, 2012))
        ...     ]
        ...     dataset = VOCYears([VOCDataset(root) for root in roots])
        >>> dataset.name, len(dataset)
        ('VOC2007 trainval + VOC2012 trainval', 4)
    """

    def __init__(self, years: Sequence[VOCDataset], classes: Sequence[str] | None = None) -> None:
        same = all(year.classes == years[0].classes for year in years)
        names = {name for year in years for name in year.classes}
        super().__init__(years, classes or (years[0].classes if same else sorted(names)))
        self.years = list(years)


def is_voc(path: Path) -> bool:
    """Return whether a folder is one that `open_voc` opens."""
    return bool(voc_folders(path) or split_folders(path))


def open_voc(
    path: Path,
    split: str | None,
    classes: Sequence[str] | None,
    *,
    train: bool,
    unlabelled: bool,
    faults: list[str] | None,
    limits: ImageLimits | None = None,
    orientation: str = "auto",
) -> VOCDataset | VOCYears:
    """Open a VOC folder, a folder of VOC folders as VOCdevkit is, or one of split folders.

    See `open_dataset`.
    """
    roots = voc_folders(path)
    read = partial(VOCDataset, limits=limits, orientation=orientation)
    if not roots:
        if folders := split_folders(path):
            return _open_folders(path, folders, split, classes, train, faults, read)
        raise not_voc(path)
    if split is None:
        split = _usual_split(path, roots, train)
    if len(roots) > 1 and split != "all":
        having = [root for root in roots if _layout(root).list_path(split).is_file()]
        if not having:
            names = ", ".join(root.name for root in roots)
            raise DataError(f"{path}: none of {names} has a split {split}")
        roots = having
    several = len(roots) > 1
    years = [
        read(root, split, classes, unlabelled=unlabelled, faults=faults, part=several)
        for root in roots
    ]
    if not several:
        return years[0]
    joined = VOCYears(years)
    joined.note_classes(str(path))
    return joined


def _layout(root: Path) -> VocLayout:
    layout = find_layout(root)
    assert layout is not None  # `voc_folders` returns folders that have one
    return layout


def _usual_split(path: Path, roots: Sequence[Path], train: bool) -> str:
    layouts = [_layout(root) for root in roots]
    splits = sorted({name for layout in layouts for name in layout.list_names()})
    if not splits:
        return "all"
    # A single list of an unusual name, such as CVAT's default.txt, is all there is.
    return chosen_splits(layouts[0].lists if len(layouts) == 1 else path, splits, None, train)[0]


def _open_folders(
    path: Path,
    folders: dict[str, Path],
    split: str | None,
    classes: Sequence[str] | None,
    train: bool,
    faults: list[str] | None,
    read: Callable[..., VOCDataset],
) -> VOCYears:
    """Open folders that are each a split. The classes are those of all of them."""
    wanted = chosen_splits(path, folders, split, train)
    chosen, names = [], set()
    for name, folder in folders.items():
        if name in wanted:
            chosen.append(read(folder, "all", classes, faults=faults, part=True))
            names |= set(chosen[-1].classes)
        elif classes is None:
            with suppress(DataError):  # what is wrong in another split is not asked for
                names |= set(read(folder, "all", faults=[]).classes)
    joined = VOCYears(chosen, classes or sorted(names))
    joined.note_classes(str(path))
    return joined
