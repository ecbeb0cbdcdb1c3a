"""The device that is taken if none is named."""

import os
import subprocess
import sys

import pytest
import torch

from mdssd.cli import main
from mdssd.system.devices import best_device, describe_device


def test_cpu_is_the_best_device_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_device() == "cpu"


def test_gpu_that_cannot_be_used_is_a_warning(monkeypatch):
    def ones(*shape, device):
        raise RuntimeError(f"no kernel image for {device}\nand much more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.warns(UserWarning, match="cannot be used: no kernel image for cuda:1$"):
        assert best_device() == "cpu"


def test_gpu_that_can_be_used_is_taken_and_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    assert best_device() == "cuda"
    assert describe_device("cuda") == "cuda (Some GPU)"


def test_command_says_the_device_first(tmp_path, capsys):
    threads = torch.get_num_threads()
    tiny = "train --model ssd300 --width 0.0625 --scenes 2 --batch-size 2 --iterations 1 --workers"
    main([*tiny.split(), "0", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "run")])
    torch.set_num_threads(threads)
    assert capsys.readouterr().out.startswith("device: cpu, 1 thread\n")


def test_only_the_command_sets_how_threads_wait():
    """The setting must be there before PyTorch loads libgomp, and a user's own must stay."""
    code = "import os, sys; from mdssd.cli import main; assert 'torch' not in sys.modules; "
    show = "print(os.environ.get('OMP_WAIT_POLICY'))"
    environ = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}

    def printed(code, **more):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env={**environ, **more}, capture_output=True, text=True)
        return done.stdout.splitlines()[-1]

    assert printed(f"{code}main(['--version']); {show}") == "passive"
    assert printed(f"{code}main(['--version']); {show}", OMP_WAIT_POLICY="active") == "active"
    assert printed(f"{code}import mdssd.ops; {show}") == "None"
