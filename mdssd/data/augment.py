"""SSD's training augmentation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from mdssd.data.ignored import IGNORED, check_ignore, ignored_of, objects_of, parts_in_window
from mdssd.data.images import REDUCTIONS
from mdssd.data.preprocess import to_tensor
from mdssd.data.rasters import Raster
from mdssd.data.sample import Sample
from mdssd.models import MEAN_RGB
from mdssd.priors.maps import InputSize, width_height

# A crop sampler per minimum IoU, of TRIALS draws each.
MIN_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9)
TRIALS = 50
# The largest canvas, in sides of the image. SSD's is 4.
MAX_EXPAND = 16
INTERPOLATIONS = (
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_NEAREST,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
)
# The colours of a window with so many times the input's pixels are changed after it is resized.
_MANY_PIXELS = 4
_ROTATIONS = {
    1: cv2.ROTATE_90_COUNTERCLOCKWISE,
    2: cv2.ROTATE_180,
    3: cv2.ROTATE_90_CLOCKWISE,
}


class Augmentation:
    """SSD's augmentation: distort colours, expand, crop, resize, mirror, subtract the mean.

    Call it with a `Sample` and a NumPy random generator. It returns the image, float32
    [3, height, width], the boxes, float32 [M, 4] xyxy in 0-1, and the labels, int64 [M]. A box is
    kept, and clipped, if its centre is in the crop. Crowds are left out. M may be 0. Boxes to be
    ignored come last, with the label -1.

    Args:
        size: side of the network's input, in pixels, or (width, height) of one that is no square.
        mean: the mean of each channel, 0 to 255. It also fills the canvas around the image.
        expand: the greatest ratio of the canvas to the image, at most 16. 1 turns expansion off.
        photometric: whether to distort the colours.
        crop: whether to crop.
        crop_min_scale: the smallest scale of a crop; SSD uses 0.3.
        mirror: whether to flip horizontally.
        turn: whether to rotate by 0 to 3 quarter turns, for images without an "up", such as
            aerial or microscope images.
        raw: return the image as uint8 without subtracting the mean, which needs a quarter of the
            memory. Use `subtract_mean` on the device then.
        ignore: which boxes are to be ignored: some of "cut" (those of which the crop shows a part,
            but not the centre), "crowd" and "difficult".

    Raises:
        ValueError: `expand` or `crop_min_scale` is out of range, or a kind of boxes is not known.

    Source: Liu et al., "SSD: Single shot multibox detector", ECCV 2016, section 2.2. Colours are
    distorted in uint8 as in the original code, but in the cropped region only, and with one
    conversion to HSV for both saturation and hue. OpenCV's rounding differs by at most one level.
    A crop inside the image that has at least four times the input's pixels is resized first and
    distorted then, which differs where a distortion clips some of the pixels that are averaged.

    Example:
        >>> import numpy as np
        >>> from mdssd.data import Augmentation, SyntheticScenes
        >>> augmentation = Augmentation(300, turn=True)
        >>> rng = np.random.default_rng(0)
        >>> image, boxes_xyxy, labels = augmentation(SyntheticScenes(1)[0], rng)
        >>> image.shape, image.dtype
        (torch.Size([3, 300, 300]), torch.float32)
    """

    def __init__(
        self,
        size: InputSize,
        mean: tuple[float, float, float] = MEAN_RGB,
        *,
        expand: float = 4.0,
        photometric: bool = True,
        crop: bool = True,
        crop_min_scale: float = 0.3,
        mirror: bool = True,
        turn: bool = False,
        raw: bool = False,
        ignore: Collection[str] = (),
    ) -> None:
        if not 1 <= expand <= MAX_EXPAND:
            raise ValueError(f"Augmentation: expand must be from 1 to {MAX_EXPAND}, got {expand}")
        if not 0 < crop_min_scale <= 1:
            raise ValueError(
                f"Augmentation: crop_min_scale must be above 0 and at most 1, got {crop_min_scale}"
            )
        self.size = size
        self.mean = mean
        self.expand = expand
        self.photometric = photometric
        self.crop = crop
        self.crop_min_scale = crop_min_scale
        self.mirror = mirror
        self.turn = turn
        self.raw = raw
        self.ignore = check_ignore("Augmentation", ignore)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        height, width = sample.image.shape[:2]
        return self.apply(self.draw(sample, (width, height), rng), sample.image)

    def draw(
        self,
        sample: Sample,
        size: tuple[int, int],
        rng: np.random.Generator,
        *,
        reduced: bool = False,
    ) -> View:
        """Make all random draws for a sample, before its image is decoded.

        Args:
            sample: the annotation. Its image is not used.
            size: (width, height) of the image.
            rng: the random generator.
            reduced: whether the image may be decoded at a reduced size. This does not change
                which numbers are drawn.
        """
        objects = np.flatnonzero(objects_of(sample, self.ignore))
        boxes_xyxy = sample.boxes_xyxy[objects].astype(np.float64)
        width, height = size
        colour_change = draw_colour_change(rng) if self.photometric else []
        canvas_width, canvas_height, left, top = width, height, 0, 0
        if self.expand > 1 and rng.random() < 0.5:
            canvas_width, canvas_height, left, top = draw_expansion(width, height, self.expand, rng)
        window = np.array([0, 0, canvas_width, canvas_height])
        offset = np.array([left, top, left, top])
        if self.crop:
            window = draw_crop(
                boxes_xyxy + offset, canvas_width, canvas_height, rng, min_scale=self.crop_min_scale
            )
        window = window - offset
        interpolation = INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
        mirrored = bool(self.mirror and rng.random() < 0.5)
        turns = int(rng.integers(4)) if self.turn else 0
        reduction = self._reduction(window, turns) if reduced else 1
        # Round to pixels of the reduced image. The boxes are relative to the rounded window.
        window = (window + reduction // 2) // reduction
        boxes_xyxy, kept = boxes_in_window(boxes_xyxy, window * reduction)
        labels = sample.labels[objects][kept]
        if self.ignore:
            others = ignored_of(sample, self.ignore)
            others[objects] = ~kept & ("cut" in self.ignore)
            parts = parts_in_window(sample.boxes_xyxy[others], window * reduction)
            boxes_xyxy = np.concatenate([boxes_xyxy, parts])
            labels = np.concatenate([labels, np.full(len(parts), IGNORED)])
        if mirrored:
            boxes_xyxy = boxes_xyxy[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (1, 0, 1, 0)
        for _ in range(turns):
            boxes_xyxy = boxes_xyxy[:, [1, 2, 3, 0]] * (1, -1, 1, -1) + (0, 1, 0, 1)
        return View(
            window, reduction, colour_change, interpolation, mirrored, turns, boxes_xyxy, labels
        )

    def apply(self, view: View, image: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the draws of `draw` to the image, decoded at `view.reduction`."""
        size = self._before_turns(view.turns)
        resized_first = _has_many_pixels(view.window, image, size)
        colour_change = [] if resized_first else view.colour_change
        pixels = cut_window(image, view.window, colour_change, self.mean)
        pixels = cv2.resize(pixels, size, interpolation=view.interpolation)
        if resized_first:
            pixels = change_colours(pixels, view.colour_change)
        if view.mirrored:
            pixels = cv2.flip(pixels, 1)
        if view.turns:
            pixels = cv2.rotate(pixels, _ROTATIONS[view.turns])
        raw = torch.from_numpy(pixels).movedim(-1, -3) if self.raw else None
        return (
            to_tensor(pixels, self.mean) if raw is None else raw,
            torch.from_numpy(view.boxes_xyxy.astype(np.float32)),
            torch.from_numpy(view.labels),
        )

    def _before_turns(self, turns: int) -> tuple[int, int]:
        """Return width and height of what becomes the input by quarter turns."""
        width, height = width_height(self.size)
        return (height, width) if turns % 2 else (width, height)

    def _reduction(self, window: np.ndarray, turns: int) -> int:
        """Return the greatest reduction at which the window has at least the input's size."""
        width, height = (window[2:] - window[:2]) / self._before_turns(turns)
        return max((r for r in REDUCTIONS if min(width, height) >= r), default=1)


