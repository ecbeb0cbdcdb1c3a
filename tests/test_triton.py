"""The Triton backend: what only its compiler finds, and what its absence means."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdssd import ops

SCRIPT = Path(__file__).with_name("compile_triton.py")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def test_every_kernel_compiles_for_three_gpus() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--one-per-kernel"],
        env=environment,
        cwd=SCRIPT.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    for target in ("sm_80", "sm_90", "gfx942"):
        kernels = {line.split()[1] for line in lines if line.startswith(target)}
        assert {"box_iou_kernel", "match_kernel", "scan_kernel"} <= kernels


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what the interpreter is for")
def test_every_op_has_it() -> None:
    assert all("triton" in row for row in ops.backends().values())


def test_a_compiled_model_gives_what_eager_gives() -> None:
    import mdssd

    torch._dynamo.reset()
    model = mdssd.mdssd300(num_classes=3, width=0.125).eval()
    images = torch.randn(1, 3, 300, 300)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with ops.backend("triton"), torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=0, atol=0)
