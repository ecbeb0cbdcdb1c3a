"""Detector, evaluate and detect are tested with a model that finds red and green quarters."""

import contextlib
import csv
import dataclasses
import errno
import gc
import io
import json
import math
import multiprocessing
import os
import re
import signal

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mdssd import ops
from mdssd.data import MEAN_RGB, DataError, DetectionDataset, Sample
from mdssd.data.images import ImageLimits
from mdssd.detection import files as files_module
from mdssd.detection import reading, tables
from mdssd.detection.detector import STAGES, Detector
from mdssd.detection.files import detect
from mdssd.detection.reading import ImageFile
from mdssd.detection.runtime import StageTimes
from mdssd.detection.sources import find_images
from mdssd.evaluation.evaluate import evaluate
from mdssd.system.stop import StopRequest, Terminated

RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (110, 105, 104)


class Quadrants(nn.Module):
    """A model with four priors, the quarters of the picture: red is class 1, green class 2."""

    input_size = 32
    num_classes = 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.diag(torch.tensor([0.0, 1.0, 1.0])).reshape(3, 3, 1, 1))
            self.conv.weight[1, :2, 0, 0] = torch.tensor([1.0, 0.0])
            self.conv.weight[2, 1:, 0, 0] = torch.tensor([1.0, 0.0])
        self.dropout = nn.Dropout(0.9)
        centres = [(x, y, 0.5, 0.5) for y in (0.25, 0.75) for x in (0.25, 0.75)]
        self.register_buffer("priors", torch.tensor(centres), persistent=False)
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        means = nn.functional.adaptive_avg_pool2d(self.dropout(self.conv(images)), 2)
        logits = (means * 0.05).flatten(2).transpose(1, 2)  # [B, 4, 3]
        return logits.new_zeros(len(images), 4, 4), logits


@pytest.fixture
def no_processes():
    """End the processes of loaders that failed trainings of earlier tests still hold."""
    gc.collect()
    assert not multiprocessing.active_children()


