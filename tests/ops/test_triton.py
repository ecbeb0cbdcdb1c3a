"""The Triton backend: its kernels compile for GPUs, and models run on it."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from mdssd import ops
from mdssd.cli import main
from mdssd.data import SyntheticScenes

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "compile_triton.py"
REPORT = Path(ops.__file__).parent / "triton" / "resources.txt"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """Compile each kernel once for each target; return the printed lines."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--largest"],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        cwd=SCRIPT.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_every_kernel_compiles_for_three_gpus(compiled: list[str]) -> None:
    code = "".join(file.read_text() for file in REPORT.parent.glob("*.py"))
    kernels = set(re.findall(r"^def (\w+_kernel)\(", code, re.MULTILINE))
    left_out = "".join(line for line in compiled if line.startswith("left out"))
    for target in ("sm_80", "sm_90", "gfx942"):
        if target not in left_out:
            assert kernels == {line.split("<")[0] for line in compiled if f" {target} " in line}
    if left_out:
        pytest.skip(left_out)


def test_the_report_is_fresh_and_no_kernel_spills(compiled: list[str]) -> None:
    """Fresh: code and launches of every line, and the numbers of the kernels compiled here."""
    assert [line for line in compiled if line.startswith("stale")] == [], "make resources"
    report = REPORT.read_text().splitlines()
    lines = [line for line in report if line and not line.startswith("#")]
    assert len(lines) > 100
    assert [line for line in lines if not line.endswith("  0 spilled")] == []
    if f"# Triton {version('triton')}; written by: make resources" not in report:
        pytest.skip("the report is of another version of Triton")
    assert [line for line in compiled if line not in lines] == [], "make resources"


def test_the_report_goes_stale_with_the_code_not_with_comments(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("compile_triton", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def fingerprint(text: str) -> str:
        (tmp_path / "kernels.py").write_text(text)
        return script.fingerprint(tmp_path / "kernels.py")

    first = fingerprint(
        '"""Of a file."""\n\nA = 1\n\n\ndef f():\n    """Of f."""\n    return "a"\n'
    )
    assert fingerprint('A = 1  # why\n\n\ndef f():\n    # how\n    return "a"\n') == first
    assert fingerprint('A = 1\n\n\ndef f():\n    return "b"\n') != first
    assert fingerprint('A = 2\n\n\ndef f():\n    return "a"\n') != first


def test_more_boxes_than_a_gpu_has_blocks_along_its_second_axis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU starts up to 2^31 - 1 programs along the first axis, and 65,535 along the others."""
    from mdssd.ops.triton import boxes

    grids = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return lambda *args, **kwargs: None

    monkeypatch.setattr(boxes, "box_iou_kernel", Kernel())
    few, many = torch.empty(3, 4, device="meta"), torch.empty(9_000_000, 4, device="meta")
    assert boxes.box_iou(few, many).shape == (3, 9_000_000)
    assert boxes.box_iou(many, few).shape == (9_000_000, 3)
    assert [len(grid) for grid in grids] == [1, 1] and max(g[0] for g in grids) < 2**31


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the interpreter")
def test_a_pixel_of_zeros_stays_zero_with_an_eps_that_a_gpu_takes_for_zero() -> None:
    """A GPU's reciprocal root takes a subnormal number for 0, as a CPU can be told to."""
    x, scale = torch.zeros(1, 4, 2, 2), torch.ones(4)
    x[0, :, 0, 0] = 3
    with ops.backend("reference"):
        want = ops.l2norm(x, scale, 1e-38)
    assert torch.set_flush_denormal(True), "this processor cannot"
    try:
        with ops.backend("triton"):
            got = ops.l2norm(x, scale, 1e-38)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(got, want)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the interpreter")
def test_every_op_has_it() -> None:
    assert all("triton" in row for row in ops.backends().values())


def test_a_compiled_model_gives_the_results_of_eager() -> None:
    import mdssd

    torch._dynamo.reset()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = mdssd.mdssd300(num_classes=3, width=0.125).eval().to(device)
    images = torch.randn(1, 3, 300, 300, device=device)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with ops.backend("triton"), torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=0, atol=0)


def test_train_eval_and_detect_run_on_it(tmp_path: Path) -> None:
    """A training step has the loss of the reference, and detections have its scores."""

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(command: str, backend: str, *arguments: object) -> Path:
        out = tmp_path / f"{command}-{backend}"
        words = [command, *arguments, "--backend", backend, "--threads", 1, "--out", out]
        words += ["--device", device]
        assert main([str(word) for word in words]) == 0
        return out

    tiny = "--model ssd300 --width 0.0625 --batch-norm --batch-size 2 --scenes 2 --epochs 1".split()
    losses, found = [], []
    for backend in ("reference", "triton"):
        trained = run("train", backend, *tiny, "--workers", 0)
        with open(trained / "loss.csv", newline="") as file:
            losses.append([float(row["total"]) for row in csv.DictReader(file)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)

    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), SyntheticScenes(1)[0].image)
    for backend in ("reference", "triton"):
        out = run("detect", backend, trained, photo, "--score-threshold", 0.01)
        (pictured,) = json.loads((out / "detections.json").read_text())
        found.append([detection["score"] for detection in pictured["detections"]])
    assert len(found[1]) > 9 and found[1] == pytest.approx(found[0], abs=2e-6)

    out = run("eval", "triton", trained, "--scenes", 1)
    assert json.loads((out / "evaluation.json").read_text())["images"] == 1
