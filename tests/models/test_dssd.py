"""SSD and DSSD on ResNet-101: every layer, the options, and frozen parts."""

import json
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mdssd
from mdssd.cli import main
from mdssd.data import SyntheticScenes
from mdssd.detection.detector import Detector
from mdssd.models import MEAN_RGB, build
from mdssd.models.dssd import DeconvolutionModule
from mdssd.models.resnet import Bottleneck, ResNet101
from mdssd.training.loop import train
from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint

NAMES = ["ssd321", "dssd321", "ssd513", "dssd513"]
SIZES = {321: [40, 20, 10, 5, 3, 1], 513: [64, 32, 16, 8, 4, 2, 1]}
SOURCES = ["res3b3", "res5c", "res6", "res7", "res8", "res9", "res10"]
TINY = 0.0625


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_meta(name, num_classes=21, **options):
    with torch.device("meta"):
        return getattr(mdssd, name)(num_classes, **options).eval()


def tiny(name, num_classes=6, seed=0):
    torch.manual_seed(seed)
    return getattr(mdssd, name)(num_classes, width=TINY)


@torch.no_grad()
def learn_statistics(model):
    """Set the statistics of batch normalisation from one batch, as training would."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(2, 3, model.input_size, model.input_size) * 50)
    for norm in norms:
        norm.momentum = 0.1


# --- the networks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, classes, parameters, giga_macs, priors",
    [
        ("ssd321", 21, 116_526_320, 35.9, 17080),
        ("dssd321", 21, 172_380_912, 53.9, 17080),
        ("ssd513", 81, 173_145_304, 139.7, 43688),
        ("dssd513", 81, 254_983_896, 208.0, 43688),
    ],
)
def test_parameters_macs_and_shapes(name, classes, parameters, giga_macs, priors):
    model = on_meta(name, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    size = model.input_size
    with FlopCounterMode(display=False) as counter:
        loc, logits = model(torch.empty(2, 3, size, size, device="meta"))
    assert round(counter.get_total_flops() / 2 / 2 / 1e9, 1) == giga_macs  # a MAC is two operations
    assert loc.shape == (2, priors, 4)
    assert logits.shape == (2, priors, classes)
    assert model.priors.shape == (priors, 4)


@pytest.mark.parametrize("name", NAMES)
def test_map_sizes(name):
    model = on_meta(name)
    images = torch.empty(2, 3, model.input_size, model.input_size, device="meta")
    sizes = SIZES[model.input_size]
    channels = [512, 2048] + [1024] * (len(sizes) - 2)
    _, res3b3, res5c = model.trunk(images)
    base = [res3b3, res5c, *model.extras(res5c)]
    assert [tuple(x.shape[1:]) for x in base] == [
        (c, s, s) for c, s in zip(channels, sizes, strict=True)
    ]
    if name.startswith("dssd"):
        joined = [tuple(x.shape[1:]) for x in model.base_maps(images)]
        assert joined == [(512, s, s) for s in sizes[:-1]] + [(1024, 1, 1)]
    if name != "ssd513":
        channels = [1024] * len(sizes)
    maps = [tuple(x.shape[1:]) for x in model.feature_maps(images)]
    assert maps == [(c, s, s) for c, s in zip(channels, sizes, strict=True)]


def test_details_of_the_trunk():
    trunk = ResNet101(TINY)
    blocks = [len(getattr(trunk, f"layer{k}")) for k in (1, 2, 3, 4)]
    assert blocks == [3, 4, 23, 3]
    strided = {n for n, m in trunk.named_modules() if getattr(m, "stride", 1) == (2, 2)}
    first = {f"layer{k}.0.{conv}" for k in (2, 3) for conv in ("conv1", "downsample.0")}
    assert strided == first | {"conv1"}
    dilated = {n for n, m in trunk.named_modules() if getattr(m, "dilation", 1) == (2, 2)}
    assert dilated == {f"layer4.{k}.conv2" for k in range(3)}
    model = tiny("dssd513")
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


class Reference:
    """Compute the networks independently, in functional PyTorch, from a state dict."""

    def __init__(self, state, input_size, deconvolves):
        self.state = state
        self.size = input_size
        self.deconvolves = deconvolves

    def bn(self, name, x):
        mean, var, scale, bias = (
            self.state[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * scale + bias

    def conv(self, name, x, **options):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **options)

    def conv_bn(self, name, x):
        return self.bn(f"{name}.1", self.conv(f"{name}.0", x, padding=1))

    def block(self, name, x, stride=1, dilation=1):
        y = self.bn(f"{name}.bn1", self.conv(f"{name}.conv1", x, stride=stride)).relu()
        y = self.conv(f"{name}.conv2", y, padding=dilation, dilation=dilation)
        y = self.bn(f"{name}.bn3", self.conv(f"{name}.conv3", self.bn(f"{name}.bn2", y).relu()))
        if f"{name}.downsample.0.weight" in self.state:
            x = self.bn(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride=stride))
        return (x + y).relu()

    def maps(self, x):
        x = self.bn("trunk.bn1", self.conv("trunk.conv1", x, stride=2, padding=3)).relu()
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        maps = []
        # Number of blocks in a stage, stride of the first block, dilation of all.
        stages = ((3, 1, 1), (4, 2, 1), (23, 2, 1), (3, 1, 2))
        for layer, (blocks, stride, dilation) in enumerate(stages, start=1):
            for k in range(blocks):
                x = self.block(f"trunk.layer{layer}.{k}", x, stride if k == 0 else 1, dilation)
            if layer in (2, 4):
                maps.append(x)
        strides = [2, 2, 2, 2, 2] if self.size == 513 else [2, 2, 1, 1]
        for n, stride in enumerate(strides, start=6):
            x = self.block(f"extras.res{n}", x, stride)
            maps.append(x)
        return maps

    def deconvolved(self, maps):
        strides = [1, 2, 2, 2, 2, 2] if self.size == 513 else [1, 1, 2, 2, 2]
        deep = maps[-1]
        joined = [deep]
        for k, stride in zip(range(len(maps) - 2, -1, -1), strides, strict=True):
            name = f"deconv.{SOURCES[k]}"
            a = self.conv_bn(f"{name}.lateral.1", self.conv_bn(f"{name}.lateral.0", maps[k]).relu())
            weight, bias = (self.state[f"{name}.deep.0.{part}"] for part in ("weight", "bias"))
            b = self.conv_bn(f"{name}.deep.1", F.conv_transpose2d(deep, weight, bias, stride))
            deep = (a * b).relu()
            joined.insert(0, deep)
        return joined

    def head(self, name, x):
        if f"{name}.weight" in self.state:
            hidden, last = x, name
        else:
            hidden, last = self.conv_bn(f"{name}.0", x).relu(), f"{name}.1"
        return self.conv(last, hidden, padding=self.state[f"{last}.weight"].shape[2] // 2)

    def __call__(self, images):
        maps = self.maps(images)
        if self.deconvolves:
            maps = self.deconvolved(maps)
        out = {"loc": [], "conf": []}
        for source, x in zip(SOURCES, maps, strict=False):
            x = self.block(f"predict.{source}", x)
            for kind, all_rows in out.items():
                rows = self.head(f"heads.{source}.{kind}", x)
                per_row = rows.shape[1] // 8
                all_rows.append(rows.permute(0, 2, 3, 1).reshape(len(images), -1, per_row))
        return torch.cat(out["loc"], 1), torch.cat(out["conf"], 1)


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_network_written_over_again(name):
    model = tiny(name).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # arbitrary statistics and weights
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1)
    reference = Reference(model.state_dict(), model.input_size, name.startswith("dssd"))
    images = torch.randn(1, 3, model.input_size, model.input_size, dtype=torch.float64)
    with torch.no_grad():
        for got, expected in zip(model(images), reference(images), strict=True):
            assert expected.std() > 0.01
            torch.testing.assert_close(got, expected)


def test_kernels_of_the_heads():
    for name in NAMES:
        heads = on_meta(name, width=TINY).heads
        for source, head in heads.items():
            kernels = [m.kernel_size[0] for m in head.modules() if isinstance(m, nn.Conv2d)]
            output = 5 if source in ("res3b3", "res5c") else 3
            assert kernels == ([3, output] * 2 if name == "dssd513" else [output] * 2)


def test_deconvolution_module_multiplies():
    torch.manual_seed(0)
    module = DeconvolutionModule(6, 7, 8, 2, 2).eval()
    lateral, deep = torch.randn(2, 6, 10, 10), torch.randn(2, 7, 5, 5)
    a, b = module.lateral(lateral), module.deep(deep)
    assert a.min() < 0 and b.min() < 0
    out = module(lateral, deep)
    assert out.shape == (2, 8, 10, 10)
    assert torch.equal(out, (a * b).relu())


def test_residual_block_without_a_shortcut_convolution():
    block = Bottleneck(8, 4, 8, project=False).eval()
    nn.init.zeros_(block.bn3.weight)
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(block(x), x.relu())


def test_every_parameter_gets_a_gradient():
    model = tiny("dssd321", 3)
    loc, logits = model(torch.randn(2, 3, 321, 321))
    (loc.square().mean() + logits.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# --- options, checkpoints, the command -----------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_build_from_config_and_checkpoint(name, tmp_path):
    scales = "voc" if name.endswith("321") else "coco"
    model = getattr(mdssd, name)(4, width=TINY, clip_priors=True, truncate_sizes=True)
    assert model.config() == {
        "model": name,
        "num_classes": 4,
        "width": TINY,
        "batch_norm": True,
        "prior_scales": scales,
        "clip_priors": True,
        "truncate_sizes": True,
        "trunk": "resnet101",
        "light": False,
    }
    assert build(model.config()).config() == model.config()
    path = tmp_path / "a.json"
    save_checkpoint(path, model, classes=["a", "b", "c"], mean=MEAN_RGB, extra={})
    again, meta = load_checkpoint(path)
    assert type(again) is type(model)
    assert meta["input_size"] == int(name[-3:])
    assert again.config() == model.config()
    assert torch.equal(again.priors, model.priors)
    for (key, ours), theirs in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model": "dssd321", "batch_norm": False}, "dssd321: batch_norm must be True.* got False"),
        ({"model": "ssd321", "prior_scales": "coco"}, "of 321 must be 'voc', got 'coco'"),
        ({"model": "dssd513", "prior_scales": "voc"}, "of 513 must be 'coco', got 'voc'"),
        ({"model": "ssd513", "num_classes": 1}, "ssd513: num_classes .* got 1"),
        ({"model": "ssd513", "width": -1}, "ssd513: width .* got -1"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_detector_runs_on_photos_of_another_size():
    scenes = SyntheticScenes(2)
    detector = Detector(tiny("dssd321"), classes=scenes.classes)
    for found in detector([scenes[0].image, scenes[1].image]):
        assert found["boxes"].isfinite().all()
        assert len(found["boxes"]) == len(found["scores"]) <= 200


COMMON = "--width 0.0625 --batch-size 2 --scenes 2 --epochs 1 --threads 1 --workers 0".split()


def test_staged_training_evaluation_and_detection_by_command(tmp_path, capsys):
    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        text = capsys.readouterr()
        assert status == 0, text.err
        return text.out

    ssd, dssd, whole = tmp_path / "ssd", tmp_path / "dssd", tmp_path / "whole"
    run("train", "--recipe", "ssd321-voc", *COMMON, "--out", ssd)
    stage1 = ("--recipe", "dssd321-voc-stage1", *COMMON, "--init", ssd, "--lr", 0.1)
    text = run("train", *stage1, "--out", dssd)
    assert "the others are new: deconv." in text
    before, after = load_checkpoint(ssd)[0].state_dict(), load_checkpoint(dssd)[0].state_dict()
    for name, tensor in before.items():
        if name.startswith(("trunk.", "extras.")):
            assert torch.equal(tensor, after[name]), name
    meta = json.loads((dssd / "last.json").read_text())
    assert meta["training"]["recipe"]["freeze"] == ["base"]
    run("train", "--resume", "--epochs", 2, "--out", dssd, "--threads", 1, "--workers", 0)
    again = load_checkpoint(dssd)[0].state_dict()
    assert torch.equal(again["trunk.bn1.running_mean"], before["trunk.bn1.running_mean"])
    changed = "deconv.res3b3.deep.1.1.running_mean"
    assert not torch.equal(again[changed], after[changed])
    # The tiny learning rate is for batch normalisation by the statistics of only two images.
    stage2 = ("--recipe", "dssd321-voc-stage2", *COMMON, "--init", dssd, "--lr", 1e-7)
    text = run("train", *stage2, "--out", whole)
    assert f"{len(again)} of {len(again)} tensors start from {dssd}; class scores, by name" in text
    model = load_checkpoint(whole)[0]
    kept = frozen_names(model, ["batch-norm"])
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, again[k])}
    assert not moved & kept
    assert {"trunk.conv1.weight", "extras.res6.conv1.weight", "heads.res3b3.loc.bias"} <= moved
    assert "VOC07 AP" in run("eval", dssd, "--scenes", 2)
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "a.png"), SyntheticScenes(1)[0].image)
    run("detect", dssd, tmp_path / "a.png", "--out", tmp_path / "found")
    assert (tmp_path / "found" / "detections.json").is_file()


# --- frozen parts --------------------------------------------------------------------------------


def frozen_names(model, parts):
    names = set()
    for name, module in model.named_modules():
        base = "base" in parts and name.startswith(("trunk", "extras"))
        if base or ("batch-norm" in parts and isinstance(module, nn.BatchNorm2d)):
            names |= {f"{name}.{n}" for n, _ in module.named_parameters(recurse=False)}
            names |= {f"{name}.{n}" for n, _ in module.named_buffers(recurse=False)}
    return names


@pytest.mark.parametrize("parts", [(), ("base",), ("batch-norm",), ("base", "batch-norm")])
def test_training_leaves_frozen_parts_alone(tmp_path, parts):
    model = tiny("dssd321")
    learn_statistics(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = frozen_names(model, parts)
    settings = dict(epochs=1, batch_size=2, lr=0.1, ema=0.5, workers=0, progress=False)
    train(model, SyntheticScenes(2), tmp_path, freeze=parts, weight_decay=0.1, **settings)
    after = model.state_dict()
    same = {k for k in before if torch.equal(before[k], after[k])}
    # Without a gradient, as at the single cell of res9, decayed weights and counters still change.
    convolutions = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    changing = convolutions | {k for k in before if "running" in k or "num_batches" in k}
    assert kept <= same
    assert not same & (changing - kept)
    assert model.frozen == parts
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        n for n, _ in model.named_parameters() if n in kept
    }


def test_freeze_replaces_the_frozen_parts():
    model = tiny("ssd321", 2).train()
    (model(torch.randn(2, 3, 321, 321))[0].sum()).backward()
    model.freeze("base")
    assert model.trunk.conv1.weight.grad is None  # SGD would keep using a gradient left here
    assert not model.trunk.layer1[0].bn1.training
    assert model.predict["res3b3"].bn1.training and model.training
    model.eval()
    assert not model.predict["res3b3"].bn1.training
    model.train()
    assert not model.extras.res6.bn1.training
    model.freeze("batch-norm")
    assert model.trunk.training and not model.trunk.bn1.training
    assert model.trunk.conv1.weight.requires_grad
    model.freeze()
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_freeze_of_the_other_models():
    model = mdssd.mdssd300(2, width=TINY)
    model.freeze("base")
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"module1", "module2", "module3", "heads"}
    with pytest.raises(ValueError, match="this mdssd300 has no batch normalisation"):
        model.freeze("batch-norm")


@pytest.mark.parametrize(
    "freeze, message",
    [(["trunk"], r"among base, batch-norm; got \['trunk'\]"), ("base", "expected a list of parts")],
)
def test_bad_freeze(tmp_path, freeze, message):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        train(tiny("ssd321"), SyntheticScenes(2), out, epochs=1, freeze=freeze, progress=False)
    assert not out.exists()


def test_batches_of_one_image_need_frozen_batch_norm(tmp_path):
    settings = dict(epochs=1, batch_size=1, workers=0, progress=False)
    with pytest.raises(ValueError, match="expected at least 2 images"):
        train(tiny("ssd321"), SyntheticScenes(1), tmp_path / "a", **settings)
    state = train(
        tiny("ssd321"), SyntheticScenes(1), tmp_path / "b", freeze=["batch-norm"], **settings
    )
    assert state.step == 1


def test_init_by_command_names_the_misfit(tmp_path, capsys):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    arguments = ["train", "--model", "ssd321", *COMMON, "--init", path, "--out", tmp_path / "run"]
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert re.search("mdssd: error: --init: load_resnet101: model must be made with width=1", error)
