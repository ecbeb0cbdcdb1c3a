"""Peers of `l2norm_add_relu`: relu(ga * a/|a| + gb * b/|b|) of two maps [B, C, H, W]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.generators import Maps
from benchmarks.peers import need
from benchmarks.peers.runtimes import openvino_call
from mdssd import ops

EPS = 1e-10
Call = Callable[[], Tensor]


def mdssd(x: Maps) -> Call:
    return lambda: ops.l2norm_add_relu(*x, EPS)


def torch_add(x: Maps) -> Call:
    """Compute less than the operator: the minimum that any fusion of two maps must do."""
    return lambda: x.a + x.b


def l2norm(x: Tensor, scale: Tensor) -> Tensor:
    """Normalise as L2Norm of ssd.pytorch does."""
    norm = x.pow(2).sum(dim=1, keepdim=True).sqrt() + EPS
    return scale.unsqueeze(0).unsqueeze(2).unsqueeze(3).expand_as(x) * torch.div(x, norm)


def l2norm_add_relu(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    return (l2norm(a, scale_a) + l2norm(b, scale_b)).relu()


_compiled = torch.compile(l2norm_add_relu, dynamic=False)


def eager(x: Maps) -> Call:
    return lambda: l2norm_add_relu(*x)


def compiled(x: Maps) -> Call:
    return lambda: _compiled(*x)


def in_place(x: Maps) -> Call:
    """Use eager PyTorch with as few intermediate maps as possible."""

    def call() -> Tensor:
        ra = x.a.square().sum(1, keepdim=True).add_(EPS).rsqrt_()
        rb = x.b.square().sum(1, keepdim=True).add_(EPS).rsqrt_()
        y = (x.a * ra).mul_(x.scale_a[:, None, None])
        return y.addcmul_(x.b * rb, x.scale_b[:, None, None]).relu_()

    return call


def openvino(x: Maps) -> Call:
    """Use NormalizeL2. Inputs and outputs are NCHW; OpenVINO chooses the layout in between."""
    module = need("openvino")
    opset = module.opset8

    def normalised(node: Any, scale: Tensor) -> Any:
        norm = opset.normalize_l2(node, np.array([1], np.int64), EPS, "add")
        return opset.multiply(norm, opset.constant(scale[None, :, None, None].numpy()))

    a, b = (opset.parameter(list(x.a.shape), np.float32) for _ in range(2))
    total = opset.add(normalised(a, x.scale_a), normalised(b, x.scale_b))
    model = module.Model([opset.relu(total)], [a, b])
    run = openvino_call(model, x.a.contiguous().numpy(), x.b.contiguous().numpy())
    return lambda: torch.from_numpy(run()[0])


PEERS = {
    "torch.add of the two": torch_add,
    "torch.compile": compiled,
    "ssd.pytorch's L2Norm": eager,
    "torch in place": in_place,
    "openvino": openvino,
}
ON_GPU = ("torch.add of the two", "torch.compile", "ssd.pytorch's L2Norm", "torch in place")
OTHER_RESULT = ("torch.add of the two",)
DIFFERENTIABLE = ("torch.compile", "ssd.pytorch's L2Norm")
