"""The operators in forked processes, and with more threads than there is memory for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Each child imports mdssd itself, so that no handler of the module saw its fork. PyTorch's own
# operators would hang in a child with more than one thread, so the child makes small tensors only.
FORKS = """
import os, signal, sys, threading
import torch

torch.set_num_threads(2)

def use_threads():
    torch.zeros(1_000_000).exp()

def detect():
    signal.alarm(60)  # a child that hangs dies of it
    from mdssd import ops
    with ops.backend("cpp"):
        for _ in range(3):
            loc, logits = torch.zeros(2, 3000, 4), torch.zeros(2, 3000, 3)
            ops.detection_output(loc, logits, torch.ones(3000, 4))

def fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("a child hung or failed")

def both():
    detect()
    fork(detect)

def in_a_thread():
    failed = []
    def work():
        try:
            use_threads()
            fork(detect)
        except SystemExit as error:
            failed.append(error)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

fork(detect)
use_threads()
for name, variant in {
    "used": lambda: fork(detect),
    "thread": in_a_thread,
    "generations": lambda: fork(lambda: fork(detect)),
    "both": lambda: fork(both),
}.items():
    variant()
    print(name, flush=True)
assert "mdssd" not in sys.modules
detect()
fork(both)
print("imported")
"""

THREADS = """
import re, resource
from pathlib import Path
import torch
from mdssd.ops import _modules

a = torch.zeros(2000, 4)
iou = torch.ones(2000, 2000)
size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20), size + (4 << 20)))  # no stack fits
_modules.native.box_iou_cpu(a, 2000, a, 2000, iou, 0, 100_000)
print(iou.sum().item())
"""


def run(program: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, (result.returncode, result.stdout, result.stderr)
    return result.stdout.split()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs the flags in /proc")
def test_a_child_that_imports_the_package_does_not_hang() -> None:
    assert run(FORKS) == ["used", "thread", "generations", "both", "imported"]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs the size in /proc")
def test_more_threads_than_memory() -> None:
    assert run(THREADS) == ["0.0"]
