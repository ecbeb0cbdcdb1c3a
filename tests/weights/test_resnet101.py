"""ImageNet weights of torchvision's ResNet-101."""

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

import mdssd
from mdssd import load_pretrained
from mdssd.models import MEAN_RGB
from mdssd.weights.imagenet import load_resnet101, load_vgg16


def on_meta(name):
    with torch.device("meta"):
        return getattr(mdssd, name)()


def resnet_state_dict(blocks=(3, 4, 23, 3)):
    """A state dict like torchvision's; the tensors are expanded, so they need no memory.

    The n-th tensor holds n / 1024.
    """
    state = {}

    def add(name, *shape):
        state[name] = torch.tensor(len(state) / 1024).expand(shape)

    def add_bn(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            add(f"{name}.{part}", channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(5)

    add("conv1.weight", 64, 3, 7, 7)
    add_bn("bn1", 64)
    into = 64
    for layer, (count, mid) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
        for k in range(count):
            name = f"layer{layer}.{k}"
            for n, shape in enumerate(
                ((mid, into, 1, 1), (mid, mid, 3, 3), (4 * mid, mid, 1, 1)), start=1
            ):
                add(f"{name}.conv{n}.weight", *shape)
                add_bn(f"{name}.bn{n}", shape[0])
            if k == 0:
                add(f"{name}.downsample.0.weight", 4 * mid, into, 1, 1)
                add_bn(f"{name}.downsample.1", 4 * mid)
            into = 4 * mid
    add("fc.weight", 1000, 2048)
    add("fc.bias", 1000)
    return state


@pytest.fixture(scope="module")
def model():
    """A full-size model in which only the trunk is allocated."""
    model = on_meta("dssd321")
    model.trunk.to_empty(device="cpu")
    return model


def test_load_resnet101(model):
    state = resnet_state_dict()
    load_resnet101(model, state, rescale_input=False)
    own = model.trunk.state_dict()
    assert set(state) - set(own) == {"fc.weight", "fc.bias"}
    for name, tensor in own.items():
        assert torch.equal(tensor, state[name]), name
    without = {k: v for k, v in state.items() if "num_batches" not in k and not k.startswith("fc.")}
    load_pretrained(model, without)
    assert model.trunk.bn1.num_batches_tracked == 0


def test_load_resnet101_takes_torchvisions_input_scale_into_the_first_layer(model):
    torch.manual_seed(0)
    state = resnet_state_dict()
    weight, mean = torch.randn(64, 3, 7, 7), torch.randn(64)
    state |= {"conv1.weight": weight, "bn1.running_mean": mean, "bn1.running_var": torch.rand(64)}
    load_resnet101(model, state)
    rgb = torch.rand(1, 3, 20, 20) * 255
    theirs = rgb / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    theirs = theirs / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    ours = rgb - torch.tensor(MEAN_RGB)[:, None, None]
    trunk = model.trunk.eval()
    expected = F.batch_norm(
        F.conv2d(theirs, weight, stride=2), mean, state["bn1.running_var"],
        state["bn1.weight"], state["bn1.bias"], eps=1e-3,
    )  # fmt: skip
    with torch.no_grad():
        got = trunk.bn1(F.conv2d(ours, trunk.conv1.weight, stride=2))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def change(key, value):
    return lambda state: state | {key: value}


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            change("layer3.22.conv2.weight", torch.zeros(256, 128, 3, 3)),
            r"'layer3.22.conv2.weight' must have shape \[256, 256, 3, 3\], got \[256, 128, 3, 3\]",
        ),
        (change("layer1.0.bn1.weight", None), "lacks 'layer1.0.bn1.weight'"),
        (lambda state: {"state_dict": state}, r"lacks 'conv1.weight'.* got keys \['state_dict'\]"),
        (change("bn1.bias", torch.tensor(torch.nan).expand(64)), "bn1.bias has NaN or infinity"),
        (
            change("bn1.running_var", torch.full((64,), -1.0)),
            "bn1.running_var has a negative variance",
        ),
        (change("bn1.bias", torch.zeros(64).int()), "'bn1.bias' must be of floating point"),
        (lambda state: resnet_state_dict((3, 4, 6, 3)), "lacks 'layer3.6.conv1.weight'"),
        (lambda state: resnet_state_dict((3, 8, 36, 3)), "holds 'layer2.4.conv1.weight', which"),
    ],
    ids=["shape", "missing", "nested", "nan", "variance", "integers", "resnet50", "resnet152"],
)
def test_load_resnet101_refuses_other_weights(model, edit, message):
    with torch.no_grad():
        model.trunk.conv1.weight.fill_(7)
    with pytest.raises(ValueError, match=f"load_resnet101: weights.*{message}"):
        load_pretrained(model, edit(resnet_state_dict()))
    assert (model.trunk.conv1.weight == 7).all()


def test_weights_of_the_other_backbone_are_refused(model):
    with pytest.raises(ValueError, match="load_resnet101: .* lacks 'conv1.weight'"):
        load_pretrained(model, {"features.0.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(ValueError, match="load_pretrained: .* torchvision's vgg16, got"):
        load_pretrained(on_meta("ssd300"), resnet_state_dict())
    with pytest.raises(ValueError, match="load_vgg16: model must have a VGG16 trunk"):
        load_vgg16(model, {})
    with pytest.raises(ValueError, match="ResNet-101 trunk.* got Linear"):
        load_resnet101(nn.Linear(2, 2), {})
    with pytest.raises(ValueError, match="width=1"):
        load_resnet101(mdssd.ssd321(2, width=0.0625), {})


def test_load_resnet101_from_files(model, tmp_path):
    state = {k: v for k, v in resnet_state_dict((1, 1, 1, 1)).items() if not k.startswith("fc.")}
    for name, save in (("a.pth", torch.save), ("b.pth", safetensors.torch.save_file)):
        path = tmp_path / name
        save({k: v.contiguous() for k, v in state.items()}, path)
        with pytest.raises(ValueError, match=f"load_resnet101: .*{name} lacks 'layer1.1.conv1"):
            load_pretrained(model, path)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(ValueError, match=f"load_resnet101: cannot read .*{name}"):
            load_pretrained(model, str(path))
