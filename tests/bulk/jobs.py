"""Small jobs for the tests of bulk detection."""

import io
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

import mdssd
from mdssd import bulk
from mdssd.bulk.plan import shard_text
from mdssd.weights.checkpoint import save_checkpoint

# Of a network without training; a third of what it finds has a higher score.
THRESHOLD = 0.36


def checkpoint(folder):
    torch.manual_seed(0)
    model = mdssd.ssd300(3, width=0.03125)
    facts = {"classes": ["a", "b"], "mean": (123, 117, 104), "extra": {}}
    save_checkpoint(folder / "m.json", model, **facts)
    return folder / "m.json"


def jpeg(number):
    """Return the file of an image, which is another one for each number."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(40, 90, 2)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def photos(folder, count, broken=()):
    """Write images, some of which are truncated, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        data = jpeg(number)
        keep = len(data) // 2 if number in broken else len(data)
        (folder / f"{number:04}.jpg").write_bytes(data[:keep])
    return sorted(folder.iterdir())


def image_table(path, images, rows_in_group, names=("image",)):
    """Write a Parquet file with columns of images, which are bytes or None."""
    table = pyarrow.table({name: pyarrow.array(images, pyarrow.binary()) for name in names})
    pyarrow.parquet.write_table(table, path, row_group_size=rows_in_group)
    return path


def read_rows(out):
    """Return the rows of a job: dicts, by file, in the order of their shards."""
    rows = {}
    for path in sorted(Path(out).glob("part-*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            rows.setdefault(row["file"], []).append(row)
    return rows


def boxes(rows):
    """Return the labels, scores and boxes of the rows of an image, by falling score."""
    found = [row for row in rows if row["label"] is not None]
    labels = [row["label"] for row in found]
    numbers = [[row[name] for name in ("score", "x1", "y1", "x2", "y2")] for row in found]
    return labels, np.array(numbers, np.float32).reshape(-1, 5)


def images_once(out):
    """Return the files of a job, each as often as a shard has it."""
    files = []
    for path in sorted(Path(out).glob("part-*.parquet")):
        files += set(pyarrow.parquet.read_table(path, columns=["file"])["file"].to_pylist())
    return sorted(files)


def play_ray(monkeypatch):
    """Let a module stand for Ray whose references are the objects themselves."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))


class Handle:
    """Calls an object as Ray calls it in another process."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._target, name))


def take(worker, shard):
    (summary,) = worker({"shard": np.array([shard_text(shard)])})["summary"]
    return json.loads(summary)


@contextmanager
def local_ray(**options):
    """Let a Ray of two processes run in the block."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # the other tests would starve them
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=500 << 20,
        include_dashboard=False,
        log_to_driver=False,
        **options,
    )
    yield
    ray.shutdown()


def run(folder, out, workers=2, **options):
    """Detect on a Ray that runs, in the images of the folder `in`."""
    pool = bulk.Pool(workers=workers, device="cpu")
    settings = {"pool": pool, "score_threshold": THRESHOLD, "progress": False, **options}
    return bulk.detect(folder / "m.json", [folder / "in"], out, **settings)
