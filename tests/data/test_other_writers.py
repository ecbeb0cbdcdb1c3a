"""What other libraries write, where they are installed, is read with the same boxes."""

import random

import cv2
import numpy as np
import pytest
import yaml

from mdssd.data import open_dataset

WIDTH, HEIGHT = 80, 60
CLASSES = ["big bus", "car", "tram"]


@pytest.fixture
def boxes():
    """Boxes of quarters of a pixel for each image, as label and corners; two images have none."""
    chance = random.Random(4)
    result = {}
    for k in range(7):
        rows = []
        for _ in range((0, 1, 2, 5, 3, 0, 12)[k]):
            x1, x2 = sorted(chance.sample(range(WIDTH * 4 + 1), 2))
            y1, y2 = sorted(chance.sample(range(HEIGHT * 4 + 1), 2))
            rows.append((chance.choice(CLASSES), x1 / 4, y1 / 4, x2 / 4, y2 / 4))
        result[f"img {k}.png" if k == 3 else f"{k}.png"] = rows
    return result


def write_images(folder, boxes):
    folder.mkdir(parents=True)
    for k, name in enumerate(boxes):
        cv2.imwrite(str(folder / name), np.full((HEIGHT, WIDTH, 3), 20 * k, np.uint8))


def assert_read(folder, boxes, others=()):
    """Open a folder and compare the boxes. others: images that the writer leaves out."""
    faults: list[str] = []
    dataset = open_dataset(folder, "all", faults=faults)
    assert not faults and not dataset.dropped and not dataset.size_faults
    found = {}
    for index in range(len(dataset)):
        sample = dataset.annotation(index)
        names = [dataset.classes[label - 1] for label in sample.labels]
        rows = zip(names, sample.boxes_xyxy.tolist(), strict=True)
        found[dataset.image_path(index).name] = sorted((name, *box) for name, box in rows)
    assert found.keys() == boxes.keys() - set(others)
    for name, rows in found.items():
        want = sorted(boxes[name])
        assert [row[0] for row in rows] == [row[0] for row in want]
        ours, theirs = (np.array([row[1:] for row in each]).reshape(-1, 4) for each in (rows, want))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    return dataset


@pytest.fixture
def globox_set(boxes):
    globox = pytest.importorskip("globox", reason="globox is not installed")
    return globox.AnnotationSet(
        globox.Annotation(
            name,
            (WIDTH, HEIGHT),
            [
                globox.BoundingBox(label=label, xmin=a, ymin=b, xmax=c, ymax=d)
                for label, a, b, c, d in rows
            ],
        )
        for name, rows in boxes.items()
    )


@pytest.mark.parametrize("form", ["yolo_v5", "yolo_v7", "yolo_darknet"])
def test_yolo_of_globox(globox_set, boxes, tmp_path, form):
    write_images(tmp_path / "images", boxes)
    (tmp_path / "labels").mkdir()
    numbers = {name: k for k, name in enumerate(CLASSES)}
    getattr(globox_set, f"save_{form}")(tmp_path / "labels", label_to_id=numbers)
    (tmp_path / "labels" / "classes.txt").write_text("\n".join(CLASSES))
    assert assert_read(tmp_path, boxes).classes == CLASSES


def test_coco_of_globox(globox_set, boxes, tmp_path):
    write_images(tmp_path / "images", boxes)
    globox_set.save_coco(tmp_path / "instances.json", auto_ids=True)
    assert_read(tmp_path, boxes)


def test_voc_of_globox(globox_set, boxes, tmp_path):
    write_images(tmp_path / "JPEGImages", boxes)
    globox_set.save_pascal_voc(tmp_path / "Annotations")
    assert_read(tmp_path, boxes)


def test_labelme_of_globox(globox_set, boxes, tmp_path):
    write_images(tmp_path / "data", boxes)
    globox_set.save_labelme(tmp_path / "data")
    assert_read(tmp_path / "data", boxes)


def test_cvat_of_globox(globox_set, boxes, tmp_path):
    write_images(tmp_path / "images", boxes)
    globox_set.save_cvat(tmp_path / "annotations.xml")
    assert_read(tmp_path, boxes)


def test_openimages_csv_of_globox(globox_set, boxes, tmp_path):
    write_images(tmp_path / "images", boxes)
    globox_set.save_openimage(tmp_path / "boxes.csv")
    assert_read(tmp_path, boxes, others=[name for name, rows in boxes.items() if not rows])


@pytest.fixture
def supervision_set(boxes, tmp_path):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    write_images(tmp_path / "source", boxes)
    annotations = {}
    for name, rows in boxes.items():
        corners = np.array([row[1:] for row in rows], np.float32).reshape(-1, 4)
        labels = np.array([CLASSES.index(row[0]) for row in rows], int)
        annotations[str(tmp_path / "source" / name)] = supervision.Detections(
            xyxy=corners, class_id=labels
        )
    return supervision.DetectionDataset(CLASSES, list(annotations), annotations)


def test_yolo_of_supervision(supervision_set, boxes, tmp_path):
    out = tmp_path / "out"
    supervision_set.as_yolo(str(out / "images"), str(out / "labels"), str(out / "data.yaml"))
    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    assert assert_read(out, boxes).classes == names


def test_coco_of_supervision(supervision_set, boxes, tmp_path):
    out = tmp_path / "out"
    supervision_set.as_coco(str(out / "images"), str(out / "annotations" / "train.json"))
    assert_read(out, boxes)


def test_voc_of_supervision(supervision_set, boxes, tmp_path):
    """It writes whole pixels, and adds 1 to the left and top edge as it subtracts it there."""
    out = tmp_path / "out"
    for found in supervision_set.annotations.values():
        found.xyxy = 4 * found.xyxy % np.tile([WIDTH // 2 - 1, HEIGHT // 2 - 1], 2)
        found.xyxy[:, 2:] += [WIDTH // 2, HEIGHT // 2]
    whole = {
        path.rpartition("/")[2]: [
            (CLASSES[label], *(box + [1, 1, 0, 0]).tolist())
            for label, box in zip(found.class_id, found.xyxy, strict=True)
        ]
        for path, found in supervision_set.annotations.items()
    }
    supervision_set.as_pascal_voc(str(out / "JPEGImages"), str(out / "Annotations"))
    assert_read(out, whole)


def test_labelme_of_supervision(supervision_set, boxes, tmp_path):
    out = tmp_path / "out"
    supervision_set.as_labelme(str(out), str(out))
    assert_read(out, boxes)
