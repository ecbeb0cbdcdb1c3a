"""Published weights: our network computes the same as each codebase's, which is rewritten here."""

import copy
import io
import os
import pickle
import struct
import zipfile

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

import mdssd
from mdssd import cli, load_pretrained, mdssd300, ssd300, ssd512
from mdssd.models import MEAN_RGB, build
from mdssd.names import MODELS
from mdssd.priors import ssd_prior_layers
from mdssd.weights.caffe_files import read_caffe
from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint
from mdssd.weights.convert import convert
from mdssd.weights.foreign_files import read_tensors
from mdssd.weights.pretrained import _class_scores
from mdssd.weights.published import read_published

WIDTH = 0.0625
PER_CELL = {300: (4, 6, 6, 6, 4, 4), 512: (4, 6, 6, 6, 6, 4, 4)}


def c(full):
    return max(8, full // 16)


def conv(into, out, kernel, **options):
    layer = nn.Conv2d(into, out, kernel, **options)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.normal_(layer.bias, std=0.1)
    return layer


def vgg_layers(end):
    """The layers from conv1_1 to conv4_3 (end "conv4_3") or to fc7 (end "fc7"), as a flat list."""
    layers, into = [], 3
    plan = [64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512]
    if end == "fc7":
        plan += ["M", 512, 512, 512]
    for item in plan:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=item == "C"))
        else:
            layers += [conv(into, c(item), 3, padding=1), nn.ReLU()]
            into = c(item)
    if end == "fc7":
        fc6 = conv(c(512), c(1024), 3, padding=6, dilation=6)
        layers += [nn.MaxPool2d(3, 1, 1), fc6, nn.ReLU(), conv(c(1024), c(1024), 1), nn.ReLU()]
    return layers


def extra_layers(size):
    layers, into = [], c(1024)
    stages = [(256, 512, 3, 2, 1), (128, 256, 3, 2, 1)]
    if size == 300:
        stages += [(128, 256, 3, 1, 0)] * 2
    else:
        stages += [(128, 256, 3, 2, 1)] * 2 + [(128, 256, 4, 1, 1)]
    for narrow, wide, kernel, stride, padding in stages:
        layers.append(conv(into, c(narrow), 1))
        layers.append(conv(c(narrow), c(wide), kernel, stride=stride, padding=padding))
        into = c(wide)
    return layers


def head_layers(size, per_prior):
    channels = [512, 1024, 512, *[256] * (len(PER_CELL[size]) - 3)]
    return nn.ModuleList(
        conv(c(n), k * per_prior, 3, padding=1)
        for n, k in zip(channels, PER_CELL[size], strict=True)
    )


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(c(512)) * 10 + 10)

    def forward(self, x):
        return self.weight[:, None, None] * x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)


def rows(convs, maps, per_prior):
    found = [layer(x).permute(0, 2, 3, 1) for layer, x in zip(convs, maps, strict=True)]
    return torch.cat([x.reshape(len(x), -1, per_prior) for x in found], 1)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


class Amdegroot(nn.Module):
    def __init__(self, classes, size=300):
        super().__init__()
        self.classes = classes
        self.vgg = nn.ModuleList(vgg_layers("fc7"))
        self.L2Norm = Norm()
        self.extras = nn.ModuleList(extra_layers(size))
        self.loc = head_layers(size, 4)
        self.conf = head_layers(size, classes)

    def maps(self, x, vgg, norm, extras):
        found = []
        for k, layer in enumerate(vgg):
            x = layer(x)
            if k == 22:
                found.append(norm(x))
        found.append(x)
        for k, layer in enumerate(extras):
            x = layer(x).relu()
            if k % 2:
                found.append(x)
        return found

    def forward(self, pixels):
        x = pixels - column(123, 117, 104)
        maps = self.maps(x, self.vgg, self.L2Norm, self.extras)
        return rows(self.loc, maps, 4), rows(self.conf, maps, self.classes)


class Lufficc(Amdegroot):
    def __init__(self, classes, size=300):
        super().__init__(classes, size)
        self.backbone = nn.Module()
        self.backbone.vgg, self.backbone.extras = self.vgg, self.extras
        self.backbone.l2_norm = self.L2Norm
        self.box_head = nn.Module()
        self.box_head.predictor = nn.Module()
        self.box_head.predictor.reg_headers = self.loc
        self.box_head.predictor.cls_headers = self.conf
        # Still reachable, but not registered as modules of that name.
        for name in ("vgg", "extras", "L2Norm", "loc", "conf"):
            object.__setattr__(self, name, self._modules.pop(name))


class Torchvision(nn.Module):
    def __init__(self, classes, size=300):
        super().__init__()
        self.classes = classes
        layers = vgg_layers("fc7")
        self.backbone = nn.Module()
        self.backbone.features = nn.Sequential(*layers[:23])
        self.backbone.scale_weight = nn.Parameter(torch.rand(c(512)) * 10 + 10)
        stages = extra_layers(size)
        self.backbone.extra = nn.ModuleList(
            [
                nn.Sequential(*layers[23:30], nn.Sequential(*layers[30:])),
                *(
                    nn.Sequential(stages[k], nn.ReLU(), stages[k + 1], nn.ReLU())
                    for k in range(0, len(stages), 2)
                ),
            ]
        )
        self.head = nn.Module()
        for name, per_prior in (("classification_head", classes), ("regression_head", 4)):
            head = nn.Module()
            head.module_list = head_layers(size, per_prior)
            self.head.add_module(name, head)

    def forward(self, pixels):
        mean, deviation = column(0.48235, 0.45882, 0.40784), column(*[1 / 255] * 3)
        x = self.backbone.features((pixels / 255 - mean) / deviation)
        maps = [self.backbone.scale_weight[:, None, None] * F.normalize(x)]
        for block in self.backbone.extra:
            x = block(x)
            maps.append(x)
        found = []
        for head, columns in ((self.head.regression_head, 4), (self.head.classification_head, -1)):
            columns = columns if columns > 0 else self.classes
            parts = []
            for layer, x in zip(head.module_list, maps, strict=True):
                x = layer(x)
                batch, _, high, wide = x.shape
                x = x.view(batch, -1, columns, high, wide).permute(0, 3, 4, 1, 2)
                parts.append(x.reshape(batch, -1, columns))
            found.append(torch.cat(parts, 1))
        return tuple(found)


