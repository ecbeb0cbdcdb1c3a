"""Turning images into the input of a network."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from mdssd.models import MEAN_RGB
from mdssd.priors.maps import InputSize, width_height


def to_tensor(image: np.ndarray, mean: tuple[float, float, float]) -> Tensor:
    """Convert uint8 [..., S, S, 3] RGB to float32 [..., 3, S, S], channels last, minus the mean."""
    # One long row per image row: broadcasting over three channels takes four times as long.
    row = np.tile(np.array(mean, np.float32), image.shape[-2])
    pixels = np.subtract(image.reshape(-1, len(row)), row, dtype=np.float32)
    return torch.from_numpy(pixels.reshape(image.shape)).movedim(-1, -3)


def subtract_mean(images: Tensor, mean: tuple[float, float, float] = MEAN_RGB) -> Tensor:
    """Convert uint8 images to float32 and subtract the mean, on the device they are on.

    Args:
        images: uint8 [..., 3, S, S], RGB.
        mean: the mean of each channel, 0 to 255.

    Returns:
        float32 [..., 3, S, S], in the same memory format.

    Example:
        >>> import torch
        >>> from mdssd.data import subtract_mean
        >>> subtract_mean(torch.full((3, 1, 1), 130, dtype=torch.uint8)).flatten()
        tensor([ 7., 13., 26.])
    """
    return images.float().sub_(_on_device(mean, images.device)[:, None, None])


@lru_cache(maxsize=32)
def _on_device(mean: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return the mean on a device. Copying it there again would wait for all work of a GPU."""
    with torch.inference_mode(False):
        return torch.tensor(mean, dtype=torch.float32, device=device)


class Preprocess:
    """Turn an image into a network's input: warp it to the input's size and subtract the mean.

    The warp is a linear resize that ignores the aspect ratio, as in the SSD paper. Pixels are
    not divided by anything.

    Args:
        size: side of the input, in pixels, or (width, height) of one that is no square.
        mean: the mean of each channel, 0 to 255.

    Call it with an image, uint8 [H, W, 3] RGB. It returns float32 [3, height, width] of the size.

    Raises:
        ValueError: the image is empty or of another type or shape.

    Example:
        >>> import numpy as np
        >>> from mdssd.data import Preprocess
        >>> Preprocess(300)(np.zeros((60, 80, 3), np.uint8)).shape
        torch.Size([3, 300, 300])
    """

    def __init__(self, size: InputSize, mean: tuple[float, float, float] = MEAN_RGB) -> None:
        self.size = size
        self.mean = mean

    def __call__(self, image: np.ndarray) -> Tensor:
        return to_tensor(self.warp(image), self.mean)

    def warp(self, image: np.ndarray) -> np.ndarray:
        """Resize only: uint8 [H, W, 3] to uint8 [height, width, 3] of the size."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                "Preprocess: image must be a non-empty uint8 array [H, W, 3] in RGB order, "
                f"got {image.dtype} {list(image.shape)}"
            )
        size = width_height(self.size)
        if image.shape[1::-1] != size:
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        return image
