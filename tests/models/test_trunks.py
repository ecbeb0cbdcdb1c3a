"""SSD and MDSSD on other trunks than VGG16."""

import pytest
import torch
from torch import nn

import mdssd
from mdssd.cli import main
from mdssd.models import build
from mdssd.models.efficientnet import EfficientNetLite0, SameConv2d
from mdssd.models.trunks import make_trunk, trunk_channels
from mdssd.names import TRUNKS
from mdssd.training.recipe_files import read_recipe
from mdssd.weights.checkpoint import load_checkpoint


def on_meta(name, **options):
    with torch.device("meta"):
        return mdssd.create(name, 4, **options)


def lite(name="mdssd300", **options):
    options = {"width": 0.0625, "batch_norm": True, "trunk": "efficientnet_lite0", **options}
    return getattr(mdssd, name)(3, **options)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_maps_of_strides_4_8_and_16(trunk, width=0.25):
    with torch.device("meta"):
        network = make_trunk(trunk, width, batch_norm=True, input_size=300)
    channels = trunk_channels(trunk, width)
    for size in (300, 288, 416, 1024):
        maps = network(torch.empty(1, 3, size, 320, device="meta"))
        assert [tuple(x.shape[1:]) for x in maps] == [
            (c, -(-size // s), 320 // s) for c, s in zip(channels, (4, 8, 16), strict=True)
        ]


@pytest.mark.parametrize("trunk", ["efficientnet_lite0", "resnet101"])
@pytest.mark.parametrize("name", ["ssd300", "mdssd512", "mdssd640x384"])
def test_every_model_has_a_prior_for_each_prediction(name, trunk):
    model = on_meta(name, trunk=trunk, width=0.25, batch_norm=True)
    width, height = (640, 384) if "x" in name else (model.input_size,) * 2
    loc, logits = model(torch.empty(2, 3, height, width, device="meta"))
    assert loc.shape == (2, len(model.priors), 4) and logits.shape == (2, len(model.priors), 4)
    assert torch.equal(model.priors, on_meta(name, width=0.25).priors)


def test_the_layers_are_those_of_efficientnet_lite0():
    trunk = EfficientNetLite0()
    # Of the published network's 4,652,008: without blocks 11 to 15 and the classifier.
    assert sum(p.numel() for p in trunk.parameters()) == 700_768
    assert len(trunk.blocks) == 11
    residual = [n for n, block in enumerate(trunk.blocks) if block.is_residual]
    assert residual == [2, 4, 6, 7, 9, 10]
    convs = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size[0] for c in convs if c.groups > 1] == [3] * 3 + [5] * 2 + [3] * 3 + [
        5
    ] * 3
    assert {m.eps for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


@pytest.mark.parametrize(
    "kernel, stride, size, before, after", [(3, 2, 300, 0, 1), (3, 2, 75, 1, 1), (5, 2, 8, 1, 2)]
)
def test_padding_adds_the_odd_zero_after_the_map(kernel, stride, size, before, after):
    torch.manual_seed(0)
    convolution = SameConv2d(2, 2, kernel, stride, groups=2, dtype=torch.float64)
    x = torch.randn(1, 2, size, 8, dtype=torch.float64)
    down = [before, after]
    along = {3: [0, 1], 5: [1, 2]}[kernel]  # of 8 columns
    padded = nn.functional.pad(x, along + down)
    want = nn.functional.conv2d(
        padded, convolution.weight, convolution.bias, stride=stride, groups=2
    )
    torch.testing.assert_close(convolution(x), want)
    assert want.shape[2:] == (-(-size // stride), 4)


def test_the_width_changes_only_what_is_above_the_trunk():
    narrow, wide = (
        on_meta("ssd300", trunk="efficientnet_lite0", width=0.5),
        on_meta("ssd300", trunk="efficientnet_lite0"),
    )
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (narrow, wide)]
    same = {name for name in shapes[0] if shapes[0][name] == shapes[1][name]}
    assert {name for name in shapes[0] if name.startswith("trunk.")} <= same
    assert not {n for n in shapes[0] if n.startswith("extras.") and "weight" in n} & same
    assert wide.conv4_3_scale.shape == (40,) and wide.heads["conv7"].loc.in_channels == 112


@pytest.mark.parametrize("name", ["ssd300", "mdssd300"])
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = lite(name)
    loc, logits = model(torch.randn(2, 3, 300, 300) * 50)
    (loc.square().mean() + logits.square().mean()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 2), (5, 1)])
def test_gradients_of_narrow_depthwise_convolutions_are_those_of_float32(kernel, stride):
    torch.manual_seed(0)
    convolution = SameConv2d(3, 3, kernel, stride, groups=3, bias=False)
    x = torch.randn(2, 3, 8, 8).bfloat16()
    grad = torch.randn(2, 3, 8 // stride, 8 // stride).bfloat16()
    narrow, wide = x.clone().requires_grad_(), x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = convolution(narrow)
    assert out.dtype == torch.bfloat16 and "Float32Gradient" in out.grad_fn.name()
    weight = convolution.weight
    (of_weight,) = torch.autograd.grad(out, weight, grad, retain_graph=True)
    (of_x,) = torch.autograd.grad(out, narrow, grad)
    wanted = torch.autograd.grad(convolution(wide), (wide, weight), grad.float())
    assert torch.equal(of_x, wanted[0].bfloat16())
    # Its weight is not rounded to bfloat16, and the sum over the map is one of float32.
    torch.testing.assert_close(of_weight, wanted[1], rtol=1e-5, atol=1e-5)


def test_depthwise_convolutions_start_by_their_number_of_inputs():
    torch.manual_seed(0)
    weight = lite("ssd300").trunk.blocks[10].depthwise.conv.weight
    assert weight.shape == (672, 1, 5, 5)
    assert weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.03)


def test_normalisation_of_the_trunk_can_be_frozen_though_the_rest_has_none():
    model = lite(batch_norm=False)
    model.freeze("batch-norm")
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)