class Caffe(Amdegroot):
    """The same layers with the original Caffe names; expects BGR."""

    def forward(self, pixels):
        x = pixels.flip(1) - column(104, 117, 123)
        maps = self.maps(x, self.vgg, self.L2Norm, self.extras)
        return rows(self.loc, maps, 4), rows(self.conf, maps, self.classes)

    def layers(self):
        """Return the blobs of each layer by its name."""
        names = [f"conv{s}_{k}" for s, n in enumerate((2, 2, 3, 3, 3), 1) for k in range(1, n + 1)]
        convs = [layer for layer in self.vgg if isinstance(layer, nn.Conv2d)]
        found = dict(zip([*names, "fc6", "fc7"], convs, strict=True))
        for k, layer in enumerate(self.extras):
            found[f"conv{6 + k // 2}_{1 + k % 2}"] = layer
        sources = ["conv4_3_norm", "fc7", *(f"conv{6 + k}_2" for k in range(len(self.loc) - 2))]
        for source, loc, conf in zip(sources, self.loc, self.conf, strict=True):
            found |= {f"{source}_mbox_loc": loc, f"{source}_mbox_conf": conf}
        blobs = {name: [layer.weight, layer.bias] for name, layer in found.items()}
        return blobs | {"conv4_3_norm": [self.L2Norm.weight]}

    def state_dict(self):
        return {
            f"{name}.{part}": blob.detach()
            for name, blobs in self.layers().items()
            for part, blob in zip(("weight", "bias"), blobs, strict=False)
        }


SOURCES = {
    "ssd.pytorch": Amdegroot,
    "lufficc/SSD": Lufficc,
    "torchvision": Torchvision,
    "Caffe": Caffe,
}


# --- protobuf by hand, independent of the reader's schema ----------------------------------------


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob_bytes(blob, old=False, shape=None):
    shape = list(blob.shape) if shape is None else shape
    data = field(5, blob.detach().numpy().astype("<f4").tobytes())
    if old:
        shape = [1] * (4 - len(shape)) + shape
        return b"".join(field(1 + k, size) for k, size in enumerate(shape)) + data
    return data + field(7, field(1, b"".join(map(varint, shape))))


def caffemodel(layers, old=False):
    """Encode a net: an empty layer, then these layers; `old` is the format before 2015."""
    net = field(1, b"VGG_VOC0712_SSD")
    for name, blobs in {"data": [], **layers}.items():
        if old:
            body = b"".join(field(6, blob_bytes(b, old=True)) for b in blobs)
            net += field(2, field(4, name.encode()) + body)
        else:
            body = field(1, name.encode()) + field(2, b"Convolution")
            net += field(100, body + b"".join(field(7, blob_bytes(b)) for b in blobs))
    return net


@pytest.fixture(scope="module", params=list(SOURCES))
def source(request):
    torch.manual_seed(0)
    return request.param, SOURCES[request.param](5).eval()


def write(name, model, path):
    """Write the file as its codebase does."""
    if name == "Caffe":
        path = path.with_suffix(".caffemodel")
        path.write_bytes(caffemodel(model.layers()))
        return path
    state = model.state_dict()
    torch.save({"model": state, "iteration": 7} if name == "lufficc/SSD" else state, path)
    return path


def assert_same_outputs(model, theirs, mean):
    """Run in float64 from the pixels on, because float32 rounds differently in each network."""
    side = model.input_size
    pixels = torch.randint(0, 256, (1, 3, side, side)).double()
    with torch.no_grad():
        expected = copy.deepcopy(theirs).double()(pixels)
        got = model.double()(pixels - column(*mean))
    for a, b in zip(got, expected, strict=True):
        assert b.std() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_ssd300_computes_the_same_as_the_source(source, tmp_path):
    name, theirs = source
    path = write(name, theirs, tmp_path / "a.pth")
    model = ssd300(5, width=WIDTH).eval()
    loaded = load_pretrained(model, path)
    assert loaded.layout == name
    assert set(loaded.taken) == set(model.state_dict())
    assert loaded.fresh == loaded.unused == ()
    assert_same_outputs(model, theirs, loaded.mean)


@pytest.mark.parametrize("name", ["lufficc/SSD", "Caffe"])
def test_ssd512_too(name):
    torch.manual_seed(1)
    theirs = SOURCES[name](3, 512).eval()
    model = ssd512(3, width=WIDTH).eval()
    loaded = load_pretrained(model, theirs.state_dict())
    assert set(loaded.taken) == set(model.state_dict())
    assert_same_outputs(model, theirs, loaded.mean)


@pytest.mark.parametrize(
    "name, size, classes, config",
    [
        ("ssd.pytorch", 300, 21, ("voc", True, False)),
        ("ssd.pytorch", 300, 81, ("coco", True, False)),
        ("ssd.pytorch", 300, 5, ("coco", True, False)),
        ("lufficc/SSD", 300, 5, ("voc", True, False)),
        ("lufficc/SSD", 512, 81, ("coco", True, False)),
        ("torchvision", 300, 91, ("coco", "size", False)),
        ("torchvision", 300, 21, ("coco", "size", False)),
        ("Caffe", 300, 21, ("voc", False, False)),
        ("Caffe", 512, 5, ("voc", False, True)),
        ("Caffe", 512, 81, ("coco", False, True)),
    ],
)
def test_full_width_and_the_published_priors(name, size, classes, config):
    small = SOURCES[name](2, size).state_dict()
    names = read_published("test", "x", small).names
    with torch.device("meta"):
        full = build({"model": f"ssd{size}", "num_classes": classes}).state_dict()
    assert set(names) == set(full)
    state = {names[key]: torch.zeros(()).expand(value.shape) for key, value in full.items()}
    found = read_published("test", "x", state)
    assert found.config == {
        "model": f"ssd{size}",
        "num_classes": classes,
        "width": 1,
        "prior_scales": config[0],
        "clip_priors": config[1],
        "truncate_sizes": config[2],
    }