def picture(colors, height=40, width=60):
    """Return an image of four colours: upper left, upper right, lower left, lower right."""
    image = np.empty((height, width, 3), np.uint8)
    for k, color in enumerate(colors):
        y, x = divmod(k, 2)
        rows = slice(y * height // 2, (y + 1) * height // 2)
        image[rows, x * width // 2 : (x + 1) * width // 2] = color
    return image


def save(path, image):
    assert cv2.imwrite(str(path), image[:, :, ::-1])
    return path


@pytest.fixture
def detector():
    return Detector(Quadrants(), classes=["red", "green"], score_threshold=0.7)


def test_boxes_are_in_pixels_of_the_image(detector):
    (found,) = detector(picture([RED, GREY, GREY, GREEN], 40, 60))
    assert {name: value.dtype for name, value in found.items()} == {
        "boxes": torch.float32,
        "scores": torch.float32,
        "labels": torch.int64,
    }
    boxes = dict(zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True))
    assert boxes == {
        1: pytest.approx([0, 0, 30, 20], abs=1e-4),
        2: pytest.approx([30, 20, 60, 40], abs=1e-4),
    }
    assert (found["scores"].diff() <= 0).all()
    # The logits are the average of 0.05 * (colour - mean). Resizing mixes colours only at borders.
    exact = torch.tensor([0.0, 0.05 * (255 - MEAN_RGB[0]), 0.05 * (0 - MEAN_RGB[1])]).softmax(0)[1]
    assert found["scores"].tolist()[found["labels"].tolist().index(1)] == pytest.approx(
        exact.item(), abs=0.01
    )


def test_a_batch_is_its_images_one_by_one(detector):
    images = [
        picture([RED, GREY, GREY, GREY], 40, 60),
        picture([GREEN, GREEN, GREY, RED], 100, 30),
        picture([GREY] * 4, 33, 35),
        picture([RED] * 4, 1, 1),
        picture([GREY, RED, GREEN, GREY], 64, 64),
    ]
    single = [detector(image)[0] for image in images]
    assert [len(one["labels"]) for one in single] == [1, 3, 0, 4, 2]
    detector.model.shapes.clear()
    for size in (1, 2, 5, 8):
        batch = detector(images, batch_size=size)
        for one, other in zip(single, batch, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    # Each image went through the network once per batch size, in batches of that size.
    assert [shape[0] for shape in detector.model.shapes] == [1] * 5 + [2, 2, 1] + [5] + [5]


def test_arrays_paths_and_bytes_are_the_same(detector, tmp_path):
    image = picture([RED, GREY, GREEN, GREY])
    path = save(tmp_path / "a.png", image)
    results = detector([image, path, str(path), path.read_bytes(), bytearray(path.read_bytes())])
    assert len(results) == 5 and len(results[0]["labels"]) == 2
    for result in results[1:]:
        assert torch.equal(result["boxes"], results[0]["boxes"])
    for single in (image, path, str(path), path.read_bytes()):
        assert torch.equal(detector(single)[0]["boxes"], results[0]["boxes"])


def test_a_view_that_is_not_contiguous_works(detector):
    image = picture([RED, GREY, GREEN, GREY])
    reversed_twice = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    assert torch.equal(detector(reversed_twice)[0]["boxes"], detector(image)[0]["boxes"])
    read_only = image.copy()
    read_only.flags.writeable = False
    assert torch.equal(detector(read_only)[0]["boxes"], detector(image)[0]["boxes"])


def test_boxes_are_clipped_and_empty_ones_left_out():
    class Outside(Quadrants):
        def forward(self, images):
            loc, logits = super().forward(images)
            # The first box moves left by half its width, the last by two widths out of the image.
            loc[:, 0, 0], loc[:, 3, 0] = -5.0, 20.0
            return loc, logits

    (found,) = Detector(Outside(), score_threshold=0.7)(picture([RED, GREY, GREY, GREEN]))
    assert found["labels"].tolist() == [1]
    assert found["boxes"].tolist() == [pytest.approx([0, 0, 15, 20], abs=1e-4)]


def test_thresholds_and_limits_reach_detection_output():
    image = picture([RED, RED, GREEN, GREEN])

    def count(**options):
        return len(Detector(Quadrants(), **options)(image)[0]["labels"])

    assert count(score_threshold=0.9) == 4
    assert count(score_threshold=0.9999) == 0
    assert count(score_threshold=0.9, max_detections=3) == 3
    assert count(score_threshold=0.9, top_k=1) == 2

    class Same(Quadrants):
        def __init__(self):
            super().__init__()
            # The two boxes in a row have IoU 2/3.
            self.priors[:, 0] = torch.tensor([0.45, 0.55, 0.45, 0.55])

    two = Detector(Same(), score_threshold=0.9, nms_threshold=0.45)(image)[0]
    four = Detector(Same(), score_threshold=0.9, nms_threshold=0.7)(image)[0]
    assert (len(two["labels"]), len(four["labels"])) == (2, 4)


def test_training_mode_does_not_disturb(detector):
    image = picture([RED, GREY, GREY, GREY])
    expected = detector(image)[0]
    assert not detector.model.training
    detector.model.train()
    assert torch.equal(detector(image)[0]["scores"], expected["scores"])
    assert not detector.model.training


def test_no_gradients_and_no_images(detector):
    assert not detector(picture([RED] * 4))[0]["scores"].requires_grad
    assert detector([]) == []


def test_half_precision_model():
    model = Quadrants().bfloat16()
    model.priors = model.priors.float()
    (found,) = Detector(model, score_threshold=0.7)(picture([RED, GREY, GREY, GREEN]))
    assert sorted(found["labels"].tolist()) == [1, 2] and found["boxes"].dtype == torch.float32


def test_backends_agree(detector):
    image = picture([RED, GREEN, GREEN, GREY])
    with ops.backend("reference"):
        expected = detector(image)[0]
    found = detector(image)[0]
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["boxes"], expected["boxes"])


def test_only_separate_stages_that_compute_wait_for_a_gpu(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    gpu = torch.device("cuda", 1)
    times = StageTimes(gpu)
    with times.stage("network"):
        pass
    assert waits == [] and times.seconds["network"] > 0
    times.separate = True
    with times.stage("decode"):
        pass
    assert waits == []
    with times.stage("network", computes=True):
        pass
    assert waits == [gpu]


def test_a_gpu_is_waited_for_three_times_a_batch_and_only_on_request(detector, monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    detector._times.device = torch.device("cuda")  # a stand-in: the detector computes on the CPU
    images = [picture([RED] * 4)] * 5
    detector(images)
    list(detector.stream(images, workers=0))
    assert not waits and all(seconds > 0 for seconds in detector.timings.values())
    with detector.separate_stages():
        detector(images, batch_size=2)
        list(detector.stream(images, workers=0, batch_size=2))
    assert len(waits) == 2 * 3 * 3  # preprocess, network, detection_output of 2 x 3 batches
    detector(images)
    assert len(waits) == 2 * 3 * 3


def test_detect_and_evaluate_separate_the_stages(detector, photos, tmp_path, monkeypatch):
    asked = []
    stream = Detector.stream

    def recorded(self, *args, **options):
        asked.append(self._times.separate)
        return stream(self, *args, **options)

    monkeypatch.setattr(Detector, "stream", recorded)
    detect(detector, [photos], tmp_path / "out", progress=False)
    evaluate(detector, Scenes([[RED] * 4]), progress=False)
    list(detector.stream([]))
    assert asked == [True, True, False]


def test_timings_add_up(detector):
    assert detector.timings == dict.fromkeys(STAGES, 0.0)
    detector(picture([RED] * 4))
    first = dict(detector.timings)
    assert all(first[stage] > 0 for stage in STAGES)
    detector(picture([RED] * 4))
    assert all(detector.timings[stage] > first[stage] for stage in STAGES)
    detector.reset_timings()
    assert detector.timings == dict.fromkeys(STAGES, 0.0)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, r"images\[1\]: expected dtype uint8.*float32"),
        (np.zeros((8, 8), np.uint8), ValueError, r"expected shape \[H, W, 3\].*got \[8, 8\]"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"got \[3, 8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"got \[8, 8, 4\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), ValueError, r"got \[2, 8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"images\[1\]: is empty.*\[0, 8, 3\]"),
        (torch.zeros(8, 8, 3), TypeError, r"images\[1\]: expected a numpy array.*got Tensor"),
        (7, TypeError, "got int"),
        (b"", DataError, r"images\[1\]: the file is empty"),
        (b"no picture", DataError, r"images\[1\]: is not an image"),
    ],
)
def test_bad_images_are_named(detector, image, error, message):
    with pytest.raises(error, match=message):
        detector([picture([RED] * 4), image])


def test_bad_files_are_named(detector, tmp_path):
    with pytest.raises(DataError, match="gone.png"):
        detector(tmp_path / "gone.png")
    cut = save(tmp_path / "cut.jpg", picture([RED] * 4, 90, 90))
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(DataError, match="cut.jpg.*(truncated|damaged)"):
        detector([cut])
    with pytest.raises(TypeError, match="images: expected .*got Tensor"):
        detector(torch.zeros(1, 3, 32, 32))
    with pytest.raises(TypeError, match="images: expected .*got NoneType"):
        detector(None)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="classes: expected 2 names.*got \\['red'\\]"):
        Detector(Quadrants(), classes=["red"])
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="batch_size"):
            Detector(Quadrants(), batch_size=size)
    assert Detector(Quadrants()).classes == ["class 1", "class 2"]


