"""Resizing of images on the device, so that a camera's frame is uploaded as bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from mdssd.ops._checks import check_tensor, shown
from mdssd.ops._dispatch import define
from mdssd.ops._results import new_images
from mdssd.ops.native import resize as native
from mdssd.ops.reference import resize as reference

_LONGEST = 1 << 20  # pixels of a side, so that no position overflows


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images linearly, like OpenCV's `resize` with INTER_LINEAR, to within one level.

    Pixel centres lie at halves, the border pixels extend outwards, and halves round up. The image
    is not smoothed when it shrinks. The result is the same on every backend. It has no gradient.

    Args:
        images: [..., H, W, C] uint8, channels last, H and W at least 1. Any leading size, and C,
            may be 0.
        size: (height, width) of the result, each from 1 to 1,048,576.

    Returns:
        [..., height, width, C] uint8.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype or shape, an image has no
            pixel, or a size is out of range.

    Example:
        >>> import torch
        >>> from mdssd import ops
        >>> row = torch.tensor([0, 100], dtype=torch.uint8).reshape(1, 2, 1)
        >>> ops.resize(row, (1, 4)).flatten()
        tensor([  0,  25,  75, 100], dtype=torch.uint8)
    """
    check_tensor("resize", "images", images, (None, "H", "W", "C"), dtypes=(torch.uint8,))
    if 0 in images.shape[-3:-1]:
        raise ValueError(f"resize: images: expected H and W above 0, got {list(images.shape)}")
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"resize: size: expected (height, width), got {shown(size)}")
    for side in size:
        if isinstance(side, bool) or not isinstance(side, int):
            raise TypeError(f"resize: size: expected two ints, got {shown(size)}")
        if not 1 <= side <= _LONGEST:
            raise ValueError(
                f"resize: size: expected sides from 1 to {_LONGEST}, got {shown(size)}"
            )
    return _resize(images, size[0], size[1])


_resize = define(
    "resize(Tensor images, SymInt height, SymInt width) -> Tensor",
    reference=reference.resize,
    cpp=native.resize_cpp,
    cuda=native.resize_cuda,
    triton="resize",
    batched=(0,),
    leading=True,
    fake=new_images,
)
