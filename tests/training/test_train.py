"""Training learns, writes its files, resumes, and reports faults."""

import csv
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mdssd import mdssd300, ops, ssd300
from mdssd.data import Augmentation, CocoDataset, DataError, DetectionDataset, Sample, TrainingSet
from mdssd.detection.detector import Detector
from mdssd.evaluation.evaluate import evaluate
from mdssd.evaluation.result import EvalResult
from mdssd.training import progress as progress_module
from mdssd.training import run as run_module
from mdssd.training import step as step_module
from mdssd.training.folder import check_folder
from mdssd.training.loading import EpochBatches
from mdssd.training.loop import train
from mdssd.training.loss_curve import plot_losses
from mdssd.training.loss_log import LossLog
from mdssd.training.run import TrainingError
from mdssd.training.settings import Recipe
from mdssd.training.state import TrainState
from mdssd.training.step import TrainingStep, parameter_groups
from mdssd.weights.checkpoint import load_checkpoint, load_state
from mdssd.weights.checkpoint_json import CheckpointError, read_meta


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Shapes(DetectionDataset):
    """Dark discs and bright squares of 50 to 65 pixels on noise."""

    name = "shapes"
    classes = ["disc", "square"]

    def __init__(self, count, seed=0, size=300):
        self.samples = [_draw(np.random.default_rng([seed, i]), i, size) for i in range(count)]
        self.image_ids = [sample.image_id for sample in self.samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    annotation = __getitem__

    def report(self):
        return self.name


def _draw(rng, index, size):
    image = rng.normal(110, 6, (size, size, 3)).clip(0, 255).astype(np.uint8)
    boxes, labels = [], []
    for _ in range(rng.integers(2, 4)):
        side = int(rng.integers(50, 66))
        x, y = (int(v) for v in rng.integers(2, size - side - 2, 2))
        box = (x, y, x + side, y + side)
        if any(
            x < b[2] + 4 and b[0] < x + side + 4 and y < b[3] + 4 and b[1] < y + side + 4
            for b in boxes
        ):
            continue
        label = int(rng.integers(1, 3))
        if label == 1:
            cv2.circle(image, (x + side // 2, y + side // 2), side // 2, (40, 20, 30), -1)
        else:
            cv2.rectangle(image, box[:2], box[2:], (230, 240, 210), -1)
        boxes.append(box)
        labels.append(label)
    return Sample(
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.zeros(len(labels), bool),
        str(index),
    )


def small(num_classes=3, seed=0, **options):
    torch.manual_seed(seed)
    return ssd300(num_classes, **{"width": 0.0625, "batch_norm": True, **options})


PLAIN = dict(expand=1, crop=False, photometric=False, mirror=False)
QUICK = dict(batch_size=2, lr=0.01, workers=0, progress=False, log_every=1)


def rows_of(out):
    with open(out / "loss.csv", newline="") as file:
        return list(csv.DictReader(file))


# --- it learns -----------------------------------------------------------------------------------


def test_overfits_four_images(tmp_path):
    """The loss falls by 20x, and the model finds every object and nothing else."""
    dataset = Shapes(4)
    torch.manual_seed(0)
    model = mdssd300(3, width=0.0625, batch_norm=True)
    settings = dict(batch_size=2, lr=0.01, schedule="cosine", warmup=10, clip_gradient=20.0)
    train(
        model,
        dataset,
        tmp_path,
        epochs=120,
        workers=0,
        log_every=2,
        save_every=1000,
        progress=False,
        **settings,
        **PLAIN,
    )
    losses = [float(row["total"]) for row in rows_of(tmp_path)]
    assert losses[-1] * 20 < losses[0], losses
    detector = Detector(model, classes=dataset.classes, score_threshold=0.5)
    for sample in dataset.samples:
        (found,) = detector(sample.image)
        assert len(found["labels"]) == len(sample.labels)
        overlap = ops.box_iou(torch.from_numpy(sample.boxes_xyxy), found["boxes"])
        best, which = overlap.max(dim=1)
        assert (best > 0.5).all()
        assert torch.equal(found["labels"][which], torch.from_numpy(sample.labels))
    assert evaluate(detector, dataset, progress=False).voc07.mean_ap == pytest.approx(1.0)


# --- what a run writes ---------------------------------------------------------------------------


def test_run_writes_checkpoints_csv_and_png(tmp_path):
    dataset = Shapes(5)
    out = tmp_path / "new" / "run"
    state = train(
        small(), dataset, out, epochs=2, eval_dataset=Shapes(2, seed=9), eval_every=1, **QUICK
    )
    names = {path.name.split("-")[0] for path in out.iterdir()}
    assert names == {"best.json", "last.json", "best", "last", "loss.csv", "loss.png"}
    rows = rows_of(out)
    assert [(row["step"], row["epoch"]) for row in rows] == list(zip("1234", "1122", strict=True))
    assert all(
        float(row["total"]) == pytest.approx(float(row["loc"]) + float(row["conf"]), rel=1e-4)
        for row in rows
    )
    assert cv2.imread(str(out / "loss.png")).shape == (450, 800, 3)
    model, meta = load_checkpoint(out / "last.json")
    assert meta["classes"] == dataset.classes
    facts = meta["training"]
    assert (facts["epoch"], facts["step"], facts["finished"]) == (2, 4, True)
    assert facts["recipe"]["lr"] == 0.01
    assert [row[0] for row in facts["evaluations"]] == [1, 2]
    assert state.best == max(row[1] for row in state.evaluations)
    assert state.loss == pytest.approx(float(rows[-1]["total"]), rel=1e-4)


def test_the_best_of_a_coco_file_is_that_of_coco_ap(tmp_path, monkeypatch):
    """The best checkpoint follows COCO AP if the evaluation data is in COCO format.

    A run that is resumed with another format starts a new list: the metrics do not compare.
    """
    result = SimpleNamespace(
        voc07=SimpleNamespace(mean_ap=0.9),
        coco=SimpleNamespace(figures={"AP": 0.3}),
        headline=lambda metric: EvalResult.headline(result, metric),
    )
    monkeypatch.setattr(run_module, "evaluate", lambda *_, **__: result)
    shapes, out = Shapes(2), tmp_path / "run"
    categories = [{"id": k, "name": name} for k, name in enumerate(shapes.classes)]
    photo = {"id": 1, "file_name": "1.png"}
    cv2.imwrite(str(tmp_path / "1.png"), shapes.samples[0].image)
    content = {"images": [photo], "categories": categories, "annotations": []}
    (tmp_path / "set.json").write_text(json.dumps(content))
    test_set = CocoDataset(tmp_path / "set.json")

    state = train(small(), shapes, out, epochs=1, eval_dataset=test_set, **QUICK)
    assert (state.metric, state.best) == ("COCO AP", 0.3)
    assert read_meta(out / "best.json")["training"]["metric"] == "COCO AP"
    state = train(small(), shapes, out, epochs=2, eval_dataset=shapes, resume=True, **QUICK)
    assert (state.metric, state.evaluations) == ("VOC07 mAP", [[2, 0.9]])


def test_model_is_left_as_the_last_checkpoint_has_it(tmp_path):
    model = small()
    train(model, Shapes(2), tmp_path, epochs=1, ema=0.9, **QUICK)
    saved, _ = load_checkpoint(tmp_path)
    assert not model.training
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_minutes_end_the_run_and_drive_the_schedule(tmp_path, monkeypatch):
    clock = [0.0]

    def tick():
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr(progress_module.time, "monotonic", tick)
    state = train(small(), Shapes(2), tmp_path, minutes=1, **QUICK)
    rates = [float(row["lr"]) for row in rows_of(tmp_path)]
    assert state.finished and state.seconds >= 60
    assert sorted(rates, reverse=True) == rates
    assert {round(math.log10(rate)) for rate in rates} == {-2, -3, -4}
    assert read_meta(tmp_path / "last.json")["training"]["finished"]


def test_images_without_boxes_and_crowds_are_no_obstacle(tmp_path):
    dataset = Shapes(4)
    for sample in dataset.samples[:2]:
        sample.boxes_xyxy = np.zeros((0, 4), np.float32)
        sample.labels = np.zeros(0, np.int64)
        sample.difficult = sample.crowd = np.zeros(0, bool)
    dataset.samples[2].crowd[:] = True
    train(small(), dataset, tmp_path, epochs=1, **QUICK)
    assert all(math.isfinite(float(row["total"])) for row in rows_of(tmp_path))


def test_worker_processes_change_nothing(tmp_path):
    """The losses have the same bits with the images loaded in this process and in two workers."""
    runs = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        train(small(), Shapes(4), out, epochs=2, **{**QUICK, "workers": workers})
        runs.append([row["total"] for row in rows_of(out)])
    assert runs[0] == runs[1]


# --- interruption --------------------------------------------------------------------------------


class Interrupted(Shapes):
    """Raises KeyboardInterrupt, as Ctrl-C does, after `after` images."""

    def __init__(self, count, after):
        super().__init__(count)
        self.left = after

    def __getitem__(self, index):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__getitem__(index)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}])