def test_torchvisions_priors():
    """With clip "size", centres can be outside the image; widths and heights are at most 1."""
    scales = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
    boxes = []
    for k, (size, step) in enumerate(
        zip((38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300), strict=True)
    ):
        s, middle = scales[k], (scales[k] * scales[k + 1]) ** 0.5
        pairs = [(s, s), (middle, middle)]
        for ratio in (2,) if k in (0, 4, 5) else (2, 3):
            pairs += [(s * ratio**0.5, s / ratio**0.5), (s / ratio**0.5, s * ratio**0.5)]
        for row in range(size):
            for column in range(size):
                for w, h in pairs:
                    centre = ((column + 0.5) * step / 300, (row + 0.5) * step / 300)
                    boxes.append((*centre, min(w, 1.0), min(h, 1.0)))
    model = ssd300(2, width=WIDTH, prior_scales="coco", clip_priors="size")
    torch.testing.assert_close(model.priors, torch.tensor(boxes), rtol=0, atol=1e-6)
    assert model.priors[:, :2].max() > 1 >= model.priors[:, 2:].max()
    assert model.config()["clip_priors"] == "size"


def test_mdssd_starts_from_a_published_ssd(source, tmp_path):
    name, theirs = source
    path = write(name, theirs, tmp_path / "a.pth")
    ssd, model = ssd300(5, width=WIDTH), mdssd300(5, width=WIDTH)
    load_pretrained(ssd, path)
    own, copied = model.state_dict(), ssd.state_dict()
    fits = {k: v for k, v in copied.items() if k in own and v.shape == own[k].shape}
    loaded = load_pretrained(model, path)
    assert set(loaded.taken) == set(fits)
    assert all(torch.equal(value, fits[k]) for k, value in model.state_dict().items() if k in fits)
    assert {k.partition(".")[0] for k in loaded.fresh} == {
        *("module1", "module2", "module3", "heads")
    }
    assert len(loaded.unused) == 9  # the heads of two maps, and the scale
    other = mdssd300(3, width=WIDTH, init=path)
    assert "heads.conv8_2.loc.weight" in other.loaded.taken
    assert "heads.conv8_2.conf.weight" in other.loaded.fresh


def test_published_heads_are_left_where_fitted_priors_differ():
    """The published priors are coco's. Of conv8_2, one of these differs much, of conv9_2 little."""
    state = SOURCES["torchvision"](21).state_dict()
    sizes = [[list(size) for size in layer.shapes()] for layer in ssd_prior_layers(300, "coco")]
    sizes[2][1], sizes[3][0] = [20.5, 11.0], [140.0, 165.0]
    loaded = load_pretrained(ssd300(21, width=WIDTH, prior_scales=sizes), state)
    assert loaded.other_priors == ("conv8_2",)
    assert {name for name in loaded.fresh if name.startswith("heads.")} == {
        f"heads.conv8_2.{part}" for part in ("loc.weight", "loc.bias", "conf.weight", "conf.bias")
    }
    assert load_pretrained(ssd300(21, width=WIDTH), state).other_priors == ()


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "best.json"
    model = ssd300(3, width=WIDTH)
    save_checkpoint(path, model, classes=["a", "b"], mean=(1, 2, 3), extra={})
    return path


def test_models_start_from_a_checkpoint(checkpoint):
    ssd, model = load_checkpoint(checkpoint)[0].state_dict(), mdssd300(3, width=WIDTH)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = load_pretrained(model, checkpoint)
    assert set(loaded.taken) == {
        name for name, tensor in ssd.items() if name in fresh and tensor.shape == fresh[name].shape
    }
    assert {*loaded.taken, *loaded.fresh} == set(fresh)
    assert {*loaded.taken, *loaded.unused} == set(ssd)
    assert (loaded.layout, loaded.mean) == ("a checkpoint of ssd300", (1, 2, 3))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (ssd if name in loaded.taken else fresh)[name]), name
    weights = next(checkpoint.parent.glob("*.safetensors"))
    for init in (checkpoint.parent, str(weights)):
        again = mdssd300(3, width=WIDTH, init=init)
        assert again.loaded == loaded
        assert all(torch.equal(again.state_dict()[name], ssd[name]) for name in loaded.taken)


def test_mdssd_starts_from_an_ssd_with_batch_norm(tmp_path):
    ssd, path = ssd300(3, width=WIDTH, batch_norm=True), tmp_path / "best.json"
    save_checkpoint(path, ssd, classes=["a", "b"], mean=MEAN_RGB, extra={})
    taken = mdssd300(3, width=WIDTH, batch_norm=True, init=path).loaded.taken
    assert {"heads.conv8_2.conf.weight", "trunk.fc7.conv.weight"} < set(taken)
    assert not any(name.startswith("module") for name in taken)
    taken = mdssd300(4, width=WIDTH, batch_norm=True, init=path).loaded.taken
    assert "heads.conv8_2.loc.weight" in taken
    assert "heads.conv8_2.conf.weight" not in taken


def class_scores(model, head, k):
    """The weights and biases that score class k, for each prior of a cell."""
    conf = model.heads[head].conf
    shape = (model.heads[head].per_cell, model.num_classes, -1)
    return torch.cat([conf.weight.reshape(shape), conf.bias.reshape(shape)], 2)[:, k]


