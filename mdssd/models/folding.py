"""Folding batch normalisation into the convolutions before it, which makes a network faster."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def fold_batch_norm(model: nn.Module) -> int:
    """Replace each convolution and the batch normalisation of its output by one convolution.

    It has the same values up to rounding, with the running statistics. Pairs are found where they
    follow each other in an `nn.Sequential`, and by their names, as conv1 and bn1 in ResNet.

    Args:
        model: the model, in evaluation mode. It is changed, and cannot be trained any more.

    Returns:
        How many pairs were replaced.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mdssd.models.folding import fold_batch_norm
        >>> block = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU()).eval()
        >>> fold_batch_norm(block), block[1]
        (1, Identity())
    """
    pairs = [(parent, *names) for parent in model.modules() for names in _pairs(parent)]
    for parent, name, norm in pairs:
        convolution = parent.get_submodule(name)
        fused = fuse_conv_bn_eval(
            convolution,  # type: ignore[type-var]
            parent.get_submodule(norm),  # type: ignore[arg-type]
            transpose=isinstance(convolution, nn.ConvTranspose2d),
        )
        setattr(parent, name, fused)
        setattr(parent, norm, nn.Identity())
    return len(pairs)


def _pairs(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of a convolution and of the batch normalisation of its output."""
    children = dict(parent.named_children())
    names = pairwise(children) if isinstance(parent, nn.Sequential) else _numbered(children)
    for name, norm in names:
        if isinstance(children[name], _CONVOLUTIONS) and isinstance(
            children.get(norm), nn.BatchNorm2d
        ):
            yield name, norm


def _numbered(names: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for name in names:
        if name.startswith("conv"):
            yield name, f"bn{name.removeprefix('conv')}"
