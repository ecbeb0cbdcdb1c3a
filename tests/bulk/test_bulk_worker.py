"""What a worker of a bulk job does with a shard. A few lines play Ray, so none is needed."""

import pickle
import re
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from bulk.jobs import (
    THRESHOLD,
    Handle,
    boxes,
    checkpoint,
    image_table,
    images_once,
    jpeg,
    photos,
    play_ray,
    read_rows,
    take,
)

from mdssd.bulk import job
from mdssd.bulk.job import load_model
from mdssd.bulk.places import Place
from mdssd.bulk.plan import find_parts, into_shards
from mdssd.bulk.record import BEGUN, Record, read_begun
from mdssd.bulk.rows import COLUMNS
from mdssd.bulk.settings import Pool, Settings
from mdssd.bulk.stream import StreamWorker
from mdssd.bulk.worker import Worker
from mdssd.detection.detector import Detector
from mdssd.detection.files import detect
from mdssd.detection.reading import ImageFile
from mdssd.weights.checkpoint import load_checkpoint, save_checkpoint


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts a worker with its record; the results are in `out`."""
    play_ray(monkeypatch)
    out = tmp_path / "out"
    (out / BEGUN).mkdir(parents=True)
    path = checkpoint(tmp_path)

    def start(record, **settings):
        model, meta = load_checkpoint(path)
        detector = {"classes": meta["classes"], "mean": tuple(meta["mean"]), "batch_size": 4}
        chosen = {"score_threshold": THRESHOLD, "labels": [1, 2], **settings}
        return Worker(model, Settings(str(out), detector, **chosen), Handle(record))

    return start


def shards_of(sources, images=100):
    return into_shards(find_parts([str(s) for s in sources], recursive=False, out="")[0], images)


def kills(monkeypatch, dies):
    """Let a process die whenever it detects in images for which `dies` is true."""
    plain = Detector.stream

    def stream(self, images, **options):
        images = list(images)
        if dies([str(image) for image in images]):
            raise Died
        yield from plain(self, images, **options)

    monkeypatch.setattr(Detector, "stream", stream)


def until_done(start, record, shard, most):
    """Take a shard again, each time in a new process, until it is done; return how often."""
    for tries in range(1, most + 1):
        try:
            take(start(record), shard)
        except Died:
            continue
        return tries
    raise AssertionError(f"not done after {most} tries")


def test_rows_are_those_of_the_local_engine(start, tmp_path):
    files = photos(tmp_path / "in", 11, broken=(3,))
    (shard,) = shards_of([tmp_path / "in"])
    worker = start(Record())
    summary = take(worker, shard)
    local = detect(
        worker._detector,
        [tmp_path / "in"],
        tmp_path / "local",
        score_threshold=THRESHOLD,
        draw=False,
        workers=0,
        progress=False,
    )
    rows = read_rows(tmp_path / "out")
    assert sorted(rows) == sorted(map(str, files))
    assert (summary["images"], summary["detections"]) == (10, local.detection_count)
    assert [tuple(each) for each in summary["failed"]] == local.failed
    assert rows[str(files[3])][0]["error"] == local.failed[0][1]
    for entry in local.images:
        own = rows[entry["file"]]
        assert {(r["width"], r["height"], r["tiles"], r["error"]) for r in own} == {
            (entry["width"], entry["height"], 0, None)
        }
        labels, numbers = boxes(own)
        found = entry["detections"]
        assert labels == [each["label"] for each in found]
        assert [r["class"] for r in own if r["label"]] == [each["class"] for each in found]
        expected = [[each["score"], *each["box_xyxy"]] for each in found]
        assert np.array_equal(numbers, np.array(expected, np.float32).reshape(-1, 5))
    assert sum(len(entry["detections"]) > 0 for entry in local.images) > 3


def test_an_image_without_detections_has_one_row(start, tmp_path):
    photos(tmp_path / "in", 2)
    (shard,) = shards_of([tmp_path / "in"])
    take(start(Record(), score_threshold=1.0), shard)
    for (row,) in read_rows(tmp_path / "out").values():
        assert list(row) == list(COLUMNS)
        assert row["width"] > 0 and row["label"] is row["score"] is row["error"] is None


def test_images_in_parquet(start, tmp_path):
    images = [jpeg(0), None, jpeg(1)[:40], jpeg(2), jpeg(3)]
    table = image_table(tmp_path / "t.parquet", images, 2)
    shards = shards_of([table], 3)
    worker = start(Record())
    for shard in shards:
        take(worker, shard)
    rows = read_rows(tmp_path / "out")
    assert images_once(tmp_path / "out") == sorted(f"{table}#{row}" for row in range(5))
    errors = {file.rpartition("#")[2]: own[0]["error"] for file, own in rows.items()}
    assert errors["0"] is errors["3"] is errors["4"] is None
    assert errors["1"].endswith("t.parquet#1: the row has no image")
    assert errors["2"].startswith(f"{table}#2: ") and "damaged header" in errors["2"]
    whole = worker._detector([images[3]])[0]
    assert len(boxes(rows[f"{table}#3"])[0]) == int((whole["scores"] >= THRESHOLD).sum())


def test_the_column_of_images_must_be_clear(start, tmp_path):
    two = image_table(tmp_path / "two.parquet", [jpeg(0)], 1, names=("left", "right"))
    (shard,) = shards_of([two])
    summary = take(start(Record()), shard)
    assert "has columns left, right of image bytes, expected one" in summary["failed"][0][1]
    assert take(start(Record(), image_column="right"), shard)["images"] == 1
    summary = take(start(Record(), image_column="middle"), shard)
    assert "has no column 'middle' of image bytes" in summary["failed"][0][1]


def test_images_at_an_address(start, tmp_path):
    files = photos(tmp_path / "in", 40, broken=(7,))
    shards = shards_of([f"file://{tmp_path}/in"])
    files[11].unlink()
    summary = take(start(Record()), shards[0])
    assert images_once(tmp_path / "out") == [f"file://{file}" for file in files]
    reasons = dict(summary["failed"])
    assert set(reasons) == {f"file://{files[k]}" for k in (7, 11)}
    assert reasons[f"file://{files[11]}"].endswith("0011.jpg: no such file")


def test_an_image_that_kills_is_named_and_the_others_are_as_ever(start, tmp_path, monkeypatch):
    files = photos(tmp_path / "in", 9)
    (shard,) = shards_of([tmp_path / "in"])
    take(start(Record()), shard)
    expected = read_rows(tmp_path / "out")
    kills(monkeypatch, lambda images: any("0004" in image for image in images))
    # It dies once among the others, and twice alone.
    assert until_done(start, Record(), shard, 9) == 4
    rows = read_rows(tmp_path / "out")
    assert images_once(tmp_path / "out") == sorted(map(str, files))
    (poisoned,) = rows.pop(str(files[4]))
    reason = "the process that worked on it was killed, in 2 tries"
    assert poisoned["error"] == f"{files[4]}: {reason}" and poisoned["label"] is None
    del expected[str(files[4])]
    for file, own in rows.items():
        # In one batch fewer images went through the network, which changes the last bits.
        assert boxes(own)[0] == boxes(expected[file])[0]
        np.testing.assert_allclose(boxes(own)[1], boxes(expected[file])[1], rtol=1e-5, atol=1e-3)


def test_two_images_that_kill_are_both_named(start, tmp_path, monkeypatch):
    files = photos(tmp_path / "in", 6)
    (shard,) = shards_of([tmp_path / "in"])
    kills(monkeypatch, lambda images: any("01." in i or "04." in i for i in images))
    assert until_done(start, Record(), shard, 9) == 6
    rows = read_rows(tmp_path / "out")
    assert [file[-6:] for file in sorted(rows) if rows[file][0]["error"]] == ["01.jpg", "04.jpg"]
    assert sorted(rows) == sorted(map(str, files))


@pytest.mark.parametrize("address", [False, True])
def test_an_image_that_kills_the_whole_job_is_given_up_in_a_later_run(
    start, tmp_path, monkeypatch, address
):
    """The counts in memory are lost each time, as an orchestrator starts the command again."""
    files = photos(tmp_path / "in", 6)
    place = Place(f"file://{tmp_path}/out" if address else str(tmp_path / "out"))
    (shard,) = shards_of([tmp_path / "in"])
    kills(monkeypatch, lambda images: any("0004" in image for image in images))
    (tmp_path / "out" / BEGUN / "00000007.json").write_text("[[0, 2]]")  # another shard's
    (tmp_path / "out" / BEGUN / "note.txt").write_text("")
    (tmp_path / "out" / BEGUN / "00000008.json").write_text("[[3, ")  # its writing was cut short
    assert read_begun(place, [7, 8, 9]) == {7: {0: 2}, 8: {}}
    known = []
    while len(known) < 9:
        known.append(read_begun(place, [0]))
        with suppress(Died):
            take(start(Record(known[-1])), shard)
            break
    # It dies once among the others, and twice alone.
    assert known == [{}, {0: {}}, {0: {4: 1}}, {0: {4: 2}}]
    rows = read_rows(tmp_path / "out")
    assert [file for file in rows if rows[file][0]["error"]] == [str(files[4])]
    assert sorted(rows) == sorted(map(str, files))
    assert read_begun(place, [1]) == {}


def test_images_that_kill_only_together_are_detected_alone(start, tmp_path, monkeypatch):
    photos(tmp_path / "in", 3)
    (shard,) = shards_of([tmp_path / "in"])
    kills(monkeypatch, lambda images: len(images) > 1)
    assert until_done(start, Record(), shard, 9) == 4
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 3 and all(own[0]["error"] is None for own in rows.values())


def test_a_process_that_was_killed_for_another_reason_blames_no_image(start, tmp_path, monkeypatch):
    photos(tmp_path / "in", 3)
    (shard,) = shards_of([tmp_path / "in"])
    left = [1, 1]  # so many processes die, each at the first image that it tries
    kills(monkeypatch, lambda images: bool(left and left.pop()))
    assert until_done(start, Record(), shard, 9) == 3
    assert all(own[0]["error"] is None for own in read_rows(tmp_path / "out").values())


def test_after_the_end_no_shard_begins(start, tmp_path):
    photos(tmp_path / "in", 2)
    (shard,) = shards_of([tmp_path / "in"])
    record = Record()
    record.end()
    assert take(start(record), shard) == {"shard": 0, "done": False}
    assert [path.name for path in (tmp_path / "out").rglob("*")] == [BEGUN]


def test_a_fault_of_the_storage_is_said_by_the_summary(start, tmp_path):
    photos(tmp_path / "in", 2)
    (shard,) = shards_of([tmp_path / "in"])
    worker = start(Record())
    (tmp_path / "out/part-00000000.parquet").mkdir()
    summary = take(worker, shard)
    assert summary["done"] is False
    assert re.match("IsADirectoryError: .*part-00000000", summary["error"])


@pytest.fixture
def streaming(tmp_path, monkeypatch):
    """Return a function that starts a worker of `RayStream` with its record."""
    play_ray(monkeypatch)
    path = checkpoint(tmp_path)

    def start(record):
        model, how, _, pool = load_model(path, {"batch_size": 4}, Pool(device="cpu"))
        return StreamWorker(model, how, pool, Handle(record))

    return start


def results_of(worker, images):
    batch = {"shard": np.array([0]), "images": np.array([pickle.dumps(images)], object)}
    (data,) = worker(batch)["results"]
    return pickle.loads(data)


def test_streamed_results_have_the_bits_of_one_process(streaming, tmp_path):
    images = [ImageFile(path) for path in photos(tmp_path / "in", 10, broken=(6,))]
    results, seconds, error = results_of(streaming(Record()), images)
    assert error == "" and seconds["network"] > 0
    detector = Detector.from_checkpoint(tmp_path / "m.json", device="cpu", batch_size=4)
    for got, want in zip(results, detector.stream(images, workers=0), strict=True):
        size, found, fault, _ = got
        assert size == want.size and fault == ("" if want.error is None else str(want.error))
        assert all(torch.equal(found[name], want.found[name]) for name in want.found)
    assert sum(len(found["labels"]) for _, found, _, _ in results) > 0


def test_images_that_kill_an_evaluation_end_it_after_two_tries(streaming, tmp_path, monkeypatch):
    images = [ImageFile(path) for path in photos(tmp_path / "in", 3)]
    kills(monkeypatch, lambda images: True)
    record = Record()
    for _ in range(2):
        with pytest.raises(Died):
            results_of(streaming(record), images)
    results, _, error = results_of(streaming(record), images)
    assert results == [] and "0000.jpg to " in error and "was killed, in 2 tries" in error


@pytest.fixture
def int8(tmp_path):
    """Return a checkpoint of the form that `mdssd quantize` writes; its network is in float32."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("openvino", reason="openvino is not installed")
    from mdssd.detection.onnx import network_proto

    model, meta = load_checkpoint(checkpoint(tmp_path))
    facts = {"classes": meta["classes"], "mean": meta["mean"], "extra": {}}
    network = network_proto(model.eval()).SerializeToString()
    save_checkpoint(tmp_path / "int8.json", model, **facts, network=network)
    return tmp_path / "int8.json"


