"""tools/pretend_gpu.py, and the tests that must make their tensors where a GPU's backend runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdssd.ops import _modules

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, or one is pretended"),
    pytest.mark.skipif(_modules.simt is None, reason="no mdssd._simt"),
]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tools")))
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


PROGRAM = """
import pretend_gpu
import torch
from mdssd import ops, mdssd300


def refused(error, message, call):
    try:
        call()
    except error as raised:
        assert message in str(raised), raised
    else:
        raise AssertionError(message)


x = torch.rand(3, 4, device="cuda", requires_grad=True)
here = torch.rand(5, 4)
assert torch.cuda.is_available() and x.is_cuda and x.device == torch.device("cuda:0")
assert (2 * x).device.type == x[1:].device.type == here.to("cuda").device.type == "cuda"
assert x.detach().cpu().device.type == here.device.type == "cpu"
(x * x).sum().backward()
assert x.grad.is_cuda and torch.equal(x.grad, 2 * x)
refused(RuntimeError, "on the same device", lambda: here + x[:1])
refused(TypeError, "cuda:0 device type tensor to numpy", lambda: x.detach().numpy())

boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
for backend in ("cuda", "triton"):
    with ops.backend(backend):
        there = boxes.cuda().requires_grad_()
        iou = ops.box_iou(there, there)
        assert iou.is_cuda and iou.tolist()[0][0] == 1
        iou.sum().backward()
        assert there.grad.is_cuda
with ops.backend("cuda"):
    refused(RuntimeError, "'cuda' cannot run on a cpu tensor", lambda: ops.box_iou(boxes, boxes))
refused(ValueError, "b_xyxy: expected device cuda:0", lambda: ops.box_iou(boxes.cuda(), boxes))

torch.cuda.set_sync_debug_mode("error")
refused(RuntimeError, "synchronizing", lambda: x.sum().item())
refused(RuntimeError, "synchronizing", lambda: torch.tensor([1.0], device="cuda"))
refused(RuntimeError, "synchronizing", lambda: here.to("cuda"))
here.pin_memory().to("cuda", non_blocking=True)
torch.cuda.set_sync_debug_mode("default")

model = mdssd300(3, width=0.0625).to("cuda")
assert all(p.is_cuda for p in model.parameters()) and model.priors.is_cuda
print("done")
"""


def test_a_pretended_gpu_behaves_like_one() -> None:
    done = python("-c", PROGRAM)
    assert done.stdout == "done\n", done.stderr[-3000:]


# Where a test that makes its tensors on the CPU would fail on the first machine with a GPU.
@pytest.mark.parametrize(
    "files",
    [
        ["tests/ops/test_nms_padded.py", "tests/ops/test_ops_by_hand.py"],
        ["tests/ops/test_ops_variants.py"],
        ["tests/integrations/test_integrations.py"],
    ],
)
def test_tests_by_hand_make_their_tensors_on_the_gpu(files: list[str]) -> None:
    """With the kernels of simt for those of CUDA. The long chains of nms are left out."""
    # Inside vmap a tensor does not say what it pretends.
    key = "cuda and not every_decision and not case and not graph and not vmap"
    done = python("-m", "pytest", "-q", "-n0", "-p", "pretend_gpu", "-k", key, *files)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


def test_a_training_step_waits_for_nothing() -> None:
    files = ["-k", "waits_for_nothing", "tests/training/test_uploads.py"]
    done = python("-m", "pytest", "-q", "-n0", "-p", "pretend_gpu", *files)
    assert " 1 passed" in f" {done.stdout.splitlines()[-1]}", done.stdout[-3000:]
