"""Images in tar files in a bulk job. Nothing here needs Ray."""

import io
import os
import tarfile

import numpy as np
import pytest
from bulk.jobs import THRESHOLD, Handle, checkpoint, images_once, jpeg, play_ray, read_rows, take
from bulk.test_bulk_worker import kills, until_done

from mdssd.bulk import plan
from mdssd.bulk.plan import FAULT, MEMBERS, find_parts, into_shards
from mdssd.bulk.record import Record
from mdssd.bulk.settings import Settings
from mdssd.bulk.tars import contents, expanded, read_images
from mdssd.bulk.worker import Worker
from mdssd.data import DataError
from mdssd.data.images import ImageLimits
from mdssd.weights.checkpoint import load_checkpoint

LIMITS = ImageLimits()


def member(name, size=0, **facts):
    one = tarfile.TarInfo(name)
    one.size = size
    for fact, value in facts.items():
        setattr(one, fact, value)
    return one


def write_tar(path, files, mode="w", form=tarfile.GNU_FORMAT, more=()):
    """Write a tar file of {name: bytes} and of other members."""
    with tarfile.open(path, mode, format=form) as tar:
        for name, data in files.items():
            tar.addfile(member(name, len(data)), io.BytesIO(data))
        for one in more:
            tar.addfile(one)
    return path


def samples(count, first=0):
    """Return samples as WebDataset has them: an image and its label each."""
    files = {}
    for k in range(first, first + count):
        files |= {f"{k:05}.jpg": jpeg(k), f"{k:05}.cls": b"1"}
    return files


def find(*sources, most=4):
    return find_parts([str(s) for s in sources], recursive=False, out="", most=most)


def shards_of(*sources, most=4):
    return into_shards(find(*sources, most=most)[0], most)


def images_in(path, most=4):
    """Return what the ranges of a tar file read, by name."""
    ranges = contents(str(path), most).ranges
    return [one for first, count in ranges for one in read_images(str(path), first, count, LIMITS)]


@pytest.fixture
def start(tmp_path, monkeypatch):
    play_ray(monkeypatch)
    (tmp_path / "out/_begun").mkdir(parents=True)
    path = checkpoint(tmp_path)

    def start(record):
        model, meta = load_checkpoint(path)
        detector = {"classes": meta["classes"], "mean": tuple(meta["mean"]), "batch_size": 4}
        settings = Settings(str(tmp_path / "out"), detector, THRESHOLD, [1, 2])
        return Worker(model, settings, Handle(record))

    return start


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_rows_are_those_of_files(start, tmp_path, scheme):
    files = samples(10) | {"00003.jpg": jpeg(3)[:200]}
    tar = f"{scheme}{write_tar(tmp_path / 'a.tar', files)}"
    parts, left_out = find(tar)
    assert [(part.kind, part.images) for part in parts] == [(MEMBERS, n) for n in (4, 4, 2)]
    assert left_out == ["left out 10 members of tar files by the ends of their names: 10 .cls"]
    worker = start(Record())
    for shard in shards_of(tar):
        take(worker, shard)
    there = read_rows(tmp_path / "out")
    assert images_once(tmp_path / "out") == sorted(f"{tar}#{k:05}.jpg" for k in range(10))
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    for path in (tmp_path / "out").glob("part-*"):
        path.unlink()
    for shard in shards_of(tmp_path / "in"):
        take(worker, shard)
    for file, rows in read_rows(tmp_path / "out").items():
        own = there[f"{tar}#{os.path.basename(file)}"]
        errors = [str(row.pop("error")).rpartition(": ")[2] for row in (rows[0], own[0])]
        assert errors[0] == errors[1]
        assert [row | {"file": ""} for row in own] == [row | {"file": ""} for row in rows]
    assert there[f"{tar}#00003.jpg"][0]["width"] is None


def test_a_shard_that_is_taken_again_has_the_same_rows(start, tmp_path):
    tar = write_tar(tmp_path / "a.tar", samples(10))
    shards = shards_of(tar)
    for shard in shards:
        take(start(Record()), shard)
    before = read_rows(tmp_path / "out")
    (tmp_path / "out" / shards[1].file).unlink()
    take(start(Record()), shards[1])
    assert read_rows(tmp_path / "out") == before


