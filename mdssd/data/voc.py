"""Data sets in the folder layout of PASCAL VOC."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mdssd.data.dataset import SPLITS, SplitLists
from mdssd.data.images import IMAGE_SUFFIXES, path_inside, read_header
from mdssd.data.photos import CollectFaults, PhotoDataset, progress
from mdssd.data.sample import BoxRow, DataError
from mdssd.data.voc_xml import VocAnnotation, read_annotation

_TRAIN_SPLITS = ("trainval", "train")
_TEST_SPLITS = ("test", "val", "valid")


class VOCDataset(PhotoDataset):
    """A folder with JPEGImages, Annotations and (optionally) ImageSets/Main.

    Coordinates are kept as written. Boxes without area or outside the image are left out and
    listed in `dropped`. An image whose annotation has no boxes is kept, as pure background.

    Args:
        root: the folder.
        split: the name of a file in ImageSets/Main, without ".txt". "all" uses every annotation,
            and so does a folder without ImageSets/Main.
        classes: class names in label order. None: every name that occurs in Annotations, sorted.
            These are the same for every split.
        unlabelled: also accept images of the split that have no annotation, as in a challenge's
            test set. `labelled` is False if there is one. With `classes` given, the folder
            Annotations need not exist.
        faults: a list that receives a line about each image that cannot be used; the image is
            left out. None: the first such image raises DataError.

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

    submission = "voc"

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "trainval",
        classes: Sequence[str] | None = None,
        *,
        unlabelled: bool = False,
        faults: list[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.split: str = split
        super().__init__(f"{self.root.resolve().name} {split}")
        names_suffice = unlabelled and classes is not None
        for folder in ["JPEGImages"] if names_suffice else ["Annotations", "JPEGImages"]:
            if not (self.root / folder).is_dir():
                raise DataError(f"{self.root}: not in VOC layout, it has no folder {folder}")
        image_ids = self._read_split()
        read = self._read_all(faults) if classes is None else {}
        found = {each.name for one in read.values() if one for each in one.objects}
        self.classes = sorted(found) if classes is None else list(classes)
        if not self.classes:
            raise DataError(f"{self.root / 'Annotations'}: no annotation holds an object")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"VOCDataset: classes names one twice: {', '.join(self.classes)}")
        label_of = {name: label for label, name in enumerate(self.classes, 1)}
        for image_id in progress(image_ids, f"reading {self.name}"):
            with CollectFaults(faults):
                self._add(image_id, read, label_of, unlabelled)

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """Read every usual split in ImageSets/Main; listing an unannotated image is a fault."""
        folder = self.root / "ImageSets" / "Main"
        listed: dict[str, list[str]] = {}
        for name in SPLITS:
            path = folder / f"{name}.txt"
            if not path.is_file():
                continue
            with CollectFaults(faults):
                listed[name] = read_split(path)
                faults += [
                    f"{path}: lists {image_id}, which has no annotation"
                    for image_id in listed[name]
                    if self.split != name
                    and not (self.root / "Annotations" / f"{image_id}.xml").is_file()
                ]
        return [SplitLists(folder, listed, self.image_ids)]

    def _read_split(self) -> list[str]:
        folder = self.root / "ImageSets" / "Main"
        if self.split == "all" or not folder.is_dir():
            ids = sorted(path.stem for path in (self.root / "Annotations").glob("*.xml"))
            if not ids:
                raise DataError(f"{self.root / 'Annotations'}: holds no annotation (*.xml)")
            return ids
        path = path_inside(folder, f"{self.split}.txt", str(folder))
        if not path.is_file():
            splits = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
            raise DataError(f"{path}: no such split (there are: {splits}; or all)")
        return read_split(path)

    def _read_all(self, faults: list[str] | None) -> dict[Path, VocAnnotation | None]:
        """Read the annotations of all splits: the classes must not depend on the split.

        The value is None for an annotation whose fault is in `faults`.
        """
        folder = self.root / "Annotations"
        paths = [path_inside(folder, path.name, str(path)) for path in sorted(folder.glob("*.xml"))]
        if not paths:
            raise DataError(f"{folder}: holds no annotation (*.xml)")
        read: dict[Path, VocAnnotation | None] = dict.fromkeys(paths)
        for path in progress(paths, f"reading {folder}"):
            with CollectFaults(faults):
                read[path] = read_annotation(path)
        return read

    def _add(
        self,
        image_id: str,
        read: dict[Path, VocAnnotation | None],
        label_of: dict[str, int],
        unlabelled: bool,
    ) -> None:
        path = path_inside(self.root / "Annotations", f"{image_id}.xml", f"split {self.split}")
        annotated = path.is_file()
        if annotated:
            annotation = read[path] if path in read else read_annotation(path)
            if annotation is None:
                return
        elif unlabelled:
            annotation, self.labelled = VocAnnotation((0, 0), []), False
        else:
            raise DataError(f"{path}: no such annotation (the split {self.split} lists it)")
        image_path = self._find_image(image_id)
        stated, size = annotation.size, read_header(image_path).size(False)
        fault = None
        if size != stated and annotated:
            fault = (
                f"{path}: states {stated[0]} x {stated[1]}, "
                f"{image_path.name} is {size[0]} x {size[1]}"
            )
        rows = []
        for name, box_xyxy, difficult in annotation.objects:
            if name not in label_of:
                raise DataError(
                    f"{path}: class {name!r} is not among the classes {', '.join(self.classes)}"
                )
            rows.append(BoxRow(box_xyxy, label_of[name], difficult))
        self.size_faults += [fault] if fault else []
        self.add_image(image_id, image_path, rows, size, str(path))

    def _find_image(self, image_id: str) -> Path:
        folder = self.root / "JPEGImages"
        for suffix in (*IMAGE_SUFFIXES, *(s.upper() for s in IMAGE_SUFFIXES)):
            path = path_inside(folder, image_id + suffix, f"split {self.split}")
            if path.is_file():
                return path
        raise DataError(
            f"{folder / image_id}: no such image (looked for {', '.join(IMAGE_SUFFIXES)})"
        )


