"""Priors of sizes without a name: the boxes, the models, recipes, checkpoints and exports."""

import json

import onnx
import pytest
import torch

import mdssd
from mdssd.detection.export import export
from mdssd.models import build
from mdssd.priors import PriorLayer, make_priors, mdssd_prior_layers, scales_name, with_sizes
from mdssd.training.recipe_files import format_recipe, read_recipe
from mdssd.training.settings import Recipe
from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint
from mdssd.weights.checkpoint_json import CheckpointError, digest_of

PER_CELL = (4, 4, 6, 6, 6, 4, 4)  # of mdssd300
SIZES = tuple(
    tuple((10.25 * (m + 1) + p, 7.5 * (m + 1)) for p in range(count))
    for m, count in enumerate(PER_CELL)
)
FACTS = {"classes": ["cat"], "mean": (123, 117, 104), "extra": {}}


def as_lists(sizes):
    return [[list(pair) for pair in of_map] for of_map in sizes]


def with_pair(pair):
    """The sizes as lists, with another first prior of the second map."""
    sizes = as_lists(SIZES)
    sizes[1][0] = pair
    return sizes


def small(sizes=SIZES):
    return mdssd.mdssd300(2, width=0.0625, prior_scales=sizes)


def test_boxes_of_sizes_replace_those_of_the_ratios():
    layer = PriorLayer(2, 50, 30, 60, (2, 3), sizes=((10, 20), (40, 5), (7, 7)))
    assert layer.per_cell == 3
    priors = make_priors([layer], 100)
    expected = [
        (cx, cy, w, h)
        for cy in (0.25, 0.75)
        for cx in (0.25, 0.75)
        for w, h in ((0.1, 0.2), (0.4, 0.05), (0.07, 0.07))
    ]
    assert torch.equal(priors, torch.tensor(expected, dtype=torch.float64).float())
    assert torch.equal(make_priors([layer], 100, truncate_sizes=True), priors)


def test_the_sizes_of_a_named_set_make_the_same_bits():
    layers = mdssd_prior_layers(300, "coco")
    again = with_sizes("mdssd300", layers, tuple(layer.shapes() for layer in layers))
    assert torch.equal(make_priors(again, 300), make_priors(layers, 300))


def test_a_model_has_the_sizes_in_the_order_of_its_maps():
    model = small()
    assert model.priors.shape == (31232, 4)
    maps = (75, 38, 19, 10, 5, 3, 1)
    start = 0
    for cells, of_map in zip(maps, SIZES, strict=True):
        got = model.priors[start : start + len(of_map), 2:].double() * 300
        torch.testing.assert_close(got, torch.tensor(of_map).double(), rtol=1e-6, atol=0)
        start += cells**2 * len(of_map)
    assert model.config()["prior_scales"] == as_lists(SIZES)
    assert model.options.prior_scales == SIZES and hash(model.options)
    for config in (model.config(), json.loads(json.dumps(model.config()))):
        assert torch.equal(build(config).priors, model.priors)


@pytest.mark.parametrize("name", ["ssd300", "ssd512", "mdssd512", "ssd321", "dssd513"])
def test_every_model_takes_sizes(name):
    named = build({"model": name, "num_classes": 2, "width": 0.0625})
    kinds = type(named).prior_layers(named.input_size, named.options.prior_scales)
    sizes = tuple(layer.shapes() for layer in kinds)
    again = build({**named.config(), "prior_scales": sizes})
    assert torch.equal(again.priors, named.priors)
    assert named.state_dict().keys() == again.state_dict().keys()


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((), "mdssd300: prior_scales: expected a list for each map, got \\(\\)"),
        (SIZES[:-1], "expected sizes for 7 maps, .*got 6 maps"),
        ((*SIZES[:-1], SIZES[-1][:3]), r"\[4, 4, 6, 6, 6, 4, 4\] of them; got 7 maps, .*4, 3\]"),
        (with_pair([10]), r"map 2, prior 1: expected \[width, height\].* got \(10,\)"),
        (with_pair([10, 0]), "map 2, prior 1: .*above 0 and at most 10000; got \\(10, 0\\)"),
        (with_pair([10, -1.0]), "map 2, prior 1"),
        (with_pair([10, float("nan")]), "map 2, prior 1"),
        (with_pair([float("inf"), 10]), "map 2, prior 1"),
        (with_pair([10**5000, 10]), "map 2, prior 1"),
        (with_pair([True, 10]), "map 2, prior 1"),
        (with_pair(["10", 10]), "map 2, prior 1"),
        (with_pair([[10, 10], 10]), "map 2, prior 1"),
        (with_pair("ab"), "map 2, prior 1"),
        (["coco"] * 7, "map 1: expected a list of \\[width, height\\], got 'coco'"),
        (None, "prior_scales must be one of"),
        ({"a": 1}, "prior_scales must be one of"),
    ],
)
def test_sizes_that_are_none(sizes, message):
    with pytest.raises(ValueError, match=message):
        small(sizes)


def test_a_name_for_people():
    assert scales_name(SIZES) == "fitted" and scales_name("voc") == "voc"


def test_a_checkpoint_holds_the_sizes(tmp_path):
    path = tmp_path / "a.json"
    model = small()
    save_checkpoint(path, model, **FACTS)
    again, meta = load_checkpoint(path)
    assert torch.equal(again.priors, model.priors)
    assert meta["model"]["prior_scales"] == meta["priors"]["prior_scales"] == as_lists(SIZES)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m["model"].update(prior_scales=with_pair([0, 1])), "map 2, prior 1: .*got"),
        (lambda m: m["model"].update(prior_scales=as_lists(SIZES)[1:]), "got 6 maps"),
        (lambda m: m["model"].update(prior_scales="coco"), "priors: prior_scales: its model has"),
        (lambda m: m["priors"].update(prior_scales=with_pair([9, 9])), "the file says"),
    ],
)
def test_a_checkpoint_of_other_sizes_is_refused(tmp_path, change, message):
    path = tmp_path / "a.json"
    save_checkpoint(path, small(), **FACTS)
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps({**meta, "digest": digest_of(meta)}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_recipe_holds_the_sizes(tmp_path):
    path = tmp_path / "mine.toml"
    model = {"model": "mdssd300", "prior_scales": as_lists(SIZES)}
    path.write_text(format_recipe(model, Recipe(epochs=1)))
    settings = read_recipe(str(path))
    assert settings["prior_scales"] == as_lists(SIZES)
    path.write_text("model = 'mdssd300'\nprior_scales = [[[10, 20], [30, -1]]]\n")
    with pytest.raises(ValueError, match=r"mine.toml: prior_scales: map 1, prior 2: expected"):
        read_recipe(str(path))


def test_an_export_holds_the_sizes(tmp_path):
    path = tmp_path / "model.onnx"
    export(small(), path, form="onnx", classes=["cat"])
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(facts["model"])["prior_scales"] == as_lists(SIZES)
