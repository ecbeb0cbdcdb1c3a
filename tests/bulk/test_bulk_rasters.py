"""Rasters that are divided among the processes of a bulk job. Nothing here needs Ray."""

import importlib.util
import io

import numpy as np
import pytest
from bulk.jobs import Handle, boxes, play_ray, read_rows, take
from data.tiff_writer import write_tiff
from detection.marks import Marks
from detection.test_raster_detection import DOTS, dots_of

from mdssd.bulk import places
from mdssd.bulk.job import _remaining
from mdssd.bulk.places import Place
from mdssd.bulk.plan import IMAGE, WINDOWS, Part, find_parts, into_shards, plan_bytes, read_plan
from mdssd.bulk.record import BEGUN, Record
from mdssd.bulk.report import BulkReport
from mdssd.bulk.settings import Settings
from mdssd.bulk.windows import Cutting
from mdssd.bulk.worker import Worker
from mdssd.data.images import ImageLimits
from mdssd.detection.detector import Detector

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rasterio") is None, reason="rasterio is not installed"
)
LIMITS = ImageLimits(max_pixels=1000)
HOW = {"classes": ["mark"], "mean": (0, 0, 0), "score_threshold": 0.5, "tile": 32}


@pytest.fixture
def raster(tmp_path):
    path = tmp_path / "raster.tif"
    write_tiff(path, (160, 120), dots_of(DOTS), tile=64)
    return path


def shards_of(raster, most=7):
    cut = Cutting(Detector(Marks(), **HOW).tiling, LIMITS, True, most)
    parts, _ = find_parts([str(raster)], recursive=False, out="", cut=cut.parts)
    return into_shards(parts, most)


@pytest.fixture
def start(tmp_path, monkeypatch):
    play_ray(monkeypatch)
    (tmp_path / "out" / BEGUN).mkdir(parents=True)

    def start(record):
        settings = Settings(str(tmp_path / "out"), HOW, 0.5, [1], LIMITS)
        return Worker(Marks(), settings, Handle(record))

    return start


def whole(raster):
    detector = Detector(Marks(), **HOW)
    detector.limits = LIMITS
    return detector(raster)[0]


