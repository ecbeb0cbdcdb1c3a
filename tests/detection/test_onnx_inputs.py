"""ONNX models of every family with inputs that no paper has."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import mdssd
from mdssd import ops
from mdssd.detection.export import export
from mdssd.models import MEAN_RGB
from mdssd.priors.maps import width_height


def random_model(name):
    """A model with random weights, a batch for it, and the batch as the network takes it.

    Batch norm gets the statistics of the batch. Without them the values of ResNet-101 grow from
    layer to layer.
    """
    torch.manual_seed(0)
    model = mdssd.create(name, 3, width=0.0625, prior_scales="coco")
    width, height = width_height(model.input_size)
    blocks = np.random.default_rng(0).integers(0, 256, (2, height // 16, width // 16, 3), np.uint8)
    pixels = blocks.repeat(16, 1).repeat(16, 2)
    images = (torch.from_numpy(pixels) - torch.tensor(MEAN_RGB)).permute(0, 3, 1, 2)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        model.train()(images)
    return model.eval(), pixels, images


@pytest.mark.nightly("exports ResNet-101, which takes half a minute")
@pytest.mark.parametrize(
    "name", ["dssd416", "dssd640x384", "resnetssd640", "resnetssd352x576", "mdssd640x384", "ssd448"]
)
def test_an_onnx_model_is_as_near_to_the_exact_values_as_the_network(name, tmp_path):
    """Rounding in 150 layers of random weights differs by more than a tolerance would show."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, pixels, images = random_model(name)
    with torch.no_grad():
        network = model(images)
        exact = copy.deepcopy(model).double()(images.double())
    export(model, tmp_path / "m.onnx", classes=["a", "b"])
    proto = onnx.load(tmp_path / "m.onnx")
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None)
        for value in ("loc", "logits")
    )
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    boxes, scores, _, count, *values = session.run(None, {"pixels": pixels})
    for value, other, wanted in zip(values, network, exact, strict=True):
        error, usual = (np.asarray(v, np.float64) - wanted.numpy() for v in (value, other))
        size = float(wanted.square().mean().sqrt())
        most = 3 * float(np.sqrt(np.square(usual).mean())) + 1e-6 * size
        assert most < 0.05 * size
        assert np.sqrt(np.square(error).mean()) < most
    found = ops.detection_output(*map(torch.from_numpy, values), model.priors)
    np.testing.assert_array_equal(count, found.count.numpy())
    np.testing.assert_allclose(scores, found.scores.numpy(), rtol=1e-4, atol=1e-5)
    assert np.isfinite(boxes).all()
