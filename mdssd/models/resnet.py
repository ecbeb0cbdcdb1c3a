"""ResNet-101 as SSD and DSSD reduce it, residual blocks, and ImageNet weights for the trunk."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdssd.models.vgg import input_scale, scaled
from mdssd.weights.foreign_files import read_tensors

# Caffe's; PyTorch's own default is 1e-5.
_EPS = 1e-3


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    padding: int = 0,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution without bias, batch normalisation, then ReLU if asked for."""
    block = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False),
        nn.BatchNorm2d(out_channels, _EPS),
    )
    if relu:
        block.append(nn.ReLU(inplace=True))
    return block


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3, 1x1, each with batch normalisation; sum; ReLU.

    `kernel` and `stride` are those of the first convolution and of the shortcut's, which is there
    with `project` only; `dilation` is the 3x3's. Parameters are named as torchvision names them.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        project: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, mid_channels, kernel, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_channels, _EPS)
        self.conv2 = nn.Conv2d(
            mid_channels, mid_channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(mid_channels, _EPS)
        self.conv3 = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, _EPS)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel, stride, bias=False),
                nn.BatchNorm2d(out_channels, _EPS),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


def _stage(
    blocks: int, in_channels: int, mid: int, out: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    first = Bottleneck(in_channels, mid, out, stride=stride, dilation=dilation)
    rest = (Bottleneck(out, mid, out, dilation=dilation, project=False) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class ResNet101(nn.Module):
    """ResNet-101 (He et al., 2016) without its classifier, as DSSD has it.

    The stride of a stage is on its first 1x1 convolution; the last stage has stride 1 and dilation
    2 instead; pool1 has no padding and rounds up. Map sizes for an input of 321: 161, 80, 40
    (res3b3), 20, 20 (res5c); of 513: 257, 128, 64, 32, 32.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (scaled(c, width) for c in (64, 128, 256, 512, 1024))
        self.conv1 = nn.Conv2d(3, c1, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(c1, _EPS)
        self.layer1 = _stage(3, c1, c1, c3)
        self.layer2 = _stage(4, c3, c2, c4, stride=2)
        self.layer3 = _stage(23, c4, c3, c5, stride=2)
        self.layer4 = _stage(3, c5, c4, scaled(2048, width), dilation=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, S, S] -> res3b3 [B, 512, S/8, S/8] and res5c [B, 2048, S/16, S/16]
        (sizes rounded down), each after its ReLU.
        """
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        res3b3 = self.layer2(self.layer1(x))
        return res3b3, self.layer4(self.layer3(res3b3))


class ExtraBlocks(nn.Module):
    """DSSD's residual blocks above res5c: res6 to res9, and res10 for 513; 1024 channels each.

    res5c [B, 2048, 20, 20] -> maps of 10, 5, 3, 1; [B, 2048, 32, 32] -> 16, 8, 4, 2, 1.
    """

    def __init__(self, input_size: int, width: float = 1.0) -> None:
        super().__init__()
        halving = (2, 2)
        # (kernel, stride) of res6 and up.
        blocks = [halving] * 5 if input_size == 513 else [halving, halving, (3, 1), (3, 1)]
        in_channels, out = scaled(2048, width), scaled(1024, width)
        for n, (kernel, stride) in enumerate(blocks, start=6):
            block = Bottleneck(in_channels, scaled(256, width), out, kernel=kernel, stride=stride)
            self.add_module(f"res{n}", block)
            in_channels = out

    def forward(self, res5c: Tensor) -> list[Tensor]:
        maps = []
        x = res5c
        for block in self.children():
            x = block(x)
            maps.append(x)
        return maps


def load_resnet101(
    model: nn.Module,
    weights: Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    rescale_input: bool = True,
) -> None:
    """Copy ImageNet weights, as torchvision's `resnet101` names them, into `model.trunk`.

    `weights`: the state dict (`conv1.weight`, `layer1.0.bn1.running_mean`, ...) or a file that
    holds it, safetensors or a PyTorch file; the content decides, not the name, and nothing in a
    file is ever executed. The classifier (`fc`) is left out.

    All tensors have the same names and shapes, but they were trained in a network that differs a
    little, so they are a start for training and no finished features. torchvision's has the stride
    of layer2 and layer3 on the 3x3 convolution ("v1.5"), this one, as DSSD's, on the 1x1 ahead of
    it, which skips three of four pixels; layer4 here has dilation in place of a stride, the first
    pooling no padding, and batch normalisation an eps of 1e-3 for 1e-5.

    torchvision's network expects (RGB / 255 - mean) / std, this one RGB 0-255 minus `MEAN_RGB`.
    With `rescale_input` conv1 and the running mean of bn1 absorb the difference (to a rounding
    error, and but for the outermost pixels). False copies them as they are, for weights that were
    trained on mean-subtracted 0-255 RGB.

    A model of another width, a missing key, another shape, values that are not finite, or weights
    of another network are a ValueError; the model is then unchanged.
    """
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, ResNet101):
        raise ValueError(
            "load_resnet101: model must have a ResNet-101 trunk (ssd321, ssd513, dssd321 or "
            f"dssd513), got {type(model).__name__}"
        )
    own = trunk.state_dict()
    if own["conv1.weight"].shape[0] != 64:
        raise ValueError(
            "load_resnet101: model must be made with width=1, got a trunk whose conv1 has weights "
            f"of shape {list(own['conv1.weight'].shape)} instead of [64, 3, 7, 7]"
        )
    source = "weights"
    if not isinstance(weights, Mapping):
        source = os.fspath(weights)
        weights = read_tensors("load_resnet101", source)
    new = {name: _take(weights, name, tensor.shape, source) for name, tensor in own.items()}
    # resnet152 has the same tensors, and more of them.
    more = [key for key in weights if key not in own and not str(key).startswith("fc.")]
    if more:
        raise ValueError(
            f"load_resnet101: {source} holds {more[0]!r}, which resnet101 has not "
            f"({len(more)} such tensors)"
        )
    if rescale_input:
        scale, shift = input_scale()
        weight = new["conv1.weight"].double().cpu()  # [64, 3, 7, 7]
        mean = new["bn1.running_mean"].double().cpu()
        new["conv1.weight"] = weight * scale[:, None, None]
        # conv1 has no bias: what it would add is taken off the mean that bn1 subtracts.
        new["bn1.running_mean"] = mean - (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
    trunk.load_state_dict(new)


def _take(weights: Mapping[str, Tensor], key: str, shape: torch.Size, source: str) -> Tensor:
    value = weights.get(key)
    if value is None and key.endswith("num_batches_tracked"):
        return torch.tensor(0)  # files from before PyTorch 0.4.1 lack it
    if not isinstance(value, Tensor):
        raise ValueError(
            f"load_resnet101: {source} lacks {key!r}; expected the state dict of torchvision's "
            f"resnet101, got keys {sorted(map(str, weights))[:4]} ..."
        )
    if value.shape != shape:
        raise ValueError(
            f"load_resnet101: {source}: {key!r} must have shape {list(shape)}, "
            f"got {list(value.shape)}"
        )
    if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
        raise ValueError(
            f"load_resnet101: {source}: {key!r} must be of floating point, got {value.dtype}"
        )
    if not value.float().isfinite().all():
        raise ValueError(f"load_resnet101: {source}: the values of {key!r} are not finite")
    return value
