"""Generated scenes with many small objects, to try, test and train on without a download."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np

from mdssd.data.dataset import DetectionDataset
from mdssd.data.sample import NO_IMAGE, Sample
from mdssd.system.text import plural

CLASSES = ("cross", "disc", "ring", "square", "triangle")
# Outlines are filled at this enlargement, then averaged down to the image.
_FINE = 4
# Fractional bits of the fixed-point coordinates passed to OpenCV.
_SHIFT = 4
# The greatest part of a box that another one may cover.
_COVER = 0.1
_RAMP = np.arange(4096, dtype=np.float32)
# Maps random bytes to a normal distribution; far cheaper than sampling one.
_NORMAL = np.array([NormalDist().inv_cdf((k + 0.5) / 256) for k in range(256)])


@dataclass(frozen=True)
class _Shape:
    """One object. A second outline, if any, is a hole. Coordinates are in pixels."""

    outlines: tuple[np.ndarray, ...]
    box_xyxy: np.ndarray
    label: int


class SyntheticScenes(DetectionDataset):
    """Generated scenes: small flat shapes on textured grounds, with clutter, blur and noise.

    Boxes are tight, inside the image, and cover at most a tenth of one another.

    Args:
        count: the number of scenes.
        seed: scene i depends on (seed, i) and the other arguments alone.
        image_size: side of the images, in pixels.
        objects: the least and the greatest number of objects per 300 x 300 pixels. An object that
            does not fit is left out.
        sizes: the least and the greatest length of a box's longer side, in pixels. The median is
            near their geometric mean.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from mdssd.data import SyntheticScenes
        >>> scenes = SyntheticScenes(3, seed=1)
        >>> scenes.classes
        ['cross', 'disc', 'ring', 'square', 'triangle']
        >>> scenes[0].image.shape, len(scenes[0].labels) == len(scenes[0].boxes_xyxy)
        ((300, 300, 3), True)
    """

    def __init__(
        self,
        count: int = 1000,
        seed: int = 0,
        image_size: int = 300,
        *,
        objects: tuple[int, int] = (4, 24),
        sizes: tuple[float, float] = (8.0, 40.0),
    ) -> None:
        if count < 1:
            raise ValueError(f"SyntheticScenes: count must be at least 1, got {count}")
        if seed < 0:
            raise ValueError(f"SyntheticScenes: seed must not be negative, got {seed}")
        if not 0 <= objects[0] <= objects[1]:
            raise ValueError(f"SyntheticScenes: objects must be (least, most), got {objects}")
        if not 4 <= sizes[0] <= sizes[1] <= image_size / 2:
            raise ValueError(
                "SyntheticScenes: sizes must be (least, most) from 4 to half of image_size "
                f"({image_size}), got {sizes}"
            )
        self.seed = seed
        self.image_size = image_size
        self.objects = objects
        self.sizes = sizes
        self.name = f"synthetic scenes (seed {seed})"
        self.classes = list(CLASSES)
        self.image_ids = [f"scene_{i:06d}" for i in range(count)]

    def __getitem__(self, index: int) -> Sample:
        shapes, index = self._shapes(index)
        rng = np.random.default_rng([self.seed, index, 1])
        return self._sample(_paint(shapes, self.image_size, rng), shapes, index)

    def annotation(self, index: int) -> Sample:
        """Return sample `index` without painting its image."""
        shapes, index = self._shapes(index)
        return self._sample(NO_IMAGE, shapes, index)

    def report(self) -> str:
        """Return the number and size of the scenes and their classes."""
        return (
            f"{self.name}: {plural(len(self), 'image')} of {self.image_size} x {self.image_size}, "
            f"classes {', '.join(self.classes)}"
        )

    def _shapes(self, index: int) -> tuple[list[_Shape], int]:
        index = range(len(self))[index]
        rng = np.random.default_rng([self.seed, index, 0])
        return _place_shapes(rng, self.image_size, self.objects, self.sizes), index

    def _sample(self, image: np.ndarray, shapes: list[_Shape], index: int) -> Sample:
        return Sample(
            image,
            np.array([shape.box_xyxy for shape in shapes], np.float32).reshape(-1, 4),
            np.array([shape.label for shape in shapes], np.int64),
            np.zeros(len(shapes), bool),
            self.image_ids[index],
        )


def _place_shapes(
    rng: np.random.Generator,
    image_size: int,
    objects: tuple[int, int],
    sizes: tuple[float, float],
) -> list[_Shape]:
    share = (image_size / 300) ** 2
    least, most = (max(1, round(n * share)) if n else 0 for n in objects)
    middle = np.sqrt(sizes[0] * sizes[1])
    shapes: list[_Shape] = []
    boxes_xyxy = np.zeros((0, 4))
    for _ in range(rng.integers(least, most + 1)):
        label = int(rng.integers(1, len(CLASSES) + 1))
        outlines = _outlines(CLASSES[label - 1], rng)
        low, high = outlines[0].min(0), outlines[0].max(0)
        side = np.clip(middle * np.exp(rng.normal(0, 0.4)), *sizes)
        scale = side / (high - low).max()
        extent = (high - low) * scale
        corners = rng.uniform(1, image_size - 1 - extent, (12, 2))
        boxes = np.hstack([corners, corners + extent])
        free = _covered(boxes, boxes_xyxy) <= _COVER
        if free.any():
            first = free.argmax()
            placed = tuple((outline - low) * scale + corners[first] for outline in outlines)
            shapes.append(_Shape(placed, boxes[first], label))
            boxes_xyxy = np.vstack([boxes_xyxy, boxes[first]])
    return shapes


def _covered(new_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """For each new box [N, 4], return the greatest intersection over the smaller area: [N]."""
    new, old = new_xyxy[:, None], boxes_xyxy[None]
    extent = np.minimum(new[..., 2:], old[..., 2:]) - np.maximum(new[..., :2], old[..., :2])
    inter = np.maximum(extent, 0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (new, old)]
    return (inter / np.minimum(*areas)).max(1, initial=0.0)


def _outlines(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the outlines of a shape, [K, 2] each, randomly rotated, in arbitrary units."""
    if name in ("disc", "ring"):
        angles = np.arange(32) * (2 * np.pi / 32)
        circle = np.stack([np.cos(angles), np.sin(angles)], 1)
        outlines = [circle]
        if name == "ring":
            outlines.append(circle * rng.uniform(0.5, 0.65))
    elif name == "square":
        outlines = [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)]
    elif name == "triangle":
        outlines = [np.array([(-1, 0.8), (1, 0.8), (0, -1)], float)]
    else:
        a = rng.uniform(0.28, 0.4)
        corner = [(a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a)]
        outlines = [np.array(corner + [(-x, -y) for x, y in corner], float)]
    squeeze = np.diag([1, rng.uniform(0.8, 1)])
    turn = rng.uniform(0, 2 * np.pi)
    rotate = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    return [outline @ squeeze @ rotate for outline in outlines]