def test_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for k in range(9, 12):
        write_tar(tmp_path / f"in/s-{k:03}.tar", samples(1, k))
    (tmp_path / "list.txt").write_text("in/s-010.tar\n")
    names = [str(tmp_path / f"in/s-{k:03}.tar") for k in range(9, 12)]
    for source in ("in", "in/*.tar", "in/s-{009..011}.tar"):
        for top in ("", f"file://{tmp_path}/"):
            parts, _ = find(top + source)
            assert [part.file.removeprefix("file://") for part in parts] == names, top + source
    assert [part.file for part in find("@list.txt")[0]] == names[1:2]
    assert [part.file for part in find("in/s-010.tar", "in")[0]] == [names[k] for k in (1, 0, 2)]
    gone = find("in/s-{011..012}.tar")[0]
    assert gone[0].kind == MEMBERS and gone[1].reason == "in/s-012.tar: no such file"
    assert list(expanded("{8..10}/{0..1}.tar"))[:3] == ["8/0.tar", "8/1.tar", "9/0.tar"]
    assert list(expanded("{1..2}.jpg")) == ["{1..2}.jpg"]
    for wrong in ("{2..1}.tar", "{0..99999999999}.tar"):
        with pytest.raises(ValueError, match="expected a range that ends behind its beginning"):
            find(wrong)


def test_a_storage_that_stops_ends_the_search(tmp_path, monkeypatch):
    opened = []

    def stop(file, most):
        opened.append(file)
        raise OSError("the storage is gone")

    monkeypatch.setattr(plan, "contents", stop)
    monkeypatch.setattr(plan, "_WAITING", 20)
    with pytest.raises(OSError, match="the storage is gone"):
        find("{0..999}.tar", f"file://{write_tar(tmp_path / 'a.tar', samples(1))}")
    assert opened == [f"file://{tmp_path}/a.tar"]
    opened.clear()
    for k in range(500):
        (tmp_path / f"{k}.tar").touch()
    with pytest.raises(OSError, match="the storage is gone"):
        find(tmp_path)
    assert 0 < len(opened) <= 21


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_strange_names(tmp_path, form):
    names = [
        "a.jpg",
        "f/" * 60 + "b.PNG",
        "\udcff\u00fc.webp",
        "z z.tif",
        "._hidden.jpg",
        "d.jpg/x",
    ]
    names += ["f/" * 140 + "c.jpeg"] if form != tarfile.USTAR_FORMAT else []
    files = {name: name.encode("utf-8", "surrogateescape") for name in names}
    tar = write_tar(tmp_path / "a.tar", files, form=form, more=[member("d.jpg/", type=b"5")])
    want = [(f"{tar}#{name}", files[name]) for name in names if name not in names[4:6]]
    for most in (1, 2, 99):
        assert images_in(tar, most) == want
    assert contents(str(tar), 9).others == {".jpg": 1, "": 1}


