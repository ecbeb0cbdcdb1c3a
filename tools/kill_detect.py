"""Ends `mdssd detect` at random moments, and checks what it leaves behind.

    python tools/kill_detect.py                        # 30 moments of a run on 2,000 images
    python tools/kill_detect.py --images 60 --kills 6

The signals are SIGKILL, SIGTERM and Ctrl-C in turn. After each, every table is read, the tables
must agree with one another, no process may be left, and after a further run no temporary file. It
prints a line for each kill and ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import mdssd
from mdssd.names import TABLES
from mdssd.system.files import TEMPORARY_SUFFIX
from mdssd.weights.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# The exit status of each signal.
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}


def build(folder: Path, images: int) -> float:
    """Write a small checkpoint and so many images; return a threshold that 3 boxes of each pass."""
    model = mdssd.ssd300(3, width=0.03125)
    facts = {"classes": ["a", "b"], "mean": (123, 117, 104), "extra": {}}
    save_checkpoint(folder / "m.json", model, **facts)
    (folder / "in").mkdir()
    (folder / "one").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "one" / "x.jpg")
    for number in range(images):
        os.link(folder / "one" / "x.jpg", folder / "in" / f"{number:05}.jpg")
    detector = mdssd.Detector.from_checkpoint(folder / "m.json", device="cpu", score_threshold=0.0)
    scores = detector([folder / "one" / "x.jpg"])[0]["scores"]
    return float((scores[2] + scores[3]) / 2)


def start(folder: Path, source: str, threshold: float) -> subprocess.Popen[bytes]:
    """Start `mdssd detect` on a folder, in a group of processes of its own."""
    words = [sys.executable, "-m", "mdssd", "detect", "m.json", source, "--out", "out"]
    words += ["--format", ",".join(TABLES)]
    words += ["--score-threshold", f"{threshold:.6f}"]
    words += ["--device", "cpu", "--threads", "1", "--workers", "1", "--batch-size", "4"]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            words, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def read_tables(out: Path) -> dict[str, int]:
    """Read the tables that exist; return how many rows of detections each has."""
    rows = {}
    if (out / "detections.json").exists():
        entries = json.loads((out / "detections.json").read_bytes())
        images = entries["images"] if isinstance(entries, dict) else entries
        rows["json"] = sum(len(entry["detections"]) for entry in images)
    if (out / "detections.csv").exists():
        with (out / "detections.csv").open(encoding="utf-8", newline="") as file:
            table = list(csv.reader(file))
        assert all(len(row) == len(table[0]) for row in table), "a row is cut"
        rows["csv"] = len(table) - 1
    if (out / "detections.jsonl").exists():
        lines = (out / "detections.jsonl").read_text().splitlines()
        rows["jsonl"] = sum(len(json.loads(line)["detections"]) for line in lines)
    if (out / "coco_results.json").exists():
        rows["coco"] = len(json.loads((out / "coco_results.json").read_text()))
    for path in (out / "geojson").glob("*.geojson"):
        json.loads(path.read_text())
    for path in (out / "labels").glob("[0-9]*.txt"):
        lines = path.read_text().splitlines(keepends=True)
        assert all(len(line.split()) == 5 and line[-1] == "\n" for line in lines), "a label is cut"
    return rows


def group_is_gone(group: int, patience: float = 20) -> bool:
    """Wait until no process of the group is left."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def kill_once(
    folder: Path, number: signal.Signals, after: float, threshold: float
) -> tuple[list[str], str]:
    """Kill a run after so many seconds; return what is wrong, and a line about it."""
    out = folder / "out"
    process = start(folder, "in", threshold)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    status = process.wait()
    wrong = []
    if not group_is_gone(process.pid):
        wrong.append("processes are left")
        os.killpg(process.pid, signal.SIGKILL)
    output = (folder / "output.txt").read_text(errors="replace")
    if "Traceback" in output:
        wrong.append("a traceback: " + output[-300:])
    try:
        rows = read_tables(out)
    except Exception as error:  # whatever a half-written table makes of a reader
        rows = {}
        wrong.append(f"a table cannot be read ({error})")
    if len(set(rows.values())) > 1 and number != signal.SIGKILL:
        wrong.append(f"the tables do not agree: {rows}")
    at_work = (out / "detections.json").exists() or any(out.glob("*.jpg"))
    if status not in (0, SIGNALS[number], -number):  # -number: it was not yet or no longer at work
        wrong.append(f"ended with {status}, expected {SIGNALS[number]}")
    if at_work and not rows and number != signal.SIGKILL:
        wrong.append("no table, though images were done")
    done = len(list(out.glob("*.jpg"))) if out.is_dir() else 0
    start(folder, "one", threshold).wait()
    left = [path.name for path in out.rglob(f"*{TEMPORARY_SUFFIX}")]
    if left:
        wrong.append(f"left after the next run: {left[:3]}")
    line = f"{number.name} after {after:.1f} s: status {status}, {done} pictures, rows {rows}"
    return wrong, line


def run(folder: Path, images: int, kills: int) -> int:
    """Do it; return the number of kills after which something was wrong."""
    threshold = build(folder, images)
    began = time.monotonic()
    assert start(folder, "in", threshold).wait() == 0, (folder / "output.txt").read_text()
    whole = time.monotonic() - began
    print(f"{images} images in {whole:.1f} s; rows {read_tables(folder / 'out')}", flush=True)
    chance, bad = random.Random(0), 0
    for number in range(kills):
        shutil.rmtree(folder / "out")
        kind = list(SIGNALS)[number % len(SIGNALS)]
        wrong, line = kill_once(folder, kind, chance.uniform(0.02, 0.98) * whole, threshold)
        bad += bool(wrong)
        print(line, *(f"WRONG: {reason}" for reason in wrong), flush=True)
    print(f"{kills - bad} of {kills} kills left everything right")
    return bad


def main() -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return min(1, run(Path(folder), arguments.images, arguments.kills))


if __name__ == "__main__":
    sys.exit(main())
