"""Files that the evaluation servers of PASCAL VOC and COCO take."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdssd.data import DetectionDataset
from mdssd.system.files import atomic_write


def write_submission(
    folder: str | os.PathLike[str],
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> list[Path]:
    """Write what the server of the data set's layout takes into a folder; gives the paths.

    See `write_voc_submission` and `write_coco_submission`. The latter's file is
    detections_TESTSET_mdssd_results.json, with test-dev2017 of image_info_test-dev2017.json.
    Raises ValueError for data of neither layout.
    """
    if dataset.submission == "voc":
        return write_voc_submission(folder, dataset, detections, classes)
    if dataset.submission == "coco":
        testset = dataset.name.removeprefix("instances_").removeprefix("image_info_")
        path = Path(folder) / f"detections_{testset}_mdssd_results.json"
        return [write_coco_submission(path, dataset, detections, classes)]
    raise ValueError(f"write_submission: {dataset.name} is neither a VOC folder nor a COCO file")


def write_voc_submission(
    folder: str | os.PathLike[str],
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> list[Path]:
    """Write `comp4_det_SPLIT_CLASS.txt` for each class of the data set; gives the paths.

    detections: one dict per image of the data set, in order: "boxes" [D, 4] xyxy, "scores" [D],
    "labels" [D] (label k is classes[k - 1]). Those of a class that the data set has not are left
    out.
    A line is `image score xmin ymin xmax ymax`, images in order. The boxes are written as they
    are, to a thousandth: a network trained on VOC's annotations, whose first pixel is 1, gives
    its boxes in the same coordinates. A class without detections has an empty file.
    Raises ValueError for a class name that cannot be part of a file name, an image name with
    white space, or a list of another length.
    """
    _check_length("write_voc_submission", dataset.image_ids, detections)
    for name in [str(dataset.split), *dataset.classes]:
        if Path(f"_{name}").name != f"_{name}" or "\\" in name or "\0" in name:
            raise ValueError(f"write_voc_submission: {name!r} cannot be part of a file name")
    for name in dataset.image_ids:
        if name.split() != [name]:
            raise ValueError(f"write_voc_submission: image name {name!r} has white space")
    paths = []
    for name in dataset.classes:
        label = _label(classes, name)
        path = Path(folder) / f"comp4_det_{dataset.split}_{name}.txt"
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
    """Write a list of {"image_id", "category_id", "bbox", "score"} as JSON; gives the path.

    detections, classes: as for `write_voc_submission`. Ids are those of the data set's file;
    bbox is [x, y, width, height] in pixels, to a hundredth, as COCO's own annotations.
    Raises ValueError for a list of another length.
    """
    _check_length("write_coco_submission", dataset.image_ids, detections)
    category_of = {
        _label(classes, name): category
        for name, category in zip(dataset.classes, dataset.category_ids, strict=True)
    }
    results = []
    for image_id, found in zip(dataset.image_ids, detections, strict=True):
        boxes = np.asarray(found["boxes"], np.float64)
        for k, label in enumerate(np.asarray(found["labels"]).tolist()):
            if label in category_of:
                x1, y1, x2, y2 = boxes[k].tolist()
                results.append(
                    {
                        "image_id": int(image_id),
                        "category_id": category_of[label],
                        "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                        "score": float(_score(found, k)),
                    }
                )
    with atomic_write(path) as file:
        json.dump(results, file, allow_nan=False)
    return Path(path)


def _label(classes: Sequence[str], name: str) -> int:
    """The detector's label of a class of the data set; 0, which no detection has, if none."""
    return list(classes).index(name) + 1 if name in classes else 0


def _score(found: Mapping[str, Any], k: int) -> str:
    # Nine digits tell every two float32 apart, so the order stays.
    return f"{float(found['scores'][k]):.9g}"


def _check_length(function: str, image_ids: Sequence[str], detections: Sequence[Any]) -> None:
    if len(image_ids) != len(detections):
        raise ValueError(
            f"{function}: detections: expected one entry per image ({len(image_ids)}), "
            f"got {len(detections)}"
        )