def test_resumed_run_gives_the_same_bits(tmp_path, options):
    recipe = dict(epochs=4, warmup=3, **options, **QUICK)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small(), Shapes(5), whole, **recipe)
    with pytest.raises(KeyboardInterrupt):  # in the middle of the third epoch
        train(small(), Interrupted(5, after=2 * 4 + 2), parts, **recipe)
    assert read_meta(parts / "last.json")["training"]["epoch"] == 2
    assert len(rows_of(parts)) == 5
    state = train(small(seed=1), Shapes(5), parts, resume=True, **recipe)
    assert (state.epoch, state.step) == (4, 8)
    for load in (lambda out: load_checkpoint(out)[0].state_dict(), load_state):
        ours, theirs = load(whole), load(parts)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    columns = ("step", "epoch", "lr", "loc", "conf", "total")
    a, b = ([[row[c] for c in columns] for row in rows_of(out)] for out in (whole, parts))
    assert a == b


@pytest.mark.parametrize(("amp", "iterations", "scale"), [("bf16", 2, None), ("fp16", 1, 2.0**14)])
def test_mixed_precision_is_close_to_float32(tmp_path, amp, iterations, scale):
    """The losses are close to those of float32, and a resumed run restores the gradient scale.

    With fp16, the first gradients overflow at torch's initial scale, 2**16. Such updates are
    skipped, and each halves the scale.
    """
    losses = []
    for name in (None, amp):
        out = tmp_path / str(name)
        train(small(), Shapes(2), out, epochs=2, amp=name, clip_gradient=20.0, **QUICK)
        losses.append([float(row["total"]) for row in rows_of(out)][:iterations])
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    state = load_state(out)
    kept = {name: tensor.item() for name, tensor in state.items() if name.startswith("scaler.")}
    assert kept.get("scaler.scale") == scale
    assert all(tensor.dtype == torch.float32 for n, tensor in state.items() if "momentum" in n)
    train(small(), Shapes(2), out, epochs=3, amp=amp, resume=True, clip_gradient=20.0, **QUICK)
    assert scale is None or load_state(out)["scaler.scale"].item() <= scale


