"""Submission files can be read back as the servers read them, also without annotations."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mdssd import ssd300
from mdssd.cli import main
from mdssd.data import CocoDataset, DataError, SyntheticScenes, VOCDataset, open_dataset, write_voc
from mdssd.detection.detector import Detector
from mdssd.evaluation.evaluate import evaluate, find_all
from mdssd.evaluation.submission import (
    write_coco_submission,
    write_submission,
    write_voc_submission,
)
from mdssd.metrics import coco_ap, voc_ap
from mdssd.models import MEAN_RGB
from mdssd.weights.checkpoint import save_checkpoint

CLASSES = SyntheticScenes(1).classes
# COCO's category ids have gaps and need not begin with 1.
IDS = [7 * k + 4 for k in range(len(CLASSES))]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """A VOC folder of six generated scenes."""
    root = tmp_path_factory.mktemp("voc") / "set"
    return write_voc(SyntheticScenes(6, seed=3), root, split="test")


@pytest.fixture(scope="module")
def coco(voc):
    """The same scenes as a COCO file, whose image ids count down."""
    dataset = VOCDataset(voc, "test", CLASSES)
    images, annotations = [], []
    for i in range(len(dataset)):
        sample = dataset.annotation(i)
        name = dataset.image_path(i).name
        images.append({"id": 900 - i, "file_name": name, "width": 300, "height": 300})
        for (x1, y1, x2, y2), label in zip(
            sample.boxes_xyxy.tolist(), sample.labels.tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 900 - i,
                    "category_id": IDS[label - 1],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in zip(IDS, CLASSES, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = voc / "instances_test.json"
    path.write_text(json.dumps(content))
    (voc / "image_info_test.json").write_text(
        json.dumps({k: v for k, v in content.items() if k != "annotations"})
    )
    return path


def guesses(dataset, order):
    """Return detections and ground truth. Each object is detected twice, slightly moved.

    There are also some false detections. The boxes lie on a grid of 1/8 pixel.

    Args:
        dataset: the data set with the objects.
        order: the detector's class names. Their order may differ from the data set's.
    """
    rng = np.random.default_rng(5)
    found, truth = [], []
    for i in range(len(dataset)):
        sample = dataset.annotation(i)
        labels = np.array([order.index(dataset.classes[k - 1]) + 1 for k in sample.labels])
        true = sample.boxes_xyxy.astype(np.float64)
        boxes = np.vstack([true, true, rng.uniform(0, 100, (4, 2)).repeat(2, 0).reshape(4, 4)])
        boxes[-4:, 2:] += 30
        boxes = np.round((boxes + rng.normal(0, 1.5, boxes.shape)) * 8) / 8
        found.append(
            {
                "boxes": boxes.astype(np.float32),
                "labels": np.concatenate([labels, labels, rng.integers(1, len(order) + 1, 4)]),
                "scores": rng.random(len(boxes)).astype(np.float32),
            }
        )
        truth.append({"boxes": true, "labels": labels})
    return found, truth


def read_voc(folder, dataset):
    """Read the files as a VOC server does: boxes, scores and labels per image."""
    rows = {name: [] for name in dataset.image_ids}
    for label, name in enumerate(dataset.classes, 1):
        for line in (folder / f"comp4_det_test_{name}.txt").read_text().splitlines():
            image, score, *box = line.split(" ")
            rows[image].append((float(score), [float(v) for v in box], label))
    return [
        {
            "boxes": np.array([r[1] for r in rows[name]]).reshape(-1, 4),
            "scores": np.array([r[0] for r in rows[name]]),
            "labels": np.array([r[2] for r in rows[name]], np.int64),
        }
        for name in dataset.image_ids
    ]


def test_voc_files_have_the_same_ap(tmp_path, voc):
    dataset = VOCDataset(voc, "test", CLASSES)
    found, truth = guesses(dataset, CLASSES)
    paths = write_voc_submission(tmp_path, dataset, found, CLASSES)
    assert [path.name for path in paths] == [f"comp4_det_test_{name}.txt" for name in CLASSES]
    ours, theirs = voc_ap(found, truth, 6), voc_ap(read_voc(tmp_path, dataset), truth, 6)
    assert 0.1 < ours.mean_ap < 0.99
    assert theirs.ap.tolist() == ours.ap.tolist()


def test_a_line_of_voc(tmp_path, voc):
    dataset = VOCDataset(voc, "test", CLASSES)
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
    # The detector has one more class, and "ring" comes first.
    one = {
        "boxes": torch.tensor([[1.0, 2.5, 30.25, 41.0], [0, 0, 9, 9], [5, 5, 9, 9]]),
        "scores": torch.tensor([0.5, 0.9, 0.1]),
        "labels": torch.tensor([1, 2, 1]),
    }
    names = ["ring", "star", *(name for name in CLASSES if name != "ring")]
    write_voc_submission(tmp_path, dataset, [none, one, none, none, none, none], names)
    image = dataset.image_ids[1]
    assert (tmp_path / "comp4_det_test_ring.txt").read_text() == (
        f"{image} 0.5 1.000 2.500 30.250 41.000\n{image} 0.100000001 5.000 5.000 9.000 9.000\n"
    )
    assert (tmp_path / "comp4_det_test_disc.txt").read_text() == ""
    assert not list(tmp_path.glob("*star*")) and not list(tmp_path.glob("*.tmp"))


def test_coco_file_has_the_same_figures(tmp_path, coco):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset = CocoDataset(coco, coco.parent / "JPEGImages")
    names = CLASSES[::-1]
    found, truth = guesses(dataset, names)
    path = write_coco_submission(tmp_path / "results.json", dataset, found, names)
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(str(coco))
        evaluation = COCOeval(index, index.loadRes(str(path)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = list(coco_ap(found, truth, 6).figures.values())
    assert 0.1 < ours[0] < 0.99
    # The file stores hundredths of a pixel, so an IoU may cross a threshold.
    np.testing.assert_allclose(evaluation.stats, np.nan_to_num(ours, nan=-1), atol=5e-3)
    first = json.loads(path.read_text())[0]
    assert set(first) == {"image_id", "category_id", "bbox", "score"}
    assert first["image_id"] == 900 and first["category_id"] in IDS
    x1, y1, x2, y2 = found[0]["boxes"][0].tolist()
    assert first["bbox"] == [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]


def test_wrong_submissions_are_named(tmp_path, voc):
    dataset = VOCDataset(voc, "test", CLASSES)
    found, _ = guesses(dataset, CLASSES)
    with pytest.raises(ValueError, match=r"one entry per image \(6\), got 5"):
        write_submission(tmp_path, dataset, found[:5], CLASSES)
    with pytest.raises(ValueError, match="neither a VOC folder nor a COCO file"):
        write_submission(tmp_path, SyntheticScenes(6), found, CLASSES)
    for wrong in ("../up", "a/b", "a\\b", "a\0b", "\ud800", "é" * 120):
        dataset.classes = [wrong]
        with pytest.raises(ValueError, match="cannot be the name of a file"):
            write_submission(tmp_path, dataset, found, CLASSES)
    dataset.classes, dataset.image_ids = CLASSES, ["a b", *dataset.image_ids[1:]]
    with pytest.raises(ValueError, match="1 of the 6 images have such names, the first is 'a b'"):
        write_submission(tmp_path, dataset, found, CLASSES)
    assert not list(tmp_path.iterdir())


def test_an_image_id_that_is_not_a_number_is_named(tmp_path, coco):
    dataset = CocoDataset(coco, coco.parent / "JPEGImages")
    found, _ = guesses(dataset, CLASSES)
    dataset.image_ids = ["900", "photo 7", *dataset.image_ids[2:]]
    with pytest.raises(ValueError, match="whole numbers, but an image .* has the id 'photo 7'"):
        write_submission(tmp_path, dataset, found, CLASSES)
    assert not list(tmp_path.iterdir())


# --- test sets without annotations, and the command ---------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.json"
    torch.manual_seed(0)
    model = ssd300(6, width=0.0625, batch_norm=True)
    save_checkpoint(path, model, classes=CLASSES, mean=MEAN_RGB, extra={})
    return path


@pytest.fixture
def bare(tmp_path, voc):
    """A VOC test set as the server publishes it: two images, a list, no annotations."""
    root = tmp_path / "bare"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    photos = sorted((voc / "JPEGImages").iterdir())[:2]
    for photo in photos:
        (root / "JPEGImages" / photo.name).write_bytes(photo.read_bytes())
    names = "".join(f"{photo.stem}\n" for photo in photos)
    (root / "ImageSets/Main/test.txt").write_text(names)
    return root


def test_voc_without_annotations(bare, voc):
    with pytest.raises(DataError, match="no folder Annotations"):
        VOCDataset(bare, "test", CLASSES)
    with pytest.raises(DataError, match="no folder Annotations"):
        VOCDataset(bare, "test", unlabelled=True)
    dataset = VOCDataset(bare, "test", CLASSES, unlabelled=True)
    assert not dataset.labelled and len(dataset) == 2 and not dataset.size_faults
    assert dataset[0].boxes_xyxy.shape == (0, 4) and dataset[0].image.shape == (300, 300, 3)
    # If some annotations exist, they are read.
    (bare / "Annotations").mkdir()
    name = dataset.image_ids[0]
    (bare / f"Annotations/{name}.xml").write_bytes((voc / f"Annotations/{name}.xml").read_bytes())
    some = VOCDataset(bare, "test", CLASSES, unlabelled=True)
    assert (
        not some.labelled and len(some.annotation(0).labels) and not len(some.annotation(1).labels)
    )
    assert VOCDataset(voc, "test", CLASSES, unlabelled=True).labelled


def test_coco_without_annotations(coco):
    info, photos = coco.parent / "image_info_test.json", coco.parent / "JPEGImages"
    with pytest.raises(DataError, match="no list 'annotations'"):
        CocoDataset(info, photos)
    dataset = open_dataset(info, image_dir=photos, unlabelled=True)
    assert not dataset.labelled and len(dataset) == 6 and dataset.category_ids == IDS
    assert CocoDataset(coco, photos, unlabelled=True).labelled


def test_coco_results_are_named_after_the_test_set(tmp_path, coco):
    for name in ("image_info_test-dev2017", "instances_test-dev2017"):
        (tmp_path / f"{name}.json").write_bytes(coco.read_bytes())
        dataset = CocoDataset(tmp_path / f"{name}.json", coco.parent / "JPEGImages")
        found, _ = guesses(dataset, CLASSES)
        (path,) = write_submission(tmp_path, dataset, found, CLASSES)
        assert path.name == "detections_test-dev2017_mdssd_results.json"


def test_no_figures_without_annotations(bare, checkpoint):
    dataset = VOCDataset(bare, "test", CLASSES, unlabelled=True)
    detector = Detector.from_checkpoint(checkpoint)
    assert len(find_all(detector, dataset, progress=False).detections) == 2
    with pytest.raises(ValueError, match="images without an annotation"):
        evaluate(detector, dataset, progress=False)


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_submit_on_the_command_line(capsys, tmp_path, bare, checkpoint):
    out = tmp_path / "out"
    status, text, _ = run(
        capsys, "eval", checkpoint, "--data", bare, "--submit", "voc", "--out", out
    )
    assert status == 0 and "so nothing is measured" in text
    assert sorted(path.name for path in out.iterdir()) == [
        f"comp4_det_test_{name}.txt" for name in CLASSES
    ]


def test_submit_and_figures_on_the_command_line(capsys, tmp_path, coco, checkpoint):
    out, photos = tmp_path / "out", coco.parent / "JPEGImages"
    command = ["eval", checkpoint, "--data", coco, "--image-dir", photos, "--out", out]
    status, text, _ = run(capsys, *command, "--submit", "coco", "--similar", "disc,ring")
    assert status == 0 and "VOC07 AP" in text
    assert sorted(path.name for path in out.iterdir()) == [
        "detections_test_mdssd_results.json", "evaluation.json", "report.html",
    ]  # fmt: skip
    figures = json.loads((out / "evaluation.json").read_text())
    assert figures["confusion"]["score_threshold"] == 0.5
    results = json.loads((out / "detections_test_mdssd_results.json").read_text())
    assert {one["image_id"] for one in results} <= set(range(895, 901))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--submit", "voc"], "--submit: needs --out"),
        (["--submit", "voc", "--out", "out"], "--submit voc: expected data in that format"),
        (["--similar", "disc,moon"], "groups: 'moon' is not among the classes"),
        (["--score-threshold", "2"], "expected a number from 0 to 1"),
    ],
)
def test_wrong_options_are_named(capsys, tmp_path, monkeypatch, checkpoint, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "eval", checkpoint, "--scenes", 1, *arguments)
    assert status == 2
    line = [line for line in err.splitlines() if "mdssd: error:" in line]
    assert len(line) == 1 and re.search(message, line[0]), err
    assert not Path("out").exists()
