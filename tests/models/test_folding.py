"""Batch normalisation folded into convolutions: the same values, and nothing is left of it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mdssd import Detector
from mdssd.models.build import build
from mdssd.models.folding import fold_batch_norm
from mdssd.weights.checkpoint import save_checkpoint


def with_statistics(name, **options):
    """Return a model whose batch normalisation does something."""
    torch.manual_seed(0)
    options = {"num_classes": 3, "width": 0.0625, "batch_norm": True, **options}
    model = build({"model": name, **options}).eval()
    for norm in norms_of(model):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.8, 1.25)
        nn.init.uniform_(norm.weight, 0.8, 1.25)
        nn.init.normal_(norm.bias, std=0.1)
    return model


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(("name", "side"), [("mdssd300", 300), ("ssd300", 300), ("ssd321", 321)])
def test_models_keep_their_values(name, side):
    model = with_statistics(name)
    folded = copy.deepcopy(model)
    assert fold_batch_norm(folded) == len(norms_of(model)) > 20 and not norms_of(folded)
    with torch.inference_mode():
        images = torch.randn(1, 3, side, side)
        for want, got in zip(model(images), folded(images), strict=True):
            assert want.isfinite().all()
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_efficientnet_lite0_is_folded():
    model = with_statistics("ssd300", trunk="efficientnet_lite0")
    folded = copy.deepcopy(model)
    # 11 blocks of 3, of which the first has 2, and the stem; 4 extra layers of 2.
    assert fold_batch_norm(folded) == 33 + 8 and not norms_of(folded)
    with torch.inference_mode():
        images = torch.randn(1, 3, 300, 300)
        for want, got in zip(model(images), folded(images), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_the_layers_of_dssd_are_all_folded():
    folded = build({"model": "dssd321", "num_classes": 3, "width": 0.01, "batch_norm": True}).eval()
    assert fold_batch_norm(folded) > 100 and not norms_of(folded)


def test_only_what_follows_a_convolution_is_folded():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn2 = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)
            self.first, self.second = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)
            self.row = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1))

    model = Odd().eval()
    assert fold_batch_norm(model) == 0 and len(norms_of(model)) == 3


def test_transposed_convolutions():
    block = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 2), nn.BatchNorm2d(3)).eval()
    nn.init.uniform_(block[1].running_var, 0.5, 2)
    nn.init.uniform_(block[1].weight, 0.5, 2)
    x = torch.randn(2, 2, 5, 5)
    want = block(x)
    assert fold_batch_norm(block) == 1
    torch.testing.assert_close(block(x), want)


def test_a_detector_of_a_checkpoint_has_folded_weights(tmp_path):
    model = with_statistics("ssd300")
    path = tmp_path / "a.json"
    save_checkpoint(path, model, classes=["a", "b"], mean=(123, 117, 104), extra={})
    folded = Detector.from_checkpoint(path, device="cpu")
    assert not norms_of(folded.model)
    own = Detector(model, classes=["a", "b"], mean=(123, 117, 104))
    assert norms_of(own.model)  # which a caller may go on training
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    (got,), (want,) = folded(image), own(image)
    assert torch.allclose(got["scores"][:20], want["scores"][:20], atol=1e-5)