def test_gradient_that_is_too_large_for_fp16_is_skipped(tmp_path):
    """The update is skipped, and the scale is halved."""
    model = small()
    recipe = Recipe(epochs=1, amp="fp16")
    optimizer = torch.optim.SGD(parameter_groups(model, recipe))
    step = TrainingStep(model, optimizer, recipe)
    step.load_state_dict({**step.state_dict(), "scaler.scale": torch.tensor(2.0**40)})
    before = [parameter.clone() for parameter in model.parameters()]
    boxes, labels = [torch.tensor([[0.1, 0.1, 0.5, 0.5]])] * 2, [torch.tensor([1])] * 2
    assert step.backward(torch.randn(2, 3, 300, 300), boxes, labels).finite
    step.update(0.01, 0)
    assert all(map(torch.equal, before, model.parameters()))
    assert step.state_dict()["scaler.scale"] == 2.0**39


@pytest.mark.nightly("compiles for a minute")
def test_compiled_network_gives_the_same_losses(tmp_path):
    losses = []
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        model = small(batch_norm=False)  # normalising two values would magnify rounding
        train(model, Shapes(2), out, epochs=3, compile=compiled, **{**QUICK, "lr": 1e-4})
        losses.append([float(row["total"]) for row in rows_of(out)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_older_table_of_losses_gets_its_new_column(tmp_path):
    path = tmp_path / "loss.csv"
    path.write_text("step,epoch,lr,loc,conf,total,images_per_s\n1,1,0.1,1,2,3,4\n")
    with LossLog(path, last_step=1) as log:
        log.write(step=2, **ROW)
    assert [row["waiting"] for row in rows_of(tmp_path)] == ["", "0.5"]


def test_resuming_a_finished_run_does_nothing_and_more_epochs_continue_it(tmp_path):
    train(small(), Shapes(2), tmp_path, epochs=1, **QUICK)
    before = (tmp_path / "last.json").read_bytes()
    model = small(seed=1)
    state = train(model, Shapes(2), tmp_path, epochs=1, resume=True, **QUICK)
    assert state.finished and state.epoch == 1
    assert (tmp_path / "last.json").read_bytes() == before
    saved = load_checkpoint(tmp_path)[0].state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert train(model, Shapes(2), tmp_path, epochs=2, resume=True, **QUICK).step == 2
    assert len(rows_of(tmp_path)) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tmp_path, monkeypatch, value):
    dataset = Shapes(5)
    run = dict(save_iterations=1, resume=True, epochs=2, **QUICK)
    train(small(), dataset, tmp_path, **{**run, "epochs": 1, "resume": False})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    original = ops.multibox_loss
    monkeypatch.setattr(ops, "multibox_loss", lambda *a: (original(*a)[0] * value, original(*a)[1]))
    message = (
        r"not finite .*iteration 3 of epoch 2; the learning rate was 0.001, and the loss before "
        r"was \d.*; try a lower learning rate.*last.json is .*whole.*not-finite-00000003 has its"
    )
    with pytest.raises(TrainingError, match=message):
        train(small(), dataset, tmp_path, **run)
    folder = tmp_path / "not-finite-00000003"
    files = {path.name: path for path in tmp_path.iterdir() if path != folder}
    assert {name: path.read_bytes() for name, path in files.items()} == before

    batches = EpochBatches(5, 2, seed=0)
    batches.epoch = 1
    indices = next(iter(batches))
    facts = json.loads((folder / "batch.json").read_text())
    assert [row["id"] for row in facts["images"]] == [dataset.image_ids[i] for i in indices]
    tensors = safetensors.torch.load_file(folder / "batch.safetensors")
    samples = TrainingSet(dataset, Augmentation(300))
    samples.set_epoch(1)
    for k, index in enumerate(indices):
        image, boxes, labels = samples[index]
        assert torch.equal(tensors["images"][k], image)
        assert torch.equal(tensors[f"boxes.{k}"], boxes)
        assert torch.equal(tensors[f"labels.{k}"], labels)
        assert facts["images"][k]["objects"] == [dataset.classes[label - 1] for label in labels]
        assert cv2.imread(str(folder / facts["images"][k]["picture"])).shape == (300, 300, 3)
    assert len(list(folder.iterdir())) == 4


def test_weights_that_are_not_finite_name_the_learning_rate(tmp_path, monkeypatch):
    """Behind batch normalisation a huge rate can make them so while the loss is still finite."""
    update = TrainingStep.update

    def burst(step, lr, iteration):
        update(step, lr, iteration)
        if iteration == 3:
            next(step.model.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(TrainingStep, "update", burst)
    message = (
        r"train: after iteration 4: .*the learning rate was 0.001, and the loss before was \d.*"
        r"try a lower learning rate.*last.json is the last checkpoint and is whole"
    )
    with pytest.raises(TrainingError, match=message):
        train(small(), Shapes(4), tmp_path, epochs=3, **QUICK)
    assert read_meta(tmp_path / "last.json")["training"]["step"] == 2


# --- refusals ------------------------------------------------------------------------------------


class NoBoxes(Shapes):
    def __init__(self):
        super().__init__(2)
        for sample in self.samples:
            sample.crowd = np.ones(len(sample.labels), bool)


class OtherClasses(Shapes):
    classes = ["disc", "star"]


@pytest.mark.parametrize(
    ("dataset", "options", "error", "message"),
    [
        (Shapes(2), {"epochs": None}, ValueError, "either epochs, iterations or minutes"),
        (Shapes(2), {"minutes": 1}, ValueError, "either epochs, iterations or minutes"),
        (Shapes(2), {"epochs": 0}, ValueError, "epochs: expected a whole number from 1, got 0"),
        (Shapes(2), {"epochs": None, "minutes": -1.0}, ValueError, "minutes: expected"),
        (Shapes(2), {"batch_size": 1.5}, ValueError, "batch_size: expected"),
        (Shapes(2), {"lr": float("nan")}, ValueError, "lr: expected a number above 0, got nan"),
        (Shapes(2), {"lr": -1}, ValueError, "lr: expected"),
        (Shapes(2), {"momentum": 1.0}, ValueError, "momentum: expected .* below 1, got 1.0"),
        (Shapes(2), {"ema": 1.0}, ValueError, "ema: expected"),
        (Shapes(2), {"weight_decay": -1.0}, ValueError, "weight_decay: expected"),
        (Shapes(2), {"clip_gradient": 0}, ValueError, "clip_gradient: expected"),
        (Shapes(2), {"warmup": -1}, ValueError, "warmup: expected"),
        (Shapes(2), {"schedule": "x"}, ValueError, "one of mdssd, ssd, steps, cosine; got 'x'"),
        (Shapes(2), {"schedule": "steps"}, ValueError, "drops: expected with the schedule steps"),
        (Shapes(2), {"drops": [0.5]}, ValueError, "drops: expected with the schedule steps"),
        *(
            (Shapes(2), {"schedule": "steps", "drops": drops}, ValueError, "drops: expected rising")
            for drops in ([], [2, 1], [0.5, 2], [0], [1.5], ["1"], 3)
        ),
        (Shapes(2), {"epochs": None, "iterations": 0}, ValueError, "iterations: expected a whole"),
        (Shapes(2), {"iterations": 1}, ValueError, "either epochs, iterations or minutes"),
        (Shapes(2), {"save_iterations": 0}, ValueError, "save_iterations: expected a whole number"),
        (Shapes(2), {"keep": 0}, ValueError, "keep: expected a whole number from 1, got 0"),
        (Shapes(2), {"bias_lr_factor": 0}, ValueError, "bias_lr_factor: expected a number above 0"),
        (Shapes(2), {"bias_weight_decay": -1}, ValueError, "bias_weight_decay: expected"),
        (Shapes(2), {"mirror": "no"}, ValueError, "mirror: expected true or false, got 'no'"),
        (Shapes(2), {"expand": "no"}, ValueError, "expand: expected a number of at least 1"),
        (Shapes(2), {"accumulate": 0}, ValueError, "accumulate: expected a whole number from 1"),
        (Shapes(2), {"accumulate": 2}, ValueError, "expected at least 4 images, .* in 2 parts"),
        (Shapes(2), {"normalizer": "x"}, ValueError, "expected one of global, local; got 'x'"),
        (Shapes(2), {"amp": "fp8"}, ValueError, "amp: expected one of None, bf16, fp16; got"),
        (Shapes(2), {"sync_batch_norm": True}, ValueError, "GPUs only, got device cpu"),
        (Shapes(2), {"expand": 0.5}, ValueError, "expand"),
        (Shapes(2), {"crop_min_scale": 0}, ValueError, "crop_min_scale"),
        (Shapes(2), {"eval_every": 0}, ValueError, "eval_every: expected 1 or more, got 0"),
        (Shapes(2), {"speed": 3}, TypeError, "speed"),
        (Shapes(2), {"batch_size": 1}, ValueError, "expected at least 2 images, 2 for each part"),
        (Shapes(1), {}, ValueError, "expected at least 2 images, .* got 2 of 1 images"),
        (Shapes(0), {}, ValueError, "shapes has none"),
        (NoBoxes(), {}, ValueError, "shapes has no box to learn from"),
        (Shapes(2), {"eval_dataset": Shapes(0)}, ValueError, "eval_dataset: shapes has no image"),
        (Shapes(2), {"eval_dataset": OtherClasses(2)}, ValueError, "classes .* lacks: star"),
        (Shapes(2), {"resume": True}, CheckpointError, "last.json: no such file"),
    ],
)
def test_refuses_before_anything_is_written(tmp_path, dataset, options, error, message):
    with pytest.raises(error, match=message):
        train(small(), dataset, tmp_path / "run", **{"epochs": 1, **QUICK, **options})
    assert not list(tmp_path.iterdir())


def test_refuses_a_model_of_other_classes(tmp_path):
    with pytest.raises(ValueError, match="expected 3 names for a model of 4 classes"):
        train(small(4), Shapes(2), tmp_path / "run", epochs=1, **QUICK)
    assert not list(tmp_path.iterdir())


def test_refuses_a_broken_image_before_anything_is_written(tmp_path):
    dataset = Shapes(2)
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    dataset.image_path = lambda index: path
    with pytest.raises(DataError, match=r"broken\.png"):
        train(small(), dataset, tmp_path / "run", epochs=1, **QUICK)
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken.png"]


class Broken(Shapes):
    def __getitem__(self, index):
        raise DataError("cat.jpg: cut short")


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_an_image_during_training_is_raised_unchanged(tmp_path, workers):
    with pytest.raises(DataError) as caught:
        train(small(), Broken(2), tmp_path, epochs=1, **{**QUICK, "workers": workers})
    assert str(caught.value) == "cat.jpg: cut short"


def test_refuses_to_overwrite_a_run(tmp_path):
    train(small(), Shapes(2), tmp_path, epochs=1, **QUICK)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"holds a run already \(last.json, loss.csv\)"):
        train(small(), Shapes(2), tmp_path, epochs=1, **QUICK)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_ended_before_its_first_checkpoint_is_no_obstacle(tmp_path):
    (tmp_path / "loss.csv").write_text("step,epoch,lr,loc,conf,total,images_per_s,waiting\n1,1,")
    check_folder(tmp_path, resume=False)
    (tmp_path / "loss.csv").write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"holds a run already \(loss.csv\)"):
        check_folder(tmp_path, resume=False)


