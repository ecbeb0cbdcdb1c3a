"""Other libraries read the same boxes from what the writers write."""

import cv2
import numpy as np
import pytest

from mdssd.data import SyntheticScenes, write_coco, write_voc, write_yolo


@pytest.fixture
def scenes():
    return SyntheticScenes(3, seed=5, image_size=200)


def wanted(scenes):
    return {
        scenes.image_ids[k]: sorted(
            (scenes.classes[label - 1], *(round(edge, 2) for edge in box.tolist()))
            for box, label in zip(scenes[k].boxes_xyxy, scenes[k].labels, strict=True)
        )
        for k in range(len(scenes))
    }


def test_globox(scenes, tmp_path):
    globox = pytest.importorskip("globox", reason="globox is not installed")
    yolo = write_yolo(scenes, tmp_path / "yolo", "train")
    coco = write_coco(scenes, tmp_path / "coco", "train")
    voc = write_voc(scenes, tmp_path / "voc", "train")
    names = {str(k): name for k, name in enumerate(scenes.classes)}
    read = globox.AnnotationSet
    found = [
        read.from_coco(coco / "annotations/instances_train.json"),
        read.from_pascal_voc(voc / "Annotations"),
        read.from_yolo_v5(
            yolo / "labels/train", image_folder=yolo / "images/train", image_extension=".png"
        ).map_labels(names),
    ]
    for annotations in found:
        got = {
            each.image_id.removesuffix(".png"): sorted(
                (box.label, *(round(edge, 2) for edge in box.ltrb)) for box in each.boxes
            )
            for each in annotations
        }
        assert got == wanted(scenes)


def test_supervision(scenes, tmp_path):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    yolo = write_yolo(scenes, tmp_path / "yolo", "train")
    coco = write_coco(scenes, tmp_path / "coco", "train")
    voc = write_voc(scenes, tmp_path / "voc", "train")
    read = supervision.DetectionDataset
    found = [
        read.from_yolo(
            str(yolo / "images/train"), str(yolo / "labels/train"), str(yolo / "data.yaml")
        ),
        read.from_coco(str(coco / "images"), str(coco / "annotations/instances_train.json")),
        read.from_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations")),
    ]
    for dataset, first in zip(found, (0, 0, 1), strict=True):
        got = {}
        for path, image, boxes in dataset:
            assert image.shape == cv2.imread(path).shape
            name = path.rpartition("/")[2].removesuffix(".png")
            # It takes the first pixel of a VOC file for number 1.
            corners = (boxes.xyxy + np.array([first, first, 0, 0])).tolist()
            got[name] = [
                (dataset.classes[label], *box)
                for box, label in zip(corners, boxes.class_id, strict=True)
            ]
        want = wanted(scenes)
        assert got.keys() == want.keys()
        for name, rows in want.items():
            assert sorted(label for label, *_ in got[name]) == [label for label, *_ in rows]
            np.testing.assert_allclose(
                sorted(row[1:] for row in got[name]),
                sorted(list(row[1:]) for row in rows),
                atol=0.011,
            )
