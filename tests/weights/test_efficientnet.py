"""ImageNet weights of EfficientNet-Lite0."""

import pytest
import torch

import mdssd
from mdssd import load_pretrained
from mdssd.cli.commands.run_settings import run_settings
from mdssd.models import MEAN_RGB
from mdssd.weights.efficientnet import load_efficientnet_lite0


def package_weights():
    """Tensors with the names and shapes of the package, below and above the last map."""
    state = {}

    def add(conv, norm, *shape):
        state[f"{conv}.weight"] = torch.randn(shape) / (shape[1] * shape[2] * shape[3]) ** 0.5
        for part in ("weight", "running_var"):
            state[f"{norm}.{part}"] = torch.rand(shape[0]) + 0.5
        for part in ("bias", "running_mean"):
            state[f"{norm}.{part}"] = torch.randn(shape[0]) / 10
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    rows = (
        "16 1 3, 24 6 3, 24 6 3, 40 6 5, 40 6 5, 80 6 3, 80 6 3, 80 6 3, 112 6 5, 112 6 5, 112 6 5"
    )
    into = 32
    for n, row in enumerate(rows.split(", ")):
        out, expand, kernel = map(int, row.split())
        block, hidden = f"_blocks.{n}", into * expand
        if expand > 1:
            add(f"{block}._expand_conv", f"{block}._bn0", hidden, into, 1, 1)
        add(f"{block}._depthwise_conv", f"{block}._bn1", hidden, 1, kernel, kernel)
        add(f"{block}._project_conv", f"{block}._bn2", out, hidden, 1, 1)
        into = out
    add("_blocks.11._expand_conv", "_blocks.11._bn0", 672, 112, 1, 1)
    state["_fc.weight"] = torch.zeros(1000, 1280)
    return state


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return package_weights()


def lite(**options):
    return mdssd.ssd300(3, width=0.0625, trunk="efficientnet_lite0", **options).eval()


def test_the_trunk_has_every_tensor(weights, tmp_path):
    torch.save(weights, tmp_path / "lite0.pth")
    model = lite()
    loaded = load_pretrained(model, tmp_path / "lite0.pth", rescale_input=False)
    own = model.state_dict()
    assert loaded.taken == tuple(name for name in own if name.startswith("trunk."))
    assert set(loaded.unused) == {n for n in weights if n.startswith(("_blocks.11", "_fc"))}
    for name, key in (
        ("stem.conv.weight", "_conv_stem.weight"),
        ("stem.norm.bias", "_bn0.bias"),
        ("blocks.0.depthwise.norm.running_var", "_blocks.0._bn1.running_var"),
        ("blocks.10.expand.conv.weight", "_blocks.10._expand_conv.weight"),
        ("blocks.4.project.norm.weight", "_blocks.4._bn2.weight"),
        ("blocks.3.expand.norm.num_batches_tracked", "_blocks.3._bn0.num_batches_tracked"),
    ):
        assert torch.equal(own[f"trunk.{name}"], weights[key])


def test_the_input_scale_goes_into_the_first_layer(weights):
    theirs, ours = lite(), lite()
    load_pretrained(theirs, weights, rescale_input=False)
    load_pretrained(ours, weights)
    pixels = torch.rand(1, 3, 64, 64) * 255
    mean = torch.tensor(MEAN_RGB)[:, None, None]
    with torch.no_grad():
        want = theirs.trunk.stem((pixels - 127) / 128)
        got = ours.trunk.stem(pixels - mean)
    # The zeros around the images are of different colours.
    torch.testing.assert_close(got[..., :-1, :-1], want[..., :-1, :-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_bn0.bias": None}, r"'_bn0.bias' must have shape \[32\], got none"),
        ({"_bn0.bias": torch.zeros(40)}, r"'_bn0.bias' must have shape \[32\], got \[40\]"),
        ({"_bn0.bias": torch.full((32,), float("nan"))}, "weights: .*_bn0.bias"),
        ({"_blocks.16._bn0.bias": torch.zeros(3)}, "holds '_blocks.16._bn0.bias', which"),
    ],
)
def test_weights_that_do_not_fit(weights, change, message):
    changed = {k: v for k, v in {**weights, **change}.items() if v is not None}
    model = lite()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_efficientnet_lite0(model, "weights", changed)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_another_trunk(weights):
    with pytest.raises(ValueError, match="the trunk efficientnet_lite0, got VGG16"):
        load_pretrained(mdssd.ssd300(3, width=0.0625), weights)


def test_training_from_them_keeps_the_default_width(tmp_path):
    path = tmp_path / "lite0.pth"
    path.touch()
    given = {"trunk": "efficientnet_lite0", "init": str(path)}
    model = run_settings(given, tmp_path, resume=False).model
    assert (model["width"], model["batch_norm"]) == (0.25, True)
    del given["trunk"]
    assert "width" not in run_settings(given, tmp_path, resume=False).model