def test_refuses_to_resume_another_run(tmp_path):
    train(small(), Shapes(2), tmp_path, epochs=1, **QUICK)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = dict(epochs=2, resume=True, **QUICK)
    with pytest.raises(ValueError, match=r"lr \(was 0.01, is 0.02\)"):
        train(small(), Shapes(2), tmp_path, **{**again, "lr": 0.02})
    with pytest.raises(ValueError, match=r"images \(were 2, are 3\)"):
        train(small(), Shapes(3), tmp_path, **again)
    with pytest.raises(CheckpointError, match=r"last.json: is for other classes"):
        train(small(), OtherClasses(2), tmp_path, **again)
    with pytest.raises(CheckpointError, match=r"last.json: has another model"):
        train(small(width=0.125), Shapes(2), tmp_path, **again)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_refuses_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file: is not a folder"):
        train(small(), Shapes(2), tmp_path / "file" / "run", epochs=1, **QUICK)


# --- the parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "drops"), [("mdssd", (60_000, 100_000)), ("ssd", (80_000, 100_000))]
)
def test_schedule_of_the_papers(schedule, drops):
    recipe = Recipe(epochs=1, schedule=schedule)
    for step, power in ((0, 0), (drops[0] - 1, 0), (drops[0], 1), (drops[1] - 1, 1), (drops[1], 2)):
        assert recipe.learning_rate(step, step / 120_000) == pytest.approx(1e-3 * 0.1**power)


