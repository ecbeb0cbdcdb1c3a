"""ImageNet weights of torchvision's VGG16, as SSD reduces them."""

import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from mdssd import mdssd300, ssd300
from mdssd.models import MEAN_RGB
from mdssd.weights.imagenet import load_vgg16

FEATURES = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256)}
FEATURES |= {14: (256, 256), 17: (512, 256)} | {k: (512, 512) for k in (19, 21, 24, 26, 28)}


def vgg16_state_dict():
    """A state dict like torchvision's; large tensors are expanded, so they need no memory."""
    state = {}
    for index, (out, into) in FEATURES.items():
        state[f"features.{index}.weight"] = torch.tensor(index / 100).expand(out, into, 3, 3)
        state[f"features.{index}.bias"] = torch.arange(out) / 64
    # The value of each fc6 weight is the index of its output.
    rows = torch.arange(4096.0)
    state["classifier.0.weight"] = rows[:, None].expand(4096, 25088)
    state["classifier.0.bias"] = rows
    state["classifier.3.weight"] = rows[:, None] + rows / 8192
    state["classifier.3.bias"] = rows + 0.5
    state["classifier.6.weight"] = torch.zeros(1).expand(1000, 4096)
    state["classifier.6.bias"] = torch.zeros(1000)
    return state


def on_meta(make, **options):
    with torch.device("meta"):
        return make(2, **options)


def empty_model():
    """A full-size model whose weights are not drawn, to save time."""
    return on_meta(ssd300).to_empty(device="cpu")


def test_load_vgg16_sub_samples_fc6_and_fc7():
    model = empty_model()
    load_vgg16(model, vgg16_state_dict(), rescale_input=False)
    trunk = model.trunk
    kept = torch.arange(0, 4096.0, 4)
    assert torch.equal(trunk.fc6.conv.weight, kept[:, None, None, None].expand(1024, 512, 3, 3))
    assert torch.equal(trunk.fc6.conv.bias, kept)
    assert torch.equal(trunk.fc7.conv.weight[:, :, 0, 0], kept[:, None] + kept / 8192)
    assert torch.equal(trunk.fc7.conv.bias, kept + 0.5)
    assert (trunk.conv1.conv1_1.conv.weight == 0).all()
    assert (trunk.conv4.conv4_3.conv.weight == 0.21).all()
    assert torch.equal(trunk.conv5.conv5_3.conv.bias, torch.arange(512) / 64)

    state = vgg16_state_dict()
    state["classifier.0.weight"] = torch.arange(25088.0).expand(4096, 25088)
    load_vgg16(model, state)
    channel, row, column = 300, 2, 1
    expected = channel * 49 + (row * 3) * 7 + column * 3
    assert trunk.fc6.conv.weight[7, channel, row, column] == expected


def test_load_vgg16_takes_torchvisions_input_scale_into_conv1_1():
    torch.manual_seed(0)
    state = vgg16_state_dict()
    weight, bias = torch.randn(64, 3, 3, 3), torch.randn(64)
    state["features.0.weight"], state["features.0.bias"] = weight, bias
    model = empty_model()
    load_vgg16(model, state)
    rgb = torch.rand(1, 3, 9, 9) * 255
    theirs = rgb / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    theirs = theirs / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    ours = rgb - torch.tensor(MEAN_RGB)[:, None, None]
    expected = nn.functional.conv2d(theirs, weight, bias)
    conv = model.trunk.conv1.conv1_1.conv
    got = nn.functional.conv2d(ours, conv.weight, conv.bias)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def small(state):
    return {k: v for k, v in state.items() if k.startswith("features.")}


def change(key, value):
    def edit(state):
        state[key] = value
        return state

    return edit


@pytest.mark.parametrize(
    "edit, message",
    [
        (small, "lacks 'classifier.0.weight'"),
        (lambda state: {"state_dict": state}, "lacks 'features.0.weight'.*got keys"),
        (
            change("features.14.weight", torch.zeros(256, 128, 3, 3)),
            r"'features.14.weight' must have shape \[256, 256, 3, 3\], got \[256, 128, 3, 3\]",
        ),
        (change("features.1.running_mean", torch.zeros(64)), "vgg16_bn"),
        (change("classifier.3.bias", torch.tensor(torch.nan).expand(4096)), "not finite"),
        (change("classifier.3.bias", torch.zeros(4096, dtype=torch.complex64)), "floating point"),
    ],
)
def test_load_vgg16_refuses_other_weights(edit, message):
    model = empty_model()
    nn.init.constant_(model.trunk.conv1.conv1_1.conv.weight, 7.0)
    with pytest.raises(ValueError, match=f"load_vgg16: weights.*{message}"):
        load_vgg16(model, edit(vgg16_state_dict()))
    assert (model.trunk.conv1.conv1_1.conv.weight == 7).all()


def test_load_vgg16_refuses_other_models():
    with pytest.raises(ValueError, match="width=1"):
        load_vgg16(ssd300(2, width=0.5), {})
    with pytest.raises(ValueError, match="batch_norm=False"):
        load_vgg16(on_meta(mdssd300, batch_norm=True), {})
    with pytest.raises(ValueError, match="VGG16 trunk.* got Linear"):
        load_vgg16(nn.Linear(2, 2), {})


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was executed')",)


def test_load_vgg16_from_files(tmp_path):
    model = on_meta(ssd300)
    state = small(vgg16_state_dict())
    # The content decides the format, not the name: every file is read, then found incomplete.
    for name, save in (
        ("a.pth", safetensors.torch.save_file),
        ("b.safetensors", torch.save),
        ("c.pth", lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False)),
    ):
        path = tmp_path / name
        save({k: v.contiguous() for k, v in state.items()}, path)
        with pytest.raises(ValueError, match=f"{name} lacks 'classifier.0.weight'"):
            load_vgg16(model, path)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            load_vgg16(model, str(path))
    bad = tmp_path / "bad.pth"
    torch.save(torch.zeros(3), bad)
    with pytest.raises(ValueError, match="bad.pth: expected a dictionary of tensors, got Tensor"):
        load_vgg16(model, bad)
    for content in (b"", b"hello, world", pickle.dumps(Bomb(), 2), pickle.dumps(Bomb(), 4)):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="load_vgg16: cannot read .*bad.pth: ."):
            load_vgg16(model, bad)
    torch.save({"x": Bomb()}, bad)
    with pytest.raises(ValueError, match="cannot read .*bad.pth"):
        load_vgg16(model, bad)
    with pytest.raises(FileNotFoundError):
        load_vgg16(model, tmp_path / "absent.pth")