def test_a_checkpoint_supplies_classes_and_mean(tmp_path):
    from mdssd import ssd300
    from mdssd.weights.checkpoint import save_checkpoint

    torch.manual_seed(0)
    model = ssd300(3, width=0.0625)
    path = tmp_path / "best.json"
    save_checkpoint(path, model, classes=["a", "b"], mean=(1.0, 2.0, 3.0), extra={})
    image = picture([RED, GREEN, GREY, GREY])
    options = {"score_threshold": 0.3, "max_detections": 5}
    loaded = Detector.from_checkpoint(path, **options)
    assert loaded.classes == ["a", "b"]
    expected = Detector(model, mean=(1.0, 2.0, 3.0), **options)(image)[0]
    assert len(expected["scores"])
    assert torch.equal(loaded(image)[0]["scores"], expected["scores"])
    assert Detector.from_checkpoint(path, classes=["x", "y"]).classes == ["x", "y"]


@dataclasses.dataclass
class Scenes(DetectionDataset):
    """A data set of quarter pictures, whose colours are its objects."""

    colors: list
    classes: list = dataclasses.field(default_factory=lambda: ["red", "green"])
    names: dict = dataclasses.field(default_factory=lambda: {RED: "red", GREEN: "green"})
    difficult: tuple = ()
    name: str = "scenes"

    def __len__(self):
        return len(self.colors)

    def __getitem__(self, index):
        image = picture(self.colors[index])
        rows = [(k, self.names[c]) for k, c in enumerate(self.colors[index]) if c in self.names]
        boxes = [
            [30 * (k % 2), 20 * (k // 2), 30 * (k % 2) + 30, 20 * (k // 2) + 20] for k, _ in rows
        ]
        labels = [self.classes.index(name) + 1 for _, name in rows]
        return Sample(
            image,
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(labels, np.int64),
            np.array([(index, k) in self.difficult for k, _ in rows], bool),
            str(index),
        )


COLORS = [
    [RED, GREY, GREY, GREEN],
    [GREY, RED, RED, GREY],
    [GREY] * 4,
    [GREEN, GREY, GREY, RED],
    [RED] * 4,
]


def test_evaluate_finds_all(detector, tmp_path):
    result = evaluate(detector, Scenes(COLORS), batch_size=2, out_dir=tmp_path / "new" / "out")
    assert result.images == 5
    assert result.voc07.objects.tolist() == [8, 2]
    assert result.voc07.ap.tolist() == pytest.approx([1.0, 1.0])
    assert result.voc12.mean_ap == pytest.approx(1.0)
    assert result.coco.figures["AP"] == pytest.approx(1.0)
    assert result.coco.figures["AP_small"] == pytest.approx(1.0)
    stored = json.loads((tmp_path / "new" / "out" / "evaluation.json").read_text())
    assert stored == result.to_dict()
    assert stored["voc07"] == {"mAP": pytest.approx(1.0), "AP": {"red": 1.0, "green": 1.0}}
    assert stored["coco"]["AP_large"] is None
    table = result.table()
    assert "5 images, 10 objects\n10 detections with a score of 0.7 or more" in table
    assert "difficult" not in table and "no object of" not in table
    assert [line.split()[:4] for line in table.splitlines() if line.startswith("red")] == [
        ["red", "8", "8", "1.0000"]
    ]


def test_evaluate_counts_misses_and_inventions(detector):
    # The ground truth calls green quarters red. Each of them is therefore a false detection and a
    # missed object, unless it is difficult.
    scenes = Scenes(COLORS, names={RED: "red", GREEN: "red"})
    result = evaluate(detector, scenes, progress=False)
    assert result.voc07.objects.tolist() == [10, 0]
    assert result.voc12.ap[0] == pytest.approx(0.8)
    assert math.isnan(result.voc12.ap[1]) and result.voc12.mean_ap == pytest.approx(0.8)
    assert "no object of green; not measured, and left out of the means" in result.table()
    assert result.to_dict()["voc07"]["AP"]["green"] is None

    scenes.difficult = ((0, 3), (3, 0))
    result = evaluate(detector, scenes, progress=False)
    assert result.voc12.ap[0] == pytest.approx(1.0)
    assert result.coco.ap[0] == pytest.approx(1.0)
    assert "2 difficult objects and crowds are not counted" in result.table()


def test_evaluate_matches_classes_by_name(detector):
    swapped = Scenes(COLORS, classes=["green", "red"])
    assert evaluate(detector, swapped, progress=False).voc07.objects.tolist() == [8, 2]
    fewer = Scenes([[RED, GREY, GREY, GREY]], classes=["red"])
    assert evaluate(detector, fewer, progress=False).voc07.mean_ap == pytest.approx(1.0)
    more = Scenes(COLORS, classes=["red", "green", "blue"])  # there is no blue object
    assert evaluate(detector, more, progress=False).voc07.objects.tolist()[:2] == [8, 2]
    blue = Scenes(COLORS, classes=["red", "blue"], names={RED: "red", GREEN: "blue"})
    with pytest.raises(ValueError, match=r"the checkpoint lacks: blue \(2 objects\)"):
        evaluate(detector, blue, progress=False)


def test_evaluate_in_batches_is_the_same(detector):
    whole = evaluate(detector, Scenes(COLORS), batch_size=8, progress=False).to_dict()
    for size in (1, 3, 5):
        other = evaluate(detector, Scenes(COLORS), batch_size=size, progress=False).to_dict()
        for volatile in ("seconds", "images_per_second", "about"):
            other[volatile] = whole[volatile]
        assert other == whole


class Files(Scenes):
    """The same pictures as files in `folder`, so that worker processes read them."""

    folder = None

    def image_path(self, index):
        return self.folder / f"{index}.png"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)  # two workers
    dataset = Files(COLORS * 4)
    dataset.folder = tmp_path / "files"
    dataset.folder.mkdir()
    for index in range(len(dataset)):
        save(dataset.image_path(index), dataset[index].image)
    return dataset


def test_evaluate_reads_files_in_workers_to_the_same_result(
    detector, files, monkeypatch, no_processes
):
    workers = []
    monkeypatch.setattr(
        Files, "__getitem__", lambda *_: pytest.fail("the workers should read the files")
    )
    monkeypatch.setattr(
        Files, "annotation", lambda self, index: Scenes(self.colors).annotation(index)
    )
    forward = Quadrants.forward

    def counted(self, images):
        workers.append(len(multiprocessing.active_children()))
        return forward(self, images)

    monkeypatch.setattr(Quadrants, "forward", counted)
    result = evaluate(detector, files, batch_size=3, progress=False).to_dict()
    assert max(workers) == 2 and not multiprocessing.active_children()
    assert list(result["seconds"]) == ["read", "preprocess", "network", "detection_output"]
    monkeypatch.setattr(Quadrants, "forward", forward)
    expected = evaluate(detector, Scenes(COLORS * 4), batch_size=3, progress=False).to_dict()
    for volatile in ("seconds", "images_per_second", "about"):
        result[volatile] = expected[volatile]
    assert result == expected


def test_evaluate_stops_at_a_broken_file(detector, files, no_processes):
    files.image_path(13).write_bytes(b"no picture")
    with pytest.raises(DataError, match="13.png: is not an image"):
        evaluate(detector, files, batch_size=3, progress=False)
    assert not multiprocessing.active_children()


def test_sigterm_ends_an_evaluation_and_its_workers(detector, files, monkeypatch, no_processes):
    forward = Quadrants.forward

    def terminated(self, images):
        os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, images)

    monkeypatch.setattr(Quadrants, "forward", terminated)
    with StopRequest() as stop, pytest.raises(Terminated), stop.at_once():
        evaluate(detector, files, batch_size=3, progress=False)
    assert not multiprocessing.active_children()