def test_class_scores_go_by_the_names_of_the_classes(checkpoint):
    source = load_checkpoint(checkpoint)[0]  # of the classes a and b
    model, before = ssd300(4, width=WIDTH), ssd300(4, width=WIDTH)
    for each in (source, model, before):
        for name, tensor in each.state_dict().items():
            if ".conf.bias" in name:
                nn.init.normal_(tensor)
    before.load_state_dict(model.state_dict())
    save_checkpoint(checkpoint, source, classes=["a", "b"], mean=MEAN_RGB, extra={})
    loaded = load_pretrained(model, checkpoint, classes=["b", "new", "a"])
    for head in model.heads:
        for ours, theirs in ((0, 0), (1, 2), (3, 1)):
            assert torch.equal(class_scores(model, head, ours), class_scores(source, head, theirs))
        assert torch.equal(class_scores(model, head, 2), class_scores(before, head, 2))
    assert loaded.classes == ("b", "a")
    assert set(loaded.partly) == {name for name in model.state_dict() if ".conf." in name}
    assert set(loaded.taken) == {name for name in model.state_dict() if ".conf." not in name}
    assert (loaded.fresh, loaded.unused, loaded.by_position) == ((), (), False)


def test_the_same_classes_in_another_order_are_all_taken(checkpoint):
    source, model = load_checkpoint(checkpoint)[0], ssd300(3, width=WIDTH)
    loaded = load_pretrained(model, checkpoint, classes=["b", "a"])
    assert (loaded.classes, loaded.partly, loaded.fresh) == (("b", "a"), (), ())
    for ours, theirs in ((0, 0), (1, 2), (2, 1)):
        got, want = class_scores(model, "conv7", ours), class_scores(source, "conv7", theirs)
        assert torch.equal(got, want)


def test_class_scores_go_by_position_only_if_names_are_unknown(checkpoint):
    loaded = load_pretrained(ssd300(3, width=WIDTH), checkpoint)
    assert (loaded.by_position, loaded.classes) == (True, ())
    loaded = load_pretrained(ssd300(4, width=WIDTH), checkpoint)
    assert not loaded.by_position and "heads.conv7.conf.bias" in loaded.fresh
    state = Amdegroot(3).state_dict()
    loaded = load_pretrained(ssd300(3, width=WIDTH), state, classes=["a", "b"])
    assert (loaded.by_position, loaded.classes, loaded.fresh) == (True, (), ())


def test_a_published_ssd_of_20_classes_has_those_of_voc():
    torch.manual_seed(0)
    state = Amdegroot(21).state_dict()
    model = ssd300(4, width=WIDTH)
    loaded = load_pretrained(model, state, classes=["person", "wheel", "cat"])
    assert (loaded.classes, loaded.by_position) == (("person", "cat"), False)
    assert "heads.conv7.conf.weight" in loaded.partly
    biases = model.heads["conv7"].conf.bias.view(6, 4), state["conf.1.bias"].view(6, 21)
    assert torch.equal(biases[0][:, [0, 1, 3]], biases[1][:, [0, 15, 8]])


def test_priors_of_other_numbers_keep_their_class_scores(tmp_path):
    """conv10_2 has 4 priors in a cell of SSD300 and 6 in one of SSD512."""
    save_checkpoint(
        tmp_path / "a.json", ssd512(3, width=WIDTH), classes=["a", "b"], mean=MEAN_RGB, extra={}
    )
    loaded = load_pretrained(ssd300(3, width=WIDTH), tmp_path / "a.json", classes=["b", "a"])
    assert "heads.conv10_2.conf.weight" in {*loaded.fresh} & {*loaded.unused}
    assert "heads.conv7.conf.weight" in loaded.taken


@pytest.mark.parametrize("name", MODELS)
def test_the_tensors_of_class_scores_of_every_model(name):
    with torch.device("meta"):
        own = getattr(mdssd, name)(3, width=WIDTH)
        wider = getattr(mdssd, name)(5, width=WIDTH).state_dict()
    changed = {k: v.shape[0] for k, v in own.state_dict().items() if v.shape != wider[k].shape}
    assert {k: 3 * per_cell for k, per_cell in _class_scores(own).items()} == changed


def test_class_names_that_are_not_the_models_are_refused(checkpoint):
    with pytest.raises(ValueError, match="load_pretrained: classes: expected 2 names"):
        load_pretrained(ssd300(3, width=WIDTH), checkpoint, classes=["a"])


def test_init_is_not_an_option_of_the_model(checkpoint):
    model = ssd300(3, width=WIDTH, init=checkpoint)
    assert model.config() == ssd300(3, width=WIDTH).config()
    save_checkpoint(checkpoint, model, classes=["a", "b"], mean=MEAN_RGB, extra={})
    assert load_checkpoint(checkpoint)[0].loaded is None
    with pytest.raises(ValueError, match="build: config keys must be"):
        build({"model": "ssd300", "init": checkpoint})


@pytest.mark.parametrize("name", MODELS)
def test_every_constructor_refuses_a_wrong_start(name):
    with torch.device("meta"), pytest.raises(ValueError, match=r"load_\w+: "):
        getattr(mdssd, name)(3, width=WIDTH, init={"w": torch.zeros(1)})


def test_other_files_and_misfits_are_refused(checkpoint):
    with pytest.raises(FileNotFoundError, match="load_pretrained: .*no.json: no such file"):
        ssd300(3, width=WIDTH, init=checkpoint.with_name("no.json"))
    with pytest.raises(ValueError, match="best.json: no tensor fits: it is .*'ssd300'"):
        mdssd.ssd321(5, width=0.125, init=checkpoint)
    path = next(checkpoint.parent.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=path.name):
        ssd300(3, width=WIDTH, init=path)


