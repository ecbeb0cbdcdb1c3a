"""Tiles as more priors: one `detection_output`, or one per tile and `merge_boxes`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdssd import ops
from mdssd.testing import random_priors

SIDE, STEP, TILES, PRIORS, CLASSES = 300.0, 200.0, 6, 150, 4
LIMITS = {"score_threshold": 0.05, "top_k": TILES * PRIORS, "max_detections": TILES * PRIORS * 3}


def network_outputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return loc [T, N, 4] and logits [T, N, C] of the tiles, and the priors [N, 4] from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(TILES, PRIORS, 4, generator=generator)
    logits = 2 * torch.randn(TILES, PRIORS, CLASSES, generator=generator)
    return loc, logits, random_priors(generator, PRIORS)


def offsets() -> Tensor:
    """Return the left upper corners [T, 2] of tiles in two rows, in pixels."""
    place = torch.arange(TILES)
    return STEP * torch.stack([place % 3, place // 3], 1).float()


@pytest.mark.parametrize("metric", ["iou", "ios"])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_both_ways_find_the_same(backend: str, metric: str) -> None:
    loc, logits, priors = network_outputs()
    with ops.backend(backend):
        # The priors of all tiles, in pixels of the image. Offsets are relative to a prior's size.
        moved = (SIDE * priors).repeat(TILES, 1, 1)
        moved[:, :, :2] += offsets()[:, None]
        joint = ops.detection_output(
            loc.reshape(1, -1, 4),
            logits.reshape(1, -1, CLASSES),
            moved.reshape(-1, 4),
            metric=metric,
            **LIMITS,
        )
        # All candidates of each tile: an overlap of at most 1 suppresses nothing.
        found = ops.detection_output(loc, logits, SIDE * priors, nms_threshold=1.0, **LIMITS)
        used = torch.arange(found.boxes.shape[1]) < found.count[:, None]
        boxes = found.boxes + offsets().repeat(1, 2)[:, None]
        merged = ops.merge_boxes(
            boxes[used],
            found.scores[used],
            found.labels[used],
            method="nms",
            metric=metric,
            threshold=0.45,
        )
    count = int(joint.count)
    assert 100 < count < int(found.count.sum())  # some were suppressed, and not by a limit
    assert len(merged.boxes) == count
    torch.testing.assert_close(merged.scores, joint.scores[0, :count])
    torch.testing.assert_close(merged.boxes, joint.boxes[0, :count], rtol=0, atol=1e-3)
    assert merged.labels.tolist() == joint.labels[0, :count].tolist()
