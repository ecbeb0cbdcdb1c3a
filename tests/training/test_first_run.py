"""`mdssd train` without a recipe: its settings, priors from the data, starts and resumptions."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mdssd import Detector, ssd300
from mdssd.cli import main
from mdssd.cli.commands.run_settings import run_settings
from mdssd.cli.commands.train import load_start
from mdssd.data import DetectionDataset, Sample, SyntheticScenes
from mdssd.data.voc_writer import write_voc
from mdssd.models import MEAN_RGB, SSD, build
from mdssd.priors import best_iou
from mdssd.training.prior_choice import choose_priors
from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint
from mdssd.weights.checkpoint_json import digest_of, read_meta


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(capsys, *arguments):
    status = main(["train", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


TINY = "--model ssd300 --width 0.0625 --batch-size 2 --workers 0 --threads 1".split()


# --- settings ------------------------------------------------------------------------------------


def test_settings_without_a_recipe_are_those_of_a_short_training(tmp_path):
    settings = run_settings({}, tmp_path, resume=False)
    model = {"model": "mdssd300", "width": 0.25, "batch_norm": True, "prior_scales": "auto"}
    assert settings.model == model
    assert settings.recipe == {
        "minutes": 30, "batch_size": 4, "lr": 0.01, "schedule": "cosine", "warmup": 50,
        "momentum": 0.9, "weight_decay": 5e-4, "bias_lr_factor": 2, "bias_weight_decay": 0,
        "clip_gradient": 10, "ema": 0.99, "expand": 1, "crop": True, "crop_min_scale": 0.7,
        "photometric": True, "mirror": True, "turn": False,
    }  # fmt: skip


def test_length_replaces_the_thirty_minutes(tmp_path):
    recipe = run_settings({"epochs": 3}, tmp_path, resume=False).recipe
    assert recipe["epochs"] == 3 and "minutes" not in recipe


def test_larger_batch_scales_the_learning_rate_on_demand(tmp_path):
    recipe = run_settings({"batch_size": 8, "scale_lr": True}, tmp_path, resume=False).recipe
    assert recipe["lr"] == 0.02


@pytest.mark.parametrize(
    ("given", "lr"),
    [
        ({"batch_norm": False}, 0.001),
        ({"batch_norm": False, "lr": 0.1}, 0.1),
        ({}, 0.01),
        ({"light": True}, 0.1),
        ({"light": True, "lr": 0.02}, 0.02),
        ({"light": True, "batch_norm": False}, 0.001),
    ],
)
def test_learning_rate_depends_on_the_form_of_the_model(tmp_path, given, lr):
    assert run_settings(given, tmp_path, resume=False).recipe["lr"] == pytest.approx(lr)


def test_model_that_starts_from_a_checkpoint_has_its_options(tmp_path):
    source = ssd300(3, width=0.0625, batch_norm=True, prior_scales="coco")
    save_checkpoint(tmp_path / "best.json", source, classes=["a", "b"], mean=MEAN_RGB, extra={})
    settings = run_settings({"init": str(tmp_path)}, tmp_path, resume=False)
    config = source.config()
    assert config.pop("num_classes") == 3 and settings.model == config
    assert settings.recipe["lr"] == 0.01
    light = ssd300(3, width=0.0625, batch_norm=True, light=True)
    save_checkpoint(tmp_path / "light.json", light, classes=["a", "b"], mean=MEAN_RGB, extra={})
    for given in ({}, {"light": True}):  # it has learnt already
        given["init"] = str(tmp_path / "light.json")
        assert run_settings(given, tmp_path, resume=False).recipe["lr"] == 0.01
    given = {"init": str(tmp_path), "model": "mdssd300", "prior_scales": "auto"}
    settings = run_settings(given, tmp_path, resume=False)
    assert settings.model == {**config, "model": "mdssd300", "prior_scales": "auto"}


def test_model_that_starts_from_published_weights_fits_them(tmp_path):
    (tmp_path / "vgg16.pth").write_bytes(b"not read yet")
    settings = run_settings({"init": str(tmp_path / "vgg16.pth")}, tmp_path, resume=False)
    # The model's own width and normalisation: 1 and none.
    assert settings.model == {"model": "mdssd300", "prior_scales": "auto"}
    assert settings.recipe["lr"] == pytest.approx(0.001)
    with pytest.raises(FileNotFoundError, match="--init: .*none.pth: no such file"):
        run_settings({"init": str(tmp_path / "none.pth")}, tmp_path, resume=False)


@pytest.mark.parametrize("fits", [True, False])
def test_model_that_does_not_fit_published_weights_says_which_options_do(
    capsys, tmp_path, monkeypatch, fits
):
    def load(model, path, **others):
        if not (fits and model.options.width == 1 and not model.options.batch_norm):
            raise ValueError("of another shape")

    monkeypatch.setattr("mdssd.cli.commands.train.load_pretrained", load)
    path = tmp_path / "vgg16.pth"
    path.write_bytes(b"not read")
    options = [*TINY, "--batch-norm", "--scenes", 2, "--iterations", 1, "--out", tmp_path / "run"]
    status, _, err = run(capsys, *options, "--init", path)
    more = "; with --width 1 --no-batch-norm the model fits" if fits else ""
    assert status == 2 and err == f"mdssd: error: --init: of another shape{more}\n"


def test_the_model_is_checked_before_the_data_are_read(capsys, tmp_path):
    options = ["--data", tmp_path / "nowhere", "--out", tmp_path / "run"]
    status, _, err = run(capsys, *options, "--trunk", "no_such_network")
    assert status == 2 and "trunk must be one of" in err and "nowhere" not in err


# --- priors from the data ------------------------------------------------------------------------


class Squares(DetectionDataset):
    """Images of 600 x 300 with boxes of the given sides in the input of 300."""

    name, classes = "squares", ["square"]

    def __init__(self, sides):
        self.sides = sides
        self.image_ids = [str(k) for k in range(len(sides))]

    def __getitem__(self, index):
        side = self.sides[index]
        box = np.array([[200, 100, 200 + 2 * side, 100 + side]], np.float32)
        image = np.zeros((300, 600, 3), np.uint8)
        return Sample(image, box, np.array([1]), np.array([False]), self.image_ids[index])


@pytest.mark.parametrize(
    ("model", "start", "per_cell"),
    [
        ("mdssd300", "coco", [4, 4, 6, 6, 6, 4, 4]),
        ("ssd300", "coco", [4, 6, 6, 6, 4, 4]),
        ("dssd321", "voc", [8, 8, 8, 8, 8, 8]),  # it has no others
    ],
)
def test_priors_are_fitted_to_the_boxes(model, start, per_cell):
    choice = choose_priors(Squares([14] * 99), {"model": model})
    assert [len(of_map) for of_map in choice.scales] == per_cell
    assert list(choice.shares) == [start, "fitted"]
    assert choice.shares[start] < 0.5 and choice.shares["fitted"] > 0.85
    named = build({"model": model, "prior_scales": start, "width": 0.01})
    fitted = build({"model": model, "prior_scales": choice.scales, "width": 0.01})
    assert len(fitted.priors) == len(named.priors)


def test_priors_of_no_box_are_those_to_start_from():
    assert choose_priors(Squares([]), {"model": "mdssd300"}).scales == "coco"


def test_choice_says_what_the_priors_reach():
    choice = choose_priors(Squares([60] * 3 + [10]), {"model": "mdssd300"})
    assert choice.shares == {"coco": 0.75, "fitted": 1.0}
    text = "fitted, which reach 100.0% of the boxes with an IoU of 0.5 (coco 75.0%)"
    assert str(choice) == text


def test_priors_of_turned_images_are_turned_too(tmp_path):
    """Of boxes of 64 x 14 in the input, the priors are those of 14 x 64 as well."""

    class Long(Squares):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            box = np.array([[100, 100 + index, 228, 114 + index]], np.float32)
            return replace(sample, boxes_xyxy=box)

    data = write_voc(Long(range(12)), tmp_path / "data", split="trainval")
    best = {}
    for turn in ("--no-turn", "--turn"):
        out = tmp_path / turn
        options = ["--model", "mdssd300", "--width", 0.0625, "--batch-norm", "--batch-size", 2]
        options += ["--workers", 0, "--threads", 1, "--iterations", 1, turn]
        assert main(["train", "--data", str(data), "--out", str(out), *map(str, options)]) == 0
        priors = load_checkpoint(out)[0].priors
        best[turn] = best_iou(np.array([[0.4, 0.4, 0.4 + 14 / 300, 0.4 + 64 / 300]]), priors)[0]
    assert best["--no-turn"] < 0.6 < best["--turn"]


# --- the command ---------------------------------------------------------------------------------


def test_first_lines_say_what_will_happen_and_the_checkpoint_has_the_choice(capsys, tmp_path):
    out = tmp_path / "run"
    tiny = ["--width", 0.0625, "--scenes", 4, "--batch-size", 2, "--workers", 0, "--threads", 1]
    status, text, _ = run(capsys, *tiny, "--iterations", 1, "--out", out)
    assert status == 0
    lines = text.splitlines()
    assert lines[0] == "device: cpu, 1 thread"
    assert "priors: fitted, which reach " in text
    assert "model: mdssd300, width 0.0625, with batch normalisation" in text
    assert f"run: starts in {out}, for 1 iteration in batches of 2 at a learning rate" in text
    assert f"Ctrl-C saves and stops; mdssd train --resume --out {out} then continues" in text
    sizes = read_meta(out / "last.json")["model"]["prior_scales"]
    assert [len(of_map) for of_map in sizes] == [4, 4, 6, 6, 6, 4, 4]
    # Resuming takes the sizes of the checkpoint, and fits none.
    status, text, err = run(
        capsys, "--resume", "--out", out, "--iterations", 2, "--prior-scales", "auto"
    )
    assert status == 0 and "priors: fitted, which" not in text, err
    assert read_meta(out / "last.json")["model"]["prior_scales"] == sizes


def test_resuming_a_finished_run_says_how_to_train_longer(capsys, tmp_path):
    options = [*TINY, "--scenes", 2, "--iterations", 1, "--out", tmp_path]
    assert run(capsys, *options)[0] == 0
    status, text, _ = run(capsys, "--resume", "--out", tmp_path)
    assert status == 0
    again = f"mdssd train --resume --out {tmp_path} --iterations 2"
    assert "nothing was left to do: the run has its length of 1 iteration; " in text
    assert text.endswith(f"{again}\n")
    status, text, _ = run(capsys, *again.split()[2:])
    assert status == 0 and "nothing was left" not in text
    assert read_meta(tmp_path / "last.json")["training"]["step"] == 2


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc") / "here"
    write_voc(SyntheticScenes(4, seed=1), root, split="trainval")
    return root


def test_resume_with_other_data_is_refused_or_said(capsys, tmp_path, monkeypatch, voc):
    out = tmp_path / "run"
    assert run(capsys, *TINY, "--data", voc, "--iterations", 1, "--out", out)[0] == 0
    classes = read_meta(out / "last.json")["classes"]

    moved = tmp_path / "moved"
    shutil.copytree(voc, moved)
    monkeypatch.chdir(tmp_path)
    status, text, _ = run(capsys, "--resume", "--data", "moved", "--iterations", 2, "--out", out)
    assert status == 0
    assert f"was trained on {voc}; it continues on {moved}, which has the same classes" in text

    annotation = sorted((moved / "Annotations").iterdir())[0]
    whole = annotation.read_text()
    name = next(name for name in classes if f"<name>{name}<" in whole)
    annotation.write_text(whole.replace(f"<name>{name}<", "<name>truck<"))
    status, _, err = run(capsys, "--resume", "--data", moved, "--iterations", 3, "--out", out)
    assert status == 2 and "--classes" not in err
    assert f"the run in {out} was trained for other classes than the data has: " in err
    assert "truck" in err
    assert f"--init {out} instead of --resume, with another --out, starts a new run" in err
    annotation.write_text(whole)

    split = moved / "ImageSets/Main/trainval.txt"
    split.write_text("".join(split.read_text().splitlines(keepends=True)[1:]))
    status, _, err = run(capsys, "--resume", "--data", moved, "--iterations", 3, "--out", out)
    assert status == 2 and "was trained on 4 images, " in err and "has 3; --init" in err


def test_resume_with_another_model_names_the_difference_only(capsys, tmp_path):
    options = [*TINY, "--scenes", 2, "--out", tmp_path, "--iterations"]
    assert run(capsys, *options, 1)[0] == 0
    options[options.index("--width") + 1] = 0.125
    status, _, err = run(capsys, *options, 2, "--resume")
    assert status == 2
    assert err.endswith("last.json: has another model: width (was 0.0625, is 0.125)\n")


# --- a start from a checkpoint of fitted priors --------------------------------------------------


@pytest.fixture
def fitted(tmp_path):
    """A checkpoint of ssd300 whose conv4_3 and conv7 have other priors than those of coco."""
    layers = SSD.prior_layers(300, "coco")
    sizes = [[list(size) for size in layer.shapes()] for layer in layers]
    sizes[0][0], sizes[1][5] = [9.5, 12.0], [70.0, 11.25]
    model = ssd300(2, width=0.0625, prior_scales=sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    path = tmp_path / "fitted" / "best.json"
    path.parent.mkdir()
    save_checkpoint(path, model, classes=["cat"], mean=MEAN_RGB, extra={})
    return path, sizes


def test_model_that_starts_from_fitted_priors_has_them(fitted, tmp_path):
    path, sizes = fitted
    settings = run_settings({"init": str(path)}, tmp_path, resume=False)
    assert settings.model["prior_scales"] == sizes
    # They fit no other model, which gets its own.
    for given in ({"model": "mdssd300"}, {"model": "ssd512"}):
        settings = run_settings({"init": str(path), **given}, tmp_path, resume=False)
        assert settings.model["prior_scales"] == "auto"


def test_predictions_for_other_priors_start_anew_and_the_line_says_so(fitted):
    path, sizes = fitted
    model = ssd300(2, width=0.0625, prior_scales="coco")
    line = load_start(model, str(path), ["cat"])
    assert (
        "the predictions from conv4_3, conv7 are new, since the priors of the file have quite other"
        in line
    )
    assert "not used: heads.conv4_3.loc.weight" in line
    state = model.state_dict()
    for name, tensor in state.items():
        new = name.startswith(("heads.conv4_3.", "heads.conv7.")) and name.endswith("weight")
        if name.startswith("heads.") and name.endswith("weight"):
            assert bool((tensor == 0.5).all()) is not new, name
    same = ssd300(2, width=0.0625, prior_scales=sizes)
    assert "predictions from" not in load_start(same, str(path), ["cat"])
    assert all((tensor == 0.5).all() for tensor in same.state_dict().values())


def test_detection_and_evaluation_follow_the_checkpoint(fitted, tmp_path):
    path, sizes = fitted
    priors = ssd300(2, width=0.0625, prior_scales=sizes).priors
    assert torch.equal(Detector.from_checkpoint(path).model.priors, priors)
    data = write_voc(Squares([30, 60]), tmp_path / "data", split="test")
    text = path.read_text().replace('"cat"', '"square"')
    meta = json.loads(text)
    path.write_text(json.dumps({**meta, "digest": digest_of(meta)}))
    assert main(["eval", str(path), "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    about = json.loads((tmp_path / "out/evaluation.json").read_text())["about"]
    assert about["model"]["prior_scales"] == sizes
    assert "prior scales fitted" in (tmp_path / "out/report.html").read_text()