def test_trunks():
    torch.manual_seed(0)
    theirs = Caffe(2)
    whole, model = ssd300(2, width=WIDTH), ssd300(2, width=WIDTH)
    load_pretrained(whole, theirs.state_dict())
    names = [name for name in whole.state_dict() if name.startswith("trunk.")]
    state = theirs.state_dict()
    trunk = {**dict(list(state.items())[:30]), "fc8.weight": torch.zeros(3, 4)}
    for weights in (trunk, nn.Sequential(*theirs.vgg).state_dict()):
        assert list(load_pretrained(model, weights).taken) == names
    first = "trunk.conv1.conv1_1.conv.weight"
    assert torch.equal(model.state_dict()[first], whole.state_dict()[first].flip(1))


def test_old_caffe_models_and_other_ways_to_wrap(tmp_path):
    torch.manual_seed(0)
    theirs = Caffe(3)
    path = tmp_path / "a"
    path.write_bytes(caffemodel(theirs.layers(), old=True))
    for name, tensor in read_tensors("test", path).items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    theirs = Amdegroot(3)
    state = theirs.state_dict()
    wrapped = {f"module.{k}": v.half() for k, v in state.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, path)
    assert len(load_pretrained(ssd300(3, width=WIDTH), path).taken) == len(state)
    for name, save in (
        ("b.safetensors", safetensors.torch.save_file),
        ("c.safetensors", torch.save),  # the content decides the format
        ("d.pth", lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False)),
    ):
        save(state, tmp_path / name)
        found = read_tensors("test", tmp_path / name)
        assert all(torch.equal(found[k], v) for k, v in state.items()), name


# --- refusals ------------------------------------------------------------------------------------


def renamed(state):
    return {k.replace("conf.3.", "cnf.3."): v for k, v in state.items()}


def with_(key, value):
    return lambda state: {**state, key: value}


@pytest.mark.parametrize(
    "edit, message",
    [
        (renamed, r"lacks 'conf.3.weight', and has 'cnf.3.weight', which ssd.pytorch does not"),
        (lambda s: dict(list(s.items())[:40]), r"lacks '.*' \(\d+ missing\)"),
        (with_("vgg.99.weight", torch.zeros(2)), "has 'vgg.99.weight', which ssd.pytorch's SSD"),
        (
            with_("vgg.5.weight", torch.zeros(8, 8, 3)),
            r"'vgg.5.weight' must have shape \[8, 8, 3, 3\], got \[8, 8, 3\]",
        ),
        (with_("vgg.33.weight", torch.zeros(())), r"'vgg.\d+.weight' must have shape"),
        (with_("conf.0.bias", torch.zeros(3)), "'conf.0.bias': expected 4 times the classes"),
        (with_("loc.5.bias", torch.zeros(16).long()), "'loc.5.bias' must be of floating point"),
        (with_("loc.5.bias", torch.full((16,), torch.nan)), "'loc.5.bias' has values.* not finite"),
        (with_("loc.5.bias", 3), "'loc.5.bias' must be a tensor, got int"),
        (with_("vgg.33.weight", None), "'vgg.33.weight' must be a tensor, got NoneType"),
        (
            with_("loc.5.bias", torch.full((16,), torch.nan).to(torch.float8_e4m3fn)),
            "'loc.5.bias' has values.* not finite",
        ),
        (lambda s: {"a": torch.zeros(1)}, r"expected the names of ssd.pytorch.* got \['a'\]"),
        (lambda s: {5: torch.zeros(1), "a": 3}, r"expected the names of .* got \['5', 'a'\]"),
        (lambda s: {}, "expected the names of"),
    ],
)
def test_other_names_shapes_and_values_are_refused(edit, message):
    model = ssd300(3, width=WIDTH)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"load_pretrained: weights: {message}"):
        load_pretrained(model, edit(Amdegroot(3).state_dict()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "model",
    [
        ssd512(3, width=WIDTH),
        mdssd300(3, width=0.125),
        ssd300(3, width=WIDTH, batch_norm=True),
        nn.Linear(2, 2),
    ],
    ids=["512", "wider", "batch norm", "no detector"],
)
def test_models_that_it_does_not_fit_are_refused(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="load_pretrained: weights: .* does not fit the model's '"):
        load_pretrained(model, Amdegroot(3).state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_of_another_input_takes_the_layers_that_fit():
    theirs = Amdegroot(3).state_dict()
    model = build({"model": "ssd640", "num_classes": 3, "width": WIDTH})
    loaded = load_pretrained(model, theirs)
    # conv10_2 has 6 priors in a cell, not 4, and conv12 is new; the other layers are the same.
    assert {name.rsplit(".", 1)[0] for name in loaded.fresh} == {
        "heads.conv10_2.loc",
        "heads.conv10_2.conf",
        "heads.conv12_2.loc",
        "heads.conv12_2.conf",
        "extras.conv12.conv12_1.conv",
        "extras.conv12.conv12_2.conv",
    }
    assert loaded.unused == ("loc.4.weight", "loc.4.bias", "conf.4.weight", "conf.4.bias")
    assert torch.equal(model.trunk.fc7.conv.bias, theirs["vgg.33.bias"])
    assert torch.equal(model.extras.conv11.conv11_2.conv.bias, theirs["extras.7.bias"])
    assert torch.equal(model.heads["conv11_2"].loc.bias, theirs["loc.5.bias"])
    wider = build({"model": "ssd640", "num_classes": 3, "width": 0.125})
    with pytest.raises(ValueError, match="does not fit the model's 'trunk"):
        load_pretrained(wider, theirs)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "caffe"])
