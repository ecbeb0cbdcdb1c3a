"""Bulk detection on a Ray of two processes. tools/check_bulk.py kills, measures and counts more."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from bulk.jobs import THRESHOLD, boxes, checkpoint, images_once, local_ray, photos, read_rows, run

import mdssd
from mdssd import cli
from mdssd.bulk import job
from mdssd.data import SyntheticScenes, write_voc
from mdssd.detection.detector import Detector
from mdssd.detection.files import detect
from mdssd.system.stop import Terminated
from mdssd.weights.checkpoint import save_checkpoint

pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'mdssd[ray]'")


@pytest.fixture(scope="module")
def two_processes():
    with local_ray():
        yield


def test_a_job_has_the_rows_of_the_local_engine_and_can_be_continued(
    two_processes, tmp_path, monkeypatch
):
    files = photos(tmp_path / "in", 24, broken=(5,))
    detector = Detector.from_checkpoint(checkpoint(tmp_path), device="cpu")
    out = tmp_path / "out"
    report = run(tmp_path, out, shard_images=8)
    local = detect(
        detector,
        [tmp_path / "in"],
        tmp_path / "local",
        score_threshold=THRESHOLD,
        draw=False,
        workers=0,
        progress=False,
    )
    assert images_once(out) == sorted(map(str, files))
    assert report.detections == local.detection_count and report.failures == local.failed
    assert (report.total, report.done, report.failed, report.workers) == (24, 24, 1, 2)
    assert json.loads((out / "report.json").read_text())["images"] == 23
    assert "images per second by 2 processes" in report.table()
    rows = read_rows(out)
    for entry in local.images:
        assert boxes(rows[entry["file"]])[0] == [each["label"] for each in entry["detections"]]

    # A job is not begun a second time by mistake, nor continued with other settings.
    with pytest.raises(ValueError, match="holds a job; continue it by --resume"):
        run(tmp_path, out)
    with pytest.raises(ValueError, match="was begun with score_threshold 0.36, got 0.9"):
        run(tmp_path, out, resume=True, score_threshold=0.9)
    # Only what is missing is done, as planned, even if the folder has changed.
    parts = sorted(out.glob("part-*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in parts}
    content = parts[1].read_bytes()
    parts[1].unlink()
    (tmp_path / "in/0099.jpg").write_bytes(files[0].read_bytes())
    report = run(tmp_path, out, resume=True)
    assert (report.before, report.images, report.failed) == (16, 8, 0)
    assert parts[1].read_bytes() == content
    assert [p for p in parts if p.stat().st_mtime_ns != before[p]] == [parts[1]]
    # Where nothing is left to do, Ray is not needed.
    monkeypatch.delattr(job, "_run")
    assert run(tmp_path, out, resume=True).before == 24


def test_sigterm_lets_the_shards_under_way_be_finished(two_processes, tmp_path):
    files = photos(tmp_path / "in", 80)
    checkpoint(tmp_path)
    out = tmp_path / "out"

    def end():
        while not list(out.glob("part-*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(Terminated) as ended:
        run(tmp_path, out, 1, shard_images=2)
    thread.join()
    done = images_once(out)
    assert 0 < len(done) < 80
    assert ended.value.note == f"{len(done)} of 80 images done; --resume continues"
    report = run(tmp_path, out, 1, shard_images=2, resume=True)
    assert report.before == len(done) and report.done == 80
    assert images_once(out) == sorted(map(str, files))


def test_an_evaluation_has_the_figures_of_one_process_to_the_bit(two_processes, tmp_path):
    scenes = SyntheticScenes(20, image_size=96)
    write_voc(scenes, tmp_path / "set", "test")
    torch.manual_seed(0)
    model = mdssd.ssd300(6, width=0.0625)
    facts = {"classes": scenes.classes, "mean": (123, 117, 104), "extra": {}}
    save_checkpoint(tmp_path / "m.json", model, **facts)
    words = ["eval", str(tmp_path / "m.json"), "--data", str(tmp_path / "set"), "--device", "cpu"]
    words += ["--split", "test", "--batch-size", "2", "--threads", "1"]
    for name, more in (("local", ["--workers", "0"]), ("ray", ["--engine", "ray"])):
        assert cli.main([*words, *more, "--out", str(tmp_path / name)]) == 0
    local, ray_ = (
        json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("local", "ray")
    )
    assert ray_["seconds"]["network"] > 0 and local["images"] == 20
    times = ("seconds", "images_per_second", "about")
    assert {k: v for k, v in ray_.items() if k not in times} == {
        k: v for k, v in local.items() if k not in times
    }
