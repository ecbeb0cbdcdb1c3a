"""Training samples are the same for any number of workers, and different in each epoch."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mdssd.data import Augmentation, Sample, SyntheticScenes, TrainingSet, collate, worker_init


def epochs(workers, seed=0):
    """Two epochs of batches. Workers, if any, are kept for both."""
    data = TrainingSet(SyntheticScenes(6, image_size=96), Augmentation(64), seed=seed)
    loader = DataLoader(
        data,
        batch_size=4,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=worker_init,
        persistent_workers=workers > 0,
    )
    result = []
    for epoch in range(2):
        data.set_epoch(epoch)
        result.append(list(loader))
    return result


def same(first, second):
    for a, b in zip(first, second, strict=True):
        if not torch.equal(a[0], b[0]):
            return False
        for left, right in zip(a[1] + a[2], b[1] + b[2], strict=True):
            if not torch.equal(left, right):
                return False
    return True


def test_samples_do_not_depend_on_the_workers():
    alone, two = epochs(0), epochs(2)
    assert same(alone[0], two[0]) and same(alone[1], two[1])
    assert not torch.equal(alone[0][0][0], alone[1][0][0])


def test_seed_epoch_and_index_decide():
    scenes = SyntheticScenes(3, image_size=96)
    data = TrainingSet(scenes, Augmentation(64), seed=1)
    data.set_epoch(5)
    first = data[1][0]
    data[0], data[2]
    assert torch.equal(data[1][0], first)
    again = TrainingSet(scenes, Augmentation(64), seed=1)
    assert not torch.equal(again[1][0], first)
    again.set_epoch(5)
    assert torch.equal(again[1][0], first)
    other = TrainingSet(scenes, Augmentation(64), seed=2)
    other.set_epoch(5)
    assert not torch.equal(other[1][0], first)
    assert len(data) == 3


def test_collate_keeps_channels_last_and_ragged_boxes():
    plain = Augmentation(32, expand=1, photometric=False, crop=False, mirror=False)
    data = TrainingSet(SyntheticScenes(3, image_size=96, objects=(0, 60)), plain)
    batch = [data[k] for k in range(3)]
    images, boxes, labels = collate(batch)
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    for k in range(3):
        assert torch.equal(images[k], batch[k][0])
        assert torch.equal(boxes[k], batch[k][1]) and torch.equal(labels[k], batch[k][2])


def test_negative_seed_and_epoch():
    scenes = SyntheticScenes(1)
    with pytest.raises(ValueError, match="TrainingSet: seed must not be negative, got -1"):
        TrainingSet(scenes, Augmentation(64), seed=-1)
    with pytest.raises(ValueError, match="set_epoch: epoch must not be negative, got -1"):
        TrainingSet(scenes, Augmentation(64)).set_epoch(-1)


def test_sample_checks_its_lengths():
    boxes = np.zeros((2, 4), np.float32)
    image = np.zeros((5, 5, 3), np.uint8)
    sample = Sample(image, boxes, np.array([1, 2]), np.zeros(2, bool), "a")
    assert sample.crowd.tolist() == [False, False] and sample.area.tolist() == [0, 0]
    with pytest.raises(ValueError, match="Sample: labels: expected 2 entries, one per box, got 1"):
        Sample(image, boxes, np.array([1]), np.zeros(2, bool), "a")