@pytest.mark.parametrize("keep", [0, 1, 8, 0.1, 0.5, 0.9, -1])
def test_files_cut_short_are_refused(tmp_path, form, keep):
    path = tmp_path / "cut"
    torch.manual_seed(0)
    if form == "caffe":
        path.write_bytes(caffemodel(Caffe(2).layers()))
    elif form == "safetensors":
        safetensors.torch.save_file(Amdegroot(2).state_dict(), path)
    else:
        torch.save(Amdegroot(2).state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="load_pretrained: .*cut.*: .{12}") as error:
        load_pretrained(ssd300(2, width=WIDTH), path)
    if form == "caffe" and isinstance(keep, float):
        assert "ends at byte" in str(error.value)


class Bomb:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_unrun(tmp_path, form):
    victim, path = tmp_path / "executed", tmp_path / "a.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(victim), 2))
    else:
        state = {**Amdegroot(2).state_dict(), "x": Bomb(victim)}
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"cannot read .*a.pth: its pickle would call \w+.open"):
        load_pretrained(ssd300(2, width=WIDTH), path)
    assert not victim.exists()


def rezip(path, change):
    """Rewrite a zip archive; `change(name, content)` returns an entry's content and compression."""
    with zipfile.ZipFile(path) as old:
        entries = [(i.filename, old.read(i)) for i in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries:
            content, compression = change(name, content)
            new.writestr(name, content, compression)


def test_zip_bombs_and_storages_larger_than_the_file_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"x": torch.zeros(300_000)}, path)
    rezip(path, lambda name, content: (content, zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="a.pth: 'a/data.pkl' is compressed"):
        read_tensors("test", path)
    torch.save({"x": torch.zeros(3)}, path)
    read_tensors("test", path)
    # Both element counts in the pickle become 2**27 (half a gigabyte); the data does not change.
    huge = b"J" + struct.pack("<i", 2**27)
    rezip(
        path,
        lambda name, content: (
            content.replace(b"K\x03", huge) if name.endswith("data.pkl") else content,
            zipfile.ZIP_STORED,
        ),
    )
    with pytest.raises(ValueError, match="test: cannot read .*a.pth: .*(bounds|bytes|size|range)"):
        read_tensors("test", path)
    torch.save({"x": torch.zeros(()).expand(10_000, 10_000)}, path)
    with pytest.raises(ValueError, match=r"'x': its shape \[10000, 10000\] needs more than the 4"):
        read_tensors("test", path)


@pytest.mark.parametrize(
    "value", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_without_plain_numbers_are_refused(tmp_path, value):
    path = tmp_path / "a.pth"
    torch.save({"x": value}, path)
    with pytest.raises(ValueError, match="test: cannot read .*a.pth: 'x': expected an ordinary"):
        read_tensors("test", path)


class Glutton:
    def __init__(self, call, size):
        self.call, self.size = call, size

    def __reduce__(self):
        return self.call, (self.size,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("call", [bytearray, torch.FloatTensor, torch.UntypedStorage])
def test_pickles_that_ask_for_memory_are_refused(tmp_path, call, legacy):
    path = tmp_path / "a.pth"
    torch.save({"x": Glutton(call, 2**20)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=rf"its pickle would call \w+.*\.{call.__name__}, which"):
        read_tensors("test", path)


def legacy(content):
    """A file of torch.save before 2020 in which these are the bytes of the content's pickle."""
    start = io.BytesIO()
    torch.save({}, start, _use_new_zipfile_serialization=False)
    empty = pickle.dumps({}, 2)
    return start.getvalue().replace(empty, content, 1)


# Opcodes: ( mark, ] list, } dict, N None, q put, h get, \x85 tuple of one, \x86 of two, R call.
ORDERED_DICT = b"ccollections\nOrderedDict\nq\1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"(" * 600_000 + b".", "more than 500000 opcodes"),
        (  # lists of a thousand lists, of a thousand each
            b"]q\0(" + b"N" * 1000 + b"e]q\1(" + b"h\0" * 1000 + b"e](" + b"h\1" * 1000 + b"e.",
            "build more than 5000000 values",
        ),
        (  # a dictionary of 1000 entries, copied 10,000 times
            ORDERED_DICT
            + b"}q\2("
            + b"".join(b"M" + struct.pack("<H", k) + b"N" for k in range(1000))
            + b"u]("
            + b"h\1h\2\x85R" * 10_000
            + b"e.",
            "build more than 5000000 values",
        ),
        (  # a key whose hash takes 2**40 steps
            b"}Nq\0" + b"h\0h\0\x86q\0" * 40 + b"Ns.",
            "build more than 5000000 values",
        ),
        (b"\x8a\x01\0(X\xff\xff\xff\x7f" + b"a" * 5_000_000, "more than 4194304 bytes"),
        (b"h\7.", "its pickle is damaged"),
        (b"NR.", "its pickle is damaged"),
        (b"e.", "its pickle is damaged"),
    ],
    ids=["marks", "lists", "copies", "key", "text", "get", "call", "append"],
)
@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
def test_pickles_that_would_take_long_are_refused_unread(tmp_path, content, message, zipped):
    path = tmp_path / "a.pth"
    content = b"\x80\2" + content
    if zipped:
        torch.save({}, path)
        pickled = "a/data.pkl"
        rezip(path, lambda n, old: (content if n == pickled else old, zipfile.ZIP_STORED))
    else:
        path.write_bytes(legacy(content))
    with pytest.raises(ValueError, match=f"test: cannot read .*a.pth: .*{message}"):
        read_tensors("test", path)


def test_the_version_of_a_pickle_gives_no_warning(tmp_path, recwarn):
    path = tmp_path / "a.pth"
    torch.save({"x": torch.zeros(2)}, path)
    rezip(path, lambda name, old: (old.replace(b"\x80\2", b"\x80\5", 1), zipfile.ZIP_STORED))
    assert torch.equal(read_tensors("test", path)["x"], torch.zeros(2))
    assert not recwarn.list


def test_a_start_from_other_classes_says_so(tmp_path, capsys, checkpoint):
    arguments = "train --model ssd300 --width 0.0625 --no-batch-norm --scenes 2 --batch-size 2"
    arguments += " --iterations 1 --workers 0 --device cpu --prior-scales voc"
    arguments += f" --init {checkpoint} --out {tmp_path / 'run'}"
    assert cli.main(arguments.split()) == 0
    assert (
        "class scores are new, since the file has none of these classes" in capsys.readouterr().out
    )


def test_the_state_of_a_large_training_is_read(tmp_path):
    """A model of 2,000 tensors and its optimiser are far from the limits."""
    tensors = {f"layer{k}.weight": torch.zeros(1, 1) for k in range(2000)}
    groups = [{"params": list(range(2000)), "betas": (0.9, 0.999)}]
    state = {k: {"step": k, "exp_avg": torch.zeros(1, 1)} for k in range(2000)}
    content = {"model": tensors, "optimizer": {"state": state, "param_groups": groups}}
    torch.save(content, tmp_path / "a.pth")
    assert len(read_tensors("test", tmp_path / "a.pth")) == 2000


def test_zip_archives_whose_members_share_bytes_are_refused(tmp_path):
    """Such an archive can have more content than its size."""
    path = tmp_path / "a.pth"
    torch.save({"x": torch.zeros(50_000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for k in range(2):
            entry = copy.copy(largest)
            entry.filename = f"a/data/{k + 1}"
            archive.filelist.append(entry)
        archive._didModify = True  # write the list of members anew
    with pytest.raises(ValueError, match=r"a.pth: its members have \d+ bytes, the file has \d+"):
        read_tensors("test", path)


def test_zip_archives_of_very_many_members_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(3):
            archive.writestr(f"{k}/{'x' * 60_000}", b"")
        archive.filelist *= 30
    with pytest.raises(ValueError, match="pickles or lists has more than 4194304 bytes"):
        read_tensors("test", path)


def test_what_is_no_weights_is_named(tmp_path):
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    message = "load_pretrained: cannot read .*photo.jpg: it is a JPEG image, expected a safetensors"
    with pytest.raises(ValueError, match=message):
        ssd300(3, width=WIDTH, init=path)
    with pytest.raises(ValueError, match="the folder holds no checkpoint"):
        convert(tmp_path, tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.caffemodel", "a.json"])
def test_named_pipes_are_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises((OSError, ValueError), match="is a named pipe, expected a regular file"):
        load_pretrained(ssd300(2, width=WIDTH), tmp_path / name)


def test_safetensors_with_a_large_header_are_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**22 + 1).to_bytes(8, "little") + b"{" + b" " * 2**22)
    with pytest.raises(ValueError, match="its header has 4194305 bytes, expected at most 4194304"):
        read_tensors("test", path)


def test_caffe_models_larger_than_any_are_not_read(tmp_path):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(field(1, b"net"))
    with path.open("r+b") as file:
        file.truncate(2**31)  # a sparse file, which needs no space
    with pytest.raises(OSError, match="has 2.15 GB, expected at most 600 MB"):
        read_tensors("test", path)


def layer(name, *blobs):
    return field(100, field(1, name) + b"".join(field(7, blob) for blob in blobs))


@pytest.mark.parametrize(
    "content, message",
    [
        (layer(b"fc6", blob_bytes(torch.zeros(2), shape=[2**40, 2**20])), r"'fc6.weight': .* 8$"),
        (layer(b"fc6", blob_bytes(torch.zeros(2), shape=[2**64 - 2, 1])), "'fc6.weight': its sha"),
        (
            layer(b"fc6", field(7, field(1, b"\2"))),
            r"'fc6.weight': its shape \[2\].* the file has 0",
        ),
        (layer(b"fc6", blob_bytes(torch.zeros(1), shape=[1] * 5)), "expected at most 4 dimensions"),
        (layer(b"fc6", blob_bytes(torch.zeros(2))) * 2, "'fc6.weight' occurs twice"),
        (layer(b"fc6", b"\xff\xff"), "damaged one: byte 10 "),
        (layer(b"a") + layer(b"fc6", b"\xff\xff"), "damaged one: byte 16 "),
        (
            layer(b"fc6", b"\x2a\x05hell") + layer(b"a"),
            "at byte 10 ends at byte 17, the message around it at byte 16",
        ),
        (b"\xa2\x06\0" * 60_000, "a Caffe model of more than 100000 fields"),
        (layer(b"fc6", b"\x2a\0" * 60_000), "a Caffe model of more than 100000 fields"),
        (field(1, b"net"), r"a Caffe model without weights \(5 bytes\)"),
        (field(1, b"net") + b"\x0c", "byte 5 "),
        (b"\n" + b"\xff" * 20, "damaged one: byte 1 "),
        (b"\n\nhello", "byte 0 ends at byte 12, the file at byte 7"),
    ],
)
def test_damaged_caffe_models_are_refused(tmp_path, content, message):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"test: cannot read .*a.caffemodel: .*{message}"):
        read_tensors("test", path)


def protobufs_reader():
    """What the package protobuf makes of a Caffe model: the tensors, or None if it refuses it."""
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

    schema = {
        "Shape": [("dim", 1, 3, 3)],
        "Blob": [
            *((name, 1 + k, 3, 1) for k, name in enumerate(("num", "channels", "height", "width"))),
            ("data", 5, 12, 3),
            ("shape", 7, "Shape", 1),
        ],
        "Layer": [("name", 1, 12, 1), ("blobs", 7, "Blob", 3)],
        "OldLayer": [("name", 4, 12, 1), ("blobs", 6, "Blob", 3)],
        "Net": [("layers", 2, "OldLayer", 3), ("layer", 100, "Layer", 3)],
    }
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="c")
    for title, fields in schema.items():
        described = file.message_type.add(name=title)
        for name, number, kind, label in fields:
            one = described.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                one.type, one.type_name = one.TYPE_MESSAGE, f".c.{kind}"
            else:
                one.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    net = message_factory.GetMessageClass(pool.FindMessageTypeByName("c.Net"))

    def read(content):
        try:
            parsed = net.FromString(content)
        except message.DecodeError:
            return None
        return {
            (layer.name.decode(errors="replace"), part): b"".join(blob.data)
            for layer in (*parsed.layer, *parsed.layers)
            for part, blob in zip(("weight", "bias"), layer.blobs, strict=False)
        }

    return read


def test_caffe_models_are_read_as_by_protobuf():
    """Sound and damaged ones: what is read is what protobuf reads, and it refuses no less."""
    read = protobufs_reader()
    layers = {"fc6": [torch.randn(2, 3, 1, 1), torch.randn(2)], "b": [torch.randn(3)]}
    generator = np.random.default_rng(0)
    equal = 0
    for old in (False, True):
        content = caffemodel(layers, old)
        for place in [None, *generator.integers(0, len(content), 1000)]:
            damaged = bytearray(content)
            if place is not None:
                damaged[place] ^= int(generator.integers(1, 256))
            try:
                found = read_caffe(bytes(damaged))
            except ValueError:
                continue
            data = {tuple(k.rsplit(".", 1)): v.numpy().tobytes() for k, v in found.items()}
            assert data == read(bytes(damaged)), place
            equal += 1
    assert equal > 500


def test_any_changed_byte_gives_weights_or_a_named_error(tmp_path):
    layers = {"fc6": [torch.randn(2, 3, 1, 1), torch.randn(2)]}
    buffer = io.BytesIO()
    torch.save({"a": torch.randn(2, 3)}, buffer)
    path = tmp_path / "a"
    generator = np.random.default_rng(0)
    for content in (caffemodel(layers), buffer.getvalue()):
        for place in generator.integers(0, len(content), 200):
            damaged = bytearray(content)
            damaged[place] ^= int(generator.integers(1, 256))
            path.write_bytes(damaged)
            try:
                read_tensors("test", path)
            except ValueError as error:
                assert str(error).startswith(f"test: cannot read {path}: ")


# --- converted checkpoints -----------------------------------------------------------------------


def test_convert_makes_a_checkpoint_that_is_the_source(source, tmp_path, capsys):
    name, theirs = source
    path = write(name, theirs, tmp_path / "a.pth")
    out = tmp_path / "new.v2"
    arguments = ["convert", str(path), "--out", str(out), "--classes", "a,b,c,d"]
    assert cli.main([*arguments, "--prior-scales", "coco"]) == 0
    assert capsys.readouterr().out == (
        f"{name}: ssd300, 5 classes with background, prior scales coco: {out}.json\n"
    )
    model, meta = load_checkpoint(tmp_path / "new.v2.json")
    assert meta["classes"] == ["a", "b", "c", "d"]
    assert meta["training"] == {"source": path.name, "layout": name}
    assert meta["priors"]["clip_priors"] == {"torchvision": "size", "Caffe": False}.get(name, True)
    same = ssd300(5, width=WIDTH)
    assert meta["mean"] == list(load_pretrained(same, path).mean)
    for key, value in same.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_convert_knows_the_published_classes(tmp_path):
    names = {}
    for classes in (21, 81, 91, 201, 4):
        torch.manual_seed(0)
        torch.save(Amdegroot(classes).state_dict(), tmp_path / "a.pth")
        convert(tmp_path / "a.pth", tmp_path / f"{classes}.json")
        names[classes] = load_checkpoint(tmp_path / f"{classes}.json")[1]["classes"]
    assert names[21][::19] == ["aeroplane", "tvmonitor"] and len(names[21]) == 20
    assert names[81][::79] == ["person", "toothbrush"]
    assert names[91][12 - 1] == "unused 12" and names[91][90 - 1] == "toothbrush"
    assert [n for n in names[91] if not n.startswith("unused")] == names[81]
    assert names[201][:80] == names[81] and names[201][80] == "unused 81"
    assert names[4] == ["class 1", "class 2", "class 3"]


def test_convert_refuses_a_trunk(tmp_path):
    trunk = {
        f"{k}.{p}": v for k, m in enumerate(Amdegroot(2).vgg) for p, v in m.state_dict().items()
    }
    torch.save(trunk, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="convert: .*a.pth: is a VGG16 only"):
        convert(tmp_path / "a.pth", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_convert_says_that_a_checkpoint_is_one_already(checkpoint, tmp_path):
    for source in (checkpoint, checkpoint.parent, next(tmp_path.glob("*.safetensors"))):
        message = "is a checkpoint of mdssd already \\(ssd300, 3 classes with background\\)"
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / "out")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("suffix", ["pth", "caffemodel", "safetensors"])
def test_training_starts_from_a_published_ssd(tmp_path, capsys, suffix):
    torch.manual_seed(0)
    path = tmp_path / f"a.{suffix}"
    if suffix == "caffemodel":
        path.write_bytes(caffemodel(Caffe(6).layers()))
    elif suffix == "pth":
        torch.save(Amdegroot(6).state_dict(), path)
    else:
        safetensors.torch.save_file(Torchvision(6).state_dict(), path)
    arguments = "train --model mdssd300 --width 0.0625 --scenes 2 --batch-size 2 --epochs 1"
    arguments += f" --lr 1e-9 --workers 0 --init {path} --out {tmp_path / 'run'}"
    assert cli.main(arguments.split()) == 0
    text = capsys.readouterr().out
    assert f"62 of 128 tensors start from {path}; the others are new: " in text
    assert "; not used: " in text
    ssd = ssd300(6, width=WIDTH)
    taken = load_pretrained(ssd, path).taken
    trained = load_checkpoint(tmp_path / "run")[0].state_dict()
    start = ssd.state_dict()
    for name in set(taken) & set(trained):
        if trained[name].shape == start[name].shape:
            torch.testing.assert_close(trained[name], start[name])
