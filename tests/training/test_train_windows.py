"""Training on windows of large images."""

import csv

import cv2
import numpy as np
import pytest
import torch

from mdssd import ssd300
from mdssd.cli import main
from mdssd.data import DetectionDataset, Sample
from mdssd.data.windows import WindowDraws
from mdssd.training import run as run_module
from mdssd.training.loop import train
from mdssd.training.prior_choice import choose_priors
from mdssd.training.recipe_files import format_recipe
from mdssd.training.settings import Recipe
from mdssd.weights.checkpoint_json import read_meta

QUICK = dict(batch_size=2, lr=0.01, workers=0, progress=False, log_every=1)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Scattered(DetectionDataset):
    """Large images with squares of 16 pixels."""

    name = "scattered"
    classes = ["square"]

    def __init__(self, count=2, size=(600, 300), squares=5):
        self.image_ids = [str(k) for k in range(count)]
        self.size, self.squares = size, squares

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        width, height = self.size
        image = rng.integers(0, 90, (height, width, 3), np.uint8)
        corners = rng.integers(0, [width - 16, height - 16], (self.squares, 2))
        for x, y in corners:
            image[y : y + 16, x : x + 16] = 230
        boxes = np.concatenate([corners, corners + 16], 1).astype(np.float32)
        ones = np.ones(len(boxes), np.int64)
        return Sample(image, boxes, ones, ones < 0, str(index))


def small():
    torch.manual_seed(0)
    return ssd300(2, width=0.0625, batch_norm=True)


def losses(out):
    with open(out / "loss.csv", newline="") as file:
        return [(row["step"], row["total"]) for row in csv.DictReader(file)]


def test_resumed_run_and_any_number_of_workers_give_the_same_bits(tmp_path):
    weights, rows = [], []
    for name, workers, stops in (("0", 0, ()), ("1", 1, ()), ("2", 2, ()), ("resumed", 0, (1, 3))):
        model, resume = small(), False
        for iterations in (*stops, 5):  # an epoch has 4 windows, 2 batches
            options = {**QUICK, "workers": workers, "tile": 300}
            options |= {"lr": 0.001, "schedule": "steps", "drops": [100]}
            train(
                model, Scattered(), tmp_path / name, iterations=iterations, resume=resume, **options
            )
            resume = True
        weights.append(
            torch.cat([value.flatten().float() for value in model.state_dict().values()])
        )
        rows.append(losses(tmp_path / name))
    assert len(rows[0]) == 5 and all(each == rows[0] for each in rows)
    assert all(torch.equal(each, weights[0]) for each in weights)


def test_evaluation_during_training_shows_the_same_tiles(tmp_path, monkeypatch):
    seen = []
    evaluate = run_module.evaluate

    def noted(detector, *arguments, **options):
        seen.append(detector.tiling)
        return evaluate(detector, *arguments, **options)

    monkeypatch.setattr(run_module, "evaluate", noted)
    options = {**QUICK, "tile": (200, 100), "tile_scale": 2.0}
    train(
        small(),
        Scattered(1),
        tmp_path,
        epochs=1,
        eval_dataset=Scattered(1),
        eval_every=1,
        **options,
    )
    assert [(tiling.width, tiling.height) for tiling in seen] == [(100, 50)]
    recipe = read_meta(tmp_path / "last.json")["training"]["recipe"]
    assert (recipe["tile"], recipe["tile_scale"]) == ([200, 100], 2.0)
    assert Recipe(**recipe).window_draws(300) == WindowDraws(100, 50, 1.33, 0.25, 0.5)


