"""The CUDA kernels of l2norm, run on the CPU, beyond what CASES cover."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdssd import ops

pytest.importorskip("mdssd._simt", reason="an editable install has it")


def gradients(backend: str, x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    with ops.backend(backend):
        return torch.autograd.grad(ops.l2norm(x, scale).sum(), (x, scale))


# Each of the first four blocks takes a second tile of 32 pixels. Its threads have more than one
# channel each, so that one barrier alone keeps a warp from the next tile.
@pytest.mark.nightly("four million numbers on simulated threads")
def test_a_block_finishes_a_tile_of_many_channels_before_the_next() -> None:
    x = torch.randn(1, 257, 129, 128, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    scale = torch.linspace(1, 2, 257, requires_grad=True)
    got, want = gradients("simt", x, scale), gradients("reference", x, scale)
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got[1], want[1], rtol=1e-3, atol=1e-2)