def test_evaluate_reads_a_generated_image_once(detector):
    read = []

    class Counted(Scenes):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    evaluate(detector, Counted(COLORS), batch_size=2, progress=False)
    assert read == [0, 1, 2, 3, 4]


def test_the_headline_of_a_result(detector):
    result = evaluate(detector, Scenes(COLORS, names={RED: "red", GREEN: "red"}), progress=False)
    assert result.headline("VOC07 mAP") == result.voc07.mean_ap
    assert result.headline("COCO AP") == result.coco.figures["AP"]
    nothing = evaluate(detector, Scenes([[GREY] * 4]), progress=False)
    assert nothing.headline("VOC07 mAP") == nothing.headline("COCO AP") == 0
    without = dataclasses.replace(result, coco=None)
    with pytest.raises(ImportError, match="COCO AP of scenes needs pycocotools"):
        without.headline("COCO AP")


def test_evaluate_stops_at_a_broken_image_and_writes_nothing(detector, tmp_path):
    class Broken(Scenes):
        def __getitem__(self, index):
            if index == 3:
                raise DataError("three.jpg: the image is truncated")
            return super().__getitem__(index)

    with pytest.raises(DataError, match="three.jpg"):
        evaluate(detector, Broken(COLORS), out_dir=tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="at least one image, scenes has none"):
        evaluate(detector, Scenes([]), out_dir=tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").iterdir())


def test_evaluate_without_pycocotools(detector, monkeypatch):
    def absent(*_):
        raise ImportError("coco_ap: needs pycocotools")

    monkeypatch.setattr("mdssd.evaluation.result.coco_ap", absent)
    result = evaluate(detector, Scenes(COLORS), progress=False)
    assert result.coco is None and result.to_dict()["coco"] is None
    assert "pycocotools is not installed" in result.table()
    assert result.voc07.mean_ap == pytest.approx(1.0)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    save(folder / "b.png", picture([RED, GREY, GREY, GREEN]))
    save(folder / "a.png", picture([GREY] * 4, 33, 47))
    save(folder / "c.jpg", picture([GREEN] * 4, 64, 64))
    save(folder / "deeper" / "d.png", picture([RED] * 4))
    (folder / "notes.txt").write_text("no picture")
    return folder


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_detect_in_a_folder(detector, photos, tmp_path):
    out = tmp_path / "out"
    report = detect(detector, [photos], out, formats=("json", "csv"), progress=False)
    assert files_in(out) == ["a.jpg", "b.jpg", "c.jpg", "detections.csv", "detections.json"]
    assert not report.failed and list(report.timings) == [*STAGES, "draw"]
    stored = json.loads((out / "detections.json").read_text())
    assert stored == report.images
    assert [(one["file"], one["width"], one["height"]) for one in stored] == [
        (str(photos / "a.png"), 47, 33),
        (str(photos / "b.png"), 60, 40),
        (str(photos / "c.jpg"), 64, 64),
    ]
    assert [len(one["detections"]) for one in stored] == [0, 2, 4]
    red = next(d for d in stored[1]["detections"] if d["class"] == "red")
    assert red["label"] == 1 and red["box_xyxy"] == pytest.approx([0, 0, 30, 20], abs=1e-3)
    assert 0.9 < red["score"] <= 1
    with open(out / "detections.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert [float(rows[0][name]) for name in ("x1", "y1", "x2", "y2")] == stored[1]["detections"][
        0
    ]["box_xyxy"]
    assert rows[0]["class"] == stored[1]["detections"][0]["class"]
    drawn = cv2.imread(str(out / "b.jpg"))
    assert drawn.shape[1] == 60 and drawn.shape[0] > 40  # the image's own size, and the legend
    table = report.table()
    assert "6 detections in 3 images" in table and "3 pictures in" in table
    assert all(stage in table for stage in (*STAGES, "draw", "total"))


def test_detect_patterns_files_and_repeats(detector, photos, tmp_path):
    sources = [str(photos / "*.png"), str(photos / "b.png"), str(photos / "deeper" / "d.png")]
    report = detect(detector, sources, tmp_path / "out", draw=False, progress=False)
    assert [one["file"] for one in report.images] == [
        str(photos / "a.png"),
        str(photos / "b.png"),
        str(photos / "deeper" / "d.png"),
    ]
    assert files_in(tmp_path / "out") == ["detections.json"] and "draw" not in report.timings
    odd = save(photos / "x[1].png", picture([RED] * 4))
    report = detect(detector, [odd], tmp_path / "out", draw=False, progress=False)
    assert report.images[0]["file"] == str(odd)


def test_detect_continues_after_a_bad_file(detector, photos, tmp_path, capsys):
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:60])
    sources = [str(photos), str(tmp_path / "gone.png"), str(tmp_path / "*.gif")]
    report = detect(detector, sources, tmp_path / "out", formats=(), progress=True)
    assert [name for name, _ in report.failed] == [
        str(tmp_path / "gone.png"),
        str(tmp_path / "*.gif"),
        str(photos / "b.png"),
    ]
    assert files_in(tmp_path / "out") == ["a.jpg", "c.jpg"]
    table = report.table()
    assert "gone.png: no such file" in table and "*.gif: matches no file" in table
    assert "b.png: the image is truncated" in table
    assert "failed: " + str(photos / "b.png") in capsys.readouterr().out


