"""The plan of a bulk job: what the sources name, and its shards. Nothing here needs Ray."""

import os
import shlex
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from bulk.jobs import checkpoint, image_table, jpeg, photos

from mdssd import bulk, cli
from mdssd.bulk import places
from mdssd.bulk.cluster import check_address, running
from mdssd.bulk.plan import (
    FAULT,
    IMAGE,
    ROWS,
    Part,
    Shard,
    find_parts,
    into_shards,
    plan_bytes,
    read_plan,
)
from mdssd.data import DataError


def find(*sources, recursive=False, out="out"):
    return find_parts(sources, recursive=recursive, out=str(out))[0]


def test_without_ray_one_line_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails then
    words = ["detect", "none.json", "none.jpg", "--out", str(tmp_path), "--engine", "ray"]
    with pytest.raises(ImportError, match=r"needs Ray: pip install 'mdssd\[ray\]'"):
        bulk.detect("none.json", ["none.jpg"], tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    model = checkpoint(tmp_path)
    assert cli.main([*words[:1], str(model), *words[2:]]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mdssd: error: ") and "mdssd[ray]" in lines[0]


@pytest.mark.parametrize(
    "address, reason",
    [
        ("127.0.0.1:{free}", "127.0.0.1:{free}: no Ray there \\(.*refused"),
        ("no.such.host.invalid:6379", "no.such.host.invalid:6379: no Ray there"),
        ("ray://head:10001", "ray://head:10001: expected HOST:PORT or auto; Ray's client is not"),
        ("somewhere", "expected HOST:PORT or auto, got 'somewhere'"),
        ("host:99999", "expected HOST:PORT or auto, got 'host:99999'"),
        (":6379", "expected HOST:PORT or auto, got ':6379'"),
    ],
)
def test_an_address_without_a_cluster_is_named(monkeypatch, address, reason):
    with socket.socket() as one:  # nothing listens at its port
        one.bind(("127.0.0.1", 0))
        free = one.getsockname()[1]
        address, reason = address.format(free=free), reason.format(free=free)
        with pytest.raises((ValueError, ConnectionError), match=reason):
            check_address(address)
        monkeypatch.setenv("RAY_ADDRESS", address)  # which Ray prefers to auto
        for asked in ("auto", None):
            with pytest.raises((ValueError, ConnectionError), match=reason):
                check_address(asked)
        one.listen()
        check_address(f"127.0.0.1:{free}")
    monkeypatch.delenv("RAY_ADDRESS")
    for asked in ("auto", "local", None):
        check_address(asked)


@pytest.mark.parametrize("option", ["--resume", "--ray-address=auto", "--actors=2", "--shard=256"])
def test_options_of_ray_need_the_engine(tmp_path, capsys, option):
    assert cli.main(["detect", "m.json", "a.jpg", "--out", str(tmp_path / "out"), option]) == 2
    assert "needs --engine ray beside it" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--csv", "--format=coco", "--picture-scale=2", "--overwrite"])
def test_options_of_files_are_refused_on_ray(tmp_path, capsys, option):
    words = ["detect", "m.json", "a.jpg", "--out", str(tmp_path / "out"), "--engine", "ray"]
    assert cli.main([*words, option]) == 2
    assert "is for --engine local" in capsys.readouterr().err


def test_a_ray_that_does_not_start_is_one_line(monkeypatch):
    def init(**options):
        raise Exception("The current node timed out during startup.\nAnd a second line.")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConnectionError) as caught, running(None):
        pass
    assert str(caught.value) == (
        "detect: engine: Ray did not start (The current node timed out during startup.)"
    )


def test_sources_on_disk(tmp_path, monkeypatch):
    files = [str(path) for path in photos(tmp_path / "in", 3)]
    table = image_table(tmp_path / "a.parquet", [jpeg(k) for k in range(5)], 2)
    (tmp_path / "list.txt").write_text("in/0000.jpg\nin/gone.jpg\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("in") == [Part(IMAGE, file) for file in files]
    assert find("in/*1.jpg") == [Part(IMAGE, files[1])]
    rows = [Part(ROWS, str(table), group, n) for group, n in enumerate([2, 2, 1])]
    assert find("a.parquet") == find("*.parquet") == find(".") == rows
    listed = find("@list.txt")
    assert listed[0] == Part(IMAGE, files[0])
    assert listed[1].kind == FAULT and listed[1].reason.endswith("gone.jpg: no such file")
    # Each file once, whatever names it.
    os.symlink("in/0001.jpg", "link.jpg")
    assert find("in/0001.jpg", "in", "link.jpg", "in/../in") == [
        Part(IMAGE, files[k]) for k in (1, 0, 2)
    ]
    for name, reason in (
        ("empty", "the folder has no image"),
        ("gone.jpg", "no such file or folder"),
        ("gone.parquet", "no such file"),
        ("in/0000.jpg/x.parquet", "no such file"),
    ):
        (part,) = find(name)
        assert part.kind == FAULT and reason in part.reason and name in part.reason
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (part,) = find("bad.parquet")
    assert part.kind == FAULT and "is damaged, or no Parquet file" in part.reason
    with pytest.raises(ValueError, match="standard input cannot be read on Ray"):
        find("-")


@pytest.mark.parametrize("scheme", ["file", "local"])  # of pyarrow, and of fsspec alone
def test_sources_at_addresses(tmp_path, scheme):
    if scheme == "local":
        pytest.importorskip("fsspec", reason="fsspec, which comes with Ray, is not installed")
    photos(tmp_path / "in", 2)
    photos(tmp_path / "in/deeper", 1)
    (tmp_path / "in/notes.txt").write_text("")
    image_table(tmp_path / "in/t.parquet", [jpeg(0)], 1)
    top = f"{scheme}://{tmp_path}/in"
    names = [f"{top}/{name}" for name in ("0000.jpg", "0001.jpg", "t.parquet")]
    images = [Part(IMAGE, names[0]), Part(IMAGE, names[1])]
    rows = [Part(ROWS, names[2], 0, 1)]
    assert find(top) == find(f"{top}/") == images + rows
    deeper = Part(IMAGE, f"{top}/deeper/0000.jpg")
    assert find(top, recursive=True) == [*images, deeper, *rows]
    assert find(f"{top}/*.jpg") == images
    assert find(f"{top}/*/*.jpg") == [deeper]
    assert find(names[1]) == [images[1]]
    (part,) = find(f"{scheme}://{tmp_path}/gone")
    assert part.kind == FAULT and "names no image" in part.reason
    assert places.read_bytes(names[0]) == jpeg(0)
    with pytest.raises(DataError, match=r"gone\.jpg: no such file"):
        places.read_bytes(f"{top}/gone.jpg")
    place = places.Place(f"{scheme}://{tmp_path}/out")
    assert list(place.names()) == []
    place.create()
    place.write("a.txt", b"first")
    place.write("a.txt", b"second")
    assert list(place.names()) == ["a.txt"] and place.read("a.txt") == b"second"


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="nowhere://x/: no file system for this address"):
        find("nowhere://x/a.jpg")


def test_a_package_that_an_address_needs_is_named(monkeypatch):
    pytest.importorskip("fsspec", reason="fsspec, which comes with Ray, is not installed")
    monkeypatch.setitem(sys.modules, "adlfs", None)  # importing it fails then
    with pytest.raises(ValueError, match="az://x/: no file system for this address .*adlfs"):
        find("az://x/a.jpg")


def test_an_address_may_name_an_account_beside_the_container():
    pytest.importorskip("pyarrow._azurefs", reason="this pyarrow was built without Azure")
    top = "abfs://box@account.dfs.core.windows.net"
    assert places._at(f"{top}/in/a.jpg")[1] == "box/in/a.jpg"
    assert places._within(f"{top}/in/", "box/in/b.jpg") == f"{top}/in/b.jpg"


def test_shards_and_their_plan():
    parts = [Part(IMAGE, f"{k}.jpg") for k in range(5)]
    parts += [Part(ROWS, "t.parquet", 0, 9), Part(ROWS, "t.parquet", 1, 2), Part(IMAGE, "z.jpg")]
    parts += [Part(FAULT, "\udcff.jpg", reason="\udcff.jpg: no such file")]
    shards = into_shards(parts, 4)
    assert [shard.images for shard in shards] == [4, 1, 9, 4]
    assert [part for shard in shards for part in shard.parts] == parts
    assert [shard.file for shard in shards][:2] == [
        "part-00000000.parquet",
        "part-00000001.parquet",
    ]
    assert read_plan(plan_bytes(shards)) == shards
    assert into_shards([], 4) == [] == read_plan(plan_bytes([]))
    assert Shard(3, []).images == 0


def test_the_manifest_for_kubernetes_starts_a_command_that_parses():
    """Its fields were checked against KubeRay's schema; here is what ours must fit."""
    text = (Path(__file__).parents[2] / "docs/cluster-kuberay.yaml").read_text()
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    arguments = cli.make_parser().parse_args(words[1:])
    assert (words[0], arguments.engine, arguments.ray_address) == ("mdssd", "ray", "auto")
    assert arguments.resume, "a job that is started again must continue"
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    (head,), *workers = [pod["containers"] for pod in pods]
    assert head["volumeMounts"][0]["name"] == pods[0]["volumes"][0]["name"]
    assert arguments.checkpoint.startswith(head["volumeMounts"][0]["mountPath"])
    for containers in workers:
        limits = containers[0]["resources"]["limits"]
        assert containers[0]["image"] == head["image"] and int(limits["cpu"]) >= 1
