"""Checks bulk detection on Ray at size: rows, speed, memory, kills, lost nodes, rasters.

    python tools/check_bulk.py rows               # 2,000 images, 20 of them broken
    python tools/check_bulk.py kills --times 20   # kill -9 at random moments, then --resume
    python tools/check_bulk.py nodes              # two nodes, one of which is lost
    python tools/check_bulk.py raster             # 20,000 x 20,000 pixels by windows
    python tools/check_bulk.py cost runs/mine photos/   # of 100 million images, on one thread

Each prints what it has measured, and ends with 1 if anything was wrong. Ray has to be installed.
`rows` compares with the local engine on the same number of processes: two workers of Ray, against
one process that detects and one that reads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image

import mdssd
from mdssd import bulk
from mdssd.detection.detector import Detector
from mdssd.detection.files import detect
from mdssd.system.memory import keep_memory
from mdssd.weights.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
BOXES = 100  # of each image that pass the threshold, about
POOL = bulk.Pool(workers=2, device="cpu")


def build(folder: Path, images: int, broken: int, *, width: float, side: int) -> float:
    """Write a checkpoint and images; return a threshold that about 100 boxes of each pass."""
    model = mdssd.ssd300(3, width=width)
    facts = {"classes": ["a", "b"], "mean": (123, 117, 104), "extra": {}}
    save_checkpoint(folder / "m.json", model, **facts)
    (folder / "in").mkdir()
    (folder / "own").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        noise = rng.integers(0, 255, (side + number, side, 3), np.uint8)
        Image.fromarray(noise).save(folder / "own" / f"{number}.jpg")
    whole = (folder / "own/0.jpg").read_bytes()
    (folder / "own/broken.jpg").write_bytes(whole[: len(whole) // 2])
    every = images // broken if broken else images + 1
    for number in range(images):
        name = "broken.jpg" if number % every == every - 1 else f"{number % 8}.jpg"
        os.link(folder / "own" / name, folder / "in" / f"{number:06}.jpg")
    detector = Detector.from_checkpoint(folder / "m.json", device="cpu", score_threshold=0.0)
    scores = detector([folder / "own/0.jpg"])[0]["scores"]
    return float(scores[BOXES : BOXES + 2].mean())


def rows_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a job by image."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("part-*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            rows.setdefault(row["file"], []).append(row)
    return rows


def not_once(out: Path, images: int) -> list[str]:
    """Return which images are missing, or in several shards."""
    done: Counter[str] = Counter()
    for path in out.glob("part-*.parquet"):
        done.update(set(pyarrow.parquet.read_table(path)["file"].to_pylist()))
    wrong = [f"{name}: in {count} shards" for name, count in done.items() if count != 1]
    return wrong + [f"{images - len(done)} images are missing"] * (len(done) != images)


def run_job(folder: Path, source: str, threshold: float, **options: Any) -> bulk.BulkReport:
    """Detect on two workers; the results are in `out`."""
    return bulk.detect(
        folder / "m.json",
        [folder / source],
        folder / "out",
        pool=POOL,
        score_threshold=threshold,
        progress=False,
        **options,
    )


def resident(pid: int) -> float:
    """Return the memory of a process in MB; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Watch:
    """Measures the memory of this process, and how much is done, while a job runs.

    Attributes:
        samples: the files with results and the memory of this process in MB, over time.
        worker: the most memory of a worker in MB.
    """

    def __init__(self, out: Path) -> None:
        self.samples: list[tuple[int, float]] = []
        self.worker = 0.0
        self._out, self._stop = out, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            parts = len(list(self._out.glob("part-*.parquet")))
            self.samples.append((parts, resident(os.getpid())))
            workers = victims(os.getpid(), "worker")
            self.worker = max([self.worker, *map(resident, workers)])

    @property
    def peak(self) -> float:
        """The most memory of this process in MB."""
        return max(mb for _, mb in self.samples)


def rate_of(out: Path, workers: int, images: int) -> float:
    """Return the images per second from the first shard of each worker to the last shard."""
    ends = sorted(path.stat().st_mtime for path in out.glob("part-*.parquet"))
    return images * (len(ends) - workers) / len(ends) / (ends[-1] - ends[workers - 1])