def test_detect_writes_nothing_if_nothing_was_read(detector, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image found: .*empty: the folder has no image"):
        detect(detector, [tmp_path / "empty"], tmp_path / "out", progress=False)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    report = detect(detector, [tmp_path / "bad.png"], tmp_path / "out", progress=False)
    assert "bad.png" in report.table() and not report.images
    assert not (tmp_path / "out").exists()


def test_detect_replaces_no_photograph(detector, photos, tmp_path):
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    link = tmp_path / "link"
    link.symlink_to(photos)
    for out in (photos, link, photos / "deeper" / ".."):
        with pytest.raises(ValueError, match="choose another folder"):
            detect(detector, [str(photos / "*.jpg")], out, progress=False)
    with pytest.raises(ValueError, match="is a file"):
        detect(detector, [photos], photos / "notes.txt", progress=False)
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


def test_detect_numbers_equal_names(detector, photos, tmp_path):
    save(photos / "deeper" / "b.jpg", picture([RED] * 4))
    # On a file system that ignores case, the picture of "A" would replace that of "a".
    save(photos / "deeper" / "A.png", picture([RED] * 4))
    report = detect(detector, [photos, photos / "deeper"], tmp_path / "out", progress=False)
    assert len({path.name.lower() for path in report.pictures}) == len(report.images) == 6
    assert files_in(tmp_path / "out") == sorted(
        ["detections.json", *(path.name for path in report.pictures)]
    )


def test_detect_threshold_holds_for_pictures_and_tables(photos, tmp_path):
    loose = Detector(Quadrants(), classes=["red", "green"], score_threshold=0.01)
    report = detect(loose, [photos / "b.png"], tmp_path / "low", score_threshold=0, progress=False)
    assert len(report.images[0]["detections"]) > 2
    report = detect(loose, [photos / "b.png"], tmp_path / "half", progress=False)
    assert len(report.images[0]["detections"]) == 2
    low, half = (cv2.imread(str(tmp_path / name / "b.jpg")) for name in ("low", "half"))
    assert low.shape != half.shape or (low != half).any()


def test_detect_bad_options_are_named(detector, photos, tmp_path):
    for formats in (("xml",), "json"):
        with pytest.raises(ValueError, match="formats: expected some of"):
            detect(detector, [photos], tmp_path / "out", formats=formats, progress=False)
    with pytest.raises(ValueError, match="score_threshold: expected 0 to 1, got 50"):
        detect(detector, [photos], tmp_path / "out", score_threshold=50, progress=False)
    with pytest.raises(TypeError, match="sources: expected a list"):
        detect(detector, str(photos), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


# --- streams -------------------------------------------------------------------------------------


class Killer(os.PathLike):
    """A path that kills the process that reads it, so only a worker may read it."""

    def __init__(self, path):
        self.path, self.caller = str(path), os.getpid()

    def __fspath__(self):
        if os.getpid() != self.caller:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.path


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_stream_is_its_images_one_by_one(detector, tmp_path, workers):
    rng = np.random.default_rng(0)
    palette = [RED, GREEN, GREY]
    images = [
        picture([palette[k] for k in rng.integers(3, size=4)], 20 + n, 60 - n) for n in range(21)
    ]
    sources = [save(tmp_path / f"{n}.png", image) for n, image in enumerate(images)]
    sources[3], sources[4] = images[3], sources[4].read_bytes()
    for size in (1, 8):
        results = list(detector.stream(iter(sources), workers=workers, batch_size=size))
        assert all(result.source is source for result, source in zip(results, sources, strict=True))
        for result, image, expected in zip(results, images, detector(images), strict=True):
            assert result.error is None and result.image is None
            assert result.size == image.shape[:2]
            assert all(torch.equal(result.found[name], expected[name]) for name in expected)
    whole = list(detector.stream(sources[:2], workers=workers, with_images=True))
    assert all(np.array_equal(one.image, image) for one, image in zip(whole, images, strict=False))
    assert list(detector.stream([], workers=workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_names_bad_images_and_continues(detector, tmp_path, workers):
    good = save(tmp_path / "good.png", picture([RED] * 4))
    (tmp_path / "bad.png").write_bytes(good.read_bytes()[:60])
    sources = [good, tmp_path / "bad.png", tmp_path / "gone.png", b"", good]
    results = list(detector.stream(sources, workers=workers, batch_size=2))
    assert [len(result.found["labels"]) for result in results] == [4, 0, 0, 0, 4]
    reasons = [str(result.error) for result in results if result.error]
    assert "bad.png: the image is truncated" in reasons[0]
    assert "gone.png: cannot be read" in reasons[1]
    assert reasons[2] == "images[3]: the file is empty"
    with pytest.raises(TypeError, match=r"images\[1\]: expected dtype uint8"):
        list(detector.stream([good, np.zeros((8, 8, 3))], workers=workers))


def test_a_stream_survives_the_death_of_its_workers(detector, tmp_path):
    good = save(tmp_path / "good.png", picture([RED] * 4))
    sources = [good] * 9
    sources[4] = Killer(tmp_path / "deadly.png")
    sources[5] = Killer(tmp_path / "too.png")
    results = list(detector.stream(sources, workers=2, batch_size=2))
    assert [result.error is None for result in results] == [True] * 4 + [False] * 2 + [True] * 3
    assert str(results[4].error).endswith("deadly.png: the process that read it was killed")
    assert str(results[5].error).endswith("too.png: the process that read it was killed")


def test_a_stream_reads_only_a_little_ahead_and_leaves_no_process(detector, tmp_path, no_processes):
    gc.collect()  # ends loader processes that earlier tests left behind
    good = save(tmp_path / "good.png", picture([RED] * 4))
    taken = []

    def endless():
        while True:
            taken.append(good)
            yield good

    stream = detector.stream(endless(), workers=2, batch_size=3)
    assert not taken
    for _ in range(7):  # the seventh is the first image of the third batch
        next(stream)
    assert len(taken) <= 3 * 3 + 2 * 2 + 3
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert not multiprocessing.active_children()


def test_bad_streams_are_named(detector):
    for images in (None, 7, "photo.jpg", b"bytes", picture([RED] * 4)):
        with pytest.raises(TypeError, match=r"Detector.stream: images: expected an iterable"):
            detector.stream(images)
    for workers in (-1, 1.5, True):
        with pytest.raises(ValueError, match="workers: expected an int from 0"):
            detector.stream([], workers=workers)
    with pytest.raises(ValueError, match="Detector.stream: batch_size"):
        detector.stream([], batch_size=0)


def test_detect_without_keeping_its_detections(detector, photos, tmp_path):
    kept = detect(detector, [photos], tmp_path / "a", formats=("json", "csv"), progress=False)
    other = detect(
        detector,
        [photos],
        tmp_path / "b",
        formats=("json", "csv"),
        progress=False,
        keep_images=False,
        workers=2,
    )
    assert not other.images and len(kept.images) == 3
    assert (other.image_count, other.detection_count) == (3, 6)
    assert other.table().splitlines()[0] == "6 detections in 3 images"
    for name in files_in(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_detect_that_is_interrupted_keeps_the_finished_images(
    detector, photos, tmp_path, monkeypatch
):
    stream = Detector.stream

    def interrupted(self, *args, **options):
        results = stream(self, *args, **options)
        yield next(results)
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "stream", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match="2 of 3 images done; boxes in .*detections.json"):
        detect(detector, [photos], out, formats=("json", "csv"), progress=False)
    assert files_in(out) == ["a.jpg", "b.jpg", "detections.csv", "detections.json"]
    assert [
        len(one["detections"]) for one in json.loads((out / "detections.json").read_text())
    ] == [
        0,
        2,
    ]
    assert len((out / "detections.csv").read_text().splitlines()) == 3


def sideways(path):
    """Write a picture whose upper left quarter is red, as a phone stores it: turned left."""
    exif = Image.Exif()
    exif[274] = 6
    stored = np.rot90(picture([RED, GREY, GREY, GREY], 40, 60))
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=100, subsampling=0)
    return path


def test_pictures_are_turned_upright(detector, tmp_path):
    path = sideways(tmp_path / "a.jpg")
    with Image.open(path) as opened:
        for source in (path, str(path), path.read_bytes(), opened, Image.open(path)):
            (found,) = detector(source)
            assert found["boxes"].tolist() == [pytest.approx([0, 0, 30, 20], abs=1e-3)]
    (result,) = detector.stream([path], workers=0, with_images=True)
    assert result.size == (40, 60) and result.image.shape == (40, 60, 3)
    (found,) = detector(ImageFile(path, upright=False))
    assert found["boxes"].tolist() == [pytest.approx([0, 30, 20, 60], abs=1e-3)]
    detector.upright = False
    try:
        for source in (path, path.read_bytes(), Image.open(path)):
            (found,) = detector(source)
            assert found["boxes"].tolist() == [pytest.approx([0, 30, 20, 60], abs=1e-3)]
        (result,) = detector.stream([path], workers=0)
        assert result.size == (60, 40)
        (found,) = detector(ImageFile(path, upright=True))
        assert found["boxes"].tolist() == [pytest.approx([0, 0, 30, 20], abs=1e-3)]
    finally:
        detector.upright = True  # other tests have the same detector
    report = detect(detector, [path], tmp_path / "out", progress=False)
    assert (report.images[0]["width"], report.images[0]["height"]) == (60, 40)
    assert cv2.imread(str(tmp_path / "out/a.jpg")).shape[1] == 60


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_images_of_pillow(detector, mode):
    image = picture([RED, GREY, GREY, GREEN])
    expected = detector(image)[0]
    (found,) = detector(Image.fromarray(image).convert(mode))
    assert found["labels"].tolist() == expected["labels"].tolist()
    torch.testing.assert_close(found["boxes"], expected["boxes"])
    streamed = list(detector.stream([Image.fromarray(image)] * 2, workers=0))
    torch.testing.assert_close(streamed[1].found["boxes"], expected["boxes"])


@pytest.mark.parametrize("workers", [0, 2])
def test_large_images_are_read_one_at_a_time(detector, tmp_path, monkeypatch, workers):
    paths = [save(tmp_path / f"{k}.png", picture([RED, GREY, GREY, GREEN])) for k in range(5)]
    save(paths[1], picture([GREEN] * 4, 200, 100))
    sources = [*paths, paths[1].read_bytes(), paths[0].read_bytes()[:50], tmp_path / "gone.png"]
    whole = list(detector.stream(sources, workers=0, with_images=True))
    monkeypatch.setattr(reading, "_LARGE", 60 * 40)
    sizes, read = [], reading.read_pixels

    def counted(*args):
        pixels = read(*args)
        sizes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(reading, "read_pixels", counted)
    parts = list(detector.stream(sources, workers=workers, with_images=True))
    assert sizes.count((200, 100)) == 2  # by this process
    for one, other in zip(whole, parts, strict=True):
        assert (one.size, str(one.error)) == (other.size, str(other.error))
        assert all(torch.equal(one.found[name], other.found[name]) for name in one.found)
        assert one.error or np.array_equal(one.image, other.image)


def test_limits_hold_for_files(detector, tmp_path):
    whole = save(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), "u1"))
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with pytest.raises(DataError, match="a.jpg: the image is damaged"):
        detector(whole)
    for limits, reason in ((ImageLimits(4095), "64 x 64 pixels"), (ImageLimits(4096), "damaged")):
        detector.limits = limits
        (result,) = detector.stream([whole], workers=0)
        assert reason in str(result.error)
    detector.limits = ImageLimits(accept_damage=True)
    report = detect(detector, [whole], tmp_path / "out", progress=False)
    assert report.image_count == 1 and not report.failed


def test_detect_says_what_a_folder_holds_besides_images(detector, photos, tmp_path, capsys):
    image = Image.fromarray(picture([RED, GREY, GREY, GREEN]))
    for name in ("e.TIFF", "f.gif", "g.avif", "h.jp2", "i.Tif"):
        image.save(photos / name)
    for name in ("j.HEIC", "k.mp4", ".hidden.png"):
        (photos / name).write_bytes(b"")
    note = (
        f"{photos}: left out 2 images or videos of a format that cannot be read (j.HEIC, k.mp4), "
        "1 sub-folder (--recursive reads them), 1 hidden file, 1 other file"
    )
    report = detect(detector, [photos], tmp_path / "out", draw=False)
    assert note in capsys.readouterr().out and report.left_out == [note]
    assert note in report.table() and note not in report.table(failures=False)
    found = {os.path.basename(one["file"]): len(one["detections"]) for one in report.images}
    assert found == {
        **{"a.png": 0, "b.png": 2, "c.jpg": 4, "e.TIFF": 2, "f.gif": 2, "g.avif": 2},
        **{"h.jp2": 2, "i.Tif": 2},
    }
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image .*; it has 1 image or video of a format that"):
        detect(detector, [only], tmp_path / "out")


def test_detect_writes_only_the_chosen_classes(detector, photos, tmp_path):
    report = detect(detector, [photos], tmp_path / "out", classes=["green"], progress=False)
    names = {found["class"] for one in report.images for found in one["detections"]}
    assert names == {"green"} and report.detection_count == 5
    with pytest.raises(ValueError, match="does not know 'blue'; it knows red, green"):
        detect(detector, [photos], tmp_path / "other", classes=["blue"], progress=False)
    with pytest.raises(TypeError, match="classes: expected a list"):
        detect(detector, [photos], tmp_path / "other", classes="red", progress=False)


def test_detect_scales_pictures_on_request_only(detector, photos, tmp_path):
    widths = {}
    for scale in (1, 3):
        out = tmp_path / str(scale)
        report = detect(detector, [photos / "b.png"], out, picture_scale=scale, progress=False)
        assert "1 picture in" in report.table() and "in 1 image\n" in report.table()
        widths[scale] = cv2.imread(str(out / "b.jpg")).shape[1]
    assert widths == {1: 60, 3: 180}
    with pytest.raises(ValueError, match="picture_scale: expected 0 to 100, got 0"):
        detect(detector, [photos], tmp_path / "out", picture_scale=0, progress=False)


def test_detect_replaces_its_own_results_and_says_so(detector, photos, tmp_path, capsys):
    out = tmp_path / "out"
    detect(detector, [photos], out, formats=("json", "csv"))
    assert "replacing" not in capsys.readouterr().out
    (out / ".old.jpg.4242.mdssd.tmp").write_text("half a picture")
    detect(detector, [photos], out)
    said = capsys.readouterr().out
    assert f"{out}: replacing 3 pictures, detections.json of an earlier run" in said
    assert f"{out / 'detections.csv'} of an earlier run stays as it is" in said
    assert files_in(out) == ["a.jpg", "b.jpg", "c.jpg", "detections.csv", "detections.json"]


@pytest.mark.parametrize("name", ["b.jpg", "detections.json", "detections.csv"])
def test_detect_never_replaces_a_file_of_somebody_else(detector, photos, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    mine = out / name
    mine.write_bytes((photos / "c.jpg").read_bytes())
    before = mine.read_bytes()
    formats = ("json", "csv")
    with pytest.raises(ValueError, match=f"{name} exists and is not a result of `mdssd detect`"):
        detect(detector, [photos], out, formats=formats, progress=False)
    assert files_in(out) == [name] and mine.read_bytes() == before
    detect(detector, [photos], out, formats=formats, progress=False, overwrite=True)
    assert mine.read_bytes() != before
    # What is not written may have any name.
    mine.write_bytes(before)
    detect(detector, [photos / "a.png"], out, formats=(), progress=False)
    assert mine.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_detect_leaves_whole_tables_after_a_signal(
    detector, photos, tmp_path, monkeypatch, number, no_processes
):
    detector.batch_size = 1
    forward, calls = Quadrants.forward, []

    def signalled(self, images):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return forward(self, images)

    monkeypatch.setattr(Quadrants, "forward", signalled)
    out, note = tmp_path / "out", "2 of 3 images done; boxes in .*csv; boxes in .*json"
    with pytest.raises((Terminated, KeyboardInterrupt)) as caught:
        detect(detector, [photos], out, formats=("json", "csv"), progress=False)
    error = caught.value
    assert isinstance(error, Terminated) == (number == signal.SIGTERM)
    assert re.fullmatch(note, error.note if isinstance(error, Terminated) else str(error))
    assert files_in(out) == ["a.jpg", "b.jpg", "detections.csv", "detections.json"]
    assert len(json.loads((out / "detections.json").read_text())) == 2
    assert not multiprocessing.active_children()


class FullDisk(io.FileIO):
    """A file on a disk that has room for 700 bytes."""

    def write(self, data):
        room = 700 - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[:room])


@pytest.mark.parametrize("form", ["json", "csv", "both"])
def test_detect_on_a_full_disk_leaves_a_whole_table(detector, tmp_path, monkeypatch, form):
    @contextlib.contextmanager
    def small(path, mode):
        # Of both tables, only that which comes second finds the disk full.
        kind = io.FileIO if form == "both" and path.suffix == ".json" else FullDisk
        with io.BufferedWriter(kind(f"{path}.part", "w")) as file:
            yield file
        os.rename(f"{path}.part", path)

    monkeypatch.setattr(tables, "atomic_write", small)
    for k in range(9):
        save(tmp_path / f"{k}.png", picture([RED, GREY, GREY, GREEN]))
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space left on device; [1-8] of 9 images done") as caught:
        formats = ("json", "csv") if form == "both" else (form,)
        detect(detector, [tmp_path], out, draw=False, formats=formats, progress=False)
    table = out / f"detections.{formats[-1]}"
    assert caught.value.filename == str(table) and caught.value.errno == errno.ENOSPC
    done = int(re.search(r"(\d) of 9", str(caught.value))[1])
    if form != "csv":
        stored = json.loads((out / "detections.json").read_text())
        assert [len(one["detections"]) for one in stored] == [2] * done
    if form != "json":
        assert len(table.read_text().splitlines()) == 1 + 2 * done
        assert table.read_bytes().endswith(b"\n")


def test_a_disk_too_full_for_the_first_row_leaves_the_table_of_before(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    written, image = [], {"file": "a", "width": 9, "height": 9, "detections": []}
    for full in (False, True):
        if full:
            monkeypatch.setattr(tables, "_write_at", no_room)
        with tables.open_table(tmp_path / "detections.json", tables.JSON, written) as table:
            with contextlib.suppress(OSError):
                table.add(image)
        stored = json.loads((tmp_path / "detections.json").read_text())
        assert stored == [image] and len(written) == 1
    assert files_in(tmp_path) == ["detections.json"]


def test_detect_on_a_disk_too_full_for_a_picture(detector, photos, tmp_path, monkeypatch):
    def full(image, suffix, **options):
        if len(drawn := files_in(tmp_path / "out")) and "a.jpg" in drawn:
            raise OSError(errno.ENOSPC, "No space left on device", "b.jpg")
        return encode(image, suffix, **options)

    encode = files_module.encode_image
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(files_module, "encode_image", full)
    with pytest.raises(OSError, match="No space left on device; 1 of 3 images done; boxes in"):
        detect(detector, [photos], tmp_path / "out", progress=False)
    assert files_in(tmp_path / "out") == ["a.jpg", "detections.json"]
    assert len(json.loads((tmp_path / "out/detections.json").read_text())) == 1


def test_detect_with_the_longest_names_and_names_that_are_not_utf_8(detector, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [b"x" * 250 + b".tiff"[:5], b"y" * 252 + b".j2k"[:0], b"caf\xe9.png", b"=1+1.png"]
    data = save(tmp_path / "a.png", picture([RED, GREY, GREY, GREEN])).read_bytes()
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(data)
    paths = [folder / os.fsdecode(name) for name in names]
    out = tmp_path / "out"
    for _ in range(2):
        report = detect(detector, paths, out, formats=("json", "csv"), progress=False)
        assert report.image_count == 4 and len(files_in(out)) == 6
    assert all(len(os.fsencode(name)) <= 255 for name in files_in(out))
    stored = json.loads((out / "detections.json").read_text())
    assert [one["file"] for one in stored] == [str(path) for path in paths]


def test_cells_of_the_csv_are_no_formulas(tmp_path):
    texts = ["=cmd|' /C calc'!A0", "+1", "-1", "@a", "\t=1", "\r=1", "'=1", "a=1", "plain", "'a"]
    written = []
    with tables.open_table(tmp_path / "a.csv", tables.CSV, written) as table:
        for text in texts:
            box = {"class": text, "label": 1, "score": 0.5, "box_xyxy": [-1, 2, 3, 4]}
            table.add({"file": text, "width": 9, "height": 9, "detections": [box]})
    with open(written[0], newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = ["'" + text for text in texts[:7]] + texts[7:]
    assert [row["class"] for row in rows] == [row["file"] for row in rows] == expected
    assert rows[0]["x1"] == "-1"


def test_sources_name_each_file_once(tmp_path):
    save(tmp_path / "a.png", picture([RED] * 4))
    (tmp_path / "b.png").symlink_to("a.png")
    found = find_images([tmp_path, tmp_path / "a.png", str(tmp_path / "*.png")])
    assert found.files == {str(tmp_path / "a.png"): ""} and not found.failed and not found.left_out
