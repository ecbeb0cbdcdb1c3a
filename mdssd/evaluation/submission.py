"""Detections as the evaluation servers of PASCAL VOC and COCO accept them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdssd.data import DetectionDataset
from mdssd.drawing.figures import shorten
from mdssd.system.files import atomic_write

# The longest file name that Linux accepts, in bytes.
_LONGEST_NAME = 255


def check_submission(dataset: DetectionDataset) -> None:
    """Check that detections in a data set can be written for its server, before there are any.

    Args:
        dataset: a VOC folder or a COCO file.

    Raises:
        ValueError: a name cannot be written as the server reads it, or the data set has another
            format. The functions below raise the same error.
    """
    if dataset.submission == "voc":
        _check_voc_names(dataset)
    elif dataset.submission == "coco":
        _coco_image_ids(dataset)
    else:
        raise ValueError(
            f"write_submission: {dataset.name} is neither a VOC folder nor a COCO file"
        )


def write_submission(
    folder: str | os.PathLike[str],
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> list[Path]:
    """Write the detections in a data set as files for the server of its format.

    Args:
        folder: where to write; it must exist.
        dataset: a VOC folder or a COCO file.
        detections: one dict per image of the data set, in order: "boxes" [D, 4] xyxy in pixels,
            "scores" [D], "labels" [D].
        classes: the detector's class names; label k is `classes[k - 1]`. Detections of a class
            that the data set lacks are left out.

    Returns:
        The paths of the files: those of `write_voc_submission`, or of `write_coco_submission`
        detections_TESTSET_mdssd_results.json. For image_info_test-dev2017.json, TESTSET is
        test-dev2017.

    Raises:
        ValueError: the data set has another format, or does not fit the detections.

    Example:
        >>> import tempfile
        >>> from mdssd.data import SyntheticScenes, VOCDataset, write_voc
        >>> from mdssd.evaluation.submission import write_submission
        >>> found = {"boxes": [[1.0, 2.0, 30.0, 40.0]], "scores": [0.5], "labels": [1]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dataset = VOCDataset(write_voc(SyntheticScenes(1), f"{folder}/voc"), "all")
        ...     paths = write_submission(folder, dataset, [found], dataset.classes)
        ...     paths[0].name, paths[0].read_text().split()[1:]
        ('comp4_det_all_cross.txt', ['0.5', '1.000', '2.000', '30.000', '40.000'])
    """
    check_submission(dataset)
    if dataset.submission == "voc":
        return write_voc_submission(folder, dataset, detections, classes)
    testset = dataset.name.removeprefix("instances_").removeprefix("image_info_")
    path = Path(folder) / f"detections_{testset}_mdssd_results.json"
    return [write_coco_submission(path, dataset, detections, classes)]


def write_voc_submission(
    folder: str | os.PathLike[str],
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> list[Path]:
    """Write comp4_det_SPLIT_CLASS.txt for each class of the data set, and return the paths.

    A line is `image score xmin ymin xmax ymax`; the images come in order. A class without
    detections has an empty file. The boxes are written unchanged, to a thousandth of a pixel: VOC
    counts pixels from 1, and a network that is trained on VOC's annotations does so too.

    The arguments are those of `write_submission`.

    Raises:
        ValueError: a class name cannot be part of a file name, an image name contains white
            space, or there are not as many entries as images.
    """
    _check_length("write_voc_submission", dataset.image_ids, detections)
    _check_voc_names(dataset)
    paths = []
    for name in dataset.classes:
        label = _label(classes, name)
        path = Path(folder) / _voc_file(dataset, name)
        with atomic_write(path) as file:
            for image_id, found in zip(dataset.image_ids, detections, strict=True):
                for k in np.flatnonzero(np.asarray(found["labels"]) == label).tolist():
                    box = " ".join(f"{value:.3f}" for value in np.asarray(found["boxes"])[k])
                    file.write(f"{image_id} {_score(found, k)} {box}\n")
        paths.append(path)
    return paths


def write_coco_submission(
    path: str | os.PathLike[str],
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> Path:
    """Write a list of {"image_id", "category_id", "bbox", "score"} as JSON; return the path.

    The ids are those of the data set's file. "bbox" is [x, y, width, height] in pixels, to a
    hundredth, as in COCO's own annotations. The arguments are those of `write_submission`, except
    for the path of the file.

    Raises:
        ValueError: there are not as many entries as images, or an image id is not a whole number.
    """
    _check_length("write_coco_submission", dataset.image_ids, detections)
    category_of = {
        _label(classes, name): category
        for name, category in zip(dataset.classes, dataset.category_ids, strict=True)
    }
    results = []
    for image_id, found in zip(_coco_image_ids(dataset), detections, strict=True):
        boxes = np.asarray(found["boxes"], np.float64)
        for k, label in enumerate(np.asarray(found["labels"]).tolist()):
            if label in category_of:
                x1, y1, x2, y2 = boxes[k].tolist()
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": category_of[label],
                        "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                        "score": float(_score(found, k)),
                    }
                )
    with atomic_write(path) as file:
        json.dump(results, file, allow_nan=False)
    return Path(path)


def _voc_file(dataset: DetectionDataset, name: str) -> str:
    return f"comp4_det_{dataset.split}_{name}.txt"


def _check_voc_names(dataset: DetectionDataset) -> None:
    """Raise ValueError unless a VOC server can read the names of the classes and the images."""
    for name in dataset.classes:
        file = _voc_file(dataset, name)
        try:
            fits = len(file.encode("utf-8")) <= _LONGEST_NAME
        except UnicodeEncodeError:  # a lone surrogate
            fits = False
        if not fits or Path(file).name != file or "\\" in file or "\0" in file:
            raise ValueError(
                "write_voc_submission: a file is named after each class, and "
                f"{shorten(file, 80)!r} cannot be the name of a file"
            )
    spaced = [name for name in dataset.image_ids if name.split() != [name]]
    if spaced:
        raise ValueError(
            "write_voc_submission: a VOC server reads image names without white space, but "
            f"{len(spaced)} of the {len(dataset.image_ids)} images have such names, the first is "
            f"{spaced[0]!r}; rename these images and their annotations, or convert the data to COCO"
        )


def _coco_image_ids(dataset: DetectionDataset) -> list[int]:
    """Return the ids of the images as the whole numbers that a COCO server reads."""
    ids = []
    for name in dataset.image_ids:
        try:
            ids.append(int(name))
        except ValueError:
            raise ValueError(
                "write_coco_submission: a COCO server reads image ids that are whole numbers, "
                f"but an image of {dataset.name} has the id {name!r}"
            ) from None
    return ids


def _label(classes: Sequence[str], name: str) -> int:
    """Return the detector's label of a class. It is 0, which no detection has, if it has none."""
    return list(classes).index(name) + 1 if name in classes else 0


def _score(found: Mapping[str, Any], k: int) -> str:
    # Nine digits distinguish any two float32 values, so the order is kept.
    return f"{float(found['scores'][k]):.9g}"


def _check_length(function: str, image_ids: Sequence[str], detections: Sequence[Any]) -> None:
    if len(image_ids) != len(detections):
        raise ValueError(
            f"{function}: detections: expected one entry per image ({len(image_ids)}), "
            f"got {len(detections)}"
        )