@dataclass(frozen=True)
class View:
    """The random draws for one sample, and its augmented annotation.

    Attributes:
        window: int64 [4] xyxy, the region to cut out, in pixels of the image decoded at
            1/`reduction` of its size. It may reach beyond the image.
        reduction: 1, 2, 4 or 8.
        colour_change: the steps and their amounts, in order.
        interpolation: OpenCV's constant for the resize.
        mirrored: whether to mirror after the resize.
        turns: the number of counter-clockwise quarter turns, after mirroring.
        boxes_xyxy: float64 [M, 4] in 0-1, as they are in the result.
        labels: int64 [M], -1 for a box to be ignored.
    """

    window: np.ndarray
    reduction: int
    colour_change: list[tuple[str, float]]
    interpolation: int
    mirrored: bool
    turns: int
    boxes_xyxy: np.ndarray
    labels: np.ndarray


def _has_many_pixels(window: np.ndarray, image: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether a window [4] xyxy of an image is far larger than `size` and inside it."""
    x1, y1, x2, y2 = (int(v) for v in window)
    inside = min(x1, y1) >= 0 and x2 <= image.shape[1] and y2 <= image.shape[0]
    return inside and (x2 - x1) * (y2 - y1) >= _MANY_PIXELS * size[0] * size[1]


def draw_colour_change(rng: np.random.Generator) -> list[tuple[str, float]]:
    """Draw the colour steps of one image, in order: each of the four has probability 1/2."""
    ranges = {
        "brightness": (-32.0, 32.0),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-18.0, 18.0),
    }
    order = ["brightness", "contrast", "saturation", "hue"]
    if rng.random() >= 0.5:
        order = ["brightness", "saturation", "hue", "contrast"]
    return [(step, rng.uniform(*ranges[step])) for step in order if rng.random() < 0.5]


def change_colours(image: np.ndarray, steps: list[tuple[str, float]]) -> np.ndarray:
    """Return uint8 RGB with the colour steps applied, clipped to 0 and 255 after each."""
    amounts = dict(steps)
    hsv_done = False
    own: np.ndarray | None = None  # the buffer to overwrite; never the input
    for step, amount in steps:
        if step == "brightness":
            image = own = _brighten(image, amount, own)
        elif step == "contrast":
            image = own = cv2.LUT(image, _table(_LEVELS * amount), dst=own)
        elif not hsv_done:
            # Hue directly follows saturation in both orders, so one HSV conversion serves both.
            hsv_done = True
            hue = _table(np.rint(_LEVELS + amounts.get("hue", 0)) % 180)
            saturation = _table(_LEVELS * amounts.get("saturation", 1))
            tables = np.stack([hue, saturation, _table(_LEVELS)], 1)[None]
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV, dst=own)
            hsv = cv2.LUT(hsv, tables, dst=hsv)
            image = own = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv)
    return image


def _brighten(image: np.ndarray, amount: float, own: np.ndarray | None) -> np.ndarray:
    """Add to each level, rounded and clipped as by `_table` but seven times as fast."""
    whole = round(amount)
    if abs(amount - whole) == 0.5:  # rounding to even depends on the level
        return cv2.LUT(image, _table(_LEVELS + amount), dst=own)
    return cv2.add(image, (whole, whole, whole, 0), dst=own)  # type: ignore[call-overload]


_LEVELS = np.arange(256, dtype=np.float64)


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def draw_expansion(
    width: int, height: int, largest: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a canvas of 1 to `largest` times the image: (width, height, image left, image top)."""
    ratio = rng.uniform(1, largest)
    canvas_width, canvas_height = int(width * ratio), int(height * ratio)
    left = int(rng.uniform(0, canvas_width - width))
    top = int(rng.uniform(0, canvas_height - height))
    return canvas_width, canvas_height, left, top


def draw_crop(
    boxes_xyxy: np.ndarray,
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    min_scale: float = 0.3,
) -> np.ndarray:
    """Draw the crop [4] xyxy of an image, uniformly among its `crop_candidates`."""
    candidates = crop_candidates(boxes_xyxy, width, height, rng, min_scale=min_scale)
    return list(candidates.values())[rng.integers(len(candidates))]


def crop_candidates(
    boxes_xyxy: np.ndarray,
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    min_scale: float = 0.3,
) -> dict[float | str, np.ndarray]:
    """Draw one crop [4] xyxy, in whole pixels, from each of SSD's seven samplers, by their name.

    The samplers are "whole" (the image), "any" (a random crop) and five that require an IoU of
    at least 0.1, 0.3, 0.5, 0.7 or 0.9 with at least one box. A crop has scale U[min_scale, 1] and
    an aspect ratio U[0.5, 2], limited to what fits into the image. A sampler returns the first of
    its 50 trials that succeeds; if none does, or there are no boxes, it has no entry.
    """
    scale = rng.uniform(min_scale, 1, (len(MIN_IOUS) + 1, TRIALS))
    ratio = rng.uniform(np.maximum(0.5, scale**2), np.minimum(2, 1 / scale**2))
    crop_width = np.clip(np.rint(scale * np.sqrt(ratio) * width), 1, width)
    crop_height = np.clip(np.rint(scale / np.sqrt(ratio) * height), 1, height)
    # Round to whole pixels first, so that the IoU is that of the crop made.
    left = np.floor(rng.random(scale.shape) * (width - crop_width + 1))
    top = np.floor(rng.random(scale.shape) * (height - crop_height + 1))
    crops = np.stack([left, top, left + crop_width, top + crop_height], -1)  # [6, 50, 4]
    crops = crops.astype(np.int64)
    found: dict[float | str, np.ndarray] = {
        "whole": np.array([0, 0, width, height]),
        "any": crops[-1, 0],
    }
    if len(boxes_xyxy):
        ious = crop_ious(crops[:-1].reshape(-1, 4), boxes_xyxy)
        best_iou = ious.max(1).reshape(len(MIN_IOUS), TRIALS)
        for least, row, best in zip(MIN_IOUS, crops[:-1], best_iou, strict=True):
            if (best >= least).any():
                found[least] = row[(best >= least).argmax()]
    return found


def crop_ious(crops_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return the IoU [N, M] of every crop [N, 4] with every box [M, 4]."""
    crops, boxes = crops_xyxy.T[:, :, None], boxes_xyxy.T[:, None, :]
    across = np.minimum(crops[2], boxes[2]) - np.maximum(crops[0], boxes[0])
    down = np.minimum(crops[3], boxes[3]) - np.maximum(crops[1], boxes[1])
    inter = np.maximum(across, 0) * np.maximum(down, 0)
    crop_area = (crops[2] - crops[0]) * (crops[3] - crops[1])
    box_area = (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])
    return inter / (crop_area + box_area - inter)


def boxes_in_window(boxes_xyxy: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Select the boxes whose centre is in the window, clip them, and normalise them to it.

    Returns the boxes, float64 [K, 4] in 0-1, and which of the M these are, bool [M]. A box whose
    width or height is below a millionth of the window's is dropped: in float32 it could be 0.
    """
    x1, y1, x2, y2 = (float(v) for v in window)
    centre_x = (boxes_xyxy[:, 0] + boxes_xyxy[:, 2]) / 2
    centre_y = (boxes_xyxy[:, 1] + boxes_xyxy[:, 3]) / 2
    inside = (x1 <= centre_x) & (centre_x <= x2) & (y1 <= centre_y) & (centre_y <= y2)
    relative = (boxes_xyxy - (x1, y1, x1, y1)) / (x2 - x1, y2 - y1, x2 - x1, y2 - y1)
    relative = np.clip(relative, 0, 1)
    kept = inside & ((relative[:, 2:] - relative[:, :2]) > 1e-6).all(1)
    return relative[kept], kept


def cut_window(
    image: np.ndarray | Raster,
    window: np.ndarray,
    colour_change: list[tuple[str, float]],
    mean: tuple[float, float, float],
) -> np.ndarray:
    """Cut out the window [4] xyxy. Parts of it outside the image are filled with the mean."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (int(v) for v in window)
    left, right = min(max(x1, 0), width), min(max(x2, 0), width)
    top, bottom = min(max(y1, 0), height), min(max(y2, 0), height)
    fill = tuple(round(value) for value in mean)
    if left >= right or top >= bottom:
        return np.full((y2 - y1, x2 - x1, 3), fill, np.uint8)
    pixels = image[top:bottom, left:right]
    pixels = change_colours(pixels, colour_change)
    if (left, top, right, bottom) == (x1, y1, x2, y2):
        return pixels
    return cv2.copyMakeBorder(
        pixels, top - y1, y2 - bottom, left - x1, x2 - right, cv2.BORDER_CONSTANT, value=fill
    )
