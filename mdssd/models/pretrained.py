"""Weights of other projects, into a model."""

import os
from collections.abc import Mapping

from torch import Tensor, nn

from mdssd.models.resnet import ResNet101, load_resnet101
from mdssd.models.vgg import load_vgg16


def load_pretrained(
    model: nn.Module,
    weights: Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    rescale_input: bool = True,
) -> None:
    """Copy torchvision's ImageNet weights into the trunk of a detector: vgg16's or resnet101's.

    Which of them is wanted follows from the model. See `load_vgg16` and `load_resnet101`, for the
    errors too: a ValueError that names the tensor, and the model is then unchanged.
    """
    load = load_resnet101 if isinstance(getattr(model, "trunk", None), ResNet101) else load_vgg16
    load(model, weights, rescale_input=rescale_input)