@pytest.mark.parametrize("length", [{"iterations": 100}, {"epochs": 1}])
@pytest.mark.parametrize("drops", [(30, 80), (0.3, 0.8)])
def test_drops_are_iterations_or_fractions(length, drops):
    recipe = Recipe(**length, schedule="steps", drops=drops)
    rates = [recipe.learning_rate(step, step / 100) for step in range(100)]
    assert rates == pytest.approx([1e-3] * 30 + [1e-4] * 50 + [1e-5] * 20)


def test_warmup_and_cosine():
    recipe = Recipe(epochs=1, lr=1.0, warmup=9, schedule="mdssd")
    rates = [recipe.learning_rate(step, 0.0) for step in range(11)]
    assert rates == pytest.approx([0.1 * k for k in range(1, 11)] + [1.0])
    cosine = Recipe(epochs=1, lr=2.0, schedule="cosine")
    assert [cosine.learning_rate(0, p) for p in (0, 0.5, 1)] == pytest.approx([2, 1, 0])


def test_parameter_groups_follow_caffe():
    model = mdssd300(3, width=0.125, batch_norm=True)
    groups = parameter_groups(model, Recipe(epochs=1, weight_decay=5e-4))
    of = {id(p): (g["weight_decay"], g["lr_factor"]) for g in groups for p in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    scales = 0
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        if kind == "bias":
            assert of[id(parameter)] == (0.0, 2.0), name
        elif owner in norms:
            assert of[id(parameter)] == (0.0, 1.0), name
        else:
            assert of[id(parameter)] == (5e-4, 1.0), name
            scales += parameter.ndim == 1
    assert scales == 6  # two L2Norms in each of the three fusion modules


def test_epoch_batches():
    batches = EpochBatches(10, 4, seed=3)
    assert len(batches) == 2
    orders = []
    for batches.epoch in range(20):
        order = list(batches)
        assert order == list(batches)
        assert [len(batch) for batch in order] == [4, 4]
        assert len({index for batch in order for index in batch}) == 8
        orders.append(str(order))
    assert len(set(orders)) == 20
    assert set(range(10)) == {int(digit) for order in orders for digit in order if digit.isdigit()}
    few = EpochBatches(3, 8, seed=0)
    assert [sorted(batch) for batch in few] == [[0, 1, 2]]


def test_average_of_the_weights():
    mean, model = small(), small(seed=1)
    before = {name: tensor.clone() for name, tensor in mean.state_dict().items()}
    step_module._follow(mean, model, 0.9, 1000)
    for name, tensor in mean.state_dict().items():
        new = model.state_dict()[name]
        want = 0.9 * before[name] + 0.1 * new if tensor.is_floating_point() else new
        torch.testing.assert_close(tensor, want)


ROW = dict(epoch=1, lr=0.1, loc=1.0, conf=2.0, total=3.0, images_per_s=4.0, waiting=0.5)


def test_forked_workers_do_not_hold_the_lock_of_the_loss_log(tmp_path):
    log = LossLog(tmp_path / "loss.csv")
    context = multiprocessing.get_context("fork")
    started = context.Event()
    worker = context.Process(target=lambda: (started.set(), time.sleep(60)))
    worker.start()
    try:
        assert started.wait(60)
        with pytest.raises(RuntimeError, match="another process"):
            LossLog(tmp_path / "loss.csv")
        log._lock.close()  # as when its process is killed
        LossLog(tmp_path / "loss.csv").__exit__(None, None, None)
    finally:
        worker.kill()
        worker.join()


def test_loss_log_continues_after_the_checkpoint(tmp_path):
    path = tmp_path / "loss.csv"
    with LossLog(path) as log:
        for step in (1, 2, 3):
            log.write(step=step, **ROW)
            assert len(rows_of(tmp_path)) == step  # on the disk line by line
        with pytest.raises(RuntimeError, match="another process is training"):
            LossLog(path)
    with open(path, "a") as file:
        file.write("4,1,0.")  # cut off by a kill
    with LossLog(path, last_step=2) as log:
        log.write(step=3, **ROW)
    assert [row["step"] for row in rows_of(tmp_path)] == ["1", "2", "3"]
    path.write_text("my,own,table\n")
    with pytest.raises(ValueError, match="loss.csv: is not the loss CSV"):
        LossLog(path, last_step=3)
    assert path.read_text() == "my,own,table\n"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "loss.csv"] == []


