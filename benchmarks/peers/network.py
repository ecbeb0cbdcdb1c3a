"""Peers of the networks: they run the same weights on images [B, 3, S, S] -> (loc, logits)."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.peers import fusion, need
from benchmarks.peers.runtimes import openvino_call
from mdssd import ops

Call = Callable[[], tuple[Tensor, Tensor]]


def mdssd(model: nn.Module, images: Tensor) -> Call:
    """Run the module in the dtype and layout of the images."""
    layout = torch.channels_last if _channels_last(images) else torch.contiguous_format
    model = model.to(images.device, images.dtype, memory_format=layout)

    def call() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return model(images)

    return call


def compiled(model: nn.Module, images: Tensor) -> Call:
    """Run the module compiled by torch.compile."""
    return mdssd(torch.compile(model, dynamic=False), images)


def openvino(model: nn.Module, images: Tensor) -> Call:
    """Convert the module to OpenVINO and run it in bfloat16 if the images have this type."""
    module = need("openvino")
    plain = {"l2norm": fusion.l2norm, "l2norm_add_relu": fusion.l2norm_add_relu}
    sample = images.float().contiguous()
    with mock.patch.multiple(ops, **plain), torch.no_grad():
        traced = torch.jit.trace(model.to("cpu", torch.float32), sample, check_trace=False)
        converted = module.convert_model(traced, example_input=sample, input=list(images.shape))
    precision = "bf16" if images.dtype == torch.bfloat16 else "f32"
    run = openvino_call(converted, sample.numpy(), precision=precision)

    def call() -> tuple[Tensor, Tensor]:
        loc, logits = run()
        return torch.from_numpy(loc), torch.from_numpy(logits)

    return call


def _channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)


PEERS = {"torch.compile": compiled, "openvino": openvino}
ON_GPU = ("torch.compile",)
