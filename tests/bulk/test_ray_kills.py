"""Processes that are killed or cannot start on a real Ray, which starts them again many times."""

import os
import signal

import pytest
from bulk.jobs import checkpoint, images_once, local_ray, photos, run

from mdssd import bulk
from mdssd.bulk.cluster import taken

pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'mdssd[ray]'")
pytestmark = pytest.mark.nightly(
    "six processes start one after another; tests/bulk/test_bulk_worker.py does without Ray"
)


def deadly():
    """Return what Ray calls in each process: an image named poison kills the process."""

    def prepare():
        from mdssd.detection import reading

        plain = reading.read_image

        def read(path, **options):
            if "poison" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(path, **options)

        reading.read_image = read

    return prepare


@pytest.fixture(scope="module")
def two_processes():
    with local_ray(runtime_env={"worker_process_setup_hook": deadly()}):
        yield


def test_an_image_that_kills_its_process_is_named_and_the_job_goes_on(two_processes, tmp_path):
    files = photos(tmp_path / "in", 9)
    checkpoint(tmp_path)
    poison = files[4].rename(tmp_path / "in/poison.jpg")
    out = tmp_path / "out"
    report = run(tmp_path, out, 1, shard_images=5)
    assert report.failures == [
        (str(poison), f"{poison}: the process that worked on it was killed, in 2 tries")
    ]
    assert images_once(out) == sorted(str(path) for path in (tmp_path / "in").iterdir())
    assert (report.images, report.failed) == (8, 1)


def test_processes_that_cannot_start_end_the_job_with_one_line(two_processes):
    class Worker:
        def __init__(self):
            raise ImportError("this node has no OpenVINO")

        def __call__(self, batch):
            return batch

    pool = bulk.Pool(workers=1, device="cpu")
    with pytest.raises(OSError, match="^a process of Ray ended: ImportError: this node has no Op"):
        list(taken([{"shard": 0}], Worker, (), pool))
