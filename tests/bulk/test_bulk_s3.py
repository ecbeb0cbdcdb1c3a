"""Bulk detection in an S3 storage, which moto plays on this machine; the last test needs Ray."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pyarrow.parquet
import pytest
from bulk.jobs import THRESHOLD, Handle, checkpoint, jpeg, photos, play_ray, read_rows, take
from bulk.test_bulk_tars import samples, write_tar

from mdssd.bulk import places
from mdssd.bulk.places import Place
from mdssd.bulk.plan import FAULT, find_parts, into_shards
from mdssd.bulk.record import Record
from mdssd.bulk.settings import Settings
from mdssd.bulk.worker import Worker
from mdssd.data import DataError
from mdssd.data.images import ImageLimits
from mdssd.weights.checkpoint import load_checkpoint

REASON = "moto is not installed: pip install 'moto[server]'"
moto_server = pytest.importorskip("moto.server", reason=REASON)
boto3 = pytest.importorskip("boto3", reason=REASON)
pytest.importorskip("pyarrow._s3fs", reason="this pyarrow was built without S3")


class Storage:
    """A server with one bucket; `address` is http://..., `bucket` is s3://..."""

    def __init__(self, name):
        self.name, self.bucket = name, f"s3://{name}"
        self._server, self._port = None, 0
        self.start()
        self.client("s3").create_bucket(Bucket=name)

    def start(self):
        # The port is that of the first start, so that the server comes back where it was.
        self._server = moto_server.ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]
        self.address = f"http://127.0.0.1:{self._port}"

    def stop(self):
        self._server.stop()

    def client(self, service):
        return boto3.client(service, endpoint_url=self.address)

    def put(self, key, data):
        self.client("s3").put_object(Bucket=self.name, Key=key, Body=data)
        return f"{self.bucket}/{key}"

    def check_keys(self, on):
        """Let the server look at the keys of each request, or at none."""
        request = urllib.request.Request(
            f"{self.address}/moto-api/reset-auth",
            data=b"0" if on else b"inf",
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()


@pytest.fixture
def storage(request, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    storage = Storage(request.node.name.replace("_", "-").lower()[:60])
    monkeypatch.setenv("AWS_ENDPOINT_URL", storage.address)
    places._file_system.cache_clear()
    yield storage
    storage.stop()
    places._file_system.cache_clear()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts a worker which writes to a folder or an address."""
    play_ray(monkeypatch)
    path = checkpoint(tmp_path)

    def start(out, **settings):
        model, meta = load_checkpoint(path)
        detector = {"classes": meta["classes"], "mean": tuple(meta["mean"]), "batch_size": 4}
        Place(f"{out}/_begun").create()
        return Worker(
            model, Settings(str(out), detector, THRESHOLD, [1, 2], **settings), Handle(Record())
        )

    return start


def shards_of(*sources):
    return into_shards(find_parts([str(s) for s in sources], recursive=False, out="")[0], 4)


def rows_at(address):
    """Return the rows of a job at an address: dicts, by the last part of the image's name."""
    system, path = places._at(address)
    rows = {}
    for name in sorted(n for n in Place(address).names() if n.startswith("part-")):
        for row in pyarrow.parquet.read_table(f"{path}/{name}", filesystem=system).to_pylist():
            rows.setdefault(row.pop("file").rpartition("/")[2], []).append(row)
    return rows


def test_the_rows_are_those_of_local_files(storage, start, tmp_path):
    files = photos(tmp_path / "in", 10, broken=(3,))
    odd = "in/a b+c%20#1[x]?y=*.jpg"  # a key is no URL and no pattern
    names = [storage.put(f"in/{file.name}", file.read_bytes()) for file in files]
    names.append(storage.put(odd, jpeg(10)))
    storage.put("in/notes.txt", b"")
    storage.put("in/deeper/a.jpg", jpeg(0))
    for name in ("in", "in/"):
        parts, _ = find_parts([f"{storage.bucket}/{name}"], recursive=False, out="")
        assert [part.file for part in parts] == sorted(names)
    parts, _ = find_parts([f"{storage.bucket}/in/*[24].jpg"], recursive=False, out="")
    assert [part.file for part in parts] == [names[2], names[4]]
    (fault,) = find_parts([f"{storage.bucket}/gone/"], recursive=False, out="")[0]
    assert fault.kind == FAULT

    out = f"{storage.bucket}/found"
    worker = start(out)
    for shard in shards_of(f"{storage.bucket}/in"):
        assert take(worker, shard)["done"]
    (tmp_path / "in" / odd.rpartition("/")[2]).write_bytes(jpeg(10))
    for shard in shards_of(tmp_path / "in"):
        assert take(start(tmp_path / "out"), shard)["done"]
    local = {file.rpartition("/")[2]: rows for file, rows in read_rows(tmp_path / "out").items()}
    there = rows_at(out)
    broken = files[3].name
    for rows in (local, there):
        assert rows[broken][0].pop("error").rpartition("/")[2].startswith(f"{broken}: ")
        assert [row.pop("file", None) for own in rows.values() for row in own]
    assert there == local and len(there) == 11


def test_a_missing_and_a_denied_key_are_rows_but_wrong_credentials_end_the_job(
    storage, start, monkeypatch
):
    names = [storage.put(f"in/{k}.jpg", jpeg(k)) for k in range(4)]
    (shard,) = shards_of(f"{storage.bucket}/in")
    storage.client("s3").delete_object(Bucket=storage.name, Key="in/1.jpg")
    denied = {"Effect": "Deny", "Action": "s3:GetObject"}
    denied["Resource"] = f"arn:aws:s3:::{storage.name}/in/2.jpg"
    allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = {"Version": "2012-10-17", "Statement": [allowed, denied]}
    iam = storage.client("iam")
    iam.create_user(UserName="reader")
    iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    stranger = start(f"{storage.bucket}/wrong")
    storage.check_keys(True)
    try:
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            places.read_bytes(names[0])
        summary = take(stranger, shard)
        assert summary["done"] is False and "INVALID_ACCESS_KEY_ID" in summary["error"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        places._file_system.cache_clear()
        summary = take(start(f"{storage.bucket}/found"), shard)
        assert dict(summary["failed"]) == {
            names[1]: f"{names[1]}: no such file",
            names[2]: f"{names[2]}: cannot be read (permission denied)",
        }
        assert (summary["images"], sorted(rows_at(f"{storage.bucket}/found"))) == (
            2,
            [f"{k}.jpg" for k in range(4)],
        )
    finally:
        storage.check_keys(False)


def test_a_server_that_stops_ends_the_shard_which_is_taken_again(storage, start):
    for k in range(8):
        storage.put(f"in/{k}.jpg", jpeg(k))
    out = f"{storage.bucket}/found"
    shards = shards_of(f"{storage.bucket}/in")
    worker = start(out)
    assert take(worker, shards[0])["done"]
    storage.stop()
    summary = take(worker, shards[1])
    assert summary["done"] is False and "NETWORK_CONNECTION" in summary["error"]
    assert "\n" not in summary["error"]
    storage.start()
    assert take(worker, shards[1])["done"]
    assert sorted(rows_at(out)) == [f"{k}.jpg" for k in range(8)]


def test_images_in_a_tar_file(storage, start, tmp_path):
    tar = write_tar(tmp_path / "a-01.tar", samples(10)).read_bytes()
    storage.put("in/a-01.tar", tar)
    storage.put("in/a-02.tar", tar[: len(tar) // 2])
    shards = shards_of(f"{storage.bucket}/in/a-{{01..02}}.tar")
    out = f"{storage.bucket}/found"
    summaries = [take(start(out), shard) for shard in shards]
    rows = rows_at(out)
    assert sum(summary["images"] for summary in summaries) + 1 == len(rows)
    assert {f"a-01.tar#{k:05}.jpg" for k in range(10)} < set(rows)
    assert rows["a-02.tar#00000.jpg"] == rows["a-01.tar#00000.jpg"]
    (fault,) = rows["a-02.tar"]
    assert fault["error"].startswith(f"{storage.bucket}/in/a-02.tar")


def test_an_object_of_too_many_bytes_is_refused_before_it_is_read(storage):
    name = storage.put("a.jpg", jpeg(0))
    with pytest.raises(DataError, match=r"a\.jpg: has .* expected at most 100 bytes"):
        places.read_bytes(name, ImageLimits(max_pixels=10))


def test_settings_in_an_address_are_refused(storage):
    address = f"{storage.bucket}/in?endpoint_override=127.0.0.1:9000&scheme=http"
    with pytest.raises(ValueError, match="without endpoint_override=; every node takes"):
        find_parts([address], recursive=False, out="")


@pytest.mark.nightly("starts Ray twice, which takes half a minute")
def test_a_command_that_was_killed_continues_with_each_image_once(storage, tmp_path):
    pytest.importorskip("ray.data", reason="Ray is not installed: pip install 'mdssd[ray]'")
    for k in range(60):
        storage.put(f"in/{k:02}.jpg", jpeg(k))
    out = f"{storage.bucket}/found"
    words = [sys.executable, "-m", "mdssd", "detect", str(checkpoint(tmp_path))]
    words += [f"{storage.bucket}/in", "--engine", "ray", "--actors", "1", "--shard", "2"]
    words += ["--device", "cpu", "--score-threshold", str(THRESHOLD), "--out", out, "--resume"]

    def shards():
        return [name for name in Place(out).names() if name.startswith("part-")]

    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)
        while process.poll() is None and len(shards()) < 3:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
        assert subprocess.call(words, env=environment, stdout=output, stderr=output) == 0
    system, path = places._at(out)
    once = Counter()
    for name in shards():
        table = pyarrow.parquet.read_table(f"{path}/{name}", filesystem=system, columns=["file"])
        once.update(set(table["file"].to_pylist()))
    assert once == {f"{storage.bucket}/in/{k:02}.jpg": 1 for k in range(60)}
    assert len(shards()) == 30