def test_config_and_checkpoints(tmp_path):
    model = lite()
    assert model.config()["trunk"] == "efficientnet_lite0"
    assert build(model.config()).config() == model.config()
    # Configs that were written before there were trunks.
    old = {"num_classes": 3, "width": 0.0625}
    assert build({"model": "mdssd300", **old}).options.trunk == "vgg16"
    assert build({"model": "ssd321", **old}).options.trunk == "resnet101"


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model": "ssd300", "trunk": "vgg_19"}, "ssd300: trunk must be one of .*; got 'vgg_19'"),
        ({"model": "ssd300", "trunk": ["vgg16"]}, "got \\['vgg16'\\]"),
        ({"model": "ssd321", "trunk": "vgg16"}, "ssd321: trunk must be 'resnet101', got 'vgg16'"),
        ({"model": "dssd512", "trunk": "efficientnet_lite0"}, "dssd512: trunk must be"),
    ],
)
def test_bad_trunks(config, message):
    with pytest.raises(ValueError, match=message):
        build({"num_classes": 3, "width": 0.0625, **config})


def test_training_stores_the_trunk(tmp_path, capsys):
    out = tmp_path / "run"
    options = f"--trunk efficientnet_lite0 --width 0.0625 --out {out} --workers 0".split()
    more = "--model ssd300 --scenes 2 --batch-size 2 --iterations 1 --device cpu".split()
    assert main(["train", *options, *more]) == 0
    assert "model: ssd300 on efficientnet_lite0, width 0.0625" in capsys.readouterr().out
    model, _ = load_checkpoint(out)
    assert isinstance(model.trunk, EfficientNetLite0)
    assert main(["train", "--resume", "--iterations", "2", "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["train", *options, "--model", "ssd300", "--print-recipe"]) == 0
    recipe = tmp_path / "own.toml"
    recipe.write_text(capsys.readouterr().out)
    assert read_recipe(str(recipe))["trunk"] == "efficientnet_lite0"
