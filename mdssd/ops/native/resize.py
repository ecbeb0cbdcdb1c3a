"""resize on the native backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdssd.ops._modules import native
from mdssd.ops._results import new_images


def resize_cpp(images: Tensor, height: int, width: int) -> Tensor:
    images, out = images.contiguous(), new_images(images, height, width)
    native.resize_cpu(images, *_sizes(images, out), out, torch.get_num_threads())
    return out


def resize_cuda(kernels: Any, stream: int, images: Tensor, height: int, width: int) -> Tensor:
    images, out = images.contiguous(), new_images(images, height, width)
    kernels.resize_cuda(images, *_sizes(images, out), out, stream)
    return out


def _sizes(images: Tensor, out: Tensor) -> tuple[int, ...]:
    return (images.shape[:-3].numel(), *images.shape[-3:], *out.shape[-3:-1])