def test_loss_log_leaves_nothing_but_its_file_when_its_process_is_killed(tmp_path):
    code = "import os, signal; from mdssd.training.loss_log import LossLog; "
    code += f"log = LossLog({str(tmp_path / 'loss.csv')!r}); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["loss.csv"]
    (tmp_path / "loss.csv").write_text("")  # killed before the header was written
    with LossLog(tmp_path / "loss.csv", last_step=3) as log:
        log.write(step=4, **ROW)
    assert [row["step"] for row in rows_of(tmp_path)] == ["4"]


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b'"a\x00', b"step,epoch\n1,2\n", b'"' + b"x" * 200_000]
)
def test_loss_log_of_something_else_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "loss.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"loss.csv: is not the loss CSV of a run"):
        LossLog(path, last_step=3)
    assert path.read_bytes() == content


def test_loss_log_drops_rows_that_are_no_numbers(tmp_path):
    path = tmp_path / "loss.csv"
    header = "step,epoch,lr,loc,conf,total,images_per_s,waiting\n"
    rows = "1,1,0.1,1,2,3,4,0.5\n2,1,0.1,x,2,3,4,0.5\n²,1,0.1,1,2,3,4,0.5\n3,1,0.1,1,nan,3,4,0.5\n"
    path.write_text(header + rows)
    with LossLog(path, last_step=9):
        assert [row["step"] for row in rows_of(tmp_path)] == ["1"]
    plot_losses(path, tmp_path / "loss.png")


