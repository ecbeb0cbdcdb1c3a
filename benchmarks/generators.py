"""Generate the inputs of the benchmarks from seeds, so that they are the same on every machine.

The functions create tensors on the CPU; `to` moves them to another device. If a GPU is only
pretended, the inputs are small.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.machine import pretended
from mdssd import ops
from mdssd.models.build import input_size
from mdssd.ops.reference.boxes import to_xyxy
from mdssd.priors import make_priors, mdssd_prior_layers, ssd_prior_layers

_MOST = 64  # priors or boxes on a pretended GPU


def at_most(count: int, most: int = _MOST) -> int:
    """Return `count`, or `most` if that is less and the GPU is only pretended."""
    return min(count, most) if pretended() else count


@cache
def priors(model: str) -> Tensor:
    """Return the priors [N, 4] cxcywh of "ssd300", "mdssd300", "ssd512" or "mdssd512"."""
    size = input_size(model)
    layers = mdssd_prior_layers if model.startswith("mdssd") else ssd_prior_layers
    made = make_priors(layers(size), size)
    return made[:: len(made) // at_most(len(made))]


def to(device: str, value: Any) -> Any:
    """Move a tensor, or the tensors of a tuple or list, to a device."""
    if isinstance(value, tuple | list):
        moved = [to(device, item) for item in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    return value.to(device) if isinstance(value, Tensor) else value


def small_boxes(generator: torch.Generator, count: int) -> Tensor:
    """Return boxes [count, 4] xyxy inside the image, of 3% to 20% of its side."""
    middle = torch.rand(count, 2, generator=generator) * 0.8 + 0.1
    side = 0.03 * (0.2 / 0.03) ** torch.rand(count, 1, generator=generator)
    stretch = 2 ** (torch.rand(count, 1, generator=generator) - 0.5)
    half = torch.cat([side * stretch, side / stretch], 1) / 2
    return torch.cat([middle - half, middle + half], 1)


class NetworkOutput(NamedTuple):
    loc: Tensor  # [B, N, 4]
    logits: Tensor  # [B, N, C]
    priors: Tensor  # [N, 4] cxcywh


@lru_cache(maxsize=2)
def network_output(
    model: str, classes: int, candidates: int | None, count: int | None = None
) -> NetworkOutput:
    """Return the output of a network for one image.

    Args:
        model, classes: Determine the priors and the number of classes.
        candidates: Number of scores above 0.01, as in a trained network. Half of them belong to the
            priors that fit 30 objects best and whose boxes lie near these; the other half are low
            scores of random priors. If None, all scores are above 0.01, as in an untrained network.
        count: Number of priors to keep, spread over the image. None keeps all.
    """
    generator = torch.Generator().manual_seed(classes)
    prior = priors(model)
    count = at_most(count or len(prior))
    prior = prior[:: len(prior) // count][:count]
    shape = (1, len(prior))
    loc = 0.5 * torch.randn(*shape, 4, generator=generator)
    if candidates is None:
        # The scores differ by at most a fifth, so that even with 81 classes all exceed 0.01.
        logits = 0.2 * torch.rand(*shape, classes, generator=generator)
        return NetworkOutput(loc, logits, prior)
    logits = torch.randn(*shape, classes, generator=generator)
    logits[..., 0] += 14
    objects = small_boxes(generator, 30)
    iou, which = ops.box_iou(to_xyxy(prior), objects).max(1)
    hit = iou.topk(min(candidates, len(prior)) // 2).indices
    label = torch.randint(1, classes, (30,), generator=generator)[which[hit]]
    logits[0, hit, label] = 14 + 1.5 * torch.randn(len(hit), generator=generator)
    near = ops.encode_boxes(objects[which[hit]], prior[hit])
    loc[0, hit] = near + 0.3 * torch.randn(near.shape, generator=generator)
    low = torch.randint(len(prior), (len(hit),), generator=generator)
    label = torch.randint(1, classes, (len(hit),), generator=generator)
    logits[0, low, label] = logits[0, low, 0] - 3 + 0.5 * torch.randn(len(hit), generator=generator)
    return NetworkOutput(loc, logits, prior)


class RetinaOutput(NamedTuple):
    loc: Tensor  # [1, N, 4]
    logits: Tensor  # [1, N, C], before the sigmoid
    priors: Tensor  # [N, 4] cxcywh, in pixels
    levels: tuple[int, ...]  # priors of each feature map, with the sum N
    width: float  # of the image, in pixels
    height: float


@lru_cache(maxsize=1)
def retina_output(width: int, height: int, classes: int, kind: str) -> RetinaOutput:
    """Return the output of a RetinaNet for one image: five maps with 9 anchors a cell.

    Args:
        width, height: Size of the image.
        classes: Number of classes; there is no background.
        kind: "trained": about 1,500 anchors fit 30 objects, and almost all other scores are far
            below 0.05. "early": one score in twenty is above it.
    """
    generator = torch.Generator().manual_seed(width + classes)
    maps = []
    for stride in (8, 16, 32, 64, 128):
        across, down = -(-width // stride), -(-height // stride)
        x, y = torch.meshgrid(torch.arange(across), torch.arange(down), indexing="xy")
        cells = (torch.stack([x, y], 2).reshape(-1, 1, 2) + 0.5) * stride
        scale = 4 * stride * 2 ** (torch.arange(3) / 3)
        stretch = torch.tensor([0.5, 1.0, 2.0]).sqrt()
        sides = (scale[:, None, None] * torch.stack([stretch, 1 / stretch], 1)).reshape(1, 9, 2)
        both = cells.expand(-1, 9, 2), sides.expand(len(cells), 9, 2)
        maps.append(torch.cat(both, 2).reshape(-1, 4)[: at_most(9 * len(cells), 60)])
    anchors = torch.cat(maps)
    loc = 0.3 * torch.randn(1, len(anchors), 4, generator=generator)
    logits = torch.randn(1, len(anchors), classes, generator=generator)
    logits += -8.0 if kind == "trained" else -4.6
    objects = torch.randint(len(anchors), (30,), generator=generator)
    for at in objects.tolist():
        reach = (anchors - anchors[at]).abs() / anchors[at, 2:].repeat(2)
        near = reach.sum(1).topk(at_most(50, 5), largest=False).indices
        label = int(torch.randint(classes, (), generator=generator))
        logits[0, near, label] = 1.5 * torch.randn(len(near), generator=generator)
    levels = tuple(len(level) for level in maps)
    return RetinaOutput(loc, logits, anchors, levels, float(width), float(height))


class Scored(NamedTuple):
    boxes: Tensor  # [N, 4] xyxy
    scores: Tensor  # [N], distinct
    classes: Tensor | None  # [N] int64


@lru_cache(maxsize=2)
def scored_boxes(count: int, kind: str = "crowded", classes: int | None = None) -> Scored:
    """Return boxes for NMS.

    Args:
        count: Number of boxes.
        kind: "crowded" places 50 boxes of the same size around each of count / 50 objects. "spread"
            returns small boxes, few of which overlap.
        classes: If given, box i has class i % classes, and each class has its own objects.
    """
    count = at_most(count)
    generator = torch.Generator().manual_seed(count)
    if kind == "crowded":
        groups = classes or 1
        cells = torch.stack([torch.randperm(400, generator=generator) for _ in range(groups)])
        objects = min(400, max(1, count // 50 // groups))
        which = torch.randint(objects, (count,), generator=generator)
        # Each object has a cell of a 20 x 20 grid.
        cell = cells[torch.arange(count) % groups, which]
        shift = 0.08 * torch.rand(count, 2, generator=generator)
        middle = (torch.stack([cell % 20, cell // 20], 1) + 0.5 + shift) / 20
        half = torch.full((count, 2), 0.02)
    else:
        middle = torch.rand(count, 2, generator=generator)
        half = torch.full((count, 2), 0.0016)
    scores = (torch.randperm(count, generator=generator) + 1) / (count + 1)
    group = None if classes is None else torch.arange(count) % classes
    return Scored(torch.cat([middle - half, middle + half], 1), scores, group)


@lru_cache(maxsize=2)
def tiled_boxes(count: int, kind: str, classes: int) -> Scored:
    """Return boxes in whole pixels, so that all tools compute the same areas.

    Args:
        count: Number of boxes.
        kind: "objects" places 50 boxes around each object, as `scored_boxes` does, in an image of
            4,000 pixels. "piled" places boxes of 1 to 40 pixels at random in a square of 80, so
            that most of them meet one another.
        classes: Box i has class i % classes.
    """
    if kind == "objects":
        x = scored_boxes(count, "crowded", classes)
        return x._replace(boxes=(4000 * x.boxes).round())
    count = at_most(count)
    generator = torch.Generator().manual_seed(count)
    corner = torch.randint(80, (count, 2), generator=generator)
    size = torch.randint(1, 41, (count, 2), generator=generator)
    scores = (torch.randperm(count, generator=generator) + 1) / (count + 1)
    boxes = torch.cat([corner, corner + size], 1).float()
    return Scored(boxes, scores, torch.arange(count) % classes)


class Truth(NamedTuple):
    boxes: list[Tensor]  # per image [M, 4] xyxy
    labels: list[Tensor]  # per image [M] int64, from 1


def truth(images: int, boxes: int) -> Truth:
    """Return `boxes` small objects of 20 classes for each image."""
    generator = torch.Generator().manual_seed(boxes)
    return Truth(
        [small_boxes(generator, boxes) for _ in range(images)],
        [torch.randint(1, 21, (boxes,), generator=generator) for _ in range(images)],
    )


class Maps(NamedTuple):
    a: Tensor  # [B, C, H, W]
    b: Tensor
    scale_a: Tensor  # [C]
    scale_b: Tensor


@lru_cache(maxsize=2)
def maps(shape: tuple[int, int, int, int], channels_last: bool) -> Maps:
    """Return two feature maps after a ReLU, and their scales of about 20."""
    shape = (*shape[:2], at_most(shape[2], 5), at_most(shape[3], 5))
    generator = torch.Generator().manual_seed(shape[1])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    a, b = (
        torch.randn(shape, generator=generator).relu().contiguous(memory_format=layout)
        for _ in range(2)
    )
    scale_a, scale_b = (20 + torch.randn(shape[1], generator=generator) for _ in range(2))
    return Maps(a, b, scale_a, scale_b)


class LossInput(NamedTuple):
    loc: Tensor  # [B, N, 4]
    logits: Tensor  # [B, N, C]
    loc_targets: Tensor  # [B, N, 4]
    labels: Tensor  # [B, N] int64


@lru_cache(maxsize=1)
def loss_input(model: str, images: int, classes: int) -> LossInput:
    """Return network outputs, and the targets for ten small objects in each image."""
    generator = torch.Generator().manual_seed(images)
    targets = ops.encode_targets(*truth(images, 10), priors(model))
    shape = targets.labels.shape
    loc = torch.randn(*shape, 4, generator=generator)
    logits = torch.randn(*shape, classes, generator=generator)
    return LossInput(loc, logits, targets.loc, targets.labels % classes)