def test_priors_fit_the_objects_as_windows_show_them():
    dataset, config = Scattered(4, (1200, 600)), {"model": "mdssd300"}
    whole = choose_priors(dataset, config)
    windows = choose_priors(dataset, config, tiling=Recipe(epochs=1, tile=150).tiling(300))
    smallest = [min(size[0] for size in choice.scales[0]) for choice in (whole, windows)]
    # A square of 16 is 4 x 8 pixels of the squeezed image, and 32 x 32 of a window of 150.
    assert smallest[0] < 8 and windows.shares["fitted"] > 0.95
    assert any(
        25 < width < 50 and 25 < height < 50 for of in windows.scales for width, height in of
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile: expected a number of pixels, a width and a height, or 'auto'; got 0"),
        ({"tile": "large"}, "tile: expected a number of pixels"),
        ({"tile": 16}, "tile: expected sides of 32 pixels or more, got 16 x 16"),
        ({"tile": [1, 2, 3]}, "tile: expected a number of pixels"),
        ({"tile": True}, "tile: expected a number of pixels"),
        ({"tile": 300, "tile_jitter": 0.5}, "tile_jitter: expected a number from 1 to 4, got 0.5"),
        ({"tile": 300, "min_visible": 0}, "min_visible: expected a number above 0 and at most 1"),
        ({"tile": 300, "background_share": 2}, "background_share: expected a number from 0 to 1"),
        ({"tile_scale": 2.0}, "tile_scale: needs a tile, got 2.0"),
        ({"tile": 10**6}, "tile: expected at most 100,000,000 pixels, got 1,000,000 x 1,000,000"),
        ({"tile": 300, "tile_scale": 0.01}, "tile_scale: expected tiles that show at most"),
    ],
)
def test_settings_of_windows_are_checked(options, message):
    with pytest.raises(ValueError, match=f"^Recipe: {message}"):
        Recipe(epochs=1, **options)


def yolo_folder(root):
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [square]\n")
    for k in range(2):
        sample = Scattered()[k]
        cv2.imwrite(str(root / "images" / f"{k}.png"), sample.image)
        lines = [
            f"0 {(x1 + 8) / 600} {(y1 + 8) / 300} {16 / 600} {16 / 300}\n"
            for x1, y1, _, _ in sample.boxes_xyxy
        ]
        (root / "labels" / f"{k}.txt").write_text("".join(lines))


def test_commands_train_resume_and_evaluate_on_tiles(tmp_path, capsys):
    yolo_folder(tmp_path / "data")
    data = ["--data", str(tmp_path / "data")]
    out = str(tmp_path / "run")
    tiny = "--model ssd300 --width 0.0625 --batch-size 2 --workers 0 --threads 1".split()
    arguments = ["train", *data, *tiny, "--iterations", "1", "--tile", "150", "--out", out]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    line = "windows: 150 x 150 pixels of the image, 16 in an epoch, 25% of them drawn anywhere"
    assert line in text
    assert main(["train", "--resume", "--out", out, "--iterations", "2", "--workers", "0"]) == 0
    assert line in capsys.readouterr().out
    assert main(["train", "--resume", "--out", out, "--iterations", "3", "--tile", "200"]) == 2
    assert "tile (was 150, is 200)" in capsys.readouterr().err
    note = "the checkpoint was trained on tiles; --tile 150 shows it images as in training"
    assert main(["eval", out, *data, "--workers", "0"]) == 0
    assert note in capsys.readouterr().out
    assert main(["eval", out, *data, "--workers", "0", "--tile", "150"]) == 0
    assert note not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "0"], "argument --tile: expected auto, a number of pixels"),
        (["--tile", "300", "--min-visible", "0"], "argument --min-visible: expected a number"),
        (["--min-visible", "0.3"], "--min-visible: needs --tile beside it"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, message):
    assert main(["train", "--scenes", "2", "--out", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.count("\n") == 0


def test_printed_recipe_has_the_settings_of_windows_if_there_are_any():
    text = format_recipe({"model": "ssd300"}, Recipe(epochs=1, tile=(640, 384), min_visible=0.3))
    assert "\ntile = [640, 384]\ntile_scale = 1.0\n" in text and "\nmin_visible = 0.3\n" in text
    assert "tile" not in format_recipe({"model": "ssd300"}, Recipe(epochs=1))
