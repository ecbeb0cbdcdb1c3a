"""Opening a data set of any format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdssd.data.coco import CocoDataset
from mdssd.data.coco_folder import is_coco_folder, open_coco_folder
from mdssd.data.csv_boxes import is_csv, open_csv
from mdssd.data.csv_table import first_line
from mdssd.data.cvat import is_cvat, open_cvat
from mdssd.data.dataset import DetectionDataset
from mdssd.data.file_index import FileIndex, is_hidden
from mdssd.data.hugging_face import is_hugging_face, open_hugging_face
from mdssd.data.images import ImageLimits
from mdssd.data.kitti import is_kitti, open_kitti
from mdssd.data.labelme import is_labelme, open_labelme
from mdssd.data.listed import ReadOptions
from mdssd.data.photos import CollectFaults
from mdssd.data.sample import DataError
from mdssd.data.splits import ALL
from mdssd.data.synthetic import SyntheticScenes
from mdssd.data.values import shown
from mdssd.data.voc import is_voc, open_voc
from mdssd.data.yolo import is_yolo, open_yolo

# Added to the seed of generated test scenes, so that nobody trains on them by accident.
_TEST_SEED = 1 << 40
_HELD = 8  # names in a message


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
    orientation: str = "auto",
) -> DetectionDataset:
    """Open the data at `path`, whose format is recognised by what it holds.

    docs/formats.md describes the formats. A folder that holds VOC folders (VOC2007, VOC2012 ... as
    in VOCdevkit) is opened as the union of those that have the split.

    Args:
        path: the folder, the file, or None for generated scenes.
        split: the name of a split; "all" for the images of all splits. None: a split to train on
            or to test on, as `train` says: the first of trainval, train, or of test, val, valid,
            that the data have.
        train: see `split`.
        classes: the class names in label order; see `VOCDataset` and `CocoDataset`.
        image_dir: the folder of the images of a COCO file, see `CocoDataset`, or of all COCO files
            of a folder; then it may also hold a folder for each split.
        image_size: the side of generated scenes, in pixels.
        count: the number of generated scenes. None: 1000 to train on, 200 to test on.
        seed: the seed of generated scenes.
        unlabelled: also accept images without annotations; see `VOCDataset` and `CocoDataset`.
        faults: a list that receives a line about each image that cannot be used; the image is
            left out. None: the first such image raises DataError.
        limits: what an image file may hold. None: the default of `ImageLimits`.
        orientation: what the boxes refer to where EXIF data turn an image: "upright", the turned
            image; "stored", the pixels as they are stored; "auto": what the stated size or the
            habit of the format says.

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
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: is neither a regular file nor a folder")
    options = ReadOptions(classes, unlabelled, faults, limits, orientation)
    if path.is_file() and is_yolo(path):
        _refuse(f"YOLO labels ({path})", image_dir=image_dir)
        return open_yolo(path, split, train, options)
    if path.is_file() and is_cvat(path):
        _refuse(f"a file of CVAT ({path})", image_dir=image_dir)
        return open_cvat(path, split, train, options)
    if path.is_file() and is_csv(path):
        _refuse(f"a CSV file ({path})", image_dir=image_dir)
        return open_csv(path, split, train, options)
    if path.is_file() and is_hugging_face(path):
        _refuse(f"a table ({path})", image_dir=image_dir)
        return open_hugging_face(path, split, train, options)
    if path.is_file():
        _refuse(f"a COCO file ({path})", split=None if split == ALL else split)
        return CocoDataset(path, image_dir, classes, **_keywords(options))
    return _open_folder(path, split, train, options, image_dir)


def _open_folder(
    path: Path,
    split: str | None,
    train: bool,
    options: ReadOptions,
    image_dir: str | os.PathLike[str] | None,
) -> DetectionDataset:
    """Open a folder by what it holds."""
    cvat = is_cvat(path)
    voc = not cvat and is_voc(path)
    if not (cvat or voc) and is_coco_folder(path):
        return open_coco_folder(path, split, train, options, image_dir)
    _refuse(f"the folder {path}, which is not of COCO files", image_dir=image_dir)
    if cvat:
        return open_cvat(path, split, train, options)
    if voc:
        return open_voc(path, split, options.classes, train=train, **_keywords(options))
    if is_kitti(path):
        return open_kitti(path, split, train, options)
    if is_yolo(path):
        return open_yolo(path, split, train, options)
    if is_labelme(path):
        return open_labelme(path, split, train, options)
    if is_csv(path):
        return open_csv(path, split, train, options)
    if is_hugging_face(path):
        return open_hugging_face(path, split, train, options)
    FileIndex(path, ())  # names a folder that cannot be read, which may hold the annotations
    raise unrecognised(path)


def _keywords(options: ReadOptions) -> dict[str, Any]:
    """Return the options that `CocoDataset` and `open_voc` take as keywords."""
    keywords = dict(vars(options))
    del keywords["classes"]
    return keywords


def unrecognised(path: Path) -> DataError:
    """Return the error about a folder that holds none of the formats, with what would be one."""
    held = sorted(p.name + "/" * p.is_dir() for p in path.iterdir() if not is_hidden(p.name))
    found = ", ".join(held[:_HELD]) + (", ..." if len(held) > _HELD else "") or "nothing"
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() == ".csv")
    for table in tables[:1]:
        with CollectFaults([]):
            found += f"; the first row of {table.name} is {shown(first_line(table).strip())}"
    return DataError(
        f"{path}: no data set was recognised; found {found}; expected one of: "
        + "; ".join(
            (
                "VOC (JPEGImages/ with Annotations/, or each .xml file beside its image)",
                "COCO (a JSON file with images, annotations and categories for each split)",
                "YOLO labels (data.yaml, a .data file of darknet, or images/ with labels/)",
                "CVAT for images (annotations.xml)",
                "LabelMe (a .json file with shapes for each image)",
                "KITTI (image_2/ with label_2/)",
                "CSV (a .csv file with the columns path, x1, y1, x2, y2, class)",
                "Hugging Face (a data set saved to disk, or Parquet files)",
            )
        )
    )


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