def test_loss_log_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "loss.csv")
    with pytest.raises(OSError, match="named pipe"):
        LossLog(tmp_path / "loss.csv")
    with pytest.raises(OSError, match="named pipe"):
        check_folder(tmp_path, resume=False)


@pytest.mark.parametrize(
    "fault",
    [
        {"step": "7"},
        {"epoch": -1},
        {"batch": 1.5},
        {"seconds": None},
        {"seconds": "1"},
        {"loss": [1]},
        {"evaluations": [[1]]},
        {"evaluations": 5},
    ],
)
def test_state_of_an_edited_checkpoint_is_refused(fault):
    with pytest.raises((ValueError, TypeError)):
        TrainState(**fault)


def test_curve_of_a_single_row_shows_its_points(tmp_path):
    path = tmp_path / "loss.csv"
    path.write_text("step,loc,conf,total\n1,1,2,3\n")
    plot_losses(path, tmp_path / "loss.png")
    blue, green, red = cv2.imread(str(tmp_path / "loss.png")).astype(int).transpose(2, 0, 1)
    for mask in (blue > red + 80, red > blue + 80, (green > red + 60) & (green > blue + 60)):
        spots, _ = cv2.connectedComponents(mask.astype(np.uint8))
        assert spots - 1 == 2  # the point and its sign in the legend