def test_members_never_touch_the_disk(tmp_path, start, monkeypatch):
    (tmp_path / "secret.jpg").write_bytes(jpeg(7))
    absolute = str(tmp_path / "made.jpg")
    files = {"../up.jpg": jpeg(0), absolute: jpeg(1)}
    links = [
        member("link.jpg", type=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.jpg")),
        member("hard.jpg", type=tarfile.LNKTYPE, linkname="../up.jpg"),
        member("device.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("pipe.tif", type=tarfile.FIFOTYPE),
        member("other", type=tarfile.SYMTYPE, linkname="/"),
    ]
    tar = write_tar(tmp_path / "a.tar", files, more=links)
    before = [path for path in sorted(tmp_path.rglob("*")) if "out/" not in str(path)]
    (shard,) = shards_of(tar, most=99)
    summary = take(start(Record()), shard)
    assert summary["images"] == 2
    assert dict(summary["failed"]) == {
        f"{tar}#{name}": f"{tar}#{name}: {reason}"
        for name, reason in {
            "link.jpg": f"is a link to {tmp_path}/secret.jpg, and links in tar files are not "
            "followed",
            "hard.jpg": "is a link to ../up.jpg, and links in tar files are not followed",
            "device.png": "is no plain file in the tar file",
            "pipe.tif": "is no plain file in the tar file",
        }.items()
    }
    assert sorted(read_rows(tmp_path / "out"))[0] == f"{tar}#../up.jpg"
    assert [p for p in sorted(tmp_path.rglob("*")) if "out/" not in str(p)] == before


@pytest.mark.parametrize(
    "name, damage, images, reason",
    [
        ("in a member", lambda d: d[: 512 * 3 + len(jpeg(0)) + 900], 1, "#00001.jpg: the tar file"),
        ("in a header", lambda d: d[: d.index(b"00009.jpg") + 100], 9, "is damaged at byte"),
        ("no end", lambda d: d.rstrip(b"\0") + bytes(511), 10, "without the mark of its end"),
        ("nothing", lambda d: b"", 0, "is damaged, or no tar file"),
        ("text", lambda d: b"no tar at all" * 99, 0, "is damaged, or no tar file"),
        ("zeros", lambda d: bytes(10240), 0, "has no image"),
    ],
)
def test_damage_is_one_row_and_the_images_before_are_detected(
    start, tmp_path, name, damage, images, reason
):
    whole = write_tar(tmp_path / "whole.tar", samples(10)).read_bytes()
    tar = tmp_path / "a.tar"
    tar.write_bytes(damage(whole))
    parts, _ = find(tar)
    (fault,) = [part for part in parts if part.kind == FAULT]
    assert reason in fault.reason and fault.reason.startswith(str(tar))
    worker = start(Record())
    summaries = [take(worker, shard) for shard in into_shards(parts, 4)]
    assert [tuple(one) for each in summaries for one in each["failed"]] == [
        (str(tar), fault.reason)
    ]
    assert sum(each["images"] for each in summaries) == images


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    tar = write_tar(tmp_path / "a.tar", samples(4))
    data = bytearray(tar.read_bytes())
    at = data.index(b"00002.jpg")
    data[at + 20] ^= 1
    tar.write_bytes(data)
    inside = contents(str(tar), 99)
    assert [count for _, count in inside.ranges] == [2]
    assert f"{tar}: is damaged at byte {at:,}, and what follows" in str(inside.fault)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_files_are_refused_in_one_line(tmp_path, kind):
    for name in (f"a.tar.{kind}", "a.tar"):
        (part,) = find(write_tar(tmp_path / name, samples(1), mode=f"w:{kind}"))[0]
        assert part.kind == FAULT and "is compressed by" in part.reason
        assert "unpack it" in part.reason and "\n" not in part.reason


def test_a_header_that_claims_a_huge_size_is_not_read(tmp_path):
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(0)})
    whole = tar.read_bytes()
    size = 3 << 20
    long_name = member("x", size, type=tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
    end = whole[: 1024 + len(jpeg(0)) // 512 * 512]
    tar.write_bytes(end + long_name + bytes(size) + whole)
    inside = contents(str(tar), 9)
    assert inside.ranges == [(0, 1)] and "a header of 3,145,728 bytes" in str(inside.fault)


def test_a_member_above_the_limit_is_refused_before_it_is_read(tmp_path):
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": bytes(600), "b.jpg": b"b"})
    (large, small) = read_images(str(tar), 0, 2, ImageLimits(max_pixels=50))
    assert "#a.jpg: has 600 bytes, expected at most 500 bytes" in str(large[1])
    assert small == (f"{tar}#b.jpg", b"b")


def test_any_damage_ends_with_a_reason(tmp_path):
    """Bytes of headers are changed at random; images that are read are then the right ones."""
    rng = np.random.default_rng(0)
    tar = tmp_path / "a.tar"
    faults = 0
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        files = {"f/" * 70 + f"{k}.jpg": bytes([k]) * 700 for k in range(6)}
        whole = write_tar(tar, files, form=form).read_bytes()
        for _ in range(300):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), rng.integers(1, 4)):
                data[at] = rng.choice([0, 0xFF, ord("9"), ord("-"), rng.integers(256)])
            tar.write_bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.3 else data)
            inside = contents(str(tar), 2)
            faults += inside.fault is not None
            for first, count in inside.ranges:
                read = list(read_images(str(tar), first, count, LIMITS))
                assert len(read) == count
    assert faults > 200


def test_a_tar_that_has_changed_since_the_plan(start, tmp_path):
    tar = write_tar(tmp_path / "a.tar", samples(6))
    shards = shards_of(tar, most=3)
    write_tar(tar, samples(4))
    worker = start(Record())
    summaries = [take(worker, shard) for shard in shards]
    assert [each["images"] for each in summaries] == [3, 1]
    ((file, reason),) = summaries[1]["failed"]
    assert (file, reason) == (
        str(tar),
        f"{tar}: has changed since the job was planned; it has fewer images",
    )
    tar.unlink()
    assert take(worker, shards[0])["failed"] == [[str(tar), f"{tar}: no such file"]]
    with pytest.raises(DataError, match="no such file"):
        list(read_images(str(tar), 0, 1, LIMITS))


def test_an_image_that_kills_is_named(start, tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", samples(7))
    (shard,) = shards_of(tar, most=9)
    kills(monkeypatch, lambda images: any("00004" in image for image in images))
    assert until_done(start, Record(), shard, 9) == 4
    rows = read_rows(tmp_path / "out")
    assert sorted(rows) == sorted(f"{tar}#{k:05}.jpg" for k in range(7))
    assert "#00004.jpg: the process that worked on it" in rows[f"{tar}#00004.jpg"][0]["error"]
    assert sum(own[0]["error"] is not None for own in rows.values()) == 1