class VOCYears(PhotoDataset):
    """The same split of several VOC folders, joined: "07+12" is VOC2007 and VOC2012.

    `classes` are those of the folders if all have the same ones, else all of them, sorted.

    Args:
        years: the data sets to join, one or more, in this order.

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

    def __init__(self, years: Sequence[VOCDataset]) -> None:
        super().__init__(" + ".join(year.name for year in years))
        self.years = list(years)
        same = all(year.classes == years[0].classes for year in years)
        names = {name for year in years for name in year.classes}
        self.classes = list(years[0].classes) if same else sorted(names)
        self.labelled = all(year.labelled for year in years)
        for year in years:
            label_of = np.array([0, *(self.classes.index(name) + 1 for name in year.classes)])
            self.image_ids += year.image_ids
            self.dropped += year.dropped
            self.size_faults += year.size_faults
            self._paths += year._paths
            for annotation in year._annotations:
                own = copy.copy(annotation)
                own.labels = label_of[annotation.labels]
                self._annotations.append(own)

    def split_lists(self, faults: list[str]) -> list[SplitLists]:
        """Return the lists of each folder, in order."""
        return [lists for year in self.years for lists in year.split_lists(faults)]


def open_voc(
    path: Path,
    split: str | None,
    classes: Sequence[str] | None,
    *,
    train: bool,
    unlabelled: bool,
    faults: list[str] | None,
) -> VOCDataset | VOCYears:
    """Open a VOC folder, or a folder of VOC folders as VOCdevkit is; see `open_dataset`."""
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
    """Return the folder itself, or the folders in it that are named after their year."""
    if (path / "JPEGImages").is_dir():
        return [path]
    years = sorted(f for f in path.glob("VOC[12][0-9][0-9][0-9]") if (f / "JPEGImages").is_dir())
    files = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    if files and not years:
        raise DataError(
            f"{path}: not in VOC layout, it has no folder JPEGImages; "
            "if this is COCO data, give the file: "
            + ", ".join(map(str, files[:4]))
            + (" ..." if len(files) > 4 else "")
        )
    return years or [path]


def _default_split(path: Path, lists: Sequence[Path], train: bool) -> str:
    if not any(folder.is_dir() for folder in lists):
        return "all"
    usual = _TRAIN_SPLITS if train else _TEST_SPLITS
    for split in usual:
        if any((folder / f"{split}.txt").is_file() for folder in lists):
            return split
    splits = ", ".join(sorted({p.stem for f in lists for p in f.glob("*.txt")})) or "none"
    where = lists[0] if len(lists) == 1 else path
    raise DataError(f"{where}: none of the splits {', '.join(usual)} (there are: {splits}; or all)")


def read_split(path: Path) -> list[str]:
    """Return the image ids that a file of ImageSets/Main lists, without repetitions.

    An id is the first word of its line, or the whole line if an annotation has that name.
    Raises DataError if the file cannot be read or lists nothing.
    """
    annotations = path.parents[2] / "Annotations"

    def image_id(line: str) -> str:
        whole = line.strip()
        first = whole.split()[0]
        return whole if whole != first and (annotations / f"{whole}.xml").is_file() else first

    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    ids = list(dict.fromkeys(image_id(line) for line in lines if line.strip()))
    if not ids:
        raise DataError(f"{path}: the split lists no image")
    return ids
