from torch import nn

from .layers.functions.detection import Detect


class SSD(nn.Module):
    """The network in phase "test", without its layers."""

    def __init__(self, num_classes, priors):
        super().__init__()
        self.num_classes = num_classes
        self.priors = priors
        self.detect = Detect(num_classes, 0, 200, 0.01, 0.45)

    def forward(self, loc, conf):
        images = loc.size(0)
        return self.detect(
            loc.view(images, -1, 4),
            conf.view(images, -1, self.num_classes).softmax(-1),
            self.priors,
        )