def same_rows(local: list[dict[str, Any]], rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return how the rows of a job differ from the entries of the local engine."""
    wrong, most = [], 0.0
    for entry in local:
        own = [row for row in rows[entry["file"]] if row["label"] is not None]
        found = entry["detections"]
        if [row["label"] for row in own] != [each["label"] for each in found]:
            wrong.append(f"{entry['file']}: other detections")
            continue
        numbers = [[row[name] for name in ("score", "x1", "y1", "x2", "y2")] for row in own]
        want = [[each["score"], *each["box_xyxy"]] for each in found]
        if own:
            most = max(most, float(np.abs(np.float32(numbers) - np.float32(want)).max()))
    print(f"greatest difference of a score or a coordinate: {most:g}")
    return wrong + ([f"a number differs by {most}"] if most > 1e-3 else [])


def check_rows(folder: Path, images: int) -> list[str]:
    """Compare rows and speed with the local engine; watch the memory of this process."""
    broken = max(1, images // 100)
    threshold = build(folder, images, broken, width=0.125, side=300)
    detector = Detector.from_checkpoint(folder / "m.json", device="cpu")
    torch.set_num_threads(1)  # as each worker
    options = {"score_threshold": threshold, "draw": False, "progress": False, "workers": 1}
    detect(detector, [folder / "own"], folder / "warm", **options)
    began = time.perf_counter()
    local = detect(detector, [folder / "in"], folder / "local", **options)
    alone = images / (time.perf_counter() - began)
    out = folder / "out"
    with Watch(out) as watch:
        report = run_job(folder, "in", threshold, shard_images=64)
    rate = rate_of(out, 2, images)
    rows = rows_of(out)
    shards = watch.samples[-1][0]
    quarter = max(mb for done, mb in watch.samples if done <= shards // 4)
    print(f"{sum(map(len, rows.values()))} rows, {report.images} images, {report.failed} failed")
    print(f"local {alone:.1f} images/s, Ray {rate:.1f} ({rate / alone:.0%}), two processes each")
    print(f"with the start of Ray's processes {images / report.wall:.1f} images/s")
    print(
        f"this process: {quarter:.0f} MB after a quarter of the shards, {watch.peak:.0f} at most;"
    )
    print(f"each worker {watch.worker:.0f} MB at most")
    wrong = same_rows(local.images, rows)
    if dict(report.failures) != dict(local.failed) or len(local.failed) != broken:
        wrong.append("other failures")
    if sorted(rows) != sorted(map(str, (folder / "in").iterdir())):
        wrong.append("images are missing")
    return wrong


def descendants(pid: int) -> dict[int, str]:
    """Return the processes below a process, with their command lines."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        parents[int(path.name)], names[int(path.name)] = int(fields[1]), line
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        below = [child for child, parent in parents.items() if parent == each]
        found |= {child: names[child] for child in below}
        waiting += below
    return found


def start(folder: Path, threshold: float) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "mdssd", "detect", "m.json", "in", "--out", "out"]
    words += ["--engine", "ray", "--actors", "2", "--shard", "10", "--resume", "--device", "cpu"]
    words += ["--score-threshold", f"{threshold:.6f}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=output)


def victims(driver: int, kind: str) -> list[int]:
    """Return the processes of a kind: a worker, the node (Ray's raylet), or the command itself."""
    if kind == "command":
        return [driver]
    mark = {"worker": "ray::MapWorker", "node": "/raylet/raylet "}[kind]
    return [pid for pid, line in descendants(driver).items() if mark in line]


def kill_once(folder: Path, kind: str, threshold: float) -> tuple[list[str], str]:
    """Kill a process of a job once some random share of it is done; continue until it ends."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    process = start(folder, threshold)
    images = len(list((folder / "in").iterdir()))
    share = random.random() * 0.9
    while process.poll() is None and len(list(out.glob("part-*"))) < share * images / 10:
        time.sleep(0.02)
    there = victims(process.pid, kind) if process.poll() is None else []
    before = len(list(out.glob("part-*")))
    with suppress(ProcessLookupError):
        os.kill(random.choice(there or [process.pid]), signal.SIGKILL)
    runs, status = 1, process.wait()
    while status != 0 and runs < 5:
        time.sleep(1)
        runs, status = runs + 1, start(folder, threshold).wait()
    wrong = [] if status == 0 else [f"the last run ended with {status}"]
    wrong += [] if there else [f"there was no {kind} any more to kill"]
    wrong += not_once(out, images)
    errors = json.loads((out / "report.json").read_text())["failed"] if status == 0 else 0
    wrong += [f"{errors} images failed"] * bool(errors)
    return wrong, f"{kind} killed with {before} of {images // 10} shards done, {runs} runs"


def check_kills(folder: Path, images: int, times: int) -> list[str]:
    """Kill workers, the command and the node in turn."""
    threshold = build(folder, images, 0, width=0.03125, side=100)
    wrong = []
    for number in range(times):
        faults, line = kill_once(folder, ("worker", "command", "node")[number % 3], threshold)
        print(f"{number + 1}: {line}: {'; '.join(faults[:3]) or 'each image once'}", flush=True)
        wrong += faults
    return wrong


def check_nodes(folder: Path, images: int) -> list[str]:
    """Remove one of two nodes in the middle of a job."""
    import ray
    from ray.cluster_utils import Cluster

    threshold = build(folder, images, 0, width=0.03125, side=100)
    out = folder / "out"
    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    second = cluster.add_node(**options)
    ray.init(address=cluster.address, log_to_driver=False)
    lost: list[int] = []

    def remove() -> None:
        while len(list(out.glob("part-*"))) < images // 30:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        lost.append(len(list(out.glob("part-*"))))

    thread = threading.Thread(target=remove)
    thread.start()
    report = run_job(folder, "in", threshold, shard_images=10)
    thread.join()
    ray.shutdown()
    cluster.shutdown()
    print(f"a node of two was lost with {lost[0]} of {images // 10} shards done; {report.images}")
    return not_once(out, images)


def check_raster(folder: Path, side: int) -> list[str]:
    """Compare a raster by windows on two workers with the local engine."""
    threshold = build(folder, 1, 0, width=0.03125, side=300)
    write_raster(folder / "raster.tif", side)
    how: dict[str, Any] = {"tile": "auto", "max_detections": 20}
    began = time.perf_counter()
    with Watch(folder / "out") as watch:
        report = run_job(folder, "raster.tif", threshold, **how)
    together = time.perf_counter() - began
    print(f"two workers {together:.0f} s with their start: {watch.worker:.0f} MB at most", end=", ")
    print(f"this process {watch.peak:.0f} MB; the pixels {3 * side**2 / 1e6:.0f} MB", flush=True)
    (rows,) = rows_of(folder / "out").values()
    detector = Detector.from_checkpoint(
        folder / "m.json", device="cpu", score_threshold=threshold, **how
    )
    torch.set_num_threads(1)
    began = time.perf_counter()
    (local,) = detector.stream([folder / "raster.tif"], workers=0)
    print(f"one process {time.perf_counter() - began:.0f} s")
    want = local.found
    kept = want["scores"] >= threshold
    labels = want["labels"][kept].tolist()
    boxes = np.round(want["boxes"][kept].numpy().astype(float), 3)
    own = np.array([[row[name] for name in ("x1", "y1", "x2", "y2")] for row in rows])
    print(
        f"{rows[0]['tiles']} windows, {report.detections} detections, {len(labels)} by one process"
    )
    if [row["label"] for row in rows] != labels or own.shape != boxes.shape:
        return ["other detections"]
    most = float(np.abs(own - boxes).max()) if labels else 0.0
    print(f"greatest difference of a coordinate: {most:g}")
    return [] if labels and most <= 0.01 else [f"boxes differ by {most}"]


def print_cost(checkpoint: str, photos: str) -> None:
    """Print the processor time per image of one thread, as a worker of Ray spends it."""
    torch.set_num_threads(1)
    keep_memory()
    detector = Detector.from_checkpoint(checkpoint, device="cpu")
    files = sorted(path for path in Path(photos).rglob("*.jpg"))[:72]
    list(detector.stream(files[:8], workers=0))
    began = time.process_time()
    count = len(list(detector.stream(files[8:], workers=0)))
    each = (time.process_time() - began) / count
    print(f"{1000 * each:.1f} ms of a core for each of {count} images,", end=" ")
    print(f"{each * 1e8 / 3600:,.0f} core-hours for 100 million")


def write_raster(path: Path, side: int) -> None:
    """Write a tiled TIFF of noise in which blocks repeat."""
    import rasterio
    from rasterio.windows import Window

    block = np.random.default_rng(0).integers(0, 255, (3, 1000, 1000), np.uint8)
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8"}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "BIGTIFF": "YES"}
    with (
        rasterio.Env(GDAL_CACHEMAX=64),  # MB
        rasterio.open(path, "w", **profile, photometric="RGB") as file,
    ):
        for y, x in product(range(0, side, 1000), repeat=2):
            part = np.roll(block, (y // 7, x // 11), (1, 2))[:, : side - y, : side - x]
            file.write(part, window=Window(x, y, part.shape[2], part.shape[1]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("check", choices=("rows", "kills", "nodes", "raster", "cost"))
    parser.add_argument("inputs", nargs="*", help="for cost: a checkpoint and a folder of JPEGs")
    parser.add_argument("--images", type=int, help="default 2000, 1000 for kills, 400 for nodes")
    parser.add_argument("--times", type=int, default=20, help="kills")
    parser.add_argument("--side", type=int, default=20_000, help="of the raster")
    given = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as name:
        folder, wrong = Path(name), list[str]()
        match given.check:
            case "cost":
                print_cost(*given.inputs)
            case "rows":
                wrong = check_rows(folder, given.images or 2000)
            case "kills":
                wrong = check_kills(folder, given.images or 1000, given.times)
            case "nodes":
                wrong = check_nodes(folder, given.images or 400)
            case "raster":
                wrong = check_raster(folder, given.side)
    for line in wrong[:20]:
        print(f"wrong: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
