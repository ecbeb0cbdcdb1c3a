"""Recipes have the numbers of the papers, can be a user's own, and work in the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdssd import mdssd300, ssd300
from mdssd.cli import main
from mdssd.cli.commands.train import load_start
from mdssd.models import MEAN_RGB, build
from mdssd.training.recipe_files import MODEL_OPTIONS, combine, read_recipe, recipe_names
from mdssd.training.settings import Recipe
from mdssd.training.step import parameter_groups
from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
# Iterations, iterations where the learning rate drops, batch size; from papers and Caffe code.
PAPERS = {
    "mdssd300-voc": (120_000, (60_000, 100_000), 32),
    "mdssd512-voc": (120_000, (60_000, 100_000), 16),
    "mdssd300-coco": (320_000, (160_000, 280_000), 32),
    "mdssd512-coco": (320_000, (160_000, 280_000), 16),
    "ssd300-voc": (120_000, (80_000, 100_000), 32),
    "ssd512-voc": (120_000, (80_000, 100_000), 32),
    "ssd300-coco": (400_000, (280_000, 360_000), 32),
    "ssd512-coco": (400_000, (280_000, 360_000), 32),
    "ssd321-voc": (70_000, (40_000, 60_000), 32),
    "dssd321-voc-stage1": (30_000, (20_000,), 32),
    "dssd321-voc-stage2": (40_000, (20_000,), 32),
    "ssd513-coco": (400_000, (280_000, 360_000), 32),
    "dssd513-coco-stage1": (30_000, (20_000,), 32),
    "dssd513-coco-stage2": (40_000, (20_000,), 32),
}


def settings_of(name):
    """Return the `Recipe` and the model options of a recipe of the package."""
    settings = combine(read_recipe(name), {})
    model = {key: settings.pop(key) for key in MODEL_OPTIONS if key in settings}
    return Recipe(**settings), model


def test_every_recipe_exists():
    assert recipe_names() == sorted([*PAPERS, "photos"])


@pytest.mark.parametrize("name", PAPERS)
def test_recipe_has_the_numbers_of_its_paper(name):
    recipe, model = settings_of(name)
    iterations, drops, batch = PAPERS[name]
    assert (recipe.iterations, recipe.batch_size) == (iterations, batch)
    edges = (0, *drops, iterations)
    for k, (first, end) in enumerate(zip(edges, edges[1:], strict=False)):
        for step in (first, end - 1):
            lr = recipe.learning_rate(step, step / iterations)
            assert lr == pytest.approx(10 ** (-3 - k), rel=1e-12)
    assert (recipe.momentum, recipe.weight_decay, recipe.warmup) == (0.9, 5e-4, 0)
    assert (recipe.expand, recipe.crop, recipe.crop_min_scale) == (4, True, 0.3)
    assert recipe.photometric and recipe.mirror
    assert recipe.ema is recipe.clip_gradient is recipe.epochs is recipe.minutes is None
    network, data, *stage = name.split("-")
    assert (model["model"], model["prior_scales"]) == (network, data)
    frozen = {"stage1": ["base"], "stage2": ["batch-norm"]}
    assert recipe.freeze == (frozen[stage[0]] if stage else [])
    assert model["truncate_sizes"] == ("512" in name)
    assert not model["clip_priors"]
    assert model["batch_norm"] == (network[-3:] in ("321", "513"))
    torch.manual_seed(0)
    built = build({**model, "num_classes": 3, "width": 0.0625})
    *_, biases = parameter_groups(built, recipe)
    assert (biases["lr_factor"], biases["weight_decay"]) == (2, 0)
    assert len(biases["params"]) == sum(key.endswith("bias") for key, _ in built.named_parameters())


def test_built_package_holds_the_recipes(tmp_path):
    command = [
        *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path),
        *("build_py", "--build-lib", tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in recipe_names():
        built = (tmp_path / "mdssd/recipes" / f"{name}.toml").read_bytes()
        assert built == (ROOT / "mdssd/recipes" / f"{name}.toml").read_bytes()


# --- options over a recipe -----------------------------------------------------------------------

OWN = {"iterations": 1000, "schedule": "steps", "drops": [500, 800], "batch_size": 32, "lr": 0.01}


@pytest.mark.parametrize(
    ("options", "scale_lr", "changed"),
    [
        ({}, False, {}),
        ({}, True, {}),
        ({"lr": 0.1}, False, {"lr": 0.1}),
        ({"batch_size": 64}, False, {"batch_size": 64}),
        (
            {"batch_size": 64},
            True,
            {"batch_size": 64, "lr": 0.02, "iterations": 500, "drops": [250, 400]},
        ),
        (
            {"batch_size": 8, "drops": [7]},
            True,
            {"batch_size": 8, "lr": 0.0025, "iterations": 4000, "drops": [7]},
        ),
        (
            {"batch_size": 64, "epochs": 3},
            True,
            {"batch_size": 64, "lr": 0.02, "iterations": None, "epochs": 3, "drops": [0.5, 0.8]},
        ),
        ({"iterations": 10}, False, {"iterations": 10, "drops": [0.5, 0.8]}),
        ({"iterations": 10, "drops": [3]}, False, {"iterations": 10, "drops": [3]}),
        ({"minutes": 2.0}, False, {"iterations": None, "minutes": 2.0, "drops": [0.5, 0.8]}),
        ({"schedule": "cosine"}, False, {"schedule": "cosine", "drops": None}),
    ],
)
def test_options_override_settings(options, scale_lr, changed):
    before = json.dumps(OWN)
    got = combine({**OWN, "starts_from": "a star"}, options, scale_lr=scale_lr)
    expected = {key: value for key, value in {**OWN, **changed}.items() if value is not None}
    assert got == expected
    assert json.dumps(OWN) == before
    Recipe(**got)


def test_linear_scaling_without_a_recipe_starts_from_the_defaults():
    assert combine({}, {"batch_size": 8}, scale_lr=True) == {"batch_size": 8, "lr": 0.00025}


# --- the command ---------------------------------------------------------------------------------


def run(capsys, *arguments):
    status = main(["train", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_printed_recipe_is_a_recipe(capsys, tmp_path):
    shown = ["--print-recipe", "--recipe"]
    given = ["mdssd512-coco", "--lr", 0.5, "--no-mirror", "--ema", 0.9, "--width", 0.5]
    status, text, _ = run(capsys, *shown, *given)
    assert status == 0
    path = tmp_path / "own.toml"
    path.write_text(text)
    own = read_recipe(str(path))
    assert (own["lr"], own["mirror"], own["ema"], own["width"]) == (0.5, False, 0.9, 0.5)
    assert own["drops"] == [160_000, 280_000] and own["weight_decay"] == 5e-4
    assert run(capsys, *shown, path) == (0, text, "")
    back = [path, "--lr", 1e-3, "--mirror", "--ema", "none", "--width", 1]
    assert run(capsys, *shown, *back) == run(capsys, *shown, "mdssd512-coco")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate = 1", "lerning_rate: no such setting; "),
        ("batchsize = 1", "batchsize: no such setting; did you mean batch_size?"),
        ("[sgd]\nlr = 1", "sgd: no such setting"),
        ("lr =", "is not TOML: "),
        ("epochs = 1\niterations = 2", "expected one length, got epochs, iterations"),
        ("lr = -1", "lr: expected a number above 0, got -1"),
        ('lr = "high"', "lr: expected a number above 0, got 'high'"),
        ("drops = [5]", "drops: expected with the schedule steps"),
        ('schedule = "steps"\ndrops = [9, 5]', "drops: expected rising iterations"),
        ("lr = 1 # \udcff", "is not TOML: not UTF-8"),
        ("lr = nan", "lr: expected a number above 0, got nan"),
        ("lr = [0.1]", "lr: expected a number above 0, got [0.1]"),
        ("minutes = 1e300", "minutes: expected a number above 0, got 1e+300"),
        (f"seed = {10**400}", "seed: expected a number of 64 bits, got 1000"),
        (f"width = 0x{'f' * 5000}", "width: expected a number of 64 bits, got a int with a number"),
        (f"epochs = {'9' * 5000}", "cannot be read: a number of thousands of digits, or lists in"),
        (f"drops = {'[' * 9000}", "cannot be read: a number of thousands of digits, or lists in"),
        ("batch_size = 0", "batch_size: expected a whole number from 1, got 0"),
        ("batch_size = 4.0", "batch_size: expected a whole number from 1, got 4.0"),
        ("mirror = 1", "mirror: expected true or false, got 1"),
        ("expand = 0.5", "expand: expected a number of at least 1, got 0.5"),
        ("crop_min_scale = 2", "crop_min_scale: expected a number above 0 and at most 1, got 2"),
        ("freeze = 5", "freeze: expected a list of parts among base, batch-norm; got 5"),
        ("freeze = [[5]]", "freeze: expected a list of parts among base, batch-norm; got [[5]]"),
        ("amp = [1]", "amp: expected one of None, bf16, fp16; got [1]"),
        ("model = 5", "model: expected one of mdssd300, mdssd512, ssd300"),
        ("prior_scales = true", "prior_scales: expected one of voc, coco, paper, small, auto; got"),
        ('width = "half"', "width must be a number above 0 and at most"),
        ("batch_norm = 1", "batch_norm must be True or False, got 1"),
        ("starts_from = 1", "starts_from: expected a text, got 1"),
        (f"model = '{'m' * 900_000}'", f"got '{'m' * 56}..."),
        (f"lr = 1 # {'m' * 2**20}", "expected at most 1"),
        (None, "no such recipe or file; expected a TOML file or one of dssd321-voc"),
    ],
)
def test_error_in_a_recipe_file_names_it(capsys, tmp_path, text, message):
    path = tmp_path / "own.toml"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    status, _, err = run(capsys, "--recipe", path, "--print-recipe")
    assert status == 2
    assert err.startswith(f"mdssd: error: --recipe: {path}: ") and err.count("\n") == 1
    assert message in err and len(err) < 1000


@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "named pipe"), (os.mkdir, "folder")])
def test_recipe_must_be_a_regular_file(capsys, tmp_path, make, what):
    path = tmp_path / "own.toml"
    make(path)
    status, _, err = run(capsys, "--recipe", path, "--print-recipe")
    assert status == 2 and err.startswith(f"mdssd: error: --recipe: {path}: cannot be read (")
    assert what in err.lower()


def test_options_that_do_not_go_together_are_named(capsys):
    status, _, err = run(capsys, "--schedule", "steps", "--print-recipe")
    assert status == 2 and err.count("\n") == 1
    assert err.startswith("mdssd: error: --drops: expected with the schedule steps")


def test_run_by_a_recipe_and_its_resumption(capsys, tmp_path):
    tiny = "--width 0.0625 --batch-norm --batch-size 2 --scenes 4 --workers 0 --threads 1".split()
    command = ["--recipe", "ssd300-voc", *tiny, "--scale-lr", "--iterations", 1, "--out", tmp_path]
    threads = torch.get_num_threads()
    status, text, _ = run(capsys, *command)
    assert status == 0
    assert "the recipe starts from VGG16 weights from ImageNet (--init FILE)" in text
    facts = json.loads((tmp_path / "last.json").read_text())["training"]
    assert facts["arguments"]["recipe"] == "ssd300-voc"
    expected = {"lr": 1e-3 / 16, "batch_size": 2, "drops": [2 / 3, 5 / 6], "warmup": 0}
    assert {key: facts["recipe"][key] for key in expected} == expected
    command[command.index("--iterations") + 1] = 2
    status, text, _ = run(capsys, *command, "--resume")
    assert status == 0 and "2 iterations" in text
    torch.set_num_threads(threads)
    *_, error = run(capsys, "--recipe", "ssd300-voc", "--scale-lr", "--print-recipe")
    assert "--scale-lr: expected a --batch-size to scale with" in error


def test_mdssd_starts_from_a_trained_ssd(tmp_path):
    """Trunk, extra layers and heads that both models have come from the checkpoint."""
    torch.manual_seed(0)
    source = ssd300(3, width=0.0625)
    path = tmp_path / "best.json"
    save_checkpoint(path, source, classes=["a", "b"], mean=MEAN_RGB, extra={})
    torch.manual_seed(1)
    model = mdssd300(3, width=0.0625)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    line = load_start(model, str(path))
    trained = load_checkpoint(path)[0].state_dict()
    shared = [
        name
        for name in fresh
        if name.startswith(("trunk.", "extras."))
        or name.startswith(tuple(f"heads.conv{n}_2." for n in (8, 9, 10, 11)))
    ]
    assert f"{len(shared)} of {len(fresh)} tensors start from" in line
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (trained if name in shared else fresh)[name]), name
    left = [name for name in trained if name not in shared]
    assert all(
        name.startswith(("heads.conv4_3.", "heads.conv7.", "conv4_3_scale")) for name in left
    ), left