def _paint(shapes: list[_Shape], size: int, rng: np.random.Generator) -> np.ndarray:
    image = _ground(size, rng)
    _clutter(image, rng)
    for shape in shapes:
        _draw(image, shape, rng)
    sigma = rng.uniform(0, 0.8)
    if sigma > 0.25:
        image = cv2.GaussianBlur(image, (5, 5), sigma)
    dice = np.frombuffer(rng.bytes(size * size), np.uint8).reshape(size, size)
    grain = cv2.LUT(dice, np.rint(_NORMAL * rng.uniform(0, 8)).astype(np.int16))
    return cv2.add(image, cv2.merge([grain, grain, grain]), dtype=cv2.CV_8U)


def _ground(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a textured background, uint8 [size, size, 3]."""
    ground = _clouds(size, rng)
    across, down = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 2)
    turn = rng.uniform(0, 2 * np.pi)
    along = across * np.float32(np.cos(turn)) + down * np.float32(np.sin(turn))
    kind = rng.integers(4)
    if kind == 1:  # a gradient
        ground = 0.4 * ground + 0.6 * (along + 1) / 2
    elif kind == 2:  # wavy stripes
        waves = np.sin(np.float32(rng.uniform(6, 45)) * along + 3 * ground)
        ground = 0.6 * ground + 0.4 * (waves + 1) / 2
    elif kind == 3:  # rectangular fields
        cells = rng.random((rng.integers(2, 6), rng.integers(2, 6)), np.float32)
        fields = cv2.resize(cells, (size, size), interpolation=cv2.INTER_NEAREST)
        ground = 0.5 * ground + 0.5 * fields
    middle = np.clip(rng.uniform(40, 215) + rng.uniform(-55, 55, 3), 15, 240)
    spread = _direction(rng) * rng.uniform(30, 130)
    colours = middle + np.linspace(-0.5, 0.5, 256)[:, None] * spread
    table = np.clip(np.rint(colours), 0, 255).astype(np.uint8)[None]
    level = np.rint(np.clip(ground, 0, 1) * 255).astype(np.uint8)
    return cv2.LUT(cv2.merge([level, level, level]), table)


def _clouds(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise of several octaves, float32 [size, size] in 0 to 1."""
    total = np.zeros((size, size), np.float32)
    falloff = rng.uniform(0.5, 0.9)
    for octave, cells in enumerate((3, 6, 12, 24, 48, 96)):
        grid = rng.random((cells, cells), np.float32) * np.float32(falloff**octave)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def _clutter(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw distractors: lines, long ellipses, open arcs and specks."""
    size = len(image)
    for _ in range(rng.integers(0, 7)):
        start, end = rng.uniform(0, size, (2, 2))
        _stroke(image, rng, np.array([start, end]))
    for _ in range(rng.integers(0, 5)):
        length = rng.uniform(10, 45)
        axes = (round(length / 2 * 16), round(length / 2 / rng.uniform(3.5, 6) * 16))
        centre = tuple(int(v) for v in rng.integers(0, size * 16, 2))
        colour = _colour_on(image, centre[0] // 16, centre[1] // 16, rng)
        turn = rng.uniform(0, 180)
        cv2.ellipse(image, centre, axes, turn, 0, 360, colour, -1, cv2.LINE_AA, _SHIFT)
    for _ in range(rng.integers(0, 5)):
        begin, sweep = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 2.6)
        angles = begin + np.linspace(0, sweep, 12)
        arc = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(6, 22)
        _stroke(image, rng, arc + rng.uniform(0, size, 2))
    specks = rng.integers(0, size, (rng.integers(0, 40), 2))
    for x, y in specks:
        radius = int(rng.integers(0, 2))
        cv2.circle(image, (int(x), int(y)), radius, _colour_on(image, x, y, rng), -1)


def _stroke(image: np.ndarray, rng: np.random.Generator, points: np.ndarray) -> None:
    x, y = np.clip(points[0], 0, len(image) - 1).astype(int)
    colour = _colour_on(image, x, y, rng)
    fixed = np.rint(points * (1 << _SHIFT)).astype(np.int32)
    thickness = int(rng.integers(1, 4))
    cv2.polylines(image, [fixed], False, colour, thickness, cv2.LINE_AA, _SHIFT)


def _draw(image: np.ndarray, shape: _Shape, rng: np.random.Generator) -> None:
    """Blend one shape into the image, with smooth edges and a slight colour gradient."""
    x1, y1 = np.floor(shape.box_xyxy[:2]).astype(int)
    x2, y2 = np.ceil(shape.box_xyxy[2:]).astype(int)
    fine = np.zeros(((y2 - y1) * _FINE, (x2 - x1) * _FINE), np.uint8)
    # Pixel centres are at whole numbers in OpenCV, at halves here.
    points = [
        np.rint(((outline - (x1, y1)) * _FINE - 0.5) * (1 << _SHIFT)).astype(np.int32)
        for outline in shape.outlines
    ]
    cv2.fillPoly(fine, points, 255, cv2.LINE_8, _SHIFT)
    cover = cv2.resize(fine, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)
    patch = image[y1:y2, x1:x2].astype(np.float32)
    colour = np.array(_colour_beside(list(cv2.mean(patch)[:3]), rng), np.float32)
    slope = rng.uniform(-12, 12, 2).astype(np.float32)
    down, across = (_RAMP[:n, None] * np.float32(2 / n) - 1 for n in patch.shape[:2])
    grade = down * slope[0] + across.T * slope[1]
    part = cover.astype(np.float32) * np.float32(1 / 255)
    patch += (colour + grade[:, :, None] - patch) * part[:, :, None]
    np.clip(np.rint(patch, out=patch), 0, 255, out=patch)
    image[y1:y2, x1:x2] = patch


def _colour_on(
    image: np.ndarray, x: int, y: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    return _colour_beside(image[y, x].tolist(), rng)


def _colour_beside(ground: list[float], rng: np.random.Generator) -> tuple[float, float, float]:
    """Return a colour that differs from the ground by about 40 to 170 levels."""
    step = (_direction(rng) * rng.uniform(60, 170)).tolist()
    # If one choice is clipped at black or white, the opposite one differs more.
    choices = [
        [min(max(g + sign * d, 0.0), 255.0) for g, d in zip(ground, step, strict=True)]
        for sign in (1, -1)
    ]
    room = [sum(abs(c - g) for c, g in zip(colour, ground, strict=True)) for colour in choices]
    red, green, blue = choices[room[1] > room[0]]
    return red, green, blue


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / math.sqrt(vector @ vector)
