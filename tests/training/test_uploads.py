"""A training step copies its batch to a GPU without waiting for the GPU."""

import pytest
import torch

from mdssd import mdssd300
from mdssd.data import preprocess, subtract_mean
from mdssd.models import MEAN_RGB
from mdssd.training import step as step_module
from mdssd.training.settings import Recipe
from mdssd.training.step import TrainingStep


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("counts", [[3, 0, 1], [0, 0], [1]])
def test_boxes_and_labels_travel_as_one(counts, dtype):
    boxes = [torch.rand(count, 4, dtype=dtype) for count in counts]
    labels = [torch.randint(1, 2**40, (count,)) for count in counts]
    packed = step_module._packed(boxes, labels)
    assert packed.dtype == torch.uint8 and packed.ndim == 1
    there = step_module._unpacked(packed, counts, dtype)
    for got, want in zip(there, (boxes, labels), strict=True):
        assert [each.shape for each in got] == [each.shape for each in want]
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_the_mean_is_copied_to_a_device_once(monkeypatch):
    preprocess._on_device.cache_clear()
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    made, tensor = [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: made.append(a) or tensor(*a, **k))
    with torch.inference_mode():
        subtract_mean(images)
    for _ in range(3):
        assert subtract_mean(images)[1, :, 0, 0].tolist() == [-mean for mean in MEAN_RGB]
    assert len(made) == 1
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (subtract_mean(images) * weight).sum().backward()  # not a tensor of inference mode


def test_training_lets_cudnn_choose_algorithms_by_their_shapes_alone():
    settings = Recipe(lr=1e-3, epochs=1)
    TrainingStep.create(mdssd300(4, width=0.0625), settings, torch.device("cpu"), {})
    assert not torch.backends.cudnn.benchmark


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_training_step_waits_for_nothing():
    settings = Recipe(lr=1e-3, epochs=1)
    step = TrainingStep.create(mdssd300(4, width=0.0625), settings, torch.device("cuda"), {})
    boxes = [torch.tensor([[0.1, 0.1, 0.5, 0.6]]), torch.zeros(0, 4)]
    labels = [torch.tensor([2]), torch.zeros(0, dtype=torch.int64)]
    images = torch.zeros(2, 3, 300, 300, dtype=torch.uint8).pin_memory()
    for sync in ("default", "default", "error"):
        torch.cuda.set_sync_debug_mode(sync)
        try:
            batch = subtract_mean(images.to("cuda", non_blocking=True))
            step.backward(batch, boxes, labels)
            step.update(1e-3, 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
