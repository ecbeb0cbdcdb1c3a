"""Networks of timm under SSD and MDSSD."""

import sys

import pytest
import torch

import mdssd
from mdssd.cli import main
from mdssd.models import MEAN_RGB, build
from mdssd.models.timm_trunk import TimmTrunk
from mdssd.weights.checkpoint import load_checkpoint

NAME = "resnet18"


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed")


def make(name="mdssd300", **options):
    options = {"width": 0.0625, "trunk": NAME, "light": True, **options}
    return mdssd.create(name, 3, **options)


def test_without_timm_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    options = f"--trunk {NAME} --scenes 2 --workers 0 --out {tmp_path / 'run'}"
    assert main(["train", *options.split()]) != 0
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "trunk must be one of vgg16" in error and "timm is not installed" in error


def test_a_timm_that_cannot_be_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator nms does not exist\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(
        ValueError, match=r"got 'resnet18', and timm cannot be imported \(oper.* ex"
    ) as e:
        make()
    assert "more" not in str(e.value) and f"torch {torch.__version__}" in str(e.value)


@pytest.mark.parametrize("name", [NAME, "mobilenetv3_small_050", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("model", ["ssd300", "mdssd512"])
def test_the_maps_fit(timm, name, model):
    made = make(model, trunk=name).eval()
    images = torch.zeros(1, 3, made.input_size, made.input_size)
    with torch.inference_mode():
        loc, logits = made(images)
    assert loc.shape == (1, len(made.priors), 4) and logits.isfinite().all()
    assert isinstance(made.trunk, TimmTrunk) and build(made.config()).config() == made.config()


def test_pixels_are_scaled_as_timm_needs_it(timm):
    torch.manual_seed(0)
    trunk = TimmTrunk(NAME).eval()
    pixels = torch.rand(1, 3, 64, 64) * 255
    mean, std = (torch.tensor(trunk.network.default_cfg[key])[:, None, None] for key in MEANS)
    with torch.inference_mode():
        want = trunk.network((pixels / 255 - mean) / std)
        got = trunk(pixels - torch.tensor(MEAN_RGB)[:, None, None])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


MEANS = ("mean", "std")


@pytest.mark.parametrize("name", [NAME, "mobilenetv3_small_050"])
def test_weights_of_timm_fill_the_trunk(timm, name, tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(name).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = make("ssd300", trunk=name, init=tmp_path / "weights.pth").eval()
    assert set(model.loaded.taken) == {n for n in model.state_dict() if n.startswith("trunk.")}
    assert any("fc" in n or "classifier" in n for n in model.loaded.unused)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        want = source.forward_intermediates(images, intermediates_only=True)
        got = model.trunk.network(images)
    sizes = {tuple(x.shape): x for x in want}
    for x in got:
        torch.testing.assert_close(x, sizes[tuple(x.shape)], rtol=1e-4, atol=1e-4)


def downloads(timm, monkeypatch, result):
    """Replace the download of timm by the call of `result` with a name."""
    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained=False, **options: (
            result(name) if pretrained and not options else create(name, pretrained, **options)
        ),
    )
    return create


def test_the_word_timm_stands_for_the_weights_that_timm_downloads(timm, monkeypatch, tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(NAME)
    create = downloads(timm, monkeypatch, lambda name: source if name == NAME else create(name))
    from_timm, from_file = make(init="timm"), make(init=source.state_dict())
    for name, tensor in from_timm.trunk.state_dict().items():
        assert torch.equal(tensor, from_file.trunk.state_dict()[name]), name
    assert from_timm.loaded == from_file.loaded

    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm").mkdir()  # which would be a checkpoint's folder: ./timm
    options = "--model ssd300 --scenes 2 --batch-size 2 --iterations 1 --lr 1e-9 --workers 0"
    words = ["train", *options.split(), "--trunk", NAME, "--width", "0.0625", "--init", "timm"]
    assert main([*words, "--out", "run"]) == 0
    trained = load_checkpoint(tmp_path / "run")[0]
    got = trained.trunk.state_dict()["network.conv1.weight"]
    torch.testing.assert_close(got, source.state_dict()["conv1.weight"], rtol=0, atol=1e-6)


def test_weights_that_cannot_be_downloaded(timm, monkeypatch, capsys, tmp_path):
    def fails(name):
        raise RuntimeError("no network\nmore lines")

    downloads(timm, monkeypatch, fails)
    words = f"train --scenes 2 --workers 0 --trunk {NAME} --init timm --out {tmp_path / 'run'}"
    assert main(words.split()) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "timm: no weights of resnet18 could be had" in error and error.endswith(": no network")
    assert "more lines" not in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize("trunk", [[], ["--trunk", "efficientnet_lite0"]])
def test_the_word_timm_needs_a_trunk_of_timm(trunk, capsys, tmp_path):
    words = ["train", "--scenes", "2", *trunk, "--init", "timm", "--out", str(tmp_path / "run")]
    assert main(words) != 0
    error = capsys.readouterr().err.strip()
    got = trunk[1] if trunk else "vgg16"
    assert error.endswith(f"--init timm: expected --trunk with a network of timm, got {got}")
    with pytest.raises(ValueError, match="trunk is a network of timm, got VGG16"):
        mdssd.ssd300(2, width=0.0625, init="timm")


def test_weights_that_do_not_fit(timm):
    weights = timm.create_model("resnet18").state_dict()
    with pytest.raises(ValueError, match="of timm's resnet34 must have shape .* got none"):
        make("ssd300", trunk="resnet34", init=weights)
    weights["bn1.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"'bn1.bias' .* must have shape \[64\], got \[3\]"):
        make("ssd300", init=weights)


@pytest.mark.parametrize(
    "name, message",
    [
        ("no_such_network", "ssd300: trunk must be one of vgg16, .* got 'no_such_network'"),
        ("vit_tiny_patch16_224", "expected a network with a map of each of the strides 4, 8 and"),
    ],
)
def test_bad_networks(timm, name, message):
    with pytest.raises(ValueError, match=message):
        make("ssd300", trunk=name)


def test_a_network_that_rounds_down_names_the_sizes(timm):
    with pytest.raises(ValueError, match=r"trunk 'vgg11': expected a map of \[38, 38\]"):
        make("ssd300", trunk="vgg11")
    with pytest.raises(ValueError, match=r"trunk 'vgg11': expected a map of \[38, 38\]"):
        TimmTrunk("vgg11").eval()(torch.zeros(1, 3, 300, 300))


def test_a_network_of_a_single_input_size_names_it(timm):
    message = "trunk 'swin_tiny_patch4_window7_224' cannot take images of 300 x 300: .*224"
    with pytest.raises(ValueError, match=message):
        make("ssd300", trunk="swin_tiny_patch4_window7_224")


def test_training(timm, tmp_path):
    out = tmp_path / "run"
    options = "--model ssd300 --width 0.0625 --scenes 2 --batch-size 2 --iterations 1 --workers 0"
    assert main(["train", *options.split(), "--light", "--trunk", NAME, "--out", str(out)]) == 0
    assert load_checkpoint(out)[0].options.trunk == NAME
    assert main(["train", "--resume", "--iterations", "2", "--out", str(out)]) == 0