def test_int8_networks_travel_to_the_workers(int8, tmp_path, monkeypatch):
    play_ray(monkeypatch)
    photos(tmp_path / "in", 7)
    (tmp_path / "out" / BEGUN).mkdir(parents=True)
    model, how, _, pool = load_model(int8, {"batch_size": 4}, Pool())
    assert pool.device == "cpu"  # also on a cluster with GPUs
    settings = Settings(str(tmp_path / "out"), how, THRESHOLD, [1, 2], pool=pool)
    sent, settings = pickle.loads(pickle.dumps((model, settings)))
    (shard,) = shards_of([tmp_path / "in"])
    assert take(Worker(sent, settings, Handle(Record())), shard)["images"] == 7
    rows = read_rows(tmp_path / "out")
    detector = Detector.from_checkpoint(int8, batch_size=4)
    count = 0
    for file, result in zip(sorted(rows), detector.stream(sorted(rows), workers=0), strict=True):
        kept = result.found["scores"] >= THRESHOLD
        assert boxes(rows[file])[0] == result.found["labels"][kept].tolist()
        count += int(kept.sum())
    assert count > 20


def test_int8_networks_need_a_cpu_and_openvino(int8, monkeypatch):
    with pytest.raises(ValueError, match="'openvino' needs a cpu device, got cuda"):
        load_model(int8, {}, Pool(device="cuda"))
    with pytest.raises(ValueError, match="runs in 'openvino' only, got 'compile'"):
        load_model(int8, {"runtime": "compile"}, Pool())
    with pytest.raises(ValueError, match="Pool: device: expected 'cpu' or 'cuda', got 'cuda:1'"):
        Pool(device="cuda:1")
    monkeypatch.setattr(job, "openvino_core", job.openvino_core.__wrapped__)
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it fails then
    with pytest.raises(ImportError, match="pip install openvino"):
        load_model(int8, {}, Pool())