def test_the_windows_of_a_raster_are_shards_of_their_own(raster, tmp_path):
    tiling = Detector(Marks(), **HOW).tiling
    total = tiling.count(160, 120)
    shards = shards_of(raster)
    assert len(shards) == -(-total // 7) and all(len(shard.parts) == 1 for shard in shards)
    parts = [shard.parts[0] for shard in shards]
    assert [part.group for part in parts] == list(range(0, total, 7))
    assert sum(part.windows for part in parts) == total == parts[0].of
    assert sum(shard.images for shard in shards) == 1
    assert {shard.file for shard in shards} == {"part-00000000.parquet"}
    assert read_plan(plan_bytes(shards)) == shards
    # One of few windows is an image like others.
    assert [shard.parts[0].kind for shard in shards_of(raster, 1000)] == [IMAGE]
    # Between images each raster has its own home.
    images = [Part(IMAGE, f"{k}.jpg") for k in range(3)]
    mixed = into_shards([*images, *parts, *images, *parts], 7)
    homes = [shard.parts[0].home for shard in mixed if shard.parts[0].kind == WINDOWS]
    assert homes == [1] * len(parts) + [2 + len(parts)] * len(parts)
    assert [part for shard in mixed for part in shard.parts if part.kind == IMAGE] == images * 2


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("order, most", [(1, 7), (-1, 7), (1, 1000)])
def test_the_detections_are_those_of_the_whole(raster, tmp_path, start, order, most, scheme):
    want = whole(raster)
    assert len(want["labels"]) == len(DOTS)
    record, shards = Record(), shards_of(f"{scheme}{raster}", most)
    assert (len(shards) > 1) == (most == 7)
    two = [start(record), start(record)]
    summaries = [take(two[k % 2], shard) for k, shard in enumerate(shards[::order])]
    assert [summary["images"] for summary in summaries] == [0] * (len(shards) - 1) + [1]
    ((file, rows),) = read_rows(tmp_path / "out").items()
    assert file == f"{scheme}{raster}"
    assert {row["tiles"] for row in rows} == {Detector(Marks(), **HOW).tiling.count(160, 120)}
    labels, numbers = boxes(rows)
    assert labels == want["labels"].tolist()
    assert np.array_equal(numbers[:, 1:], want["boxes"].numpy())
    assert np.allclose(numbers[:, 0], want["scores"], rtol=0, atol=5e-7)  # six decimals


def test_a_job_that_was_killed_takes_the_windows_that_are_missing(raster, tmp_path, start):
    place, shards = Place(str(tmp_path / "out")), shards_of(raster)
    report = BulkReport("out")
    worker = start(Record())
    for shard in shards[:-1]:
        take(worker, shard)
    # The first windows always remain, as their shard joins the results if all others are there.
    assert _remaining(place, shards, report) == [shards[0], shards[-1]]
    assert (report.total, report.before) == (1, 0)
    take(start(Record()), shards[-1])
    before = read_rows(tmp_path / "out")
    (tmp_path / "out/part-00000000.parquet").unlink()
    assert _remaining(place, shards, report) == [shards[0]]
    assert take(start(Record()), shards[0])["images"] == 1
    assert read_rows(tmp_path / "out") == before
    assert _remaining(place, shards, report) == [] and report.before == 1


def test_two_processes_that_finish_together_count_a_raster_once(raster, tmp_path, start):
    record, shards = Record(), shards_of(raster)
    worker = start(record)
    for shard in shards:
        take(worker, shard)
    images = [take(worker, shard)["images"] for shard in shards]
    assert images == [0] * (len(shards) - 1) + [1]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_raster_with_damage_is_one_row_with_the_reason(raster, tmp_path, start, scheme):
    data = bytearray(raster.read_bytes())
    shards = shards_of(f"{scheme}{raster}")
    raster.write_bytes(data[: len(data) * 2 // 3])
    worker = start(Record())
    failed = [failure for shard in shards for failure in take(worker, shard)["failed"]]
    ((file, reason),) = failed
    assert file == f"{scheme}{raster}" and reason.startswith(file)
    ((row,),) = read_rows(tmp_path / "out").values()
    assert row["error"] == reason and row["label"] is None


def test_a_storage_that_stops_within_a_raster_ends_the_shard(raster, start, monkeypatch):
    """The raster is not damaged, so a later run takes the shard again."""
    shards = shards_of(f"file://{raster}")
    worker = start(Record())
    assert take(worker, shards[0])["done"]
    plain, opened = places._open, []

    class Stops(io.RawIOBase):
        """A file of a storage that answers while the header is read, and no longer."""

        def __init__(self, address):
            self._file = plain(address)
            self.seek, self.tell = self._file.seek, self._file.tell
            opened.append(address)

        readable = seekable = lambda self: True

        def readinto(self, buffer):
            if len(opened) > 2:
                raise OSError("AWS Error NETWORK_CONNECTION")
            return self._file.readinto(buffer)

    monkeypatch.setattr(places, "_open", Stops)
    summary = take(worker, shards[1])
    assert summary == {
        "shard": 1,
        "done": False,
        "error": "OSError: AWS Error NETWORK_CONNECTION",
    }
    monkeypatch.undo()
    play_ray(monkeypatch)
    assert take(worker, shards[1])["done"]


def test_windows_that_kill_are_named_as_the_raster(raster, tmp_path, start):
    record, shards = Record(), shards_of(raster)
    for _ in range(2):
        record.begin(shards[1].number)
        record.trying(shards[1].number, 0)  # and the process ends
    for shard in shards:
        take(start(record), shard)
    ((row,),) = read_rows(tmp_path / "out").values()
    assert row["error"] == f"{raster}: the process that worked on it was killed, in 2 tries"
