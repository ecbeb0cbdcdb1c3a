"""The light forms of SSD and MDSSD."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mdssd
from mdssd import ops
from mdssd.cli import main
from mdssd.detection.export import export
from mdssd.models import MEAN_RGB, build
from mdssd.models.folding import fold_batch_norm
from mdssd.models.light import Enlarge, LightFusion
from mdssd.training.recipe_files import read_recipe
from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint

NAMES = ["ssd300", "ssd512", "mdssd300", "mdssd512"]


def light(name, **options):
    options = {"width": 0.0625, "trunk": "efficientnet_lite0", **options}
    return mdssd.create(name, 3, light=True, **options)


def with_statistics(model):
    """Give the batch normalisation of a model something to do."""
    for norm in norms_of(model):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.8, 1.25)
        nn.init.uniform_(norm.weight, 0.8, 1.25)
        nn.init.normal_(norm.bias, std=0.1)
    return model.eval()


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def convolutions(model):
    """Return the convolutions above the trunk, by name."""
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    above = {n: m for n, m in model.named_modules() if not n.startswith("trunk.")}
    return {name: module for name, module in above.items() if isinstance(module, kinds)}


@pytest.mark.parametrize("trunk", ["vgg16", "efficientnet_lite0"])
@pytest.mark.parametrize("name", [*NAMES, "mdssd640x384", "ssd256x288"])
def test_maps_channels_and_priors_stay(name, trunk):
    with torch.device("meta"):
        slim = light(name, width=0.25, trunk=trunk)
        full = mdssd.create(name, 3, width=0.25, trunk=trunk)
        size = slim.input_size
        width, height = size if isinstance(size, tuple) else (size, size)
        images = torch.empty(2, 3, height, width)
        shapes = [[x.shape for x in m.feature_maps(images)] for m in (slim, full)]
        loc, logits = slim(images)
    assert shapes[0] == shapes[1]
    assert loc.shape == (2, len(slim.priors), 4) and logits.shape == (2, len(slim.priors), 3)
    assert torch.equal(slim.priors, full.priors)


@pytest.mark.parametrize("name", NAMES)
def test_only_depthwise_convolutions_look_around_but_for_those_of_the_low_maps(name):
    with torch.device("meta"):
        found = convolutions(light(name, width=1))
    low = [where for where in found if where.endswith(".low.conv")]
    assert [found.pop(where).kernel_size for where in low] == [(3, 3)] * (3 * ("mdssd" in name))
    for where, convolution in found.items():
        depthwise = convolution.groups == convolution.in_channels == convolution.out_channels
        assert depthwise or convolution.kernel_size == (1, 1), where
    assert sum(c.groups > 1 for c in found.values()) > 10


def test_a_network_is_light_only_when_asked():
    with torch.device("meta"):
        models = [mdssd.mdssd300(3, width=0.25, **o) for o in ({}, {"light": False})]
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in models]
    assert shapes[0] == shapes[1] and not models[0].options.light
    assert all(c.groups == 1 for c in convolutions(models[0]).values())


def test_a_map_is_doubled_and_loses_its_edges():
    x = torch.tensor([[1.0, 2.0, 3.0]])[None, None]  # a row of three cells
    rows = x.expand(1, 1, 2, 3)
    assert torch.equal(Enlarge()(rows)[0, 0, 0], torch.tensor([1.0, 1, 2, 2, 3, 3]))
    # Of 6 columns 3 are left: one is cut off before them and two after them.
    assert Enlarge((4, 3))(rows)[0, 0].tolist() == [[1, 2, 2]] * 4


@pytest.mark.parametrize("size", [(75, 75), (80, 74)])
def test_fusion_has_the_size_of_the_low_map(size):
    module = LightFusion(8, 16, 8, 24, size)
    out = module(torch.randn(2, 8, *size), torch.randn(2, 16, 10, 10))
    assert out.shape == (2, 24, *size)


@pytest.mark.parametrize("name", ["ssd300", "mdssd300", "mdssd512"])
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = light(name)
    loc, logits = model(torch.randn(2, 3, model.input_size, model.input_size) * 50)
    (loc.square().mean() + logits.square().mean()).backward()
    for parameter_name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all(), parameter_name
        assert gradient.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["ssd300", "mdssd300"])
@pytest.mark.parametrize("trunk", ["vgg16", "efficientnet_lite0"])
def test_batch_normalisation_is_folded(name, trunk):
    torch.manual_seed(0)
    model = with_statistics(light(name, trunk=trunk))
    folded = copy.deepcopy(model)
    assert fold_batch_norm(folded) == len(norms_of(model)) > 20 and not norms_of(folded)
    with torch.inference_mode():
        images = torch.randn(1, 3, 300, 300)
        for want, got in zip(model(images), folded(images), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def saved(path, model):
    save_checkpoint(path, model, classes=["a", "b"], mean=(123, 117, 104), extra={})
    return path


def test_checkpoints_store_the_form(tmp_path):
    torch.manual_seed(0)
    model = with_statistics(light("mdssd300"))
    again, _ = load_checkpoint(saved(tmp_path / "a.json", model))
    assert again.config() == model.config() and again.config()["light"] is True
    with torch.inference_mode():
        images = torch.randn(1, 3, 300, 300)
        for want, got in zip(model(images), again.eval()(images), strict=True):
            assert torch.equal(got, want)
    # Checkpoints that were written before there was a light form do not name it.
    config = {name: value for name, value in model.config().items() if name != "light"}
    assert build(config).options.light is False


def test_other_weights_of_the_trunk_fit(tmp_path):
    full = mdssd.ssd300(3, width=0.0625, trunk="efficientnet_lite0")
    path = saved(tmp_path / "full.json", full)
    model = light("mdssd300", init=path)
    taken = model.loaded.taken
    assert {n for n in model.state_dict() if n.startswith("trunk.")} <= set(taken)
    assert torch.equal(model.trunk.stem.conv.weight, full.trunk.stem.conv.weight)


@pytest.mark.parametrize("name", ["ssd300", "mdssd300"])
def test_onnx_returns_the_same_detections(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    torch.manual_seed(0)
    model = with_statistics(light(name))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 300, 300, 3), np.uint8)
    file = tmp_path / "a.onnx"
    export(model, file, classes=["a", "b"])
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    boxes, scores, labels, count = session.run(None, {"pixels": pixels})
    images = (torch.from_numpy(pixels) - torch.tensor(MEAN_RGB)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        want = ops.detection_output(*model(images), model.priors)
    found = int(want.count[0])
    assert int(count[0]) == found > 0
    for got, value in ((boxes, want.boxes), (scores, want.scores)):
        np.testing.assert_allclose(got[0, :found], value[0, :found], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(labels[0, :found], want.labels[0, :found])


@pytest.mark.parametrize("name", ["ssd321", "dssd321", "resnetssd320", "dssd512"])
def test_networks_on_resnet_have_no_light_form(name):
    with pytest.raises(ValueError, match=f"{name}: light must be False, got True"):
        build({"model": name, "num_classes": 3, "width": 0.0625, "light": True})


@pytest.mark.parametrize("value", [1, "yes", None])
def test_bad_values(value):
    with pytest.raises(ValueError, match="ssd300: light must be True or False, got"):
        build({"model": "ssd300", "num_classes": 3, "width": 0.0625, "light": value})


def train(out, *options):
    common = "--model mdssd300 --width 0.0625 --scenes 4 --workers 0 --device cpu --light"
    return main(["train", *common.split(), "--out", str(out), *options])


def test_training_and_detection(tmp_path, capsys):
    out, found = tmp_path / "run", tmp_path / "found"
    options = "--trunk efficientnet_lite0 --batch-size 2".split()
    assert train(out, *options, "--iterations", "1") == 0
    assert "model: light mdssd300 on efficientnet_lite0, width 0.0625" in capsys.readouterr().out
    model, _ = load_checkpoint(out)
    assert model.options.light and isinstance(model.module1, LightFusion)
    assert main(["train", "--resume", "--iterations", "2", "--out", str(out)]) == 0
    assert main(["eval", str(out), "--scenes", "2"]) == 0
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(photo)
    assert main(["detect", str(out), str(photo), "--out", str(found)]) == 0
    assert (found / "detections.json").exists()
    capsys.readouterr()
    assert train(out, *options, "--print-recipe") == 0
    recipe = tmp_path / "own.toml"
    recipe.write_text(capsys.readouterr().out)
    assert read_recipe(str(recipe))["light"] is True


def test_a_batch_of_one_cannot_be_normalised(tmp_path, capsys):
    options = ["--no-batch-norm", "--batch-size", "1", "--iterations", "1"]
    assert train(tmp_path / "run", *options) != 0
    assert "batch_size: expected at least 2 images" in capsys.readouterr().err


def test_dssd_is_refused_in_one_line(tmp_path, capsys):
    options = "--model dssd321 --scenes 4 --light --workers 0 --out".split()
    assert main(["train", *options, str(tmp_path / "run")]) != 0
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "dssd321: light must be False, got True" in error
