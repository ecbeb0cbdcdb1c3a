"""Which priors learn an object, by the options of training."""

import numpy as np
import pytest
import torch

import mdssd
from mdssd import ops
from mdssd.cli import main
from mdssd.data import SyntheticScenes
from mdssd.training.loop import train
from mdssd.training.recipe_files import format_recipe, read_recipe
from mdssd.training.settings import Recipe
from mdssd.training.step import TrainingStep
from mdssd.weights.checkpoint_json import read_meta

ENCODE_TARGETS = ops.encode_targets
SIZE = (384, 256)
BOX = (100.0, 101.0, 106.0, 105.0)  # of 6 x 4 pixels


@pytest.fixture(scope="module")
def model():
    return mdssd.create("mdssd384x256", 3, width=0.0625, prior_scales="small").train()


@pytest.fixture
def targets_of(model, monkeypatch):
    """Return a function from the settings to the targets with which a step trains."""

    def run(**settings):
        recipe = Recipe(iterations=1, batch_size=1, **settings)
        step = TrainingStep.create(model, recipe, torch.device("cpu"), {})
        seen = []

        def encode_targets(*arguments, **options):
            seen.append(ENCODE_TARGETS(*arguments, **options))
            return seen[0]

        monkeypatch.setattr(ops, "encode_targets", encode_targets)
        boxes = torch.tensor([BOX]) / torch.tensor(SIZE * 2)
        step.backward(torch.zeros(1, 3, 256, 384), [boxes], [torch.tensor([2])])
        return seen[0]

    return run


def distances(model):
    """Return the Wasserstein distance of each prior from the box, in pixels."""
    priors = model.priors.double().numpy() * (SIZE * 2)
    centre, size = np.array([103.0, 103.0]), np.array([6.0, 4.0])
    squares = ((priors[:, :2] - centre) ** 2).sum(1) + ((priors[:, 2:] - size) ** 2).sum(1) / 4
    return np.sqrt(squares)


@pytest.mark.parametrize(("threshold", "constant"), [(0.5, 12.8), (0.3, 6.0)])
def test_the_distance_is_in_pixels(targets_of, model, threshold, constant):
    targets = targets_of(match_metric="nwd", match_threshold=threshold, nwd_constant=constant)
    near = np.exp(-distances(model) / constant) >= threshold
    assert 1 < near.sum() < 1000
    assert np.array_equal(targets.labels[0].numpy(), np.where(near, 2, 0))
    by_iou = targets_of()
    assert (by_iou.labels > 0).sum() < near.sum()
    prior = int(by_iou.labels[0].argmax())  # offsets do not depend on the unit
    assert near[prior]
    torch.testing.assert_close(targets.loc[0, prior], by_iou.loc[0, prior], rtol=1e-4, atol=1e-5)


def test_so_many_priors_learn_an_object(targets_of, model):
    targets = targets_of(match_metric="nwd", match_threshold=1.0, match_top_k=5)
    nearest = np.argsort(distances(model), kind="stable")[:5]
    assert set(np.flatnonzero(targets.labels[0].numpy())) == set(nearest)


def test_a_lower_threshold_takes_more_priors(targets_of):
    counts = [int((targets_of(match_threshold=t).labels > 0).sum()) for t in (0.5, 0.2)]
    assert 1 <= counts[0] < counts[1]


def test_wrong_values(tmp_path, capsys):
    for settings, message in (
        ({"match_metric": "giou"}, "match_metric: expected one of iou, nwd; got 'giou'"),
        ({"match_threshold": 0}, "match_threshold: expected a number above 0 and at most 1, got 0"),
        ({"match_top_k": 0}, "match_top_k: expected a whole number from 1 to 1000, got 0"),
        ({"match_metric": "nwd", "nwd_constant": 0}, "nwd_constant: expected a number of pixels"),
        ({"nwd_constant": 8}, "nwd_constant: needs the match_metric nwd, got match_metric='iou'"),
    ):
        with pytest.raises(ValueError, match=f"^Recipe: {message}"):
            Recipe(epochs=1, **settings)
    words = ["train", "--scenes", "1", "--out", str(tmp_path / "r")]
    for option, value, message in (
        ("--match-top-k", "0", "expected a whole number from 1 to 1000, got '0'"),
        ("--nwd-constant", "x", "expected a number of pixels from 0.1 to 10000, got 'x'"),
        ("--match-threshold", "2", "expected a number above 0 and at most 1, got '2'"),
    ):
        assert main([*words, option, value]) == 2
        assert f"{option}: {message}" in capsys.readouterr().err
    assert main([*words, "--nwd-constant", "8"]) == 2
    assert "--nwd-constant: needs the match_metric nwd" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_recipes(tmp_path):
    assert "match" not in format_recipe({"model": "ssd300"}, Recipe(epochs=1))
    text = format_recipe({"model": "ssd300"}, Recipe(epochs=1, match_top_k=3))
    assert "\nmatch_top_k = 3\n" in text and "nwd" not in text
    recipe = Recipe(epochs=1, match_metric="nwd", nwd_constant=8.0)
    (tmp_path / "a.toml").write_text(format_recipe({"model": "ssd300"}, recipe))
    settings = read_recipe(str(tmp_path / "a.toml"))
    assert settings["match_metric"] == "nwd" and settings["nwd_constant"] == 8.0


def test_a_resumed_run_keeps_its_matching(tmp_path):
    options = {"batch_size": 2, "workers": 0, "progress": False, "match_metric": "nwd"}
    model = mdssd.ssd300(6, width=0.0625)
    train(model, SyntheticScenes(2), tmp_path, epochs=1, **options)
    assert read_meta(tmp_path / "last.json")["training"]["recipe"]["match_metric"] == "nwd"
    with pytest.raises(ValueError, match="match_metric"):
        train(
            model,
            SyntheticScenes(2),
            tmp_path,
            epochs=2,
            resume=True,
            **options | {"match_metric": "iou"},
        )
