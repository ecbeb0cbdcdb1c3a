"""torchvision's SSDlite320 with MobileNetV3-Large, as a network for `mdssd.Detector`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class SSDLite320(nn.Module):
    """Images [B, 3, 320, 320] minus the mean -> loc [B, 3234, 4], logits [B, 3234, C].

    The weights are random. torchvision's mean, 127.5, differs from this project's, which costs no
    time.

    Args:
        num_classes: the classes and the background.

    Attributes:
        input_size, num_classes, priors: as those of this project's networks.
        heads: the layers of the scores, by map.
    """

    priors: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        from torchvision.models.detection.image_list import ImageList

        self.name, self.input_size, self.num_classes = "ssdlite320", 320, num_classes
        whole = ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=num_classes
        ).eval()
        self.backbone, self.head = whole.backbone, whole.head
        images = torch.randn(4, 3, 320, 320)
        with torch.no_grad():
            # Its random weights shrink the maps to nothing unless the statistics are their own.
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train().momentum = 1.0
            maps = list(self.backbone(images).values())
            self.head(maps)
        self.eval()
        (corners,) = whole.anchor_generator(ImageList(images[:1], [(320, 320)]), maps)
        low, high = corners.div(320).split(2, 1)
        self.register_buffer("priors", torch.cat(((low + high) / 2, high - low), 1))

    @property
    def heads(self) -> dict[str, Any]:
        scores: Any = self.head.classification_head
        return {f"map{k}": SimpleNamespace(conf=m) for k, m in enumerate(scores.module_list)}

    def config(self) -> dict[str, Any]:
        return {}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(list(self.backbone(images / 127.5).values()))
        return found["bbox_regression"], found["cls_logits"]
