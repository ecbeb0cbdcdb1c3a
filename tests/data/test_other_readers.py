"""COCO, LabelMe and CVAT read as globox reads them, where it is installed."""

import json
import random

import cv2
import numpy as np
import pytest

from mdssd.data import open_dataset

globox = pytest.importorskip("globox", reason="globox, the other reader, is not installed")

random.seed(4)
BOXES = {
    f"{k}.png": [
        (label, x, y, x + random.randint(1, 200) / 4, y + random.randint(1, 100) / 4)
        for label, x, y in [
            (
                random.choice(["car", "big bus"]),
                random.randint(0, 200) / 8,
                random.randint(0, 200) / 8,
            )
            for _ in range(1 + k % 4)
        ]
    ]
    for k in range(6)
}


def write_images(folder):
    folder.mkdir()
    for name in BOXES:
        cv2.imwrite(str(folder / name), np.zeros((60, 80, 3), np.uint8))


def found(dataset):
    """Return the boxes of each image by its file's name."""
    result = {}
    for index in range(len(dataset)):
        sample = dataset.annotation(index)
        names = [dataset.classes[label - 1] for label in sample.labels]
        rows = zip(names, sample.boxes_xyxy.tolist(), strict=True)
        result[dataset.image_path(index).name] = sorted((name, *box) for name, box in rows)
    return result


def theirs(annotations):
    return {
        each.image_id: sorted((b.label, b.xmin, b.ymin, b.xmax, b.ymax) for b in each.boxes)
        for each in annotations
    }


def assert_same(dataset, annotations):
    ours, others = found(dataset), theirs(annotations)
    assert ours.keys() == others.keys() == BOXES.keys()
    for name, rows in ours.items():
        assert [row[0] for row in rows] == [row[0] for row in others[name]]
        np.testing.assert_allclose(
            [row[1:] for row in rows], [row[1:] for row in others[name]], atol=1e-3
        )


def test_coco(tmp_path):
    write_images(tmp_path / "images")
    ids = {name: number for number, name in enumerate(BOXES, 1)}
    rows = [(ids[name], *row) for name, boxes in BOXES.items() for row in boxes]
    content = {
        "images": [
            {"id": number, "file_name": name, "width": 80, "height": 60}
            for name, number in ids.items()
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 4, "name": "big bus"}],
        "annotations": [
            {
                "id": k,
                "image_id": image,
                "category_id": 1 if label == "car" else 4,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            for k, (image, label, x1, y1, x2, y2) in enumerate(rows, 1)
        ],
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    assert_same(open_dataset(tmp_path), globox.AnnotationSet.from_coco(path))


def test_labelme(tmp_path):
    write_images(tmp_path / "images")
    for name, boxes in BOXES.items():
        shapes = [
            {"label": label, "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle"}
            for label, x1, y1, x2, y2 in boxes
        ]
        size = {"imageWidth": 80, "imageHeight": 60}
        content = {"shapes": shapes, "imagePath": name, "imageData": None, **size}
        (tmp_path / "images" / name).with_suffix(".json").write_text(json.dumps(content))
    assert_same(open_dataset(tmp_path), globox.AnnotationSet.from_labelme(tmp_path / "images"))


def test_cvat(tmp_path):
    write_images(tmp_path / "images")
    images = "".join(
        f'<image id="0" name="{name}" width="80" height="60">'
        + "".join(
            f'<box label="{label}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"></box>'
            for label, x1, y1, x2, y2 in boxes
        )
        + "</image>"
        for name, boxes in BOXES.items()
    )
    path = tmp_path / "annotations.xml"
    path.write_text(f"<annotations><version>1.1</version>{images}</annotations>")
    assert_same(open_dataset(tmp_path), globox.AnnotationSet.from_cvat(path))
